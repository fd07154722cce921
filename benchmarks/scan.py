"""An exact scan of int8 rows side by side: the ten best of 200,000 x 384, by edge-embed's kernels and by its peers.

* All peers hold the same vectors, one byte a number, and answer the same queries alone, one after the other, on one
  thread: edge-embed (codec int8, native kernels and numpy's spelling), faiss (``IndexScalarQuantizer``, 8 bits, inner
  product), usearch (exact search of int8, cosine) and numpy (``int8`` made ``float32`` by blocks).
* A process measures one peer. Rounds are interleaved; a figure is the median over rounds of the median query.
* What memory allows is measured in the same process, before each query: an ``or`` over all words of the rows. A share
  of it is the median over pairs, so a slow minute of the machine falls on both.
* Peers must find nearly the same rows (usearch compares by cosines of codes) before their times are compared.

The bars: at least 75 % of the memory's bandwidth, twice faiss, five times usearch. Exit status 1: one is missed.

    python benchmarks/scan.py [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SEED, this_machine, today, write_section

TITLE = "Scan"
ROWS, DIMENSIONS, K = 200_000, 384, 10
QUERIES = 31
BARS = {"faiss": 2.0, "usearch": 5.0}
SHARE_OF_READING = 0.75

_FEWEST_SHARED = 0.9
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Query = NDArray[np.float32]
Scan = Callable[[Query], Any]


def make_vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the rows and the queries, all of length 1; the same ones every time."""
    random = np.random.default_rng(SEED)
    both = random.standard_normal((ROWS + QUERIES, DIMENSIONS), np.float32)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    return both[:ROWS], both[ROWS:]


def open_edge_embed(rows: NDArray[np.float32]) -> tuple[str, Scan]:
    """Open the kernels that this process has on the codes that the exporter makes."""
    from edge_embed import __version__, kernels
    from edge_embed_export.codecs import ENCODERS

    tensors = {name: np.ascontiguousarray(tensor[:]) for name, tensor in ENCODERS["int8"](rows).items()}
    opened = kernels.open_rows("int8", tensors, DIMENSIONS)
    norms = np.linalg.norm(opened.decode(np.arange(ROWS)), axis=1)
    runs, none = np.array([[0, ROWS]]), np.array([-1])
    # As a search of a table without lists asks.
    return __version__, lambda query: opened.nearest(query[np.newaxis], norms, K, runs, None, none, 0, None, 0, None)[
        0
    ][0]


def open_faiss(rows: NDArray[np.float32]) -> tuple[str, Scan]:
    """Open faiss on 8 bits a number."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(rows[:20_000])
    index.add(rows)
    return faiss.__version__, lambda query: index.search(query[np.newaxis], K)[1][0]


def open_usearch(rows: NDArray[np.float32]) -> tuple[str, Scan]:
    """Open usearch's exact search on int8 codes."""
    import usearch  # type: ignore[import-not-found,unused-ignore]
    from usearch.index import search  # type: ignore[import-not-found,unused-ignore]

    codes = _bytes_of(rows)
    return (
        usearch.__version__,
        lambda query: search(codes, _bytes_of(query[np.newaxis]), K, "cos", exact=True, threads=1).keys,
    )


def open_numpy(rows: NDArray[np.float32]) -> tuple[str, Scan]:
    """Open what one writes without any library."""
    codes, scales = _bytes_of(rows), np.abs(rows).max(axis=1)

    def scan(query: Query) -> Any:
        scores = np.concatenate([codes[i : i + 4096].astype(np.float32) @ query for i in range(0, ROWS, 4096)]) * scales
        best = np.argpartition(-scores, K)[:K]
        return best[np.argsort(-scores[best])]

    return np.__version__, scan


def _bytes_of(rows: NDArray[np.float32]) -> NDArray[np.int8]:
    largest = np.abs(rows).max(axis=1, keepdims=True)
    codes: NDArray[np.int8] = np.rint(rows / largest * 127).astype(np.int8)
    return codes


PEERS = {
    "edge-embed": open_edge_embed,
    "edge-embed, numpy's spelling": open_edge_embed,
    "faiss": open_faiss,
    "usearch": open_usearch,
    "numpy": open_numpy,
}


def measure_peer(name: str) -> dict[str, Any]:
    """Open one peer in this process and return its figure and its answers."""
    rows, queries = make_vectors()
    version, scan = PEERS[name](rows)
    words = _bytes_of(rows).reshape(-1).view(np.uint64)
    answers = [np.asarray(scan(query)).tolist() for query in queries]
    times, readings = [], []
    for query in queries:
        readings.append(_seconds(lambda: np.bitwise_or.reduce(words)))
        times.append(_seconds(partial(scan, query)))
    return {
        "version": version,
        "answers": answers,
        "seconds": statistics.median(times),
        "read_seconds": statistics.median(readings),
        "share": statistics.median(reading / scanning for reading, scanning in zip(readings, times, strict=True)),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(rounds: int) -> tuple[str, bool]:
    """Measure all peers in turn; return the section and whether every bar is met."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    absent: dict[str, str] = {}
    for _ in range(rounds):
        for name in [name for name in PEERS if name not in absent]:
            pure = {"EDGE_EMBED_PURE": "1"} if "numpy's" in name else {}
            command = [sys.executable, __file__, "--peer", name]
            environment = {**os.environ, **_ONE_THREAD, **pure}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                absent[name] = done.stderr.strip().splitlines()[-1]
                continue
            found[name].append(json.loads(done.stdout))
    _check_answers(found)
    seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items() if runs}
    ours, size = seconds["edge-embed"], ROWS * DIMENSIONS
    reading = statistics.median(run["read_seconds"] for run in found["edge-embed"])
    lines = [
        f"{today()}, the {K} best of {ROWS:,} x {DIMENSIONS} int8 ({size / 1e6:.0f} MB), exact; medians of {rounds} "
        f"interleaved rounds of {QUERIES} queries, one process per peer, one thread.",
        f"{this_machine()}; reading the rows alone: {size / reading / 1e9:.1f} GB/s.",
        "",
        "| peer | a query (ms) | GB/s | share of reading alone | edge-embed is so many times as fast | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    met = True
    for name in PEERS:
        if name in absent:
            lines.append(f"| {name} | absent: {absent[name][:120]} | | | | |")
            continue
        times, share = seconds[name] / ours, statistics.median(run["share"] for run in found[name])
        figure, bar = (share, SHARE_OF_READING) if name == "edge-embed" else (times, BARS.get(name))
        said = "" if bar is None else f"bar {bar:g}: {'met' if figure >= bar else 'missed'}"
        met &= bar is None or figure >= bar
        label = f"{name} {found[name][0]['version']}".strip()
        figures = f"{1e3 * seconds[name]:.2f} | {size / seconds[name] / 1e9:.1f} | {share:.2f} | {times:.2f}"
        lines.append(f"| {label} | {figures} | {said} |")
    if "usearch" in seconds:
        lines += [
            "",
            "usearch waits for the processor, edge-embed for memory. Who reads every row at the speed of reading alone "
            f"is {seconds['usearch'] / reading:.1f} times as fast as usearch here: the last bar hangs on that.",
        ]
    return "\n".join(lines), met


def _check_answers(found: dict[str, list[dict[str, Any]]]) -> None:
    ours = found["edge-embed"][0]["answers"]
    for name, runs in found.items():
        if not runs:
            continue
        pairs = zip(ours, runs[0]["answers"], strict=True)
        shared = statistics.mean(len(set(a) & set(b)) / K for a, b in pairs)
        if shared < _FEWEST_SHARED:
            raise SystemExit(f"expected {name} to find {_FEWEST_SHARED:.0%} of edge-embed's rows, found {shared:.0%}")


def main() -> int:
    """Compare, print the section, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description="exact scans of edge-embed beside its peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    parser.add_argument("--peer", choices=tuple(PEERS), help="measure one peer in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.peer is not None:
        print(json.dumps(measure_peer(arguments.peer)))
        return 0
    section, met = compare(arguments.rounds)
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
