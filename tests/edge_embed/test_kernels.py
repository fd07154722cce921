"""The kernels mean what their sources say: XXH64 as xxHash spells it, sorting, loops, one multiplication.

What both spellings have goes through the fixture ``kernels``; what they are made of in numpy is tested beside it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed.kernels import reference
from edge_embed_export.key_index import build_index

SEEDS = (0, 1, 15, 2**32, 2**63, 2**64 - 1)

#: ``pool`` and ``scores_*`` may add in another order; this bounds what that does to sums of float32.
RELATIVE = 1e-5


def _keys(lengths: Sequence[int], seed: int) -> list[bytes]:
    source = random.Random(seed)  # noqa: S311, keys for tests
    return [source.randbytes(length) for length in lengths]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_has_the_hash_that_xxhash_gives_it(kernels: Any, seed: int) -> None:
    for key in _keys(range(201), seed):
        assert kernels.hash_key(key, seed) == xxhash.xxh64_intdigest(key, seed), len(key)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_keys_have_the_hashes_that_each_has_alone(kernels: Any, seed: int) -> None:
    lengths = [*range(201), *range(200, -1, -7), *[5] * 40, 1000, 0]
    random.Random(seed).shuffle(lengths)  # noqa: S311
    keys = _keys(lengths, seed)
    hashes = kernels.hash_keys(keys, seed)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [xxhash.xxh64_intdigest(key, seed) for key in keys]
    assert kernels.hash_keys([], seed).shape == (0,)


@given(key=st.binary(max_size=300), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_any_key_and_seed_have_the_hash_that_xxhash_gives_them(kernels: Any, key: bytes, seed: int) -> None:
    assert kernels.hash_key(key, seed) == xxhash.xxh64_intdigest(key, seed)
    assert kernels.hash_keys([key, b"", key], seed)[2] == xxhash.xxh64_intdigest(key, seed)


def test_known_keys_find_their_rows_and_strangers_none_one_by_one_and_together(kernels: Any) -> None:
    keys = [f"key {row}".encode() for row in range(1000)]
    index = build_index(keys)
    strangers = [f"stranger {row}".encode() for row in range(2000)]
    hashes = kernels.hash_keys(keys + strangers, index.seed)
    together = reference.find_rows(hashes, index.pilots, index.slots)
    assert together.dtype == np.int64
    assert together.tolist() == [*range(1000), *[-1] * 2000]
    assert [reference.find_row(found, index.pilots, index.slots) for found in hashes.tolist()] == together.tolist()


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_any_bytes_of_an_index_give_the_same_rows_one_by_one_and_together(data: st.DataObject) -> None:
    # What a damaged or hostile bundle holds is still an index to the kernels: they must agree and stay inside.
    source = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pilots = source.integers(0, 2**16, data.draw(st.integers(1, 9)), dtype=np.uint16)
    slots = source.integers(0, 2**32, (data.draw(st.integers(1, 9)), 2), dtype=np.uint32)
    slots[source.random(len(slots)) < 0.3, 1] = reference.EMPTY_ROW
    fingerprints = source.choice(slots[:, 0], 300).astype(np.uint64)
    hashes = fingerprints << np.uint64(32) | source.integers(0, 2**32, 300, dtype=np.uint64)
    pilots.flags.writeable = slots.flags.writeable = False
    together = reference.find_rows(hashes, pilots, slots)
    assert together.tolist() == [reference.find_row(found, pilots, slots) for found in hashes.tolist()]
    assert set(together.tolist()) <= {-1, *slots[:, 1].tolist()} - {reference.EMPTY_ROW}


def test_a_slot_left_empty_is_nobodys_row_even_if_the_fingerprint_fits() -> None:
    pilots, slots = np.zeros(1, np.uint16), np.array([[0, reference.EMPTY_ROW]], np.uint32)
    assert reference.find_row(7, pilots, slots) == -1
    assert reference.find_rows(np.array([7], np.uint64), pilots, slots).tolist() == [-1]


@given(
    codes=st.lists(st.lists(st.integers(-128, 127), min_size=3, max_size=3), min_size=1, max_size=5),
    scale=st.floats(0, 2.0**100, width=32),
    places=st.lists(st.integers(0, 4), max_size=12),
)
@settings(deadline=None)
def test_decoding_int8_is_one_rounded_multiplication_a_number(
    codes: list[list[int]], scale: float, places: list[int]
) -> None:
    rows = np.array(codes, np.int8)
    scales = (np.arange(1, len(codes) + 1) * np.float32(scale) / 3).astype(np.float32)
    ids = np.array([place % len(codes) for place in places], np.int64)
    rows.flags.writeable = scales.flags.writeable = False
    decoded = reference.decode_int8(rows, scales, ids)
    # Exact in float64, so the one rounding is that to float32.
    exact = rows[ids].astype(np.float64) * scales[ids].astype(np.float64)[:, np.newaxis]
    assert decoded.dtype == np.float32 and decoded.shape == (len(ids), 3)
    assert np.array_equal(decoded, exact.astype(np.float32))


def test_decoding_float32_copies_the_bits() -> None:
    rows = np.array([[0.0, -0.0, 1e-45], [np.float32(1e38), np.nan, -np.inf]], np.float32)
    rows.flags.writeable = False
    ids = np.array([1, 0, 1])
    decoded = reference.decode_float32(rows, ids)
    assert decoded.tobytes() == rows[ids].tobytes()
    assert decoded.flags.writeable
    assert reference.decode_float32(rows, ids[:0]).shape == (0, 3)


@pytest.mark.parametrize("rows", [0, 1, 2, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("dimensions", [1, 3, 100])
def test_scores_are_the_dot_products_in_float64_within_the_tolerance(rows: int, dimensions: int) -> None:
    source = np.random.default_rng(rows)
    query = source.normal(size=dimensions).astype(np.float32)
    codes = source.integers(-127, 128, (rows, dimensions), np.int8)
    scales = source.random(rows, np.float32)
    exact = codes.astype(np.float64) @ query.astype(np.float64) * scales
    # The query's numbers are rounded to levels: half a level off at most, and then nothing is.
    level = np.abs(query).max() / reference.QUERY_LEVELS
    bound = np.abs(codes.astype(np.float64)).sum(axis=1) * scales * level / 2 + 1e-7 * np.abs(exact)
    found = reference.scores_int8(codes, scales, query[np.newaxis])[0]
    assert found.shape == exact.shape and found.dtype == np.float32
    assert (np.abs(found - exact) <= bound).all()
    numbers = source.normal(size=(rows, dimensions)).astype(np.float32)
    exact = numbers.astype(np.float64) @ query.astype(np.float64)
    _assert_near(reference.scores_float32(numbers, query), exact, numbers, query, np.ones(rows, np.float32))


def _assert_near(
    found: NDArray[np.float32],
    exact: NDArray[np.float64],
    rows: NDArray[np.int8] | NDArray[np.float32],
    query: NDArray[np.float32],
    scales: NDArray[np.float32],
) -> None:
    """Compare sums relative to what was added, not to what cancellation left."""
    added = np.abs(rows.astype(np.float64)) @ np.abs(query.astype(np.float64)) * scales
    assert found.shape == exact.shape and found.dtype == np.float32
    assert (np.abs(found - exact) <= RELATIVE * added).all()


@given(data=st.data())
@settings(deadline=None)
def test_pooling_is_the_mean_of_each_run_and_zeros_for_an_empty_one(kernels: Any, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 6), max_size=8))
    vectors = np.random.default_rng(sum(counts)).normal(size=(sum(counts), 5)).astype(np.float32)
    pooled = kernels.pool(vectors, np.array(counts, np.int64), "mean")
    expected = np.zeros((len(counts), 5))
    start = 0
    for i, count in enumerate(counts):
        for vector in vectors[start : start + count]:
            expected[i] += vector.astype(np.float64) / count
        start += count
    assert pooled.dtype == np.float32 and pooled.shape == expected.shape
    np.testing.assert_allclose(pooled, expected, rtol=RELATIVE, atol=RELATIVE)


def test_pooling_a_long_run_stays_within_the_tolerance(kernels: Any) -> None:
    vectors = np.random.default_rng(0).random((5000, 3), np.float32)
    pooled = kernels.pool(vectors, np.array([0, 4999, 0, 1, 0]), "mean")
    np.testing.assert_allclose(pooled[1], vectors[:4999].astype(np.float64).mean(axis=0), rtol=RELATIVE)
    np.testing.assert_array_equal(pooled[3], vectors[4999])
    assert not pooled[[0, 2, 4]].any()


SCORES = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, 0.5, -0.5, -np.inf, np.inf]))


@given(scores=st.lists(SCORES, max_size=40), k=st.integers(0, 50))
@settings(deadline=None, max_examples=300)
def test_the_best_k_are_the_first_k_of_a_stable_sort(scores: list[float], k: int) -> None:
    best = reference.top_k(np.array(scores, np.float32), k)
    assert best.tolist() == sorted(range(len(scores)), key=lambda row: -np.float32(scores[row]))[:k]


@pytest.mark.parametrize("k", [0, 1, 10, 4999, 5000, 5001])
def test_many_equal_scores_come_in_the_order_of_their_rows(k: int) -> None:
    scores = np.random.default_rng(0).integers(0, 4, 5000).astype(np.float32)
    scores[17] = -np.inf
    scores.flags.writeable = False
    assert reference.top_k(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()
