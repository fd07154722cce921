"""A release on its way into the store: what is here of it, what has to be fetched, and what can be made.

* What the store has is not fetched: it gets a second name here, if it is whole.
* The room for all that is missing is taken before a byte of it is asked for; for a delta, beside what it makes.
* A delta that leads nowhere (it or its parent is damaged, or it is not there) goes, and is not tried again for this
  release; one that finds no room goes, too. What is missing of the files is fetched in the same update.
* So it is where a server that is there does not hand the delta out; what is here of it stays until the files are.
* A delta is gone before its release is installed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from edge_embed_bundle.bundle import Bundle, Progress
from edge_embed_bundle.delta import DeltaFile
from edge_embed_bundle.errors import AbsentError, BundleError, SpaceError, TrustError
from edge_embed_bundle.fsops import FsOps
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.store import RESERVE_BYTES, Store, is_whole
from edge_embed_bundle.updating.building import Patcher, build, check_leads_to
from edge_embed_bundle.updating.fetching import WrongBytesError, fetch, left_bytes, partial_path, reserve
from edge_embed_bundle.updating.planning import Plan, by_delta, by_files
from edge_embed_bundle.updating.releases import Delta, File, Release, spaces_of
from edge_embed_bundle.updating.sites import Site, StatusError

#: Stands here where a delta of this release led nowhere. No file of a bundle is called so.
_NO_DELTA = ".no-delta"


class Incoming:
    """The folder of a release that is being fetched."""

    def __init__(
        self,
        folder: Path,
        release: Release,
        store: Store,
        site: Site,
        fs: FsOps,
        *,
        patch: Patcher | None,
        pause: Callable[[float], None],
    ) -> None:
        self._folder = folder
        self._release = release
        self._store = store
        self._site = site
        self._fs = fs
        self._patch = patch
        self._pause = pause

    def bring(self, full: Plan, progress: Callable[[Plan], Progress]) -> tuple[Plan, int]:
        """Bring all files of the release here; return by which plan, and how many bytes were fetched.

        Raises:
            FetchError: a file did not come; what is verified of it stays for the next time.
            TrustError: the channel says something else of the bundle than its manifest.
            SpaceError: there is no room for the files.
        """
        for file in self._release.files:
            self._link_known(file)
        planned, fetched = self._shortest(full), 0
        self._drop_deltas(but=planned.delta)
        if planned.delta is not None and self._patch is not None:
            told = progress(planned)
            try:
                missing = self._with_room(planned, told)
                if planned.delta.file in missing:
                    fetched += self._fetch(planned.delta.file, told)
                self._make(planned.delta, self._patch, missing, told)
            except StatusError as error:
                planned = by_files(planned, f"a delta of {self._release}: {error}")
            except (BundleError, AbsentError, WrongBytesError, SpaceError, OSError) as error:
                planned = by_files(planned, f"a delta of {self._release}: {error}")
                self._drop_deltas()
                if not isinstance(error, SpaceError | OSError):
                    with self._fs.create(self._folder / _NO_DELTA):
                        pass
        if planned.delta is None:
            fetched += self._fetch_all(planned, progress(planned))
        self._drop_deltas()
        self._fs.sync_folder(self._folder)
        return planned, fetched

    def _link_known(self, file: File) -> None:
        """Take a file that the store has already, if it is whole."""
        known = self._store.path / "blobs" / file.sha256
        if file.name == MANIFEST_NAME:
            known = self._store.generation(self._release.id) / MANIFEST_NAME
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if not (self._folder / file.name).exists() and is_whole(known, file.sha256):
                self._fs.link(known, self._folder / file.name)

    def _shortest(self, full: Plan) -> Plan:
        """Return the plan by a delta, where one is short from what is here."""
        if self._patch is None or not self._release.deltas or (self._folder / _NO_DELTA).exists():
            return full
        whole = {each.id for each in self._store.status().generations if not each.rotten and not each.problem}
        deltas = [delta for delta in self._release.deltas if delta.parent in whole]
        missing_bytes = sum(self._left_bytes(file) for file in self._release.files)
        return by_delta(full, missing_bytes, {delta.parent: self._left_bytes(delta.file) for delta in deltas})

    def _left_bytes(self, file: File) -> int:
        return left_bytes(file, self._folder / file.name)

    def _with_room(self, planned: Plan, progress: Progress) -> list[File]:
        """Take the room for what is missing of a plan's files, and return these."""
        missing = [file for file in planned.files if not (self._folder / file.name).is_file()]
        self._check_space(missing)
        for file in missing:
            reserve(file, self._folder / file.name, self._fs)
        progress(sum(file.size_bytes for file in planned.files if file not in missing))
        return missing

    def _check_space(self, missing: list[File]) -> None:
        """Say early, and in one sentence, what the reservation would find out by failing."""
        needed = sum(file.size_bytes for file in missing if not partial_path(self._folder / file.name).is_file())
        status = os.statvfs(self._folder)
        free = status.f_bavail * status.f_frsize
        if needed and needed + RESERVE_BYTES > free:
            raise SpaceError(
                f"{self._store.path}: expected {needed + RESERVE_BYTES} free bytes for the new generation, "
                f"found {free}; nothing was changed"
            )

    def _fetch_all(self, planned: Plan, progress: Progress) -> int:
        missing, fetched = self._with_room(planned, progress), 0
        for file in self._release.files:
            if file in missing:
                fetched += self._fetch(file, progress)
            if file.name == MANIFEST_NAME:
                _check_manifest((self._folder / file.name).read_bytes(), self._release)
        return fetched

    def _fetch(self, file: File, progress: Progress) -> int:
        return fetch(self._site, file, self._folder / file.name, self._fs, progress=progress, pause=self._pause)

    def _make(self, delta: Delta, patch: Patcher, missing: list[File], progress: Progress) -> None:
        """Make what is missing of the files by a delta that is here."""
        source = f"the one from {delta.parent[:12]}"
        place = self._folder / delta.file.name
        with Bundle.open(self._store.generation(delta.parent)) as parent, place.open("rb") as opened:
            patched = patch(parent, DeltaFile(opened.fileno(), source=source))
            check_leads_to(patched, self._release.files[0], source)
            _check_manifest(patched.manifest_bytes, self._release)
            for file in self._release.files:
                if file in missing:
                    build(patched, file, self._folder / file.name, self._fs, progress, source=source)

    def _drop_deltas(self, but: Delta | None = None) -> None:
        """Remove what is here of deltas."""
        for delta in self._release.deltas:
            place = self._folder / delta.file.name
            for path in (place, partial_path(place)):
                if delta != but and path.is_file():
                    self._fs.unlink(path)


def _check_manifest(data: bytes, release: Release) -> None:
    """See that the manifest says what the channel says of it, before the large files are there."""
    manifest = Manifest.parse(data, source=f"{release}: {MANIFEST_NAME}")
    found = {(name, blob.size_bytes, blob.sha256) for name, blob in manifest.blobs.items()}
    signed = {(file.name, file.size_bytes, file.sha256) for file in release.files if file.name != MANIFEST_NAME}
    if found != signed or spaces_of(manifest) != release.spaces:
        raise TrustError(
            f"{release}: expected the files and spaces that the channel names, found others in its manifest"
        )
