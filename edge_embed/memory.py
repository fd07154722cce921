"""Memory in figures: sizes as people write them, and what this process holds privately.

Private memory (``RssAnon``: heap, stacks, arrays that were computed) is what a board runs out of. Mapped pages of a
bundle (``RssFile``) are the kernel's to drop and to read again, so they are reported beside it, never added to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from typing import NamedTuple, Self

from edge_embed.errors import RequestError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SAMPLE_SECONDS = 0.0002
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)\s*")


class Memory(NamedTuple):
    """What a process holds right now, in bytes."""

    private_bytes: int
    mapped_bytes: int
    #: Of the mapped pages, how many may stay whatever else wants memory (``mlock``).
    pinned_bytes: int = 0


def parse_size(text: str | int) -> int:
    """Return the bytes that ``64MiB``, ``1.5 GB`` or a plain number mean.

    Raises:
        RequestError: the text is no size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[2].upper() not in _UNITS:
        raise RequestError(f"expected a size like 64MiB, 1.5GB or 1000000, found {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def format_size(size_bytes: float) -> str:
    """Return a size as people read it: ``31.4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def current() -> Memory:
    """Return what this process holds, as Linux counts it."""
    # By open, here and below: who serves loads no pathlib (see Bundle.path).
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
        fields = dict(line.split(":", 1) for line in status)
    return Memory(_kib(fields["RssAnon"]), _kib(fields["RssFile"]), _kib(fields["VmLck"]))


def allowed_bytes(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> int:
    """Return how much memory this process may hold: the machine's, or less where a control group of its says so.

    Args:
        groups: the file that names the groups (cgroups(7)), of version 1 or 2.
        root: where groups are folders, each inside of the one that bounds it, too.
    """
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open(groups, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            fields = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return most
    for controllers, group in (each[1:] for each in fields if len(each) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, file = (f"{root}/memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        steps = group.strip("/").split("/")
        for depth in range(len(steps) + 1):
            # Absent: a container sees no group above its own. No number: a group without a limit.
            with contextlib.suppress(OSError, ValueError), open("/".join([folder, *steps[:depth], file])) as limit:  # noqa: PTH123
                found = int(limit.read())
                most = min(most, found) if found > 0 else most
    return most


def give_back() -> None:
    """Return to the system what was freed, where the C library can: glibc's ``malloc_trim``; musl has none."""
    # A board's Python may be without ctypes, a package of its own there.
    with contextlib.suppress(AttributeError, ImportError, OSError):
        # Imported here: only who replaces a generation wants it.
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """The most that this process holds privately while a ``with`` block runs, as a thread beside it sees it.

    The kernel keeps a high-water mark of all resident pages only, mapped ones among them.
    """

    def __init__(self) -> None:
        self.private_bytes = current().private_bytes
        self._done = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; ``private_bytes`` is final."""
        self._done.set()
        self._watching.join()

    def _watch(self) -> None:
        page_size_bytes = os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/statm", "rb", buffering=0) as statm:  # noqa: PTH123
            while not self._done.wait(_SAMPLE_SECONDS):
                # Resident pages, and those of them that are a file's or shared (proc(5)).
                resident, shared = map(int, os.pread(statm.fileno(), 100, 0).split()[1:3])
                self.private_bytes = max(self.private_bytes, (resident - shared) * page_size_bytes)


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024
