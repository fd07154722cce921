"""Writing a bundle: section by section, digest as it goes, durable before it has its name.

* Every section starts on a 64 KiB boundary; the gap before it is zeros. The same input gives the same bytes.
* Files are written under a partial folder beside the target, synced, and the folder renamed when all is there:
  a folder with the bundle's name is always a whole bundle.
* A blob is hashed while it is written, so nothing is read back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from edge_embed_bundle.errors import BundleError
from edge_embed_bundle.fsops import FsOps, OsFs, WritableFile, remove_tree
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.values import SECTION_BYTES, Blob, Tensor


def aligned(offset_bytes: int) -> int:
    """Return the first section boundary at or after an offset."""
    return -(-offset_bytes // SECTION_BYTES) * SECTION_BYTES


class BlobWriter:
    """One file of a bundle under construction."""

    def __init__(self, name: str, file: WritableFile) -> None:
        self.name = name
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes as they are."""
        self._file.write(data)
        self._digest.update(data)
        self._size += memoryview(data).nbytes

    def section(self, chunks: Iterable[bytes | memoryview], *, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """Append an array on the next section boundary, from chunks of its little-endian bytes in row order."""
        self.write(bytes(aligned(self._size) - self._size))
        tensor = Tensor(self.name, self._size, dtype, shape)
        for chunk in chunks:
            self.write(chunk)
        if self._size != tensor.offset_bytes + tensor.size_bytes:
            raise ValueError(f"{self.name}: {dtype} of {shape} needs {tensor.size_bytes} bytes, got another number")
        return tensor

    def _finish(self) -> Blob:
        self._file.sync()
        return Blob(self._size, self._digest.hexdigest())


class BundleWriter:
    """Builds a bundle beside its target and moves it there when it is whole. Use as a context manager."""

    def __init__(self, target: Path, *, replace: bool = False, fs: FsOps | None = None) -> None:
        # A target of "." has no name of its own to put a partial folder beside.
        self.target = target if target.name else target.absolute()
        self._replace = replace
        self._check_target()
        #: Where the files stand until ``finish``; graphs can be run from here.
        self.partial = self.target.with_name(f".{self.target.name}.partial-{os.getpid()}")
        self._fs: FsOps = OsFs() if fs is None else fs
        self._blobs: dict[str, Blob] = {}

    def blob(self, name: str, write: Callable[[BlobWriter], None]) -> Blob:
        """Create the blob ``name``, let ``write`` fill it, and return what it became."""
        with self._fs.create(self.partial / name) as file:
            blob = BlobWriter(name, file)
            write(blob)
            self._blobs[name] = blob._finish()
        return self._blobs[name]

    def preview(self, manifest_of: Callable[[dict[str, Blob]], Manifest]) -> Path:
        """Let the partial folder be opened as a bundle: what is written already can be asked for its answers.

        The next ``preview`` or ``finish`` takes the place of its manifest.
        """
        self._write_manifest(manifest_of)
        return self.partial

    def finish(self, manifest_of: Callable[[dict[str, Blob]], Manifest]) -> Manifest:
        """Write the manifest that ``manifest_of`` makes of the blobs, and give the bundle its name."""
        manifest = self._write_manifest(manifest_of)
        self._give_name()
        return manifest

    def finish_as(self, manifest_bytes: bytes) -> None:
        """Write a manifest that was read already, byte for byte, and give the bundle its name."""
        self._write_manifest_bytes(manifest_bytes)
        self._give_name()

    def _give_name(self) -> None:
        self._fs.sync_folder(self.partial)
        self._check_target()
        if self.target.exists():
            retired = self.target.with_name(f".{self.target.name}.retired-{os.getpid()}")
            self._fs.rename(self.target, retired)
            self._fs.rename(self.partial, self.target)
            remove_tree(self._fs, retired)
        else:
            self._fs.rename(self.partial, self.target)
        self._fs.sync_folder(self.target.parent)

    def _write_manifest(self, manifest_of: Callable[[dict[str, Blob]], Manifest]) -> Manifest:
        manifest = manifest_of(dict(sorted(self._blobs.items())))
        data = manifest.to_bytes()
        # The reader's gate judges what we write, too: an exporter's mistake must not travel to a board.
        Manifest.parse(data, source=str(self.target / MANIFEST_NAME))
        self._write_manifest_bytes(data)
        return manifest

    def _write_manifest_bytes(self, data: bytes) -> None:
        path = self.partial / MANIFEST_NAME
        if path.exists():
            self._fs.unlink(path)
        with self._fs.create(path) as file:
            file.write(data)
            file.sync()

    def _check_target(self) -> None:
        if self.target.is_symlink():
            # Replacing would empty the folder behind the link, which has a name of its own.
            raise BundleError(f"{self.target}: expected a new folder or a bundle, found a link; not touched")
        if not self.target.exists():
            return
        if not self._replace:
            raise BundleError(f"{self.target}: expected a new folder, found one; remove it or pass --force")
        if not (self.target / MANIFEST_NAME).is_file():
            raise BundleError(f"{self.target}: expected a bundle to replace, found something else; not touched")

    def __enter__(self) -> Self:
        """Create the partial folder."""
        if not self.target.parent.is_dir():
            raise BundleError(f"{self.target.parent}: expected a folder to write the bundle into, found none")
        remove_tree(self._fs, self.partial)
        self._fs.make_folder(self.partial)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not finished."""
        remove_tree(self._fs, self.partial)
