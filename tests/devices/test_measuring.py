"""An operation is measured cold, then warm, in a process of its own; a child that fails is an error that says so."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from edge_embed.errors import BundleError
from edge_embed_devices.measuring import measured, report


def test_cold_asks_each_question_once_and_warm_asks_them_in_rounds() -> None:
    asked: list[str] = []
    found = measured(asked.append, ["a", "b", "c"])
    assert found["cold"]["calls"] == 3
    assert asked[:4] == ["a", "b", "c", "a"]
    assert found["warm"]["calls"] > 100
    for state in ("cold", "warm"):
        assert 0 < found[state]["p50_us"] <= found[state]["p99_us"] <= found[state]["p99.9_us"]


def test_touching_new_memory_shows_as_page_faults() -> None:
    # A map of its own: an allocator may have pages left that were touched before.
    with mmap.mmap(-1, 20 * 2**20) as memory:

        def grow(i: int) -> None:
            memory[i * 2**20 : (i + 1) * 2**20] = bytes(2**20)

        assert measured(grow, range(20))["cold"]["minor_faults"] >= 10


def test_a_bundle_is_measured_in_a_child(bundle: Path) -> None:
    found = report(bundle, "search")
    assert found["mapped_bytes"] > 0
    assert found["warm"]["calls"] > found["cold"]["calls"] > 0


def test_a_child_that_does_not_report_is_an_error(bundle: Path) -> None:
    with pytest.raises(BundleError, match="expected figures of dance within 120 s, found none"):
        report(bundle, "dance")
