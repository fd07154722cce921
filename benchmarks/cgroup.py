"""A memory limit for one process: a control group below the one that this process is in, version 1 or 2.

Where there is no memory controller, or no right to make a group, ``MemoryLimit`` says why in one ``OSError``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

_ROOT = Path("/sys/fs/cgroup")


class MemoryLimit:
    """A group that may hold ``limit_bytes``, page cache included; a context manager around the processes in it."""

    def __init__(self, limit_bytes: int) -> None:
        self._is_v2, parent = _own_group()
        self._folder = parent / f"edge-embed-{os.getpid()}-{limit_bytes}"
        self._limit_bytes = limit_bytes

    def __enter__(self) -> Self:
        """Make the group.

        Raises:
            OSError: there is no memory controller here, or no right to use it.
        """
        self._folder.mkdir()
        try:
            self._write("memory.max" if self._is_v2 else "memory.limit_in_bytes", str(self._limit_bytes))
        except OSError:
            self._folder.rmdir()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the group."""
        self._folder.rmdir()

    def enter(self) -> None:
        """Move the calling process into the group: between fork and exec of a child, say."""
        self._write("cgroup.procs", str(os.getpid()))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        file = self._folder / ("memory.events" if self._is_v2 else "memory.oom_control")
        fields = dict(line.split() for line in file.read_text().splitlines())
        return int(fields["oom_kill"])

    @property
    def refusals(self) -> int:
        """How often a page was not to be had before others were dropped: 0 where the limit was never met."""
        if not self._is_v2:
            return int((self._folder / "memory.failcnt").read_text())
        fields = dict(line.split() for line in (self._folder / "memory.events").read_text().splitlines())
        return int(fields["max"])

    def _write(self, name: str, value: str) -> None:
        (self._folder / name).write_text(value)


def _own_group() -> tuple[bool, Path]:
    """Return whether the groups of this machine are those of version 2, and the folder of the one we are in."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            return False, _ROOT / "memory" / path.lstrip("/")
    folder = _ROOT / groups.get("", "/").lstrip("/")
    delegated = folder / "cgroup.subtree_control"
    if not delegated.exists() or "memory" not in delegated.read_text().split():
        raise OSError(f"{folder}: expected a memory controller that may be delegated, found none")
    return True, folder
