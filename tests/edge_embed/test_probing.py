"""The probe: a child process that reports, and a judge who sees nothing but the report and the budgets."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from edge_embed import probing
from edge_embed.probing import ProbeCrashError, judge, probe, report
from edge_embed_bundle.errors import RefusedError
from edge_embed_bundle.manifest import Budgets, LatencyBudget
from edge_embed_bundle.state import TRIES
from edge_embed_bundle.store import Store, Verdict
from tests.fakes.probes import FakeProbe

BUDGETS = Budgets("pi-4", 64 * 2**20, {"lookup": LatencyBudget(100, 500), "search": LatencyBudget(1000, 5000)})

FINE: dict[str, Any] = {
    "golden": [
        {"operation": "lookup", "passed": True, "text": "lookup is right"},
        {"operation": "search", "passed": True, "text": "search is right"},
    ],
    "memory": {"private_bytes": 64 * 2**20, "mapped_bytes": 2**40},
    "operations": {
        "lookup": {"p50_us": 100.0, "p99_us": 500.0, "calls": 9},
        "search": {"p50_us": 1.0, "p99_us": 1.0, "calls": 9},
    },
}


def _found(*path: str | int, value: Any) -> dict[str, Any]:
    """Return the fine report with one value changed."""
    changed = deepcopy(FINE)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def test_what_meets_every_budget_to_the_last_byte_passes_with_its_report() -> None:
    verdict = judge(FINE, BUDGETS)
    assert verdict.passed and not verdict.crashed
    assert verdict.reason == "" and verdict.report == FINE


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"error": "expected a bundle, found none"}, "expected a bundle, found none"),
        (_found("golden", 1, value={"passed": False, "text": "search is wrong"}), "search is wrong"),
        (
            _found("memory", "private_bytes", value=65 * 2**20),
            "expected at most 64.0 MiB of private memory, found 65.0 MiB",
        ),
        (
            _found("operations", "lookup", "p50_us", value=100.5),
            "expected lookup within 100 us at p50, found 100.5 us",
        ),
        (
            _found("operations", "search", "p99_us", value=5001.0),
            "expected search within 5000 us at p99, found 5001 us",
        ),
    ],
)
def test_a_miss_is_final_and_named_with_what_was_expected_and_found(found: dict[str, Any], reason: str) -> None:
    verdict = judge(found, BUDGETS)
    assert not verdict.passed and not verdict.crashed
    assert verdict.reason == reason


def test_every_miss_is_named_not_the_first_alone() -> None:
    found = _found("operations", "lookup", value={"p50_us": 101.0, "p99_us": 501.0, "calls": 9})
    found["memory"]["private_bytes"] = 2**30
    found["golden"][0].update(passed=False, text="lookup is wrong")
    reason = judge(found, BUDGETS).reason
    assert [part.split(" ")[0:2] for part in reason.split("; ")] == [
        ["lookup", "is"],
        ["expected", "at"],
        ["expected", "lookup"],
        ["expected", "lookup"],
    ]


def test_mapped_memory_and_operations_without_a_budget_are_not_judged() -> None:
    found = _found("operations", "encode", value={"p50_us": 1e9, "p99_us": 1e9, "calls": 1})
    assert judge(found, BUDGETS).passed


def test_a_budget_that_nothing_measures_is_a_miss_unless_this_board_has_no_package_for_it() -> None:
    found = _found("operations", value={})
    verdict = judge(found, BUDGETS)
    assert not verdict.passed
    assert "expected golden questions to measure lookup by, found none" in verdict.reason
    skipped = {"lookup": "needs a package", "search": "needs a package"}
    assert judge({**found, "skipped": skipped}, BUDGETS).passed


def test_a_real_bundle_is_probed_in_a_process_of_its_own_and_passes(bundle: Path) -> None:
    verdict = probe(bundle)
    assert verdict.passed, verdict.reason
    assert {outcome["operation"] for outcome in verdict.report["golden"]} == {"lookup", "encode", "search"}
    assert verdict.report["operations"].keys() == {"lookup", "encode", "search"}
    for latency in verdict.report["operations"].values():
        assert 0 < latency["p50_us"] <= latency["p99_us"]
    assert verdict.report["memory"]["private_bytes"] > 2**20


def test_a_folder_that_is_no_bundle_is_reported_as_an_error(tmp_path: Path) -> None:
    found = report(tmp_path / "nothing-here")
    assert "nothing-here" in found["error"]
    assert not judge(found, BUDGETS).passed


def test_a_child_that_dies_is_a_crash_which_may_be_tried_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An interpreter without its library dies before it has read a line of ours.
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    verdict = probe(bundle)
    assert not verdict.passed and verdict.crashed
    assert str(bundle) in verdict.reason and "ended with status" in verdict.reason
    with pytest.raises(ProbeCrashError):
        report(bundle)


def test_a_probe_runs_no_module_that_lies_where_the_operator_stands(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not the json that was meant')")
    monkeypatch.chdir(tmp_path)
    assert probe(bundle).passed


@pytest.mark.parametrize("said", ["hello\n", "\xff\n"])
def test_a_child_that_says_something_else_than_a_report_is_a_crash(
    said: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import os\nos.write(1, {said.encode('latin-1')!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    verdict = probe(bundle)
    assert verdict.crashed
    assert "which is no report" in verdict.reason


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("import time; time.sleep(600)", "gave no answer within 3 seconds"),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (2**26, 2**26))", "ended with status 1"),
    ],
)
def test_what_crashes_hangs_or_eats_memory_at_its_load_is_left_after_three_tries_and_never_tried_again(
    load: str, reason: str, bundle: Path, newer_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def counted(generation: Path) -> Verdict:
        tried.append(generation.name)
        return probe(generation)

    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    serving = store.active()
    (tmp_path / "sitecustomize.py").write_text(load)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probing, "TIMEOUT_SECONDS", 3)
    with pytest.raises(RefusedError, match=reason):
        store.install(newer_bundle, counted)
    with pytest.raises(RefusedError, match=r"refused .* before"):
        store.install(newer_bundle, counted)
    assert len(tried) == TRIES
    assert store.active() == serving


def test_where_memory_ends_the_probe_goes_before_those_who_serve(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_words = "import atexit, shutil; atexit.register(shutil.copy, '/proc/self/oom_score_adj', {!r})"
    (tmp_path / "sitecustomize.py").write_text(last_words.format(str(tmp_path / "seen")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report(bundle)
    assert (tmp_path / "seen").read_text() == "1000\n"


def test_a_bundle_that_asks_nothing_does_not_pass(damageable: Path) -> None:
    manifest = json.loads((damageable / "manifest.json").read_text())
    manifest["golden"] = []
    (damageable / "manifest.json").write_text(json.dumps(manifest))
    verdict = probe(damageable)
    assert not verdict.passed
    assert "expected lookups for the model table, found none" in verdict.reason
