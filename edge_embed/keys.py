"""Keys of a table: what one may be, and from a row to its key by its bytes; the kernels go from keys to rows.

* Both directions are mapped; no string of the table is ever in memory as an object before it is asked for.
* A key is bytes; text is UTF-8, and bytes that are no UTF-8 travel through ``str`` as surrogate escapes.
* An unknown key is recognized by a 32-bit fingerprint: one in four billion passes for a known one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import BundleError, RequestError

Key = str | bytes


def to_bytes(key: Key) -> bytes:
    """Return a key's bytes.

    Raises:
        RequestError: a surrogate stands in the text that is no escaped byte.
    """
    if isinstance(key, str):
        try:
            return key.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise RequestError(f"expected a key of Unicode text, found a lone surrogate in {key!r}") from error
    if isinstance(key, bytes):
        return key
    raise TypeError(f"expected a key as str or bytes, found {type(key).__name__}")


def refuse_row(row: int, row_count: int) -> NoReturn:
    """Refuse an index that names a row past the table.

    The digest of its slots was the publisher's word; it must not become a wild read.
    """
    raise BundleError(f"index_slots: expected rows below {row_count}, found {row}; ask the bundle's publisher")


class KeyNames:
    """From rows to keys: ``(n + 1,)`` offsets into the bytes of all keys."""

    def __init__(self, offsets: NDArray[np.uint32], data: memoryview) -> None:
        self._offsets = offsets
        self._data = data

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        """Return the key of a row."""
        start, end = self._offsets[row : row + 2].tolist()
        return self._name(row, start, end)

    def of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the key of each row ``(n,)``."""
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        return list(map(self._name, rows.tolist(), starts, ends))

    def _name(self, row: int, start: int, end: int) -> str:
        # As with the index: the publisher's word, which must not become a silent wrong name.
        if not start <= end <= len(self._data):
            raise BundleError(
                f"key_offsets of row {row}: expected a key within {len(self._data)} bytes, found {start} to {end}; "
                "ask the bundle's publisher"
            )
        return str(self._data[start:end], "utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        """Yield the keys in the order of their rows."""
        return (self[row] for row in range(len(self)))
