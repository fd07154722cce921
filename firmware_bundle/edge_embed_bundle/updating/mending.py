"""The frames of a blob that rotted, or are gone, fetched again from any repository that has it.

* Nothing of the repository is trusted, and no metadata asked for: the mended blob has the digest that the manifest of
  an installed bundle names, or nothing is changed (``Store.mend``).
* The frames wait in a file without a name until all of them are there: the store is locked for the writing alone, and a
  power cut leaves nothing behind.
* The room for them is taken before a byte is asked for.
* No more is read than the frames, and none may take longer than one of an update.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator

from edge_embed_bundle.bundle import Progress
from edge_embed_bundle.errors import FetchError, StoreError
from edge_embed_bundle.store import Rotten, Store
from edge_embed_bundle.updating.fetching import FRAME_SECONDS
from edge_embed_bundle.updating.releases import FRAME_BYTES, blob_path
from edge_embed_bundle.updating.sites import Site


def mend(
    store: Store,
    rotten: Rotten,
    site: Site,
    *,
    progress: Progress = lambda count: None,
    frame_seconds: float = FRAME_SECONDS,
) -> None:
    """Fetch what rotted of a blob, and let the store write the blob anew.

    Raises:
        FetchError: the repository does not have the blob, or a frame did not come.
        DigestError: what came does not mend it.
        StoreError: the store is busy, damaged or full.
    """
    try:
        with tempfile.TemporaryFile(dir=store.path) as file:
            # Where each frame stands in the blob: there it stands in the file, whose holes take no room.
            stretches = list(_stretches(rotten))
            for start, stop in stretches:
                _reserve(file.fileno(), start, stop)
            for start, stop in stretches:
                _fetch(site, rotten, start, stop, file.fileno(), progress, frame_seconds)
            store.mend(rotten, lambda offset, size: os.pread(file.fileno(), size, offset))
    except OSError as error:
        raise StoreError(f"{store.path}: expected room for what is fetched of {rotten.name}, found: {error}") from error


def _stretches(rotten: Rotten) -> Iterator[tuple[int, int]]:
    """Yield where frames that stand side by side begin and end: each is one request."""
    start = stop = 0
    for offset, size in rotten.ranges:
        if offset != stop and start < stop:
            yield start, stop
        start = start if offset == stop else offset
        stop = offset + size
    if start < stop:
        yield start, stop


def _reserve(descriptor: int, start: int, stop: int) -> None:
    try:
        os.posix_fallocate(descriptor, start, stop - start)
    except OSError as error:
        # A file system that cannot promise room says so when it is written.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _fetch(
    site: Site, rotten: Rotten, start: int, stop: int, descriptor: int, progress: Progress, frame_seconds: float
) -> None:
    path = blob_path(rotten.sha256)
    at, until = start, time.monotonic() + frame_seconds * -(-(stop - start) // FRAME_BYTES)
    with contextlib.closing(site.read(path, start, stop)) as chunks:
        for chunk in chunks:
            os.pwrite(descriptor, chunk, at)
            at += len(chunk)
            progress(len(chunk))
            if time.monotonic() > until:
                break
    if at < stop:
        raise FetchError(
            f"{site.name}/{path} ({rotten.name}): expected bytes {start} to {stop}, a frame of 1 MiB within "
            f"{frame_seconds:g} s, found {at - start} bytes"
        )
