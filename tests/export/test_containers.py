"""Vectors in containers are read as they are, served as they were, or refused with what was expected and found."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed.errors import EdgeEmbedError, RequestError
from edge_embed_bundle.store import Store
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import ONLY_TABLE, Reading, Source, read_source
from tests.fakes.probes import FakeProbe
from tests.making import keys_of, vectors_of

GOLDEN = Path(__file__).parent / "golden"
WORDS = ("the", "東京", "two words", "naïve", "Ⅳ")
KEYS = tuple(word.encode() for word in WORDS)
VECTORS = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


# Writers, a few lines each.


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _fifu(vectors: NDArray[np.float32] = VECTORS, words: Sequence[str] = WORDS) -> bytes:
    listed = b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in words)
    vocabulary = struct.pack("<IQQ", 1, 8 + len(listed), len(words)) + listed
    data = b"FiFu" + struct.pack("<IIII", 0, 2, 1, 2) + vocabulary
    padding = 4 - len(data) % 4
    head = struct.pack("<IQQII", 2, 16 + padding + vectors.nbytes, *vectors.shape, 10)
    return data + head + bytes(padding) + vectors.tobytes()


def _jsonl(vectors: NDArray[np.float32] = VECTORS, field: str = "id") -> bytes:
    lines = (
        json.dumps({field: word, "embedding": vector.tolist()}, ensure_ascii=False)
        for word, vector in zip(WORDS, vectors, strict=True)
    )
    return "\n".join(lines).encode() + b"\n"


def _parquet(columns: Mapping[str, Any] | None = None) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns or {"id": WORDS, "embedding": VECTORS.tolist()}), file)
    return file.getvalue()


def _tensors(tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    line = json.dumps(header).encode()
    return len(line).to_bytes(8, "little") + line + data


TOKENS = ("[PAD]", "[UNK]", "the", "board", "is", "warm", "東京")
ROWS = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)


def _tokenizer(tokens: Sequence[str] = TOKENS) -> bytes:
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": "[UNK]"},
        }
    ).encode()


def _static(
    folder: Path,
    weights: bytes,
    *,
    tokenizer: bytes | None = None,
    config: str | None = None,
    modules: str | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_bytes(_tokenizer() if tokenizer is None else tokenizer)
    if config is not None:
        (folder / "config.json").write_text(config)
    if modules is not None:
        (folder / "modules.json").write_text(modules)
    return folder


def _read(path: Path, data: bytes, keys: Path | None = None, **words: Any) -> Source:
    path.write_bytes(data)
    return read_source(path, None, Reading(keys={} if keys is None else {ONLY_TABLE: keys}, **words))


# Every container, from the trainer's file to the board.


def _with_keys(path: Path) -> None:
    path.with_suffix(".keys.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")


CONTAINERS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "npy": ("npy", lambda: _npy(VECTORS)),
    "npy, Fortran's order": ("npy", lambda: _npy(np.asfortranarray(VECTORS))),
    "npy, big-endian": ("npy", lambda: _npy(VECTORS.astype(">f4"))),
    "npz": ("npz", lambda: _npz(vectors=VECTORS, words=np.array(WORDS))),
    "npz, keys of bytes": ("npz", lambda: _npz(vectors=VECTORS, words=np.array(KEYS))),
    "finalfusion": ("finalfusion", _fifu),
    "finalfusion's own": ("finalfusion", (GOLDEN / "norms.fifu").read_bytes),
    "jsonl": ("jsonl", _jsonl),
    "jsonl by input": ("jsonl", lambda: _jsonl(field="input")),
    "jsonl in base64": (
        "jsonl",
        lambda: b"".join(
            json.dumps({"id": word, "embedding": base64.b64encode(row.tobytes()).decode()}).encode() + b"\n"
            for word, row in zip(WORDS, VECTORS, strict=True)
        ),
    ),
    "parquet": ("parquet", _parquet),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_container_becomes_a_bundle_whose_lookups_are_its_vectors(tmp_path: Path, name: str, codec: str) -> None:
    format, make = CONTAINERS[name]
    path = tmp_path / f"vectors.{format}"
    _with_keys(path) if format == "npy" else None
    expected = np.load(GOLDEN / "norms.npy") if "own" in name else VECTORS
    source = _read(path, make())
    assert keys_of(source) == KEYS
    report = export(source, Options(tmp_path / "bundle", "words", codec=codec, graphs=()))
    store = Store(tmp_path / "store")
    store.install(report.path, FakeProbe())
    with edge_embed.open(tmp_path / "store") as runtime:
        found = runtime.lookup(list(WORDS))
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > (0.9999999 if codec == "float32" else 0.9995)
    if codec == "float32":
        np.testing.assert_allclose(found, expected, rtol=2e-7)


def test_the_space_is_that_of_the_numbers_and_the_keys_whatever_container_held_them(tmp_path: Path) -> None:
    spaces = set()
    for name in ("npy", "npz", "finalfusion"):
        path = tmp_path / f"vectors.{name}"
        _with_keys(path)
        spaces.add(_read(path, CONTAINERS[name][1]()).table.space_id)
    assert len(spaces) == 1
    (tmp_path / "vectors.keys.txt").write_text("a\nb\nc\nd\ne\n")
    assert _read(tmp_path / "vectors.npy", _npy(VECTORS)).table.space_id not in spaces


# numpy.


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f8", "i1", "<i8", "u1"])
def test_numbers_of_other_types_become_float32(tmp_path: Path, dtype: str) -> None:
    numbers = (VECTORS * 20 + 90).astype(dtype)
    np.testing.assert_array_equal(vectors_of(_read(tmp_path / "a.npy", _npy(numbers))), numbers.astype(np.float32))


def test_a_matrix_without_keys_has_rows_by_number_and_says_how_to_name_them(tmp_path: Path) -> None:
    source = _read(tmp_path / "a.npy", _npy(VECTORS))
    assert source.table.keys is None
    assert "--keys" in source.notes[0]


def test_rows_without_keys_are_served_by_their_number(tmp_path: Path) -> None:
    source = _read(tmp_path / "a.npy", _npy(VECTORS))
    with edge_embed.open(export(source, Options(tmp_path / "bundle", "numbers", codec="float32")).path) as runtime:
        np.testing.assert_array_equal(runtime.lookup_ids([4, 0]), VECTORS[[4, 0]])


def test_rows_of_a_file_are_read_by_slices_and_by_ids(tmp_path: Path) -> None:
    matrix = _read(tmp_path / "a.npy", _npy(VECTORS.astype(">f8"))).table.vectors
    ids = np.array([3, 0, 3])
    np.testing.assert_array_equal(matrix[ids], VECTORS[ids])
    np.testing.assert_array_equal(matrix[1:4], VECTORS[1:4])
    np.testing.assert_array_equal(matrix[0:5:2], VECTORS[0:5:2])
    with pytest.raises(IndexError):
        matrix[np.array([5])]


def test_keys_that_are_named_are_taken_and_windows_line_ends_are_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"\r\n".join(KEYS))
    assert keys_of(_read(tmp_path / "a.npy", _npy(VECTORS), keys=tmp_path / "names")) == KEYS


def test_whole_numbers_name_the_rows_of_an_archive_where_the_user_says_so(tmp_path: Path) -> None:
    data = _npz(vectors=VECTORS, ids=np.arange(5) * 7, other=VECTORS[:, :2])
    source = _read(tmp_path / "a.npz", data, key_column="ids", vector_column="vectors")
    assert keys_of(source) == (b"0", b"7", b"14", b"21", b"28")


def _bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vectors.npy", _npy(np.zeros((600_000, 64), np.float32)))
    return file.getvalue()


HEADER = _npy(VECTORS)
WITH_NAN = np.array(VECTORS)
WITH_NAN[3, 1] = np.nan
REFUSED_NUMPY: Mapping[str, tuple[str, Callable[[], bytes], str]] = {
    "an empty file": ("npy", lambda: b"", "expected"),
    "a cut header": ("npy", lambda: HEADER[:40], "expected a header of 118 bytes, found 30"),
    "a cut row": ("npy", lambda: HEADER[:-1], "expected 160 bytes of numbers behind the header .* found 159"),
    "one axis": ("npy", lambda: _npy(VECTORS[0]), r"expected a matrix of numbers, .* found shape \(8,\)"),
    "no rows": ("npy", lambda: _npy(VECTORS[:0]), "expected rows and dimensions of at least 1"),
    "objects": ("npy", lambda: _npy(np.array([["a"]], object)), "which are a pickle and never opened"),
    "complex numbers": ("npy", lambda: _npy(VECTORS.astype("c8")), "found the type '<c8'"),
    "a header that lies": (
        "npy",
        lambda: HEADER.replace(b"(5, 8), }" + b" " * 13, b"(99999999999999, 8), }"),
        "expected 3199999999999968 bytes of numbers behind the header",
    ),
    "NaN": ("npy", lambda: _npy(WITH_NAN), "row 3: expected finite numbers"),
    "a number too large for float32": ("npy", lambda: _npy(np.full((1, 2), 1e39)), "row 0: expected finite numbers"),
    "objects as keys": (
        "npz",
        lambda: _npz(vectors=VECTORS, words=np.array(WORDS, object)),
        "words.npy: expected numbers or text, found Python objects",
    ),
    "fewer keys": ("npz", lambda: _npz(v=VECTORS, w=np.array(WORDS[:4])), "expected a key for each of 5 rows, found 4"),
    "two matrices": ("npz", lambda: _npz(v=VECTORS, w=VECTORS), "expected one matrix, or its name by --vector-column"),
    "two lists of keys": (
        "npz",
        lambda: _npz(v=VECTORS, a=np.array(WORDS), b=np.array(WORDS)),
        "expected one array of text, or its name by --key-column",
    ),
    "a cut archive": ("npz", lambda: _npz(v=VECTORS)[:-30], "expected a whole .npz archive"),
    "an archive that grows a thousandfold": ("npz", _bomb, "grows at most 100 times"),
    "NaN beside a key": (
        "npz",
        lambda: _npz(v=WITH_NAN, w=np.array(WORDS)),
        r"row 3 \(b'na.*\): expected finite numbers",
    ),
}


@pytest.mark.parametrize("fault", REFUSED_NUMPY)
def test_what_is_no_matrix_of_numbers_is_refused(tmp_path: Path, fault: str) -> None:
    format, make, said = REFUSED_NUMPY[fault]
    path = tmp_path / f"a.{format}"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=said) as error:
            read_source(path, format)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)


# finalfusion.


def test_quantized_numbers_are_what_finalfusion_decodes() -> None:
    source = read_source(GOLDEN / "opq.fifu")
    assert keys_of(source) == KEYS
    np.testing.assert_allclose(vectors_of(source), np.load(GOLDEN / "opq.npy"), atol=1e-6)


def test_the_words_of_a_file_with_subwords_are_read_and_the_rest_is_named() -> None:
    source = read_source(GOLDEN / "explicit.fifu")
    assert keys_of(source) == KEYS
    np.testing.assert_array_equal(vectors_of(source), np.load(GOLDEN / "norms.npy"))
    assert "15 rows of subwords were left out" in source.notes[0]


REFUSED_FIFU = {
    "another version": (_fifu()[:4] + b"\x01" + _fifu()[5:], "expected version 0"),
    "no vocabulary": (
        b"FiFu" + struct.pack("<IIIIQ", 0, 1, 5, 5, 0),
        "expected one vocabulary of words .* found Metadata",
    ),
    "floret": (b"FiFu" + struct.pack("<IIIIQ", 0, 1, 9, 9, 0), "expected one vocabulary .* found FloretSubwordVocab"),
    "an unknown chunk": (b"FiFu" + struct.pack("<IIIIQ", 0, 1, 77, 77, 0), "expected the chunk 77 once"),
    "a cut row": (_fifu()[:-1], "NdArray at byte .* expected .* bytes, found"),
    "more behind": (_fifu() + b"x", "expected the end after 2 chunks, found 1 more bytes"),
    "fewer rows than words": (_fifu(VECTORS[:4]), "expected a row for each of 5 words, found 4 rows"),
    "NaN": (_fifu(VECTORS * np.float32("nan")), r"row 0 \(b'the'\): expected finite numbers"),
}


@pytest.mark.parametrize("fault", REFUSED_FIFU)
def test_a_damaged_finalfusion_file_is_refused_by_its_chunk(tmp_path: Path, fault: str) -> None:
    data, said = REFUSED_FIFU[fault]
    with pytest.raises(RequestError, match=said):
        _read(tmp_path / "a.fifu", data)


# JSON lines.


def test_an_answer_of_the_api_is_read_and_named_by_a_key_file(tmp_path: Path) -> None:
    entries = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(VECTORS)]
    answer = {"object": "list", "data": entries, "model": "m"}
    (tmp_path / "a.keys.txt").write_text("\n".join(WORDS), encoding="utf-8")
    for data in (json.dumps(answer), json.dumps(answer, indent=2)):
        source = _read(tmp_path / "a.jsonl", data.encode())
        assert keys_of(source) == KEYS
        np.testing.assert_array_equal(vectors_of(source), VECTORS)


def test_a_batch_of_the_api_is_named_by_its_custom_ids(tmp_path: Path) -> None:
    lines = [
        json.dumps({"custom_id": word, "response": {"body": {"data": [{"index": 0, "embedding": row.tolist()}]}}})
        for word, row in zip(WORDS, VECTORS, strict=True)
    ]
    assert keys_of(_read(tmp_path / "a.jsonl", "\n".join(lines).encode())) == KEYS


def test_a_number_is_a_key_and_fields_are_taken_by_name(tmp_path: Path) -> None:
    data = b'{"sku": 12, "id": "x", "v": [1, 2.5], "embedding": [0]}\n\n{"sku": 13, "v": [3, 4], "embedding": [1]}\n'
    source = _read(tmp_path / "a.jsonl", data, key_column="sku", vector_column="v")
    assert keys_of(source) == (b"12", b"13")
    np.testing.assert_array_equal(vectors_of(source), [[1, 2.5], [3, 4]])


REFUSED_JSONL = {
    "unequal rows": (
        b'{"id":"a","embedding":[1,2]}\n{"id":"b","embedding":[1]}\n',
        r"row 1 \(b'b'\): expected 2 numbers",
    ),
    "text for a number": (b'{"id":"a","embedding":[1,"2"]}', "line 1: expected numbers, found '2'"),
    "true for a number": (b'{"id":"a","embedding":[1,true]}', "line 1: expected numbers, found 'True'"),
    "no numbers": (b'{"id":"a","embedding":[]}', "line 1: expected a list of numbers"),
    "NaN": (b'{"id":"a","embedding":[1,NaN]}', "line 1: expected finite numbers"),
    "a huge number": (b'{"id":"a","embedding":[1,1' + b"0" * 400 + b"]}", "line 1: expected numbers that float32"),
    "no vector": (b'{"id":"a"}', "line 1: expected a field embedding"),
    "no key in a row": (
        b'{"id":"a","embedding":[1]}\n{"embedding":[1]}',
        "line 2: expected a field 'id', found embedding",
    ),
    "half of base64": (b'{"id":"a","embedding":"AAA="}', "expected base64 of whole float32, 4 bytes each, found 2"),
    "no base64": (b'{"id":"a","embedding":"?"}', "expected numbers, or the base64 of float32"),
    "a lone surrogate": (b'{"id":"\\ud800","embedding":[1]}', "found a lone surrogate"),
    "a key of true": (b'{"id":true,"embedding":[1]}', "expected a key of text or a whole number, found bool"),
    "a broken line": (b'{"id":"a","embedding":[1]}\n{"id":', "line 2: expected a JSON record"),
    "brackets without end": (b'{"id":' + b"[" * 100_000, "expected a JSON record"),
    "an order of its own": (b'{"data":[{"index":1,"embedding":[1]}]}', "in the order of their index, found 1 at 0"),
}


@pytest.mark.parametrize("fault", REFUSED_JSONL)
def test_a_record_that_is_none_is_refused_by_its_line(tmp_path: Path, fault: str) -> None:
    data, said = REFUSED_JSONL[fault]
    with pytest.raises(RequestError, match=said):
        _read(tmp_path / "a.jsonl", data)


# Parquet.


def test_columns_of_parquet_are_found_or_taken_by_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    doubled = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array((VECTORS * 2).ravel().astype(np.float64)), 8)
    data = _parquet({"n": [5, 6, 7, 8, 9], "word": WORDS, "vector": VECTORS.tolist(), "doubled": doubled})
    assert keys_of(_read(tmp_path / "a.parquet", data)) == KEYS
    source = _read(tmp_path / "a.parquet", data, key_column="n", vector_column="doubled")
    assert keys_of(source) == (b"5", b"6", b"7", b"8", b"9")
    np.testing.assert_array_equal(vectors_of(source), VECTORS * 2)


def test_parquet_is_refused_where_columns_are_many_or_hold_nothing(tmp_path: Path) -> None:
    many = {"id": WORDS, "a": VECTORS.tolist(), "b": VECTORS.tolist()}
    for columns, said in (
        (many, "expected one column of lists of numbers, or its name by --vector-column"),
        ({"id": WORDS}, "expected one column of lists of numbers"),
        ({"id": ["a", "b"], "embedding": [[1.0], None]}, "expected numbers, found null"),
        ({"id": ["a", None], "embedding": [[1.0], [2.0]]}, "expected a key of text or a whole number, found NoneType"),
        ({"id": ["a", "b"], "embedding": [[1.0], [2.0, 3.0]]}, r"row 1 \(b'b'\): expected 1 numbers"),
    ):
        with pytest.raises(RequestError, match=said):
            _read(tmp_path / "a.parquet", _parquet(columns))
    with pytest.raises(RequestError, match="expected a whole parquet file"):
        _read(tmp_path / "a.parquet", b"PAR1" + bytes(20) + b"PAR1")


# gensim.


class _Mischief:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("format", [None, "gensim"])
def test_a_pickle_is_not_opened_for_a_user_who_did_not_ask(tmp_path: Path, format: str | None) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(pickle.dumps(_Mischief(tmp_path / "done")))
    with pytest.raises(RequestError, match=r"found a pickle, .*save_word2vec_format.*--trust-pickle"):
        read_source(path, format)
    assert not (tmp_path / "done").exists()


@pytest.mark.filterwarnings("default")
def test_gensims_vectors_are_read_with_their_counts_for_a_user_who_trusts_them(tmp_path: Path) -> None:
    models = pytest.importorskip("gensim.models")
    words = models.KeyedVectors(8, count=0)
    words.add_vectors(list(WORDS), VECTORS)
    for i, word in enumerate(WORDS):
        words.set_vecattr(word, "count", 50 - i)
    words.save(str(tmp_path / "a.kv"))
    source = read_source(tmp_path / "a.kv", None, Reading(trust_pickle=True))
    assert keys_of(source) == KEYS
    np.testing.assert_array_equal(vectors_of(source), VECTORS)
    assert source.table.counts is not None
    assert source.table.counts.tolist() == [50, 49, 48, 47, 46]


# Static encoders.

TEXTS = ("the board is warm", "the stranger 東京", "stranger", "", "warm " * 900, "東京 " * 700)


def _runtime(source: Source, folder: Path, codec: str = "float32") -> edge_embed.Runtime:
    return edge_embed.open(export(source, Options(folder, "static", codec=codec)).path)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("max_length", [512, 2, None])
def test_a_model2vec_model_encodes_as_model2vec_does(
    tmp_path: Path, quantized: bool, normalize: bool, max_length: int | None
) -> None:
    model2vec = pytest.importorskip("model2vec")
    tokenizers = pytest.importorskip("tokenizers")
    weights = np.linspace(0.5, 2, 7) if quantized else None
    mapping = np.array([0, 0, 1, 2, 1, 3, 2]) if quantized else None
    model = model2vec.StaticModel(
        ROWS[:4] if quantized else ROWS,
        tokenizers.Tokenizer.from_buffer(_tokenizer()),
        normalize=normalize,
        weights=weights,
        token_mapping=mapping,
        max_length=max_length,
    )
    model.save_pretrained(tmp_path / "model")
    source = read_source(tmp_path / "model")
    assert keys_of(source) == tuple(token.encode() for token in TOKENS)
    with _runtime(source, tmp_path / "bundle") as runtime:
        np.testing.assert_allclose(runtime.encode(list(TEXTS)), model.encode(list(TEXTS)), atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(runtime.encode(TEXTS[0]), runtime.encode(list(TEXTS))[0])
        assert runtime.bundle.manifest.requirements.features.count("text-limits") == 1
    with _runtime(source, tmp_path / "small", "int8") as runtime:
        found, expected = runtime.encode(TEXTS[0]), model.encode(TEXTS[0])
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.9995


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_static_embedding_of_sentence_transformers_is_the_mean_of_all_its_tokens(
    tmp_path: Path, nested: bool, normalize: bool
) -> None:
    kinds = ["sentence_transformers.models.StaticEmbedding", *["sentence_transformers.models.Normalize"] * normalize]
    modules = json.dumps([{"idx": i, "type": kind} for i, kind in enumerate(kinds)])
    folder = _static(tmp_path / "model", _tensors({"embedding.weight": ("F32", ROWS)}), modules=modules)
    if nested:
        (folder / "0_StaticEmbedding").mkdir()
        for name in ("model.safetensors", "tokenizer.json"):
            (folder / name).rename(folder / "0_StaticEmbedding" / name)
    with _runtime(read_source(folder), tmp_path / "bundle") as runtime:
        expected = ROWS[[2, 1, 5]].mean(axis=0)
        expected = expected / np.linalg.norm(expected) if normalize else expected
        np.testing.assert_allclose(runtime.encode("the stranger warm"), expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "stored"), [("F16", ROWS.astype("<f2")), ("F64", ROWS.astype("<f8"))])
def test_rows_of_other_types_are_read(tmp_path: Path, dtype: str, stored: NDArray[Any]) -> None:
    source = read_source(_static(tmp_path / "model", _tensors({"embeddings": (dtype, stored)})))
    np.testing.assert_array_equal(vectors_of(source), stored.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_float32_and_int8_says_what_it_lost(tmp_path: Path) -> None:
    halves = (ROWS.view(np.uint32) >> 16).astype("<u2")
    source = read_source(_static(tmp_path / "bf16", _tensors({"embeddings": ("BF16", halves)})))
    np.testing.assert_array_equal(vectors_of(source), (ROWS.view(np.uint32) & 0xFFFF0000).view(np.float32))
    source = read_source(_static(tmp_path / "int8", _tensors({"embeddings": ("I8", (ROWS * 40).astype(np.int8))})))
    assert "drops the scale" in source.notes[0]


REFUSED_STATIC: Mapping[str, tuple[bytes, bytes, str | None, str]] = {
    "fewer rows than tokens": (
        _tensors({"embeddings": ("F32", ROWS[:6])}),
        _tokenizer(),
        None,
        "expected a row for each of 7 tokens, found 6",
    ),
    "a mapping beyond the rows": (
        _tensors({"embeddings": ("F32", ROWS[:2]), "mapping": ("I64", np.arange(7))}),
        _tokenizer(),
        None,
        "mapping: expected rows from 0 to 1, found 0 to 6",
    ),
    "a short mapping": (
        _tensors({"embeddings": ("F32", ROWS), "mapping": ("I64", np.arange(3))}),
        _tokenizer(),
        None,
        "mapping: expected a number for each of 7 tokens, found 3",
    ),
    "a vocabulary without ids": (
        _tensors({"embeddings": ("F32", ROWS)}),
        b'{"model": {"vocab": {"a": 3}}}',
        None,
        "expected a tokenizer with a vocabulary of ids",
    ),
    "a length of letters": (
        _tensors({"embeddings": ("F32", ROWS)}),
        _tokenizer(),
        '{"max_length": "many"}',
        "expected a max_length of 1 to 1000000 or null, found many",
    ),
    "float8": (
        _tensors({"embeddings": ("F8_E4M3", np.zeros((7, 8), np.uint8))}),
        _tokenizer(),
        None,
        "expected numbers of .* found F8_E4M3",
    ),
    "NaN": (
        _tensors({"embeddings": ("F32", ROWS * np.float32("inf"))}),
        _tokenizer(),
        None,
        r"row 0 \(b'\[PAD\]'\): expected finite numbers",
    ),
}


@pytest.mark.parametrize("fault", REFUSED_STATIC)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path: Path, fault: str) -> None:
    weights, tokenizer, config, said = REFUSED_STATIC[fault]
    folder = _static(tmp_path / "model", weights, tokenizer=tokenizer, config=config)
    with pytest.raises(RequestError, match=said) as error:
        read_source(folder)
    assert str(folder) in str(error.value)


def test_a_module_that_is_more_than_a_table_is_refused(tmp_path: Path) -> None:
    modules = json.dumps([{"type": "sentence_transformers.models.StaticEmbedding"}, {"type": "x.Dense"}])
    folder = _static(tmp_path / "model", _tensors({"embedding.weight": ("F32", ROWS)}), modules=modules)
    with pytest.raises(RequestError, match="expected StaticEmbedding and Normalize alone, found Dense"):
        read_source(folder)


# What the user says.


def test_a_word_that_a_format_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--keys: expected a source in one of npy, .* found finalfusion"):
        _read(tmp_path / "a.fifu", _fifu(), keys=tmp_path / "keys")
    with pytest.raises(RequestError, match="--trust-pickle: expected"):
        _read(tmp_path / "a.npy", _npy(VECTORS), trust_pickle=True)
    with pytest.raises(RequestError, match="expected a file of keys"):
        _read(tmp_path / "a.npy", _npy(VECTORS), keys=tmp_path / "nowhere")


# Damage that nobody thought of.


@st.composite
def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Return data with a few bytes overwritten, removed, repeated or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 9))
        new = draw(st.one_of(st.binary(max_size=9), st.sampled_from([b"9" * 19, b"\xff" * 8, b"[", b"nan", data[:20]])))
        data = data[:at] + new + data[at + length :]
        if draw(st.booleans()):
            data = data[: draw(st.integers(0, len(data)))]
    return data


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


def _assert_read_or_refused(path: Path, format: str | None) -> None:
    try:
        source = read_source(path, format)
    except EdgeEmbedError:
        return
    rows = len(vectors_of(source))
    assert rows > 0
    assert source.table.keys is None or len(source.table.keys) == rows
    assert np.isfinite(vectors_of(source)).all()


FUZZED = {name: CONTAINERS[name] for name in ("npy", "npy, Fortran's order", "npz", "finalfusion", "jsonl", "parquet")}
FUZZED |= {
    f"finalfusion's {name}": ("finalfusion", (GOLDEN / f"{name}.fifu").read_bytes)
    for name in ("norms", "opq", "explicit")
}


@pytest.mark.parametrize("detected", [False, True])
@pytest.mark.parametrize("name", FUZZED)
@given(data=st.data())
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_damage_to_a_container_gives_a_source_or_an_error_of_ours(
    workplace: Path, name: str, detected: bool, data: st.DataObject
) -> None:
    format, make = FUZZED[name]
    path = workplace / "mutated.bin"
    path.write_bytes(data.draw(_mutated(make())))
    _assert_read_or_refused(path, None if detected else format)


@given(
    weights=_mutated(
        _tensors(
            {
                "embeddings": ("F32", ROWS[:4]),
                "mapping": ("I64", np.array([0, 0, 1, 2, 1, 3, 2])),
                "weights": ("F64", np.linspace(0.5, 2, 7)),
            }
        )
    ),
    tokenizer=_mutated(_tokenizer()),
    config=_mutated(b'{"normalize": true, "max_length": 512}'),
    which=st.integers(0, 2),
)
@settings(deadline=None, max_examples=200)
def test_any_damage_to_a_static_encoder_gives_a_source_or_an_error_of_ours(
    workplace: Path, weights: bytes, tokenizer: bytes, config: bytes, which: int
) -> None:
    folder = workplace / "static"
    sound = _tensors({"embeddings": ("F32", ROWS)})
    _static(folder, weights if which == 0 else sound, tokenizer=tokenizer if which == 1 else None, config="{}")
    if which == 2:
        (folder / "config.json").write_bytes(config)
    _assert_read_or_refused(folder, None)


# Large tables.


@pytest.mark.parametrize("format", ["npy", "fifu"])
def test_a_table_is_read_in_less_memory_than_it_has_bytes(tmp_path: Path, format: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(60_000, 256)).astype(np.float32)
    path = tmp_path / f"large.{format}"
    path.write_bytes(_npy(vectors) if format == "npy" else _fifu(vectors, [str(i) for i in range(60_000)]))
    tracemalloc.start()
    try:
        source = read_source(path)
        assert tracemalloc.get_traced_memory()[1] < vectors.nbytes / 2
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(vectors_of(source), vectors)
