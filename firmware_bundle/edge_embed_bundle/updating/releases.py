"""What a channel offers: its releases, newest first, as frozen values. No disk, no clock.

A channel is one strict JSON file, ``channels/NAME.json``, that the targets key of the repository vouches for:

 * Each release names its bundle (the sha256 of the manifest), every file of it, the manifest first, with size, sha256
   and the digests of its frames of 1 MiB, and what a device must be to take it: runtime, features, board, share of the
   fleet.
 * Whether a device belongs to the share hangs on a hash of its id and the release's salt: the answer stays the same
   however often it asks, and whoever was in a small share is in every larger one.
 * ``halted`` takes a release back from everybody, ``percent`` 0 from those alone who have not taken it yet.
 * ``deltas`` are shorter ways to the same files, each from one older bundle; who has none of these takes the files.
 * Fields that this reader does not know are ignored; what it must know stands in ``features``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from edge_embed_bundle import strict_json
from edge_embed_bundle.fields import HEX_DIGEST, Fields
from edge_embed_bundle.manifest import MANIFEST_NAME, VERSION, Manifest
from edge_embed_bundle.values import FILE_NAME, NAME, NOTHING

#: What is verified, kept and resumed at a time.
FRAME_BYTES = 1024 * 1024

#: A channel's file: some kilobytes, and 70 bytes for each MiB of each release.
CHANNEL_CEILING_BYTES = strict_json.MANIFEST_CEILING_BYTES

_FORMAT = 1
_FILE = re.compile(rf"{FILE_NAME.pattern}|{re.escape(MANIFEST_NAME)}")
_REASON_CEILING = 500


class File(NamedTuple):
    """A file of a bundle: exact size, sha256, and the sha256 of each frame of it."""

    name: str
    size_bytes: int
    sha256: str
    frames: tuple[str, ...]

    @classmethod
    def read(cls, fields: Fields) -> File:
        """Read one entry of ``files``."""
        return cls.named(fields.text("name", pattern=_FILE), fields)

    @classmethod
    def named(cls, name: str, fields: Fields) -> File:
        """Read what is said of a file whose name is known."""
        file = cls(
            name,
            fields.count("size_bytes"),
            fields.text("sha256", pattern=HEX_DIGEST),
            fields.texts("frames"),
        )
        if len(file.frames) != -(-file.size_bytes // FRAME_BYTES) or not all(map(HEX_DIGEST.fullmatch, file.frames)):
            fields.fail("frames", f"a digest for each {FRAME_BYTES} of {file.size_bytes} bytes", len(file.frames))
        return file

    def frame_size(self, frame: int) -> int:
        """Return the bytes of a frame; the last one may be shorter."""
        return min(FRAME_BYTES, self.size_bytes - frame * FRAME_BYTES)

    def to_json(self) -> dict[str, Any]:
        """Return what is said of it, but for its name."""
        return {"size_bytes": self.size_bytes, "sha256": self.sha256, "frames": list(self.frames)}


class Delta(NamedTuple):
    """A file that makes a release's bundle of another one, the parent (SPEC.md, *A delta*)."""

    parent: str
    file: File
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Delta:
        """Read one entry of ``deltas``."""
        parent = fields.text("parent", pattern=HEX_DIGEST)
        # No file of a bundle is called so: the delta lies beside what it makes.
        return cls(parent, File.named(delta_name(parent), fields), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "parent": self.parent, **self.file.to_json()}


class Release(NamedTuple):
    """A bundle as a channel offers it."""

    id: str
    name: str
    version: str
    #: The space of each model, by the model's name.
    spaces: Mapping[str, str]
    features: tuple[str, ...]
    minimum_runtime: str
    boards: tuple[str, ...]
    percent: int
    salt: str
    halted: bool
    files: tuple[File, ...]
    #: Why the space is another one than that of the release before; empty where it is not.
    new_space: str = ""
    #: What a runtime takes for it, as the manifest's requirements have it.
    memory_private_bytes: int = 0
    deltas: tuple[Delta, ...] = ()
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Release:
        """Read one entry of ``releases``."""
        release = cls(
            fields.text("id", pattern=HEX_DIGEST),
            fields.text("name", pattern=NAME),
            fields.text("version", pattern=VERSION),
            fields.texts_by_name("spaces", pattern=NAME),
            fields.texts("features"),
            fields.text("minimum_runtime", pattern=VERSION),
            fields.texts("boards"),
            fields.count("percent", ceiling=100),
            fields.text("salt", pattern=HEX_DIGEST),
            fields.flag("halted"),
            fields.listed("files", File.read),
            fields.text("new_space")[:_REASON_CEILING] if fields.has("new_space") else "",
            fields.count("memory_private_bytes") if fields.has("memory_private_bytes") else 0,
            fields.listed("deltas", Delta.read) if fields.has("deltas") else (),
            fields.rest(),
        )
        manifests = [(file.name, file.sha256) for file in release.files[:1]]
        if manifests != [(MANIFEST_NAME, release.id)]:
            fields.fail("files", f"{MANIFEST_NAME} first, with sha256 {release.id[:12]}...", manifests)
        if any(file.size_bytes > strict_json.MANIFEST_CEILING_BYTES for file in release.files[:1]):
            fields.fail("files", f"a manifest of {strict_json.MANIFEST_CEILING_BYTES} bytes at most", "more")
        if len({file.name for file in release.files}) != len(release.files):
            fields.fail("files", "each name once", "one twice")
        if len({release.id, *(delta.parent for delta in release.deltas)}) != len(release.deltas) + 1:
            fields.fail("deltas", "each parent once, and another bundle than the release's", "one twice")
        return release

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            **({"new_space": self.new_space} if self.new_space else {}),
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "spaces": dict(self.spaces),
            "features": list(self.features),
            "minimum_runtime": self.minimum_runtime,
            "memory_private_bytes": self.memory_private_bytes,
            "boards": list(self.boards),
            "percent": self.percent,
            "salt": self.salt,
            "halted": self.halted,
            "files": [{"name": file.name, **file.to_json()} for file in self.files],
            **({"deltas": [delta.to_json() for delta in self.deltas]} if self.deltas else {}),
        }

    def takes(self, device_id: str) -> bool:
        """Return whether a device belongs to the share of the fleet that gets this release."""
        digest = hashlib.sha256(f"{self.salt}:{device_id}".encode()).digest()
        return int.from_bytes(digest[:8]) * 100 < self.percent << 64

    def __str__(self) -> str:
        """Return how people call it."""
        return f"{self.name} {self.version} ({self.id[:12]})"


class Channel(NamedTuple):
    """The releases of one channel, the newest first."""

    name: str
    releases: tuple[Release, ...] = ()
    extra: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def parse(cls, data: bytes, *, source: str) -> Channel:
        """Read and check a channel's file.

        Raises:
            ManifestError: a rule is broken; ``source`` names the file.
        """
        fields = Fields(strict_json.loads(data, source=source), source=source)
        fields.count("format", floor=_FORMAT, ceiling=_FORMAT)
        return cls(fields.text("name", pattern=NAME), fields.listed("releases", Release.read), fields.rest())

    def to_bytes(self) -> bytes:
        """Return the file: one spelling for one value."""
        return strict_json.dumps(
            {**self.extra, "format": _FORMAT, "name": self.name, "releases": [r.to_json() for r in self.releases]}
        )


def spaces_of(manifest: Manifest) -> dict[str, str]:
    """Return the space of each model of a manifest, by the model's name."""
    return {model.name: manifest.space_of(model).id for model in manifest.models}


def changed_spaces(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    """Return the models whose vectors may not be compared with those of before, or that are gone."""
    return tuple(sorted(name for name, space in old.items() if new.get(name) != space))


def channel_path(name: str) -> str:
    """Return the target path of a channel's file."""
    return f"channels/{name}.json"


def delta_name(parent: str) -> str:
    """Return what a delta is called while it lies on a board."""
    return f".delta-{parent[:12]}"


def blob_path(sha256: str) -> str:
    """Return where a repository keeps the file with that digest."""
    return f"blobs/{sha256}"
