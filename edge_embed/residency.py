"""Which pages of a mapped bundle stay in memory, and which come and go.

* Rows are read at random by lookups: without that advice the kernel reads ahead of every fault, and a board whose
  memory is smaller than the table spends it on neighbours nobody asked for. A scan of all rows takes the advice back
  while it lasts. Rows in lists are scanned run by run and keep the kernel's read-ahead, but for those behind a plane,
  of which a search compares a few.
* Those few are asked for ahead and together, if the search before had to wait for flash; who never waits never asks.
* Under a memory budget the hot prefix is pinned: the key index, then the first rows of each table with their scales. By
  frequency those are asked for most; trainers leave them so as a rule. Pages are pinned when they are first touched, so
  opening reads none. Half of what the budget leaves is pinned: other pages want to stay, too.
* Pages that the kernel reads ahead cannot be dropped before they have come. Where those of several threads might take
  all that a budget leaves (a workstation's disk reads megabytes ahead, a board's card 128 KiB), a scan reads page by
  page, too: slower, and nobody is killed for want of memory.
* A pin that the system refuses (RLIMIT_MEMLOCK) is smaller or none, never an error: ``Memory.pinned_bytes`` tells.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import TableModel
from edge_embed_bundle.values import Tensor

_INDEX = ("index_pilots", "index_slots")
#: What a lookup reads of a row beside the row, by a fraction of the table: pinned with it.
_BY_ROW = ("scales", "length_codes", "rows")
_PINNED_SHARE = 2
#: What is on its way at once: of each thread that scans, what it waits for and what comes next; of eight threads.
_READ_AHEADS = 16
# Lock pages when they are touched, not all of them at once (mlock2(2), Linux 4.4).
_MLOCK_ONFAULT = 1


class Pages:
    """The pages of a table's rows: what is read at random, what is scanned, what is wanted soon."""

    def __init__(self, bundle: Bundle, model: TableModel) -> None:
        self._bundle = bundle
        self._tensors = tuple(model.tensors.values())
        self._by_row = [model.tensors[name] for name in _BY_ROW if name in model.tensors]
        self._is_random = model.search is None or model.search.shortlist is not None
        self._waited = False
        self._reads_ahead = True
        for tensor in (*(model.tensors[name] for name in _INDEX if name in model.tensors), *self._random):
            bundle.advise(tensor, mmap.MADV_RANDOM)

    @contextlib.contextmanager
    def scanned(self) -> Iterator[None]:
        """Let the kernel read ahead while all rows are scanned, unless memory is too small for that."""
        scanned = self._random if self._reads_ahead else []
        for tensor in scanned:
            self._bundle.advise(tensor, mmap.MADV_NORMAL)
        try:
            yield
        finally:
            for tensor in scanned:
                self._bundle.advise(tensor, mmap.MADV_RANDOM)

    def read_singly(self) -> None:
        """Read nothing ahead from now on, of no tensor."""
        self._reads_ahead = False
        for tensor in self._tensors:
            self._bundle.advise(tensor, mmap.MADV_RANDOM)

    @property
    def waited(self) -> bool:
        """Whether the last comparison of single rows had to wait for flash."""
        return self._waited

    @contextlib.contextmanager
    def compared(self) -> Iterator[None]:
        """Note whether what is done inside has to wait for flash."""
        before = _major_faults()
        yield
        self._waited = _major_faults() > before

    def ask(self, rows: NDArray[np.int64]) -> None:
        """Ask for all pages of some rows, ascending, at once."""
        for tensor in self._by_row:
            row_bytes = tensor.size_bytes // tensor.shape[0]
            firsts = rows * row_bytes // mmap.PAGESIZE
            lasts = ((rows + 1) * row_bytes - 1) // mmap.PAGESIZE
            most = int((lasts - firsts).max(initial=0)) + 1
            pages = np.minimum(firsts[:, np.newaxis] + np.arange(most), lasts[:, np.newaxis])
            for page in np.unique(pages).tolist():
                self._bundle.advise(tensor, mmap.MADV_WILLNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)

    @property
    def _random(self) -> list[Tensor]:
        return self._by_row if self._is_random else []


def _major_faults() -> int:
    """Return how often this thread has waited because a page was not in memory."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def has_room_ahead(bundle: Bundle, room_bytes: int) -> bool:
    """Return whether what the kernel reads ahead fits beside the pins into ``room_bytes``."""
    sizes = [_read_ahead_bytes(bundle.descriptor(name)) for name in bundle.manifest.blobs]
    return _READ_AHEADS * max(sizes, default=0) <= room_bytes - room_bytes // _PINNED_SHARE


def _read_ahead_bytes(descriptor: int) -> int:
    """Return how far the kernel reads ahead in a file; more than fits anywhere where the system does not say."""
    device = os.fstat(descriptor).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    # A partition's is its disk's, which is the folder around it (sysfs-block); others have their own (sysfs-class-bdi).
    block = f"/sys/dev/block/{name}"
    for place in (f"{block}/queue", f"{block}/../queue", f"/sys/class/bdi/{name}"):
        with contextlib.suppress(OSError, ValueError), open(f"{place}/read_ahead_kb", encoding="ascii") as read_ahead:  # noqa: PTH123
            return int(read_ahead.read()) * 1024
    return 2**62


class Pins:
    """Pages of a bundle that stay: as many bytes as ``room`` at most, ``size_bytes`` in fact."""

    def __init__(self, bundle: Bundle, room_bytes: int) -> None:
        self._locked: list[tuple[int, int]] = []
        self.size_bytes = 0
        wanted = room_bytes // _PINNED_SHARE
        # Who has the right to lock (CAP_IPC_LOCK) need not look at the limit.
        if not self._lock_all(bundle, wanted):
            self.release()
            self._lock_all(bundle, min(wanted, _allowed_bytes()))

    def _lock_all(self, bundle: Bundle, room_bytes: int) -> bool:
        for tensor, wanted in _hot_first(bundle.manifest.tables, room_bytes):
            size = min(wanted, room_bytes - self.size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0 and not self._lock(_address(bundle, tensor), size):
                return False
        return True

    def release(self) -> None:
        """Let all pages go."""
        for address, size in self._locked:
            _libc().munlock(address, size)
        self._locked, self.size_bytes = [], 0

    def _lock(self, address: int, size: int) -> bool:
        with contextlib.suppress(AttributeError):  # a C library older than the call
            if not _libc().mlock2(address, size, _MLOCK_ONFAULT):
                self._locked.append((address, size))
                self.size_bytes += size
                return True
        return False


def _hot_first(models: tuple[TableModel, ...], room: int) -> Iterator[tuple[Tensor, int]]:
    """Yield tensors and how many of their first bytes are wanted: the index whole, of rows as many as fit."""
    # A table in lists is searched; who is asked for most stands anywhere in it.
    tables = [model for model in models if model.rows and model.search is None]
    for model in tables:
        for name in _INDEX:
            if name in model.tensors:
                yield model.tensors[name], model.tensors[name].size_bytes
                room -= model.tensors[name].size_bytes
    for model in tables:
        parts = [model.tensors[name] for name in _BY_ROW if name in model.tensors]
        share = min(1.0, max(0, room) / max(1, sum(part.size_bytes for part in parts)) / len(tables))
        for part in parts:
            yield part, int(share * part.size_bytes)


def _allowed_bytes() -> int:
    """Return how many bytes this process may lock, as far as its limit says."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return 2**62 if limit == resource.RLIM_INFINITY else limit


def _address(bundle: Bundle, tensor: Tensor) -> int:
    return int(np.frombuffer(bundle.tensor(tensor), np.uint8).ctypes.data)


def _libc() -> Any:
    # Imported here: only who pins pays for it.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
