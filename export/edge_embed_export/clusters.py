"""Lists for search: rows that are alike stand together, and a centroid says what the rows of a list are like.

* The centroids are trained by spherical k-means (Dhillon and Modha, "Concept Decompositions for Large Sparse Text Data
  Using Clustering", Machine Learning 42, 2001) through faiss, which takes a seed; another CPU may find others.
* Each row stands in the list of its nearest centroid, and keeps its place among the rows of that list.
* A few rows are no part of the training: they are the questions by which the number of probes is chosen.
* A small table is scanned before its centroids would be compared, so it gets none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed.progress import Progress
from edge_embed_export.codebooks import train_centroids
from edge_embed_export.exact import directions
from edge_embed_export.matrix import Matrix, Places, Selection, blocks_of

FEWEST_ROWS = 20_000
#: Rows that a table's probes are chosen by.
HELD_OUT = 512

# Four times the root of n rows: comparing the centroids and scanning some dozens of lists then take alike long.
_LISTS_PER_ROOT = 4
_TRAINING_ROWS_PER_LIST = 64
_TRAINING_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids ``(c, d)`` float32 of length 1, where each list ends ``(c,)`` uint32, and rows that were held out."""

    centroids: NDArray[np.float32]
    ends: NDArray[np.uint32]
    held_out: NDArray[np.int64]


class BeyondCentroids(Selection):
    """What the direction of each row has beyond the centroid of its list: a matrix ``(n, d)``."""

    def __init__(self, vectors: Matrix, clusters: Clusters, centroids: NDArray[np.float32]) -> None:
        """Take the rows in the order of their lists, and centroids ``(c, d)`` as a board decodes them, at length 1."""
        of_row = np.searchsorted(clusters.ends, np.arange(len(vectors)), side="right")
        super().__init__(centroids, of_row)
        self._vectors = vectors

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        found: NDArray[np.float32] = (directions(self._vectors[rows]) - super().__getitem__(rows)).astype(np.float32)
        return found


def clustered(vectors: Matrix, progress: Progress) -> tuple[NDArray[np.int64], Clusters]:
    """Return the order ``(n,)`` in which rows ``(n, d)`` stand by their lists, and the lists in that order.

    Raises:
        MissingExtraError: faiss, which trains the centroids, is not installed.
    """
    n, d = vectors.shape
    chosen = np.random.default_rng(0).permutation(n)
    held_out = chosen[: min(HELD_OUT, n // 2)]
    lists = min(n - len(held_out), round(_LISTS_PER_ROOT * n**0.5))
    most = max(lists, min(_TRAINING_ROWS_PER_LIST * lists, _TRAINING_BYTES // (4 * d)))
    training = np.sort(chosen[len(held_out) :][:most])
    book = train_centroids(directions(vectors[training]).astype(np.float32), lists, progress)
    list_of_row = np.empty(n, np.int64)
    with progress.task("sorting rows into lists", n) as advance:
        for block in blocks_of(vectors):
            list_of_row[block] = book.nearest(directions(vectors[block]).astype(np.float32))
            advance(block.stop - block.start)
    order = np.argsort(list_of_row, kind="stable")
    there, sizes = np.unique(list_of_row, return_counts=True)
    place_of_row = np.empty(n, np.int64)
    place_of_row[order] = np.arange(n)
    ends = np.cumsum(sizes).astype(np.uint32)
    return order, Clusters(book.centroids[there], ends, np.sort(place_of_row[held_out]))
