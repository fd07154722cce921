"""Storing rows: one encoder per codec, each the inverse of its decoder in ``edge_embed.kernels.reference``.

An encoder goes through its matrix in blocks, and what it makes for each row is a spool, so neither has to fit into
memory. A matrix of one block gets arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.errors import RequestError
from edge_embed_bundle.manifest import CODEC_TENSORS, INT4_BLOCK
from edge_embed_export.codebooks import CENTROIDS, FITTED_BOOKS, TRAINING_ROWS, Fit, PqBook, RqBook, train_rotation
from edge_embed_export.exact import directions
from edge_embed_export.matrix import Matrix, Spool, blocks_of
from edge_embed_export.quantized import PqMatrix

#: Tensors by their names in SPEC.md.
Encoded = Mapping[str, Matrix]
Encoder = Callable[[Matrix], Encoded]


# A part of three dimensions a byte, and a byte for the length: a twelfth of float32.
_PQ_WIDTH = 3
# Each takes 256 rows of float32 on flash: 32 of them are as large as 8,192 rows were.
_RQ_BOOKS = 32
# What a block's largest number is divided by for its scale: 7 keeps it, more cuts it (8 is the lowest code).
_INT4_STEPS = (7.0, 7.5, 8.0, 8.5, 9.0)
# The same for the whole row of a plane: of hundreds of numbers the largest are further away from all others.
_PLANE_STEPS = (7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0)
# The code that a row's largest number gets. A coarser scale may meet a row's numbers better by luck: with the best of
# eight, 20,000 words of word2vec keep .9898 of their ten neighbours, with 127 alone .9891.
_INT8_STEPS = tuple(range(127, 119, -1))
# A rotation's numbers are multiples of 2**-12; what float32 has beyond that is left to the codebooks.
_ROTATION_BITS = 12
_FLOAT32_BITS = 24
# How far, as a share, a length may lie beyond levels that are kept.
_LENGTH_STEP = 0.01
_COUNT = re.compile(r"[1-9][0-9]{0,3}")


def encode_float32(vectors: Matrix) -> Encoded:
    """Return the tensors of codec ``float32`` for ``(n, d)`` vectors."""
    return {"rows": vectors}


def _by_blocks(encode: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]) -> Encoder:
    """Return an encoder of any matrix made of one that knows each row alone."""

    @wraps(encode)
    def encode_all(vectors: Matrix) -> Encoded:
        return collected(vectors, encode)

    return encode_all


def collected(vectors: Matrix, encode: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]) -> Encoded:
    """Return the tensors that ``encode`` makes of blocks of rows, one after the other."""
    spools: dict[str, Spool] = {}
    for block in blocks_of(vectors):
        tensors = encode(vectors[block])
        if len(tensors["rows"]) == len(vectors):
            return tensors
        for name, rows in tensors.items():
            if name not in spools:
                spools[name] = Spool(rows.dtype, rows.shape[1:])
            spools[name].append(rows)
    return spools


@_by_blocks
def encode_int8(vectors: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of codec ``int8``: codes ``(n, d)`` from -127 to 127 and scales ``(n,)`` float32.

    Of a few scales for each row the one with the smallest squared error is taken. Codes are made with the scale as it
    is stored, rounded to float32, so the decoder multiplies by exactly what the encoder divided by. A row of zeros has
    scale 0.
    """
    largest = np.abs(vectors).max(axis=1, initial=0)
    best_codes = np.zeros(vectors.shape, np.int8)
    best_scales = np.zeros(len(vectors), np.float32)
    best_errors = np.full(len(vectors), np.inf)
    # Below the smallest normal number a quotient would be coarse or infinite; such a row is zeros for any use.
    used = largest / np.float32(_INT8_STEPS[0]) >= np.finfo(np.float32).tiny
    for step in _INT8_STEPS:
        scales = largest / np.float32(step)
        divisors = np.where(used, scales, np.float32(1))[:, np.newaxis]
        codes = np.clip(np.rint(vectors / divisors), -127, 127)
        errors = np.square(codes * divisors - vectors, dtype=np.float64).sum(axis=1)
        better = used & (errors < best_errors)
        best_codes[better] = codes[better].astype(np.int8)
        best_scales[better] = scales[better]
        best_errors[better] = errors[better]
    return {"rows": best_codes, "scales": best_scales}


@_by_blocks
def encode_float16(vectors: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of codec ``float16``.

    Raises:
        RequestError: a number is too large for float16.
    """
    with np.errstate(over="ignore"):
        rows = vectors.astype(np.float16)
    _check_range(rows, vectors, "float16")
    return {"rows": rows}


@_by_blocks
def encode_int4(vectors: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of codec ``int4``: two codes a byte, from -8 to 7 and stored with 8 added, and float16 scales.

    Of a few scales for each 32 numbers the one with the smallest squared error is taken: cutting a block's largest
    number a little makes the steps of all others finer.

    Raises:
        RequestError: a number is too large for a float16 scale.
    """
    n, d = vectors.shape
    groups = -(-d // INT4_BLOCK)
    padded = np.zeros((n, groups * INT4_BLOCK), np.float32)
    padded[:, :d] = vectors
    codes, scales = _best_int4(padded.reshape(n, groups, INT4_BLOCK))
    _check_range(scales, vectors, "the scales of int4")
    codes = codes.reshape(n, -1)
    return {"rows": (codes[:, ::2] | codes[:, 1::2] << 4)[:, : -(-d // 2)], "scales": scales}


@_by_blocks
def encode_plane(vectors: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of a plane: two codes a byte, from -8 to 7 and stored with 8 added, and a scale a row.

    Of a few scales for each row the one with the smallest squared error is taken.
    """
    n, d = vectors.shape
    largest = np.abs(vectors).max(axis=1, initial=0)
    best_codes = np.zeros((n, d + d % 2), np.int8)
    best_scales = np.zeros(n, np.float32)
    best_errors = np.full(n, np.inf)
    used = largest / np.float32(_PLANE_STEPS[-1]) >= np.finfo(np.float32).tiny
    for step in _PLANE_STEPS:
        scales = largest / np.float32(step)
        divisors = np.where(used, scales, np.float32(1))[:, np.newaxis]
        codes = np.clip(np.rint(vectors / divisors), -8, 7)
        errors = np.square(codes * divisors - vectors, dtype=np.float64).sum(axis=1)
        better = used & (errors < best_errors)
        best_codes[better, :d] = codes[better].astype(np.int8)
        best_scales[better] = scales[better]
        best_errors[better] = errors[better]
    stored = (best_codes + 8).astype(np.uint8)
    return {"rows": stored[:, ::2] | stored[:, 1::2] << 4, "scales": best_scales}


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


def encode_pq(vectors: Matrix, codes_a_row: int | None = None) -> Encoded:
    """Return the tensors of codec ``pq``: a code for each part of a row's direction, and one for its length.

    Args:
        vectors: ``(n, d)`` float32.
        codes_a_row: parts that a row is cut into, d at most; a third of d if not given. Parts are equally wide, so it
            may become a few less.

    Raises:
        MissingExtraError: faiss, which trains the codebooks, is not installed.
    """
    if isinstance(vectors, PqMatrix):
        # It came as codes of this codec: they are the table, whatever number of them the user asked for.
        return vectors.tensors
    d = vectors.shape[1]
    m, width = _parts(d, codes_a_row)

    codes, codebooks = _pq_codes(vectors, lambda block: on_directions(block, m * width), m)
    stored = {"rows": codes, "codebooks": codebooks}
    return {**stored, **lengths_of("pq", stored, vectors, d)}


def encode_opq(vectors: Matrix, codes_a_row: int | None = None) -> Encoded:
    """Return the tensors of codec ``opq``: those of ``pq`` for rows that a learned rotation made ready.

    Rotation and codebooks are rounded, so that the decoder's sums are exact in float32 (SPEC.md).

    Args:
        vectors: ``(n, d)`` float32.
        codes_a_row: as for :func:`encode_pq`.

    Raises:
        MissingExtraError: faiss, which trains rotation and codebooks, is not installed.
    """
    n, d = vectors.shape
    m, width = _parts(d, codes_a_row)
    learned = np.eye(d, m * width, dtype=np.float32)
    if n > CENTROIDS:
        learned = train_rotation(directions(_sample(vectors)).astype(np.float32), m, m * width)
    rotation = _on_grid(learned, _ROTATION_BITS)
    codes, codebooks = _pq_codes(vectors, lambda block: on_directions(block, m * width, learned), m)
    # No sum of absolute products is larger (Cauchy and Schwarz); a tenth is left for what rounding adds.
    longest = np.sqrt(np.square(codebooks, dtype=np.float64).sum(axis=2).max(axis=1).sum())
    largest_sum = 1.1 * longest * np.linalg.norm(rotation.astype(np.float64), axis=1).max()
    codebooks = _on_grid(codebooks, _FLOAT32_BITS - _ROTATION_BITS - int(np.frexp(largest_sum)[1]))

    stored = {"rows": codes, "codebooks": codebooks, "rotation": rotation}
    return {**stored, **lengths_of("opq", stored, vectors, d)}


def on_directions(
    vectors: NDArray[np.float32], width: int, rotation: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return what codes of ``pq`` are chosen for, ``(n, width)``: directions, zeros behind them; of ``opq`` rotated."""
    if rotation is not None:
        turned: NDArray[np.float32] = (directions(vectors) @ rotation).astype(np.float32)
        return turned
    parts = np.zeros((len(vectors), width), np.float32)
    parts[:, : vectors.shape[1]] = directions(vectors)
    return parts


def _parts(dimensions: int, codes_a_row: int | None) -> tuple[int, int]:
    """Return how many parts a row is cut into, and how wide each is."""
    width = _PQ_WIDTH if codes_a_row is None else -(-dimensions // min(codes_a_row, dimensions))
    return -(-dimensions // width), width


def _pq_codes(
    vectors: Matrix, parts_of: Callable[[NDArray[np.float32]], NDArray[np.float32]], m: int
) -> tuple[Matrix, NDArray[np.float32]]:
    """Return the codes ``(n, m)`` of rows, and the codebooks ``(m, 256, s)`` that were trained on their parts."""
    n = len(vectors)
    if n <= CENTROIDS:
        # So few rows are their own centroids.
        parts = parts_of(vectors[:])
        width = parts.shape[1] // m
        codebooks = np.zeros((m, CENTROIDS, width), np.float32)
        codebooks[:, :n] = parts.reshape(n, m, width).transpose(1, 0, 2)
        return np.repeat(np.arange(n, dtype=np.uint8)[:, np.newaxis], m, axis=1), codebooks
    book = PqBook.trained(parts_of(_sample(vectors)), m)
    return collected(vectors, lambda block: {"rows": book.codes(parts_of(block))})["rows"], book.codebooks


def _on_grid(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return values as whole multiples of ``2**-bits``; no zero among them is negative."""
    rounded: NDArray[np.float32] = (np.ldexp(np.rint(np.ldexp(values, bits)), -bits) + 0.0).astype(np.float32)
    return rounded


def encode_rq(vectors: Matrix, codes_a_row: int | None = None) -> Encoded:
    """Return the tensors of codec ``rq``: the sum of a centroid of each codebook is a row's direction; and its length.

    Args:
        vectors: ``(n, d)`` float32.
        codes_a_row: codebooks, each of 256 rows; a fifth of d, 32 at most, if not given.

    Raises:
        RequestError: the codes would take more bytes than float32.
        MissingExtraError: faiss, which trains the codebooks, is not installed.
    """
    n, d = vectors.shape
    m = min(max(1, d // 5), _RQ_BOOKS) if codes_a_row is None else codes_a_row
    if m > 4 * d:
        raise RequestError(f"expected at most {4 * d} codes for a row, which is float32's size, found rq:{m}")
    if n <= CENTROIDS:
        codebooks = np.zeros((m, CENTROIDS, d), np.float32)
        codebooks[0, :n] = directions(vectors[:])
        # The first codebook holds the rows, the others a zero that adds nothing.
        codes: Matrix = np.pad(np.arange(n, dtype=np.uint8)[:, np.newaxis], ((0, 0), (0, m - 1)))
    else:
        book = RqBook.trained(directions(_sample(vectors)).astype(np.float32), m)
        fit = Fit(m, d) if m <= FITTED_BOOKS else None

        def encoded(block: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
            unit = directions(block).astype(np.float32)
            codes = book.codes(unit)
            if fit is not None:
                fit.add(unit, codes)
            return {"rows": codes}

        codes = collected(vectors, encoded)["rows"]
        codebooks = book.codebooks if fit is None else fit.codebooks()

    stored = {"rows": codes, "codebooks": codebooks}
    return {**stored, **lengths_of("rq", stored, vectors, d)}


def _sample(vectors: Matrix) -> NDArray[np.float32]:
    """Return rows to train codebooks on: all of them, or as many as centroids can use, from all over the table."""
    if len(vectors) <= TRAINING_ROWS:
        return vectors[:]
    chosen = np.random.default_rng(0).choice(len(vectors), TRAINING_ROWS, replace=False)
    return vectors[np.sort(chosen)]


def lengths_of(
    codec: str, stored: Encoded, vectors: Matrix, dimensions: int, levels: NDArray[np.float32] | None = None
) -> Mapping[str, NDArray[Any]]:
    """Return what decoded directions are multiplied by so that each row has its length: a code and 256 levels.

    Level 0 is zero, for rows of zeros; the others are as many equal ratios from the shortest to the longest, so the
    error of a length is the same share of it everywhere: .2 % where the longest is three times the shortest.

    Args:
        codec: ``pq``, ``opq`` or ``rq``.
        stored: its tensors but for lengths.
        vectors: ``(n, d)``, of which the lengths are.
        dimensions: d.
        levels: to be kept, if all lengths lie within a hundredth of theirs.
    """
    factors = np.zeros(len(vectors))
    levels_of_one = np.ones(CENTROIDS, np.float32)
    books = {name: tensor[:] for name, tensor in stored.items() if name != "rows"}
    for block in blocks_of(vectors):
        codes = stored["rows"][block]
        some = {**books, "rows": codes, "length_codes": np.ones(len(codes), np.uint8), "length_levels": levels_of_one}
        decoded = kernels.open_rows(codec, some, dimensions).decode(np.arange(len(codes)))
        before, after = (np.sqrt(np.square(each, dtype=np.float64).sum(axis=1)) for each in (vectors[block], decoded))
        np.divide(before, after, out=factors[block], where=after > 0)
    there = factors > 0
    length_codes = np.zeros(len(vectors), np.uint8)
    if not there.any():
        return {"length_codes": length_codes, "length_levels": np.zeros(CENTROIDS, np.float32)}
    logs = np.log(factors[there])
    low, high = logs.min(), logs.max()
    kept = None if levels is None else _ends_of(levels)
    if levels is not None and kept is not None and kept[0] - _LENGTH_STEP <= low and high <= kept[1] + _LENGTH_STEP:
        low, high = kept
    else:
        levels = np.zeros(CENTROIDS, np.float32)
        levels[1:] = np.exp(np.linspace(low, high, CENTROIDS - 1))
    share = (logs - low) / max(high - low, np.finfo(np.float64).tiny)
    length_codes[there] = 1 + np.clip(np.rint((CENTROIDS - 2) * share), 0, CENTROIDS - 2).astype(np.uint8)
    return {"length_codes": length_codes, "length_levels": levels}


def _ends_of(levels: NDArray[np.float32]) -> tuple[float, float] | None:
    """Return the logarithms of the shortest and the longest level, if there are any."""
    shortest, longest = levels[[1, -1]].astype(np.float64).tolist()
    return (math.log(shortest), math.log(longest)) if 0 < shortest < longest else None


def decoded_blocks(codec: str, tensors: Encoded, dimensions: int) -> Iterator[NDArray[np.float32]]:
    """Yield the decoded rows of a codec's tensors, block by block, by the decoder that boards run."""
    by_row = {name for name, (_, axes) in CODEC_TENSORS[codec].items() if axes[0] == "n"}
    for block in blocks_of(tensors["rows"]):
        some = {name: tensor[block] if name in by_row else tensor[:] for name, tensor in tensors.items()}
        yield kernels.open_rows(codec, some, dimensions).decode(np.arange(block.stop - block.start))


#: Codecs whose number of codes a row the user may choose: ``pq:50``.
_WITH_CODES = {"pq": encode_pq, "opq": encode_opq, "rq": encode_rq}

ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        "float32": encode_float32,
        "float16": encode_float16,
        "int8": encode_int8,
        "int4": encode_int4,
        "pq": encode_pq,
        "opq": encode_opq,
        "rq": encode_rq,
    }
)


def encoder(text: str) -> tuple[str, Encoder]:
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
    return name, partial(_WITH_CODES[name], codes_a_row=int(count))
