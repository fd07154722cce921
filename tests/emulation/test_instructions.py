"""The gate on counted instructions: what has grown is named, what has not passes."""

from __future__ import annotations

import pytest

pytest.importorskip("hatchling", reason="the script builds a wheel")
from benchmarks.instructions import CODECS, COUNTS, page, regressions
from edge_embed_bundle import strict_json

BEFORE = {"cortex-a53": {"int8: lookup": 1000.0}}


@pytest.mark.parametrize(("count", "sentences"), [(1049.0, 0), (1051.0, 1), (500.0, 0)])
def test_an_operation_that_takes_five_percent_more_is_named(count: float, sentences: int) -> None:
    found = regressions({"cortex-a53": {"int8: lookup": count}}, BEFORE)
    assert len(found) == sentences
    assert all("cortex-a53, int8: lookup" in sentence for sentence in found)


def test_an_operation_that_was_never_counted_is_none_that_has_grown() -> None:
    assert regressions({"cortex-a76": {"int8: lookup": 9e9}, "cortex-a53": {"new": 9e9}}, BEFORE) == []


def test_the_counts_that_are_kept_are_those_of_the_page_of_results() -> None:
    kept = strict_json.loads(COUNTS.read_bytes(), source=COUNTS.name)
    results = COUNTS.with_name("RESULTS.md").read_text(encoding="utf-8")
    assert [name for name in kept["cortex-a53"] if name.endswith(": lookup")] == [
        f"{codec}: lookup" for codec in CODECS
    ]
    table = page(kept).partition("\n\n")[2]
    assert table in results
