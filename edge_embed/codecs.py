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


def mapped(bundle: Bundle, tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of a bundle as a mapped, read-only array."""
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(bundle.tensor(tensor), dtype).reshape(tensor.shape)


#: Each codec makes its rows from its tensors, by their names.
CODECS: Mapping[str, Callable[[Mapping[str, NDArray[Any]]], Rows]] = MappingProxyType(
    {
        "float32": lambda tensors: Float32Rows(tensors["rows"]),
        "int8": lambda tensors: Int8Rows(tensors["rows"], tensors["scales"]),
    }
)
