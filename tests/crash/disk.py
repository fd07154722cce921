"""A disk that remembers every write and every flush, in their order, and can be brought back to any moment.

A process of its own serves one file by FUSE (linux/fuse.h), a loop device makes a disk of it, and a file system stands
on that: what arrives here is what a card would be told. Neither device mapper nor network block device is needed.

   log     entries: 0, offset, size, data of a write; 1, 0, 0 of a flush (a byte, two of eight bytes, little-endian)

A power cut after an entry leaves everything that came before the last flush, and any of the rest: each write kept,
lost, or kept in some of its 4 KiB blocks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import select
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 4096
FILE = "disk"

_ENTRY = struct.Struct("<BQQ")
_SECTOR_BYTES, _QEMU_ENTRY = 512, struct.Struct("<QQQQ")
_WRITE, _FLUSH = 0, 1

_ROOT, _FILE = 1, 2
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_IO = struct.Struct("<QQIIQII")
_LOOKUP, _GETATTR, _OPEN, _READ, _WRITE_CALL, _STATFS, _FSYNC, _INIT = 1, 3, 14, 15, 16, 17, 20, 26
_EMPTY = (18, 25, 27, 29, 34)  # RELEASE, FLUSH, OPENDIR, RELEASEDIR, ACCESS
_SILENT = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_DIRECT_IO, _BIG_WRITES, _MAX_PAGES = 1, 1 << 5, 1 << 22
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """A write, or (without data) a flush."""

    offset: int = 0
    data: bytes = b""

    @property
    def is_flush(self) -> bool:
        """Whether everything before it is safe."""
        return not self.data


def read_log(path: Path, end: int) -> list[Entry]:
    """Return the entries of a log that are complete in its first ``end`` bytes."""
    log = path.read_bytes()[:end]
    entries, at = [], 0
    while at + _ENTRY.size <= len(log):
        _, offset, size = _ENTRY.unpack_from(log, at)
        if at + _ENTRY.size + size > len(log):
            break
        entries.append(Entry(offset, log[at + _ENTRY.size : at + _ENTRY.size + size]))
        at += _ENTRY.size + size
    return entries


def read_qemu_log(path: Path) -> list[Entry]:
    """Return what qemu's ``blklogwrites`` recorded of a disk until it was killed.

    A sector first that counts the entries, wrongly after a kill. Then of each entry a sector (first sector, number of
    sectors, flags, 0: eight bytes each, little-endian; flag 1 is a flush) and, of a write, its data.
    """
    log = path.read_bytes()
    entries, at = [], _SECTOR_BYTES
    while at + _QEMU_ENTRY.size <= len(log):
        first, count, flags, _ = _QEMU_ENTRY.unpack_from(log, at)
        data = log[at + _SECTOR_BYTES : at + _SECTOR_BYTES * (1 + count)]
        if len(data) < _SECTOR_BYTES * count or (flags, count) == (0, 0):
            break
        entries.append(Entry(first * _SECTOR_BYTES, data))
        at += _SECTOR_BYTES * (1 + count)
    return entries


def kept(entries: Sequence[Entry], cut: int, seed: int) -> dict[int, bytes]:
    """Return what a disk may hold of some entries, by offsets, if the power goes after ``cut`` of them.

    What was not flushed is there with seed 0, is lost with seed 1, and with others lies as their dice fall.
    """
    last_flush = max((i for i, entry in enumerate(entries[:cut]) if entry.is_flush), default=0)
    dice = random.Random(seed)  # noqa: S311, a repeatable die, no secret
    blocks = {}
    for i, entry in enumerate(entries[:cut]):
        share = 1.0 if i < last_flush or seed == 0 else 0.0 if seed == 1 else dice.choice((0.0, 0.5, 1.0))
        for start in range(0, len(entry.data), BLOCK_BYTES):
            if share == 1 or dice.random() < share:
                blocks[entry.offset + start] = entry.data[start : start + BLOCK_BYTES]
    return blocks


def apply(blocks: Mapping[int, bytes], disk: Path) -> None:
    """Bring a disk to what it may hold."""
    with disk.open("r+b") as file:
        for offset, data in blocks.items():
            file.seek(offset)
            file.write(data)


class _Server:
    """Serves one file, as large as the image that it stands for."""

    def __init__(self, fuse: int, image: Path, log: Path) -> None:
        self._fuse = fuse
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._image).st_size

    def serve(self) -> None:
        """Answer until stdin ends or nothing is mounted any more."""
        while True:
            ready, _, _ = select.select([self._fuse, 0], [], [])
            if 0 in ready:
                return
            try:
                request = os.read(self._fuse, _MOST_BYTES + 65536)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        _, call, unique, node, *_ = _IN.unpack_from(request)
        if call in _SILENT:
            return
        failure, body = 0, b""
        try:
            body = self._body(call, node, request[_IN.size :])
        except OSError as error:
            failure = -(error.errno or errno.EIO)
        os.write(self._fuse, _OUT.pack(_OUT.size + len(body), failure, unique) + body)

    def _body(self, call: int, node: int, arguments: bytes) -> bytes:
        if call == _INIT:
            flags = _BIG_WRITES | _MAX_PAGES
            head = struct.pack("<IIIIHHII", 7, 31, 0, flags, 16, 12, _MOST_BYTES, 1)
            return head + struct.pack("<HHI28x", _MOST_BYTES // BLOCK_BYTES, 0, 0)
        if call == _LOOKUP:
            if arguments.rstrip(b"\0").decode() != FILE:
                raise OSError(errno.ENOENT, "no such file")
            return struct.pack("<QQQQII", _FILE, 0, 1, 1, 0, 0) + self._attributes(_FILE)
        if call == _GETATTR:
            return struct.pack("<QII", 1, 0, 0) + self._attributes(node)
        if call == _OPEN:
            return struct.pack("<QII", 0, _DIRECT_IO, 0)
        if call == _READ:
            _, offset, size, *_ = _IO.unpack_from(arguments)
            return os.pread(self._image, size, offset)
        if call == _WRITE_CALL:
            _, offset, size, *_ = _IO.unpack_from(arguments)
            data = arguments[_IO.size : _IO.size + size]
            os.pwrite(self._image, data, offset)
            os.write(self._log, _ENTRY.pack(_WRITE, offset, size) + data)
            return struct.pack("<II", size, 0)
        if call == _FSYNC:
            os.write(self._log, _ENTRY.pack(_FLUSH, 0, 0))
            return b""
        if call == _STATFS:
            return bytes(80)
        if call in _EMPTY:
            return bytes(16) if call == _EMPTY[2] else b""
        raise OSError(errno.ENOSYS, "not this one")

    def _attributes(self, node: int) -> bytes:
        size, mode = (0, 0o40755) if node == _ROOT else (self._size, 0o100600)
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(folder: str, image: str, log: str) -> int:
    """Mount the file in ``folder``, say so, and serve it."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"edge-embed", os.fsencode(folder), b"fuse", 0, options.encode()):
        print(os.strerror(ctypes.get_errno()), flush=True)
        return 1
    print("mounted", flush=True)
    _Server(fuse, Path(image), Path(log)).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
