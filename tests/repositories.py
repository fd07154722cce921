"""Small signed repositories for tests, made by what publishers run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge_embed_bundle.updating.releases import FRAME_BYTES, File, Release
from edge_embed_export.publishing.repository import Repository, RollOut
from edge_embed_export.publishing.signing import DEFAULT_ROOT_KEYS, Keys

A_DAY = timedelta(days=1)


def now() -> datetime:
    """Return the time; python-tuf asks the system's clock, so tests cannot choose another one for it."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Publisher:
    """A folder of keys and a repository that they sign."""

    keys: Path
    site: Path

    @classmethod
    def make(cls, place: Path, *, root_keys: int = DEFAULT_ROOT_KEYS, at: datetime | None = None) -> Publisher:
        """Make keys and no repository yet."""
        Keys.create(place / "keys", root_keys=root_keys, now=at or now())
        return cls(place / "keys", place / "site")

    @property
    def root(self) -> bytes:
        """What boards are given to trust."""
        return (self.keys / "1.root.json").read_bytes()

    def publish(
        self,
        bundle: Path,
        roll_out: RollOut | None = None,
        *,
        at: datetime | None = None,
        days: int = 7,
        check: Callable[[Path], None] = lambda bundle: None,
        delta_from: Sequence[Path] = (),
        tell: Callable[[str], None] = lambda said: None,
    ) -> Release:
        """Publish a bundle, its space being another one than that of the one before; nobody runs it before."""
        repository = Repository(self.site, Keys([self.keys]), check=check)
        roll_out = RollOut(new_space="random vectors of another seed") if roll_out is None else roll_out
        return repository.publish(
            bundle,
            roll_out,
            at or now(),
            delta_from=delta_from,
            tell=tell,
            snapshot_days=days,
            timestamp_days=days,
        )

    def sign(self, *, at: datetime | None = None, days: int = 7) -> None:
        """Sign what there is anew."""
        Repository(self.site, Keys([self.keys])).sign(None, at or now(), snapshot_days=days, timestamp_days=days)

    def offer_delta(self, data: bytes) -> None:
        """Sign other bytes for the one delta of the newest release."""
        repository = Repository(self.site, Keys([self.keys]))
        channel = repository.channel("stable")
        newest, *others = channel.releases
        (before,) = newest.deltas
        frames = (data[at : at + FRAME_BYTES] for at in range(0, len(data), FRAME_BYTES))
        digests = tuple(hashlib.sha256(frame).hexdigest() for frame in frames)
        file = File(before.file.name, len(data), hashlib.sha256(data).hexdigest(), digests)
        (self.site / "blobs" / file.sha256).write_bytes(data)
        newest = newest._replace(deltas=(before._replace(file=file),))
        repository.sign(channel._replace(releases=(newest, *others)), now())

    def copy(self, place: Path) -> Publisher:
        """Return a publisher of its own with the same keys and files."""
        shutil.copytree(self.keys, place / "keys")
        shutil.copytree(self.site, place / "site")
        return Publisher(place / "keys", place / "site")
