"""A flash card that may lose what was not synced: records every write of a store, then replays any power cut.

``RecordingFs`` does the real work and keeps a log. ``replayed`` builds, in a new folder, what a weak file system may
hold after a cut: everything that was synced before the cut, and any subset of the rest. Weak means:

* bytes of a file are safe after that file was synced, names in a folder after that folder was synced, nothing else;
* what is not safe may be kept, lost or (bytes) torn in half, each operation by itself and in no order.

Real journaling file systems are kinder; a store that survives this one survives them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_embed_bundle.fsops import OsFs, WritableFile


@dataclass(frozen=True)
class Op:
    """One operation: its kind, the paths it names (relative to the root), the file it writes, and what it writes."""

    kind: str
    path: Path
    target: Path | None = None
    file: int = -1
    offset: int = 0
    data: bytes = b""


class RecordingFs:
    """``FsOps`` on the real file system that keeps a log of what was done below ``root``."""

    def __init__(self, root: Path) -> None:
        self.log: list[Op] = []
        self._root = root
        self._real = OsFs()
        self._files = 0

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        file = self._real.create(path, mode=mode)
        return self._opened("create", path, file)

    def overwrite(self, path: Path, *, offset: int = 0) -> WritableFile:
        return self._opened("overwrite", path, self._real.overwrite(path, offset=offset), offset)

    def reserve(self, path: Path, size_bytes: int) -> None:
        self._real.reserve(path, size_bytes)
        self._note("create", path)
        # Room that was taken reads as zeros; like every byte that nobody synced, some of it may be lost.
        self.log.append(Op("write", path.relative_to(self._root), data=bytes(size_bytes)))

    def make_folder(self, path: Path) -> None:
        self._real.make_folder(path)
        self._note("make_folder", path)

    def link(self, source: Path, target: Path) -> None:
        self._real.link(source, target)
        self._note("link", source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._real.rename(source, target)
        self._note("rename", source, target)

    def unlink(self, path: Path) -> None:
        self._real.unlink(path)
        self._note("unlink", path)

    def remove_folder(self, path: Path) -> None:
        self._real.remove_folder(path)
        self._note("remove_folder", path)

    def sync_folder(self, path: Path) -> None:
        self._real.sync_folder(path)
        self._note("sync_folder", path)

    def _note(self, kind: str, path: Path, target: Path | None = None) -> None:
        relative = None if target is None else target.relative_to(self._root)
        self.log.append(Op(kind, path.relative_to(self._root), relative))

    def _opened(self, kind: str, path: Path, file: WritableFile, offset: int = 0) -> WritableFile:
        self._files += 1
        place = path.relative_to(self._root)
        self.log.append(Op(kind, place, file=self._files))
        return _RecordingFile(file, self.log, place, self._files, offset)


class _RecordingFile:
    def __init__(self, real: WritableFile, log: list[Op], path: Path, file: int, offset: int) -> None:
        self._real, self._log, self._path, self._file = real, log, path, file
        self._offset = offset

    def write(self, data: bytes | memoryview) -> None:
        self._real.write(data)
        self._log.append(Op("write", self._path, file=self._file, offset=self._offset, data=bytes(data)))
        self._offset += len(data)

    def sync(self) -> None:
        self._real.sync()
        self._log.append(Op("sync", self._path, file=self._file))

    def seal(self) -> None:
        self._real.seal()

    def __enter__(self) -> Self:
        self._real.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._real.__exit__(kind, error, trace)


#: Decides for an operation that was not safe at the cut: 0 lost, 1 kept, between: that share of its bytes.
Fate = Callable[[Op], float]


def everything(_: Op) -> float:
    """The kindest card: what was written before the cut is there."""
    return 1.0


def nothing(_: Op) -> float:
    """The strictest card: what was not synced is gone."""
    return 0.0


def dice(seed: int) -> Fate:
    """A card without order: each operation by itself."""
    thrown = random.Random(seed)  # noqa: S311, a repeatable die, no secret
    return lambda _: thrown.choice((0.0, 0.0, 0.5, 1.0, 1.0))


def replayed(before: Path, log: Sequence[Op], cut: int, fate: Fate, target: Path) -> Path:
    """Build in ``target`` what the card holds if the power goes after ``log[:cut]``; ``before`` was safe."""
    shutil.copytree(before, target, symlinks=True, copy_function=_linked)
    for op, share in zip(log[:cut], _shares(log[:cut], fate), strict=True):
        if share:
            _apply(op, share, target)
    return target


def _linked(source: str, target: str) -> None:
    # Files that are written in place are copied; all others never change and share their bytes.
    if Path(source).name.startswith(("slot.", ".partial-")):
        shutil.copy2(source, target)
    else:
        Path(target).hardlink_to(source)


def _shares(log: Sequence[Op], fate: Fate) -> list[float]:
    """Return for each operation how much of it is there: all of what is safe, the rest by fate."""
    shares = []
    for i, op in enumerate(log):
        if op.kind in ("sync", "sync_folder"):
            shares.append(0.0)
            continue
        if op.kind == "write":
            safe = any(later.kind == "sync" and later.file == op.file for later in log[i:])
        else:
            named = op.path if op.target is None or op.kind == "rename" else op.target
            folders = {named.parent} | ({op.target.parent} if op.target is not None else set())
            synced = {later.path for later in log[i:] if later.kind == "sync_folder"}
            # A folder that was renamed afterwards was synced under its older name.
            safe = folders <= synced or op.kind == "overwrite"
        shares.append(1.0 if safe else fate(op))
    return shares


def _apply(op: Op, share: float, root: Path) -> None:
    """Do what is possible of an operation; one whose ground was lost is lost, too."""
    path = root / op.path
    target = root / op.target if op.target is not None else path
    try:
        if op.kind == "create":
            path.touch(mode=0o644, exist_ok=False)
        elif op.kind == "write":
            with path.open("r+b") as file:
                file.seek(op.offset)
                file.write(op.data[: int(len(op.data) * share)])
        elif op.kind == "make_folder":
            path.mkdir()
        elif op.kind == "link":
            target.hardlink_to(path)
        elif op.kind == "rename":
            path.rename(target)
        elif op.kind == "unlink":
            path.unlink()
        elif op.kind == "remove_folder":
            path.rmdir()
    except OSError:
        pass
