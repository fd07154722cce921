"""Looking for rot: every byte of what a store may serve, read again at a bounded rate, and what to do about it.

* A blob is right if its digest is the manifest's. The first time that it is, the digests of its frames (1 MiB) are
  noted in ``sums/``, so that later not the whole of it has to be fetched again but the frames that rotted.
* A blob that is gone, or has another length, is rotten as well: the frames that are not there have to come again.
* Rot is noted in ``rotten/`` before anything else changes, and forgotten when the blob is found right, or came anew.
* A rotten generation is put into quarantine: if it serves, the other one takes over, after all of it was read; if it is
  the other one, it is refused. Where nothing else is whole, what serves goes on, and is said to be rotten.
* What was found rotten can be mended afterwards (``Scrub.mend``): a generation that is whole again is refused no more.
* Nobody waits for a scrub: it holds the store's lock only to note what it found. What it has read leaves the page
  cache, where nobody maps it.

   STORE/sums/SHA256      sha256 of each frame (32 bytes each), then of all of these
   STORE/rotten/SHA256    numbers of frames (4 bytes each, little-endian), then sha256 of all of these
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edge_embed_bundle.bundle import CHUNK_BYTES, Bundle, Progress
from edge_embed_bundle.errors import BundleError, EdgeEmbedError, StoreError
from edge_embed_bundle.store import FRAME_BYTES, Rotten, Store
from edge_embed_bundle.values import Blob

DEFAULT_RATE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub found: how much it read, what was rotten, which generations it put away, why not others, what of
    the rotten was mended.
    """

    read_bytes: int
    rotten: tuple[Rotten, ...]
    quarantined: tuple[str, ...]
    problems: tuple[str, ...]
    mended: tuple[Rotten, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every byte is right now."""
        return self.mended == self.rotten and not self.problems


class Scrub:
    """One pass over the generations of a store. A service calls ``step`` where it has time, or ``run`` in a thread."""

    def __init__(
        self,
        store: Store,
        *,
        rate_bytes: int = DEFAULT_RATE_BYTES,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        progress: Progress | None = None,
    ) -> None:
        """Begin a pass.

        Args:
            store: what is scrubbed.
            rate_bytes: read in a second, at most.
            now: a clock in seconds.
            pause: waits so many seconds.
            progress: told the bytes read.
        """
        self._store = store
        self._rate_bytes = rate_bytes
        self._now, self._pause = now, pause
        self._progress = progress
        self._read_bytes = 0
        self._steps = self._passes()
        self._rotten: dict[str, Rotten] = {}
        self._quarantined: list[str] = []
        self._mended: list[Rotten] = []
        self._problems: list[str] = []
        #: Why rotten generations were not put away.
        self._serving: list[str] = []

    def step(self) -> bool:
        """Read at most ``CHUNK_BYTES`` more, waiting as the rate wants; return whether something is left."""
        return next(self._steps, None) is not None

    def run(self) -> Scrubbed:
        """Read all that is left, and return what was found."""
        while self.step():
            pass
        return self.found()

    def mend(self, mend: Callable[[Rotten], None]) -> Scrubbed:
        """Let each blob that was found rotten be mended, and return what was found."""
        for rotten in self._rotten.values():
            try:
                mend(rotten)
                self._mended.append(rotten)
            except EdgeEmbedError as error:
                self._problems.append(f"{rotten.name} is rotten and was not mended: {error}")
        if not self._problems:
            # What went on rotten for want of another one is whole by now.
            self._serving.clear()
        return self.found()

    def found(self) -> Scrubbed:
        """Return what was found until now."""
        problems = (*self._problems, *self._serving)
        rotten, mended = tuple(self._rotten.values()), tuple(self._mended)
        return Scrubbed(self._read_bytes, rotten, tuple(self._quarantined), problems, mended)

    def _passes(self) -> Iterator[int]:
        started, state = self._now(), self._store.state()
        seen: dict[tuple[str, int | None], bool] = {}
        for generation in dict.fromkeys(name for name in (state.active, state.previous) if name is not None):
            sound = True
            for count, is_sound in self._generation(generation, seen):
                sound = sound and is_sound
                self._read_bytes += count
                if self._progress is not None:
                    self._progress(count)
                # What was due at this rate, and not faster.
                wait = started + self._read_bytes / self._rate_bytes - self._now()
                if wait > 0:
                    self._pause(wait)
                yield count
            if not sound:
                self._put_away(generation)

    def _generation(self, generation: str, seen: dict[tuple[str, int | None], bool]) -> Iterator[tuple[int, bool]]:
        """Yield the bytes that were read, and whether what they end is sound."""
        try:
            with Bundle.open(self._store.generation(generation), damaged=True) as bundle:
                if bundle.id != generation:
                    self._problems.append(
                        f"{bundle.folder}/manifest.json: expected sha256 {generation}, found {bundle.id}"
                    )
                    yield len(bundle.manifest_bytes), False
                    return
                for name, blob in bundle.manifest.blobs.items():
                    # One file under all its names, as a rule; a name may be gone, or lead to another one.
                    descriptor = bundle.descriptor(name) if bundle.has(name) else None
                    file = blob.sha256, None if descriptor is None else os.fstat(descriptor).st_ino
                    if file not in seen:
                        reading = _Reading(descriptor, blob.size_bytes)
                        for count in reading.chunks():
                            yield count, True
                        seen[file] = self._judged(blob, name, reading)
                    yield 0, seen[file]
        except BundleError as error:
            # A manifest that is gone, or none.
            self._problems.append(str(error))
            yield 0, False
        except OSError as error:
            self._problems.append(f"{self._store.generation(generation)}: expected files to read, found: {error}")
            yield 0, False

    def _judged(self, blob: Blob, name: str, reading: _Reading) -> bool:
        """Return whether a blob that was read is right; what is rotten in it is noted."""
        known = self._store.sums(blob.sha256)
        if reading.is_there and reading.sha256 == blob.sha256:
            # Somebody else may be changing the store, or the flash take nothing any more; what is right stays right.
            with contextlib.suppress(StoreError):
                self._store.note_sums(blob.sha256, reading.sums, known)
            return True
        same = [] if known is None else [ours == theirs for ours, theirs in zip(reading.sums, known, strict=False)]
        frames = range(-(-blob.size_bytes // FRAME_BYTES))
        # Where every frame is right, something stands behind the last one.
        bad = {i for i in frames if i >= len(same) or not same[i]} or set(frames[-1:])
        if blob.sha256 in self._rotten:
            bad.update(self._rotten[blob.sha256].frames)
        rotten = self._rotten[blob.sha256] = Rotten(blob.sha256, name, blob.size_bytes, tuple(sorted(bad)))
        try:
            self._store.note_rot(rotten)
        except StoreError as error:
            self._problems.append(f"{name} is rotten and not noted: {error}")
        return False

    def _put_away(self, generation: str) -> None:
        try:
            self._store.quarantine(generation)
            self._quarantined.append(generation)
        except EdgeEmbedError as error:
            self._serving.append(f"{generation[:12]} is rotten and goes on: {error}")


class _Reading:
    """A file's digests, of its frames and of all of it, taken as it is read; None is one that is gone."""

    def __init__(self, descriptor: int | None, size_bytes: int) -> None:
        self._descriptor = descriptor
        # One more than it should have: that it has too many shows in its digest.
        self._most_bytes = size_bytes + 1
        self._all = hashlib.sha256()
        self.sums: list[bytes] = []

    @property
    def is_there(self) -> bool:
        """Whether there is a file."""
        return self._descriptor is not None

    @property
    def sha256(self) -> str:
        """The digest of what was read."""
        return self._all.hexdigest()

    def chunks(self) -> Iterator[int]:
        """Read the file; yield how many bytes at a time."""
        if self._descriptor is None:
            return
        buffer, at, frame = memoryview(bytearray(CHUNK_BYTES)), 0, hashlib.sha256()
        while count := os.preadv(self._descriptor, [buffer[: self._most_bytes - at]], at):
            frame.update(buffer[:count])
            self._all.update(buffer[:count])
            # The next pass is to read the flash, and others want the memory; mapped pages stay.
            os.posix_fadvise(self._descriptor, at, count, os.POSIX_FADV_DONTNEED)
            at += count
            if at % FRAME_BYTES == 0:
                self.sums.append(frame.digest())
                frame = hashlib.sha256()
            yield count
        if at % FRAME_BYTES:
            self.sums.append(frame.digest())
