"""Codes that stay as they were where they still fit, so that a delta has little to say.

* Scales, codebooks, rotation and lengths are the parent's as long as the new vectors fit into them.
* With a ``drift`` a row keeps codes, or steps of codes, as long as that costs it at most so much of its cosine, beyond
  what the codec costs. The cosine is that with the true new vector, whatever the parent lost: a chain does not drift.
* Other codecs have nothing to keep: the same vector gets the same codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_export.codebooks import PqBook
from edge_embed_export.codecs import Encoded, Encoder, collected, encode_int8, lengths_of, on_directions
from edge_embed_export.exact import directions
from edge_embed_export.matrix import Matrix
from edge_embed_export.parents import Before

# A scale that no longer fits grows by a sixteenth of its octave, which is one byte in a delta, until it does.
_GROWTH = 1 << 19
# The largest number may lie one step beyond the last code: it loses a step, where all others would get coarser.
_LARGEST_STEPS = np.float32(128)
# A row that shrank to this share of its scale gets a scale of its own.
_SHRUNK = 0.75
# What parts of pq may cost always: of two centroids that are about as near, the old one stays. Those of opq were chosen
# before its books were rounded.
_TIE = 1e-4
# Steps of codes that a row with a drift may take, coarsest first.
_STEPS = (32, 24, 16, 12, 8, 6, 5, 4, 3, 2)


def encode_as_before(before: Before, vectors: Matrix, encode: Encoder) -> Encoded:
    """Return the tensors of a codec for ``(n, d)`` vectors, as like the parent's as they may be.

    Args:
        before: how the parent stored them.
        vectors: the new ones.
        encode: stores vectors that nothing is known of.
    """
    sticky = {"int8": _int8, "pq": _pq, "opq": _pq}.get(before.codec)
    if sticky is None or not (before.places >= 0).any():
        return encode(vectors)
    return sticky(before, vectors)


def _blocks(before: Before, vectors: Matrix, encode: Callable[..., dict[str, NDArray[Any]]]) -> Encoded:
    """Return what ``encode`` makes of each block and of the parent's rows of it."""
    at = 0

    def encoded(block: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        nonlocal at
        places = before.places[at : at + len(block)]
        at += len(block)
        return encode(block, places)

    return collected(vectors, encoded)


def _int8(before: Before, vectors: Matrix) -> Encoded:
    def encode(block: NDArray[np.float32], places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        fresh = encode_int8(block)
        codes, scales = fresh["rows"][:], fresh["scales"][:]
        old_scales = before.tensors["scales"][np.maximum(places, 0)]
        largest = np.abs(block).max(axis=1, initial=0)
        known = (places >= 0) & (old_scales > 0) & (scales > 0) & (largest >= _SHRUNK * 127 * old_scales)
        rows = np.flatnonzero(known)
        kept = _grown(old_scales[rows], largest[rows])
        near = kept <= 2 * scales[rows]
        rows, kept = rows[near], kept[near]
        scales[rows] = kept
        codes[rows] = np.clip(np.rint(block[rows] / kept[:, np.newaxis]), -127, 127).astype(np.int8)
        if before.drift:
            _keep_int8(before, block, places, codes, scales)
        return {"rows": codes, "scales": scales}

    return _blocks(before, vectors, encode)


def _grown(scales: NDArray[np.float32], largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales that hold rows of such largest numbers: the old ones, or the next that do."""
    grown = scales.copy()
    while True:
        small = largest > _LARGEST_STEPS * grown
        # What is twice too small is no scale to keep; the caller sees that.
        small &= grown < 4 * scales
        if not small.any():
            return grown
        grown[small] = (grown[small].view(np.uint32) + np.uint32(_GROWTH)).view(np.float32)


def _keep_int8(
    before: Before,
    block: NDArray[np.float32],
    places: NDArray[np.int64],
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
) -> None:
    """Put rows back to where they were, or to whole steps from there, as far as their drift allows."""
    rows = np.flatnonzero(places >= 0)
    true, old = block[rows], before.tensors["rows"][places[rows]].astype(np.int32)
    old_scales = before.tensors["scales"][places[rows]]
    floor = _cosines(codes[rows], true) - before.drift
    stays = (_cosines(old, true) >= floor) & (np.abs(_length_ratio(old, old_scales, true) - 1) <= before.drift**0.5)
    codes[rows[stays]], scales[rows[stays]] = old[stays].astype(np.int8), old_scales[stays]
    left = np.flatnonzero(~stays)
    for step in _STEPS:
        exact = true[left] / np.where(scales[rows[left]] > 0, scales[rows[left]], 1)[:, np.newaxis]
        stepped = np.clip(old[left] + step * np.rint((exact - old[left]) / step), -127, 127)
        fits = _cosines(stepped, true[left]) >= floor[left]
        codes[rows[left[fits]]] = stepped[fits].astype(np.int8)
        left = left[~fits]


def _cosines(codes: NDArray[Any], true: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (directions(codes.astype(np.float32)) * directions(true)).sum(axis=1)
    return found


def _length_ratio(codes: NDArray[Any], scales: NDArray[np.float32], true: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how long decoded rows are beside their true vectors; 1 for zeros."""
    wide = codes.astype(np.float64) * scales[:, np.newaxis].astype(np.float64)
    ours, theirs = (np.sqrt(np.square(each, dtype=np.float64).sum(axis=1)) for each in (wide, true))
    ratio: NDArray[np.float64] = np.divide(ours, theirs, out=np.ones(len(ours)), where=theirs > 0)
    return ratio


def _pq(before: Before, vectors: Matrix) -> Encoded:
    codebooks = before.tensors["codebooks"].copy()
    m, _, width = codebooks.shape
    book = PqBook.kept(codebooks)
    d = vectors.shape[1]
    rotation = before.tensors.get("rotation")

    def parts_of(block: NDArray[np.float32]) -> NDArray[np.float32]:
        return on_directions(block, m * width, rotation)

    def encode(block: NDArray[np.float32], places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        parts = parts_of(block)
        codes = book.codes(parts)
        rows = np.flatnonzero(places >= 0)
        if len(rows):
            codes[rows] = _keep_pq(
                parts[rows].reshape(-1, m, width),
                codebooks,
                codes[rows],
                before.tensors["rows"][places[rows]],
                max(before.drift, _TIE),
            )
        return {"rows": codes}

    codes = _blocks(before, vectors, encode)["rows"]
    stored = {"rows": codes, "codebooks": codebooks, **({} if rotation is None else {"rotation": rotation.copy()})}
    lengths = lengths_of(before.codec, stored, vectors, d, before.tensors["length_levels"].copy())
    return {**stored, **lengths}


def _keep_pq(
    parts: NDArray[np.float32],
    codebooks: NDArray[np.float32],
    codes: NDArray[np.uint8],
    old: NDArray[np.uint8],
    drift: float,
) -> NDArray[np.uint8]:
    """Return codes ``(n, m)`` of which as many are old ones as a row's drift allows, those first that cost least.

    A row's product with its true direction and the square of its length are sums over its parts, so the cosine is known
    for each number of parts that stay.
    """
    books = np.arange(codebooks.shape[0])
    ours, theirs = codebooks[books, codes].astype(np.float64), codebooks[books, old].astype(np.float64)
    costs = np.square(theirs - parts).sum(axis=2) - np.square(ours - parts).sum(axis=2)
    order = np.argsort(costs, axis=1, kind="stable")

    def with_old(new: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum ``(n, m + 1)`` over parts of which none, one, two, ... are old."""
        steps = np.take_along_axis(before - new, order, axis=1)
        found: NDArray[np.float64] = np.cumsum(np.column_stack([new.sum(axis=1), steps]), axis=1)
        return found

    products = with_old((ours * parts).sum(axis=2), (theirs * parts).sum(axis=2))
    squares = with_old(np.square(ours).sum(axis=2), np.square(theirs).sum(axis=2))
    cosines = np.divide(products, np.sqrt(np.maximum(squares, 0)), out=np.zeros_like(products), where=squares > 0)
    # The nearest centroids are not always those of the best cosine.
    fits = cosines >= cosines.max(axis=1, keepdims=True) - drift
    stay = fits.shape[1] - 1 - fits[:, ::-1].argmax(axis=1)
    kept = np.zeros(codes.shape, bool)
    np.put_along_axis(kept, order, np.arange(codes.shape[1]) < stay[:, np.newaxis], axis=1)
    found: NDArray[np.uint8] = np.where(kept, old, codes)
    return found
