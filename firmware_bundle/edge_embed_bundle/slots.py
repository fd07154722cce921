"""Two 512-byte slots, one record in force: how the state changes without ever being lost.

 * ``slot.0`` and ``slot.1`` are files of one flash sector each; in force is the valid record with the higher sequence.
 * Only the slot that is *not* in force is ever written. A power cut while it is written leaves the other.
 * A record is valid if its magic and its sha256 are right; a torn one is neither.
 * Both files exist from the creation of the store and are never renamed, so a reader may keep them mapped and see
   a change without a system call.

Layout, little-endian: magic (8), sequence (8), active, previous, trial (32 each; zeros: none), tries left (1),
refused count (1), which of these for their rot alone (1, a bit each), zeros (5), memory that the trial lacks (8),
refused (8 x 32), zeros to 480, sha256 of bytes 0 to 480.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_embed_bundle.digests import small_sha256
from edge_embed_bundle.errors import StateError
from edge_embed_bundle.state import REFUSED_CEILING, TRIES, State

if TYPE_CHECKING:
    from pathlib import Path

    from edge_embed_bundle.fsops import FsOps

SLOT_BYTES = 512
SLOT_NAMES = ("slot.0", "slot.1")

_MAGIC = b"EESLOT01"
_HEAD = struct.Struct("<8sQ32s32s32sBBB5xQ")
_REFUSED_AT = 128
_DIGEST_AT = 480
_NONE = bytes(32)
# No store lives to change so often; one more would not fit into its eight bytes some day.
_SEQUENCE_CEILING = 2**63


def is_store(folder: Path | str) -> bool:
    """Return whether a folder is a store rather than a bundle."""
    return any(os.path.lexists(f"{folder}/{name}") for name in SLOT_NAMES)


def generation_folder(store: Path | str, generation: str) -> str:
    """Return where a generation's bundle stands in a store."""
    return f"{store}/generations/{generation}"


def pack(state: State) -> bytes:
    """Return the 512 bytes of a slot."""
    head = _HEAD.pack(
        _MAGIC,
        state.sequence,
        *(_NONE if name is None else bytes.fromhex(name) for name in (state.active, state.previous, state.trial)),
        state.tries_left,
        len(state.refused),
        sum(1 << i for i, name in enumerate(state.refused) if name in state.rotten),
        state.needs_bytes,
    )
    refused = b"".join(bytes.fromhex(name) for name in state.refused)
    body = (head + refused).ljust(_DIGEST_AT, b"\0")
    return body + small_sha256(body)


def unpack(data: bytes) -> State | None:
    """Return the record of a slot, or None if it is not a whole one."""
    if len(data) != SLOT_BYTES or small_sha256(data[:_DIGEST_AT]) != data[_DIGEST_AT:]:
        return None
    magic, sequence, active, previous, trial, tries_left, count, bits, needs_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC or count > REFUSED_CEILING or tries_left > TRIES or sequence >= _SEQUENCE_CEILING:
        return None
    active, previous, trial = (None if name == _NONE else name.hex() for name in (active, previous, trial))
    refused = tuple(data[_REFUSED_AT + 32 * i : _REFUSED_AT + 32 * (i + 1)].hex() for i in range(count))
    rotten = frozenset(name for i, name in enumerate(refused) if bits >> i & 1)
    return State(sequence, active, previous, trial, tries_left, refused, needs_bytes, rotten)


class Slots:
    """The two slot files of a store."""

    def __init__(self, folder: Path) -> None:
        self._paths = tuple(folder / name for name in SLOT_NAMES)

    def read(self) -> State:
        """Return the record in force.

        Raises:
            StateError: no slot holds a valid record.
        """
        return self._in_force()[1]

    def create(self, fs: FsOps) -> None:
        """Create both slots with the first record; the folder is synced by the caller."""
        for path in self._paths:
            self._create_slot(path, State(), fs)

    def write(self, state: State, fs: FsOps) -> None:
        """Make ``state`` the record in force; durable on return."""
        in_force, _ = self._in_force()
        path = self._paths[1 - in_force]
        if len(_read(path)) < SLOT_BYTES:
            self._create_slot(path, State(), fs)
            fs.sync_folder(path.parent)
        with fs.overwrite(path) as file:
            file.write(pack(state))
            file.sync()

    def _create_slot(self, path: Path, state: State, fs: FsOps) -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(path)
        with fs.create(path, mode=0o644) as file:
            file.write(pack(state))
            file.sync()

    def _in_force(self) -> tuple[int, State]:
        return _in_force([_read(path) for path in self._paths], self._paths[0].parent)


class SlotWatch:
    """The slots of a store as a reader sees them: mapped, so asking for news costs no system call."""

    def __init__(self, folder: Path | str) -> None:
        self._maps: list[mmap.mmap | None] = [None] * len(SLOT_NAMES)
        #: The device and inode of each file that is mapped.
        self._nodes: list[tuple[int, int]] = [(0, 0)] * len(SLOT_NAMES)
        self._folder = folder
        self._seen: list[bytes] | None = None
        self._snapshot()

    def changed(self) -> bool:
        """Return whether a slot differs from what the last ``read`` saw."""
        # Taken once: another thread may forget meanwhile.
        (first, second), seen = self._maps, self._seen
        if first is not None and second is not None and seen is not None:
            # The plain case, in as few steps as there are: every answer waits for this one.
            return first[:] != seen[0] or second[:] != seen[1]
        return self._snapshot() != seen

    def read(self) -> State:
        """Return the record in force and remember what was seen.

        A slot that is seen in the middle of a write is invalid, so the other one is in force, and its bytes will
        differ once the write is whole: no change is ever missed.
        """
        for i, view in enumerate(self._maps):
            # A slot that was lost is made anew by the store's next change, in a file of its own.
            if view is not None and not _is_file_of(self._nodes[i], f"{self._folder}/{SLOT_NAMES[i]}"):
                self._maps[i] = None
        seen = self._snapshot()
        state = _in_force(seen, self._folder)[1]
        self._seen = seen
        return state

    def watched(self) -> tuple[tuple[mmap.mmap, bytes], ...] | None:
        """Return the map of each slot and what the last ``read`` saw in it, or None where a slot cannot be mapped."""
        pairs = [(view, seen) for view, seen in zip(self._maps, self._seen or (), strict=False) if view is not None]
        return tuple(pairs) if len(pairs) == len(SLOT_NAMES) else None

    def forget(self) -> None:
        """Take whatever stands in the slots for news: what the last ``read`` led to came to nothing."""
        self._seen = None

    def close(self) -> None:
        """Let go of the maps; each lasts as long as somebody watches it."""
        self._maps = [None] * len(SLOT_NAMES)

    def _snapshot(self) -> list[bytes]:
        for i, view in enumerate(self._maps):
            if view is None:
                # Lost or cut short: invalid, until the store's next change makes it anew.
                self._maps[i], self._nodes[i] = _map(f"{self._folder}/{SLOT_NAMES[i]}")
        return [b"" if view is None else view[:] for view in self._maps]


def _in_force(slots: list[bytes], folder: Path | str) -> tuple[int, State]:
    """Return the place and the record of the valid slot with the higher sequence."""
    valid = [(i, state) for i, state in enumerate(map(unpack, slots)) if state is not None]
    if not valid:
        raise StateError(
            f"{folder}: expected a valid record in {' or '.join(SLOT_NAMES)}, found none; install into a new store"
        )
    return max(valid, key=lambda entry: entry[1].sequence)


def _read(path: Path) -> bytes:
    with _opened(path) as descriptor:
        return b"" if descriptor is None else os.pread(descriptor, SLOT_BYTES, 0)


def _map(path: str) -> tuple[mmap.mmap | None, tuple[int, int]]:
    """Return the map of a slot, if it is a whole one, and its device and inode."""
    with _opened(path) as descriptor:
        if descriptor is None:
            return None, (0, 0)
        found = os.fstat(descriptor)
        whole = found.st_size >= SLOT_BYTES
        view = mmap.mmap(descriptor, SLOT_BYTES, access=mmap.ACCESS_READ) if whole else None
        return view, (found.st_dev, found.st_ino)


def _is_file_of(node: tuple[int, int], path: str) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116 (a reader makes no Path)
    except OSError:
        return False
    return node == (found.st_dev, found.st_ino)


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[int | None]:
    """Open a slot for reading; what is no plain file (a pipe would make its reader wait) is as good as none.

    Raises:
        StateError: it is there and cannot be read. It may hold the record in force, so it does not count as none.
    """
    try:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                raise
            yield None
            return
        try:
            yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StateError(f"{path}: expected {SLOT_BYTES} bytes to read, found: {error}") from error
