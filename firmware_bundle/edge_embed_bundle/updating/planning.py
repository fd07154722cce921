"""Which release this device takes, and what it has to fetch for it: rules over values. No disk, no clock.

* The newest release that is meant for this device is taken: its board, a runtime that is new enough, its share.
* What a device has it keeps, though its share shrinks to nothing; only a halted release is left for an older one.
* A release that this board refused is never tried again unless its operator says so; the next older one is looked at.
* Under the policy ``refuse`` a release whose vectors cannot be compared with those that serve is passed over.
* Every release that was passed over is told with the reason.
* A delta is taken where a bundle is at hand from which it starts, and where much less has to be fetched for it than of
  the release's files, less what is at hand of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edge_embed_bundle.manifest import FEATURES
from edge_embed_bundle.room import PROCESS_BYTES
from edge_embed_bundle.updating.releases import Channel, Delta, File, Release, changed_spaces

NOTHING_NEW = "nothing"
FULL = "full"
DELTA = "delta"

#: A delta costs work and room beside its bytes, so it has to be smaller than so many of a hundred bytes of the files.
DELTA_PERCENT = 60

REFUSE = "refuse"
ALLOW = "allow"


@dataclass(frozen=True)
class Device:
    """What a plan must know of the device that asks."""

    id: str
    runtime: str
    board: str = ""
    active: str | None = None
    #: The space of each model that serves, by the model's name.
    spaces: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    new_space: str = REFUSE
    features: frozenset[str] = FEATURES
    #: Memory that is free now; None where the system does not tell.
    free_memory_bytes: int | None = None
    #: Whether those who serve let go where a trial lacks memory.
    drains: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done: nothing, to fetch the files of a release (``full``), or to make them by a ``delta``."""

    kind: str
    release: Release | None = None
    passed_over: tuple[str, ...] = ()
    delta: Delta | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """What has to be on this flash before the release can be installed."""
        if self.release is None or self.kind == NOTHING_NEW:
            return ()
        return self.release.files if self.delta is None else (self.delta.file, *self.release.files)


def plan(channel: Channel, device: Device) -> Plan:
    """Return what a device is to do about a channel."""
    passed_over: list[str] = []
    for release in channel.releases:
        if release.id == device.active and not release.halted:
            return Plan(NOTHING_NEW, release, tuple(passed_over))
        reason = why_not(release, device)
        if not reason:
            return Plan(FULL, release, tuple(passed_over))
        passed_over.append(f"{release}: {reason}")
    return Plan(NOTHING_NEW, None, tuple(passed_over))


def by_delta(full: Plan, missing_bytes: int, delta_bytes: Mapping[str, int]) -> Plan:
    """Return the plan by the delta that is shortest from here; the same plan where none is short enough.

    Args:
        full: the plan to fetch all files of a release.
        missing_bytes: what of these files is not on this flash.
        delta_bytes: for each bundle that is, what of the delta from it is not, by the bundle's identity.
    """
    deltas = () if full.release is None else full.release.deltas
    known = [delta for delta in deltas if delta.parent in delta_bytes]
    best = min(known, key=lambda delta: delta_bytes[delta.parent], default=None)
    if best is None or not is_short(delta_bytes[best.parent], missing_bytes):
        return full
    return replace(full, kind=DELTA, delta=best)


def by_files(planned: Plan, reason: str) -> Plan:
    """Return the plan without its delta, which was found to lead nowhere."""
    return replace(planned, kind=FULL, delta=None, passed_over=(*planned.passed_over, reason))


def is_short(delta_bytes: int, full_bytes: int) -> bool:
    """Return whether a delta is worth its way."""
    return delta_bytes * 100 < full_bytes * DELTA_PERCENT


def why_not(release: Release, device: Device) -> str:
    """Return why a device does not take a release; nothing if it does."""
    unknown = sorted(set(release.features) - device.features)
    changed = changed_spaces(device.spaces, release.spaces)
    if release.halted:
        return "halted by its publisher"
    if release.boards and device.board not in release.boards:
        return f"for {', '.join(release.boards)}, and this board is {device.board or 'not named'}"
    if _numbers(device.runtime) < _numbers(release.minimum_runtime):
        return f"needs edge-embed {release.minimum_runtime}, and this is {device.runtime}"
    if unknown:
        return f"needs a reader that knows {', '.join(unknown)}"
    needed_bytes = release.memory_private_bytes and release.memory_private_bytes + PROCESS_BYTES
    if device.free_memory_bytes is not None and needed_bytes > device.free_memory_bytes and not device.drains:
        # Not how many: a reason that changes from poll to poll would be written to the flash each time.
        return f"needs {needed_bytes} bytes of memory for its trial, and fewer are free; --drain makes room for it"
    if not release.takes(device.id):
        return f"rolled out to {release.percent} percent, and this device is not among them"
    if release.id in device.refused:
        return "refused by this board before; --retry tries it again"
    if changed and device.new_space == REFUSE:
        reason = f" ({release.new_space})" if release.new_space else ""
        return f"another space for {', '.join(changed)}{reason}; --new-space allow takes it"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.replace("-", "+").split("+")[0].split("."))
