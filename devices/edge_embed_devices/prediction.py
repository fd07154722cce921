"""What a bundle takes on a board, from the board's profile: a roofline of bytes, random reads and page faults.

* A call costs the interpreter some calls of an empty function, whatever it asks for: ``_LOOKUP`` and its kin, counted
  on x86-64 with CPython 3.11 and the native kernels.
* A lookup reads its index, its row and its scale at random: each read is as slow as the memory that holds the table.
  A scan reads rows in order, as fast as the kernels scan a table of that size.
* What does not fit into the memory that a board has to spare is read from flash: a page for each read of a lookup, the
  missing part of what it goes through for a scan.
* A profile without a figure is helped out by one that is like it, and ``guessed`` names it. A guess errs on the slow
  side; without figures of flash, what waits for it is not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edge_embed_bundle.manifest import Manifest, TableModel
from edge_embed_devices.profiles import Board

# Empty calls that an operation is worth: a lookup; a batch, and each key of one; a search; a text, and each word.
_LOOKUP, _BATCH, _BATCH_KEY, _SEARCH, _TEXT, _WORD = 5.8, 8, 0.7, 700, 125, 9.3
_WORDS = 8
# Random reads beyond the caches that wait for one another: of a lookup; of a key in a batch, which asks ahead.
_READS, _BATCH_READS = 4.0, 0.6
# Those of a row that is compared behind a plane: it is asked for before, but is many lines long.
_COMPARED_READS = 2.0
BATCH_KEYS = 1000

# Where the profile does not say: an empty call on a machine that copies 12 GB/s (2026-11-26), slower as memory is.
_CALL_NS, _COPY_BYTES_PER_S = 57.0, 12e9
_RANDOM_READ_NS = 200.0
# What the kernel, the system and the process itself leave for pages of a bundle.
_SPARE_SHARE = 0.75
# Between the typical call and the hundredth slowest on a quiet machine.
_TAIL = 2.0
_ROW_NUMBERS = 16


@dataclass(frozen=True)
class Latency:
    """What an operation is predicted to take; None where flash decides and the profile does not know it."""

    p50_us: float | None
    p99_us: float | None


@dataclass(frozen=True)
class Prediction:
    """What a bundle is predicted to take on a board."""

    board: str
    memory_private_bytes: int
    #: Pages of the bundle that find room in memory.
    resident_bytes: int
    flash_bytes: int
    operations: Mapping[str, Latency]
    #: Figures that the profile does not have.
    guessed: tuple[str, ...]


def predict(manifest: Manifest, board: Board) -> Prediction:
    """Predict the memory of a bundle and the latency of the operations of its tables.

    Encoders run in engines of their own, which no figure of a profile describes: they are not predicted.
    """
    private_bytes = manifest.requirements.memory_private_bytes
    spare_bytes = max(0, int(board.ram_bytes * _SPARE_SHARE) - private_bytes)
    resident_bytes = min(manifest.size_bytes, spare_bytes)
    missing = 1 - resident_bytes / max(1, manifest.size_bytes)
    operations: dict[str, Latency] = {}
    tables = manifest.tables
    if tables:
        first = tables[0]
        operations["lookup"] = lookup(first, board, missing)
        operations["batch"] = batch(first, board, missing)
        if first.text is not None:
            operations["encode"] = encode(first, board, missing)
        searched = [model for model in tables if "norms" in model.tensors and model.classify is None]
        if searched:
            largest = max(searched, key=lambda model: scanned_rows(model) * model.dimensions)
            operations["search"] = search(largest, board, missing)
    return Prediction(
        board.name, private_bytes, resident_bytes, manifest.size_bytes, operations, guessed(board, bool(missing))
    )


def guessed(board: Board, flash: bool) -> tuple[str, ...]:
    """Return the figures that a prediction wants and the profile does not have."""
    wanted = {
        "memory_random_read_ns": board.memory_random_read_ns,
        "python_call_ns": board.python_call_ns,
        "scan_gb_per_s": board.scan_bytes_per_s,
    }
    if flash:
        wanted["flash_random_reads_per_s"] = board.flash_random_reads_per_s
        wanted["flash_sequential_read_mb_per_s"] = board.flash_read_bytes_per_s
    return tuple(name for name, value in wanted.items() if value is None)


def scanned_rows(model: TableModel) -> int:
    """Return how many rows a search for ten neighbours goes through, its centroids among them."""
    return sum(rows for rows, _ in _scans(model))


def lookup(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of one key, any row as likely as another."""
    warm_us = (_LOOKUP * _call_ns(board) + _READS * random_read_ns(board, _table_bytes(model))) / 1000
    return _with_flash(warm_us, _faults(model), missing, board)


def batch(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of ``BATCH_KEYS`` keys at once."""
    key_ns = (
        _BATCH_KEY * _call_ns(board)
        + _BATCH_READS * random_read_ns(board, _table_bytes(model))
        + _row_bytes(model, "rows") / board.memory_copy_bytes_per_s * 1e9
    )
    warm_us = (_BATCH * _call_ns(board) + BATCH_KEYS * key_ns) / 1000
    return _with_flash(warm_us, BATCH_KEYS * _faults(model), missing, board)


def encode(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of a text of some words by a static encoder."""
    reads_ns = _WORDS * random_read_ns(board, _table_bytes(model))
    warm_us = ((_TEXT + _WORDS * _WORD) * _call_ns(board) + reads_ns) / 1000
    return _with_flash(warm_us, _WORDS * _faults(model), missing, board)


def search(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of a search for ten neighbours of a key."""
    scans, compared = _scans(model), _compared_rows(model)
    scan_ns = sum(rows * _scan_row_ns(row_bytes, _table_bytes(model), board) for rows, row_bytes in scans)
    compare_ns = compared * _COMPARED_READS * random_read_ns(board, _table_bytes(model))
    warm_us = (_SEARCH * _call_ns(board) + scan_ns + compare_ns) / 1000
    if not missing:
        return Latency(_rounded(warm_us), _rounded(_TAIL * warm_us))
    if board.flash_read_bytes_per_s is None or (compared and board.flash_random_reads_per_s is None):
        return Latency(None, None)
    scan_s = sum(rows * row_bytes for rows, row_bytes in scans) / board.flash_read_bytes_per_s
    compare_s = compared / board.flash_random_reads_per_s if board.flash_random_reads_per_s else 0.0
    cold_us = warm_us + missing * (scan_s + compare_s) * 1e6
    return Latency(_rounded(cold_us), _rounded(_TAIL * cold_us))


def _scans(model: TableModel) -> list[tuple[int, float]]:
    """Return how many rows of how many bytes a search for ten neighbours goes through, of one kind after the other."""
    if model.search is None:
        return [(model.rows, _row_bytes(model, "rows"))]
    lists = model.tensors["list_ends"].shape[0]
    in_lists = -(-model.rows * model.search.probes // lists)
    scanned = "rows" if model.search.shortlist is None else "plane"
    return [(lists, _row_bytes(model, "centroids")), (in_lists, _row_bytes(model, scanned))]


def _compared_rows(model: TableModel) -> int:
    """Return how many rows a search for ten neighbours compares behind a plane."""
    return 0 if model.search is None else 10 * (model.search.shortlist or 0)


def random_read_ns(board: Board, size_bytes: int) -> float:
    """Return what a dependent read in that much memory takes beyond the nearest cache."""
    points = {
        4 * 2**20: board.memory_random_read_4_mib_ns,
        64 * 2**20: board.memory_random_read_64_mib_ns,
        512 * 2**20: board.memory_random_read_ns or _RANDOM_READ_NS,
    }
    return _between(points, size_bytes)


def _scan_row_ns(row_bytes: float, table_bytes: int, board: Board) -> float:
    """Return what a row takes: something for itself, and its bytes at the speed of the memory that holds the table."""
    speeds = {
        4 * 2**20: board.scan_4_mib_bytes_per_s,
        64 * 2**20: board.scan_64_mib_bytes_per_s,
        512 * 2**20: board.scan_bytes_per_s or board.memory_read_bytes_per_s or board.memory_copy_bytes_per_s,
    }
    times = {size: None if speed is None else 256 / speed * 1e9 for size, speed in speeds.items()}
    row_256_ns = _between(times, table_bytes)
    row_ns = min(board.scan_row_ns or 0.0, row_256_ns)
    # Of codecs that are computed and not just read, this is the least that it can be.
    return row_ns + max(0.0, row_bytes - _ROW_NUMBERS) * (row_256_ns - row_ns) / (256 - _ROW_NUMBERS)


def _between(points: Mapping[int, float | None], size_bytes: int) -> float:
    """Return the value at a size, on a line through the known points over the logarithm of their sizes."""
    known = [(size, value) for size, value in points.items() if value is not None]
    below = max((point for point in known if point[0] <= size_bytes), default=known[0])
    above = min((point for point in known if point[0] >= size_bytes), default=known[-1])
    if below[0] == above[0]:
        return below[1]
    share = math.log(size_bytes / below[0]) / math.log(above[0] / below[0])
    return below[1] + share * (above[1] - below[1])


def _call_ns(board: Board) -> float:
    if board.python_call_ns is not None:
        return board.python_call_ns
    return _CALL_NS * max(1.0, _COPY_BYTES_PER_S / board.memory_copy_bytes_per_s)


def _row_bytes(model: TableModel, tensor: str) -> float:
    found = model.tensors[tensor]
    return found.size_bytes / max(1, found.shape[0])


def _table_bytes(model: TableModel) -> int:
    return max(1, sum(tensor.size_bytes for tensor in model.tensors.values()))


def _faults(model: TableModel) -> float:
    """Return the pages that one key touches: its slot, its row, its scale."""
    return 2.0 + ("scales" in model.tensors)


def _with_flash(warm_us: float, pages: float, missing: float, board: Board) -> Latency:
    """Return the latency where ``missing`` of the pages that a call touches have to be read from flash."""
    if not missing:
        return Latency(_rounded(warm_us), _rounded(_TAIL * warm_us))
    if board.flash_random_reads_per_s is None:
        return Latency(None, None)
    page_us = 1e6 / board.flash_random_reads_per_s
    # The typical call waits for a page only if more than half of them do; the hundredth slowest for all of its own.
    waiting = pages * missing
    typical_us = warm_us + (waiting if waiting >= 1 else round(waiting)) * page_us
    return Latency(_rounded(typical_us), _rounded(_TAIL * warm_us + pages * page_us))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
