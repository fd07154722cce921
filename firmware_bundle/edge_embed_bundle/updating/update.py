"""An update, from the question to the answer: a short-lived process that never leaves a board without a bundle.

   finish an open trial                          the old bundle serves; what a power cut left open is settled
   check: metadata by TUF, on a copy             the old bundle serves; expired or forged metadata ends it here
   remember the metadata, durable                the old bundle serves; from here on nobody leads the board back
   plan: which release, by files or by a delta   the old bundle serves; no release for this device ends it here
   reserve the room on the flash                 the old bundle serves; a full flash ends it here
   fetch, every frame verified                   the old bundle serves; a cut costs the frame that was on its way
   make the files, where a delta was fetched     the old bundle serves; a cut costs the file that was being made
   verify, slot: trial, probe, confirm           store.py: the old bundle serves until the new one is confirmed
   drop what was fetched for it                  the new bundle serves

* Metadata is remembered before what it leads to is tried, not after: between a confirmation and the memory of what
  it came from, a board could be offered its old metadata again and would take the way back for an update.
* One update at a time; the store itself stays free for its operator while bytes arrive, rollback included.
* What was fetched stays when an update is interrupted, and goes when the channel offers something else.
"""

from __future__ import annotations

import contextlib
import errno
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
from edge_embed_bundle.room import free_memory_bytes
from edge_embed_bundle.store import Probe, Settled, Store, Verdict
from edge_embed_bundle.updating import trust
from edge_embed_bundle.updating.building import Patcher
from edge_embed_bundle.updating.incoming import Incoming
from edge_embed_bundle.updating.planning import NOTHING_NEW, REFUSE, Device, Plan, plan
from edge_embed_bundle.updating.records import Last, Records, Trusted, format_time
from edge_embed_bundle.updating.releases import Channel, Release, channel_path, spaces_of
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
            way = "" if self.plan.delta is None else f"; made by a delta from {self.plan.delta.parent[:12]}"
            return f"{release} {self.verdict.reason or 'probed, confirmed, serves'}{way}"
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
        patch: Patcher | None = None,
        fs: FsOps | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Get ready to update.

        Args:
            store: the store's folder.
            site: the repository.
            probe: judges the trial.
            patch: opens a delta over its parent; without it every release is fetched by its files.
            fs: writes to the flash.
            pause: waits so many seconds.
        """
        self._fs: FsOps = OsFs() if fs is None else fs
        self._store = Store(store, fs=self._fs)
        self._site = site
        self._probe = probe
        self._patch = patch
        self._pause = pause
        self._records = Records(self._store.path)

    def update(self, request: Request, progress: Callable[[Plan], Progress] = _no_progress) -> Outcome:
        """Bring the store to the release that its channel has for this device.

        Args:
            request: the decisions of whoever runs the board.
            progress: asked once there is something to fetch, and again where a delta led nowhere; told the bytes of
                the plan's files as they are there.

        Raises:
            UpdateError: the repository cannot be reached or trusted. What served before serves on.
            RefusedError: the probe said no. What served before serves on.
            StoreError: the store is busy, damaged or full.
        """
        refused = _refused(self._store.settle(self._probe))
        with self._alone():
            try:
                outcome = self._on_flash(request, progress)
            except EdgeEmbedError as error:
                kind = REFUSED if isinstance(error, RefusedError) else FAILED
                self._remember(request, kind, str(error), Plan(NOTHING_NEW, passed_over=refused))
                raise
            planned = replace(outcome.plan, passed_over=(*refused, *outcome.plan.passed_over))
            outcome = replace(outcome, plan=planned)
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
        incoming = Incoming(folder, release, self._store, self._site, self._fs, patch=self._patch, pause=self._pause)
        planned, fetched = incoming.bring(planned, progress)
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

    def _drop_incoming(self, release: Release | None) -> None:
        """Remove what was fetched for any other release."""
        if self._records.incoming.is_dir():
            for folder in sorted(self._records.incoming.iterdir()):
                if release is None or folder.name != release.id:
                    remove_tree(self._fs, folder)

    def _remember(self, request: Request, kind: str, said: str, planned: Plan) -> None:
        release = "" if planned.release is None else str(planned.release)
        at = format_time(request.clock)
        last = Last(kind, said[:1000], self._site.name, request.channel, at, release, planned.passed_over)
        self._records.save_last(last, self._fs)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        busy = f"{self._store.path}: another process is updating this store; try again"
        return held_lock(self._records.folder / "lock", busy)


def _refused(settled: Settled | None) -> tuple[str, ...]:
    """Return why a trial that was cut off ended with a no."""
    if settled is None or settled.verdict.passed:
        return ()
    return (f"{settled.generation[:12]}: its trial was cut off, and then refused: {settled.verdict.reason}",)


def _reason(error: RefusedError, folder: Path) -> str:
    return str(error).removeprefix(f"{folder}: ")
