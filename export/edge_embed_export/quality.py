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

import numpy as np
from numpy.typing import NDArray

from edge_embed.progress import Progress
from edge_embed_export.exact import directions, exact_product
from edge_embed_export.matrix import Matrix, blocks_of

SAMPLE_QUERIES = 1000
NEIGHBOURS = 10

# Scores of so many rows with all queries are some MiB, several times over.
_SCORED_ROWS = 1024
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
    best_rows = np.full((len(queries), k), -1)
    best_scores = np.full((len(queries), k), -np.inf)
    for start in range(0, len(vectors), _SCORED_ROWS):
        block = directions(vectors[start : start + _SCORED_ROWS])
        scores = exact_product(asked, block.T)
        rows = np.arange(start, start + len(block))
        scores[queries[:, np.newaxis] == rows] = -np.inf
        border = np.partition(scores, -k, axis=1)[:, -k] if k < len(block) else np.full(len(queries), -np.inf)
        hits, columns = np.nonzero(scores >= np.maximum(border, best_scores[:, -1])[:, np.newaxis])
        # Those of earlier blocks stand first, and the sort is stable: of equal scores the earlier row wins.
        of = np.concatenate([np.repeat(np.arange(len(queries)), k), hits])
        score = np.concatenate([best_scores.ravel(), scores[hits, columns]])
        row = np.concatenate([best_rows.ravel(), rows[columns]])
        order = np.lexsort((-score, of))
        firsts = np.searchsorted(of[order], np.arange(len(queries)))
        chosen = order[firsts[:, np.newaxis] + np.arange(k)]
        best_rows, best_scores = row[chosen], score[chosen]
        advance(len(block))
    return best_rows
