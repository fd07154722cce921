"""How a table's rows are stored, and how they come back: one small class per codec.

A codec is handed tensors that passed the manifest's gate, so dtypes and shapes are right. Ids come checked, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Tensor


class Rows(Protocol):
    """A table's vectors behind their codec."""

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of ids ``(n,)``, each from 0 to the number of rows less one."""

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the dot product ``(n,)`` of every row with the query ``(d,)``."""


class Float32Rows:
    """Codec ``float32``: the numbers themselves."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        return kernels.decode_float32(self._rows, ids)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        return kernels.scores_float32(self._rows, query)


class Float16Rows:
    """Codec ``float16``: the numbers in half the bytes."""

    def __init__(self, rows: NDArray[np.float16]) -> None:
        self._rows = rows

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        return kernels.decode_float16(self._rows, ids)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        return kernels.scores_by_decoding(self.decode, len(self._rows), query)


class Int8Rows:
    """Codec ``int8``: codes from -127 to 127 and one float32 scale per row."""

    def __init__(self, rows: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        self._rows = rows
        self._scales = scales

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        return kernels.decode_int8(self._rows, self._scales, ids)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        return kernels.scores_int8(self._rows, self._scales, query)


class Int4Rows:
    """Codec ``int4``: codes of four bits and a float16 scale for each 32 of them."""

    def __init__(self, rows: NDArray[np.uint8], scales: NDArray[np.float16], dimensions: int) -> None:
        self._rows = rows
        self._scales = scales
        self._dimensions = dimensions

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        return kernels.decode_int4(self._rows, self._scales, ids, self._dimensions)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        return kernels.scores_by_decoding(self.decode, len(self._rows), query)


class PqRows:
    """Codec ``pq``: a centroid for each part of a row, and the row's length."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> None:
        self._rows = tensors["rows"]
        self._codebooks = tensors["codebooks"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]
        self._dimensions = dimensions

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        lengths = self._length_levels[self._length_codes[ids]]
        return kernels.decode_pq(self._rows, self._codebooks, lengths, ids, self._dimensions)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        m, _, width = self._codebooks.shape
        parts = np.zeros(m * width, np.float32)
        parts[: self._dimensions] = query
        products = np.einsum("mcs,ms->mc", self._codebooks, parts.reshape(m, width))
        return kernels.scores_codes(self._rows, products, self._length_levels[self._length_codes])


class OpqRows:
    """Codec ``opq``: ``pq`` of rows that were rotated, so that each part says as much as the others."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._rows = tensors["rows"]
        self._codebooks, self._rotation = tensors["codebooks"], tensors["rotation"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        lengths = self._length_levels[self._length_codes[ids]]
        return kernels.decode_opq(self._rows, self._codebooks, self._rotation, lengths, ids)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        m, _, width = self._codebooks.shape
        products = np.einsum("mcs,ms->mc", self._codebooks, (query @ self._rotation).reshape(m, width))
        return kernels.scores_codes(self._rows, products, self._length_levels[self._length_codes])


class RqRows:
    """Codec ``rq``: the sum of a centroid of each of m codebooks, and the row's length."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._rows = tensors["rows"]
        self._codebooks = tensors["codebooks"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        return kernels.decode_rq(self._rows, self._codebooks, self._length_levels[self._length_codes[ids]], ids)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        return kernels.scores_codes(self._rows, self._codebooks @ query, self._length_levels[self._length_codes])


def mapped(bundle: Bundle, tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of a bundle as a mapped, read-only array."""
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(bundle.tensor(tensor), dtype).reshape(tensor.shape)


#: Each codec makes its rows from its tensors, by their names, and the number of dimensions.
CODECS: Mapping[str, Callable[[Mapping[str, NDArray[Any]], int], Rows]] = MappingProxyType(
    {
        "float32": lambda tensors, _: Float32Rows(tensors["rows"]),
        "float16": lambda tensors, _: Float16Rows(tensors["rows"]),
        "int8": lambda tensors, _: Int8Rows(tensors["rows"], tensors["scales"]),
        "int4": lambda tensors, dimensions: Int4Rows(tensors["rows"], tensors["scales"], dimensions),
        "pq": PqRows,
        "opq": lambda tensors, _: OpqRows(tensors),
        "rq": lambda tensors, _: RqRows(tensors),
    }
)
