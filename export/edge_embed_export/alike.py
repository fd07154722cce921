"""Runs of bytes that an old and a new file share, wherever they stand: what a delta of files needs not send.

Words of the old file at multiples of eight bytes are looked for at every place of the new one, as rsync does it with
blocks (Tridgell and Mackerras, "The rsync algorithm", 1996), and runs grow from them in both directions. A word that
stands in the old file several times says nothing of where a run comes from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_embed_bundle.delta import RUNS_CEILING

#: Where a run begins in the new bytes and in the old ones, and how many it has.
Run = tuple[int, int, int]

_WORD = 8
# A run costs some bytes, so it has to bring more.
_SHORTEST_RUN = 12
_FIRST_STEP = 64
_NOWHERE, _ANYWHERE = -1, -2


def runs_alike(before: NDArray[np.uint8], made: NDArray[np.uint8], first: int = 0) -> list[Run]:
    """Return runs that stand in both, ascending and apart.

    Args:
        before: ``(n,)`` old bytes.
        made: ``(m,)`` new ones.
        first: where ``made`` is expected to begin in ``before``.
    """
    places = _old_places(before, made)
    hits = np.flatnonzero(places != _NOWHERE)
    runs: list[Run] = []
    at, shift = 0, first
    while len(runs) < RUNS_CEILING:
        found = np.searchsorted(hits, at)
        if found == len(hits):
            break
        new = int(hits[found])
        # Where the old file goes on as it did, that is the likelier place of two that are alike.
        likely = (new + shift, int(places[new])) if places[new] != _ANYWHERE else (new + shift,)
        run = max((_run(before, made, new, old, at) for old in likely), key=lambda run: run[2])
        if run[2] < _SHORTEST_RUN:
            at = new + 1
            continue
        runs.append(run)
        at, shift = run[0] + run[2], run[1] - run[0]
    return runs


def _old_places(before: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return, of each place of the new bytes, where the old ones have its word, or that there is none, or many."""
    places = np.full(max(0, len(made) - _WORD + 1), _NOWHERE)
    in_words = before[: len(before) // _WORD * _WORD].view("<u8")
    words, first_at, counts = np.unique(in_words, return_index=True, return_counts=True)
    old_places = np.where(counts == 1, first_at * _WORD, _ANYWHERE)
    for phase in range(_WORD if len(words) else 0):
        ours = made[phase : phase + (len(made) - phase) // _WORD * _WORD].copy().view("<u8")
        found = np.minimum(np.searchsorted(words, ours), len(words) - 1)
        places[phase::_WORD] = np.where(words[found] == ours, old_places[found], _NOWHERE)
    return places


def _run(before: NDArray[np.uint8], made: NDArray[np.uint8], new: int, old: int, floor: int) -> Run:
    """Return the run around two places, not before ``floor`` in the new bytes."""
    if not 0 <= old < len(before) or before[old] != made[new]:
        return new, max(old, 0), 0
    most = min(len(before) - old, len(made) - new)
    count, step = 0, _FIRST_STEP
    while count < most:
        end = min(most, count + step)
        other = np.flatnonzero(before[old + count : old + end] != made[new + count : new + end])
        if len(other):
            count += int(other[0])
            break
        count, step = end, 4 * step
    while new > floor and old > 0 and before[old - 1] == made[new - 1]:
        new, old, count = new - 1, old - 1, count + 1
    return new, old, count
