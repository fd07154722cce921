"""A file of a release, frame by frame: what is kept was verified, and what was kept is never fetched again.

* The room on the flash is taken before the first byte is asked for.
* Every frame (1 MiB) is compared with its signed digest before it is written; a wrong one ends the fetch.
* After a power cut, a reset or a truncated answer the fetch goes on behind the last frame that is right. Nothing is
  remembered for that: the frames that stand in the file are asked again whether they are right.
* No more is read than the signed size; a frame that takes too long is a failure, and so is silence.
* The file gets its name when it is whole, sealed (0444) and on the flash.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_embed_bundle.bundle import Progress
from edge_embed_bundle.errors import AbsentError, FetchError
from edge_embed_bundle.fsops import FsOps
from edge_embed_bundle.updating.releases import FRAME_BYTES, File, blob_path
from edge_embed_bundle.updating.sites import Site

#: Failures in a row, without a new frame, after which a fetch gives up until the next update.
ATTEMPTS = 4
#: A frame within this time is 1.7 KiB a second: slower than any link that is worth waiting for.
FRAME_SECONDS = 600.0


class WrongBytesError(FetchError):
    """The file is not what was signed; asking again would bring the same."""


class _EndError(FetchError):
    """An answer that was whole ends too early: the connection's fault, or the file's."""


def partial_path(target: Path) -> Path:
    """Return where a file stands until it is whole."""
    return target.with_name(f".partial-{target.name}")


def reserve(file: File, target: Path, fs: FsOps) -> None:
    """Take the room for a file, unless it was taken before."""
    partial = partial_path(target)
    if partial.is_file() and partial.stat().st_size == file.size_bytes:
        return
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(partial)
    try:
        fs.reserve(partial, file.size_bytes)
    except OSError:
        # Some of the room may be taken, and whoever serves may need it.
        with contextlib.suppress(OSError):
            fs.unlink(partial)
        raise


def fetch(
    site: Site,
    file: File,
    target: Path,
    fs: FsOps,
    *,
    progress: Progress = lambda count: None,
    pause: Callable[[float], None] = time.sleep,
    frame_seconds: float = FRAME_SECONDS,
) -> int:
    """Bring a file to ``target``, for which room was reserved; return the bytes that were fetched for it.

    Raises:
        FetchError: the file did not come; what was verified of it stays for the next time.
    """
    partial = partial_path(target)
    done = first = frames_done(partial, file)
    progress(min(done * FRAME_BYTES, file.size_bytes))
    failures = 0
    with fs.overwrite(partial, offset=done * FRAME_BYTES) as out:
        while done < len(file.frames):
            try:
                for frame in _verified(site, file, done, frame_seconds):
                    out.write(frame)
                    progress(len(frame))
                    done += 1
                    failures = 0
            except (AbsentError, WrongBytesError):
                raise
            except FetchError as error:
                failures += 1
                if failures == ATTEMPTS:
                    if isinstance(error, _EndError):
                        # No longer after all attempts: so it lies on the server, cut short as it was copied there.
                        raise WrongBytesError(str(error)) from error
                    raise
                pause(2.0**failures)
        out.seal()
        out.sync()
    fs.rename(partial, target)
    return file.size_bytes - min(first * FRAME_BYTES, file.size_bytes)


def left_bytes(file: File, target: Path) -> int:
    """Return how many bytes of a file are still to be fetched."""
    if target.is_file():
        return 0
    partial = partial_path(target)
    done = frames_done(partial, file) if partial.is_file() else 0
    return file.size_bytes - min(done * FRAME_BYTES, file.size_bytes)


def frames_done(partial: Path, file: File) -> int:
    """Return how many frames at the start of an unfinished file are right."""
    with partial.open("rb") as stream:
        for done, digest in enumerate(file.frames):
            if hashlib.sha256(stream.read(FRAME_BYTES)).hexdigest() != digest:
                return done
    return len(file.frames)


def _verified(site: Site, file: File, first: int, frame_seconds: float) -> Iterator[bytes]:
    """Yield the frames of a file from ``first`` on, each compared with its digest."""
    path = blob_path(file.sha256)
    place = f"{site.name}/{path} ({file.name})"
    with contextlib.closing(site.read(path, first * FRAME_BYTES)) as chunks:
        frame, wanted, started = bytearray(), first, time.monotonic()
        for chunk in chunks:
            frame += chunk
            while wanted < len(file.frames) and len(frame) >= file.frame_size(wanted):
                size = file.frame_size(wanted)
                found = hashlib.sha256(memoryview(frame)[:size]).hexdigest()
                if found != file.frames[wanted]:
                    raise WrongBytesError(
                        f"{place}: frame {wanted}: expected sha256 {file.frames[wanted]}, found {found}; "
                        "what serves serves on"
                    )
                yield bytes(memoryview(frame)[:size])
                del frame[:size]
                wanted, started = wanted + 1, time.monotonic()
            if wanted == len(file.frames):
                return
            if time.monotonic() - started > frame_seconds:
                raise FetchError(f"{place}: expected a frame of 1 MiB within {frame_seconds:g} s, found {len(frame)}")
    raise _EndError(
        f"{place}: expected {file.size_bytes} bytes, found the end after {wanted * FRAME_BYTES + len(frame)}"
    )
