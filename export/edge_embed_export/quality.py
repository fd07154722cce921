"""What a codec cost: the decoded rows beside the source's, measured through the bundle that was written.

* cosine: between a row and its decoded self, the mean and the worst; rows of zeros do not count.
* neighbour overlap@10: of the ten rows nearest to a query by the source's vectors, the share that are among the ten
  nearest by the decoded ones; the mean over a sample of rows. Both sides are exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed.progress import Progress

SAMPLE_QUERIES = 1000
NEIGHBOURS = 10

_BLOCK_QUERIES = 100


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


def measure_quality(
    source: NDArray[np.float32], decoded: NDArray[np.float32], bytes_after: int, progress: Progress
) -> Quality:
    """Compare decoded rows ``(n, d)`` with the source's.

    Args:
        source: ``(n, d)`` float32, as the trainer left them.
        decoded: ``(n, d)`` float32, as the runtime answers.
        bytes_after: what the stored tensors take.
        progress: told each block of queries.
    """
    before, after = _directions(source), _directions(decoded)
    cosines = np.einsum("nd,nd->n", before, after)[np.abs(before).any(axis=1)]
    count = min(SAMPLE_QUERIES, len(source))
    queries = np.random.default_rng(0).choice(len(source), count, replace=False)
    overlap = _overlap(before, after, queries, progress)
    return Quality(
        bytes_before=source.nbytes,
        bytes_after=bytes_after,
        mean_cosine=round(float(cosines.mean()) if len(cosines) else 1.0, 6),
        worst_cosine=round(float(cosines.min(initial=1)), 6),
        neighbour_overlap_at_10=round(overlap, 4),
        queries=count,
    )


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return directions


def _overlap(
    before: NDArray[np.float32], after: NDArray[np.float32], queries: NDArray[np.int64], progress: Progress
) -> float:
    k = min(NEIGHBOURS, len(before) - 1)
    if k < 1:
        return 1.0
    shared = 0
    with progress.task("comparing neighbours", len(queries)) as advance:
        for start in range(0, len(queries), _BLOCK_QUERIES):
            block = queries[start : start + _BLOCK_QUERIES]
            pairs = zip(_nearest(before, block, k), _nearest(after, block, k), strict=True)
            shared += sum(len(np.intersect1d(a, b)) for a, b in pairs)
            advance(len(block))
    return shared / (k * len(queries))


def _nearest(directions: NDArray[np.float32], queries: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    scores = directions[queries] @ directions.T
    scores[np.arange(len(queries)), queries] = -np.inf
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]
