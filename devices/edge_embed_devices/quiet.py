"""What something takes where nothing else wants the machine, measured on one where something does.

A processor that is shared is slower at times, by half where a neighbour wants the same core, for a moment or for a
minute. The median of many runs is then of the one or of the other; the fastest run is one that was lucky. So some runs
that follow one another stand for a moment, by their median, and quiet moments count alone, by theirs. A moment is quiet
where an empty call takes not much longer, before it and after it, than it ever took in this process or in one that told
of it, and a line of a mebibyte than it ever took in this one: a neighbour who copies does not want the core, and
empties its caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_embed_devices import small_pages

T = TypeVar("T")

_RUNS = 3
# Work of up to so long runs three times a moment, however short the time that is given.
_SHORT_SECONDS = 0.1
_LEAST_MOMENTS = 3
# On a quiet Xeon (2026-11-27) an empty call takes 31 to 41 ns, and others take what they take in all of these moments;
# beside a neighbour it is 52 to 66, and others take 1.2 to 1.4 times as long. A line takes 0.76 to 0.90 ns; beside who
# copies, up to 2.7, and a random read in 4 MiB ten times as long.
_NOT_MUCH = 1.3
# How many times the wanted time is spent at the most where no moment is quiet.
_PATIENCE = 3
_CALL_RUNS, _CALLS = 5, 2_000
_LINES_BYTES, _LINE_BYTES = 2**20, 64


class _Least:
    """The least that an empty call and a line of the nearer caches ever took, in nanoseconds."""

    call_ns = float("inf")
    line_ns = float("inf")


def least_call_ns(told: float = float("inf")) -> float:
    """Return the least that an empty call ever took, in this process and in one that told."""
    _Least.call_ns = min(_Least.call_ns, told)
    return _Least.call_ns


def call_ns() -> float:
    """Return what an empty call takes now, in nanoseconds."""

    def empty() -> None:
        pass

    def calls() -> None:
        for _ in range(_CALLS):
            empty()

    found = statistics.median(timed(calls)() for _ in range(_CALL_RUNS)) / _CALLS * 1e9
    _Least.call_ns = min(_Least.call_ns, found)
    return found


def line_ns() -> float:
    """Return what a line of a mebibyte takes now that is read at random beside others, in nanoseconds."""
    source, lines = _lines()
    target = np.empty(len(lines), np.uint8)
    read = timed(lambda: source.take(lines, out=target, mode="clip"))
    # The first run brings back what was measured in between drove out.
    read()
    found = statistics.median(read() for _ in range(_RUNS)) / len(lines) * 1e9
    _Least.line_ns = min(_Least.line_ns, found)
    return found


@cache
def _lines() -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    source = small_pages.empty(_LINES_BYTES, np.uint8)
    source.fill(1)
    return source, np.random.default_rng(0).permutation(_LINES_BYTES // _LINE_BYTES).astype(np.intp) * _LINE_BYTES


def quiet_moments(measure: Callable[[], T], seconds: float) -> list[T]:
    """Return what was measured in quiet moments; if there was none, in the one that was least disturbed.

    Args:
        measure: does in a moment what is measured, and returns what that took.
        seconds: how long to go on; three times as long where no moment was quiet.
    """
    found: list[tuple[_Probe, T]] = []
    start, before = time.perf_counter(), _Probe.now()
    while True:
        value = measure()
        after = _Probe.now()
        found.append((before.worse_of(after), value))
        before = after
        quiet = [value for probe, value in found if probe.times_the_least <= _NOT_MUCH]
        spent = time.perf_counter() - start
        if len(found) >= _LEAST_MOMENTS and spent >= seconds and (quiet or spent >= _PATIENCE * seconds):
            return quiet or [min(found, key=lambda each: each[0].times_the_least)[1]]


@dataclass(frozen=True)
class _Probe:
    """What tells how quiet a moment was."""

    call_ns: float
    line_ns: float

    @classmethod
    def now(cls) -> _Probe:
        return cls(call_ns(), line_ns())

    def worse_of(self, other: _Probe) -> _Probe:
        return _Probe(max(self.call_ns, other.call_ns), max(self.line_ns, other.line_ns))

    @property
    def times_the_least(self) -> float:
        """How many times as long as ever it took; what is known of that may change with each probe."""
        return max(self.call_ns / _Least.call_ns, self.line_ns / _Least.line_ns)


def moment(timer: Callable[[], float], seconds: float, least: int) -> Callable[[], float]:
    """Return what calls a timer for some seconds, ``least`` times or more, and returns the median of what it told."""

    def measure() -> float:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            times.append(timer())
        return statistics.median(times)

    return measure


def in_quiet(*timers: Callable[[], float], seconds: float) -> list[float]:
    """Return what each of some runs takes in quiet moments, in the unit that it tells.

    Args:
        timers: each does something once and returns what that took. Each is called some times in a row, and the very
            first call does not count.
        seconds: how long to look for a quiet moment, see ``quiet_moments``. What takes longer than that by itself is
            its own moment, so that a slow machine is done within minutes, too.
    """
    start = time.perf_counter()
    for timer in timers:
        timer()
    runs = _RUNS if time.perf_counter() - start <= max(seconds, _SHORT_SECONDS) else 1

    def measure() -> list[float]:
        return [statistics.median(timer() for _ in range(runs)) for timer in timers]

    return [statistics.median(times) for times in zip(*quiet_moments(measure, seconds), strict=True)]


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a timer: what does the work and returns the seconds that it took."""

    def timer() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return timer
