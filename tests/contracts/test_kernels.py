"""Both spellings of the kernels answer alike: whole tables, single keys, bags, and whatever is wrong with them."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed.errors import BundleError, RequestError
from edge_embed.kernels import pure, reference
from edge_embed_export.codecs import ENCODERS, encoder
from edge_embed_export.key_index import build_index

#: Few codes, so that their training takes no time.
SETTINGS = {"pq": "pq:3", "opq": "opq:4", "rq": "rq:2"}

ROWS = 37
KEYS = [*(f"key {row}" for row in range(ROWS - 4)), "naïve", "東京", "", "\udcff"]


def _tensors(codec: str, dimensions: int) -> dict[str, NDArray[Any]]:
    vectors = np.random.default_rng(dimensions).normal(size=(ROWS, dimensions)).astype(np.float32)
    vectors[3] = 0
    chosen = SETTINGS.get(codec, codec) if dimensions >= 4 else codec.replace("opq", "pq")
    tensors = {name: np.ascontiguousarray(tensor[:]) for name, tensor in encoder(chosen)[1](vectors).items()}
    return {name: _unaligned(tensor) for name, tensor in tensors.items()}


def _unaligned(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return the same numbers one byte off, as a file that nobody padded would hold them."""
    data = bytearray(b"\0" + tensor.tobytes())
    moved = np.frombuffer(data, tensor.dtype, tensor.size, offset=1).reshape(tensor.shape)
    moved.flags.writeable = False
    return moved


def _index(kernels: Any, row_count: int = ROWS) -> Any:
    built = build_index([key.encode("utf-8", "surrogateescape") for key in KEYS])
    return kernels.Index(built.pilots, built.slots, built.seed, row_count)


def _shortcut(
    kernels: Any,
    index: Any,
    rows: Any,
    mode: str = "mean",
    padding_row: int = -1,
    watched: Any = (),
    noticed: Any = lambda: False,
) -> Any:
    return kernels.Shortcut(index, rows, mode, padding_row, watched, noticed)


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("dimensions", [4, 5, 31, 32, 33, 64, 300, 1025])
def test_rows_have_the_bits_of_the_reference_alone_together_and_in_bags(
    kernels: Any, codec: str, dimensions: int
) -> None:
    tensors = _tensors(codec, dimensions)
    meant, found = pure.open_rows(codec, tensors, dimensions), kernels.open_rows(codec, tensors, dimensions)
    ids = np.random.default_rng(1).integers(0, ROWS, 50)
    assert found.decode(ids).tobytes() == meant.decode(ids).tobytes()
    assert found.decode(ids[:0]).shape == (0, dimensions)
    weights = np.random.default_rng(2).normal(size=50).astype(np.float32)
    counts = np.array([0, 7, 1, 0, 40, 2, 0])
    for mode in ("sum", "mean", "max"):
        np.testing.assert_array_equal(found.pool(ids, counts, None, mode), meant.pool(ids, counts, None, mode))
    np.testing.assert_array_equal(found.pool(ids, counts, weights, "sum"), meant.pool(ids, counts, weights, "sum"))
    query = np.random.default_rng(3).normal(size=dimensions).astype(np.float32)
    decoded = meant.decode(np.arange(ROWS)).astype(np.float64)
    exact = decoded @ query
    rounded = np.abs(decoded).sum(axis=1) * np.abs(query).max() / (2 * reference.QUERY_LEVELS) if codec == "int8" else 0
    assert (np.abs(found.scores(query) - exact) <= 1e-4 + 1e-4 * np.abs(exact) + rounded).all()


@given(counts=st.lists(st.integers(0, 5), max_size=6), mode=st.sampled_from(["sum", "mean", "max"]))
@settings(deadline=None)
def test_pooled_vectors_have_the_bits_of_the_reference(kernels: Any, counts: list[int], mode: str) -> None:
    vectors = np.random.default_rng(len(counts)).normal(size=(sum(counts), 7)).astype(np.float32)
    found = kernels.pool(vectors, np.array(counts, np.int64), mode)
    np.testing.assert_array_equal(found, reference.pool(vectors, np.array(counts, np.int64), mode))


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_what_is_no_number_stays_so_in_the_largest_of_a_bag_wherever_it_stands(kernels: Any, codec: str) -> None:
    vectors = np.arange(4 * 40, dtype=np.float32).reshape(4, 40) % 7
    for row in range(4):
        vectors[row, row::9] = np.nan
    ids, counts = np.arange(4), np.array([3, 1])
    meant = np.array([np.maximum.reduce(vectors[:3]), vectors[3]])
    assert np.isnan(meant).any() and not np.isnan(meant).all()
    rows = kernels.open_rows(codec, {"rows": vectors.astype(codec)}, 40)
    np.testing.assert_array_equal(rows.pool(ids, counts, None, "max"), meant)
    np.testing.assert_array_equal(kernels.pool(vectors, counts, "max"), meant)


def test_the_plain_lookup_is_finding_and_decoding(kernels: Any) -> None:
    index, rows = _index(kernels), kernels.open_rows("int8", _tensors("int8", 33), 33)
    vectors = rows.decode(np.arange(ROWS))
    for row, key in enumerate(KEYS):
        np.testing.assert_array_equal(_shortcut(kernels, index, rows).lookup(key), vectors[row])
        np.testing.assert_array_equal(
            _shortcut(kernels, index, rows).lookup(key.encode("utf-8", "surrogateescape")), vectors[row]
        )
    for many in (KEYS, KEYS * 40, KEYS[:1], []):
        places = [KEYS.index(key) for key in many]
        np.testing.assert_array_equal(_shortcut(kernels, index, rows).lookup(many), vectors[places])


@pytest.mark.parametrize("asked", ["stranger", b"stranger", ["key 1", "stranger"], 7, None, {"key 1"}])
def test_what_is_not_plain_is_left_to_the_general_way(kernels: Any, asked: object) -> None:
    assert _shortcut(kernels, _index(kernels), kernels.open_rows("int8", _tensors("int8", 8), 8)).lookup(asked) is None


def test_a_shortcut_answers_nothing_as_long_as_there_is_news_that_nobody_follows(kernels: Any) -> None:
    index, rows, slots = (
        _index(kernels),
        kernels.open_rows("int8", _tensors("int8", 8), 8),
        (bytearray(9), bytearray(5)),
    )
    shortcut = _shortcut(kernels, index, rows, watched=tuple((slot, bytes(slot)) for slot in slots))
    vector = shortcut.lookup("key 1")
    assert vector is not None and shortcut.lookup(["key 1"]) is not None
    for slot in slots:
        slot[-1] = 1
        assert shortcut.lookup("key 1") is shortcut.lookup(["key 1"]) is shortcut.bag(["key 1"], None) is None
        slot[-1] = 0
    np.testing.assert_array_equal(shortcut.lookup("key 1"), vector)


@pytest.mark.parametrize(
    "ask", [lambda shortcut: shortcut.lookup("key 1"), lambda shortcut: shortcut.bag([1, 2], None)]
)
def test_a_shortcut_tells_who_follows_once_that_there_is_news_and_answers_as_before(kernels: Any, ask: Any) -> None:
    index, rows, slot, told = _index(kernels), kernels.open_rows("int8", _tensors("int8", 8), 8), bytearray(9), []

    def noticed() -> bool:
        told.append(True)
        return True

    shortcut = _shortcut(kernels, index, rows, watched=((slot, bytes(slot)),), noticed=noticed)
    before = ask(shortcut)
    assert not told
    if before is None:
        pytest.skip("in numpy no bag is worth a shortcut")
    for value in (1, 2):
        slot[0] = value
        np.testing.assert_array_equal(ask(shortcut), before)
    assert told == [True]


def test_a_list_that_is_emptied_while_news_are_told_is_no_plain_one_any_more(kernels: Any) -> None:
    index, rows, asked = _index(kernels), kernels.open_rows("int8", _tensors("int8", 8), 8), [1, 2, 3]

    def noticed() -> bool:
        asked.clear()
        return True

    shortcut = _shortcut(kernels, index, rows, watched=((b"1", b"2"),), noticed=noticed)
    assert shortcut.bag(asked, None) is None


def test_what_goes_wrong_while_news_are_told_is_told_to_the_caller(kernels: Any) -> None:
    index, rows = _index(kernels), kernels.open_rows("int8", _tensors("int8", 8), 8)
    shortcut = _shortcut(kernels, index, rows, watched=((b"1", b"2"),), noticed=lambda: [] / 1)  # type: ignore[operator]
    with pytest.raises(TypeError):
        shortcut.lookup("key 1")


def test_a_shortcut_that_is_made_wrongly_is_refused() -> None:
    native = pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    index, rows = _index(native), native.open_rows("int8", _tensors("int8", 8), 8)
    for watched in (((b"12", b"1"),), ((b"1", b"1"),) * 3):
        with pytest.raises(ValueError, match="at most 2 pairs of bytes of one length"):
            _shortcut(native, index, rows, watched=watched)
    for wrong in ([(b"1", b"1")], ((b"1",),), ((b"1", bytearray(1)),), ((1, b"1"),), 7):
        with pytest.raises(TypeError):
            _shortcut(native, index, rows, watched=wrong)
    with pytest.raises(ValueError, match="expected a mode"):
        _shortcut(native, index, rows, mode="median")
    # What is not of these kernels (an engine, say) has no shortcut.
    assert _shortcut(native, None, rows).lookup("key 1") is None
    assert _shortcut(native, index, pure.open_rows("int8", _tensors("int8", 8), 8)).bag([1], None) is None


def test_a_key_that_is_none_is_refused_wherever_it_stands(kernels: Any) -> None:
    index, rows = _index(kernels), kernels.open_rows("int8", _tensors("int8", 8), 8)
    for call in (index.find_all, lambda keys: _shortcut(kernels, index, rows).lookup(keys)):
        with pytest.raises(TypeError, match="expected a key as str or bytes, found int"):
            call(["key 1", 7])
        with pytest.raises(RequestError, match="lone surrogate"):
            call(["key 1", "\ud800"])


def test_a_plain_bag_is_the_pool_of_its_rows(kernels: Any) -> None:
    index, rows = _index(kernels), kernels.open_rows("int4", _tensors("int4", 70), 70)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]
    for mode in ("sum", "mean", "max"):
        meant = rows.pool(np.array(ids), np.array([len(ids)]), None, mode)[0]
        without = rows.pool(np.array([row for row in ids if row != 1]), np.array([len(ids) - 2]), None, mode)[0]
        for asked in (ids, [KEYS[row] for row in ids]):
            for padding_row, expected in ((-1, meant), (1, without)):
                pooled = _shortcut(kernels, index, rows, padding_row=padding_row).bag(asked, mode)
                assert pooled is None or pooled.tobytes() == expected.tobytes()
    assert _shortcut(kernels, index, rows).bag(ids, "median") is None
    for not_plain in ([], [ROWS], [-1], [2**70], [1, "key 1"], ["key 1", 1], ["stranger"], [True], [[1]], (1,)):
        assert _shortcut(kernels, index, rows).bag(not_plain, None) is None


def test_no_id_reads_outside_the_table() -> None:
    native = pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    rows = native.open_rows("int8", _tensors("int8", 8), 8)
    for ids in ([-1], [ROWS], [0, 2**62], [-(2**63)]):
        with pytest.raises(IndexError, match=f"expected row ids from 0 to {ROWS - 1}, found {ids[-1]}"):
            rows.decode(np.array(ids))
        with pytest.raises(IndexError):
            rows.pool(np.array(ids), np.array([len(ids)]), None, "sum")
    for counts in ([2], [-1, 2], [2**62, 2**62], []):
        with pytest.raises(ValueError, match="as many rows"):
            rows.pool(np.array([1]), np.array(counts, np.int64), None, "sum")
    for wrong in (np.array([1.0]), np.array([[1]]), [1], np.array([True]), np.array(["1"]), np.array([1], object)):
        with pytest.raises(ValueError, match="ids"):
            rows.decode(wrong)
    for high in (2**63, 2**64 - 1):
        with pytest.raises(IndexError):
            rows.decode(np.array([0, high], np.uint64))
    with pytest.raises(ValueError, match="weights"):
        rows.pool(np.array([1]), np.array([1]), np.array([1.0]), "sum")
    with pytest.raises(ValueError, match="expected a query of 8 dimensions, found 9"):
        rows.scores(np.zeros(9, np.float32))


def _laid_out_otherwise(values: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the same numbers with strides, at odd addresses, in the other order of bytes, and as a subclass."""
    spread = np.repeat(values, 3, axis=-1)[..., ::3]
    swapped = values.astype(values.dtype.newbyteorder())
    return [spread, values[::-1].copy()[::-1], _unaligned(values), swapped, values.view(np.memmap)]


def test_arrays_are_taken_however_they_lie_in_memory(kernels: Any) -> None:
    rows = kernels.open_rows("int8", _tensors("int8", 8), 8)
    ids, counts, weights = np.array([3, 0, 36, 3]), np.array([1, 3]), np.array([1, -2, 0.5, 3], np.float32)
    decoded, pooled = rows.decode(ids), rows.pool(ids, counts, weights, "sum")
    whole = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "longlong", "ulonglong")
    for same in [*_laid_out_otherwise(ids), *(ids.astype(dtype) for dtype in whole)]:
        np.testing.assert_array_equal(rows.decode(same), decoded)
        np.testing.assert_array_equal(rows.pool(same, counts, weights, "sum"), pooled)
    for same in [*_laid_out_otherwise(counts), *(counts.astype(dtype) for dtype in whole)]:
        np.testing.assert_array_equal(rows.pool(ids, same, weights, "sum"), pooled)
        np.testing.assert_array_equal(kernels.pool(decoded, same, "sum"), rows.pool(ids, counts, None, "sum"))
    for same in [*_laid_out_otherwise(weights), weights.astype(np.float16)]:
        np.testing.assert_array_equal(rows.pool(ids, counts, same, "sum"), pooled)
    np.testing.assert_array_equal(rows.decode(np.broadcast_to(np.array(3), 2)), decoded[[0, 3]])
    for same in _laid_out_otherwise(decoded):
        np.testing.assert_array_equal(kernels.pool(same, counts, "max"), rows.pool(ids, counts, None, "max"))
    queries, norms, runs, without = decoded[:2], np.ones(ROWS, np.float32), np.array([[30, ROWS], [0, 7]]), ids[:2]
    wanted = np.array([[True, False], [True, True]])
    found = _nearest(rows, queries, norms, 3, runs=runs, wanted=wanted, without=without)
    for asked in zip(*map(_laid_out_otherwise, (queries, runs, wanted, without)), strict=True):
        same = _nearest(rows, asked[0], norms, 3, runs=asked[1], wanted=asked[2], without=asked[3])
        for one, other in zip(found, same, strict=True):
            np.testing.assert_array_equal(one, other)
    for query in _laid_out_otherwise(queries[0]):
        np.testing.assert_array_equal(rows.scores(query), rows.scores(queries[0]))


def _slow_rows(n: int) -> Any:
    """Return native rows of which each takes some microseconds to decode: 256 numbers, each a sum of 256."""
    native = pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    random = np.random.default_rng(1)
    tensors = {
        "rows": random.integers(0, 256, (n, 64)).astype(np.uint8),
        "codebooks": random.normal(size=(64, 256, 4)).astype(np.float32),
        "rotation": random.normal(size=(256, 256)).astype(np.float32),
        "length_codes": np.zeros(n, np.uint8),
        "length_levels": np.ones(256, np.float32),
    }
    return native.open_rows("opq", tensors, 256)


def _while_it_changes(ask: Callable[[], Any], array: NDArray[Any], changed: NDArray[Any]) -> list[NDArray[Any]]:
    """Return what was answered before an array was changed, while it was, and afterwards."""
    before = ask()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        time.sleep(0.01)
        array[:] = changed
        return [before, asking.result(), ask()]


def test_what_another_thread_writes_into_ids_or_counts_is_not_read_half_way() -> None:
    rows, n = _slow_rows(2), 6_000
    ids, counts = np.zeros(n, np.int64), np.array([n // 2, n // 2])
    before, meanwhile, after = _while_it_changes(lambda: rows.decode(ids), ids, np.ones(n, np.int64))
    assert meanwhile.tobytes() in (before.tobytes(), after.tobytes())
    ids[: n // 2] = 0
    for array, changed in ((counts, np.array([n, 0])), (ids, ids[::-1].copy())):
        answers = _while_it_changes(lambda: rows.pool(ids, counts, None, "max"), array, changed)
        assert answers[1].tobytes() in (answers[0].tobytes(), answers[2].tobytes())


def test_what_another_thread_writes_into_runs_is_not_read_half_way() -> None:
    rows, runs, queries = _slow_rows(20_000), np.array([[0, 10_000], [10_000, 20_000]]), np.ones((32, 256), np.float32)

    def ask() -> Any:
        return _nearest(rows, queries, np.ones(20_000, np.float32), 5, runs=runs, without=np.full(32, -1))[0]

    before, meanwhile, after = _while_it_changes(ask, runs, np.array([[0, 10], [10, 20]]))
    assert meanwhile.tobytes() in (before.tobytes(), after.tobytes())


@pytest.mark.parametrize("codec", ENCODERS)
def test_tensors_that_do_not_belong_together_make_no_rows(codec: str) -> None:
    native = pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    tensors = _tensors(codec, 33)
    for name, tensor in tensors.items():
        for wrong in (tensor[:-1] if len(tensors) > 1 else tensor[:, :-1], tensor.astype(np.float64), None):
            with pytest.raises(ValueError, match="expected"):
                native.open_rows(codec, {**tensors, name: wrong}, 33)
        with pytest.raises(KeyError):
            native.open_rows(codec, {other: tensors[other] for other in tensors if other != name}, 33)
    with pytest.raises(ValueError, match="expected a codec"):
        native.open_rows("int3", tensors, 33)


def test_an_index_that_names_a_row_past_the_table_is_the_publishers_fault(kernels: Any) -> None:
    index, rows = _index(kernels, row_count=5), kernels.open_rows("int8", _tensors("int8", 8), 8)
    for asked in ("key 6", ["key 1", "key 6"]):
        with pytest.raises(BundleError, match="expected rows below 5, found 6"):
            _shortcut(kernels, index, rows).lookup(asked)


def test_threads_share_one_table(kernels: Any) -> None:
    index, rows = _index(kernels), kernels.open_rows("int8", _tensors("int8", 300), 300)
    many = KEYS * 60
    expected = _shortcut(kernels, index, rows).lookup(many).tobytes()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: _shortcut(kernels, index, rows).lookup(many).tobytes(), range(24)))
    assert set(answers) == {expected}


@pytest.mark.parametrize("dimensions", [1, 2, 63, 64, 384, 511, 512, 513, 543, 575, 1024, 1025, 2000])
@pytest.mark.parametrize("extreme", [False, True])
def test_a_scan_of_int8_rows_has_the_references_bits(kernels: Any, dimensions: int, extreme: bool) -> None:
    random = np.random.default_rng(dimensions)
    codes = random.integers(-128, 128, (40, dimensions)).astype(np.int8)
    scales = random.random(40, np.float32)
    query = random.normal(size=dimensions).astype(np.float32)
    if extreme:
        codes[:20], query = -128, np.where(query > 0, np.float32(3), np.float32(-3))
        codes[20], query[:] = 127, -3
    found = kernels.open_rows("int8", {"rows": codes, "scales": scales}, dimensions).scores(query)
    np.testing.assert_array_equal(found, reference.scores_int8(codes, scales, query[np.newaxis])[0])
    exact = (codes.astype(np.float64) @ query) * scales
    # Half a level of the query in every number, and every code at its largest.
    bound = np.abs(query).max() / reference.QUERY_LEVELS / 2 * 128 * dimensions * scales + 1e-6 * np.abs(exact)
    assert (np.abs(found - exact) <= bound).all()


def test_a_scan_by_a_query_that_is_not_finite_scores_nothing(kernels: Any) -> None:
    rows = kernels.open_rows("int8", {"rows": np.ones((3, 2), np.int8), "scales": np.ones(3, np.float32)}, 2)
    assert np.isnan(rows.scores(np.array([np.nan, 1], np.float32))).all()
    assert np.isnan(rows.scores(np.array([np.inf, 1], np.float32))).all()
    assert not rows.scores(np.zeros(2, np.float32)).any()


# The nearest rows


def _plane(dimensions: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(dimensions)
    codes = random.integers(0, 256, (ROWS, -(-dimensions // 2))).astype(np.uint8)
    return {"rows": _unaligned(codes), "scales": random.random(ROWS, np.float32)}


def _searched(codec: str, dimensions: int) -> dict[str, NDArray[Any]]:
    return _plane(dimensions) if codec == "plane" else _tensors(codec, dimensions)


def _nearest(rows: Any, queries: NDArray[np.float32], norms: NDArray[np.float32], k: int, **more: Any) -> Any:
    asked = {
        "runs": np.array([[0, ROWS]]),
        "wanted": None,
        "without": np.full(len(queries), -1),
        "deadline_ns": 0,
        "plane": None,
        "length": 0,
        "bases": None,
    }
    return rows.nearest(queries, norms, k, *{**asked, **more}.values())


@pytest.mark.parametrize("dimensions", [1, 2, 31, 32, 33, 63, 64, 65, 100, 384, 1025])
@pytest.mark.parametrize("extreme", [False, True])
def test_a_plane_has_the_references_bits(kernels: Any, dimensions: int, extreme: bool) -> None:
    tensors = _plane(dimensions)
    query = np.random.default_rng(3).normal(size=dimensions).astype(np.float32)
    if extreme:
        tensors["rows"], query[:] = np.full((ROWS, -(-dimensions // 2)), 255, np.uint8), -3
    found, meant = kernels.open_rows("plane", tensors, dimensions), pure.open_rows("plane", tensors, dimensions)
    np.testing.assert_array_equal(found.scores(query), meant.scores(query))
    decoded = meant.decode(np.arange(ROWS))
    np.testing.assert_array_equal(found.decode(np.arange(ROWS)), decoded)
    bound = np.abs(decoded).sum(axis=1) * np.abs(query).max() / (2 * reference.PLANE_LEVELS)
    assert (np.abs(found.scores(query) - decoded.astype(np.float64) @ query) <= 1e-4 + bound).all()


@pytest.mark.parametrize("codec", [*ENCODERS, "plane"])
@pytest.mark.parametrize("k", [0, 1, 5, ROWS])
def test_the_nearest_rows_are_the_best_of_all_cosines_and_of_equal_ones_the_first(
    kernels: Any, codec: str, k: int
) -> None:
    tensors = _searched(codec, 33)
    for name in tensors.keys() & {"rows", "scales", "length_codes"}:
        # Rows that stand twice, with equal scores.
        tensors[name] = np.concatenate([tensors[name][:20], tensors[name][: ROWS - 20]])
    rows = kernels.open_rows(codec, tensors, 33)
    norms = np.linalg.norm(rows.decode(np.arange(ROWS)), axis=1).astype(np.float32)
    queries = np.random.default_rng(1).normal(size=(3, 33)).astype(np.float32)
    queries[1] = 0
    found, scores, complete = _nearest(rows, queries, norms, k, without=np.array([-1, -1, 7]))
    assert complete
    for query, left_out, row, score in zip(queries, (-1, -1, 7), found, scores, strict=True):
        cosines = reference.cosines(rows.scores(query), norms, reference.length(query))
        order = [int(each) for each in np.lexsort((np.arange(ROWS), -cosines)) if each != left_out][:k]
        assert row[: len(order)].tolist() == order
        np.testing.assert_array_equal(score[: len(order)], cosines[order])
        assert (row[len(order) :] == -1).all() and not score[len(order) :].any()


@pytest.mark.parametrize(
    "runs", [[[0, 4095]], [[0, 4096]], [[3, 4102], [4102, 9001]], [[0, 9001]], [[4900, 9000], [0, 4099]]]
)
@pytest.mark.parametrize("k", [1, 10, 4000])
def test_a_long_run_is_scanned_as_a_short_one_is(kernels: Any, runs: list[list[int]], k: int) -> None:
    random = np.random.default_rng(len(runs))
    # Few numbers, so that many scores are equal.
    codes, count = random.integers(-2, 3, (9001, 7)).astype(np.int8), 9001
    rows = kernels.open_rows("int8", {"rows": _unaligned(codes), "scales": np.ones(count, np.float32)}, 7)
    norms = np.linalg.norm(codes, axis=1).astype(np.float32)
    queries, without = random.normal(size=(3, 7)).astype(np.float32), np.array([-1, runs[0][0], runs[0][1] - 1])
    inside = np.concatenate([np.arange(*run) for run in runs])
    for asked in (slice(0, 1), slice(1, 2), slice(0, 3)):
        found, scores, complete = _nearest(rows, queries[asked], norms, k, runs=np.array(runs), without=without[asked])
        assert complete
        for query, left_out, row, score in zip(queries[asked], without[asked], found, scores, strict=True):
            cosines = reference.cosines(rows.scores(query), norms, reference.length(query))
            order = inside[np.lexsort((inside, -cosines[inside]))]
            order = order[order != left_out][:k]
            assert row.tolist() == order.tolist()
            np.testing.assert_array_equal(score, cosines[order])


def test_a_deadline_ends_a_long_scan_early(kernels: Any) -> None:
    codes = np.random.default_rng(0).integers(-99, 99, (9001, 7)).astype(np.int8)
    rows = kernels.open_rows("int8", {"rows": codes, "scales": np.ones(9001, np.float32)}, 7)
    queries, norms, runs = np.ones((40, 7), np.float32), np.ones(9001, np.float32), np.array([[0, 9001]])
    found, _, complete = _nearest(rows, queries, norms, 300, runs=runs, deadline_ns=1)
    assert not complete and (found[:, 0] >= 0).all() and np.count_nonzero(found >= 0) < 40 * 300


def test_what_scores_no_number_comes_after_what_does(kernels: Any) -> None:
    vectors = np.array([[5, 0], [np.nan, 0], [3, 4], [np.nan, 0], [4, 3]], np.float32)
    rows, query = kernels.open_rows("float32", {"rows": vectors}, 2), np.array([[1, 0]], np.float32)
    found, scores, _ = _nearest(rows, query, np.full(5, 5, np.float32), 2, runs=np.array([[0, 5]]))
    assert found.tolist() == [[0, 4]]
    np.testing.assert_allclose(scores, [[1, 0.8]], rtol=1e-6)


@given(data=st.data())
@settings(deadline=None)
def test_both_spellings_search_any_runs_for_any_queries_alike(data: st.DataObject) -> None:
    native = pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    borders = sorted(data.draw(st.lists(st.integers(0, ROWS), max_size=8)))
    runs = np.array(list(pairwise(borders)), np.int64).reshape(-1, 2)[random.permutation(max(0, len(borders) - 1))]
    queries = random.normal(size=(data.draw(st.integers(0, 4)), 24)).astype(np.float32)
    wanted = random.random((len(queries), len(runs))) < 0.6 if data.draw(st.booleans()) else None
    k, without = data.draw(st.integers(0, ROWS)), random.integers(-1, ROWS, len(queries))
    length = data.draw(st.integers(k, ROWS))
    norms = random.random(ROWS).astype(np.float32)
    bases = random.random((len(queries), len(runs)), np.float32) if data.draw(st.booleans()) else None
    tensors, plane = _tensors("int8", 24), _plane(24)
    answers = []
    for kernels in (pure, native):
        planes = kernels.open_rows("plane", plane, 24) if length % 2 else None
        rows = kernels.open_rows("int8", tensors, 24)
        more = {"runs": runs, "wanted": wanted, "without": without, "plane": planes, "length": length, "bases": bases}
        answers.append(_nearest(rows, queries, norms, k, **more))
    for meant, found in zip(*answers, strict=True):
        np.testing.assert_array_equal(found, meant)


def test_rows_beyond_what_a_run_has_in_common_score_their_part_and_the_runs_base(kernels: Any) -> None:
    rows = kernels.open_rows("plane", _plane(24), 24)
    queries, runs = np.random.default_rng(5).normal(size=(2, 24)).astype(np.float32), np.array([[30, ROWS], [0, 30]])
    bases = np.array([[0.25, 100], [0.5, -1]], np.float32)
    # Of lengths that would leave nothing of a score.
    found, scores, _ = _nearest(rows, queries, np.zeros(ROWS, np.float32), ROWS, runs=runs, bases=bases)
    for i, query in enumerate(queries):
        of_row = np.where(np.arange(ROWS) < 30, bases[i, 1], bases[i, 0])
        meant = rows.scores(query) / reference.length(query) + of_row
        order = np.lexsort((np.arange(ROWS), -meant))
        np.testing.assert_array_equal(found[i], order)
        np.testing.assert_array_equal(scores[i], meant[order])
    nothing = _nearest(rows, 0 * queries, np.ones(ROWS, np.float32), 3, runs=runs, bases=bases)
    assert not nothing[1].any()


def test_a_deadline_that_has_passed_leaves_one_block_and_says_so(kernels: Any) -> None:
    rows = kernels.open_rows("int8", _tensors("int8", 8), 8)
    queries, norms = np.ones((1, 8), np.float32), np.ones(ROWS, np.float32)
    runs = np.array([[20, ROWS], [0, 20]])
    late = _nearest(rows, queries, norms, ROWS, runs=runs, deadline_ns=1)
    assert not late[2]
    assert set(late[0][0].tolist()) == {*range(20, ROWS), -1}
    in_time = _nearest(rows, queries, norms, ROWS, runs=runs, deadline_ns=time.monotonic_ns() + 10**12)
    assert in_time[2] and sorted(in_time[0][0].tolist()) == list(range(ROWS))
    # What was scanned to its end was not cut off, whatever the clock says.
    assert _nearest(rows, queries, norms, ROWS, deadline_ns=1)[2]


def test_a_deadline_is_kept_between_queries_and_leaves_none_of_them_without_an_answer(kernels: Any) -> None:
    rows = kernels.open_rows("int8", _tensors("int8", 8), 8)
    queries, norms = np.random.default_rng(2).normal(size=(40, 8)).astype(np.float32), np.ones(ROWS, np.float32)
    found, _, complete = _nearest(rows, queries, norms, ROWS, deadline_ns=1)
    counts = np.count_nonzero(found >= 0, axis=1)
    assert not complete and counts[0] == ROWS and counts[-1] == 16 < ROWS
    # Who wants another run than those that were scanned in time waits for a few rows of that; the best one is left out.
    runs, wanted = np.array([[0, 20], [20, 21], [21, ROWS]]), np.zeros((40, 3), bool)
    wanted[:20, 0] = wanted[20:, 1] = wanted[:, 2] = True
    without = np.full(40, -1)
    without[-1] = 20
    found, _, complete = _nearest(rows, queries, norms, 5, runs=runs, wanted=wanted, without=without, deadline_ns=1)
    assert not complete and (found[:, 0] >= 0).all()
    assert (found[0] < 20).all() and found[-2].tolist() == [20, -1, -1, -1, -1] and (found[-1] > 20).all()


def test_threads_search_one_table(kernels: Any) -> None:
    rows = kernels.open_rows("int8", _tensors("int8", 300), 300)
    queries = np.random.default_rng(1).normal(size=(16, 300)).astype(np.float32)
    norms = np.ones(ROWS, np.float32)

    def ask(_: int) -> bytes:
        found, scores, _ = _nearest(rows, queries, norms, 10)
        return bytes(found.tobytes() + scores.tobytes())

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(24)))) == 1


def test_no_search_reads_outside_the_table() -> None:
    native = pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    rows, plane = native.open_rows("int8", _tensors("int8", 8), 8), native.open_rows("plane", _plane(8), 8)
    queries, norms = np.ones((2, 8), np.float32), np.ones(ROWS, np.float32)
    for run in ([-1, 3], [0, ROWS + 1], [5, 4], [-(2**63), 2**63 - 1], [2**62, 2**62]):
        with pytest.raises(IndexError, match="expected runs of rows from 0 to"):
            _nearest(rows, queries, norms, 3, runs=np.array([[0, 2], run]))
    wrong: list[dict[str, Any]] = [
        {"k": ROWS + 1},
        {"k": -1},
        {"norms": norms[1:]},
        {"queries": queries[:, 1:].copy()},
        {"wanted": np.ones((2, 2), bool)},
        {"bases": np.ones((2, 2), np.float32)},
        {"bases": np.ones((1, 1), np.float32)},
        {"without": np.array([-1])},
        {"runs": np.array([[0, 1, 2]])},
        {"plane": plane, "length": 2},
        {"plane": plane, "length": ROWS + 1},
        {"plane": native.open_rows("plane", _plane(10), 10), "length": 5},
    ]
    for each in wrong:
        asked: dict[str, Any] = {"queries": queries, "norms": norms, "k": 3, **each}
        with pytest.raises(ValueError, match="expected"):
            _nearest(rows, **asked)
    with pytest.raises(TypeError, match="plane"):
        _nearest(rows, queries, norms, 3, plane=7, length=5)


# Where a table ends, and who else may run


def _before_a_border(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return the same numbers where memory ends: the page behind them may not be read."""
    size = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    moved = np.frombuffer(memory, tensor.dtype, tensor.size, offset=size - tensor.nbytes).reshape(tensor.shape)
    moved[...] = tensor
    behind = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(behind), ctypes.c_size_t(mmap.PAGESIZE), 0)
    return moved


_LONG = 4099


def _ask_all_of_tables_before_a_border() -> int:
    from edge_embed.kernels import _native as native

    asked = 0
    for codec in (*ENCODERS, "plane"):
        for dimensions in (1, 5, 8, 16, 31, 32, 33, 63, 64, 100, 300):
            tensors = {name: _before_a_border(tensor) for name, tensor in _searched(codec, dimensions).items()}
            stored = "pq" if codec == "opq" and "rotation" not in tensors else codec
            rows, last = native.open_rows(stored, tensors, dimensions), np.arange(ROWS)
            queries, norms = np.ones((2, dimensions), np.float32), _before_a_border(np.ones(ROWS, np.float32))
            rows.decode(last)
            rows.pool(last, np.array([ROWS]), None, "mean")
            rows.scores(_before_a_border(queries[0]))
            _nearest(rows, _before_a_border(queries), norms, 3)
            asked += 1
    # A long scan reads at several places at once, each asked for ahead.
    for dimensions in (31, 64):
        norms, scales = _before_a_border(np.ones(_LONG, np.float32)), _before_a_border(np.ones(_LONG, np.float32))
        codes = _before_a_border(np.ones((_LONG, dimensions), np.int8))
        opened = native.open_rows("int8", {"rows": codes, "scales": scales}, dimensions)
        _nearest(opened, np.ones((1, dimensions), np.float32), norms, 3, runs=np.array([[0, _LONG]]))
        asked += 1
    return asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is fenced off as Linux does it")
def test_nothing_behind_a_tables_last_byte_is_read() -> None:
    pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    # In a process of its own: what reads too far ends it.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        assert process.submit(_ask_all_of_tables_before_a_border).result(timeout=120) == 11 * (len(ENCODERS) + 1) + 2


def _longest_wait_of_others(call: Callable[[], object]) -> float:
    """Return for which part of a call another thread did not run, at the longest."""
    ran: list[float] = []
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.001):
            ran.append(time.perf_counter())

    other = threading.Thread(target=run)
    other.start()
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    done.set()
    other.join()
    times = [start, *(at for at in ran if start < at < end), end]
    return max(after - before for before, after in pairwise(times)) / (end - start)


def test_others_run_while_a_batch_is_decoded_or_pooled() -> None:
    rows, ids = _slow_rows(2), np.zeros(4_000, np.int64)
    calls: tuple[Callable[[], object], ...] = (
        lambda: rows.decode(ids),
        lambda: rows.pool(ids, np.array([len(ids)]), None, "sum"),
    )
    for call in calls:
        # A machine that is busy may let the other thread wait now and then, but not always.
        assert min(_longest_wait_of_others(call) for _ in range(5)) < 0.5


# The spelling that a process chooses


def _imported_with(variant: str | None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("EDGE_EMBED_VARIANT", "EDGE_EMBED_PURE")}
    return subprocess.run(
        [sys.executable, "-c", "from edge_embed import kernels; print(kernels.VARIANT)"],
        env=kept if variant is None else {**kept, "EDGE_EMBED_VARIANT": variant},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_variant_that_there_is_not_is_an_error_that_names_those_that_there_are() -> None:
    pytest.importorskip("edge_embed.kernels._native", reason="the native kernels were not built here")
    best = _imported_with(None).stdout.strip()
    for name in ("", "baseline", best):
        assert _imported_with(name).stdout.strip() == (name or best)
    for name in ("avx3", "Baseline"):
        refused = _imported_with(name)
        assert refused.returncode and "ImportError: EDGE_EMBED_VARIANT: expected one of " in refused.stderr
        assert best in refused.stderr and "baseline" in refused.stderr and f"found '{name}'" in refused.stderr
