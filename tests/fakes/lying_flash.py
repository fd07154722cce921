"""A worn-out flash card: it takes every byte, and keeps another one in the middle of each larger write."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from edge_embed_bundle.fsops import OsFs, WritableFile

_LARGE_BYTES = 1024


class LyingFs(OsFs):
    """``FsOps`` that keeps other bytes in new files than it was given."""

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        return _LyingFile(super().create(path, mode=mode))


class _LyingFile:
    def __init__(self, real: WritableFile) -> None:
        self._real = real

    def write(self, data: bytes | memoryview) -> None:
        kept = bytearray(data)
        if len(kept) >= _LARGE_BYTES:
            kept[len(kept) // 2] ^= 1
        self._real.write(bytes(kept))

    def sync(self) -> None:
        self._real.sync()

    def seal(self) -> None:
        self._real.seal()

    def __enter__(self) -> Self:
        self._real.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._real.__exit__(kind, error, trace)
