"""The gate for files that a user names beside a source: keys, counts, questions, texts.

A device has no end and a pipe may have no writer, so only a regular file is opened.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from edge_embed.errors import RequestError

# A tokenizer of 250,000 tokens takes 17 MB.
_JSON_CEILING_BYTES = 256 * 2**20


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


def read_named(path: Path, expected: str) -> bytes:
    """Return the bytes of a file that the user named.

    Raises:
        RequestError: as :func:`open_named`.
    """
    try:
        with open_named(path, expected) as file:
            return file.read()
    except OSError as error:
        raise RequestError(f"{path}: expected {expected}, found: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file of a model holds.

    Raises:
        RequestError: as :func:`open_named`; or it is too large, or no JSON.
    """
    expected = "a model's settings"
    try:
        with open_named(path, expected) as file:
            data = file.read(_JSON_CEILING_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{path}: expected {expected}, found: {error.strerror}") from error
    if len(data) > _JSON_CEILING_BYTES:
        raise RequestError(f"{path}: expected {expected} of at most {_JSON_CEILING_BYTES} bytes, found more")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected {expected} in JSON, found: {str(error)[:100]}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file of a model holds, say its ``config.json``.

    Raises:
        RequestError: as :func:`read_json`; or it holds another kind of value.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise RequestError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
