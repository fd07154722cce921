"""Rows of numbers that need not fit into memory.

A numpy array is a ``Matrix``; so is a ``Spool``, whose rows lie in a temporary file, and a ``Selection`` of another
one's rows. Whoever goes through a matrix takes a block of rows at a time, so an export's working set does not grow
with its table.

Files are read and written, not mapped: pages of a map count as the process's own until the system takes them back.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_embed.errors import RequestError

#: Rows of a block where the width is not known; wide rows come in fewer.
BLOCK_ROWS = 4096
_BLOCK_BYTES = 8 * 2**20

Places = slice | NDArray[np.int64]


class Matrix(Protocol):
    """Numbers by row, ``(n, ...)``: an array, or what can be read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What a number is stored as."""

    @property
    def nbytes(self) -> int:
        """The bytes of all numbers."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: Places, /) -> NDArray[Any]:
        """Return some rows, by a slice or by their ids ``(m,)``."""


def blocks_of(matrix: Matrix) -> Iterator[slice]:
    """Yield slices that together are all rows, each of some MiB at most."""
    width = max(1, matrix.nbytes // max(1, len(matrix)))
    step = max(1, min(BLOCK_ROWS, _BLOCK_BYTES // width))
    for start in range(0, len(matrix), step):
        yield slice(start, min(start + step, len(matrix)))


class Spool:
    """Rows appended to a temporary file, read back by slices or ids; the file is gone with the object.

    The file lies in ``TMPDIR``, else in ``/var/tmp``: a ``/tmp`` is memory on many systems.
    """

    def __init__(self, dtype: DTypeLike, width: tuple[int, ...] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self._width = width
        self._rows = 0
        self._row_bytes = self.dtype.itemsize * int(np.prod(width, dtype=np.int64))
        self._folder = spool_folder()
        try:
            self._file, name = tempfile.mkstemp(prefix="edge-embed-", dir=self._folder)
        except OSError as error:
            raise RequestError(f"{self._folder}: expected room for a temporary file, found: {error}") from error
        weakref.finalize(self, os.close, self._file)
        Path(name).unlink()

    @classmethod
    def of(cls, blocks: Iterator[NDArray[Any]], dtype: DTypeLike, width: tuple[int, ...] = ()) -> Spool:
        """Return a spool of all rows of some blocks."""
        spool = cls(dtype, width)
        for block in blocks:
            spool.append(block)
        return spool

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (self._rows, *self._width)

    @property
    def nbytes(self) -> int:
        """The bytes of all numbers."""
        return self._rows * self._row_bytes

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows ``(m, ...)`` at the end."""
        if rows.shape[1:] != self._width:
            raise ValueError(f"expected rows of shape {self._width}, found {rows.shape[1:]}")
        left = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data
        at = self.nbytes
        while left:
            try:
                written = os.pwrite(self._file, left, at)
            except OSError as error:
                raise RequestError(
                    f"{self._folder}: expected room for a temporary file of the table, found: {error}; "
                    "name another folder with TMPDIR"
                ) from error
            left, at = left[written:], at + written
        self._rows += len(rows)

    def __getitem__(self, rows: Places) -> NDArray[Any]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self._rows)
            if step != 1:
                return self[np.arange(start, stop, step)]
            found = np.empty((max(0, stop - start), *self._width), self.dtype)
            self._read(found.reshape(-1).view(np.uint8), start * self._row_bytes)
            return found
        ids = np.asarray(rows, np.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._rows:
            raise IndexError(f"expected rows from 0 to {self._rows - 1}, found {ids.min()} to {ids.max()}")
        found = np.empty((len(ids), *self._width), self.dtype)
        if found.size:
            lines = found.reshape(len(ids), -1).view(np.uint8)
            for line, row in zip(lines, ids.tolist(), strict=True):
                self._read(line, row * self._row_bytes)
        return found

    def _read(self, into: NDArray[np.uint8], at: int) -> None:
        left = into.data
        while left:
            count = os.preadv(self._file, [left], at)
            if not count:
                raise RequestError(f"{self._folder}: expected a temporary file of {self.nbytes} bytes, found it cut")
            left, at = left[count:], at + count


def spool_folder() -> str:
    """Return where temporary files of tables go."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())  # noqa: S108


class Selection:
    """Some rows of a matrix in an order of their own."""

    def __init__(self, matrix: Matrix, rows: NDArray[np.int64]) -> None:
        self._matrix = matrix
        self._rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (len(self._rows), *self._matrix.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """What a number is stored as."""
        return self._matrix.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of all numbers."""
        return self._matrix.nbytes // max(1, len(self._matrix)) * len(self._rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, rows: Places) -> NDArray[Any]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        return self._matrix[self._rows[rows]]


class Keys(Sequence[bytes]):
    """Many keys as one run of bytes and their offsets: a tenth of what as many objects take."""

    def __init__(self, data: bytes | bytearray, offsets: NDArray[np.uint64]) -> None:
        self._data = data
        self._offsets = offsets

    @classmethod
    def of(cls, blocks: Iterator[Sequence[bytes]]) -> Keys:
        """Pack the keys of some blocks."""
        data = bytearray()
        lengths = []
        for block in blocks:
            data += b"".join(block)
            lengths.append(np.fromiter(map(len, block), np.uint64, len(block)))
        return cls(data, np.cumsum(np.concatenate([np.zeros(1, np.uint64), *lengths]), dtype=np.uint64))

    @classmethod
    def joined(cls, packed: Sequence[Keys]) -> Keys:
        """Return the keys of some packs one after the other."""
        ends = np.cumsum([0, *(len(each._data) for each in packed)], dtype=np.uint64)
        offsets = [each._offsets[1:] + start for each, start in zip(packed, ends[:-1], strict=True)]
        return cls(b"".join(each._data for each in packed), np.concatenate([np.zeros(1, np.uint64), *offsets]))

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, rows: int) -> bytes: ...

    @overload
    def __getitem__(self, rows: slice) -> list[bytes]: ...

    def __getitem__(self, rows: int | slice) -> bytes | list[bytes]:
        """Return a key, or the list of some."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return [self[row] for row in range(start, stop, step)]
            ends = self._offsets[start : stop + 1].tolist()
            return [bytes(self._data[a:b]) for a, b in pairwise(ends)]
        row = range(len(self))[rows]
        return bytes(self._data[int(self._offsets[row]) : int(self._offsets[row + 1])])

    def __iter__(self) -> Iterator[bytes]:
        """Yield the keys in the order of their rows."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield from self[start : start + BLOCK_ROWS]

    def __eq__(self, other: object) -> bool:
        """Tell whether another sequence holds the same keys in the same order."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(bytes.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]
