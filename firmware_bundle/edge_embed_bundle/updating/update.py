"""An update, from the question to the answer: a short-lived process that never leaves a board without a bundle.

   finish an open trial                          the old bundle serves; what a power cut left open is settled
   check: metadata by TUF, on a copy             the old bundle serves; expired or forged metadata ends it here
   remember the metadata, durable                the old bundle serves; from here on nobody leads the board back
   plan: which release, how                      the old bundle serves; no release for this device ends it here
   reserve the room on the flash                 the old bundle serves; a full flash ends it here
   fetch, every frame verified                   the old bundle serves; a cut costs the frame that was on its way
   build, verify, slot: trial, probe, confirm    store.py: the old bundle serves until the new one is confirmed
   drop what was fetched for it                  the new bundle serves

* Metadata is remembered before what it leads to is tried, not after: between a confirmation and the memory of what
  it came from, a board could be offered its old metadata again and would take the way back for an update.
* One update at a time; the store itself stays free for its operator while bytes arrive, rollback included.
* What was fetched stays when an update is interrupted, and goes when the channel offers something else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from edge_embed_bundle.bundle import Bundle, Progress
from edge_embed_bundle.errors import (
    BundleError,
    EdgeEmbedError,
    EmptyStoreError,
    RefusedError,
    SpaceError,
    StoreError,
    TrustError,
    UpdateError,
)
from edge_embed_bundle.fsops import FsOps, OsFs, held_lock, remove_tree
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.room import free_memory_bytes
from edge_embed_bundle.store import RESERVE_BYTES, Probe, Store, Verdict, is_whole
from edge_embed_bundle.updating import trust
from edge_embed_bundle.updating.fetching import fetch, partial_path, reserve
from edge_embed_bundle.updating.planning import NOTHING_NEW, REFUSE, Device, Plan, plan
from edge_embed_bundle.updating.records import Last, Records, Trusted, format_time
from edge_embed_bundle.updating.releases import Channel, File, Release, channel_path, spaces_of
from edge_embed_bundle.updating.sites import Site

UP_TO_DATE = "up to date"
INSTALLED = "installed"
FAILED = "failed"
REFUSED = "refused"


@dataclass(frozen=True)
class Request:
    """What whoever runs the board decided."""

    channel: str
    device_id: str
    runtime: str
    clock: datetime
    board: str = ""
    new_space: str = REFUSE
    retry: bool = False
    #: The root that is trusted where the store trusts none yet.
    root: bytes | None = None
    #: Whether those who serve let go where a trial lacks memory.
    drain: bool = False


@dataclass(frozen=True)
class Outcome:
    """How an update ended."""

    kind: str
    plan: Plan
    fetched_bytes: int = 0
    verdict: Verdict = field(default_factory=lambda: Verdict(True))

    @property
    def said(self) -> str:
        """The outcome as a sentence for people."""
        release = self.plan.release
        if self.kind == INSTALLED:
            return f"{release} {self.verdict.reason or 'probed, confirmed, serves'}"
        return "the channel has no release for this device" if release is None else f"{release} serves already"


def _no_progress(_: Plan) -> Progress:
    return lambda count: None


class Updater:
    """Updates one store from one repository."""

    def __init__(
        self,
        store: Path | str,
        site: Site,
        probe: Probe,
        *,
        fs: FsOps | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fs: FsOps = OsFs() if fs is None else fs
        self._store = Store(store, fs=self._fs)
        self._site = site
        self._probe = probe
        self._pause = pause
        self._records = Records(self._store.path)

    def update(self, request: Request, progress: Callable[[Plan], Progress] = _no_progress) -> Outcome:
        """Bring the store to the release that its channel has for this device.

        Args:
            request: the decisions of whoever runs the board.
            progress: asked once there is something to fetch; told the bytes of the plan's files as they are there.

        Raises:
            UpdateError: the repository cannot be reached or trusted. What served before serves on.
            RefusedError: the probe said no. What served before serves on.
            StoreError: the store is busy, damaged or full.
        """
        self._store.settle(self._probe)
        with self._alone():
            try:
                outcome = self._on_flash(request, progress)
            except EdgeEmbedError as error:
                kind = REFUSED if isinstance(error, RefusedError) else FAILED
                self._remember(request, kind, str(error), None)
                raise
            self._remember(request, outcome.kind, outcome.said, outcome.plan)
            return outcome

    def _on_flash(self, request: Request, progress: Callable[[Plan], Progress]) -> Outcome:
        try:
            return self._update(request, progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise SpaceError(f"{self._store.path}: expected room on the flash, found: {error}") from error
            raise StoreError(f"{self._store.path}: expected a store that can be written, found: {error}") from error

    # The steps, in their order.

    def _update(self, request: Request, progress: Callable[[Plan], Progress]) -> Outcome:
        channel = self._check(request)
        planned = plan(channel, self._device(request))
        if planned.release is None or planned.kind == NOTHING_NEW:
            self._drop_incoming(None)
            return Outcome(UP_TO_DATE, planned)
        release = planned.release
        folder = self._incoming(release)
        fetched = self._fetch_all(release, planned.files, folder, progress(planned))
        try:
            verdict = self._store.install(folder, self._probe, retry=request.retry, adopt=True, drain=request.drain)
        except BundleError:
            # Whole when it was fetched, and not any more: this flash is not to be trusted with it.
            self._drop_incoming(None)
            raise
        except RefusedError as error:
            self._drop_incoming(None)
            raise RefusedError(f"{release}: {_reason(error, folder)}") from error
        self._drop_incoming(None)
        return Outcome(INSTALLED, planned, fetched, verdict)

    def _check(self, request: Request) -> Channel:
        known = self._records.trusted()
        if known is None:
            if request.root is None:
                raise TrustError(
                    f"{self._store.path}: expected a root of trust at the first update, found none; "
                    "give --root with the root.json of the repository's owner"
                )
            known = Trusted({"root": request.root})
        path = channel_path(request.channel)
        with trust.Client(self._site, known, request.clock) as client:
            try:
                client.refresh()
                data = client.target(path)
                channel = Channel.parse(data, source=f"{self._site.name}/{path}")
            except (UpdateError, BundleError):
                self._save(known, client.trusted)
                raise
            self._save(known, replace(client.trusted, targets={path: data}))
            return channel

    def _save(self, known: Trusted, trusted: Trusted) -> None:
        if trusted != known:
            self._records.save_trusted(trusted, self._fs)

    def _device(self, request: Request) -> Device:
        state = self._store.state()
        spaces: dict[str, str] = {}
        with contextlib.suppress(EmptyStoreError, BundleError), Bundle.open(self._store.active()) as bundle:
            spaces = spaces_of(bundle.manifest)
        return Device(
            request.device_id,
            request.runtime,
            request.board,
            state.active,
            spaces,
            () if request.retry else state.refused,
            request.new_space,
            free_memory_bytes=free_memory_bytes(),
            drains=request.drain,
        )

    def _incoming(self, release: Release) -> Path:
        """Return the folder for what is fetched, made where it is not there yet; all others go."""
        self._drop_incoming(release)
        folder = self._records.incoming / release.id
        for place in (folder.parent, folder):
            if not place.is_dir():
                self._fs.make_folder(place)
                self._fs.sync_folder(place.parent)
        return folder

    def _fetch_all(self, release: Release, files: tuple[File, ...], folder: Path, progress: Progress) -> int:
        for file in files:
            self._link_known(release, file, folder)
        missing = [file for file in files if not (folder / file.name).is_file()]
        self._check_space(missing, folder)
        for file in missing:
            reserve(file, folder / file.name, self._fs)
        progress(sum(file.size_bytes for file in files if file not in missing))
        fetched = 0
        for file in files:
            target = folder / file.name
            if file in missing:
                fetched += fetch(self._site, file, target, self._fs, progress=progress, pause=self._pause)
            if file.name == MANIFEST_NAME:
                _check_manifest(target, release)
        self._fs.sync_folder(folder)
        return fetched

    def _link_known(self, release: Release, file: File, folder: Path) -> None:
        """Take a file that the store has already, if it is whole."""
        known = self._store.path / "blobs" / file.sha256
        if file.name == MANIFEST_NAME:
            known = self._store.generation(release.id) / MANIFEST_NAME
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if not (folder / file.name).exists() and is_whole(known, file.sha256):
                self._fs.link(known, folder / file.name)

    def _check_space(self, missing: list[File], folder: Path) -> None:
        """Say early, and in one sentence, what the reservation would find out by failing."""
        needed = sum(file.size_bytes for file in missing if not partial_path(folder / file.name).is_file())
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        if needed and needed + RESERVE_BYTES > free:
            raise SpaceError(
                f"{self._store.path}: expected {needed + RESERVE_BYTES} free bytes for the new generation, "
                f"found {free}; nothing was changed"
            )

    def _drop_incoming(self, release: Release | None) -> None:
        """Remove what was fetched for any other release."""
        if self._records.incoming.is_dir():
            for folder in sorted(self._records.incoming.iterdir()):
                if release is None or folder.name != release.id:
                    remove_tree(self._fs, folder)

    def _remember(self, request: Request, kind: str, said: str, planned: Plan | None) -> None:
        release = "" if planned is None or planned.release is None else str(planned.release)
        at = format_time(request.clock)
        passed = () if planned is None else planned.passed_over
        last = Last(kind, said[:1000], self._site.name, request.channel, at, release, passed)
        self._records.save_last(last, self._fs)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        busy = f"{self._store.path}: another process is updating this store; try again"
        return held_lock(self._records.folder / "lock", busy)


def _check_manifest(path: Path, release: Release) -> None:
    """See that the manifest says what the channel says of it, before the large files are fetched."""
    manifest = Manifest.parse(path.read_bytes(), source=f"{release}: {MANIFEST_NAME}")
    found = {(name, blob.size_bytes, blob.sha256) for name, blob in manifest.blobs.items()}
    signed = {(file.name, file.size_bytes, file.sha256) for file in release.files if file.name != MANIFEST_NAME}
    if found != signed or spaces_of(manifest) != release.spaces:
        raise TrustError(
            f"{release}: expected the files and spaces that the channel names, found others in its manifest"
        )


def _reason(error: RefusedError, folder: Path) -> str:
    return str(error).removeprefix(f"{folder}: ")
