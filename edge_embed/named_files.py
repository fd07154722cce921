"""The gate for files that a user names: what a command reads or writes beside a bundle or a source.

A device has no end and a pipe may have no writer, so only a regular file is opened; who knows how large a file can be
says so, and a larger one is not read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge_embed.errors import RequestError


def open_named(path: Path, expected: str) -> BinaryIO:
    """Open a file that the user named.

    Args:
        path: the file.
        expected: what it should be, for the error.

    Raises:
        RequestError: it is absent, unreadable or no regular file.
    """
    try:
        # Without a writer, opening a pipe would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RequestError(f"{path}: expected {expected}, found: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise RequestError(f"{path}: expected {expected}, found {'a folder' if stat.S_ISDIR(mode) else 'no file'}")
    return os.fdopen(descriptor, "rb")


def read_named(path: Path, expected: str, ceiling_bytes: int | None = None) -> bytes:
    """Return the bytes of a file that the user named.

    Raises:
        RequestError: as :func:`open_named`; or it has more than ``ceiling_bytes``.
    """
    try:
        with open_named(path, expected) as file:
            data = file.read() if ceiling_bytes is None else file.read(ceiling_bytes + 1)
    except OSError as error:
        raise RequestError(f"{path}: expected {expected}, found: {error.strerror}") from error
    if ceiling_bytes is not None and len(data) > ceiling_bytes:
        raise RequestError(f"{path}: expected {expected} of at most {ceiling_bytes} bytes, found more")
    return data


def check_writable(path: Path, *, regular: bool = False) -> None:
    """Refuse a place that no file can be written to, before the work begins; it is left as it was.

    Args:
        path: the place.
        regular: a device or a pipe will not do.

    Raises:
        RequestError: the folder is absent or keeps files out, or the place is a folder.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        if regular:
            raise RequestError(f"{path}: expected a file in a folder that is there, found no file")
        return
    was_there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise RequestError(f"{path}: expected a file in a folder that is there, found: {error.strerror}") from error
    if not was_there:
        path.unlink()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system says of a file that is being written to name it: where a disk is full it names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
