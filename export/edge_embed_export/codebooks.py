"""Training codebooks with faiss: the centroids that ``pq`` and ``rq`` choose from.

The training takes a seed, so one machine makes the same codebooks again; another CPU may make others, since the
distances behind every choice carry the rounding of its linear algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError

#: Centroids of a codebook: what a byte can name.
CENTROIDS = 256

_BITS = 8
_RIDGE = 0.01

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
        # The centroids of a small table are fitted to it on purpose: there are no other rows to serve.
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(parts)
        return cls(_books(quantizer.centroids, m), quantizer)

    def codes(self, parts: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes ``(n, m)`` of rows ``(n, m * s)``."""
        codes: NDArray[np.uint8] = self._quantizer.compute_codes(parts)
        return codes


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
        quantizer.train(vectors)
        return cls(_books(quantizer.codebooks, m), quantizer)

    def codes(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes ``(n, m)`` of rows ``(n, d)``."""
        codes: NDArray[np.uint8] = self._quantizer.compute_codes(vectors)
        return codes


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


def _books(centroids: Any, m: int) -> NDArray[np.float32]:
    books: NDArray[np.float32] = _faiss().vector_to_array(centroids).reshape(m, CENTROIDS, -1).astype(np.float32)
    return books


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError.of("faiss-cpu", "export", "training codebooks") from error
    return faiss
