"""``boards calibrate``: a profile of the machine at hand, measured in less than two minutes.

* Every figure says how it was measured, and the profile says when; what cannot be measured here is left out.
* Memory is measured on one core, in buffers far larger than a board's caches, after they were touched. What stands for
  a bundle is in small pages, as a map of a file is.
* A random read is dependent: each tells where the next one is. Python's own steps cancel out, because the same chase
  through a buffer that fits the nearest cache is subtracted (as tinymembench does).
* Flash is read after its pages were dropped from the page cache. Where the system says that no block was read, what
  was measured is memory, and is left out.
"""

from __future__ import annotations

import mmap
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from edge_embed import kernels
from edge_embed.errors import RequestError
from edge_embed.memory import allowed_bytes
from edge_embed.named_files import naming
from edge_embed_bundle.manifest import Manifest
from edge_embed_devices import engine_speeds, small_pages
from edge_embed_devices.profiles import FIGURES, THIS_MACHINE, Board, board_named, cpuinfo, is_here, read_profile
from edge_embed_devices.quiet import call_ns, in_quiet, quiet_moments, timed

_LINE_BYTES = 64
_READ_BYTES = 4096
_BLOCK_BYTES = 2**20
# What the kernel maps around a fault (fault_around_bytes), so that each touch is a fault of its own.
_FAULT_BYTES = 64 * 2**10
_DIMENSIONS = 256
_RANDOM_ROWS = 4096

#: What Linux calls a feature of the processor (``/proc/cpuinfo``), and what profiles call it.
_FEATURES = {"asimd": "neon", "neon": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm", "sve": "sve"}


@dataclass(frozen=True)
class Extent:
    """How much is measured: bytes of memory and of a file, steps of a chase, seconds of flash twice, engines.

    ``quiet_seconds``: how long a quiet moment is looked for, for each figure but those of flash.
    """

    memory_bytes: int
    file_bytes: int
    steps: int = 300_000
    seconds: float = 5.0
    engines: bool = True
    quiet_seconds: float = 1.5

    @classmethod
    def of_this_machine(cls) -> Extent:
        """Return an eighth of the memory, up to 512 MiB, and a file of 128 MiB: seconds on the slowest card."""
        return cls(min(512 * 2**20, allowed_bytes() // 8), 128 * 2**20)

    @classmethod
    def of_a_moment(cls, *, engines: bool) -> Extent:
        """Return what tells enough for a ratio; engines take seconds, and who has tables alone never loads them."""
        return cls(min(256 * 2**20, allowed_bytes() // 8), 16 * 2**20, 100_000, 0.5, engines, quiet_seconds=0.1)


def calibrate(path: Path, folder: Path, extent: Extent) -> Board:
    """Measure this machine, write its profile to ``path`` and return it as the gate reads it.

    Args:
        path: a ``.toml`` file, called after the board.
        folder: on the flash that is to be measured; it is left as it was.
        extent: how much to measure.
    """
    # It tells the others what a quiet moment is; at the end, what a call took in those that were.
    _call_ns(extent.quiet_seconds)
    figures = {
        "cores": (os.cpu_count() or 1, "asked of the system"),
        **_clock(Path("/sys/devices/system/cpu")),
        "ram_mib": (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20, "asked of the system"),
        "page_size_bytes": (os.sysconf("SC_PAGE_SIZE"), "asked of the system"),
        **_memory(extent),
        **_flash(folder, extent),
        **(engine_speeds.measured(folder, extent.quiet_seconds) if extent.engines else {}),
        "python_call_ns": (_call_ns(extent.quiet_seconds), "an empty function; in the quietest moments"),
    }
    with naming(path):
        path.write_text(_profile(figures), encoding="utf-8")
    return read_profile(path)


def check_folder(folder: Path) -> None:
    """Refuse a folder that no file can be made in, before a minute is spent on measuring memory.

    Raises:
        RequestError: it keeps files out.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RequestError(f"{folder}: expected a folder that takes files, found: {error.strerror}") from error


def board_to_predict(name: str, manifest: Manifest) -> Board:
    """Return a board as a prediction of a bundle wants it: by its name or path, or this machine as it is measured now.

    Raises:
        RequestError: no board has that name, or its profile breaks a rule.
    """
    board = board_named(name)
    return this_machine_for(manifest) if is_here(board) else board


def this_machine_for(manifest: Manifest) -> Board:
    """Return this machine with all that a bundle is predicted by."""
    return this_machine_measured(engines=bool(manifest.encoders))


@cache
def this_machine_measured(*, engines: bool) -> Board:
    """Return this machine, measured in some seconds, once; of its flash the folder for what is temporary."""
    with tempfile.TemporaryDirectory(prefix="edge-embed-calibrate-") as folder:
        return calibrate(Path(folder) / f"{THIS_MACHINE}.toml", Path(folder), Extent.of_a_moment(engines=engines))


def _profile(figures: dict[str, tuple[float, str]]) -> str:
    title = platform.node() if platform.node().isalnum() else "this machine"
    lines = [
        f'title = "{title}"',
        f'architecture = "{platform.machine()}"',
        f'os = "{platform.system()} {platform.release()}"',
        f'python = "{platform.python_version()}"',
        f'date = "{datetime.now(UTC).date().isoformat()}"',
        f"isa = {list(isa_of(cpuinfo()))!r}".replace("'", '"'),
        *(
            f"{key} = {value:.5g}" if isinstance(value, float) else f"{key} = {value}"
            for key, (value, _) in figures.items()
        ),
        "",
        "[sources]",
        *(f'{key} = "{source}"' for key, (_, source) in figures.items()),
    ]
    return "\n".join(lines) + "\n"


def isa_of(said: str) -> tuple[str, ...]:
    """Return the instruction sets that a profile names, out of what Linux says of an ARM processor."""
    words = {word for line in said.splitlines() if line.startswith("Features") for word in line.split(":")[1].split()}
    return tuple(dict.fromkeys(name for feature, name in _FEATURES.items() if feature in words))


def _clock(cores: Path) -> dict[str, tuple[float, str]]:
    """Return the clock of the fastest core, where the system tells of it; that of a virtual machine does not."""
    clocks_khz = [int(file.read_text()) for file in cores.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")]
    found_mhz = max(clocks_khz, default=0) / 1000
    is_told = FIGURES["core_mhz"].least <= found_mhz <= FIGURES["core_mhz"].most
    return {"core_mhz": (found_mhz, "asked of the system, the fastest core's most")} if is_told else {}


def _memory(extent: Extent) -> dict[str, tuple[float, str]]:
    shown, seconds = f"{extent.memory_bytes // 2**20} MiB", extent.quiet_seconds
    found = {
        "memory_copy_gb_per_s": (
            _copy_bytes_per_s(extent.memory_bytes // 2, seconds) / 1e9,
            f"numpy copies half of {shown}; in the quietest moments",
        ),
        "memory_read_gb_per_s": (
            _read_bytes_per_s(extent.memory_bytes, seconds) / 1e9,
            f"numpy's or over {shown}; in the quietest moments",
        ),
        "scan_row_ns": (
            _scan_ns_per_row(2**20, 16, seconds),
            "int8 rows of 16, 1 MiB of them; in the quietest moments",
        ),
    }
    near_ns = _chase_ns(16 * 2**10, extent)
    sizes = {"": extent.memory_bytes} | {f"_of_{mib}_mib": mib * 2**20 for mib in (64, 4, 1)}
    for name, size_bytes in sizes.items():
        if name and size_bytes > extent.memory_bytes // 2:
            continue
        size = f"{size_bytes // 2**20} MiB"
        random_ns = max(0.01, _chase_ns(size_bytes, extent) - near_ns)
        chase = f"{extent.steps:,} dependent reads over {size}, less those of 16 KiB; in the quietest moments"
        found[f"memory_random_read{name}_ns"] = (max(1.0, random_ns) if not name else random_ns, chase)
        if f"scan{name}_gb_per_s" not in FIGURES:
            continue
        scan = f"int8 rows of {_DIMENSIONS}, {size}, kernels {kernels.VARIANT}; in the quietest moments"
        row_ns = _scan_ns_per_row(size_bytes, _DIMENSIONS, seconds)
        found[f"scan{name}_gb_per_s"] = (_DIMENSIONS / row_ns, scan)
    return found


def _call_ns(seconds: float) -> float:
    return statistics.median(quiet_moments(call_ns, seconds))


def _copy_bytes_per_s(size_bytes: int, seconds: float) -> float:
    source = np.ones(size_bytes, np.uint8)
    target = np.empty_like(source)
    (copy_s,) = in_quiet(timed(lambda: np.copyto(target, source)), seconds=seconds)
    return size_bytes / copy_s


def _read_bytes_per_s(size_bytes: int, seconds: float) -> float:
    words = np.ones(size_bytes // 8, np.uint64)
    (read_s,) = in_quiet(timed(lambda: np.bitwise_or.reduce(words)), seconds=seconds)
    return words.nbytes / read_s


def _scan_ns_per_row(size_bytes: int, dimensions: int, seconds: float) -> float:
    """Return what a row costs in a search for ten, the call itself left out."""
    count = size_bytes // dimensions
    rows = small_pages.empty(count * dimensions, np.int8).reshape(count, dimensions)
    # Some random rows again and again: as many of them anew would take seconds, and as much memory once more.
    some = np.random.default_rng(0).integers(-127, 128, (min(count, _RANDOM_ROWS), dimensions), np.int8)
    for start in range(0, count, len(some)):
        rows[start : start + len(some)] = some[: count - start]
    norms = np.full(count, dimensions**0.5 * 73, np.float32)
    opened = kernels.open_rows("int8", {"rows": rows, "scales": np.ones(count, np.float32)}, dimensions)
    query = np.random.default_rng(1).standard_normal((1, dimensions), np.float32)
    none = np.full(1, -1, np.int64)

    def scan(rows: int) -> Callable[[], float]:
        runs = np.array([[0, rows]], np.int64)
        return timed(lambda: opened.nearest(query, norms, 10, runs, None, none, 0, None, 0, None))

    few = min(16, count // 2)
    all_s, few_s = in_quiet(scan(count), scan(few), seconds=seconds)
    return (all_s - few_s) / (count - few) * 1e9


def _chase_ns(size_bytes: int, extent: Extent) -> float:
    """Return what a read takes that depends on the one before it, Python's own steps among it."""
    words = _chain(size_bytes, extent.steps)

    def chase() -> None:
        place = 0
        for _ in range(extent.steps):
            place = words[place]

    (chase_s,) = in_quiet(timed(chase), seconds=extent.quiet_seconds)
    return chase_s / extent.steps * 1e9


def _chain(size_bytes: int, steps: int) -> memoryview:
    """Return 32-bit words, one of each line of which says where the next one is, in a random circle."""
    step = _LINE_BYTES // 4
    words = small_pages.empty(size_bytes // 4, np.uint32)
    words.fill(1)
    order = np.random.default_rng(0).permutation(size_bytes // _LINE_BYTES)[: steps + 1].astype(np.uint32) * step
    # The circle begins at the first line, wherever it stands in it.
    order[order == 0] = order[0]
    order[0] = 0
    words[order] = np.roll(order, -1)
    return words.data


def _flash(folder: Path, extent: Extent) -> dict[str, tuple[float, str]]:
    # Without a buffer: what is left in one where room ends fails once more when the file is closed.
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        block = np.random.default_rng(0).bytes(_BLOCK_BYTES)
        try:
            for _ in range(max(1, extent.file_bytes // _BLOCK_BYTES)):
                file.write(block)
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in engine_speeds.NO_ROOM:
                raise
            return {}
        size_bytes = os.fstat(file.fileno()).st_size
        shown = f"of a file of {size_bytes // 2**20} MiB, dropped from the page cache; on a virtual disk, its host's"
        found: dict[str, tuple[float, str]] = {}
        blocks_before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        reads_per_s = _random_reads_per_s(file.fileno(), size_bytes, extent.seconds)
        read_bytes_per_s = _sequential_bytes_per_s(file.fileno(), extent.seconds)
        if resource.getrusage(resource.RUSAGE_SELF).ru_inblock > blocks_before:
            found["flash_random_reads_per_s"] = (reads_per_s, f"4 KiB, one after the other, {shown}")
            found["flash_sequential_read_mb_per_s"] = (read_bytes_per_s / 1e6, f"1 MiB at a time, {shown}")
        found["page_fault_us"] = (
            _page_fault_us(file.fileno(), size_bytes),
            "first touch of a map of a file that is in memory, 64 KiB apart, less the second touch",
        )
        return found


def _random_reads_per_s(file: int, size_bytes: int, seconds: float) -> float:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    # No place twice: the second read would be the page cache's.
    places = (np.random.default_rng(0).permutation(size_bytes // _READ_BYTES) * _READ_BYTES).tolist()
    start = time.perf_counter()
    reads = 0
    for place in places:
        os.pread(file, _READ_BYTES, place)
        reads += 1
        if time.perf_counter() - start > seconds:
            break
    return reads / (time.perf_counter() - start)


def _sequential_bytes_per_s(file: int, seconds: float) -> float:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    start = time.perf_counter()
    size_bytes = 0
    while time.perf_counter() - start < seconds and (block := os.pread(file, _BLOCK_BYTES, size_bytes)):
        size_bytes += len(block)
    return size_bytes / (time.perf_counter() - start)


def _page_fault_us(file: int, size_bytes: int) -> float:
    os.lseek(file, 0, os.SEEK_SET)
    while os.read(file, _BLOCK_BYTES):
        pass
    with mmap.mmap(file, size_bytes, prot=mmap.PROT_READ) as mapped:
        pages = np.frombuffer(mapped, np.uint8)[::_FAULT_BYTES]
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            int(pages.sum())
            seconds.append(time.perf_counter() - start)
        count = len(pages)
        del pages
    return max(0.001, (seconds[0] - seconds[1]) / count * 1e6)
