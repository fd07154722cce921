"""Which generation serves: the rules, as values. No disk, no clock.

A generation is named by its bundle's identity (sha256 of the manifest, hex). At most one is active, one is previous,
one is on trial:

    install:   begin_trial -> spend_try -> (probe) -> confirm
                                 ^    |        |
                                 |    |        +--> refuse      the probe's answer was no
                                 +----+  the probe crashed, or the power went: a try is gone, the next one is spent
               no tries left -> refuse
    rollback:  active <-> previous
    rot:       of the active one: as a rollback; of the previous one: it is refused; mended: it is forgiven, if it was
               refused for its rot and for nothing else

 * A try is spent, and durable, *before* the trial is loaded: whatever kills the board counts as a failed try.
 * The trial never serves before it is confirmed; the active one goes on.
 * A refused generation is not tried again unless its operator says so.
 * A trial that does not fit beside what serves may say so: until it ends, who serves lets go of the active generation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from edge_embed_bundle.errors import StateError, StoreError

TRIES = 3

#: The slot has room for so many refused generations; the oldest is forgotten first.
REFUSED_CEILING = 8


class State(NamedTuple):
    """One record of the store. ``sequence`` grows by one with every change."""

    sequence: int = 0
    active: str | None = None
    previous: str | None = None
    trial: str | None = None
    tries_left: int = 0
    refused: tuple[str, ...] = ()
    #: Memory that the trial needs and that was not free: who serves lets go until it ends. 0: the trial fits beside.
    needs_bytes: int = 0
    #: Those of the refused that were put away for their rot alone.
    rotten: frozenset[str] = frozenset()

    def begin_trial(self, generation: str, *, needs_bytes: int = 0) -> State:
        """Put a generation on trial. A refused one is forgiven: who calls has decided to try it again."""
        if self.trial is not None:
            raise StateError(f"expected no generation on trial, found {self.trial[:12]}")
        refused = tuple(other for other in self.refused if other != generation)
        return self._next(trial=generation, tries_left=TRIES, refused=refused, needs_bytes=needs_bytes)

    def spend_try(self) -> State:
        """Take one try; to be durable before the trial is loaded."""
        if self.trial is None or self.tries_left == 0:
            raise StateError("expected a trial with tries left, found none")
        return self._next(tries_left=self.tries_left - 1)

    def confirm(self) -> State:
        """Let the trial serve; the active generation becomes the previous one."""
        if self.trial is None:
            raise StateError("expected a generation on trial, found none")
        previous = self.previous if self.trial == self.active else self.active
        return self._next(active=self.trial, previous=previous, trial=None, tries_left=0, needs_bytes=0)

    def refuse(self) -> State:
        """End the trial with a no and remember it."""
        if self.trial is None:
            raise StateError("expected a generation on trial, found none")
        return self._next(trial=None, tries_left=0, refused=self._refused_with(self.trial), needs_bytes=0)

    def roll_back(self) -> State:
        """Let the previous generation serve; the one that was left is refused, and kept as the previous one."""
        if self.previous is None or self.active is None:
            raise StoreError("expected a previous generation to go back to, found none; install a bundle first")
        refused = tuple(other for other in self._refused_with(self.active) if other != self.previous)
        return self._next(active=self.previous, previous=self.active, refused=refused)

    def refuse_previous(self) -> State:
        """Remember that the previous generation is not to be gone back to."""
        if self.previous is None:
            raise StateError("expected a previous generation, found none")
        return self._next(refused=self._refused_with(self.previous))

    def put_away(self, generation: str) -> State:
        """Leave what rotted: the active generation, for the previous one, or the previous one where it stands."""
        after = self.roll_back() if generation == self.active else self.refuse_previous()
        return after._replace(rotten=after.rotten | {generation})

    def forgive(self, generation: str) -> State:
        """Forget that a generation was put away: what rotted is mended."""
        return self._next(refused=tuple(other for other in self.refused if other != generation))

    @property
    def kept(self) -> frozenset[str]:
        """The generations that must stay on flash."""
        return frozenset(name for name in (self.active, self.previous, self.trial) if name is not None)

    def _refused_with(self, generation: str) -> tuple[str, ...]:
        return (*(other for other in self.refused if other != generation), generation)[-REFUSED_CEILING:]

    def _next(self, **changes: Any) -> State:
        after = self._replace(sequence=self.sequence + 1, **changes)
        return after._replace(rotten=after.rotten & set(after.refused))
