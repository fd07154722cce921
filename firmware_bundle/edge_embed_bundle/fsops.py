"""Every write to flash, as one small interface: the seam where tests cut the power.

* ``FsOps`` names the few operations from which bundles and stores are built. Nothing in this project that must
  survive a power cut writes to disk by another way.
* The order of these calls *is* the crash safety. A rename may reach the flash before the bytes it names, so
  whoever writes syncs the file, then renames, then syncs the folder.
* Reading needs no seam: what is read is either durable and verified, or not referred to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from edge_embed_bundle.errors import BusyError, StoreError


class WritableFile(Protocol):
    """A file opened for writing."""

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data`` at the current position, all of it."""

    def sync(self) -> None:
        """Return once the bytes are on the flash."""

    def seal(self) -> None:
        """Let nobody write the file any more (mode 0444)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FsOps(Protocol):
    """The operations that change a store or a bundle on flash."""

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        """Create a new file; an existing one is an error."""

    def overwrite(self, path: Path, *, offset: int = 0) -> WritableFile:
        """Open an existing file to change its bytes in place, from ``offset`` on."""

    def reserve(self, path: Path, size_bytes: int) -> None:
        """Create a file of zeros whose room on the flash is taken from now on; an existing one is an error."""

    def make_folder(self, path: Path) -> None:
        """Create a folder; an existing one is an error."""

    def link(self, source: Path, target: Path) -> None:
        """Give an existing file a second name."""

    def rename(self, source: Path, target: Path) -> None:
        """Move a file or a folder; where ``target`` is a file, replace it in one step."""

    def unlink(self, path: Path) -> None:
        """Take away a file's name."""

    def remove_folder(self, path: Path) -> None:
        """Take away an empty folder."""

    def sync_folder(self, path: Path) -> None:
        """Return once the names in a folder are on the flash."""


class OsFs:
    """``FsOps`` on this machine's file systems."""

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        """See :meth:`FsOps.create`."""
        return _OsFile(path, os.O_CREAT | os.O_EXCL, mode)

    def overwrite(self, path: Path, *, offset: int = 0) -> WritableFile:
        """See :meth:`FsOps.overwrite`."""
        try:
            return _OsFile(path, 0, 0, offset)
        except PermissionError:
            # Sealed by us, and cut off before it got its name: its owner may go on, where root never asks.
            path.chmod(0o644)
            return _OsFile(path, 0, 0, offset)

    def reserve(self, path: Path, size_bytes: int) -> None:
        """See :meth:`FsOps.reserve`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if size_bytes:
                os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise OSError(error.errno, error.strerror, str(path)) from error
            # A file system that cannot promise room says so when it is written.
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """See :meth:`FsOps.make_folder`."""
        path.mkdir()

    def link(self, source: Path, target: Path) -> None:
        """See :meth:`FsOps.link`."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """See :meth:`FsOps.rename`."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """See :meth:`FsOps.unlink`."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """See :meth:`FsOps.remove_folder`."""
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """See :meth:`FsOps.sync_folder`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _OsFile:
    def __init__(self, path: Path, flags: int, mode: int, offset: int = 0) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, mode)
        if offset:
            os.lseek(self._descriptor, offset, os.SEEK_SET)

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        with self._named():
            while len(left):
                left = left[os.write(self._descriptor, left) :]

    def sync(self) -> None:
        with self._named():
            os.fsync(self._descriptor)

    def seal(self) -> None:
        with self._named():
            os.fchmod(self._descriptor, 0o444)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Let an error (no space left) name the file, which the system does not do for a descriptor."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


@contextlib.contextmanager
def held_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which is made if it is absent; the system lets go of it with the process.

    Raises:
        BusyError: another process holds it; ``busy`` says so.
        StoreError: there can be no lock here.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        except OSError as error:
            raise StoreError(f"{path}: expected a lock to hold, found: {error}") from error
        yield


def replace_file(fs: FsOps, path: Path, data: bytes) -> None:
    """Give a small file other bytes, all of them or none, durable on return."""
    partial = path.with_name(f".partial-{path.name}")
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(partial)
    with fs.create(partial, mode=0o644) as file:
        file.write(data)
        file.sync()
    fs.rename(partial, path)
    fs.sync_folder(path.parent)


def remove_tree(fs: FsOps, folder: Path) -> None:
    """Remove a folder of plain files and everything in it; an absent folder is no error."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(fs, path)
        else:
            fs.unlink(path)
    fs.remove_folder(folder)
