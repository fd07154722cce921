"""``check`` sets promises beside measurements: which lines there are, which of them hold, and what stops it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from edge_embed.commands import main
from edge_embed.errors import BundleError, StoreError
from edge_embed_bundle.manifest import Budgets, LatencyBudget
from edge_embed_bundle.store import Store
from edge_embed_devices.checking import (
    Line,
    _latency_lines,
    _measured_there,
    _memory_lines,
    _predicted,
    _told_lines,
    check,
)
from edge_embed_devices.prediction import Latency, Prediction
from edge_embed_devices.profiles import board_named
from tests.fakes.probes import FakeProbe

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
BUDGETS = Budgets("pi-4", 1000, {"lookup": LatencyBudget(100, 300), "search": LatencyBudget(5000, 9000)})


def _found(**operations: tuple[float, float]) -> dict[str, Any]:
    return {"operations": {name: {"p50_us": p50, "p99_us": p99} for name, (p50, p99) in operations.items()}}


def _five_times(operation: str, name: str, measured_us: float) -> float | None:
    return 5 * measured_us


@pytest.mark.parametrize(("on_board", "within"), [(99.0, True), (100.0, True), (100.01, False), (float("nan"), False)])
def test_a_promise_holds_up_to_its_bound_on_the_board(on_board: float, within: bool) -> None:
    assert Line("lookup p50", "us", 100, 1.0, on_board).within is within


def test_latency_has_a_line_for_each_percentile_of_each_operation_that_has_a_budget() -> None:
    lines = _latency_lines(_found(lookup=(10, 400), dance=(1, 1)), BUDGETS, _measured_there)
    assert lines == [
        Line("lookup p50", "us", 100, 10, 10),
        Line("lookup p99", "us", 300, 400, 400),
        Line("search p50", "us", 5000, None, None),
        Line("search p99", "us", 9000, None, None),
    ]
    assert [line.within for line in lines] == [True, False, False, False]


def test_latency_on_a_slower_board_is_judged_by_the_prediction_and_shown_beside_the_measurement() -> None:
    lines = _latency_lines(_found(search=(1000, 2000)), BUDGETS, _five_times)
    assert lines[2:] == [Line("search p50", "us", 5000, 1000, 5000), Line("search p99", "us", 9000, 2000, 10_000)]
    assert [line.within for line in lines[2:]] == [True, False]


def _prediction(p50_us: float | None, p99_us: float | None) -> Prediction:
    return Prediction("mine", 0, 0, 0, {"search": Latency(p50_us, p99_us)}, ())


def test_a_measurement_stands_to_the_board_as_the_prediction_for_here_does_to_that_for_the_board() -> None:
    on_board = _predicted(_prediction(100, 200), _prediction(300, 800))
    assert on_board("search", "p50", 50) == 150
    assert on_board("search", "p99", 50) == on_board("search", "p99.9", 50) == 200
    # What waits for the board's flash, and what nobody predicts, nobody knows.
    assert on_board("search", "cold p50", 50) is None
    assert on_board("dance", "p50", 50) is None


def test_a_board_whose_flash_nobody_knows_has_no_verdict_where_the_bundle_does_not_fit() -> None:
    on_board = _predicted(_prediction(100, 200), _prediction(None, None))
    (p50, _) = _latency_lines(_found(search=(1000, 2000)), BUDGETS, on_board)[2:]
    assert (p50.on_board, p50.within) == (None, True)
    assert "too little memory" in p50.skipped


def test_an_operation_that_this_machine_lacks_a_package_for_is_skipped_with_its_reason() -> None:
    found = {**_found(lookup=(10, 20)), "skipped": {"search": "needs a package"}}
    lines = _latency_lines(found, BUDGETS, _measured_there)
    assert [(line.skipped, line.within) for line in lines[2:]] == [("needs a package", True)] * 2


def test_memory_is_judged_alone_by_the_budget_and_with_all_blobs_by_the_boards_ram() -> None:
    board = board_named("pi-4")
    private, everything = _memory_lines({"private_bytes": 1001}, BUDGETS, board.ram_bytes - 1001, board)
    assert (private.budget, private.measured, private.within) == (1000, 1001, False)
    assert (everything.budget, everything.on_board, everything.within) == (board.ram_bytes, board.ram_bytes, True)


def test_a_bundle_and_the_store_that_serves_it_are_checked_alike(bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    names = []
    for path in (bundle, store.path):
        lines, guessed, _ = check(path, board_named("pi-zero-2w"))
        assert set(guessed) == {"python_call_ns", "scan_gb_per_s"}
        names.append([line.name for line in lines])
        judged = [line for line in lines if line.budget is not None]
        assert all(line.on_board and line.measured and line.on_board >= line.measured for line in judged)
    assert names[0] == names[1]
    operations = ("lookup", "encode", "search")
    assert names[0][2:8] == [f"{name} {percentile}" for name in sorted(operations) for percentile in ("p50", "p99")]
    for name in operations:
        assert {f"{name} p99.9", f"{name} cold p50", f"{name} cold: major page faults"} <= set(names[0][8:])
    assert names[0][-1] == "mapped pages in memory"


def test_an_image_encoder_is_checked_for_a_board_and_said_to_be_rough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(GOLDEN / "colours-image"), "--board", "pi-5"]) in (0, 1)
    assert "rough: encode_image, whose graph is none of a transformer" in capsys.readouterr().out


def test_what_nobody_promised_is_told_and_not_judged() -> None:
    found = {
        state: {"p50_us": 1, "p99_us": 2, "p99.9_us": 3, "major_faults": 4, "minor_faults": 5}
        for state in ("cold", "warm")
    }
    lines = _told_lines({"lookup": {**found, "mapped_bytes": 4096}}, _five_times)
    assert all(line.budget is None and line.within for line in lines)
    values = {line.name: (line.measured, line.on_board) for line in lines}
    assert values["lookup p99.9"] == (3, 15)
    assert values["lookup cold p50"] == (1, 5)
    assert values["lookup cold: major page faults"] == (4, 4)
    assert values["mapped pages in memory"] == (4096, 4096)


def test_a_bundle_that_is_damaged_is_not_measured(damageable: Path) -> None:
    (damageable / "table.bin").write_bytes(bytes((damageable / "table.bin").stat().st_size))
    with pytest.raises(BundleError, match=r"table\.bin: expected sha256"):
        check(damageable, board_named("pi-4"))


def test_what_cannot_be_opened_is_not_measured(bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    for blob in store.active().iterdir():
        blob.unlink()
    with pytest.raises(BundleError):
        check(store.path, board_named("pi-4"))
    with pytest.raises((BundleError, StoreError)):
        check(tmp_path, board_named("pi-4"))


def test_a_store_whose_flash_rots_is_not_measured(bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    _flip_a_golden_number(store.active())
    with pytest.raises(BundleError, match=r"golden\.bin: expected sha256"):
        check(store.path, board_named("pi-4"))


def test_wrong_golden_answers_are_one_line_that_is_not_within(damageable: Path) -> None:
    before, after = _flip_a_golden_number(damageable)
    manifest = damageable / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, after))
    (line,) = check(damageable, board_named("pi-4")).lines
    assert (line.name, line.measured, line.within) == ("wrong golden answers", 1, False)


def _flip_a_golden_number(bundle: Path) -> tuple[str, str]:
    """Change the first golden number of a bundle; return the digests of the file before and after."""
    path = bundle / "golden.bin"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    before = hashlib.sha256(data).hexdigest()
    data[3] ^= 1
    path.write_bytes(data)
    return before, hashlib.sha256(data).hexdigest()
