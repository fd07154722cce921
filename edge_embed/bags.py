"""Bags: several rows of a table that become one vector, asked for as torch's ``nn.EmbeddingBag`` is.

* A bag's rows are ids or, where the table has them, keys. Bags come as a list of lists, as an ``(b, k)`` array, or as
  one run of ids with the ``offsets`` at which each bag begins; one flat list is one bag.
* The row that pads is left out: it adds nothing and is not counted by a mean. So is a key that is unknown where the
  policy is ``zeros``. A bag of nothing is zeros.
* Weights multiply rows before they are added, so they go with ``sum`` alone, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.keys import Key

#: What a bag holds: one list is one bag, a list of lists or ``(b, k)`` are several.
Asked = Sequence[Any] | NDArray[np.integer]


class Bag(NamedTuple):
    """The bags that one table is asked for; ``offsets`` and ``weights`` as in ``nn.EmbeddingBag``."""

    ids: Asked
    offsets: Sequence[int] | NDArray[np.integer] | None = None
    weights: Sequence[Any] | NDArray[np.floating] | None = None
    include_last_offset: bool = False


class Runs(NamedTuple):
    """Checked bags: keys or ids ``(n,)``, one bag after the other; how many each has; a weight ``(n,)`` for each."""

    asked: list[Key] | NDArray[Any]
    counts: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    alone: bool


def runs_of(bag: Bag) -> Runs:
    """Check bags and lay them out one after the other.

    Raises:
        RequestError: ids, offsets and weights do not belong together.
    """
    weights: Any = bag.weights
    if bag.offsets is not None:
        asked = flat(bag.ids)
        counts = _counts_between(bag, len(asked))
        return Runs(asked, counts, _weights(weights, len(asked)), alone=False)
    if bag.include_last_offset:
        raise RequestError("expected offsets beside include_last_offset, found none")
    ids: Any = bag.ids
    if isinstance(ids, np.ndarray) and ids.ndim == 2:
        asked = flat(ids.reshape(-1))
        if weights is not None and np.shape(weights) != ids.shape:
            raise RequestError(f"expected weights of shape {ids.shape}, found {np.shape(weights)}")
        weights = None if weights is None else np.reshape(weights, -1)
        return Runs(asked, np.full(ids.shape[0], ids.shape[1], np.int64), _weights(weights, len(asked)), alone=False)
    if isinstance(ids, list | tuple) and ids and isinstance(ids[0], list | tuple | np.ndarray):
        parts = [flat(part) for part in ids]
        counts = np.array([len(part) for part in parts], np.int64)
        if weights is not None:
            weights = _laid_out(weights, counts)
        return Runs(_joined(parts), counts, _weights(weights, int(counts.sum())), alone=False)
    asked = flat(ids)
    return Runs(asked, np.array([len(asked)], np.int64), _weights(weights, len(asked)), alone=True)


def flat(ids: Any) -> list[Key] | NDArray[Any]:
    """Return one run of keys as a list, or one of ids as an array ``(n,)`` of whole numbers.

    Raises:
        RequestError: they are neither.
    """
    if isinstance(ids, list | tuple) and ids and isinstance(ids[0], str | bytes):
        if not all(isinstance(key, str | bytes) for key in ids):
            raise RequestError("expected keys alone or row ids alone, found both in one list")
        return list(ids)
    if isinstance(ids, str | bytes):
        raise RequestError(f"expected a list of keys or row ids, found the key {ids!r} alone")
    try:
        given = np.asarray(ids)
    except ValueError as error:
        raise RequestError("expected lists of row ids, or one list of them, found both") from error
    if given.ndim == 1 and given.dtype.kind in "US":
        if isinstance(ids, list | tuple):
            # numpy spelled out the ids that stand before the first key.
            raise RequestError("expected keys alone or row ids alone, found both in one list")
        keys: list[Key] = given.tolist()
        return keys
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise RequestError(f"expected row ids as a list of whole numbers, found {given.dtype} {given.shape}")
    return given if given.size else given.astype(np.int64)


def _counts_between(bag: Bag, n: int) -> NDArray[np.int64]:
    offsets = np.asarray(bag.offsets)
    if offsets.ndim != 1 or (offsets.size and offsets.dtype.kind not in "iu"):
        raise RequestError(f"expected offsets as a list of whole numbers, found {offsets.dtype} {offsets.shape}")
    ends = offsets.astype(np.int64)
    if not bag.include_last_offset:
        ends = np.append(ends, n)
    counts = np.diff(ends)
    if not len(ends) or ends[0] != 0 or ends[-1] != n or (counts < 0).any():
        raise RequestError(f"expected offsets that rise from 0 to the {n} ids, found {_shown(offsets)}")
    return counts


def _joined(parts: list[list[Key] | NDArray[Any]]) -> list[Key] | NDArray[Any]:
    filled = [part for part in parts if len(part)]
    if not filled:
        return np.empty(0, np.int64)
    arrays = [part for part in filled if isinstance(part, np.ndarray)]
    if not arrays:
        return [key for part in filled for key in part]
    if len(arrays) < len(filled):
        raise RequestError("expected keys alone or row ids alone, found both in one list")
    joined = np.concatenate(arrays)
    # int64 and uint64 meet in float64, which holds neither.
    return joined if joined.dtype.kind in "iu" else np.concatenate([part.astype(np.int64) for part in arrays])


def _laid_out(weights: Any, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    parts = [np.asarray(part, np.float64) for part in weights]
    if [part.shape for part in parts] != [(count,) for count in counts.tolist()]:
        raise RequestError(f"expected a weight for each id, in bags of {_shown(counts)}, found other numbers of them")
    return np.concatenate(parts)


def _weights(weights: Any, n: int) -> NDArray[np.float32] | None:
    if weights is None:
        return None
    try:
        found = np.asarray(weights, np.float32)
    except (ValueError, TypeError) as error:
        raise RequestError(f"expected weights as a list of numbers, found: {error}") from error
    if found.shape != (n,) or not np.isfinite(found).all():
        raise RequestError(f"expected {n} finite weights, one for each id, found an array of shape {found.shape}")
    return found


def _shown(values: NDArray[Any]) -> str:
    text = ", ".join(map(str, values[:6].tolist()))
    return f"[{text}{', ...' if len(values) > 6 else ''}]"


def error_bound(vectors: NDArray[np.float32], count: int) -> float:
    """Return how far two float32 sums of ``count`` of these rows may lie apart, whatever the order of additions.

    Each of the ``count`` additions rounds by 2**-24 of a partial sum that no number of which exceeds
    ``count * max|x|``; twice, since both sides round, and once more for the division of a mean (Higham, "Accuracy and
    Stability of Numerical Algorithms", 4.2).
    """
    largest = float(np.abs(vectors).max(initial=0))
    return 2.0**-23 * (count + 1) * count * largest
