"""Training codebooks with faiss: the centroids that ``pq`` and ``rq`` choose from.

The training takes a seed, so one machine makes the same codebooks again; another CPU may make others, since the
distances behind every choice carry the rounding of its linear algebra.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError
from edge_embed.progress import Progress

#: Centroids of a codebook: what a byte can name.
CENTROIDS = 256

_BITS = 8
_RIDGE = 0.01
# faiss stops after 25: 60 bring overlap@10 of word2vec in 25 codes from .6703 to .6708.
_ROUNDS = 60
_OPQ_ROUNDS = 10
_CENTROID_ROUNDS = 10
# Numbers of a table that one thread trains on within seconds.
_SMALL = 2**22

#: Rows that codebooks are trained on, at most: faiss itself takes no more than 256 for each centroid.
TRAINING_ROWS = 256 * CENTROIDS

#: The equations of so many books are a matrix of 512 MiB.
FITTED_BOOKS = 32


@dataclass(frozen=True, eq=False)
class PqBook:
    """Trained centroids ``(m, 256, s)`` of each of m parts, and who finds the nearest of them."""

    codebooks: NDArray[np.float32]
    _quantizer: Any

    @classmethod
    def trained(cls, parts: NDArray[np.float32], m: int) -> PqBook:
        """Train on rows of ``m`` parts, ``(n, m * s)``; n over 256."""
        quantizer = _faiss().ProductQuantizer(parts.shape[1], m, _BITS)
        quantizer.cp.niter = _ROUNDS
        # The centroids of a small table are fitted to it on purpose: there are no other rows to serve.
        quantizer.cp.min_points_per_centroid = 1
        with _threads_for(parts):
            quantizer.train(parts)
        return cls(_books(quantizer.centroids, m), quantizer)

    @classmethod
    def kept(cls, codebooks: NDArray[np.float32]) -> PqBook:
        """Return books that were trained before."""
        m, _, width = codebooks.shape
        quantizer = _faiss().ProductQuantizer(m * width, m, _BITS)
        _faiss().copy_array_to_vector(np.ascontiguousarray(codebooks, np.float32).reshape(-1), quantizer.centroids)
        return cls(codebooks, quantizer)

    def codes(self, parts: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes ``(n, m)`` of rows ``(n, m * s)``."""
        with _threads_for(parts):
            codes: NDArray[np.uint8] = self._quantizer.compute_codes(parts)
        return codes


def train_rotation(vectors: NDArray[np.float32], m: int, width: int) -> NDArray[np.float32]:
    """Return the rotation ``(d, width)`` after which ``m`` equal parts of rows ``(n, d)`` lose least; d up to width."""
    faiss = _faiss()
    rotation = faiss.OPQMatrix(vectors.shape[1], m, width)
    rotation.niter = _OPQ_ROUNDS
    quantizer = faiss.ProductQuantizer(width, m, _BITS)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    with _threads_for(vectors):
        rotation.train(vectors)
    found: NDArray[np.float32] = faiss.vector_to_array(rotation.A).reshape(width, vectors.shape[1]).T
    return found


@dataclass(frozen=True, eq=False)
class RqBook:
    """Trained codebooks ``(m, 256, d)``, each fitted to what the ones before it left."""

    codebooks: NDArray[np.float32]
    _quantizer: Any

    @classmethod
    def trained(cls, vectors: NDArray[np.float32], m: int) -> RqBook:
        """Train on rows ``(n, d)``; n over 256."""
        quantizer = _faiss().ResidualQuantizer(vectors.shape[1], m, _BITS)
        quantizer.cp.min_points_per_centroid = 1
        with _threads_for(vectors):
            quantizer.train(vectors)
        return cls(_books(quantizer.codebooks, m), quantizer)

    def codes(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes ``(n, m)`` of rows ``(n, d)``."""
        with _threads_for(vectors):
            codes: NDArray[np.uint8] = self._quantizer.compute_codes(vectors)
        return codes


@dataclass(frozen=True, eq=False)
class Centroids:
    """Trained centroids ``(c, d)`` of length 1, and who finds the nearest of them."""

    centroids: NDArray[np.float32]
    _index: Any

    def nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the centroid ``(n,)`` whose product with each row ``(n, d)`` is largest."""
        with _threads_for(vectors):
            _, found = self._index.search(vectors, 1)
        return np.asarray(found[:, 0], np.int64)


def train_centroids(vectors: NDArray[np.float32], count: int, progress: Progress) -> Centroids:
    """Return ``count`` centroids, by spherical k-means on rows ``(n, d)`` of length 1; n of ``count`` or more."""
    faiss = _faiss()
    centroids = None
    with progress.task("training centroids", _CENTROID_ROUNDS) as advance, _threads_for(vectors):
        for _ in range(_CENTROID_ROUNDS):
            # A round at a time, so that somebody who waits sees it pass.
            trainer = faiss.Kmeans(vectors.shape[1], count, niter=1, spherical=True, seed=1)
            trainer.cp.min_points_per_centroid = 1
            trainer.cp.max_points_per_centroid = len(vectors)
            trainer.train(vectors, init_centroids=centroids)
            centroids = trainer.centroids
            advance(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(centroids)
    return Centroids(np.asarray(centroids, np.float32), index)


class Fit:
    """Codebooks fitted to rows together, by least squares, once the rows' codes are chosen.

    The codebook update of Babenko and Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014: of
    word2vec's neighbours .755 instead of .720 survive in 20 codes (20,000 x 100).
    """

    def __init__(self, m: int, dimensions: int) -> None:
        # The normal equations: how often two centroids meet in a row, and the sum of the rows that each is part of.
        self._meetings = np.zeros((m, CENTROIDS, m, CENTROIDS))
        self._sums = np.zeros((m, CENTROIDS, dimensions))

    def add(self, vectors: NDArray[np.float32], codes: NDArray[np.uint8]) -> None:
        """Take rows ``(n, d)`` and their codes ``(n, m)`` into account."""
        columns = codes.T.astype(np.int64)
        for i, ours in enumerate(columns):
            np.add.at(self._sums[i], ours, vectors)
            for j, theirs in enumerate(columns):
                together = np.bincount(ours * CENTROIDS + theirs, minlength=CENTROIDS**2)
                self._meetings[i, :, j] += together.reshape(CENTROIDS, CENTROIDS)

    def codebooks(self) -> NDArray[np.float32]:
        """Return the codebooks ``(m, 256, d)`` whose sums have the least squared error."""
        m, _, dimensions = self._sums.shape
        size = m * CENTROIDS
        # One book may give to another what it takes from a third: the ridge chooses the smallest of equal solutions.
        ridge = _RIDGE * np.eye(size)
        books = np.linalg.solve(self._meetings.reshape(size, size) + ridge, self._sums.reshape(size, dimensions))
        return books.reshape(m, CENTROIDS, dimensions).astype(np.float32)


@contextlib.contextmanager
def _threads_for(rows: NDArray[np.float32]) -> Iterator[None]:
    """Train on small tables with one thread: where cores are busy, faiss' threads wait for one another (20 times)."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if rows.size < _SMALL else before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _books(centroids: Any, m: int) -> NDArray[np.float32]:
    books: NDArray[np.float32] = _faiss().vector_to_array(centroids).reshape(m, CENTROIDS, -1).astype(np.float32)
    return books


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError.of("faiss-cpu", "export", "training codebooks") from error
    return faiss
