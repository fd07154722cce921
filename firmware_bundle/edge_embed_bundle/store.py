"""A store on a board: generations side by side, one of which serves.

    STORE/
      slot.0, slot.1            which generation serves (slots.py)
      blobs/SHA256              every blob once, whoever shares it
      generations/ID/           a bundle like any other: hard links to its blobs under their own names, manifest.json
      sums/SHA256               digests of a blob's frames (scrub.py)
      rotten/SHA256             which frames of a blob rotted
      lock                      held by the process that changes the store
      update/                   what the updater remembers and fetches (updating/)

The rules that hold at every moment, whatever cuts the power:

 * A slot names a generation only after every file of it was read back whole, and its folder is durable.
 * The active generation goes on serving until another one is verified, probed on this board and confirmed.
 * Garbage goes only after a confirmation is durable, and never what a slot names.
 * Reading never repairs; only ``install``, ``rollback`` and a scrub write, one process at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_embed_bundle import room
from edge_embed_bundle.bundle import Bundle, Progress, chunks_of
from edge_embed_bundle.errors import (
    BundleError,
    DigestError,
    EmptyStoreError,
    RefusedError,
    SpaceError,
    StateError,
    StoreError,
)
from edge_embed_bundle.fsops import FsOps, OsFs, held_lock, remove_tree
from edge_embed_bundle.manifest import MANIFEST_NAME
from edge_embed_bundle.slots import SLOT_NAMES, Slots, generation_folder, is_store
from edge_embed_bundle.state import State

#: Room that must stay free on the flash beside the new generation.
RESERVE_BYTES = 1024 * 1024

FOLDERS = ("blobs", "generations", "update")

#: What is fetched again where a blob rotted.
FRAME_BYTES = 1024 * 1024

_NOTES = ("sums", "rotten")
_FRAME_NUMBER = struct.Struct("<I")


@dataclass(frozen=True)
class Verdict:
    """What a probe found. A probe that ``crashed`` may be tried again; an answer of no is final."""

    passed: bool
    reason: str = ""
    crashed: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """A trial that was cut off, and how it ended afterwards."""

    generation: str
    verdict: Verdict


class Probe(Protocol):
    """The check that a generation must pass on this board before it serves."""

    def __call__(self, generation: Path) -> Verdict:
        """Load the bundle in ``generation`` and judge its answers, its memory and its latency."""


@dataclass(frozen=True)
class Rotten:
    """A blob whose bytes on the flash are no longer its own, and the numbers of its frames that have to come again."""

    sha256: str
    name: str
    size_bytes: int
    frames: tuple[int, ...]

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Where each of these frames begins in the blob, and how many bytes it has."""
        return tuple((i * FRAME_BYTES, min(FRAME_BYTES, self.size_bytes - i * FRAME_BYTES)) for i in self.frames)


@dataclass(frozen=True)
class Installed:
    """A generation in the store."""

    id: str
    role: str
    name: str = ""
    version: str = ""
    problem: str = ""
    #: What the last scrub found rotten in it.
    rotten: tuple[Rotten, ...] = ()


@dataclass(frozen=True)
class Status:
    """What stands in a store."""

    state: State
    generations: tuple[Installed, ...]


class Store:
    """The bundles of one board."""

    def __init__(
        self,
        path: Path | str,
        *,
        fs: FsOps | None = None,
        free_memory: Callable[[], int | None] = room.free_memory_bytes,
        patience_seconds: float = room.PATIENCE_SECONDS,
    ) -> None:
        """Name a store.

        Args:
            path: its folder; the first installation makes it.
            fs: writes to the flash.
            free_memory: tells how many bytes are free, or None.
            patience_seconds: how long a trial may wait for memory.
        """
        self.path = Path(path)
        self._fs: FsOps = OsFs() if fs is None else fs
        self._free_memory = free_memory
        self._patience_seconds = patience_seconds
        self._slots = Slots(self.path)

    def state(self) -> State:
        """Return the record in force.

        Raises:
            EmptyStoreError: there is no store here.
            StateError: the store is there and both of its slots are damaged.
        """
        if not is_store(self.path):
            raise EmptyStoreError(f"{self.path}: expected a store, found none; edge-embed install makes one")
        return self._slots.read()

    def generation(self, name: str) -> Path:
        """Return the folder of a generation."""
        return Path(generation_folder(self.path, name))

    def active(self) -> Path:
        """Return the folder of the generation that serves.

        Raises:
            EmptyStoreError: nothing serves yet.
        """
        active = self.state().active
        if active is None:
            raise EmptyStoreError(f"{self.path}: expected a confirmed bundle, found none; edge-embed install one")
        return self.generation(active)

    def status(self) -> Status:
        """Return the record in force with the names and versions of the generations it speaks of."""
        state = self.state()
        roles = {"active": state.active, "previous": state.previous, "trial": state.trial}
        found = []
        for role, name in roles.items():
            if name is not None:
                found.append(self._installed(name, role))
        return Status(state, tuple(found))

    def _installed(self, generation: str, role: str) -> Installed:
        try:
            with Bundle.open(self.generation(generation)) as bundle:
                blobs = bundle.manifest.blobs.items()
                noted = (self._rot(name, blob.sha256, blob.size_bytes) for name, blob in blobs)
                rotten = tuple(each for each in noted if each is not None)
                return Installed(generation, role, bundle.manifest.name, bundle.manifest.version, rotten=rotten)
        except BundleError as error:
            return Installed(generation, role, problem=str(error))

    def settle(self, probe: Probe) -> Settled | None:
        """Make the store if there is none yet, finish a trial that was cut off, clear what nobody names any more.

        Returns:
            How that trial ended; None where there was none.
        """
        with self._locked():
            return self._settle(probe)

    def install(
        self,
        source: Path | str,
        probe: Probe,
        *,
        retry: bool = False,
        adopt: bool = False,
        drain: bool = False,
        progress: Progress | None = None,
    ) -> Verdict:
        """Bring a bundle into the store, try it on this board, and let it serve if it passes.

        Args:
            source: the bundle's folder; it is read, never changed.
            probe: judges the trial, in a process of its own where it may crash.
            retry: try a bundle that this board refused before.
            adopt: the source lies in the store's own folder and is nobody else's: its files, which are sealed and
                durable, become the store's by a second name, and are not copied.
            drain: where there is no memory for the trial beside what serves, let those who serve wait for its end.
            progress: told the bytes copied and verified.

        Returns:
            The probe's verdict, passed; for the bundle that serves already, the reason says so, and a damaged one is
            repaired from its source.

        Raises:
            BundleError: the source is damaged. What served before serves on.
            RefusedError: the probe said no, now or before. What served before serves on.
            StoreError: the store is busy, damaged or full.
        """
        with Bundle.open(source) as bundle, self._locked():
            settled = self._settle(probe)
            state = self.state()
            if bundle.id in state.refused and not retry:
                why = f": {settled.verdict.reason}" if settled is not None and settled.generation == bundle.id else ""
                raise RefusedError(
                    f"{source}: this board refused {bundle.manifest.name} {bundle.manifest.version} "
                    f"({bundle.id[:12]}) before{why}; pass --retry to try it again"
                )
            if not adopt:
                self._check_space(bundle)
            # All of it, also what the store has already: a damaged source is refused, never mended in silence.
            bundle.verify(progress)
            whole = self._is_whole(bundle.id)
            if not whole:
                self._stage(bundle, progress, adopt=adopt)
                self._verify(bundle.id, progress)
            if bundle.id == state.active:
                return Verdict(True, "serves already" if whole else "served already, damaged; repaired")
            self._change(self.state().begin_trial(bundle.id, needs_bytes=self._lacking(bundle) if drain else 0))
            verdict = self._try(probe)
            if not verdict.passed:
                raise RefusedError(f"{source}: {verdict.reason}; what served before serves on")
            return verdict

    def rollback(self) -> State:
        """Let the previous generation serve again, after reading all of it; return the new record.

        Raises:
            StoreError: there is no previous generation.
            BundleError: the previous generation is damaged; the active one serves on.
        """
        with self._locked(create=False):
            after = self.state().roll_back()
            if after.active is not None:
                self._verify(after.active, None)
            self._change(after)
            return after

    # What a scrub finds.

    def quarantine(self, generation: str) -> State:
        """Put a generation away whose bytes rotted: another one serves, and this one is refused; return the record.

        Raises:
            StoreError: it serves, and there is no other one.
            BundleError: it serves, and the other one is not whole, either.
        """
        with self._locked(create=False):
            state = self.state()
            is_put_away = generation != state.active and generation in state.refused
            if generation not in (state.active, state.previous) or is_put_away or self._is_whole(generation):
                return state
            after = state.put_away(generation)
            if after.active is not None and after.active != state.active:
                self._verify(after.active, None)
            self._change(after)
            return after

    def mend(self, rotten: Rotten, fetch: Callable[[int, int], bytes]) -> None:
        """Write a blob anew, out of its good frames and of those that come again; its rot is forgiven.

        Args:
            rotten: what a scrub found.
            fetch: returns so many bytes of the blob from an offset on; the store is locked meanwhile, so better of what
                is on the board already.

        Raises:
            DigestError: what came is not the blob; nothing is changed.
            StoreError: no generation has the blob, or the store is busy, full or damaged.
        """
        with self._locked(create=False):
            users = [
                (generation, name)
                for generation in sorted(self.state().kept)
                for name, blob in self._blobs_of(generation)
                if blob == rotten.sha256
            ]
            if not users:
                raise StoreError(f"{self.path}: expected a generation with the blob {rotten.sha256[:12]}, found none")
            files = [self.generation(generation) / name for generation, name in users]
            # Where none is left, no frame is taken from it.
            old = next((file for file in files if file.is_file()), Path(os.devnull))
            self._write_mended(rotten, old, fetch)
            for generation, name in users:
                folder = self.generation(generation)
                with contextlib.suppress(FileNotFoundError):
                    self._fs.unlink(folder / f".partial-{name}")
                self._fs.link(self.path / "blobs" / rotten.sha256, folder / f".partial-{name}")
                # In one step: who opens the generation finds the one file or the other.
                self._fs.rename(folder / f".partial-{name}", folder / name)
                self._fs.sync_folder(folder)
            self._forget("rotten", rotten.sha256)
            state = self.state()
            for generation in {generation for generation, _ in users} & state.rotten:
                if self._is_whole(generation):
                    self._change(self.state().forgive(generation))

    def _blobs_of(self, generation: str) -> list[tuple[str, str]]:
        try:
            with Bundle.open(self.generation(generation), damaged=True) as bundle:
                return [(name, blob.sha256) for name, blob in bundle.manifest.blobs.items()]
        except BundleError:
            return []

    def _write_mended(self, rotten: Rotten, old: Path, fetch: Callable[[int, int], bytes]) -> None:
        partial = self.path / "blobs" / f".partial-{rotten.sha256}"
        with contextlib.suppress(FileNotFoundError):
            self._fs.unlink(partial)
        found = hashlib.sha256()
        with self._fs.create(partial) as file, old.open("rb") as good:
            for start in range(0, rotten.size_bytes, FRAME_BYTES):
                size = min(FRAME_BYTES, rotten.size_bytes - start)
                is_bad = start // FRAME_BYTES in rotten.frames
                frame = fetch(start, size) if is_bad else os.pread(good.fileno(), size, start)
                file.write(frame)
                found.update(frame)
            file.sync()
        if found.hexdigest() != rotten.sha256:
            self._fs.unlink(partial)
            raise DigestError(
                f"{rotten.name}: expected sha256 {rotten.sha256} of the mended, found {found.hexdigest()}"
            )
        self._fs.rename(partial, self.path / "blobs" / rotten.sha256)
        self._fs.sync_folder(self.path / "blobs")

    def sums(self, digest: str) -> list[bytes] | None:
        """Return the digests of a blob's frames, if a scrub noted them."""
        data = self._note("sums", digest)
        return None if data is None else [data[i : i + 32] for i in range(0, len(data), 32)]

    def note_sums(self, digest: str, sums: Sequence[bytes], known: Sequence[bytes] | None) -> None:
        """Note the digests of the frames of a blob that is right, where they are not known yet.

        Raises:
            StoreError: another process changes the store, or it cannot be written.
        """
        is_noted = (self.path / "rotten" / digest).exists()
        if known == sums and not is_noted:
            return
        with self._locked(create=False):
            self._write_note("sums", digest, b"".join(sums))
            self._forget("rotten", digest)

    def note_rot(self, rotten: Rotten) -> None:
        """Note which frames of a blob rotted.

        Raises:
            StoreError: another process changes the store, or it cannot be written.
        """
        with self._locked(create=False):
            self._write_note("rotten", rotten.sha256, b"".join(map(_FRAME_NUMBER.pack, rotten.frames)))

    def _rot(self, name: str, digest: str, size_bytes: int) -> Rotten | None:
        data = self._note("rotten", digest)
        if data is None or len(data) % _FRAME_NUMBER.size:
            return None
        return Rotten(digest, name, size_bytes, tuple(frame for (frame,) in _FRAME_NUMBER.iter_unpack(data)))

    def _note(self, kind: str, digest: str) -> bytes | None:
        """Return what was noted of a blob; a note that rotted itself is none."""
        path = self.path / kind / digest
        if not path.is_file():
            return None
        data = path.read_bytes()
        return data[:-32] if hashlib.sha256(data[:-32]).digest() == data[-32:] else None

    def _write_note(self, kind: str, digest: str, data: bytes) -> None:
        folder = self.path / kind
        if not folder.is_dir():
            self._fs.make_folder(folder)
            self._fs.sync_folder(self.path)
        partial = folder / f".partial-{digest}"
        with contextlib.suppress(FileNotFoundError):
            self._fs.unlink(partial)
        with self._fs.create(partial) as file:
            file.write(data + hashlib.sha256(data).digest())
            file.sync()
        self._fs.rename(partial, folder / digest)
        self._fs.sync_folder(folder)

    def _forget(self, kind: str, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.unlink(self.path / kind / digest)

    # The steps of an installation, in their order.

    def _settle(self, probe: Probe) -> Settled | None:
        """Finish a trial that a power cut or a crash left open, then clear what it left behind."""
        state, settled = self.state(), None
        if state.trial is not None:
            try:
                self._verify(state.trial, None)
            except BundleError as error:
                self._change(state.refuse())
                settled = Settled(state.trial, Verdict(False, str(error)))
            else:
                settled = Settled(state.trial, self._try(probe))
        # From here on, what stands in the store is what a slot names: an interrupted copy is gone.
        self._collect_garbage()
        return settled

    def _stage(self, bundle: Bundle, progress: Progress | None, *, adopt: bool) -> None:
        """Copy the missing blobs, build the generation's folder, make it durable under its name."""
        blobs = self.path / "blobs"
        missing = {
            blob.sha256: name
            for name, blob in bundle.manifest.blobs.items()
            if not is_whole(blobs / blob.sha256, blob.sha256)
        }
        for digest, name in missing.items():
            if adopt:
                self._fs.link(bundle.path / name, blobs / f".partial-{digest}")
                self._fs.rename(blobs / f".partial-{digest}", blobs / digest)
            else:
                self._copy_blob(bundle, name, digest, progress)
        self._fs.sync_folder(blobs)

        partial = self.path / "generations" / f".partial-{bundle.id}"
        self._fs.make_folder(partial)
        for name, blob in bundle.manifest.blobs.items():
            self._fs.link(blobs / blob.sha256, partial / name)
        with self._fs.create(partial / MANIFEST_NAME) as file:
            file.write(bundle.manifest_bytes)
            file.sync()
        self._fs.sync_folder(partial)
        folder = self.generation(bundle.id)
        if folder.is_dir():
            # Damaged, and perhaps what serves: repaired file by file, so that it is there all the time.
            for path in sorted(partial.iterdir()):
                self._fs.rename(path, folder / path.name)
            self._fs.sync_folder(folder)
            self._fs.sync_folder(partial)
        else:
            self._fs.rename(partial, folder)
        self._fs.sync_folder(folder.parent)
        # Names of files that were whole are left: moving a file to another name of itself does nothing.
        remove_tree(self._fs, partial)

    def _copy_blob(self, bundle: Bundle, name: str, digest: str, progress: Progress | None) -> None:
        partial = self.path / "blobs" / f".partial-{digest}"
        found = hashlib.sha256()
        with self._fs.create(partial) as file:
            for chunk in chunks_of(bundle.descriptor(name)):
                file.write(chunk)
                found.update(chunk)
                if progress is not None:
                    progress(len(chunk))
            file.sync()
        if found.hexdigest() != digest:
            self._fs.unlink(partial)
            raise DigestError(f"{bundle.path / name}: expected sha256 {digest}, found {found.hexdigest()}")
        self._fs.rename(partial, self.path / "blobs" / digest)
        self._forget("rotten", digest)

    def _is_whole(self, generation: str) -> bool:
        try:
            self._verify(generation, None)
        except BundleError:
            return False
        return True

    def _verify(self, generation: str, progress: Progress | None) -> None:
        """Read the generation as it stands on this flash, not as its source was."""
        with Bundle.open(self.generation(generation)) as bundle:
            if bundle.id != generation:
                raise DigestError(f"{bundle.path / MANIFEST_NAME}: expected sha256 {generation}, found {bundle.id}")
            bundle.verify(progress)

    def _try(self, probe: Probe) -> Verdict:
        """Probe the trial until it passes, is refused or has no tries left."""
        state = self.state()
        if state.trial is None or not state.needs_bytes:
            return self._try_beside(probe)
        with room.held(self.generation(state.trial)):
            return self._try_beside(probe)

    def _try_beside(self, probe: Probe) -> Verdict:
        verdict = Verdict(False, "no tries left after crashes", crashed=True)
        while True:
            state = self.state()
            if state.trial is None or state.tries_left == 0:
                self._change(state.refuse())
                return verdict
            # Who serves sees it; where the trial is to be alone, that is the sign to let go.
            self._change(state.spend_try())
            verdict = self._crowded(state) or probe(self.generation(state.trial))
            if verdict.passed:
                self._change(self.state().confirm())
                self._collect_garbage()
                return verdict
            if not verdict.crashed:
                self._change(self.state().refuse())
                return verdict

    def _lacking(self, bundle: Bundle) -> int:
        """Return what the trial of a bundle needs of memory if so much is not free, else 0."""
        needed_bytes = bundle.manifest.requirements.memory_private_bytes + room.PROCESS_BYTES
        free_bytes = self._free_memory()
        return 0 if free_bytes is None or needed_bytes <= free_bytes else needed_bytes

    def _crowded(self, state: State) -> Verdict | None:
        """Wait for the memory that the trial needs; return a no if it does not come."""
        if room.is_there(state.needs_bytes, self._free_memory, self._patience_seconds):
            return None
        return Verdict(
            False,
            f"expected {state.needs_bytes} bytes of free memory for its trial, found {self._free_memory()} after those "
            "who serve were asked to let go",
        )

    def _collect_garbage(self) -> None:
        """Remove what no slot names: generations first, then the blobs that only they used."""
        kept = self.state().kept
        for folder in sorted((self.path / "generations").iterdir()):
            if folder.name not in kept:
                remove_tree(self._fs, folder)
        for blob in sorted((self.path / "blobs").iterdir()):
            # What the updater fetched has a second name in its own folder until it serves.
            if blob.stat().st_nlink == 1 or blob.name.startswith(".partial-"):
                self._fs.unlink(blob)
        for kind in _NOTES:
            for note in sorted((self.path / kind).iterdir()) if (self.path / kind).is_dir() else ():
                if not (self.path / "blobs" / note.name).exists():
                    self._fs.unlink(note)

    def _check_space(self, bundle: Bundle) -> None:
        blobs = {blob.sha256: blob.size_bytes for blob in bundle.manifest.blobs.values()}
        needed_bytes = sum(size for digest, size in blobs.items() if self._blob_size(digest) != size)
        status = os.statvfs(self.path)
        free_bytes = status.f_bavail * status.f_frsize
        if needed_bytes + RESERVE_BYTES > free_bytes:
            raise SpaceError(
                f"{self.path}: expected {needed_bytes + RESERVE_BYTES} free bytes for the new generation, "
                f"found {free_bytes}; nothing was changed"
            )

    def _change(self, state: State) -> None:
        self._slots.write(state, self._fs)

    def _blob_size(self, digest: str) -> int | None:
        path = self.path / "blobs" / digest
        return path.stat().st_size if path.exists() else None

    @contextlib.contextmanager
    def _locked(self, *, create: bool = True) -> Iterator[None]:
        """Hold the store for one change; create it on the first one."""
        with contextlib.ExitStack() as stack:
            try:
                if create:
                    self._create_folder()
                elif not is_store(self.path):
                    raise EmptyStoreError(f"{self.path}: expected a store, found none; edge-embed install makes one")
                stack.enter_context(self._lock())
                if create:
                    self._create_contents()
                yield
            except OSError as error:
                raise StoreError(f"{self.path}: expected a store that can be written, found: {error}") from error

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return held_lock(self.path / "lock", f"{self.path}: another process is changing this store; try again")

    def _create_folder(self) -> None:
        if self.path.is_dir():
            known = {*SLOT_NAMES, *FOLDERS, *_NOTES, "lock"}
            strangers = {path.name for path in self.path.iterdir()} - known
            if strangers and not is_store(self.path):
                raise StoreError(
                    f"{self.path}: expected a store or an empty folder, found {sorted(strangers)[0]!r} in it"
                )
            return
        self._fs.make_folder(self.path)
        self._fs.sync_folder(self.path.parent)

    def _create_contents(self) -> None:
        """Make a new store, or what an older one lacks: what is not there yet was empty."""
        missing = [name for name in FOLDERS if not (self.path / name).is_dir()]
        for name in missing:
            self._fs.make_folder(self.path / name)
        is_new = self._is_new()
        if is_new:
            self._slots.create(self._fs)
        if missing or is_new:
            self._fs.sync_folder(self.path)

    def _is_new(self) -> bool:
        if any((self.path / "generations").iterdir()):
            return False
        try:
            self._slots.read()
        except StateError:
            # A power cut while the store was made: the slots may be torn, but nothing was ever installed.
            return True
        return not all((self.path / name).exists() for name in SLOT_NAMES)


def is_whole(path: Path, sha256: str) -> bool:
    """Return whether a file is there with just those bytes; a good copy will take the name of a rotten one."""
    # A pipe that somebody put there would make a reader wait.
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
