"""Reading word vectors, beside gensim's ``load_word2vec_format``: the same file, one process each.

    python benchmarks/reading.py [--rows 100000] [--rounds 5] [--write]
    python benchmarks/reading.py --large 2.0 [--write]

The first compares time and peak memory; the bar is half of gensim's time. The second exports so many GB of text as a
user does and measures the peak of the whole command; the bar is 600 MB for two. Files of a run are removed with it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SEED, this_machine, today, write_section

DIMENSIONS = 300
BAR_TIMES = 2.0
BAR_LARGE_MB = 600

_BLOCK_ROWS = 1000
_BYTES_A_ROW = 2861


def write_files(folder: Path, rows: int, *, binary: bool = True) -> None:
    """Write a table as word2vec's text and, where asked for, as its binary file."""
    random = np.random.default_rng(SEED)
    with (folder / "table.txt").open("wb") as text, (folder / "table.bin").open("wb") as packed:
        for file in (text, packed):
            file.write(b"%d %d\n" % (rows, DIMENSIONS))
        for start in range(0, rows, _BLOCK_ROWS):
            block = random.normal(size=(min(_BLOCK_ROWS, rows - start), DIMENSIONS)).astype(np.float32)
            for i, row in enumerate(block):
                word = b"word%d " % (start + i)
                text.write(word + b" ".join([b"%.6f" % number for number in row]) + b"\n")
                if binary:
                    packed.write(word + row.tobytes() + b"\n")


def peer_edge_embed(path: Path) -> float:
    """Return the seconds that our reader takes."""
    from edge_embed_export.sources import read_source, readers

    readers()  # gensim is imported before its clock starts, too
    start = time.perf_counter()
    read_source(path)
    return time.perf_counter() - start


def peer_gensim(path: Path) -> float:
    """Return the seconds that gensim's reader takes."""
    from gensim.models import KeyedVectors  # type: ignore[import-untyped,import-not-found,unused-ignore]

    start = time.perf_counter()
    KeyedVectors.load_word2vec_format(str(path), binary=path.suffix == ".bin")
    return time.perf_counter() - start


PEERS = {"edge-embed": peer_edge_embed, "gensim": peer_gensim}


def _peak_mb(kind: int) -> float:
    return resource.getrusage(kind).ru_maxrss * 1024 / 1e6


def compare(rows: int, rounds: int, folder: Path) -> tuple[str, bool]:
    """Let both read both files in turn; return the section and whether the bar is met."""
    write_files(folder, rows)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for file in ("table.txt", "table.bin"):
            for peer in PEERS:
                command = [sys.executable, __file__, "--peer", peer, "--file", str(folder / file)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.setdefault((file, peer), []).append(json.loads(done.stdout))
    medians = {place: statistics.median(each["seconds"] for each in runs) for place, runs in found.items()}
    lines = [
        f"{today()}, {rows:,} x {DIMENSIONS}; medians of {rounds} interleaved rounds, one process each, warm files.",
        f"{this_machine()}.",
        "",
        "| file | peer | seconds | peak memory (MB) | |",
        "|---|---|---:|---:|---|",
    ]
    met = True
    for (file, peer), runs in found.items():
        times = medians[file, "gensim"] / medians[file, peer]
        bar = ""
        if peer == "edge-embed":
            met &= times >= BAR_TIMES
            bar = f"{times:.1f} times gensim; bar {BAR_TIMES:g}: {'met' if times >= BAR_TIMES else 'missed'}"
        peak = statistics.median(each["peak_mb"] for each in runs)
        lines.append(f"| {file} | {peer} | {medians[file, peer]:.2f} | {peak:.0f} | {bar} |")
    return "\n".join(lines), met


def large(gigabytes: float, folder: Path) -> tuple[str, bool]:
    """Export a large text file with the command that users run; return the section and whether the bar is met."""
    rows = int(gigabytes * 1e9 / _BYTES_A_ROW)
    write_files(folder, rows, binary=False)
    size = (folder / "table.txt").stat().st_size
    words = ["export", str(folder / "table.txt"), "-o", str(folder / "bundle"), "--json"]
    budgets = ["--budget", "search=10000000/10000000", "--budget", "memory=1GiB"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "edge_embed", *words, *budgets]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(folder)})
    seconds = time.perf_counter() - start
    peak = _peak_mb(resource.RUSAGE_CHILDREN)
    met = peak <= BAR_LARGE_MB
    lines = [
        f"{today()}, {size / 1e9:.2f} GB of text, {rows:,} x {DIMENSIONS}, exported to int8 with both graphs.",
        f"{this_machine()}.",
        "",
        f"{seconds:.0f} s, peak resident set {peak:.0f} MB, the mapped bundle among it; "
        f"bar {BAR_LARGE_MB} MB: {'met' if met else 'missed'}.",
    ]
    return "\n".join(lines), met


def main() -> int:
    """Run what is asked for; return 0 if its bar is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=float, metavar="GB")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--peer", choices=tuple(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        seconds = PEERS[arguments.peer](arguments.file)
        print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb(resource.RUSAGE_SELF)}))
        return 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:  # noqa: S108, memory it is not
        if arguments.large:
            title, (body, met) = "Large sources", large(arguments.large, Path(folder))
        else:
            title, (body, met) = "Reading", compare(arguments.rows, arguments.rounds, Path(folder))
    print(body)
    if arguments.write:
        write_section(title, body)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
