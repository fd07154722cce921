"""Percentiles out of a log-linear histogram are those of the values, within 1 %."""

from __future__ import annotations

import math
import random

import pytest

from edge_embed_devices.histogram import Histogram


def _counted(values: list[int]) -> Histogram:
    found = Histogram()
    for value in values:
        found.add(value)
    return found


def test_small_numbers_are_exact() -> None:
    found = _counted(list(range(101)))
    assert (found.count, found.most) == (101, 100)
    assert [found.at(share) for share in (0, 0.5, 0.99, 1)] == [0, 50, 99, 100]


def test_an_empty_histogram_has_nothing_in_it() -> None:
    assert (Histogram().count, Histogram().at(0.5)) == (0, 0)


@pytest.mark.parametrize("scale", [1, 1000, 10**7, 10**11])
def test_percentiles_of_any_scale_are_at_most_one_percent_too_high_and_never_too_low(scale: int) -> None:
    numbers = random.Random(scale)  # noqa: S311
    values = sorted(int(scale * numbers.lognormvariate(0, 2)) for _ in range(5000))
    found = _counted(values)
    for share in (0.5, 0.9, 0.99, 0.999, 1):
        exact = values[math.ceil(share * len(values)) - 1]
        assert exact <= found.at(share) <= exact * 1.01


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, 257, 511, 512, 2**40 - 1, 2**40, 2**40 + 1])
def test_a_single_value_is_itself_whatever_its_bucket(value: int) -> None:
    assert _counted([value]).at(0.5) == value
