"""What a codec cost: the decoded rows beside the source's, measured through the bundle that was written.

* cosine: between a row and its decoded self, the mean and the worst; rows of zeros do not count.
* neighbour overlap@10: of the ten rows nearest to a query by the source's vectors, the share that are among the ten
  nearest by the decoded ones; the mean over a sample of rows that are not zeros. Both sides are exact.

Every machine finds the same figures, since they go into the manifest (``exact``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed.progress import Progress
from edge_embed_export.exact import directions, exact_product
from edge_embed_export.matrix import Matrix, blocks_of

SAMPLE_QUERIES = 1000
NEIGHBOURS = 10


@dataclass(frozen=True)
class Quality:
    """The price of a codec for one table; bytes are those of its vectors, without keys and index."""

    bytes_before: int
    bytes_after: int
    mean_cosine: float
    worst_cosine: float
    neighbour_overlap_at_10: float
    queries: int

    def to_json(self) -> dict[str, int | float]:
        """Return the block that goes into the manifest."""
        return asdict(self)


def measure_quality(source: Matrix, decoded: Matrix, bytes_after: int, progress: Progress) -> Quality:
    """Compare decoded rows ``(n, d)`` with the source's.

    Args:
        source: ``(n, d)`` float32, as the trainer left them.
        decoded: ``(n, d)`` float32, as the runtime answers.
        bytes_after: what the stored tensors take.
        progress: told each block of queries.
    """
    cosines = _cosines(source, decoded)
    # Rows of zeros are like nothing; their neighbours would be whatever comes first, on both sides.
    asked = np.concatenate([block.start + np.flatnonzero(source[block].any(axis=1)) for block in blocks_of(source)])
    count = min(SAMPLE_QUERIES, len(asked))
    queries = np.random.default_rng(0).choice(asked, count, replace=False)
    overlap = _overlap(source, decoded, queries, progress)
    return Quality(
        bytes_before=source.nbytes,
        bytes_after=bytes_after,
        mean_cosine=round(float(cosines.mean()) if len(cosines) else 1.0, 6),
        worst_cosine=round(float(cosines.min(initial=1)), 6),
        neighbour_overlap_at_10=round(overlap, 4),
        queries=count,
    )


def _cosines(source: Matrix, decoded: Matrix) -> NDArray[np.float64]:
    """Return the cosine of each row that is not zeros with its decoded self."""
    cosines = []
    for block in blocks_of(source):
        before, after = (directions(each[block]) for each in (source, decoded))
        cosines.append((before * after).sum(axis=1)[before.any(axis=1)])
    return np.concatenate(cosines) if cosines else np.empty(0)


def _overlap(source: Matrix, decoded: Matrix, queries: NDArray[np.int64], progress: Progress) -> float:
    k = min(NEIGHBOURS, len(source) - 1)
    if k < 1 or not len(queries):
        return 1.0
    with progress.task("comparing neighbours", 2 * len(source)) as advance:
        before = _nearest(source, queries, k, advance)
        after = _nearest(decoded, queries, k, advance)
    shared = sum(len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True))
    return shared / (k * len(queries))


def _nearest(vectors: Matrix, queries: NDArray[np.int64], k: int, advance: Callable[[int], None]) -> NDArray[np.int64]:
    """Return the ``k`` rows nearest to each of some rows, ``(q, k)``; of equal ones those that come first."""
    asked = directions(vectors[queries])
    best_rows = np.full((len(queries), k), -1)
    best_scores = np.full((len(queries), k), -np.inf)
    for places in blocks_of(vectors):
        block = directions(vectors[places])
        scores = exact_product(asked, block.T)
        rows = np.arange(places.start, places.stop)
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
