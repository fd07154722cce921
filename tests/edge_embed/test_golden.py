"""Golden answers catch what no digest can: a runtime or an engine that gives other numbers than the exporter saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.golden import Outcome
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Golden


def _outcome(worst_difference: float, tolerance: float) -> Outcome:
    return Outcome("lookup", "table", 16, worst_difference, tolerance)


@pytest.mark.parametrize(
    ("worst_difference", "tolerance", "passed"),
    [
        (0.0, 0.0, True),
        (1e-9, 0.0, False),
        (1e-5, 1e-5, True),
        (1.1e-5, 1e-5, False),
        (float("inf"), 1e-5, False),
        (float("nan"), 1e-5, False),
    ],
)
def test_an_answer_is_within_its_tolerance_or_not_and_nan_never_is(
    worst_difference: float, tolerance: float, passed: bool
) -> None:
    outcome = _outcome(worst_difference, tolerance)
    assert outcome.passed is passed
    assert ("NOT within" in str(outcome)) is not passed


def test_an_outcome_says_what_was_asked_and_how_far_off_the_worst_number_was() -> None:
    assert str(_outcome(0.25, 0.0)) == "lookup of 16 golden questions to table: off by 0.25, NOT within 0"


def _change(bundle: Path, operation: str, change: Callable[[float], float]) -> None:
    """Change one expected number of an operation's golden answers."""
    with Bundle.open(bundle) as opened:
        place = next(golden for golden in opened.manifest.golden if golden.operation == operation).expected
    data = bytearray((bundle / place.blob).read_bytes())
    numbers = np.frombuffer(data, "<f4", count=place.size_bytes // 4, offset=place.offset_bytes)
    numbers[-1] = change(float(numbers[-1]))
    (bundle / place.blob).write_bytes(data)


def _golden(bundle: Path) -> tuple[Golden, ...]:
    with Bundle.open(bundle) as opened:
        return opened.manifest.golden


@pytest.mark.parametrize("operation", ["lookup", "encode", "search"])
def test_one_wrong_golden_number_is_reported_under_its_operation(damageable: Path, operation: str) -> None:
    _change(damageable, operation, lambda number: number + 0.5)
    with edge_embed.open(damageable, verify=False) as runtime:
        outcomes = runtime.check_golden()
    assert [outcome.passed for outcome in outcomes] == [outcome.operation != operation for outcome in outcomes]
    wrong = next(outcome for outcome in outcomes if not outcome.passed)
    assert wrong.worst_difference == pytest.approx(0.5, abs=1e-3)
    assert [outcome.questions for outcome in outcomes] == [len(golden.inputs) for golden in _golden(damageable)]


def test_a_golden_nan_is_reported_even_beside_right_numbers(damageable: Path) -> None:
    _change(damageable, "search", lambda _: float("nan"))
    with edge_embed.open(damageable, verify=False) as runtime:
        outcomes = {outcome.operation: outcome for outcome in runtime.check_golden()}
    assert not outcomes["search"].passed and outcomes["lookup"].passed


def test_a_difference_within_the_tolerance_passes_where_one_is_allowed_and_fails_where_none_is(
    damageable: Path,
) -> None:
    for operation in ("lookup", "search"):
        _change(damageable, operation, lambda number: float(np.nextafter(np.float32(number), np.float32(9))))
    with edge_embed.open(damageable, verify=False) as runtime:
        outcomes = {outcome.operation: outcome.passed for outcome in runtime.check_golden()}
    assert outcomes == {"lookup": False, "encode": True, "search": True}


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_an_engine_that_misses_a_golden_lookup_does_not_serve(damageable: Path, engine: str) -> None:
    with edge_embed.open(damageable, engine=engine) as runtime:
        assert runtime.lookup("word1").any()
    _change(damageable, "lookup", lambda number: number + 1)
    with pytest.raises(edge_embed.BundleError, match=f"expected the golden answers from {engine}, found .*NOT within"):
        edge_embed.open(damageable, engine=engine, verify=False)
