"""A table twenty times as large as the memory it may use: how often a lookup waits for flash, and what it reads.

* Every contender is a process in a memory control group of its own, page cache included; the cache of its files is
  emptied before. Counted are major faults and bytes read, not time: counts are the same on any storage.
* The table: int8, 256 numbers a row, by frequency, from a bundle. Keys come by Zipf's law over that order (``zipf``),
  or from a window of ranks, the first of them most often, that moves on with every thousand lookups (``drift``).
* Beside edge-embed: the same table with its rows in hash order; the same by frequency without advice (the kernel's
  read-ahead); a cache of the last rows in Python over ``pread``; gensim, whose float32 vectors are mapped: it gets a
  quarter of the rows, so as many bytes, and beside the limit what its imports and its keys alone take.
* Only row lookups by id are counted: the key index is another section, and the peers have none on flash.

The target: at most half the faults of hash order. Without a memory controller there is nothing to measure, and that is
said. Exit status 1: the target is missed.

    python benchmarks/flash.py [--limit-mib 64] [--lookups 100000] [--write]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cgroup import MemoryLimit
from benchmarks.common import SEED, this_machine, today, write_section
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Budgets, Manifest, Requirements, TableModel
from edge_embed_bundle.values import Space, Tensor
from edge_embed_bundle.writer import BlobWriter, BundleWriter

TITLE = "Flash"
TIMES_THE_LIMIT, DIMENSIONS = 20, 256
TARGET = 0.5
STREAMS = ("zipf", "drift")

_WARM_UP = 0.5  # of the lookups: what a process has asked for before it is counted
_DRIFT_STEP, _DRIFT_WINDOW = 1_000, 20_000
_LRU_ROW_BYTES = 700  # of a row in an OrderedDict: the array, its bytes, key and link
_BLOCK = 65_536

Ids = NDArray[np.int64]


def make_bundle(folder: Path, rows: int) -> None:
    """Write a bundle of one int8 table of ids; no exporter is asked for 5 GB of float32 that nobody looks at."""
    random = np.random.default_rng(SEED)
    tensors: dict[str, Tensor] = {}

    def write(blob: BlobWriter) -> None:
        blocks = (
            random.integers(-127, 128, (min(_BLOCK, rows - start), DIMENSIONS), np.int8).data
            for start in range(0, rows, _BLOCK)
        )
        tensors["rows"] = blob.section(blocks, dtype="int8", shape=(rows, DIMENSIONS))
        tensors["scales"] = blob.section([np.ones(rows, "<f4").data], dtype="float32", shape=(rows,))

    with BundleWriter(folder) as writer:
        writer.blob("table.bin", write)
        model = TableModel("table", "int8", rows, DIMENSIONS, tensors, row_order="frequency")
        space = Space("0" * 64, DIMENSIONS, "cosine", "made numbers")
        writer.finish(
            lambda blobs: Manifest(
                "flash", "1.0.0", space, (model,), blobs, Requirements(("codec-int8",), 0), Budgets(None, 0, {}), {}, ()
            )
        )


def make_gensim(folder: Path, rows: int) -> None:
    """Write a mapped float32 table of as many bytes as the int8 one, in gensim's own format."""
    from gensim.models import KeyedVectors  # type: ignore[import-untyped,import-not-found,unused-ignore]

    vectors = KeyedVectors(DIMENSIONS, count=0)
    vectors.vectors = np.random.default_rng(SEED).standard_normal((rows, DIMENSIONS), np.float32)
    vectors.index_to_key = list(range(rows))
    vectors.save(str(folder / "gensim.kv"), sep_limit=0, separately=["vectors"])


def stream(name: str, rows: int, count: int) -> Ids:
    """Return the ids of a run of lookups ``(count,)``: ranks by frequency."""
    random = np.random.default_rng(SEED + 1)
    if name == "drift":
        first = np.arange(count) // _DRIFT_STEP * _DRIFT_STEP
        return np.asarray((first + random.zipf(1.2, count) % _DRIFT_WINDOW) % rows, np.int64)
    mass = np.cumsum(1 / np.arange(1, rows + 1))
    return np.asarray(np.searchsorted(mass, random.random(count) * mass[-1], side="right"), np.int64)


def write_streams(folder: Path, rows: int, count: int) -> None:
    """Write what each contender is asked for: it would not fit beside the limit to make that there."""
    place_of_rank = np.random.default_rng(SEED + 2).permutation(rows)
    for which in STREAMS:
        ids = stream(which, rows, count)
        np.save(folder / f"{which}.npy", ids)
        np.save(folder / f"{which}-hashed.npy", place_of_rank[ids])
        np.save(folder / f"{which}-quarter.npy", stream(which, rows // 4, count))


# The contenders: each opens in its own process, and looks rows up by id


def open_edge_embed(folder: Path, limit: int) -> Callable[[int], object]:
    """Open the bundle as an application does, under a budget."""
    import edge_embed

    runtime = edge_embed.open(folder / "bundle", verify=False, memory_budget=limit)
    return lambda row: runtime.lookup_ids([row])


def open_unadvised(folder: Path, limit: int) -> Callable[[int], object]:
    """Read the same bundle through a map that nobody gave advice for."""
    with Bundle.open(folder / "bundle") as bundle:
        tensor = bundle.manifest.tables[0].tensors["rows"]
        table = np.frombuffer(bundle.tensor(tensor), np.int8).reshape(tensor.shape)
    return lambda row: table[row].astype(np.float32)


def open_lru(folder: Path, limit: int) -> Callable[[int], object]:
    """Keep the last rows in a dict of Python's, half of the limit large, and read others from the file."""
    with Bundle.open(folder / "bundle") as bundle:
        offset = bundle.manifest.tables[0].tensors["rows"].offset_bytes
        descriptor = os.dup(bundle.descriptor("table.bin"))
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    kept: OrderedDict[int, NDArray[np.int8]] = OrderedDict()
    most = limit // 2 // _LRU_ROW_BYTES

    def look_up(row: int) -> object:
        found = kept.get(row)
        if found is None:
            found = np.frombuffer(os.pread(descriptor, DIMENSIONS, offset + row * DIMENSIONS), np.int8)
            kept[row] = found
            if len(kept) > most:
                kept.popitem(last=False)
        else:
            kept.move_to_end(row)
        return found.astype(np.float32)

    return look_up


def open_gensim(folder: Path, limit: int) -> Callable[[int], object]:
    """Open gensim's mapped vectors: rows of four times the bytes, so a quarter of them."""
    from gensim.models import KeyedVectors  # type: ignore[import-untyped,import-not-found,unused-ignore]

    vectors = KeyedVectors.load(str(folder / "gensim.kv"), mmap="r").vectors
    return lambda row: vectors[row].copy()


OURS, HASHED = "edge-embed, by frequency", "edge-embed, in hash order"
UNADVISED, GENSIM = "by frequency, without advice", "gensim, mapped"
#: How each opens, and which of the streams it is asked for.
CONTENDERS: dict[str, tuple[Callable[[Path, int], Callable[[int], object]], str]] = {
    OURS: (open_edge_embed, ""),
    HASHED: (open_edge_embed, "-hashed"),
    UNADVISED: (open_unadvised, ""),
    "a cache of rows in Python": (open_lru, ""),
    GENSIM: (open_gensim, "-quarter"),
}


def measure(name: str, which: str, folder: Path, limit: int) -> dict[str, Any]:
    """Look rows up in this process; return faults and bytes for each lookup after the warm-up."""
    open_contender, variant = CONTENDERS[name]
    ids = np.load(folder / f"{which}{variant}.npy").tolist()
    look_up = open_contender(folder, limit)
    count, warm = len(ids), int(_WARM_UP * len(ids))
    for row in ids[:warm]:
        look_up(row)
    faults, read = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, _bytes_read()
    for row in ids[warm:]:
        look_up(row)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    return {"faults": faults / (count - warm), "bytes": (_bytes_read() - read) / (count - warm)}


def _bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _opened_bytes(name: str, folder: Path) -> int:
    """Return the most that a process without a limit holds in memory while it opens one contender's table."""
    command = [sys.executable, str(Path(__file__)), "--opened", name, "--folder", str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def _forget(folder: Path) -> None:
    """Empty the cache of all files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def compare(limit: int, count: int, folder: Path) -> tuple[str, bool]:
    """Measure all contenders; return the section of the page of results, and whether the target was met."""
    rows = TIMES_THE_LIMIT * limit // DIMENSIONS
    _say(f"making {rows:,} rows of {DIMENSIONS} bytes")
    make_bundle(folder / "bundle", rows)
    make_gensim(folder, rows // 4)
    write_streams(folder, rows, count)
    os.sync()
    beside = {GENSIM: _opened_bytes(GENSIM, folder) - _opened_bytes(UNADVISED, folder)}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for which in STREAMS:
        for name in CONTENDERS:
            _say(f"{which}: {name}")
            _forget(folder)
            command = [sys.executable, str(Path(__file__)), "--contender", name, "--stream", which]
            command += ["--folder", str(folder), "--limit-mib", str(limit // 2**20)]
            with MemoryLimit(limit + beside.get(name, 0)) as group:
                done = subprocess.run(command, preexec_fn=group.enter, capture_output=True, text=True)
                found[name, which] = {"kills": group.kills}
            if done.returncode == 0:
                found[name, which] |= json.loads(done.stdout)
            else:
                found[name, which]["failed"] = (done.stderr.strip().splitlines() or ["killed"])[-1]
    return _report(limit, rows, count, found)


def _report(limit: int, rows: int, count: int, found: dict[tuple[str, str], dict[str, Any]]) -> tuple[str, bool]:
    lines = [
        f"{today()}, a table of {rows:,} x {DIMENSIONS} int8 ({rows * DIMENSIONS / 2**20:.0f} MiB), a process that may "
        f"hold {limit / 2**20:.0f} MiB; {count:,} lookups, the first half to warm up; pages of {mmap.PAGESIZE} bytes.",
        f"{this_machine()}.",
        "",
        "| contender | zipf: faults a lookup | bytes read | drift: faults a lookup | bytes read | killed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in CONTENDERS:
        cells = []
        for which in STREAMS:
            figures = found[name, which]
            if "failed" in figures:
                cells += [figures["failed"][:60].replace("|", "/"), ""]
            else:
                cells += [f"{figures['faults']:.3f}", f"{figures['bytes']:,.0f}"]
        kills = sum(found[name, which]["kills"] for which in STREAMS)
        lines.append(f"| {name} | {' | '.join(cells)} | {kills} |")
    met = True
    lines.append("")
    for which in STREAMS:
        ours, hashed = (found[name, which].get("faults", float("nan")) for name in (OURS, HASHED))
        share = ours / hashed if hashed else 0.0
        met &= share <= TARGET
        lines.append(
            f"* {which}: {share:.2f} times the faults of hash order; target {TARGET}: "
            f"{'met' if share <= TARGET else 'missed'}."
        )
    return "\n".join(lines), met


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    """Compare, print the section, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description="lookups in a table that is larger than memory")
    parser.add_argument("--limit-mib", type=int, default=64)
    parser.add_argument("--lookups", type=int, default=100_000)
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    parser.add_argument("--contender", choices=tuple(CONTENDERS), help="measure one in this process and print JSON")
    parser.add_argument("--opened", choices=tuple(CONTENDERS), help="open one and print the memory that took")
    parser.add_argument("--stream", choices=STREAMS, help="with --contender: which keys")
    parser.add_argument("--folder", type=Path, help="with --contender: where its files are")
    arguments = parser.parse_args()
    limit = arguments.limit_mib * 2**20
    if arguments.opened is not None:
        look_up = CONTENDERS[arguments.opened][0](arguments.folder, limit)
        look_up(0)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return 0
    if arguments.contender is not None:
        print(json.dumps(measure(arguments.contender, arguments.stream, arguments.folder, limit)))
        return 0
    try:
        with MemoryLimit(limit):
            pass
    except OSError as error:
        print(f"skipped: no memory controller may be used here: {error}")
        return 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-", dir="/var/tmp") as workplace:
        section, met = compare(limit, arguments.lookups, Path(workplace))
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
