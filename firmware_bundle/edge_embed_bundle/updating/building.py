"""The files of a release made on the board, out of a delta and of the bundle that it starts from.

* What turns frames into bytes is handed in: it takes arithmetic that this package does without.
* The manifest comes out of the delta first, and must be the one that the release names, byte for byte.
* Each file is compared with the release's digest as it is written, into the room that was reserved for it, and gets its
  name when it is right, sealed and on the flash: from then on nothing tells it from one that was fetched.
* What was written of a wrong file stays in its room: the frames of it that are right are not fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

from edge_embed_bundle.bundle import Bundle, Progress
from edge_embed_bundle.delta import DeltaFile
from edge_embed_bundle.errors import BundleError, DeltaError, DigestError
from edge_embed_bundle.fsops import FsOps
from edge_embed_bundle.manifest import MANIFEST_NAME
from edge_embed_bundle.updating.fetching import partial_path
from edge_embed_bundle.updating.releases import File


class Patched(Protocol):
    """A new bundle, as a delta and its parent give it."""

    @property
    def manifest_bytes(self) -> bytes:
        """The new manifest, byte for byte."""

    def chunks(self, blob: str) -> Iterator[memoryview]:
        """Yield the bytes of a blob; each chunk is valid until the next one is asked for.

        Raises:
            BundleError: the delta is malformed, or the parent is damaged.
        """


#: Opens a delta over its parent. Raises a BundleError where they do not belong together.
Patcher: TypeAlias = "Callable[[Bundle, DeltaFile], Patched]"


def check_leads_to(patched: Patched, manifest: File, source: str) -> None:
    """See that a delta makes the bundle whose manifest is signed.

    Raises:
        DeltaError: it makes another one.
    """
    found = hashlib.sha256(patched.manifest_bytes).hexdigest()
    if found != manifest.sha256:
        raise DeltaError(f"{source}: expected it to lead to {manifest.sha256[:12]}, found {found[:12]}")


def build(patched: Patched, file: File, target: Path, fs: FsOps, progress: Progress, *, source: str) -> None:
    """Make a file, for which room was reserved.

    Raises:
        BundleError: it could not be made, or is another one than was signed.
    """
    partial, found = partial_path(target), hashlib.sha256()
    with fs.overwrite(partial) as out:
        for chunk in _chunks(patched, file.name, source):
            out.write(chunk)
            found.update(chunk)
            progress(len(chunk))
        if found.hexdigest() != file.sha256:
            raise DigestError(f"{source}: {file.name}: expected sha256 {file.sha256}, found {found.hexdigest()}")
        out.seal()
        out.sync()
    fs.rename(partial, target)


def _chunks(patched: Patched, name: str, source: str) -> Iterator[memoryview]:
    try:
        if name == MANIFEST_NAME:
            yield memoryview(patched.manifest_bytes)
            return
        for chunk in patched.chunks(name):
            yield chunk.cast("B")
    except OSError as error:
        # The parent's, which is read meanwhile: its flash goes bad, and there is another way.
        raise BundleError(f"{source}: expected a parent to read, found: {error}") from error
