"""A repository: channels that are signed, blobs by their digest, all of it static files.

   metadata/               signed, by role and version (signing.py)
   targets/channels/       HASH.NAME.json: the releases of a channel
   blobs/SHA256            every file of every bundle once, manifests too, and deltas

* Blobs are written before the channel that names them, and never changed: whoever copies the folder to a server while
  boards ask copies ``blobs``, ``targets`` and ``metadata`` in this order, ``timestamp.json`` last.
* Publishing a bundle again changes its roll-out: its share, its boards, whether it is halted. Its files stay, and
  its deltas, to which others may be added.
* A channel keeps what some board may still be sent to: down to the second release that is for everybody.
* A new release brings deltas from what boards are likely to have, the two newest releases that are not halted, and from
  bundles that are given: a board may have come with one that no channel offers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge_embed.progress import SILENT, Progress
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError, DigestError
from edge_embed_bundle.manifest import MANIFEST_NAME
from edge_embed_bundle.updating.releases import (
    FRAME_BYTES,
    Channel,
    Delta,
    File,
    Release,
    blob_path,
    channel_path,
    delta_name,
    spaces_of,
)
from edge_embed_export.publishing.deltas import try_delta
from edge_embed_export.publishing.gates import check_bundle, check_frozen, check_space
from edge_embed_export.publishing.signing import SNAPSHOT_DAYS, TIMESTAMP_DAYS, Keys, SignedRepository

#: The first edge-embed that updates; a bundle says by its features what more it needs.
FIRST_RUNTIME = "0.1.0"

_FULL_RELEASES = 2
_PARENTS = 2


@dataclass(frozen=True)
class RollOut:
    """What the publisher decides about a release; what is None stays as it was."""

    channel: str = "stable"
    percent: int | None = None
    boards: tuple[str, ...] | None = None
    minimum_runtime: str | None = None
    halted: bool = False
    new_space: str = ""
    frozen_check: str | None = None


class Repository:
    """A folder of static files, with the keys that sign it."""

    def __init__(self, folder: Path, keys: Keys, *, check: Callable[[Path], None] = check_bundle) -> None:
        self._check = check
        self._folder = folder
        self._keys = keys
        self._signed = SignedRepository(folder)

    def publish(
        self,
        bundle: Path,
        roll_out: RollOut,
        now: datetime,
        *,
        delta_from: Sequence[Path] = (),
        progress: Progress = SILENT,
        tell: Callable[[str], None] = lambda said: None,
        snapshot_days: int = SNAPSHOT_DAYS,
        timestamp_days: int = TIMESTAMP_DAYS,
    ) -> Release:
        """Offer a bundle to the boards of a channel, or change how it is rolled out; return it as it is offered.

        Args:
            bundle: the bundle's folder.
            roll_out: to whom.
            now: the moment of the signatures.
            delta_from: older bundles to make deltas from, beside those that the channel offers.
            progress: shows how deltas are made.
            tell: told about each delta.
            snapshot_days: how long the snapshot's signature counts.
            timestamp_days: how long the timestamp's does.

        Raises:
            BundleError: a bundle is damaged.
            GateError: the bundle is not fit to be published; nothing was changed.
            SigningError: a key is not here; what the channel offers was not changed.
        """
        channel = self.channel(roll_out.channel)
        release = described(bundle, roll_out, next((r for r in channel.releases if r.id == _id(bundle)), None))
        others = [other for other in channel.releases if other.id != release.id]
        if len(others) == len(channel.releases):
            release = self._passed(bundle, release, others, roll_out)
            for file in release.files:
                self._put_blob(bundle / file.name, file)
            parents = [other for other in others if not other.halted][:_PARENTS]
            release = self._with_deltas(bundle, release, parents, delta_from, progress, tell)
            releases = [release, *others]
        else:
            release = self._with_deltas(bundle, release, (), delta_from, progress, tell)
            releases = [release if other.id == release.id else other for other in channel.releases]
        channel = channel._replace(releases=kept(releases))
        self.sign(channel, now, snapshot_days=snapshot_days, timestamp_days=timestamp_days)
        return release

    def sign(
        self,
        channel: Channel | None,
        now: datetime,
        *,
        snapshot_days: int = SNAPSHOT_DAYS,
        timestamp_days: int = TIMESTAMP_DAYS,
    ) -> None:
        """Sign a channel, or nothing new: then just what a newer root or the time demands."""
        files = {} if channel is None else {channel_path(channel.name): channel.to_bytes()}
        self._signed.sign(self._keys, files, now, snapshot_days=snapshot_days, timestamp_days=timestamp_days)

    def channel(self, name: str) -> Channel:
        """Return a channel as it is offered now; one that nobody published to has no releases."""
        data = self._signed.target(channel_path(name))
        return Channel(name) if data is None else Channel.parse(data, source=channel_path(name))

    def _passed(self, bundle: Path, release: Release, others: Sequence[Release], roll_out: RollOut) -> Release:
        """Return the release, with the reason for a new space, if it passes every gate."""
        self._check(bundle)
        before = next((other for other in others if not other.halted), None)
        reason = check_space({} if before is None else before.spaces, release.spaces, roll_out.new_space)
        if roll_out.frozen_check is not None:
            with contextlib.nullcontext() if before is None else self._unpacked(before) as old:
                check_frozen(roll_out.frozen_check, old, bundle)
        return release._replace(new_space=reason)

    def _put_blob(self, source: Path, file: File) -> None:
        target = self._folder / blob_path(file.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_whole(target, file):
            return
        partial = target.with_name(f".partial-{file.sha256}")
        shutil.copyfile(source, partial)
        partial.chmod(0o644)
        if _file(partial, file.name) != file:
            partial.unlink()
            raise BundleError(f"{source}: expected it to stay as it was, found it changed meanwhile")
        partial.replace(target)

    def _with_deltas(
        self,
        bundle: Path,
        release: Release,
        parents: Sequence[Release],
        given: Sequence[Path],
        progress: Progress,
        tell: Callable[[str], None],
    ) -> Release:
        """Return the release with deltas from some releases and bundles, as far as they are short."""
        deltas = {delta.parent: delta for delta in release.deltas}
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-embed-")))
            folders = {_id(path): path for path in given}
            for parent in parents:
                if parent.id in folders:
                    continue
                places = {self._folder / blob_path(file.sha256): file for file in parent.files}
                if not all(path.is_file() for path in places):
                    tell(f"no delta from {parent}: its files are not in {self._folder}; give --delta-from BUNDLE")
                    continue
                for path, file in places.items():
                    if not _is_whole(path, file):
                        raise DigestError(
                            f"{path}: expected sha256 {file.sha256} of {file.name} of {parent}, found other bytes"
                        )
                folders[parent.id] = stack.enter_context(self._unpacked(parent))
            for identity, folder in folders.items():
                if identity in (release.id, *deltas):
                    continue
                name = delta_name(identity)
                tried = try_delta(folder, bundle, release, place / name, progress)
                if tried.is_offered:
                    deltas[identity] = Delta(identity, _file(place / name, name))
                    self._put_blob(place / name, deltas[identity].file)
                tell(tried.said)
        return release._replace(deltas=tuple(deltas.values()))

    @contextlib.contextmanager
    def _unpacked(self, release: Release) -> Iterator[Path]:
        """Make the bundle of a release of this repository, for as long as somebody looks at it."""
        with tempfile.TemporaryDirectory(prefix="edge-embed-") as name:
            for file in release.files:
                source, target = self._folder / blob_path(file.sha256), Path(name) / file.name
                try:
                    os.link(source, target)
                except OSError:  # another file system
                    shutil.copyfile(source, target)
            yield Path(name)


def described(bundle: Path, roll_out: RollOut, before: Release | None) -> Release:
    """Return a bundle as a release, with the decisions that were made now and, for the rest, those of before."""
    with Bundle.open(bundle) as opened:
        manifest, identity = opened.manifest, opened.id
    if before is None:
        files = tuple(_file(bundle / name, name) for name in (MANIFEST_NAME, *manifest.blobs))
        salt = hashlib.sha256(f"{roll_out.channel}:{identity}".encode()).hexdigest()
        before = Release(
            identity,
            manifest.name,
            manifest.version,
            spaces_of(manifest),
            manifest.requirements.features,
            FIRST_RUNTIME,
            (),
            100,
            salt,
            False,
            files,
            memory_private_bytes=manifest.requirements.memory_private_bytes,
        )
    return before._replace(
        percent=before.percent if roll_out.percent is None else roll_out.percent,
        boards=before.boards if roll_out.boards is None else roll_out.boards,
        minimum_runtime=before.minimum_runtime if roll_out.minimum_runtime is None else roll_out.minimum_runtime,
        halted=roll_out.halted,
    )


def kept(releases: Sequence[Release]) -> tuple[Release, ...]:
    """Return the releases that some board may still be sent to."""
    full = 0
    for i, release in enumerate(releases):
        full += release.percent == 100 and not release.boards and not release.halted
        if full == _FULL_RELEASES:
            return tuple(releases[: i + 1])
    return tuple(releases)


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


def _is_whole(path: Path, file: File) -> bool:
    return path.is_file() and _file(path, file.name) == file


def _file(path: Path, name: str) -> File:
    """Return a file with the digests of its frames, read once."""
    whole, frames, size = hashlib.sha256(), [], 0
    with path.open("rb") as stream:
        while frame := stream.read(FRAME_BYTES):
            whole.update(frame)
            frames.append(hashlib.sha256(frame).hexdigest())
            size += len(frame)
    return File(name, size, whole.hexdigest(), tuple(frames))
