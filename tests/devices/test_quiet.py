"""Of what is measured on a machine that is shared, quiet moments count."""

from __future__ import annotations

import time

import pytest

from edge_embed_devices import quiet
from edge_embed_devices.quiet import in_quiet, least_call_ns, line_ns, quiet_moments


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What an empty call takes, one after the other; the last one from then on."""
    told: list[float] = []

    def call_ns() -> float:
        return told.pop(0) if len(told) > 1 else told[0]

    monkeypatch.setattr(quiet, "call_ns", call_ns)
    monkeypatch.setattr(quiet._Least, "call_ns", 100.0)
    monkeypatch.setattr(quiet, "line_ns", lambda: 1.0)
    monkeypatch.setattr(quiet._Least, "line_ns", 1.0)
    return told


def test_what_is_measured_while_a_neighbour_is_busy_does_not_count(calls: list[float]) -> None:
    calls += [100, 180, 100, 110]
    moments = iter(range(10))
    # Calls were slow after the first moment, and so before the second one.
    assert quiet_moments(lambda: next(moments), seconds=0) == [2]


def test_what_is_measured_while_a_neighbour_empties_the_caches_does_not_count(
    calls: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls += [100]
    lines = iter([1.0, 2.0, 1.1, 1.2, 1.0])
    monkeypatch.setattr(quiet, "line_ns", lambda: next(lines))
    moments = iter(range(10))
    assert quiet_moments(lambda: next(moments), seconds=0) == [2]


def test_a_line_of_the_caches_takes_some_time_and_the_least_is_remembered() -> None:
    found = [line_ns() for _ in range(3)]
    assert 0 < quiet._Least.line_ns <= min(found)


def test_where_no_moment_is_quiet_the_least_disturbed_one_counts_and_the_search_ends(calls: list[float]) -> None:
    calls += [200, 190, 150, 140, 190]
    moments = iter(range(10))
    assert quiet_moments(lambda: next(moments), seconds=0) == [2]


def test_runs_are_told_by_the_median_moment_and_not_by_a_lucky_one(calls: list[float]) -> None:
    calls += [100]
    times = iter([99.0, 1.0, 5.0, 5.0, 6.0, 7.0, 8.0, *[9.0] * 100])
    assert in_quiet(lambda: next(times), seconds=0) == [7.0]


def test_a_process_is_told_by_another_what_quiet_is(calls: list[float]) -> None:
    assert least_call_ns(50) == 50
    assert least_call_ns(70) == 50
    calls += [80, 55, 55, 90]
    moments = iter(range(10))
    assert quiet_moments(lambda: next(moments), seconds=0) == [1]


def test_what_takes_longer_than_the_time_that_is_given_runs_once_a_moment(calls: list[float]) -> None:
    calls += [100]
    count = 0

    def slow() -> float:
        nonlocal count
        count += 1
        time.sleep(0.12)
        return float(count)

    assert in_quiet(slow, seconds=0) == [3.0]
    assert count == 4
