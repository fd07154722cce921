"""The kernels as objects, in numpy: a table's keys, and its rows behind their codec.

The native kernels have the same names and answer alike; this is what they are held against, and what serves where
there are none. A codec is handed tensors that passed the manifest's gate, so dtypes and shapes are right. Ids come
checked, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_embed.kernels import reference
from edge_embed.keys import Key, refuse_row, to_bytes

#: Under a deadline: queries whose block is scored before the clock is read; rows for who has no answer by then.
_TIMED_QUERIES, _LATE_ROWS = 16, 16

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

    def nearest(
        self,
        queries: Vectors,
        norms: Vectors,
        k: int,
        runs: Ids,
        wanted: NDArray[np.bool_] | None,
        without: Ids,
        deadline_ns: int,
        plane: Rows | None,
        length: int,
        bases: Vectors | None,
        /,
    ) -> tuple[Ids, Vectors, bool]:
        """Return the ``k`` best rows ``(q, k)`` of each query by cosine, their cosines, and whether all were scanned.

        Best first, of equal ones the first row; where fewer were scanned, rows of -1 that score 0.

        Args:
            queries: ``(q, d)``.
            norms: ``(n,)``, the rows' lengths; a row of length 0 scores 0.
            k: at most n.
            runs: ``(r, 2)``, the first row of each run and the one after its last; they do not overlap.
            wanted: ``(q, r)``, which query wants which run; None: all want all.
            without: ``(q,)``, the row that is left out of each answer, or -1.
            deadline_ns: on the monotonic clock; 0 for none. One block of rows is scanned whatever it says; the queries
                that none was scanned for by then get an answer from a few rows.
            plane: a coarser table of the same rows that is scanned in their place, or None.
            length: how many of the best rows of the plane are compared as they are: k to n.
            bases: ``(q, r)``, where what is scanned is what directions have beyond that of their run: the cosine of
                each query with that. A score is a row's part, whatever the norms, and the base.
        """


class Watched(Protocol):
    """Bytes that somebody else may change: a mapped file's."""

    def __getitem__(self, place: slice, /) -> bytes:
        """Return what they are now."""


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
    """What follows from decoding and scoring: bags and neighbours, for every codec, and for engines."""

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        raise NotImplementedError

    def pool(self, ids: Ids, counts: Ids, weights: Vectors | None, mode: str) -> Vectors:
        """See :meth:`Rows.pool`."""
        vectors = self.decode(ids)
        if weights is not None:
            vectors = vectors * weights[:, np.newaxis]
        return reference.pool(vectors, counts, mode)

    def run(self, first: int, stop: int) -> Pooling:
        """Return some rows as a table of their own."""
        raise NotImplementedError

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        raise NotImplementedError

    def all_scores(self, queries: Vectors) -> Vectors:
        """Return the dot products ``(q, n)`` of every row with each query ``(q, d)``."""
        return np.stack([self.scores(query) for query in queries])

    def nearest(
        self,
        queries: Vectors,
        norms: Vectors,
        k: int,
        runs: Ids,
        wanted: NDArray[np.bool_] | None,
        without: Ids,
        deadline_ns: int,
        plane: Rows | None,
        length: int,
        bases: Vectors | None,
        /,
    ) -> tuple[Ids, Vectors, bool]:
        """See :meth:`Rows.nearest`."""
        if plane is None:
            return self._scanned(queries, norms, k, runs, wanted, without, deadline_ns, bases)
        listed, _, complete = plane.nearest(queries, norms, length, runs, wanted, without, deadline_ns, None, 0, bases)
        found = []
        for query, shortlist in zip(queries, listed, strict=True):
            rows = np.sort(shortlist[shortlist >= 0])
            alone = np.stack([rows, rows + 1], axis=1)
            found.append(self._scanned(query[np.newaxis], norms, k, alone, None, np.full(1, -1), 0, None))
        best = np.concatenate([np.empty((0, k), np.int64), *(each[0] for each in found)])
        return best, np.concatenate([np.empty((0, k), np.float32), *(each[1] for each in found)]), complete

    def _scanned(
        self,
        queries: Vectors,
        norms: Vectors,
        k: int,
        runs: Ids,
        wanted: NDArray[np.bool_] | None,
        without: Ids,
        deadline_ns: int,
        bases: Vectors | None,
    ) -> tuple[Ids, Vectors, bool]:
        best = [reference.Best(k, int(row)) for row in without]
        lengths = [reference.length(query) for query in queries]
        blocks = [
            (place, first, min(first + reference.SCAN_ROWS, stop))
            for place, (start, stop) in enumerate(runs.tolist())
            for first in range(start, stop, reference.SCAN_ROWS)
        ]
        late, complete = False, True
        answered = np.full(len(queries), k == 0)
        for place, first, stop in blocks:
            if late and answered.all():
                complete = False
                break
            asking = np.arange(len(queries)) if wanted is None else np.flatnonzero(wanted[:, place])
            together = _TIMED_QUERIES if deadline_ns else max(1, len(asking))
            for some in (asking[start : start + together] for start in range(0, len(asking), together)):
                looked_at, those = stop, some
                if late:
                    looked_at, those = min(stop, first + _LATE_ROWS), some[~answered[some]]
                complete = complete and looked_at == stop and len(those) == len(some)
                if not len(those):
                    continue
                products = self.run(first, looked_at).all_scores(queries[those])
                for i, of_query in zip(those.tolist(), products, strict=True):
                    if bases is None:
                        scores = reference.cosines(of_query, norms[first:looked_at], lengths[i])
                    else:
                        scores = reference.beyond(of_query, bases[i, place], lengths[i])
                    best[i].offer(first, scores)
                    answered[i] |= looked_at - first > int(first <= without[i] < looked_at)
                late = late or (deadline_ns != 0 and time.monotonic_ns() >= deadline_ns)
        found = [each.in_order() for each in best]
        rows = np.array([each[0] for each in found], np.int64).reshape(len(queries), k)
        return rows, np.array([each[1] for each in found], np.float32).reshape(len(queries), k), complete


class Float32Rows(Pooling):
    """Codec ``float32``: the numbers themselves."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_float32(self._rows, ids)

    def run(self, first: int, stop: int) -> Float32Rows:
        """See :meth:`Pooling.run`."""
        return Float32Rows(self._rows[first:stop])

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

    def run(self, first: int, stop: int) -> Float16Rows:
        """See :meth:`Pooling.run`."""
        return Float16Rows(self._rows[first:stop])

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

    def run(self, first: int, stop: int) -> Int8Rows:
        """See :meth:`Pooling.run`."""
        return Int8Rows(self._rows[first:stop], self._scales[first:stop])

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        alone: Vectors = reference.scores_int8(self._rows, self._scales, query[np.newaxis])[0]
        return alone

    def all_scores(self, queries: Vectors) -> Vectors:
        """See :meth:`Pooling.all_scores`: codes become float32 once for all queries."""
        return reference.scores_int8(self._rows, self._scales, queries)


class Int4Rows(Pooling):
    """Codec ``int4``: codes of four bits and a float16 scale for each 32 of them."""

    def __init__(self, rows: NDArray[np.uint8], scales: NDArray[np.float16], dimensions: int) -> None:
        self._rows = rows
        self._scales = scales
        self._dimensions = dimensions

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_int4(self._rows, self._scales, ids, self._dimensions)

    def run(self, first: int, stop: int) -> Int4Rows:
        """See :meth:`Pooling.run`."""
        return Int4Rows(self._rows[first:stop], self._scales[first:stop], self._dimensions)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_by_decoding(self.decode, len(self._rows), query)


class PlaneRows(Pooling):
    """A plane of 4-bit codes, one float32 scale per row: what a search goes through before it looks at int8 rows."""

    def __init__(self, rows: NDArray[np.uint8], scales: NDArray[np.float32], dimensions: int) -> None:
        self._rows = rows
        self._scales = scales
        self._dimensions = dimensions

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_plane(self._rows, self._scales, ids, self._dimensions)

    def run(self, first: int, stop: int) -> PlaneRows:
        """See :meth:`Pooling.run`."""
        return PlaneRows(self._rows[first:stop], self._scales[first:stop], self._dimensions)

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_plane(self._rows, self._scales, query)


class PqRows(Pooling):
    """Codec ``pq``: a centroid for each part of a row, and the row's length."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> None:
        self._tensors = tensors
        self._rows = tensors["rows"]
        self._codebooks = tensors["codebooks"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]
        self._dimensions = dimensions

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        lengths = self._length_levels[self._length_codes[ids]]
        return reference.decode_pq(self._rows, self._codebooks, lengths, ids, self._dimensions)

    def run(self, first: int, stop: int) -> PqRows:
        """See :meth:`Pooling.run`."""
        return PqRows(_run_of_codes(self._tensors, first, stop), self._dimensions)

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
        self._tensors = tensors
        self._rows = tensors["rows"]
        self._codebooks, self._rotation = tensors["codebooks"], tensors["rotation"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        lengths = self._length_levels[self._length_codes[ids]]
        return reference.decode_opq(self._rows, self._codebooks, self._rotation, lengths, ids)

    def run(self, first: int, stop: int) -> OpqRows:
        """See :meth:`Pooling.run`."""
        return OpqRows(_run_of_codes(self._tensors, first, stop))

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        m, _, width = self._codebooks.shape
        products = np.einsum("mcs,ms->mc", self._codebooks, (query @ self._rotation).reshape(m, width))
        return reference.scores_codes(self._rows, products, self._length_levels[self._length_codes])


class RqRows(Pooling):
    """Codec ``rq``: the sum of a centroid of each of m codebooks, and the row's length."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors
        self._rows = tensors["rows"]
        self._codebooks = tensors["codebooks"]
        self._length_codes, self._length_levels = tensors["length_codes"], tensors["length_levels"]

    def decode(self, ids: Ids) -> Vectors:
        """See :meth:`Rows.decode`."""
        return reference.decode_rq(self._rows, self._codebooks, self._length_levels[self._length_codes[ids]], ids)

    def run(self, first: int, stop: int) -> RqRows:
        """See :meth:`Pooling.run`."""
        return RqRows(_run_of_codes(self._tensors, first, stop))

    def scores(self, query: Vectors) -> Vectors:
        """See :meth:`Rows.scores`."""
        return reference.scores_codes(self._rows, self._codebooks @ query, self._length_levels[self._length_codes])


def _run_of_codes(tensors: Mapping[str, NDArray[Any]], first: int, stop: int) -> Mapping[str, NDArray[Any]]:
    return {**tensors, **{name: tensors[name][first:stop] for name in ("rows", "length_codes")}}


#: Each codec, and a plane, makes its rows from its tensors, by their names, and the number of dimensions.
CODECS: Mapping[str, Callable[[Mapping[str, NDArray[Any]], int], Rows]] = MappingProxyType(
    {
        "float32": lambda tensors, _: Float32Rows(tensors["rows"]),
        "float16": lambda tensors, _: Float16Rows(tensors["rows"]),
        "int8": lambda tensors, _: Int8Rows(tensors["rows"], tensors["scales"]),
        "int4": lambda tensors, dimensions: Int4Rows(tensors["rows"], tensors["scales"], dimensions),
        "plane": lambda tensors, dimensions: PlaneRows(tensors["rows"], tensors["scales"], dimensions),
        "pq": PqRows,
        "opq": lambda tensors, _: OpqRows(tensors),
        "rq": lambda tensors, _: RqRows(tensors),
    }
)


def open_rows(codec: str, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> Rows:
    """Return the rows that a codec's tensors hold."""
    return CODECS[codec](tensors, dimensions)


class Shortcut:
    """The plain request in one step: a key or a list of known keys, a flat list to pool; None for any other.

    None sends the caller the general way, which knows policies, says what is wrong, and follows a store.
    """

    def __init__(
        self,
        index: KeyIndex | None,
        rows: Rows,
        mode: str,
        padding_row: int,
        watched: tuple[tuple[Watched, bytes], ...],
        noticed: Callable[[], bool],
        /,
    ) -> None:
        """Make the shortcut of a table.

        Args:
            index: of the table's keys, or None.
            rows: the table's vectors.
            mode: how a bag is pooled: ``sum``, ``mean`` or ``max``.
            padding_row: what is left out of bags, or -1.
            watched: at most two buffers, each with the bytes that it held: once one differs, there is news.
            noticed: asked once there is news whether somebody follows it, and replaces this shortcut soon. Until then
                it answers as before; if nobody does, it does not answer.
        """
        self._index = index
        self._rows = rows
        self._watched = watched
        self._noticed = noticed

    def lookup(self, asked: object, /) -> Vectors | None:
        """Return the vector ``(d,)`` of a key, or ``(n, d)`` of a list of keys, if all are known."""
        if self._index is None or self._has_news():
            return None
        if isinstance(asked, str | bytes):
            row = self._index.find(asked)
            alone: Vectors | None = self._rows.decode(np.array([row]))[0] if row >= 0 else None
            return alone
        if not isinstance(asked, list):
            return None
        found = self._index.find_all(asked)
        return self._rows.decode(found) if found.min(initial=0) >= 0 else None

    def bag(self, asked: object, mode: str | None, /) -> Vectors | None:
        """Return the pooled vector ``(d,)`` of one flat list of keys or row ids; in numpy, none is worth it.

        ``mode`` takes the place of the shortcut's own, if it is given.
        """
        return None

    def _has_news(self) -> bool:
        if not any(now[:] != then for now, then in self._watched):
            return False
        if not self._noticed():
            return True
        self._watched = ()
        return False
