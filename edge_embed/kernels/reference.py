"""The kernels in numpy: what each one means. A native kernel is a faster spelling of a function in this module.

Integers agree bit for bit between spellings. ``decode_*`` agrees bit for bit, too: it is one rounding per number.
Sums of floats (``pool``, ``scores_*``) may differ in the order of additions; 1e-5 relative bounds that.

Arrays from a bundle are mapped and read-only; ids and offsets are checked by the caller once, before they come here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_embed_bundle.manifest import INT4_BLOCK

#: Rows that a scan converts to float32 at a time: its private memory is this many rows, whatever the table's size.
SCAN_ROWS = 4096
#: What the largest number of a query of int8 rows becomes: 127 * 256, so that the upper byte stays within -127 and 127.
QUERY_LEVELS = 127 * 256
#: What the largest number of a query of a plane becomes.
PLANE_LEVELS = 127
# A float32 holds the sum of so many products of two bytes.
_EXACT_PRODUCTS = 1024

#: The row of an empty index slot, and the answer for a key that is not there is -1.
EMPTY_ROW = 0xFFFFFFFF

# So few bags that still have rows are added up one by one.
_FEW_BAGS = 2

# Below this many keys a loop in Python is faster than a pass of numpy calls for each length of key (x86-64, 2026-11).
_LOOP_KEYS = 256

_MASK = (1 << 64) - 1

# XXH64, as in https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
_P1, _P2, _P3 = 11400714785074694791, 14029467366897019727, 1609587929392839161
_P4, _P5 = 9650029242287828579, 2870177450012600261

_U1, _U2, _U3, _U4, _U5 = map(np.uint64, (_P1, _P2, _P3, _P4, _P5))

# Odd constants that spread a pilot and its key over the slots (SPEC.md, "Key index").
_SPREAD_PILOT, _SPREAD_KEY = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def hash_key(key: bytes, seed: int) -> int:
    """Return XXH64 of one key."""
    length = len(key)
    at = 0
    if length >= 32:
        lanes = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
        while at + 32 <= length:
            for i in range(4):
                lanes[i] = _round(lanes[i], int.from_bytes(key[at : at + 8], "little"))
                at += 8
        found = sum(_rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            found = ((found ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        found = (seed + _P5) & _MASK
    found = (found + length) & _MASK
    while at + 8 <= length:
        found ^= _round(0, int.from_bytes(key[at : at + 8], "little"))
        found = (_rotated(found, 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= length:
        found ^= (int.from_bytes(key[at : at + 4], "little") * _P1) & _MASK
        found = (_rotated(found, 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in key[at:]:
        found ^= (byte * _P5) & _MASK
        found = (_rotated(found, 11) * _P1) & _MASK
    found = ((found ^ (found >> 33)) * _P2) & _MASK
    found = ((found ^ (found >> 29)) * _P3) & _MASK
    return found ^ (found >> 32)


def _round(lane: int, word: int) -> int:
    return (_rotated((lane + word * _P2) & _MASK, 31) * _P1) & _MASK


def _rotated(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & _MASK


def hash_keys(keys: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """Return XXH64 of many keys, ``(n,)`` uint64: the same function, over all keys of one length at a time."""
    if len(keys) < _LOOP_KEYS:
        return np.array([hash_key(key, seed) for key in keys], np.uint64)
    hashes = np.empty(len(keys), np.uint64)
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    for length in sorted(set(lengths.tolist())):
        places = np.flatnonzero(lengths == length)
        joined = b"".join([keys[i] for i in places.tolist()])
        hashes[places] = _hash_columns(np.frombuffer(joined, np.uint8).reshape(len(places), length), seed)
    return hashes


def _hash_columns(keys: NDArray[np.uint8], seed: int) -> NDArray[np.uint64]:
    """``hash_key`` for ``(n, length)`` bytes, a word of all keys at a time."""
    count, length = keys.shape
    at = 0
    if length >= 32:
        starts = ((seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK)
        lanes = [np.full(count, start, np.uint64) for start in starts]
        while at + 32 <= length:
            for i in range(4):
                lanes[i] = _rounds(lanes[i], _words(keys, at, 8))
                at += 8
        found = sum(
            (_rotated_all(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)),
            start=np.zeros(count, np.uint64),
        )
        for lane in lanes:
            found = (found ^ _rounds(np.zeros(count, np.uint64), lane)) * _U1 + _U4
    else:
        found = np.full(count, (seed + _P5) & _MASK, np.uint64)
    found = found + np.uint64(length)
    while at + 8 <= length:
        found = found ^ _rounds(np.zeros(count, np.uint64), _words(keys, at, 8))
        found = _rotated_all(found, 27) * _U1 + _U4
        at += 8
    if at + 4 <= length:
        found = _rotated_all(found ^ (_words(keys, at, 4) * _U1), 23) * _U2 + _U3
        at += 4
    for column in range(at, length):
        found = _rotated_all(found ^ (keys[:, column].astype(np.uint64) * _U5), 11) * _U1
    found = (found ^ (found >> np.uint64(33))) * _U2
    found = (found ^ (found >> np.uint64(29))) * _U3
    return found ^ (found >> np.uint64(32))


def _words(keys: NDArray[np.uint8], at: int, width: int) -> NDArray[np.uint64]:
    dtype = "<u8" if width == 8 else "<u4"
    return np.ascontiguousarray(keys[:, at : at + width]).view(dtype)[:, 0].astype(np.uint64)


def _rounds(lanes: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _rotated_all(lanes + words * _U2, 31) * _U1


def _rotated_all(values: NDArray[np.uint64], by: int) -> NDArray[np.uint64]:
    return (values << np.uint64(by)) | (values >> np.uint64(64 - by))


def slot_of(key_hash: int, pilots: NDArray[np.uint16], slot_count: int) -> int:
    """Return the one slot that a key's hash may occupy.

    The low half of the hash picks a bucket, the bucket's pilot the slot: a displaced hash in the manner of PTHash
    (Pibiri and Trani, "PTHash: Revisiting FCH Minimal Perfect Hashing", SIGIR 2021).
    """
    bucket = ((key_hash & 0xFFFFFFFF) * len(pilots)) >> 32
    spread = ((key_hash ^ (int(pilots[bucket]) * _SPREAD_PILOT & _MASK)) * _SPREAD_KEY) & _MASK
    return ((spread >> 32) * slot_count) >> 32


def slots_of(hashes: NDArray[np.uint64], pilots: NDArray[np.uint64], slot_count: int) -> NDArray[np.int64]:
    """Return ``slot_of`` for ``(n,)`` hashes, each with the pilot of its own bucket."""
    spread = (hashes ^ (pilots * np.uint64(_SPREAD_PILOT))) * np.uint64(_SPREAD_KEY)
    return (((spread >> np.uint64(32)) * np.uint64(slot_count)) >> np.uint64(32)).astype(np.int64)


def buckets_of(hashes: NDArray[np.uint64], bucket_count: int) -> NDArray[np.int64]:
    """Return the bucket of each of ``(n,)`` hashes."""
    return (((hashes & np.uint64(0xFFFFFFFF)) * np.uint64(bucket_count)) >> np.uint64(32)).astype(np.int64)


def find_row(key_hash: int, pilots: NDArray[np.uint16], slots: NDArray[np.uint32]) -> int:
    """Return the row of a key by its hash, or -1. A stranger passes for a known key once in 2**32."""
    fingerprint, row = slots[slot_of(key_hash, pilots, len(slots))].tolist()
    return int(row) if fingerprint == key_hash >> 32 and row != EMPTY_ROW else -1


def find_rows(hashes: NDArray[np.uint64], pilots: NDArray[np.uint16], slots: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return ``(n,)`` rows for ``(n,)`` hashes; -1 where a key is not there."""
    pilot_of_each = pilots[buckets_of(hashes, len(pilots))].astype(np.uint64)
    entries = slots[slots_of(hashes, pilot_of_each, len(slots))]
    known = (entries[:, 0] == hashes >> np.uint64(32)) & (entries[:, 1] != EMPTY_ROW)
    return np.where(known, entries[:, 1].astype(np.int64), -1)


def decode_float32(rows: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows ``(n, d)`` of ``ids`` ``(n,)``, freshly allocated."""
    return np.take(rows, _places(ids), axis=0, mode="clip")


def decode_float16(rows: NDArray[np.float16], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows ``(n, d)`` of ``ids`` as float32; every float16 is one."""
    return np.take(rows, _places(ids), axis=0, mode="clip").astype(np.float32)


def decode_int8(rows: NDArray[np.int8], scales: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return ``rows[id] * scales[id]`` as ``(n, d)`` float32, one rounding per number."""
    places = _places(ids)
    codes = np.take(rows, places, axis=0, mode="clip")
    scale_of_each = np.take(scales, places, mode="clip")[:, np.newaxis]
    return np.multiply(codes, scale_of_each, dtype=np.float32)


def decode_int4(
    rows: NDArray[np.uint8], scales: NDArray[np.float16], ids: NDArray[np.int64], dimensions: int
) -> NDArray[np.float32]:
    """Return ``(n, dimensions)`` float32: each code, less 8, times the scale of its block; one rounding per number.

    Args:
        rows: ``(n, ceil(d / 2))``; the low half of a byte is the number before that of the high half.
        scales: ``(n, ceil(d / 32))``, one for each 32 numbers.
        ids: ``(n,)`` rows.
        dimensions: d; of an odd one, the last half of a byte says nothing.
    """
    places = _places(ids)
    pairs = np.take(rows, places, axis=0, mode="clip")
    codes = np.empty((len(pairs), 2 * rows.shape[1]), np.float32)
    np.subtract(pairs & 15, 8, out=codes[:, ::2], dtype=np.float32)
    np.subtract(pairs >> 4, 8, out=codes[:, 1::2], dtype=np.float32)
    blocks = np.take(scales, places, axis=0, mode="clip").astype(np.float32)
    decoded: NDArray[np.float32] = codes[:, :dimensions] * np.repeat(blocks, INT4_BLOCK, axis=1)[:, :dimensions]
    return decoded


def decode_plane(
    rows: NDArray[np.uint8], scales: NDArray[np.float32], ids: NDArray[np.int64], dimensions: int
) -> NDArray[np.float32]:
    """Return ``(n, dimensions)`` float32: each code, less 8, times its row's scale; bytes as for ``decode_int4``."""
    places = _places(ids)
    codes = plane_codes(np.take(rows, places, axis=0, mode="clip"), dimensions)
    return np.multiply(codes, np.take(scales, places, mode="clip")[:, np.newaxis], dtype=np.float32)


def plane_codes(rows: NDArray[np.uint8], dimensions: int) -> NDArray[np.int8]:
    """Return the codes ``(n, dimensions)``, from -8 to 7, of rows ``(n, ceil(d / 2))``."""
    codes = np.empty((len(rows), 2 * rows.shape[1]), np.int8)
    codes[:, ::2] = rows & 15
    codes[:, 1::2] = rows >> 4
    codes -= 8
    return codes[:, :dimensions]


def decode_pq(
    rows: NDArray[np.uint8],
    codebooks: NDArray[np.float32],
    lengths: NDArray[np.float32],
    ids: NDArray[np.int64],
    dimensions: int,
) -> NDArray[np.float32]:
    """Return ``(n, dimensions)`` float32: the centroids of a row's codes one after the other, times its length.

    Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", IEEE TPAMI 33, 2011.

    Args:
        rows: ``(n, m)`` codes.
        codebooks: ``(m, 256, s)``; what ``m * s`` has beyond d is left out.
        lengths: ``(len(ids),)``, what each row is multiplied by.
        ids: rows.
        dimensions: d.
    """
    m, count, width = codebooks.shape
    codes = np.take(rows, _places(ids), axis=0, mode="clip") + count * np.arange(m, dtype=np.intp)
    centroids = np.take(codebooks.reshape(m * count, width), codes, axis=0).reshape(len(codes), m * width)
    decoded: NDArray[np.float32] = centroids[:, :dimensions] * lengths[:, np.newaxis]
    return decoded


def decode_opq(
    rows: NDArray[np.uint8],
    codebooks: NDArray[np.float32],
    rotation: NDArray[np.float32],
    lengths: NDArray[np.float32],
    ids: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return ``(n, d)`` float32: the centroids of a row's codes one after the other, rotated, times its length.

    The products add up exactly (SPEC.md), so their order does not matter. Ge, He, Ke and Sun, "Optimized Product
    Quantization for Approximate Nearest Neighbor Search", CVPR 2013.

    Args:
        rows: ``(n, m)`` codes.
        codebooks: ``(m, 256, s)``.
        rotation: ``(d, m * s)``.
        lengths: ``(len(ids),)``, what each row is multiplied by.
        ids: rows.
    """
    width = rotation.shape[1]
    decoded: NDArray[np.float32] = decode_pq(rows, codebooks, np.ones(len(ids), np.float32), ids, width) @ rotation.T
    decoded *= lengths[:, np.newaxis]
    return decoded


def decode_rq(
    rows: NDArray[np.uint8], codebooks: NDArray[np.float32], lengths: NDArray[np.float32], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return ``(n, d)`` float32: the sum of the centroids of a row's codes, in their order, times its length.

    Chen, Guan and Wang, "Approximate Nearest Neighbor Search by Residual Vector Quantization", Sensors 10, 2010.

    Args:
        rows: ``(n, m)`` codes.
        codebooks: ``(m, 256, d)``.
        lengths: ``(len(ids),)``, what each row is multiplied by.
        ids: rows.
    """
    codes = np.take(rows, _places(ids), axis=0, mode="clip").astype(np.intp)
    decoded = np.take(codebooks[0], codes[:, 0], axis=0)
    for book, column in zip(codebooks[1:], codes.T[1:], strict=True):
        decoded += np.take(book, column, axis=0)
    decoded *= lengths[:, np.newaxis]
    return decoded


def _places(ids: NDArray[np.int64]) -> NDArray[np.intp]:
    # On a 32-bit board numpy takes no int64 for a place, although all of them fit.
    return ids.astype(np.intp, copy=False)


def pool(vectors: NDArray[np.float32], counts: NDArray[np.int64], mode: str) -> NDArray[np.float32]:
    """Return one vector for each run of rows: ``counts[i]`` rows make row ``i`` of ``(len(counts), d)``; none, zeros.

    Rows are added in float32, one after the other from the first of a run to its last; ``mean`` divides the sum by
    ``float32(counts[i])``, one rounding more.

    Args:
        vectors: ``(counts.sum(), d)``.
        counts: ``(b,)``.
        mode: ``sum``, ``mean`` or ``max`` (the largest of each number).
    """
    add = np.maximum if mode == "max" else np.add
    if len(counts) == 1 and len(vectors) and vectors.shape[1] > 1:
        # The request of one bag: nothing to place. A single column would be added in pairs.
        pooled = add.reduce(vectors, axis=0, keepdims=True)
    else:
        pooled = _pooled(vectors, counts, add)
    if mode == "mean":
        pooled /= np.maximum(counts, 1).astype(np.float32)[:, np.newaxis]
    return pooled


def _pooled(vectors: NDArray[np.float32], counts: NDArray[np.int64], add: np.ufunc) -> NDArray[np.float32]:
    pooled = np.zeros((len(counts), vectors.shape[1]), np.float32)
    # Unsigned ones have no sign to sort by.
    counts = counts.astype(np.int64, copy=False)
    starts = np.cumsum(counts) - counts
    # Longest first: those that still have a row at place i are then the first few.
    order = np.argsort(-counts, kind="stable")
    lengths, firsts = counts[order], _places(starts[order])
    going = int(np.count_nonzero(lengths))
    sums = np.take(vectors, firsts[:going], axis=0)
    place = 1
    while going:
        going = int(np.searchsorted(-lengths[:going], -place))
        if going <= _FEW_BAGS and going:
            break
        if going:
            add(sums[:going], vectors[firsts[:going] + place], out=sums[:going])
        place += 1
    for i in range(going):
        # A few long runs: a pass over each instead of one over all for every place.
        run = vectors[firsts[i] + place : firsts[i] + lengths[i]]
        sums[i] = add.accumulate(np.concatenate([sums[i : i + 1], run]), axis=0)[-1]
    pooled[order[: len(sums)]] = sums
    return pooled


def pool_mean(vectors: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean of each run of rows: ``counts[i]`` rows make row ``i`` of ``(len(counts), d)``; none, zeros."""
    return pool(vectors, counts, "mean")


def add_in_order(total: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
    """Add rows ``(n, d)`` to ``total`` ``(d,)`` in place, one after the other: no other order gives the same bits."""
    for vector in vectors:
        total += vector


def scores_float32(rows: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the dot product ``(n,)`` of every row with the query ``(d,)``."""
    return _scanned(rows, query)


def scores_int8(
    rows: NDArray[np.int8], scales: NDArray[np.float32], queries: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the dot products ``(q, n)`` of every decoded row with queries ``(q, d)``, rounded to 16 bits a number.

    Codes and levels of a query are whole numbers: their sums have no rounding, so every order and every instruction
    set gives the same bits. A query's rounding is 1/65,024 of its largest number at most, a 256th of a code's own.
    """
    levelled = [query_levels(query) for query in queries]
    levels, steps = np.stack([each[0] for each in levelled]), np.array([each[1] for each in levelled])
    # In bytes, so that float32 adds them up without a rounding.
    upper = (levels + np.int16(128)) >> 8
    halves = np.concatenate([upper, levels - 256 * upper]).astype(np.float32).T
    sums = np.zeros((len(queries), len(rows)))
    numbers = np.empty((min(SCAN_ROWS, len(rows)), rows.shape[1]), np.float32)
    for start in range(0, len(rows), SCAN_ROWS):
        block = rows[start : start + SCAN_ROWS]
        np.copyto(numbers[: len(block)], block)
        for first in range(0, rows.shape[1], _EXACT_PRODUCTS):
            part = slice(first, first + _EXACT_PRODUCTS)
            products = (numbers[: len(block), part] @ halves[part]).T.astype(np.float64)
            sums[:, start : start + len(block)] += 256 * products[: len(queries)] + products[len(queries) :]
    scores: NDArray[np.float32] = (sums * steps[:, np.newaxis] * scales).astype(np.float32)
    return scores


def scores_plane(
    rows: NDArray[np.uint8], scales: NDArray[np.float32], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the dot product ``(n,)`` of every row of a plane with the query ``(d,)``, rounded to 8 bits a number.

    Whole numbers again: the same bits on every path.
    """
    levels, step = query_levels(query, PLANE_LEVELS)
    sums = np.zeros(len(rows))
    for start in range(0, len(rows), SCAN_ROWS):
        codes = plane_codes(rows[start : start + SCAN_ROWS], len(query)).astype(np.float32)
        for first in range(0, len(query), _EXACT_PRODUCTS):
            part = slice(first, first + _EXACT_PRODUCTS)
            sums[start : start + len(codes)] += codes[:, part] @ levels[part].astype(np.float32)
    scores: NDArray[np.float32] = (sums * step * scales).astype(np.float32)
    return scores


def query_levels(query: NDArray[np.float32], count: int = QUERY_LEVELS) -> tuple[NDArray[np.int16], float]:
    """Return a query as whole numbers ``(d,)`` from ``-count`` to ``count``, and what one counts.

    Of a query that is not finite: zeros, and NaN.
    """
    wide = query.astype(np.float64)
    if not np.isfinite(wide).all():
        return np.zeros(len(query), np.int16), np.nan
    step = float(np.abs(wide).max(initial=0)) / count
    return (np.rint(wide / step) if step else wide).astype(np.int16), step


def scores_by_decoding(
    decode: Callable[[NDArray[np.int64]], NDArray[np.float32]], rows: int, query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the dot product ``(rows,)`` of every row with the query ``(d,)``, where rows come back by ``decode``."""
    products = np.empty(rows, np.float32)
    for start in range(0, rows, SCAN_ROWS):
        ids = np.arange(start, min(start + SCAN_ROWS, rows))
        # Unnamed, the block is gone before the next one is made.
        np.dot(decode(ids), query, out=products[start : start + len(ids)])
    return products


def scores_codes(
    rows: NDArray[np.uint8], products: NDArray[np.float32], lengths: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the dot product ``(n,)`` of every row of codes with a query, from the query's with every centroid.

    Args:
        rows: ``(n, m)`` codes.
        products: ``(m, 256)``, the query's dot product with each centroid.
        lengths: ``(n,)``, what each row is multiplied by.
    """
    scores = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), SCAN_ROWS):
        block = rows[start : start + SCAN_ROWS]
        total = scores[start : start + len(block)]
        for column, of_column in zip(block.T, products, strict=True):
            total += of_column[column]
        total *= lengths[start : start + len(block)]
    return scores


def _scanned(rows: NDArray[np.int8] | NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    products = np.empty(len(rows), np.float32)
    # One block for all: a new one would be made while the last one is still there.
    numbers = np.empty((0 if rows.dtype == np.float32 else min(SCAN_ROWS, len(rows)), rows.shape[1]), np.float32)
    for start in range(0, len(rows), SCAN_ROWS):
        block = rows[start : start + SCAN_ROWS]
        if rows.dtype != np.float32:
            np.copyto(numbers[: len(block)], block)
            block = numbers[: len(block)]
        np.dot(block, query, out=products[start : start + len(block)])
    return products


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places of the ``k`` highest scores, best first; equal scores in the order of their rows."""
    k = min(k, len(scores))
    if k < len(scores):
        # Ties at the border: take every place that reaches the k-th score, and let the stable sort choose.
        border = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
        places = np.flatnonzero(scores >= border)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]


def length(query: NDArray[np.float32]) -> np.float32:
    """Return the Euclidean length of a query ``(d,)``: squares in float64, added one after the other."""
    return np.float32(np.sqrt(np.cumsum(np.square(query, dtype=np.float64))[-1])) if len(query) else np.float32(0)


def cosines(products: NDArray[np.float32], norms: NDArray[np.float32], length: np.float32) -> NDArray[np.float32]:
    """Return the cosines ``(n,)`` of rows of some lengths, 0 where one has none, with a query of ``length``."""
    lengths = norms * length
    found: NDArray[np.float32] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return found


def beyond(products: NDArray[np.float32], base: np.float32, length: np.float32) -> NDArray[np.float32]:
    """Return the cosines ``(n,)`` of directions with a query of ``length`` by what they have beyond a common part.

    ``base`` is the cosine of the query with that part; a query without length has none.
    """
    return products / length + base if length > 0 else np.zeros_like(products)


class Best:
    """The ``k`` best rows of one query so far; ``without`` is left out."""

    def __init__(self, k: int, without: int) -> None:
        self._k = k
        self._without = without
        self._rows = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)

    def offer(self, first: int, scores: NDArray[np.float32]) -> None:
        """Look at the scores ``(m,)`` of the rows from ``first`` on."""
        if len(self._rows) < self._k or not self._k:
            places = np.arange(len(scores))
        else:
            places = np.flatnonzero(~(scores < self._scores[-1]))
        if len(places) > self._k:
            # No row below the k-th score of a block can be among the best; one may be left out.
            # Turned, so that what is no number counts as the worst.
            among, turned = min(self._k + 1, len(places)), -scores[places]
            border = np.partition(turned, among - 1)[among - 1]
            places = places[~(turned > border)]
        rows, scores = first + places, scores[places]
        kept = rows != self._without
        rows, scores = np.concatenate([self._rows, rows[kept]]), np.concatenate([self._scores, scores[kept]])
        order = np.lexsort((rows, -scores))[: self._k]
        self._rows, self._scores = rows[order], scores[order]

    def in_order(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows and scores ``(k,)``, best first; -1 and 0 where there are fewer."""
        left = self._k - len(self._rows)
        return np.pad(self._rows, (0, left), constant_values=-1), np.pad(self._scores, (0, left))
