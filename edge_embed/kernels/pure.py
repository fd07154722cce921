"""The kernels as objects, in numpy: a table's keys, and its rows behind their codec.

The native kernels have the same names and answer alike; this is what they are held against, and what serves where
there are none. A codec is handed tensors that passed the manifest's gate, so dtypes and shapes are right. Ids come
checked, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_embed.kernels import reference
from edge_embed.keys import Key, refuse_row, to_bytes

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


class KeyIndex(Protocol):
    """From keys to rows (SPEC.md, "Key index")."""

    def find(self, key: Key) -> int:
        """Return the row of a key, or -1.

        Raises:
            BundleError: the index names a row that the table does not have.
        """

    def find_all(self, keys: Sequence[Key]) -> Ids:
        """Return the row ``(n,)`` of each key, -1 where it is unknown."""


class Rows(Protocol):
    """A table's vectors behind their codec."""

    def decode(self, ids: Ids) -> Vectors:
        """Return the vectors ``(n, d)`` of ids ``(n,)``, each from 0 to the number of rows less one."""

    def pool(self, ids: Ids, counts: Ids, weights: Vectors | None, mode: str) -> Vectors:
        """Return one vector for each run of ids ``(n,)``: ``counts[i]`` of them make row ``i`` of ``(b, d)``.

        Args:
            ids: as for :meth:`decode`.
            counts: ``(b,)``, n in all; where there are none, the vector is zeros.
            weights: ``(n,)``, what each row is multiplied by first, or None.
            mode: ``sum``, ``mean`` or ``max``; see :func:`edge_embed.kernels.reference.pool`.
        """

    def scores(self, query: Vectors) -> Vectors:
        """Return the dot product ``(n,)`` of every row with the query ``(d,)``."""


class Index:
    """See :class:`KeyIndex`."""

    def __init__(self, pilots: NDArray[np.uint16], slots: NDArray[np.uint32], seed: int, row_count: int) -> None:
        self._pilots = pilots
        self._slots = slots
        self._seed = seed
        self._row_count = row_count

    def find(self, key: Key) -> int:
        """See :meth:`KeyIndex.find`."""
        data = to_bytes(key)
        if not len(self._slots):
            return -1
        return self._checked(reference.find_row(reference.hash_key(data, self._seed), self._pilots, self._slots))

    def find_all(self, keys: Sequence[Key]) -> Ids:
        """See :meth:`KeyIndex.find_all`."""
        data = [to_bytes(key) for key in keys]
        if not len(self._slots):
            return np.full(len(keys), -1, np.int64)
        rows = reference.find_rows(reference.hash_keys(data, self._seed), self._pilots, self._slots)
        self._checked(int(rows.max(initial=-1)))
        return rows

    def _checked(self, row: int) -> int:
        if row >= self._row_count:
            refuse_row(row, self._row_count)
        return row


class Pooling:
    """Bags of rows that were decoded first: for every codec, and for engines."""

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        raise NotImplementedError

    def pool(self, ids: Ids, counts: Ids, weights: Vectors | None, mode: str) -> Vectors:
        """See :meth:`Rows.pool`."""
        vectors = self.decode(ids)
        if weights is not None:
            vectors = vectors * weights[:, np.newaxis]
        return reference.pool(vectors, counts, mode)


class Float32Rows(Pooling):
    """Codec ``float32``: the numbers themselves."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_float32(self._rows, ids)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_float32(self._rows, query)


class Float16Rows(Pooling):
    """Codec ``float16``: the numbers in half the bytes."""

    def __init__(self, rows: NDArray[np.float16]) -> None:
        self._rows = rows

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_float16(self._rows, ids)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_by_decoding(self.decode, len(self._rows), query)


class Int8Rows(Pooling):
    """Codec ``int8``: codes from -127 to 127 and one float32 scale per row."""

    def __init__(self, rows: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        self._rows = rows
        self._scales = scales

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_int8(self._rows, self._scales, ids)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_int8(self._rows, self._scales, query)


class Int4Rows(Pooling):
    """Codec ``int4``: codes of four bits and a float16 scale for each 32 of them."""

    def __init__(self, rows: NDArray[np.uint8], scales: NDArray[np.float16], dimensions: int) -> None:
        self._rows = rows
        self._scales = scales
        self._dimensions = dimensions

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_int4(self._rows, self._scales, ids, self._dimensions)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_by_decoding(self.decode, len(self._rows), query)


class PqRows(Pooling):
    """Codec ``pq``: a centroid for each part of a row, and the row's length."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> None:
        self._rows = tensors["rows"]
        self._codebooks = tensors["codebooks"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]
        self._dimensions = dimensions

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        lengths = self._length_levels[self._length_codes[ids]]
        return reference.decode_pq(self._rows, self._codebooks, lengths, ids, self._dimensions)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        m, _, width = self._codebooks.shape
        parts = np.zeros(m * width, np.float32)
        parts[: self._dimensions] = query
        products = np.einsum("mcs,ms->mc", self._codebooks, parts.reshape(m, width))
        return reference.scores_codes(self._rows, products, self._length_levels[self._length_codes])


class OpqRows(Pooling):
    """Codec ``opq``: ``pq`` of rows that were rotated, so that each part says as much as the others."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._rows = tensors["rows"]
        self._codebooks, self._rotation = tensors["codebooks"], tensors["rotation"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        lengths = self._length_levels[self._length_codes[ids]]
        return reference.decode_opq(self._rows, self._codebooks, self._rotation, lengths, ids)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        m, _, width = self._codebooks.shape
        products = np.einsum("mcs,ms->mc", self._codebooks, (query @ self._rotation).reshape(m, width))
        return reference.scores_codes(self._rows, products, self._length_levels[self._length_codes])


class RqRows(Pooling):
    """Codec ``rq``: the sum of a centroid of each of m codebooks, and the row's length."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._rows = tensors["rows"]
        self._codebooks = tensors["codebooks"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_rq(self._rows, self._codebooks, self._length_levels[self._length_codes[ids]], ids)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_codes(self._rows, self._codebooks @ query, self._length_levels[self._length_codes])


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


def open_rows(codec: str, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> Rows:
    """Return the rows that a codec's tensors hold."""
    return CODECS[codec](tensors, dimensions)


def lookup(index: KeyIndex, rows: Rows, asked: object) -> Vectors | None:
    """Return the vector ``(d,)`` of a key, or ``(n, d)`` of a list of keys, if that is the plain case: all are known.

    None sends the caller the general way, which knows policies and says what is wrong.
    """
    if isinstance(asked, str | bytes):
        row = index.find(asked)
        alone: Vectors | None = rows.decode(np.array([row]))[0] if row >= 0 else None
        return alone
    if not isinstance(asked, list):
        return None
    found = index.find_all(asked)
    return rows.decode(found) if found.min(initial=0) >= 0 else None


def bag(index: KeyIndex | None, rows: Rows, asked: object, mode: str, padding_row: int) -> Vectors | None:
    """Return the pooled vector ``(d,)`` of one flat list, if that is the plain case; in numpy, none is worth it."""
    return None
