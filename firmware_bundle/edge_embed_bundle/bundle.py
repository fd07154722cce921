"""A bundle on disk: opened once, checked through its descriptors, mapped through the same ones.

* A blob is a plain file in the bundle's own folder; links, pipes and devices are refused, never followed.
* Sizes are compared at open, so no tensor of the manifest can reach past the end of its map.
* ``verify`` reads every byte through the descriptor that ``map`` maps: what was checked is what is served, even
  if another process renames files meanwhile.
* Nothing is read into memory but the manifest.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

from edge_embed_bundle.digests import small_sha256
from edge_embed_bundle.errors import BundleError, DigestError, ManifestError, MissingBlobError, TruncatedError
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.strict_json import MANIFEST_CEILING_BYTES
from edge_embed_bundle.values import Tensor

if TYPE_CHECKING:
    from pathlib import Path

#: Told the number of bytes that were just done; the caller knows the total.
Progress = Callable[[int], None]

#: What is read at a time: it stays in a core's cache until its digest is taken.
CHUNK_BYTES = 256 * 1024


class Bundle:
    """An immutable folder of blobs with its manifest. Use as a context manager, or ``close`` it."""

    def __init__(self, folder: str, manifest_bytes: bytes, descriptors: dict[str, int], manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.manifest_bytes = manifest_bytes
        #: The bundle's identity: the sha256 of its manifest, in hex.
        self.id = small_sha256(manifest_bytes).hex()
        self._descriptors = descriptors
        # A swapped-out bundle goes when its last reader lets go of it; nobody knows earlier that it may be closed.
        self._close_descriptors = weakref.finalize(self, _close_all, descriptors)
        self._maps: dict[str, mmap.mmap] = {}

    @classmethod
    def open(cls, path: Path | str, *, damaged: bool = False) -> Self:
        """Open the bundle in a folder and check all that can be checked without reading the blobs.

        Args:
            path: the folder.
            damaged: open it, too, where blobs are gone or have another size: for who finds out what to mend, and maps
                nothing.

        Raises:
            BundleError: the folder is no bundle, or not the one its manifest describes.
        """
        folder = os.fsdecode(path)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{folder}: expected a bundle folder, found: {error.strerror}") from error
        except ValueError as error:  # a NUL in the name
            raise BundleError(f"{folder!r}: expected a bundle folder, found: {error}") from error
        descriptors: dict[str, int] = {}
        try:
            data = _read_manifest(folder, descriptor)
            manifest = Manifest.parse(data, source=f"{folder}/{MANIFEST_NAME}")
            for name, blob in manifest.blobs.items():
                try:
                    descriptors[name], size = _open_plain(folder, descriptor, name)
                except MissingBlobError:
                    if damaged:
                        continue
                    raise
                if size != blob.size_bytes and not damaged:
                    raise TruncatedError(f"{folder}/{name}: expected {blob.size_bytes} bytes, found {size}")
            return cls(folder, data, descriptors, manifest)
        except BaseException:
            _close_all(descriptors)
            raise
        finally:
            os.close(descriptor)

    @property
    def path(self) -> Path:
        """The folder, for who works on files; serving needs none (``pathlib`` alone takes .8 MB on CPython 3.11)."""
        from pathlib import Path

        return Path(self.folder)

    def verify(self, progress: Progress | None = None) -> None:
        """Read every blob and compare its digest with the manifest's.

        Raises:
            DigestError: the first blob whose bytes differ.
        """
        for name, blob in self.manifest.blobs.items():
            try:
                found = _sha256(self._descriptors[name], progress)
            except OSError as error:
                raise DigestError(
                    f"{self.folder}/{name}: expected {blob.size_bytes} bytes to read, found: {error}"
                ) from error
            if found != blob.sha256:
                raise DigestError(f"{self.folder}/{name}: expected sha256 {blob.sha256}, found {found}")

    def map(self, name: str) -> memoryview:
        """Return the bytes of a blob, mapped read-only; nothing is read until it is touched."""
        if name not in self._maps:
            if self.manifest.blobs[name].size_bytes == 0:
                return memoryview(b"")
            self._maps[name] = mmap.mmap(self._descriptors[name], 0, access=mmap.ACCESS_READ)
        return memoryview(self._maps[name])

    def tensor(self, tensor: Tensor) -> memoryview:
        """Return the mapped bytes of a tensor of this bundle's manifest."""
        return self.map(tensor.blob)[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes]

    def advise(self, tensor: Tensor, advice: int, start: int = 0, size: int | None = None) -> None:
        """Advise the kernel how a mapped tensor, or ``size`` bytes of it from ``start``, will be read (``madvise(2)``).

        What is not mapped, or was closed meanwhile, needs no advice.
        """
        mapped = self._maps.get(tensor.blob)
        first = tensor.offset_bytes + start
        end = min(first + (tensor.size_bytes if size is None else size), tensor.offset_bytes + tensor.size_bytes)
        first -= first % mmap.PAGESIZE
        if mapped is not None and first < end:
            mapped.madvise(advice, first, end - first)

    def has(self, name: str) -> bool:
        """Return whether a blob is there; without a doubt where the bundle was not opened as a damaged one."""
        return name in self._descriptors

    def descriptor(self, name: str) -> int:
        """Return the open descriptor of a blob; it belongs to the bundle."""
        return self._descriptors[name]

    def close(self) -> None:
        """Close the descriptors. Views that are still held keep their maps alive until they go."""
        self._close_descriptors()
        self._maps = {}

    def __enter__(self) -> Self:
        """Return the open bundle."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bundle."""
        self.close()


def _read_manifest(folder: str, opened: int) -> bytes:
    descriptor, size = _open_plain(folder, opened, MANIFEST_NAME)
    with os.fdopen(descriptor, "rb") as file:
        if size > MANIFEST_CEILING_BYTES:
            raise ManifestError(
                f"{folder}/{MANIFEST_NAME}: expected at most {MANIFEST_CEILING_BYTES} bytes, found {size}"
            )
        try:
            data = file.read(MANIFEST_CEILING_BYTES + 1)
        except OSError as error:
            raise ManifestError(f"{folder}/{MANIFEST_NAME}: expected {size} bytes to read, found: {error}") from error
    if len(data) != size:
        raise TruncatedError(f"{folder}/{MANIFEST_NAME}: expected {size} bytes, found {len(data)}")
    return data


def _open_plain(folder: str, opened: int, name: str) -> tuple[int, int]:
    """Open a plain file of the folder for reading; return its descriptor and its size in bytes."""
    descriptor = -1
    try:
        # O_NONBLOCK: opening a pipe that somebody put there must not wait for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened)
        status = os.fstat(descriptor)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise MissingBlobError(f"{folder}/{name}: expected a plain file, found: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise MissingBlobError(f"{folder}/{name}: expected a plain file, found {stat.filemode(status.st_mode)}")
    return descriptor, status.st_size


def _sha256(descriptor: int, progress: Progress | None) -> str:
    # Imported here: it loads OpenSSL, which only who verifies needs.
    import hashlib

    digest = hashlib.sha256()
    for chunk in chunks_of(descriptor):
        digest.update(chunk)
        if progress is not None:
            progress(len(chunk))
    return digest.hexdigest()


def chunks_of(descriptor: int) -> Iterator[memoryview]:
    """Yield the bytes of an open file from its start; each chunk is valid until the next one is asked for."""
    buffer = bytearray(CHUNK_BYTES)
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        yield memoryview(buffer)[:count]
        offset += count


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    descriptors.clear()
