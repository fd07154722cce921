"""Many tables out of one file: safetensors and state dicts, to a bundle, a store, and bags on the runtime."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import EdgeEmbedError, RequestError
from edge_embed.probing import probe
from edge_embed_bundle.manifest import BagRecipe, LatencyBudget
from edge_embed_bundle.store import Store
from edge_embed_devices.checking import check
from edge_embed_devices.profiles import this_machine
from edge_embed_export.exporter import export
from edge_embed_export.matrix import blocks_of
from edge_embed_export.options import Hashing, Options
from edge_embed_export.sources import Reading, Source, read_source

safetensors = pytest.importorskip("safetensors.numpy")

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}
_PATIENT = LatencyBudget(1e7, 1e7)


def _bfloat16(numbers: NDArray[np.float32]) -> bytes:
    """Return the high halves of float32 numbers."""
    return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def file_of(tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    """Return a safetensors file: https://github.com/huggingface/safetensors, "Format"."""
    header: dict[str, object] = {}
    data = b""
    for name, (dtype, numbers) in tensors.items():
        raw = _bfloat16(numbers) if dtype == "BF16" else numbers.astype(_DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(numbers.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    described = json.dumps(header).encode()
    return struct.pack("<Q", len(described)) + described + data


def _table(rows: int, dimensions: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)


MODEL: dict[str, tuple[str, NDArray[Any]]] = {
    "net.emb.user_id.weight": ("F32", _table(9, 4)),
    "net.emb.10.weight": ("F16", _table(3, 2)),
    "net.emb.2.weight": ("F64", _table(5, 1)),
    "net.emb.genre.weight": ("BF16", _table(2, 3)),
    "net.mlp.weight": ("F32", _table(4, 4)),
    "net.mlp.bias": ("F32", np.zeros(4)),
    "net.emb.ids.weight": ("I64", np.zeros((2, 2))),
    "net.norm.weight": ("F32", np.ones(4)),
    "net.special": ("F32", _table(6, 2)),
}


def _read(
    path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]], format: str | None = None, tables: Sequence[str] = ()
) -> Source:
    path.write_bytes(file_of(tensors))
    return read_source(path, format, Reading(tables=tuple(tables)))


def test_every_table_of_a_file_is_read_and_the_matrices_of_layers_are_not(tmp_path: Path) -> None:
    source = _read(tmp_path / "model.safetensors", MODEL)
    assert [table.name for table in source.tables] == ["2", "10", "genre", "user_id"]
    for table, name in zip(source.tables, ("2", "10", "genre", "user_id"), strict=True):
        dtype, expected = MODEL[f"net.emb.{name}.weight"]
        tolerance = {"F16": 1e-3, "BF16": 1e-2}.get(dtype, 0.0)
        np.testing.assert_allclose(table.vectors[:], expected, rtol=tolerance, atol=tolerance)
        assert table.keys is None and table.vectors.dtype == np.float32 and table.vectors.nbytes == 4 * expected.size
    assert source.notes == (
        "2 matrices that look like no table were left out (--table takes them): net.mlp.weight, net.special",
    )


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["net.special"], ["special"]),
        (["*.genre"], ["genre"]),
        (["*.genre.weight", "net.emb.2.weight"], ["genre", "2"]),
        (["net.mlp.weight", "net.emb.[0-9]*"], ["mlp", "emb.10", "emb.2"]),
    ],
)
def test_patterns_choose_the_tensors_that_are_tables(tmp_path: Path, patterns: list[str], names: list[str]) -> None:
    source = _read(tmp_path / "model.safetensors", MODEL, tables=patterns)
    assert sorted(table.name for table in source.tables) == sorted(names)


def test_a_bare_table_is_called_table(tmp_path: Path) -> None:
    assert [table.name for table in _read(tmp_path / "a", {"weight": ("F32", _table(2, 2))}).tables] == ["table"]
    assert [table.name for table in _read(tmp_path / "b", {"a.emb.weight": ("F32", _table(2, 2))}).tables] == ["emb"]


def test_rows_come_by_runs_and_by_ids_and_by_blocks(tmp_path: Path) -> None:
    numbers = _table(10_000, 3)
    (table,) = _read(tmp_path / "model", {"weight": ("F64", numbers)}).tables
    rows = table.vectors
    np.testing.assert_array_equal(rows[17:40], numbers[17:40])
    np.testing.assert_array_equal(rows[::-1000], numbers[::-1000])
    np.testing.assert_array_equal(rows[np.array([9999, 0, 7, 7])], numbers[[9999, 0, 7, 7]])
    assert rows[5:5].shape == (0, 3) and len(rows) == 10_000
    np.testing.assert_array_equal(np.concatenate([rows[block] for block in blocks_of(rows)]), numbers)


REFUSED: dict[str, tuple[dict[str, tuple[str, NDArray[Any]]], list[str], str]] = {
    "no tensor": ({}, [], "expected 2-D tensors of floats called ...weight, found no tensor"),
    "no table": ({"a": ("F32", np.zeros(3))}, [], r"found 1 tensors: a \(3,\)"),
    "no tensor like that": (MODEL, ["nothing*"], "expected a tensor like 'nothing\\*', found 9 tensors"),
    "a vector": (MODEL, ["net.norm.weight"], "expected a 2-D tensor of floats, found one of shape"),
    "whole numbers": (MODEL, ["net.emb.ids.weight"], "expected a 2-D tensor of floats"),
    "a table without rows": ({"weight": ("F32", np.zeros((0, 3)))}, [], "expected 2-D tensors of floats"),
    "two tables of one name": (
        {"a.b c.weight": ("F32", _table(1, 1)), "a.b_c.weight": ("F32", _table(1, 1))},
        [],
        "expected tensors whose names make table names that differ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_without_such_a_table_is_refused_with_what_it_has(tmp_path: Path, case: str) -> None:
    tensors, patterns, says = REFUSED[case]
    with pytest.raises(RequestError, match=says):
        _read(tmp_path / "model", tensors, tables=patterns, format="safetensors")


def test_patterns_are_for_files_of_many_tensors(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("1 2\na 1 2\n")
    with pytest.raises(
        RequestError, match="--table: expected a source in one of safetensors, torch, found word2vec-text"
    ):
        read_source(path, None, Reading(tables=("*",)))


def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    good = file_of({"weight": ("F32", _table(4, 4))})
    lies = {
        "rows": good.replace(b"[4, 4]", b"[4, 9]"),
        "terabytes": struct.pack("<Q", 2**40) + good[8:],
        "offsets": good.replace(b"[0, 64]", b"[0, 68]"),
        "cut": good[:-1],
    }
    for name, data in lies.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match=r"expected bytes for shape|expected a safetensors header of at most"):
            read_source(tmp_path / name, "safetensors")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def _read_or_refused(path: Path, data: bytes, format: str | None) -> None:
    path.write_bytes(data)
    try:
        source = read_source(path, format)
        for table in source.tables:
            assert table.vectors[:].shape == table.vectors.shape
    except EdgeEmbedError as error:
        assert str(path) in str(error)


def _mutated(draw: st.DrawFn, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        # The header is where the meaning is.
        at = at if draw(st.booleans()) else min(at, draw(st.integers(0, 200)))
        data[at : at + draw(st.integers(0, 6))] = draw(
            st.binary(max_size=6) | st.sampled_from([b"9", b"-1", b"]", b"F64"])
        )
    return bytes(data)


_SMALL = file_of({"a.weight": ("F32", _table(3, 2)), "b.weight": ("BF16", _table(2, 2)), "c": ("F16", np.zeros(2))})


@settings(max_examples=400, deadline=None)
@given(data=st.data(), format=st.sampled_from([None, "safetensors", "torch"]))
def test_any_damage_to_a_safetensors_file_gives_a_source_or_an_error_of_ours(
    data: st.DataObject, format: str | None, workplace: Path
) -> None:
    if format == "torch":
        pytest.importorskip("torch")
    _read_or_refused(workplace / "model.safetensors", data.draw(st.composite(_mutated)(_SMALL)), format)


# torch


def _saved(path: Path, value: Any) -> Path:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'edge-embed[torch]')")
    torch.save(value, path)
    return path


def test_a_state_dict_gives_what_its_modules_hold(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'edge-embed[torch]')")
    module = torch.nn.ModuleDict(
        {
            "user": torch.nn.Embedding(7, 3),
            "genre": torch.nn.EmbeddingBag(5, 2).to(torch.bfloat16),
            "price": torch.nn.Embedding(4, 2).double(),
            "mlp": torch.nn.Linear(3, 3),
        }
    )
    state = module.state_dict()
    for name, value in {"plain": state, "checkpoint": {"epoch": 3, "model": {"state_dict": state}}}.items():
        source = read_source(_saved(tmp_path / name, value))
        assert [table.name for table in source.tables] == ["genre", "price", "user"]
        for table in source.tables:
            expected = state[f"{table.name}.weight"].float().numpy()
            np.testing.assert_array_equal(table.vectors[:], expected)
            np.testing.assert_array_equal(table.vectors[np.array([2, 0])], expected[[2, 0]])


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_a_state_dict_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _saved(tmp_path / "model.pt", {"weight": Evil()})
    with pytest.raises(RequestError, match=r"expected a state dict of tensors alone \(weights_only\)"):
        read_source(path)
    assert "unpickled" not in capsys.readouterr().out


def test_a_few_bytes_that_look_like_many_rows_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'edge-embed[torch]')")
    path = _saved(tmp_path / "model.pt", {"weight": torch.zeros(1, 4).expand(2**40, 4)})
    with pytest.raises(RequestError, match=rf"weight: expected {2**44} bytes of numbers, found 16"):
        read_source(path)


def test_a_pickle_without_an_archive_is_not_opened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'edge-embed[torch]')")
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RequestError, match=r"expected a state dict as torch.save writes it \(a zip archive\)"):
        read_source(path, "torch")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_state_dict_gives_a_source_or_an_error_of_ours(data: st.DataObject, workplace: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'edge-embed[torch]')")
    good = _saved(workplace / "good.pt", {"a.weight": torch.arange(6.0).reshape(3, 2)}).read_bytes()
    _read_or_refused(workplace / "model.pt", data.draw(st.composite(_mutated)(good)), "torch")


def test_without_torch_its_extra_is_named(tmp_path: Path) -> None:
    if "torch" in sys.modules:
        pytest.skip("torch is installed here")
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(EdgeEmbedError, match=r"torch"):
        read_source(path, "torch")


# The whole way

SHAPES = {f"t_cat_{i}": (3 + 40 * i + i**3 % 500, (4, 8, 16, 5)[i % 4]) for i in range(26)}
CODECS = {"t_cat_3": "float16", "t_cat_7": "int4", "t_cat_12": "rq:2", "t_cat_16": "pq:8", "t_cat_25": "float32"}
#: What a number may lose, as a share of the largest of its table (pq and rq: of so few random rows, more).
LOSS = {"int8": 0.005, "float16": 0.001, "int4": 0.1, "float32": 0.0, "pq": 0.6, "rq": 0.9}


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    """26 tables from a safetensors file, exported and installed into a store; and their numbers."""
    folder = tmp_path_factory.mktemp("recommender")
    tables = {name: _table(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    (folder / "model.safetensors").write_bytes(
        file_of({f"bags.{name}.weight": ("F32", table) for name, table in tables.items()})
    )
    options = Options(
        folder / "bundle",
        name="recommender",
        codecs=CODECS,
        bags={"*": BagRecipe("sum"), "t_cat_1": BagRecipe("mean", 0), "t_cat_2": BagRecipe("max")},
        hashes={"t_cat_4": Hashing()},
        latency_budgets=dict.fromkeys(("lookup", "bag"), _PATIENT),
    )
    export(read_source(folder / "model.safetensors"), options)
    Store(folder / "store").install(folder / "bundle", probe)
    return folder / "store", tables


def test_26_tables_go_from_a_trainers_file_to_bags_on_the_runtime(
    recommender: tuple[Path, dict[str, NDArray[np.float32]]],
) -> None:
    store, tables = recommender
    random = np.random.default_rng(0)
    asked = {name: random.integers(0, len(table), (3, 6)) for name, table in tables.items()}
    with edge_embed.open(store) as runtime:
        assert [model.name for model in runtime.manifest.tables] == list(SHAPES)
        assert len({runtime.table(name).space.id for name in SHAPES}) == 26
        found = runtime.bags({name: ids.tolist() for name, ids in asked.items()})
        for name, table in tables.items():
            model = runtime.table(name).model
            rows = table[asked[name]]
            expected = rows.sum(axis=1)
            if name == "t_cat_1":
                kept = (asked[name] != 0)[:, :, np.newaxis]
                expected = (rows * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
            if name == "t_cat_2":
                expected = rows.max(axis=1)
            assert model.codec == CODECS.get(name, "int8").partition(":")[0]
            bound = 6 * LOSS[model.codec] * float(np.abs(table).max()) + 1e-5
            assert np.abs(found[name] - expected).max() <= bound, name
            assert runtime.manifest.quality[name]["mean_cosine"] > (0.7 if model.codec in ("pq", "rq") else 0.98)
        count = SHAPES["t_cat_4"][0]
        np.testing.assert_array_equal(
            runtime.lookup_ids([count + 1, -1], model="t_cat_4"), runtime.lookup_ids([1, count - 1], model="t_cat_4")
        )
        assert all(outcome.passed for outcome in runtime.check_golden())


def test_what_26_tables_take_is_measured_and_predicted(
    recommender: tuple[Path, dict[str, NDArray[np.float32]]],
) -> None:
    store, _ = recommender
    lines = {line.name: line for line in check(store, this_machine()).lines}
    assert {"bag p50", "bag p99", "lookup p50", "private memory"} <= set(lines)
    assert "search p50" not in lines
    assert all(line.within for line in lines.values()), lines


def test_the_command_exports_inspects_and_answers_many_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bundle = tmp_path / "model.safetensors", str(tmp_path / "bundle")
    table = _table(3, 2)
    path.write_bytes(file_of({"genre.weight": ("F32", table), "user.weight": ("F32", _table(4, 3))}))
    keys = tmp_path / "genres.txt"
    keys.write_text("drama\nnoir\nfarce\n")
    words = [str(path), "-o", bundle, "--codec", "float32", "--codec", "user=int8", "--keys", f"genre={keys}"]
    assert main(["export", *words, "--bag", "mean", "--bag", "user=sum:0", "--hash", "user=1:3"]) == 0
    capsys.readouterr()
    assert main(["inspect", bundle]) == 0
    said = capsys.readouterr().out
    assert "model     genre: 3 x 2 float32, lookup, bag (mean), search" in said
    assert "model     user: 4 x 3 int8, lookup, bag (sum)" in said
    assert main(["bag", bundle, "drama", "farce", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    np.testing.assert_allclose(answer["vector"], table[[0, 2]].mean(axis=0), rtol=1e-6)
    assert main(["bag", bundle, "--model", "user", "1", "17", "--weights", "2,-1", "--json"]) == 0
    weighted = json.loads(capsys.readouterr().out)
    assert main(["lookup", bundle, "--model", "user", "1", "17", "-2", "--json"]) in (0, 2)
    capsys.readouterr()
    assert main(["lookup", bundle, "--model", "user", "1", "17", "--json"]) == 0
    one, other = (each["vector"] for each in json.loads(capsys.readouterr().out)["answers"])
    np.testing.assert_allclose(weighted["answers"][0]["vector"], 2 * np.array(one) - np.array(other), atol=1e-6)
    with edge_embed.open(bundle) as runtime:
        assert weighted["space"] == runtime.table("user").space.id != runtime.space.id
        assert runtime.search("noir", k=2).space == runtime.space.id
    for bad, says in {
        "--bag=min": "expected bags like mean",
        "--bag=user=mean:x": "expected bags like mean",
        "--bag=user=mean:4": "expected a padding row below 4, found 4",
        "--hash=user=2": "expected hashing like user_id",
        "--hash=user=3:2": "expected rows for hashed ids within 0 to 3, found 2 from 3 on",
        "--hash=other": "expected options for the tables genre, user, found other",
        f"--keys=user={keys}": "user of model.safetensors: expected 4 keys, found 3",
        f"--keys=other={keys}": "expected keys for the tables genre, user, found other",
        "--codec=user=int3": "expected a codec of",
    }.items():
        assert main(["export", str(path), "-o", str(tmp_path / "other"), bad]) == 2, bad
        assert says in capsys.readouterr().err
