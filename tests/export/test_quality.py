"""The price of a codec in figures that can be worked out on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.progress import SILENT
from edge_embed_export.exact import directions, exact_product
from edge_embed_export.quality import SAMPLE_QUERIES, Quality, measure_quality, nearest_rows


def _circle(*degrees: float, length: float = 1.0) -> NDArray[np.float32]:
    """Return directions on the plane."""
    angles = np.radians(degrees)
    return (length * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def _measured(source: NDArray[np.float32], decoded: NDArray[np.float32]) -> Quality:
    return measure_quality(source, decoded, 7, SILENT)


def test_cosines_are_between_each_row_and_its_decoded_self_whatever_the_lengths() -> None:
    found = _measured(_circle(0, 90, 180, length=5), _circle(0, 60, 180, length=0.1))
    assert found.mean_cosine == pytest.approx((1 + math.cos(math.radians(30)) + 1) / 3, abs=1e-6)
    assert found.worst_cosine == pytest.approx(math.cos(math.radians(30)), abs=1e-6)
    assert (found.bytes_before, found.bytes_after, found.queries) == (24, 7, 3)


def test_a_table_of_eleven_rows_cannot_lose_a_neighbour() -> None:
    # The ten others are the ten nearest, wherever they went.
    assert _measured(_circle(*range(11)), _circle(*range(0, 330, 30))).neighbour_overlap_at_10 == 1


def test_a_row_that_moved_to_another_group_loses_its_neighbours_and_they_lose_it() -> None:
    # Two groups of eleven, far apart; decoded, the first row of one group is in the middle of the other.
    source = _circle(*range(11), *range(90, 101))
    decoded = _circle(95.5, *range(1, 11), *range(90, 101))
    # The moved row keeps none of its ten, each of its ten old neighbours loses it, and each of its eleven new ones
    # loses the farthest of ten others to it.
    kept = 0 + 10 * 9 + 11 * 9
    assert _measured(source, decoded).neighbour_overlap_at_10 == pytest.approx(kept / 220, abs=1e-4)


def test_rows_of_zeros_have_no_direction_to_lose() -> None:
    source = np.concatenate([np.zeros((2, 2), np.float32), _circle(0, 90)])
    found = _measured(source, source)
    assert found.mean_cosine == found.worst_cosine == 1
    nothing = _measured(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))
    assert nothing.mean_cosine == nothing.worst_cosine == 1
    assert _measured(_circle(0, 90), np.zeros((2, 2), np.float32)).mean_cosine == 0


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_without_ten_others_is_compared_with_those_there_are(rows: int) -> None:
    found = _measured(_circle(*range(rows)), _circle(*range(rows)))
    assert found.neighbour_overlap_at_10 == 1
    assert found.queries == rows


def test_neighbours_are_found_all_over_a_table_of_several_blocks() -> None:
    random = np.random.default_rng(1)
    rows = 20_000
    source = random.normal(size=(rows, 6)).astype(np.float32)
    decoded = source + random.normal(scale=0.02, size=source.shape).astype(np.float32)
    source[::50] = decoded[::50] = 0
    asked = np.random.default_rng(0).choice(np.flatnonzero(source.any(axis=1)), SAMPLE_QUERIES, replace=False)
    shared = sum(len(_ten_nearest(source, row) & _ten_nearest(decoded, row)) for row in asked)
    assert _measured(source, decoded).neighbour_overlap_at_10 == pytest.approx(shared / (10 * len(asked)), abs=2e-4)


def _ten_nearest(vectors: NDArray[np.float32], row: int) -> set[int]:
    lengths = np.linalg.norm(vectors, axis=1)
    lengths[lengths == 0] = 1
    scores = vectors @ vectors[row] / lengths
    scores[row] = -np.inf
    return set(np.argsort(-scores)[:10].tolist())


def test_a_large_table_is_sampled_and_the_sample_is_always_the_same() -> None:
    random = np.random.default_rng(0)
    source = random.normal(size=(SAMPLE_QUERIES + 500, 8)).astype(np.float32)
    decoded = source + random.normal(scale=0.05, size=source.shape).astype(np.float32)
    one = _measured(source, decoded)
    assert one.queries == SAMPLE_QUERIES
    assert one == _measured(source, decoded)
    assert 0.5 < one.neighbour_overlap_at_10 < 1


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-7, 0.0])
@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize("k", [1, 10, 1500])
def test_the_nearest_rows_are_those_of_the_exact_scores_however_near_they_are_to_each_other(
    spread: float, copies: int, k: int
) -> None:
    random = np.random.default_rng(0)
    # Rows around one direction, some of zeros among them, some twice or more.
    vectors = (1 + spread * random.standard_normal((2500 // copies, 33))).astype(np.float32)
    vectors[::7] = 0
    vectors = np.tile(vectors, (copies, 1))
    queries = np.flatnonzero(vectors.any(axis=1))[::97]
    scores = np.concatenate(
        # As many rows at once as are scored at once: how finely numbers are cut depends on the largest of them.
        [exact_product(directions(vectors[queries]), directions(vectors[i : i + 1024]).T) for i in (0, 1024, 2048)],
        axis=1,
    )
    scores[np.arange(len(queries)), queries] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(nearest_rows(vectors, queries, k, lambda _: None), expected)
