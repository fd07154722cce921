"""Lookups side by side: edge-embed and its peers on one table, one process per peer.

* The table is made here; each peer gets it in the format it serves from (``peer_files``).
  edge-embed keeps int8 (and, once more, pq), ONNX Runtime runs a graph over the same int8 rows, the others keep the
  float32 they were given: its size is part of what it sells, and its decoding is part of what it costs.
* Every figure comes from a process that opens one peer. Rounds are interleaved, so a busy minute of the machine
  falls on all, and what is measured while a neighbour wants the same core does not count
  (``edge_embed_devices.quiet``); a figure is the median over rounds. Every query was asked once before it is timed, so
  what is mapped is in memory for everyone; only the start is measured on a warm file cache alone.
* Peers must agree on the answers (up to the rounding of int8) before their times are compared.
* A peer that is not there, or that fails, stays in the table with its reason.
* The bars stand in ``bars``. Exit status 1: one is missed.

    python benchmarks/lookup.py [--rows 1000000] [--dimensions 300] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    Machine,
    SyntheticTable,
    keep_bytecode,
    make_queries,
    make_table,
    this_machine,
    today,
    wall_ms,
    workplace_at,
    write_section,
)
from benchmarks.peer_files import CONVERTERS
from benchmarks.peers import DISTRIBUTIONS, ENVIRONMENTS, FLOOR, PEERS, Peer
from edge_embed_devices.quiet import call_ns, least_call_ns, moment, quiet_moments

TITLE = "Lookups"
OURS, PQ, PURE, ALONE = tuple(PEERS)[:4]
_OWN = (OURS, PQ, PURE, ALONE)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")

#: How far an answer of int8 may stand from float32, relative to its length.
TOLERANCE = 0.02

#: Two figures that differ by less are called even: runs of one peer differ by as much.
EVEN = 0.05

_QUERIES_FILE, _CONVERTED_FILE = "queries.txt", "converted.json"
_QUERY_COUNT = 100_000
_SINGLE_LOOKUPS, _SINGLE_BLOCK = 50_000, 1_000
_BATCH_KEYS = 10_000
_BAG_KEYS, _BAGS, _BAG_BLOCK = 16, 5_000, 250
_SECONDS, _MOMENT_SECONDS, _LEAST_BLOCKS = 1.5, 0.1, 3
_STARTS_SECONDS = 1.0

_WHICH = (
    "Lookups, batches and bags are held against those of a bare bundle, for peers follow no store; memory and start "
    "are a store's, which verified its bundle when it was installed: a bare one is verified whenever it is opened."
)

_WHY = """\
* **What slows edge-embed here.** A single lookup passes from `Runtime.lookup`, in Python, which asks the store's slots
  for news first, to one call of the native kernels: hash, find, decode, a new array.
* **What that buys.** The peers hold every key as an object in memory, and make or read all of them before the first
  answer; edge-embed maps its index. Their private memory and their start grow with the table, its own do not."""


@dataclass(frozen=True)
class Speed:
    """What one process of one peer measured, and the answer that it gave."""

    version: str
    lookup_us: float
    batch_mrows_per_s: float
    bag_us: float
    answer: tuple[float, ...]


@dataclass(frozen=True)
class Start:
    """What opening and one answer cost a fresh process."""

    private_mib: float
    first_vector_ms: float


@dataclass(frozen=True)
class Figures:
    """A peer's medians over all rounds."""

    version: str
    flash_mib: float
    private_mib: float
    first_vector_ms: float
    lookup_us: float
    batch_mrows_per_s: float
    bag_us: float


@dataclass(frozen=True)
class Measure:
    """A column of the table."""

    field: str
    heading: str
    more_is_better: bool = False

    def advantage(self, ours: Figures, theirs: Figures) -> float:
        """Return how many times better edge-embed's figure is; under 1, the peer's is."""
        a, b = float(getattr(ours, self.field)), float(getattr(theirs, self.field))
        return a / b if self.more_is_better else b / a


MEASURES = (
    Measure("flash_mib", "files (MiB)"),
    Measure("private_mib", "private memory (MiB)"),
    Measure("first_vector_ms", "start to first vector (ms)"),
    Measure("lookup_us", "one lookup (us)"),
    Measure("batch_mrows_per_s", f"{_BATCH_KEYS:,} keys (M rows/s)", more_is_better=True),
    Measure("bag_us", f"bag of {_BAG_KEYS} (us)"),
)


@dataclass(frozen=True)
class Comparison:
    """Everything that one run found: figures, or the reason why there are none, by peer."""

    rows: int
    dimensions: int
    rounds: int
    machine: Machine
    figures: Mapping[str, Figures]
    absent: Mapping[str, str]
    floor: Start


# One peer, in a process of its own


def measure_peer(name: str, folder: Path, quiet_ns: float) -> Speed:
    """Measure the peer's answers in this process; ``quiet_ns``: what an empty call takes in a quiet moment."""
    least_call_ns(quiet_ns)
    queries = (folder / _QUERIES_FILE).read_text(encoding="utf-8").split("\n")
    peer = PEERS[name](str(folder))
    batches, bags = _runs(queries, _BATCH_KEYS), _runs(queries, _BAG_KEYS)
    # The files of all peers are more than the cache of a small machine keeps: every query is asked once before.
    for batch in batches:
        peer.many(batch)
    return Speed(
        version=importlib.metadata.version(DISTRIBUTIONS.get(name, name)),
        lookup_us=_block_us(peer.one, queries[:_SINGLE_LOOKUPS], _SINGLE_BLOCK),
        batch_mrows_per_s=_BATCH_KEYS / _block_us(peer.many, batches, 1),
        bag_us=_block_us(peer.bag, bags[:_BAGS], _BAG_BLOCK),
        answer=_answer(peer, queries),
    )


def _runs(queries: list[str], length: int) -> list[list[str]]:
    return [queries[start : start + length] for start in range(0, len(queries) - length + 1, length)]


def _block_us(call: Callable[[Any], object], inputs: Sequence[Any], block: int) -> float:
    """Return the time of one call: the median over blocks, since a clock is read for less often than a lookup."""
    blocks = itertools.cycle(inputs[start : start + block] for start in range(0, len(inputs), block))

    def timer() -> float:
        values = next(blocks)
        begin = time.perf_counter_ns()
        for value in values:
            call(value)
        return (time.perf_counter_ns() - begin) / len(values) / 1000

    return statistics.median(quiet_moments(moment(timer, _MOMENT_SECONDS, _LEAST_BLOCKS), _SECONDS))


def _answer(peer: Peer, queries: list[str]) -> tuple[float, ...]:
    """Return one vector from each of the three operations, one behind the other."""
    keys = queries[:_BAG_KEYS]
    return tuple(np.concatenate([peer.one(keys[0]), peer.many(keys)[-1], peer.bag(keys)]).tolist())


# All peers, from outside


def compare(rows: int, dimensions: int, rounds: int, workplace: Path) -> Comparison:
    """Make the table, convert it for every peer, and measure them in turn."""
    keep_bytecode(workplace / "bytecode")
    table = make_table(rows, dimensions)
    queries = make_queries(table.keys, _QUERY_COUNT)
    flash_mib, absent = _convert_all(table, queries, workplace)
    starts: dict[str, list[Start]] = {name: [] for name in (*flash_mib, FLOOR)}
    speeds: dict[str, list[Speed]] = {name: [] for name in flash_mib}
    for name in starts:
        # Fills the caches of files and of bytecode, and does not count.
        wall_ms(*_command(name, workplace / name, queries[0]))
    quiet_moments(call_ns, _SECONDS)
    for round_ in range(rounds):
        _say(f"round {round_ + 1} of {rounds}")
        for name in starts:
            starts[name].append(_start(name, workplace / name, queries[0]))
        for name in speeds:
            speeds[name].append(_speed(name, workplace / name))
    _check_answers({name: found[0].answer for name, found in speeds.items()}, dimensions)
    figures = {name: _figures(flash_mib[name], starts[name], speeds[name]) for name in speeds}
    floor = Start(_median(starts[FLOOR], "private_mib"), _median(starts[FLOOR], "first_vector_ms"))
    return Comparison(rows, dimensions, rounds, this_machine(), figures, absent, floor)


def _convert_all(table: SyntheticTable, queries: list[str], workplace: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Return the MiB of files by peer, and the reasons of those that could not convert the table."""
    flash_mib, absent = {}, {}
    for name, convert in CONVERTERS.items():
        _say(f"converting for {name}")
        folder = workplace / name
        if folder.exists():
            flash_mib[name] = json.loads((folder / _CONVERTED_FILE).read_text(encoding="ascii"))
            continue
        folder.mkdir()
        try:
            served = convert(table, folder)
        except Exception as error:  # an extension made for another numpy raises ValueError when it is imported
            if name == OURS:
                raise
            absent[name] = f"{type(error).__name__}: {error}"
            shutil.rmtree(folder)
            continue
        flash_mib[name] = sum(path.stat().st_size for path in served.iterdir() if path.is_file()) / 2**20
        (folder / _QUERIES_FILE).write_text("\n".join(queries), encoding="utf-8")
        (folder / _CONVERTED_FILE).write_text(json.dumps(flash_mib[name]), encoding="ascii")
    return flash_mib, absent


def _start(name: str, folder: Path, key: str) -> Start:
    """Run the smallest program with this peer once for its private memory and then, unread, for its time."""
    command, environment = _command(name, folder, key)
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    times_ms = quiet_moments(lambda: wall_ms(command, environment), _STARTS_SECONDS)
    return Start(json.loads(said)["private_bytes"] / 2**20, statistics.median(times_ms))


def _command(name: str, folder: Path, key: str) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), name, str(folder), key]
    return command, {**os.environ, **ENVIRONMENTS.get(name, {})}


def _speed(name: str, folder: Path) -> Speed:
    quiet = f"--quiet-ns={least_call_ns()}"
    command = [sys.executable, __file__, "--peer", name, "--folder", str(folder), quiet]
    environment = {**os.environ, **_ONE_THREAD, **ENVIRONMENTS.get(name, {})}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    found = json.loads(said)
    return Speed(**{**found, "answer": tuple(found["answer"])})


def _check_answers(answers: Mapping[str, tuple[float, ...]], dimensions: int) -> None:
    ours = np.reshape(answers[OURS], (-1, dimensions))
    for name, answer in answers.items():
        if name == PQ:
            continue  # its codec moves vectors further, which its manifest states
        theirs = np.reshape(answer, (-1, dimensions))
        apart = np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(theirs, axis=1)
        if apart.max() > TOLERANCE:
            raise SystemExit(f"expected {OURS} and {name} to agree within {TOLERANCE:.0%}, found {apart.max():.1%}")


def _figures(flash_mib: float, starts: Sequence[Start], speeds: Sequence[Speed]) -> Figures:
    return Figures(
        version=speeds[0].version,
        flash_mib=flash_mib,
        private_mib=_median(starts, "private_mib"),
        first_vector_ms=_median(starts, "first_vector_ms"),
        lookup_us=_median(speeds, "lookup_us"),
        batch_mrows_per_s=_median(speeds, "batch_mrows_per_s"),
        bag_us=_median(speeds, "bag_us"),
    )


def _median(values: Sequence[object], field: str) -> float:
    return statistics.median(float(getattr(value, field)) for value in values)


# The page


def bars(found: Comparison) -> list[tuple[str, float, float]]:
    """Return what edge-embed is to reach: words, the figure, and the least that it may be.

    Peers serve a file, so lookups are those of a bundle that follows no store; memory and start are those of a store.
    """
    ours, figures, floor = found.figures[OURS], found.figures, found.floor
    alone = figures[ALONE]
    measures = {measure.field: measure for measure in MEASURES}
    told = []
    for field, peer, least in (
        ("lookup_us", "finalfusion", 2.0),
        ("lookup_us", "gensim", 4.0),
        ("batch_mrows_per_s", "onnxruntime", 4.0),
        ("batch_mrows_per_s", "gensim", 40.0),
    ):
        if peer in figures:
            measure = measures[field]
            told.append((f"{measure.heading}, times {peer}", measure.advantage(alone, figures[peer]), least))
    others = {name: theirs.bag_us for name, theirs in figures.items() if name not in _OWN}
    best = min(others, key=lambda name: others[name])
    told.append((f"bag of {_BAG_KEYS}, times the best peer ({best})", others[best] / alone.bag_us, 5.0))
    told.append(("rows of pq in a batch, share of those of int8", _share(figures[PQ], ours), 1 / 1.5))
    told.append(("batch in numpy alone, times gensim", _share(figures[PURE], figures.get("gensim", ours)), 1.0))
    beyond = ours.private_mib - floor.private_mib
    told.append((f"2 MB of private memory beside numpy's import, found {beyond:.1f} MiB", 2e6 / 2**20 / beyond, 1.0))
    start = ours.first_vector_ms / floor.first_vector_ms
    told.append((f"first vector within 1.3 times numpy's import, found {start:.2f}", 1.3 / start, 1.0))
    return told


def _share(ours: Figures, theirs: Figures) -> float:
    return ours.batch_mrows_per_s / theirs.batch_mrows_per_s


def report(found: Comparison) -> str:
    """Return the section: the table, what it was measured on, the bars, and where edge-embed is behind."""
    parts = (_story(found), "\n".join(_table(found)), _WHICH, "\n".join(_bars(found)), "\n".join(_notes(found)))
    return "\n\n".join(parts)


def _bars(found: Comparison) -> list[str]:
    lines = ["| bar | at least | found | |", "|---|---:|---:|---|"]
    for words, figure, least in bars(found):
        lines.append(f"| {words} | {least:.2g} | {figure:.2f} | {'met' if figure >= least else 'missed'} |")
    return lines


def _story(found: Comparison) -> str:
    return (
        f"{today()}, {found.rows:,} rows x {found.dimensions} dimensions, Zipf-distributed queries, medians of "
        f"{found.rounds} interleaved rounds, one process per peer, every query asked once before, quiet moments "
        f"alone.\n{found.machine}.\n\n"
        f"In brackets: how many times better {OURS}'s figure is than the peer's; **under 1 the peer is ahead**."
    )


def _table(found: Comparison) -> list[str]:
    ours = found.figures[OURS]
    lines = [
        "| peer | " + " | ".join(measure.heading for measure in MEASURES) + " |",
        "|---|" + "---:|" * len(MEASURES),
    ]
    for name in PEERS:
        if name in found.absent:
            cells = [f"absent: {_cell(found.absent[name])}", *[""] * (len(MEASURES) - 1)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
            continue
        theirs = found.figures[name]
        cells = [_figure(getattr(theirs, measure.field)) for measure in MEASURES]
        if name != OURS and OURS in found.figures:
            ratios = [_ratio(measure.advantage(ours, theirs)) for measure in MEASURES]
            cells = [f"{cell} ({ratio})" for cell, ratio in zip(cells, ratios, strict=True)]
        lines.append(f"| {name} {theirs.version} | " + " | ".join(cells) + " |")
    return lines


def _notes(found: Comparison) -> list[str]:
    ours, floor = found.figures[OURS], found.floor
    # A batch writes every row as float32 at least once, and nothing writes faster than a copy.
    limit = found.machine.copy_bytes_per_s / (4 * found.dimensions) / 1e6
    return [
        f"* `{FLOOR}` takes {floor.private_mib:.1f} MiB and {floor.first_vector_ms:.0f} ms, which is in the figures of "
        f"every peer. Beyond that {OURS} takes {ours.private_mib - floor.private_mib:.1f} MiB and "
        f"{ours.first_vector_ms - floor.first_vector_ms:.0f} ms.",
        f"* **Where edge-embed is behind** (by more than {EVEN:.0%}): {'; '.join(_behind(found)) or 'nowhere'}.",
        f"* **The limit.** {4 * found.dimensions} bytes a row at the copy bandwidth above are {limit:.0f} M rows/s; "
        f"the batch of {OURS} reaches {ours.batch_mrows_per_s / limit:.0%} of that.",
        _WHY,
    ]


def _behind(found: Comparison) -> list[str]:
    ours = found.figures[OURS]
    said = []
    for name, theirs in found.figures.items():
        if name in _OWN:
            continue
        ratios = {measure.heading: measure.advantage(ours, theirs) for measure in MEASURES}
        losses = [f"{heading} {1 / ratio:.1f}x" for heading, ratio in ratios.items() if ratio * (1 + EVEN) < 1]
        if losses:
            said.append(f"{name} is better at {', '.join(losses)}")
    return said


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.1f}x" if value >= 1 else f"{value:.2f}x"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    """Compare, print the section, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description="lookups of edge-embed beside its peers")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workplace", type=Path, help="a folder whose converted tables are kept, and used again")
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    parser.add_argument("--peer", choices=tuple(PEERS), help="measure one peer in this process and print JSON")
    parser.add_argument("--folder", type=Path, help="with --peer: where its files are")
    parser.add_argument("--quiet-ns", type=float, default=float("inf"), help="with --peer: an empty call, undisturbed")
    arguments = parser.parse_args()
    if arguments.peer is not None:
        print(json.dumps(asdict(measure_peer(arguments.peer, arguments.folder, arguments.quiet_ns))))
        return 0
    with workplace_at(arguments.workplace) as workplace:
        found = compare(arguments.rows, arguments.dimensions, arguments.rounds, workplace)
    section = report(found)
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if all(figure >= least for _, figure, least in bars(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
