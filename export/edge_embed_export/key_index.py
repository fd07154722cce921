"""Building the key index: a perfect hash in the manner of PTHash, all buckets of one size at a time.

A key's hash picks a bucket; each bucket looks for a pilot that sends all its keys to free slots; the largest buckets
choose first. In each round every bucket of the size at hand tries its next pilot, and of those that meet in a slot
one wins. With one slot in 33 left free the smallest buckets find a place within some hundred rounds.

Source: Pibiri and Trani, "PTHash: Revisiting FCH Minimal Perfect Hashing", SIGIR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.kernels import EMPTY_ROW, hash_keys
from edge_embed.kernels.reference import buckets_of, slots_of
from edge_embed_export.matrix import BLOCK_ROWS

KEYS_PER_BUCKET = 4
LOAD = 0.97
_PILOT_CEILING = 2**16
_SEEDS = 16


@dataclass(frozen=True, eq=False)
class BuiltIndex:
    """``pilots`` ``(b,)`` uint16, ``slots`` ``(m, 2)`` uint32 of fingerprint and row, and the seed of the hash."""

    pilots: NDArray[np.uint16]
    slots: NDArray[np.uint32]
    seed: int


def build_index(keys: Sequence[bytes]) -> BuiltIndex:
    """Return an index that finds row ``i`` for ``keys[i]``.

    Raises:
        RequestError: a key stands twice.
    """
    for seed in range(_SEEDS):
        hashes = hashes_of(keys, seed)
        twice = repeated_rows(keys, hashes)
        if len(twice):
            raise RequestError(f"expected keys that differ, found {keys[int(twice[0])]!r} twice")
        built = _try_seed(hashes, seed)
        if built is not None:
            return built
    raise RequestError(f"expected a key index from one of {_SEEDS} seeds, found none for {len(keys)} keys")


def hashes_of(keys: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """Return the hash ``(n,)`` of each key; they are taken out of their sequence block by block."""
    blocks = (keys[start : start + BLOCK_ROWS] for start in range(0, len(keys), BLOCK_ROWS))
    return np.concatenate([np.empty(0, np.uint64), *(hash_keys(block, seed) for block in blocks)])


def repeated_rows(keys: Sequence[bytes], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the rows, ascending, whose key stands in a row before."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    alike = np.flatnonzero(ordered[1:] == ordered[:-1])
    seen: set[bytes] = set()
    repeated = []
    # Rows of one hash stand together, and in their order; two keys may share it.
    for row in np.unique(np.concatenate([order[alike], order[alike + 1]])).tolist():
        if keys[row] in seen:
            repeated.append(row)
        seen.add(keys[row])
    return np.array(repeated, np.int64)


def _try_seed(hashes: NDArray[np.uint64], seed: int) -> BuiltIndex | None:
    ordered = np.sort(hashes)
    if (ordered[1:] == ordered[:-1]).any():
        return None  # two keys with one hash: no pilot parts them, another seed does
    slot_count = int(np.ceil(len(hashes) / LOAD)) + 1
    bucket_count = len(hashes) // KEYS_PER_BUCKET + 1
    buckets = buckets_of(hashes, bucket_count)
    order = np.argsort(buckets, kind="stable")
    sizes = np.bincount(buckets, minlength=bucket_count)
    starts = np.cumsum(sizes) - sizes
    pilots = np.zeros(bucket_count, np.uint16)
    taken = np.zeros(slot_count, bool)
    for size in range(int(sizes.max(initial=0)), 0, -1):
        members = np.flatnonzero(sizes == size)
        if len(members) and not _place(hashes, order, starts, members, size, pilots, taken):
            return None
    slots = np.zeros((slot_count, 2), np.uint32)
    slots[:, 1] = EMPTY_ROW
    places = slots_of(hashes, pilots[buckets].astype(np.uint64), slot_count)
    slots[places, 0] = (hashes >> np.uint64(32)).astype(np.uint32)
    slots[places, 1] = np.arange(len(hashes), dtype=np.uint32)
    return BuiltIndex(pilots, slots, seed)


def _place(
    hashes: NDArray[np.uint64],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    members: NDArray[np.int64],
    size: int,
    pilots: NDArray[np.uint16],
    taken: NDArray[np.bool_],
) -> bool:
    """Find a pilot for every bucket in ``members``, all of ``size`` keys; mark their slots as taken."""
    claims = np.full(len(taken), -1, np.int64)
    keys = hashes[order[starts[members][:, np.newaxis] + np.arange(size)]]
    for pilot in range(_PILOT_CEILING):
        places = slots_of(keys, np.array([pilot], np.uint64), len(taken))
        candidates = np.flatnonzero(~taken[places].any(axis=1))
        if size > 1:
            # Of those that fit, which are few when most slots are taken: whether their keys want different ones.
            ordered = np.sort(places[candidates], axis=1)
            candidates = candidates[(ordered[:, 1:] != ordered[:, :-1]).all(axis=1)]
        if len(candidates):
            wanted = places[candidates]
            claims[wanted] = candidates[:, np.newaxis]
            won = (claims[wanted] == candidates[:, np.newaxis]).all(axis=1)
            winners = candidates[won]
            pilots[members[winners]] = pilot
            taken[places[winners]] = True
            left = np.ones(len(members), bool)
            left[winners] = False
            members, keys = members[left], keys[left]
        if not len(members):
            return True
    return False
