"""Room for a trial: how a generation that does not fit beside what serves is tried all the same.

* The state says what memory the trial needs; from then on, between two calls, who serves lets go of the generation that
  is active, and waits. Who asks nothing, holds on: for him nobody waits longer than ``PATIENCE_SECONDS``.
* That somebody waits for the end of a trial hangs on a lock of its folder, which goes with the process that tries it.
  A state that a dead process left behind keeps nobody from serving.
* A trial that finds no room in the end is refused: to ask again at each poll would stop those who serve each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: How long a trial waits for memory to become free.
PATIENCE_SECONDS = 10.0

#: What a process holds privately that has numpy, and nothing else yet: 12.8 MiB (CPython 3.11, numpy 2.4, x86-64).
PROCESS_BYTES = 16 * 2**20

_PAUSE_SECONDS = 0.02


def free_memory_bytes() -> int | None:
    """Return the memory that a new process can have without anybody's loss, as Linux estimates it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def is_there(needed_bytes: int, free_memory: Callable[[], int | None], patience_seconds: float) -> bool:
    """Wait until so much memory is free, or nobody knows how much is; return whether it came to that."""
    end = time.monotonic() + patience_seconds
    while (free := free_memory()) is not None and free < needed_bytes:
        if time.monotonic() >= end:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let those who serve wait as long as this lasts, and this process lives."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Who looks holds it, too, for a moment.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: str) -> bool:
    """Return whether somebody who lives tries the generation in a folder, and wants it to be alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
