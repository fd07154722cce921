"""A matrix that came quantized: its rows are decoded when they are read, and codec ``pq`` takes its codes as they are.

Nothing is lost a second time, and a small file stays a small bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed_export.matrix import Places


class PqMatrix:
    """Rows behind the tensors of codec ``pq`` (SPEC.md); a ``Matrix`` of float32 to whoever reads it."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> None:
        self.tensors = tensors
        self._rows = kernels.open_rows("pq", tensors, dimensions)
        self.shape: tuple[int, ...] = (len(tensors["rows"]), dimensions)
        self.nbytes = 4 * self.shape[0] * dimensions

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        ids = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise IndexError(f"expected rows from 0 to {len(self) - 1}, found {ids.min()} to {ids.max()}")
        return self._rows.decode(ids)

    def selected(self, ids: NDArray[np.int64]) -> PqMatrix:
        """Return some rows as a matrix of the same kind."""
        by_row = {name: self.tensors[name][ids] for name in ("rows", "length_codes")}
        return PqMatrix({**self.tensors, **by_row}, self.shape[1])
