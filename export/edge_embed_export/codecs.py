"""Storing rows: one encoder per codec, each the inverse of its decoder in ``edge_embed.codecs``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.kernels import decode_pq, decode_rq
from edge_embed_bundle.manifest import INT4_BLOCK
from edge_embed_export.codebooks import CENTROIDS, train_pq, train_rq
from edge_embed_export.exact import directions

Encoded = Mapping[str, NDArray[Any]]

# A part of three dimensions a byte, and a byte for the length: a twelfth of float32.
_PQ_WIDTH = 3
# Each takes 256 rows of float32 on flash: 32 of them are as large as 8,192 rows were.
_RQ_BOOKS = 32
# What a block's largest number is divided by for its scale: 7 keeps it, more cuts it (8 is the lowest code).
_INT4_STEPS = (7.0, 7.5, 8.0, 8.5, 9.0)
_BLOCK_ROWS = 4096
_COUNT = re.compile(r"[1-9][0-9]{0,3}")


def encode_float32(vectors: NDArray[np.float32]) -> Encoded:
    """Return the tensors of codec ``float32`` for ``(n, d)`` vectors."""
    return {"rows": vectors}


def encode_int8(vectors: NDArray[np.float32]) -> Encoded:
    """Return the tensors of codec ``int8``: codes ``(n, d)`` from -127 to 127 and scales ``(n,)`` float32.

    The largest number of a row gets the code 127. Codes are made with the scale as it is stored, rounded to float32,
    so the decoder multiplies by exactly what the encoder divided by. A row of zeros has scale 0.
    """
    scales = (np.abs(vectors).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
    # Below the smallest normal number the quotient would be coarse or infinite; such a row is zeros for any use.
    scales[scales < np.finfo(np.float32).tiny] = 0
    divisors = np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]
    codes = np.clip(np.rint(vectors / divisors), -127, 127)
    codes[scales == 0] = 0
    return {"rows": codes.astype(np.int8), "scales": scales}


def encode_float16(vectors: NDArray[np.float32]) -> Encoded:
    """Return the tensors of codec ``float16``.

    Raises:
        RequestError: a number is too large for float16.
    """
    with np.errstate(over="ignore"):
        rows = vectors.astype(np.float16)
    _check_range(rows, vectors, "float16")
    return {"rows": rows}


def encode_int4(vectors: NDArray[np.float32]) -> Encoded:
    """Return the tensors of codec ``int4``: two codes a byte, from -8 to 7 and stored with 8 added, and float16 scales.

    Of a few scales for each 32 numbers the one with the smallest squared error is taken: cutting a block's largest
    number a little makes the steps of all others finer.

    Raises:
        RequestError: a number is too large for a float16 scale.
    """
    n, d = vectors.shape
    groups = -(-d // INT4_BLOCK)
    rows = np.empty((n, -(-d // 2)), np.uint8)
    scales = np.empty((n, groups), np.float16)
    for start in range(0, n, _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        padded = np.zeros((len(block), groups * INT4_BLOCK), np.float32)
        padded[:, :d] = block
        codes, found = _best_int4(padded.reshape(len(block), groups, INT4_BLOCK))
        _check_range(found, block, "the scales of int4")
        codes = codes.reshape(len(block), -1)
        rows[start : start + len(block)] = (codes[:, ::2] | codes[:, 1::2] << 4)[:, : rows.shape[1]]
        scales[start : start + len(block)] = found
    return {"rows": rows, "scales": scales}


def pairs_of_bytes() -> NDArray[np.float32]:
    """Return the two int4 numbers of each byte, ``(256, 2)``: that of the low half first, each less 8."""
    halves = np.arange(256)
    return np.stack([(halves & 15) - 8, (halves >> 4) - 8], axis=1).astype(np.float32)


def _best_int4(blocks: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return codes like ``blocks`` ``(n, g, 32)``, with 8 added, and their scales ``(n, g)``."""
    largest = np.abs(blocks).max(axis=2)
    best_codes = np.full(blocks.shape, 8, np.uint8)
    best_scales = np.zeros(largest.shape, np.float16)
    best_errors = np.square(blocks, dtype=np.float64).sum(axis=2)
    for step in _INT4_STEPS:
        with np.errstate(over="ignore"):
            scales = (largest / np.float32(step)).astype(np.float16)
        used = scales.astype(np.float32)[:, :, np.newaxis]
        quotients = np.divide(blocks, used, out=np.zeros_like(blocks), where=(used > 0) & np.isfinite(used))
        codes = np.clip(np.rint(quotients), -8, 7)
        with np.errstate(invalid="ignore", over="ignore"):
            errors = np.square(codes * used - blocks, dtype=np.float64).sum(axis=2)
        better = (errors < best_errors) | ~np.isfinite(scales)
        best_codes[better] = (codes[better] + 8).astype(np.uint8)
        best_scales[better] = scales[better]
        best_errors[better] = errors[better]
    return best_codes, best_scales


def _check_range(halves: NDArray[np.float16], vectors: NDArray[np.float32], what: str) -> None:
    if not np.isfinite(halves).all():
        raise RequestError(
            f"expected numbers that {what} can hold, up to {np.finfo(np.float16).max:g}, "
            f"found {np.abs(vectors).max():g}; use int8 or float32"
        )


def encode_pq(vectors: NDArray[np.float32], codes_a_row: int | None = None) -> Encoded:
    """Return the tensors of codec ``pq``: a code for each part of a row's direction, and one for its length.

    Args:
        vectors: ``(n, d)`` float32.
        codes_a_row: parts that a row is cut into, d at most; a third of d if not given. Parts are equally wide, so it
            may become a few less.

    Raises:
        MissingExtraError: faiss, which trains the codebooks, is not installed.
    """
    n, d = vectors.shape
    width = _PQ_WIDTH if codes_a_row is None else -(-d // min(codes_a_row, d))
    m = -(-d // width)
    parts = np.zeros((n, m * width), np.float32)
    parts[:, :d] = directions(vectors)
    if n <= CENTROIDS:
        # So few rows are their own centroids.
        codebooks = np.zeros((m, CENTROIDS, width), np.float32)
        codebooks[:, :n] = parts.reshape(n, m, width).transpose(1, 0, 2)
        codes = np.repeat(np.arange(n, dtype=np.uint8)[:, np.newaxis], m, axis=1)
    else:
        codes, codebooks = train_pq(parts, m)
    decoded = decode_pq(codes, codebooks, np.ones(n, np.float32), np.arange(n), d)
    return {"rows": codes, "codebooks": codebooks, **_lengths(vectors, decoded)}


def encode_rq(vectors: NDArray[np.float32], codes_a_row: int | None = None) -> Encoded:
    """Return the tensors of codec ``rq``: the sum of a centroid of each codebook is a row's direction; and its length.

    Args:
        vectors: ``(n, d)`` float32.
        codes_a_row: codebooks, each of 256 rows; a fifth of d, 32 at most, if not given.

    Raises:
        MissingExtraError: faiss, which trains the codebooks, is not installed.
    """
    n, d = vectors.shape
    m = min(max(1, d // 5), _RQ_BOOKS) if codes_a_row is None else codes_a_row
    unit = directions(vectors).astype(np.float32)
    if n <= CENTROIDS:
        codebooks = np.zeros((m, CENTROIDS, d), np.float32)
        codebooks[0, :n] = unit
        codes = np.zeros((n, m), np.uint8)
        codes[:, 0] = np.arange(n)
    else:
        codes, codebooks = train_rq(unit, m)
    decoded = decode_rq(codes, codebooks, np.ones(n, np.float32), np.arange(n))
    return {"rows": codes, "codebooks": codebooks, **_lengths(vectors, decoded)}


def _lengths(vectors: NDArray[np.float32], decoded: NDArray[np.float32]) -> Encoded:
    """Return what decoded directions are multiplied by so that each row has its length: a code and 256 levels.

    Level 0 is zero, for rows of zeros; the others are as many equal ratios from the shortest to the longest, so the
    error of a length is the same share of it everywhere: .2 % where the longest is three times the shortest.
    """
    before, after = (np.sqrt(np.square(each, dtype=np.float64).sum(axis=1)) for each in (vectors, decoded))
    factors = np.divide(before, after, out=np.zeros_like(before), where=after > 0)
    there = factors > 0
    levels = np.zeros(CENTROIDS, np.float32)
    codes = np.zeros(len(vectors), np.uint8)
    if there.any():
        low, high = np.log(factors[there].min()), np.log(factors[there].max())
        levels[1:] = np.exp(np.linspace(low, high, CENTROIDS - 1))
        share = (np.log(factors[there]) - low) / max(high - low, np.finfo(np.float64).tiny)
        codes[there] = 1 + np.rint((CENTROIDS - 2) * share).astype(np.uint8)
    return {"length_codes": codes, "length_levels": levels}


#: Codecs whose number of codes a row the user may choose: ``pq:50``.
_WITH_CODES = ("pq", "rq")

ENCODERS: Mapping[str, Callable[[NDArray[np.float32]], Encoded]] = MappingProxyType(
    {
        "float32": encode_float32,
        "float16": encode_float16,
        "int8": encode_int8,
        "int4": encode_int4,
        "pq": encode_pq,
        "rq": encode_rq,
    }
)


def encoder(text: str) -> tuple[str, Callable[[NDArray[np.float32]], Encoded]]:
    """Return the codec and the encoder that ``int8``, ``pq`` or ``pq:50`` (50 codes a row) mean.

    Raises:
        RequestError: there is no such codec, or no such number of codes.
    """
    name, colon, count = text.partition(":")
    if name not in ENCODERS:
        raise RequestError(f"expected a codec of {', '.join(ENCODERS)}, found {text!r}")
    if not colon:
        return name, ENCODERS[name]
    if name not in _WITH_CODES or not _COUNT.fullmatch(count):
        raise RequestError(f"expected a codec like int8, pq:50 or rq:20 (1 to 9999 codes a row), found {text!r}")
    encode = {"pq": encode_pq, "rq": encode_rq}[name]
    return name, partial(encode, codes_a_row=int(count))
