"""A repository: channels that are signed, blobs by their digest, all of it static files.

   metadata/               signed, by role and version (signing.py)
   targets/channels/       HASH.NAME.json: the releases of a channel
   blobs/SHA256            every file of every bundle once, manifests too

* Blobs are written before the channel that names them, and never changed: whoever copies the folder to a server while
  boards ask copies ``blobs``, ``targets`` and ``metadata`` in this order, ``timestamp.json`` last.
* Publishing a bundle again changes its roll-out and nothing else: its share, its boards, whether it is halted.
* A channel keeps what some board may still be sent to: down to the second release that is for everybody.
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

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError
from edge_embed_bundle.manifest import MANIFEST_NAME
from edge_embed_bundle.updating.releases import (
    FRAME_BYTES,
    Channel,
    File,
    Release,
    blob_path,
    channel_path,
    spaces_of,
)
from edge_embed_export.publishing.gates import check_bundle, check_frozen, check_space
from edge_embed_export.publishing.signing import SNAPSHOT_DAYS, TIMESTAMP_DAYS, Keys, SignedRepository

#: The first edge-embed that updates; a bundle says by its features what more it needs.
FIRST_RUNTIME = "0.1.0"

_FULL_RELEASES = 2


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
        snapshot_days: int = SNAPSHOT_DAYS,
        timestamp_days: int = TIMESTAMP_DAYS,
    ) -> Release:
        """Offer a bundle to the boards of a channel, or change how it is rolled out; return it as it is offered.

        Raises:
            GateError: the bundle is not fit to be published; nothing was changed.
            SigningError: a key is not here; what the channel offers was not changed.
        """
        channel = self.channel(roll_out.channel)
        release = described(bundle, roll_out, next((r for r in channel.releases if r.id == _id(bundle)), None))
        others = [other for other in channel.releases if other.id != release.id]
        if len(others) == len(channel.releases):
            release = self._passed(bundle, release, others, roll_out)
            self._put_blobs(bundle, release)
            releases = [release, *others]
        else:
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
            with self._unpacked(before) as old:
                check_frozen(roll_out.frozen_check, old, bundle)
        return release._replace(new_space=reason)

    def _put_blobs(self, bundle: Path, release: Release) -> None:
        (self._folder / "blobs").mkdir(parents=True, exist_ok=True)
        for file in release.files:
            target = self._folder / blob_path(file.sha256)
            if target.is_file() and target.stat().st_size == file.size_bytes:
                continue
            partial = target.with_name(f".partial-{file.sha256}")
            shutil.copyfile(bundle / file.name, partial)
            partial.chmod(0o644)
            if _file(partial, file.name) != file:
                partial.unlink()
                raise BundleError(f"{bundle / file.name}: expected it to stay as it was, found it changed meanwhile")
            partial.replace(target)

    @contextlib.contextmanager
    def _unpacked(self, release: Release | None) -> Iterator[Path | None]:
        """Make the bundle of a release of this repository, for as long as somebody looks at it."""
        if release is None:
            yield None
            return
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


def _file(path: Path, name: str) -> File:
    """Return a file with the digests of its frames, read once."""
    whole, frames, size = hashlib.sha256(), [], 0
    with path.open("rb") as stream:
        while frame := stream.read(FRAME_BYTES):
            whole.update(frame)
            frames.append(hashlib.sha256(frame).hexdigest())
            size += len(frame)
    return File(name, size, whole.hexdigest(), tuple(frames))
