"""A source becomes a bundle that says the truth about itself, or nothing at all stands at the target."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_embed
from edge_embed.errors import BundleError, EdgeEmbedError, RequestError
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import LatencyBudget
from edge_embed_devices.budgets import default_budgets
from edge_embed_devices.profiles import board_named
from edge_embed_export.codecs import ENCODERS
from edge_embed_export.exporter import Report, export
from edge_embed_export.options import Options
from edge_embed_export.proving import prove
from edge_embed_export.sources import Source, read_source
from tests.making import WORDS, keys_of, make_bundle, small_source, small_text_source, vectors_of, with_table

pytest.importorskip("onnx")
pytest.importorskip("ai_edge_litert")

LINES = ("word1 word2 word3", "word10 word11", "word20 naïve", "東京 word30 word31")


def _export(target: Path, source: Source, **options: Any) -> Report:
    return export(source, Options(target=target, name="small", **options))


def _table(vectors: Any, keys: tuple[bytes, ...] | None = None) -> Source:
    """Return a source of given vectors."""
    rows = np.asarray(vectors, np.float32)
    named = tuple(b"key %d" % row for row in range(len(rows))) if keys is None else keys
    return with_table(small_source(), keys=named, vectors=rows)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (small_source, {}),
        (small_source, {"codec": "float32", "graphs": ()}),
        (small_text_source, {"collection": LINES, "graphs": ("onnx",)}),
    ],
    ids=["words", "float32 without graphs", "text with a collection"],
)
def test_the_same_source_and_options_give_the_same_bytes_in_every_file(
    tmp_path: Path, source: Callable[[], Source], options: Mapping[str, Any]
) -> None:
    one, other = (_export(tmp_path / name, source(), **options).path for name in ("one", "other"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    "graphs", [(), ("onnx",), ("tflite",), ("tflite", "onnx")], ids=lambda graphs: "+".join(graphs)
)
def test_a_bundle_has_the_graphs_that_were_asked_for_each_proven_on_its_engine(
    tmp_path: Path, graphs: tuple[str, ...]
) -> None:
    report = make_bundle(tmp_path / "bundle", graphs=graphs)
    model = report.manifest.tables[0]
    assert [(graph.format, graph.blob) for graph in model.graphs] == [(name, f"table.{name}") for name in graphs]
    files = {"golden.bin", "manifest.json", "table.bin", *(f"table.{name}" for name in graphs)}
    assert {path.name for path in report.path.iterdir()} == files
    engines = {"onnx": "onnxruntime", "tflite": "litert"}
    for graph in model.graphs:
        assert [engine.name for engine in graph.proven] == [engines[graph.format]]
    with edge_embed.open(report.path) as runtime:
        assert all(outcome.passed for outcome in runtime.check_golden())
    for format, engine in engines.items():
        if format not in graphs:
            with pytest.raises(RequestError, match=f"expected a {format} graph for {engine}, found none"):
                edge_embed.open(report.path, engine=engine)


IMPOSSIBLE: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "codec": ({"codec": "int3"}, "expected a codec of float32, float16, int8, int4, pq, opq, rq, found 'int3'"),
    "graph": ({"graphs": ("onnx", "coreml")}, "expected graphs of onnx, tflite, found coreml"),
    "board": ({"board": "pi-99"}, r"expected a board of .*pi-zero-2w.*, found 'pi-99'"),
    "budget": ({"latency_budgets": {"dance": LatencyBudget(1, 2)}}, "expected budgets for lookup, .*, found dance"),
    "negative budget": ({"latency_budgets": {"lookup": LatencyBudget(-1, 2)}}, "not negative, found -1"),
    "a memory budget under what a process with the bundle holds": (
        {"memory_budget_bytes": 8 * 2**20},
        r"random table 0: expected a memory budget of 20\.1 MiB or more, of which the bundle adds 4\.1 MiB to a "
        r"process with numpy, found 8\.0 MiB; or pass",
    ),
    "name": ({"name": "../up"}, r"name: expected .*'\.\./up'"),
    "version": ({"version": "newest"}, r"version: expected .*'newest'"),
    "collection without a tokenizer": ({"collection": LINES}, "expected a source with a tokenizer"),
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_an_impossible_option_is_named_and_leaves_nothing_behind(tmp_path: Path, option: str) -> None:
    given, said = IMPOSSIBLE[option]
    with pytest.raises(EdgeEmbedError, match=said):
        export(small_source(), Options(**{"target": tmp_path / "bundle", "name": "small", **given}))
    assert list(tmp_path.iterdir()) == []


IMPOSSIBLE_SOURCES: Mapping[str, tuple[Callable[[], Source], str]] = {
    "two rows of one key": (lambda: _table([[1], [2]], (b"king", b"king")), "expected keys that differ, found b'king'"),
    "NaN": (
        lambda: _table([[1, 2], [3, np.nan]]),
        r"table of random table 0: row 1 \(b'key 1'\): expected a vector of finite length",
    ),
    "more dimensions than a bundle may have": (
        lambda: _table(np.ones((1, 65_537))),
        "random table 0: expected at most 65536 dimensions, found 65537",
    ),
    "infinity": (lambda: _table([[np.inf]]), "expected a vector of finite length, found inf"),
    "a length that float32 cannot hold": (lambda: _table([[1e30, 1]]), "expected a vector of finite length, found inf"),
    "a length that float32 has no digits for": (
        lambda: _table([[1, 1], [0, 0], [1e-38, 3e-40]]),
        r"row 2 \(b'key 2'\): expected zeros or a vector of length 1e-30 or more, found a shorter one",
    ),
}


@pytest.mark.parametrize("fault", IMPOSSIBLE_SOURCES)
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_source_that_cannot_be_served_rightly_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, codec: str, fault: str
) -> None:
    source, said = IMPOSSIBLE_SOURCES[fault]
    with pytest.raises(RequestError, match=said):
        _export(tmp_path / "bundle", source(), codec=codec)
    assert list(tmp_path.iterdir()) == []


def test_two_equal_lines_of_a_collection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected keys that differ, found b'word10 word11' twice"):
        _export(tmp_path / "bundle", small_text_source(), collection=(*LINES, LINES[1]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_graph_that_answers_unlike_the_kernels_is_not_proven_but_an_error(tmp_path: Path, format: str) -> None:
    # The kernels read one bundle, the engine the graph of another whose table has the same shape.
    right = make_bundle(tmp_path / "right", graphs=(format,))
    wrong = make_bundle(tmp_path / "wrong", graphs=(format,), source=small_source(seed=1))
    with edge_embed.open(right.path) as runtime, Bundle.open(wrong.path) as other:
        assert prove(right.manifest.tables[0], runtime, runtime.bundle) == right.manifest.tables[0]
        with pytest.raises(BundleError, match=rf"table\.{format}: expected the kernels' vectors from .*, found others"):
            prove(right.manifest.tables[0], runtime, other)


ODD_TABLES: Mapping[str, Source] = {
    "one row of one number": _table([[7]]),
    "one empty key": _table([[1, 2]], (b"",)),
    "two rows": _table([[1, 2], [2, 1]]),
    "zeros alone": _table(np.zeros((3, 4))),
    "equal rows": _table(np.ones((30, 4))),
    "keys that are no UTF-8": _table(np.eye(3), (b"\xff", b"\xfe\xfd", b"\x80")),
    "keys that no line can show": _table(np.eye(3), (b"a\tb", b"a\nb", b"\0")),
    "no text": with_table(_table([[1, 2], [3, 4]]), text=None),
    "a key of 100 kB": _table(np.eye(2), (b"x" * 100_000, b"y")),
}


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("odd", ODD_TABLES)
def test_an_odd_table_is_exported_and_answers_for_every_key(tmp_path: Path, codec: str, odd: str) -> None:
    source = ODD_TABLES[odd]
    report = _export(tmp_path / "bundle", source, codec=codec)
    with edge_embed.open(report.path) as runtime:
        np.testing.assert_allclose(runtime.lookup(keys_of(source)), vectors_of(source), atol=0.01)
        assert all(outcome.passed for outcome in runtime.check_golden())
        assert len(runtime.search(keys_of(source)[0], k=3)) == min(3, len(keys_of(source)) - 1)


@pytest.mark.parametrize("lines", [("word1 word2",), ("word1\tword2", "word3\tword4"), ("a", "b")])
def test_a_collection_may_be_one_line_or_lines_that_the_model_does_not_know(
    tmp_path: Path, lines: tuple[str, ...]
) -> None:
    report = _export(tmp_path / "bundle", small_text_source(), collection=lines)
    with edge_embed.open(report.path) as runtime:
        assert all(outcome.passed for outcome in runtime.check_golden())
        assert sorted(runtime.search(text=lines[0], k=9).keys) == sorted(lines)


def test_a_source_whose_file_name_is_no_unicode_is_exported(tmp_path: Path) -> None:
    path = tmp_path / "model\udcff.vec"
    path.write_bytes(b"2 2\nking 1 2\nqueen 2 1\n")
    report = _export(tmp_path / "bundle", read_source(path))
    assert report.manifest.space.source == r"model\udcff.vec"


def test_the_figures_of_quality_are_those_of_the_bundle_on_disk(tmp_path: Path) -> None:
    source = _table(np.random.default_rng(3).normal(size=(300, 6)))
    report = _export(tmp_path / "bundle", source)
    with edge_embed.open(report.path) as runtime:
        decoded = runtime.lookup(keys_of(source)).astype(np.float64)
    vectors = vectors_of(source).astype(np.float64)
    before = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    after = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    cosines = (before * after).sum(axis=1)
    shared = []
    for row in range(300):
        near = [np.argsort(-np.delete(side @ side[row], row), kind="stable")[:10] for side in (before, after)]
        shared.append(len(set(near[0].tolist()) & set(near[1].tolist())))
    expected = {
        "bytes_before": 300 * 6 * 4,
        "bytes_after": 300 * 6 + 300 * 4,
        "mean_cosine": pytest.approx(cosines.mean(), abs=1e-6),
        "worst_cosine": pytest.approx(cosines.min(), abs=1e-6),
        "neighbour_overlap_at_10": pytest.approx(np.mean(shared) / 10, abs=1e-4),
        "queries": 300,
    }
    found = report.quality["table"].to_json()
    bands = report.quality["table"].bands
    assert len(bands) == len(found.pop("neighbour_overlap_by_rows"))  # type: ignore[arg-type]
    overlaps = [band.neighbour_overlap_at_10 for band in bands]
    assert np.mean(overlaps) == pytest.approx(np.mean(shared) / 10, abs=1e-4)
    assert found == expected
    with Bundle.open(report.path) as bundle:
        assert dict(bundle.manifest.quality) == {"table": report.quality["table"].to_json()}


def test_a_table_and_its_collection_have_a_price_each(tmp_path: Path) -> None:
    report = _export(tmp_path / "bundle", small_text_source(), collection=LINES)
    assert report.quality.keys() == report.manifest.quality.keys() == {"table", "collection"}
    assert report.quality["collection"].queries == len(LINES)


def test_a_table_stored_as_it_is_has_lost_nothing(tmp_path: Path) -> None:
    price = _export(tmp_path / "bundle", small_source(), codec="float32").quality["table"]
    assert price.bytes_after == price.bytes_before == len(WORDS) * 16 * 4
    assert price.neighbour_overlap_at_10 == price.mean_cosine == price.worst_cosine == 1


def test_budgets_are_those_of_the_board_unless_the_user_knows_better(tmp_path: Path) -> None:
    plain = _export(tmp_path / "plain", small_source(), board="pi-4").manifest.budgets
    operations = ("lookup", "encode", "search")
    assert plain == default_budgets(board_named("pi-4"), operations, len(WORDS) * 16)
    own = {"lookup": LatencyBudget(20, 200)}
    budgets = _export(
        tmp_path / "own", small_source(), board="pi-4", memory_budget_bytes=2**25, latency_budgets=own
    ).manifest.budgets
    assert budgets.memory_private_bytes == 2**25
    assert budgets.operations == {**plain.operations, **own}


def test_a_memory_budget_that_is_too_small_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    source = small_source(dimensions=512)
    with pytest.raises(RequestError, match=r"within it: --dimensions (\d+) or --codec float32; or pass") as refused:
        _export(tmp_path / "bundle", source, codec="int4", memory_budget_bytes=24 * 2**20)
    dimensions = int(str(refused.value).split("--dimensions ")[1].split()[0])
    for fits, tried in ((True, dimensions), (False, dimensions + 8)):
        narrower = small_source(dimensions=tried)
        with nullcontext() if fits else pytest.raises(RequestError):
            _export(tmp_path / str(tried), narrower, codec="int4", memory_budget_bytes=24 * 2**20)


# Says by how many bytes a process that has numpy grew at most while a bundle answered everything that it can answer.
ADDED = """
import sys
from pathlib import Path
import numpy as np
import numpy.random

def private():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])

before = private()
import edge_embed
from edge_embed.memory import Peak
with Peak() as peak, edge_embed.open(sys.argv[1], verify=False) as runtime:
    keys = list(runtime.table().names)[:64]
    runtime.lookup(keys)
    runtime.search(keys[0], k=10)
    texts = [" ".join(keys)] * 100
    runtime.encode(texts)
    runtime.search(text=texts[0], k=10)
print(peak.private_bytes - before)
"""


@pytest.mark.parametrize("kind", ["words", "text", *ENCODERS])
def test_the_memory_that_a_bundle_requires_is_enough_at_the_peak_of_its_calls(
    tmp_path: Path, bundle: Path, text_bundle: Path, kind: str
) -> None:
    if kind in ENCODERS:
        rows, dimensions = (9000, 200) if kind not in ("pq", "opq", "rq") else (9000, 24)
        source = _table(np.random.default_rng(0).random((rows, dimensions), np.float32))
        path = _export(tmp_path / "bundle", source, graphs=(), codec=kind).path
    else:
        path = {"words": bundle, "text": text_bundle}[kind]
    child = subprocess.run([sys.executable, "-c", ADDED, str(path)], capture_output=True, text=True, check=True)
    with Bundle.open(path) as opened:
        required = opened.manifest.requirements.memory_private_bytes
    assert int(child.stdout) <= required
    assert required < 64 * 2**20
