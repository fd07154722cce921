"""What a codec cost: the decoded rows beside the source's, measured through the bundle that was written.

* cosine: between a row and its decoded self, the mean and the worst; rows of zeros do not count.
* neighbour overlap@10: of the ten rows nearest to a query by the source's vectors, the share that are among the ten
  nearest by the decoded ones; the mean over a sample of rows that are not zeros. Both sides are exact.
* the same by frequency: of the sample's rows in each fifth of the table, by row order. Trainers write the most frequent
  rows first as a rule; where they do not, the fifths are nothing but fifths.

Every machine finds the same figures, since they go into the manifest (``exact``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.progress import Progress
from edge_embed_export.exact import Sliced, directions, exact_pairs, exact_product, slice_bits
from edge_embed_export.matrix import Matrix, blocks_of

SAMPLE_QUERIES = 1000
NEIGHBOURS = 10

# Scores of so many rows with all queries are some MiB, several times over.
_SCORED_ROWS = 1024
# What rounding a number of float32, a product, or a sum is off by at the most, as a share of it; once more for the
# errors of errors.
_FLOAT32_ERROR = 2 * 2.0**-24
# Where more than a share of all scores may be among the best, scoring each pair apart takes longer than all together.
_PAIRS_SHARE = 1 / 64
BANDS = 5
#: Shares of the rows, for the distribution of cosines.
QUANTILES = tuple(i / 100 for i in range(101))


@dataclass(frozen=True)
class Band:
    """Neighbour overlap@10 of the sample's rows from ``start`` to before ``stop``; 1 where there are none."""

    start: int
    stop: int
    queries: int
    neighbour_overlap_at_10: float


@dataclass(frozen=True)
class Quality:
    """The price of a codec for one table; bytes are those of its vectors, without keys and index."""

    bytes_before: int
    bytes_after: int
    mean_cosine: float
    worst_cosine: float
    neighbour_overlap_at_10: float
    queries: int
    bands: tuple[Band, ...] = ()
    #: The cosine that each share of ``QUANTILES`` of the rows stays under; for plots, not for manifests.
    cosine_quantiles: tuple[float, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the block that goes into the manifest."""
        return {
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "mean_cosine": self.mean_cosine,
            "worst_cosine": self.worst_cosine,
            "neighbour_overlap_at_10": self.neighbour_overlap_at_10,
            "queries": self.queries,
            "neighbour_overlap_by_rows": [
                {
                    "rows": [band.start, band.stop],
                    "queries": band.queries,
                    "neighbour_overlap_at_10": band.neighbour_overlap_at_10,
                }
                for band in self.bands
            ],
        }


def measure_quality(
    source: Matrix,
    decoded: Matrix,
    bytes_after: int,
    progress: Progress,
    *,
    whole: Matrix | None = None,
    neighbours: bool = True,
) -> Quality:
    """Compare decoded rows ``(n, d)`` with the source's.

    Args:
        source: ``(n, d)`` float32, what was packed.
        decoded: ``(n, d)`` float32, as the runtime answers.
        bytes_after: what the stored tensors take.
        progress: told each block of queries.
        whole: ``(n, D)`` float32, as the trainer left them, where what was packed is shorter: neighbours are those of
            the whole vectors, so what the shortening cost counts. Cosines need rows of one length: the packed ones'.
        neighbours: whether anybody looks for them; without, no query is asked.
    """
    cosines = _cosines(source, decoded)
    whole = source if whole is None else whole
    # Rows of zeros are like nothing; their neighbours would be whatever comes first, on both sides.
    asked = np.concatenate([block.start + np.flatnonzero(whole[block].any(axis=1)) for block in blocks_of(whole)])
    count = min(SAMPLE_QUERIES, len(asked)) if neighbours else 0
    queries = np.random.default_rng(0).choice(asked, count, replace=False)
    shares = neighbour_overlaps(whole, decoded, queries, progress)
    return Quality(
        bytes_before=whole.nbytes,
        bytes_after=bytes_after,
        mean_cosine=round(float(cosines.mean()) if len(cosines) else 1.0, 6),
        worst_cosine=round(float(cosines.min(initial=1)), 6),
        neighbour_overlap_at_10=_mean_overlap(shares),
        queries=count,
        bands=_bands(len(source), queries, shares) if neighbours else (),
        cosine_quantiles=tuple(np.quantile(cosines, QUANTILES).tolist()) if len(cosines) else (),
    )


def _bands(rows: int, queries: NDArray[np.int64], shares: NDArray[np.float64]) -> tuple[Band, ...]:
    """Return the overlap in each of a few equal parts of the rows."""
    borders = [rows * i // BANDS for i in range(BANDS + 1)]
    bands = []
    for start, stop in pairwise(borders):
        inside = shares[(queries >= start) & (queries < stop)]
        bands.append(Band(start, stop, len(inside), _mean_overlap(inside)))
    return tuple(bands)


def _mean_overlap(shares: NDArray[np.float64]) -> float:
    return round(float(shares.mean()), 4) if len(shares) else 1.0


def _cosines(source: Matrix, decoded: Matrix) -> NDArray[np.float64]:
    """Return the cosine of each row that is not zeros with its decoded self."""
    cosines = []
    for block in blocks_of(source):
        before, after = (directions(each[block]) for each in (source, decoded))
        cosines.append((before * after).sum(axis=1)[before.any(axis=1)])
    return np.concatenate(cosines) if cosines else np.empty(0)


def neighbour_overlaps(
    source: Matrix, decoded: Matrix, queries: NDArray[np.int64], progress: Progress
) -> NDArray[np.float64]:
    """Return the share of each query's ten neighbours ``(q,)`` that both sides agree on; memory grows with queries."""
    k = min(NEIGHBOURS, len(source) - 1)
    if k < 1 or not len(queries):
        return np.ones(len(queries))
    with progress.task("comparing neighbours", 2 * len(source)) as advance:
        before = nearest_rows(source, queries, k, advance)
        after = nearest_rows(decoded, queries, k, advance)
    return np.array([len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True)]) / k


def nearest_rows(
    vectors: Matrix, queries: NDArray[np.int64], k: int, advance: Callable[[int], None]
) -> NDArray[np.int64]:
    """Return the ``k`` rows nearest to each of some rows, ``(q, k)``; of equal ones those that come first."""
    asked = directions(vectors[queries])
    bits = slice_bits(asked.shape[1])
    sliced, rough_asked = Sliced.of(asked, bits), asked.astype(np.float32)
    # Of rows of length 1: both are rounded, then each product and each sum, in whatever order (Higham, "Accuracy and
    # Stability of Numerical Algorithms", 2002, 3.1).
    error = (2 + asked.shape[1]) * _FLOAT32_ERROR
    best_rows = np.full((len(queries), k), -1)
    best_scores = np.full((len(queries), k), -np.inf)
    for start in range(0, len(vectors), _SCORED_ROWS):
        block = directions(vectors[start : start + _SCORED_ROWS])
        rows = np.arange(start, start + len(block))
        is_own = queries[:, np.newaxis] == rows
        # Most rows are not among the best by far: float32 tells them at a sixth of the cost.
        rough = rough_asked @ block.T.astype(np.float32)
        rough[is_own] = -np.inf
        hits, columns = _best(rough, k, best_scores[:, -1], error)
        if len(hits) <= _PAIRS_SHARE * rough.size:
            scores = exact_pairs(sliced, Sliced.of(block, bits), hits, columns)
        else:
            product = exact_product(asked, block.T)
            product[is_own] = -np.inf
            hits, columns = _best(product, k, best_scores[:, -1], 0.0)
            scores = product[hits, columns]
        # Those of earlier blocks stand first, and the sort is stable: of equal scores the earlier row wins.
        of = np.concatenate([np.repeat(np.arange(len(queries)), k), hits])
        score = np.concatenate([best_scores.ravel(), scores])
        row = np.concatenate([best_rows.ravel(), rows[columns]])
        order = np.lexsort((-score, of))
        firsts = np.searchsorted(of[order], np.arange(len(queries)))
        chosen = order[firsts[:, np.newaxis] + np.arange(k)]
        best_rows, best_scores = row[chosen], score[chosen]
        advance(len(block))
    return best_rows


def _best(
    scores: NDArray[Any], k: int, least: NDArray[np.float64], error: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where scores ``(q, n)``, off by ``error`` at most, may be of the ``k`` best and not below ``least``."""
    border = np.partition(scores, -k, axis=1)[:, -k] if k < scores.shape[1] else np.full(len(scores), -np.inf)
    borders = np.maximum(border.astype(np.float64) - 2 * error, least - error)
    hits, columns = np.nonzero((scores >= borders[:, np.newaxis]) & (scores > -np.inf))
    return hits, columns
