"""A budget that a board cannot hold is named with its figures, and with the nearest choices that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_embed.errors import RequestError
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Budgets, LatencyBudget, Manifest
from edge_embed_devices.advising import misses
from edge_embed_devices.graph_work import Work
from edge_embed_devices.prediction import predict
from edge_embed_devices.profiles import board_named
from tests.devices.test_prediction import BOARD, as_if_larger
from tests.making import make_bundle


@pytest.fixture(name="manifest")
def _manifest(bundle: Path) -> Manifest:
    """A million rows of 256 numbers, 256 MB of which a search scans."""
    with Bundle.open(bundle) as opened:
        return as_if_larger(opened.manifest, 10**6, 256)


def _within(manifest: Manifest, **p50_us: float) -> Manifest:
    operations = {name: LatencyBudget(value, 1e9) for name, value in p50_us.items()}
    return manifest._replace(budgets=Budgets("mine", 2**27, operations))


def test_budgets_that_hold_are_not_spoken_of(manifest: Manifest) -> None:
    assert misses(_within(manifest, lookup=1e9, search=1e9), BOARD) == []


def test_a_search_that_is_too_slow_is_told_with_what_would_fit(manifest: Manifest) -> None:
    # A row takes 50 ns for itself and 256 bytes at 3 GB/s: 85 ns in all; the interpreter a millisecond.
    (miss,) = misses(_within(manifest, search=70_300.0), BOARD)
    assert (miss.operation, miss.percentile, miss.budget_us) == ("search", "p50", 70_300)
    assert miss.predicted_us == pytest.approx(86_400, rel=0.01)
    assert miss.fits == ("--dimensions 144", "--order cluster")
    assert "expected at most 70300 us, predicted 86" in str(miss)
    # What is proposed holds, and the next larger does not.
    for dimensions, fits in ((144, True), (152, False)):
        narrower = as_if_larger(manifest, 10**6, dimensions)
        assert (misses(_within(narrower, search=70_300.0), BOARD) == []) is fits


def test_a_codec_that_is_read_is_proposed_where_bytes_are_what_takes_time(manifest: Manifest) -> None:
    (table,) = manifest.tables
    rows = table.tensors["rows"]._replace(dtype="float32")
    plain = table._replace(codec="float32", tensors={**table.tensors, "rows": rows})
    (miss,) = misses(_within(manifest._replace(models=(plain,)), search=150_000.0), BOARD)
    assert "--codec float16" in miss.fits
    (miss,) = misses(_within(manifest._replace(models=(plain,)), search=100_000.0), BOARD)
    assert "--codec int8" in miss.fits


def test_what_is_proposed_for_a_search_by_text_leaves_time_for_the_text(manifest: Manifest) -> None:
    slow = replace(BOARD, python_call_ns=40_000.0)
    by_text = tuple(asked._replace(by="text") if asked.operation == "search" else asked for asked in manifest.golden)
    asked = manifest._replace(golden=by_text)
    whole, text = (predict(asked, slow).operations[name].p50_us for name in ("search", "encode"))
    assert whole is not None
    assert text is not None
    bound = whole - text / 2
    (miss,) = misses(_within(asked, search=bound), slow)
    dimensions = int(miss.fits[0].removeprefix("--dimensions "))
    narrower = as_if_larger(asked, 10**6, dimensions)
    assert misses(_within(narrower, search=bound), slow) == []


def test_lists_are_proposed_where_a_tenth_of_the_rows_can_be_scanned(manifest: Manifest) -> None:
    (miss,) = misses(_within(manifest, search=10_000.0), BOARD)
    assert miss.fits == ("--order cluster",)


def test_where_nothing_fits_nothing_is_proposed_and_that_is_said(manifest: Manifest) -> None:
    (miss,) = misses(_within(manifest, search=1.0), BOARD)
    assert miss.fits == ()
    assert str(miss).endswith("; no dimensions, codec or recall would be within it")


def test_a_miss_that_rests_on_a_guess_is_likely_and_one_that_memory_makes_is_certain(manifest: Manifest) -> None:
    guessing = replace(BOARD, python_call_ns=None)
    (likely,) = misses(_within(manifest, lookup=1.0), guessing)
    (certain,) = misses(_within(manifest, search=70_300.0), guessing)
    assert (likely.is_certain, certain.is_certain) == (False, True)
    (known,) = misses(_within(manifest, lookup=1.0), BOARD)
    assert known.is_certain


@pytest.mark.parametrize(
    ("operation", "bound_us", "lacking"),
    [
        # Read at the speed of copying it takes 130 ms; who copies writes, too.
        ("search", 100_000, {"scan_bytes_per_s": None}),
        ("lookup", 0.5, {"memory_random_read_ns": None, "python_call_ns": None}),
    ],
)
def test_what_a_profile_does_not_say_makes_no_miss_certain(
    manifest: Manifest, operation: str, bound_us: float, lacking: dict[str, None]
) -> None:
    (miss,) = misses(_within(manifest, **{operation: bound_us}), replace(BOARD, **lacking))  # type: ignore[arg-type]
    assert not miss.is_certain


def test_a_tail_is_a_guess_and_only_a_typical_call_that_takes_longer_makes_its_miss_certain(manifest: Manifest) -> None:
    def is_certain(p99_us: float) -> bool:
        budgets = Budgets("mine", 2**27, {"search": LatencyBudget(1e9, p99_us)})
        (miss,) = misses(manifest._replace(budgets=budgets), BOARD)
        assert miss.percentile == "p99"
        return miss.is_certain

    # The typical search takes 85.6 ms.
    assert (is_certain(100_000), is_certain(80_000)) == (False, True)


def test_a_core_whose_clock_nobody_said_may_be_a_fast_one(encoder_bundle: Path) -> None:
    with Bundle.open(encoder_bundle) as opened:
        manifest = opened.manifest
    works = {"encoder": Work(10**9, 10**6, is_coded=True)}
    slow = replace(BOARD, core_hz=1e9)
    at_best = predict(manifest, slow, works, least=True).operations["encode"].p50_us
    assert at_best is not None
    (known,) = misses(_within(manifest, encode=at_best / 2), slow, works)
    (unknown,) = misses(_within(manifest, encode=at_best / 2), replace(slow, core_hz=None), works)
    assert (known.is_certain, unknown.is_certain) == (True, False)


def test_pages_that_the_system_may_leave_to_a_bundle_are_not_certain_to_be_missing(manifest: Manifest) -> None:
    (name, blob), *_ = manifest.blobs.items()
    crowded = manifest._replace(blobs={name: blob._replace(size_bytes=BOARD.ram_bytes * 5 // 6)})
    (miss,) = misses(_within(crowded, search=200_000), BOARD)
    # A scan of what flash has alone; without one it takes 85.6 ms.
    assert miss.predicted_us > 500_000
    assert not miss.is_certain
    # There a codec of fewer bytes is one that fits, however it is computed.
    assert "--codec int4" in miss.fits


def test_an_encoder_that_is_too_slow_is_told_with_the_nearest_choice_that_fits(encoder_bundle: Path) -> None:
    with Bundle.open(encoder_bundle) as opened:
        manifest = opened.manifest
    plain = {"encoder": Work(10**7, 10**6, is_coded=False)}
    slow = replace(BOARD, core_hz=1e9, isa=("neon",))
    within = {"encode": 1e9}
    (as_it_is, coded) = (
        predict(manifest, slow, {"encoder": Work(10**7, 10**6, is_coded)}).operations["encode"].p50_us
        for is_coded in (False, True)
    )
    assert as_it_is is not None
    assert coded is not None
    assert misses(_within(manifest, **within), slow, plain) == []
    distilled = "--distill of a transformer's folder, which makes it static"
    for bound, fits in ((1.1 * coded, "--codec int8"), (0.9 * coded, distilled)):
        (miss,) = misses(_within(manifest, encode=bound), slow, plain)
        assert (miss.operation, miss.predicted_us, miss.fits) == ("encode", as_it_is, (fits,))
        # The engine is guessed: that it wastes most of its cycles is likely and no more.
        assert not miss.is_certain
    # Finding the tokens alone takes longer.
    (miss,) = misses(_within(manifest, encode=10.0), slow, plain)
    assert miss.is_certain
    assert miss.fits == ()


def test_a_search_by_an_encoders_text_is_told_what_its_exporter_takes(encoder_bundle: Path) -> None:
    with Bundle.open(encoder_bundle) as opened:
        manifest = opened.manifest
    (table,) = manifest.tables
    (encoder,) = manifest.encoders
    tensors = {**table.tensors, "rows": table.tensors["rows"]._replace(shape=(10**6, table.dimensions))}
    large = manifest._replace(models=(encoder, table._replace(rows=10**6, tensors=tensors)))
    works = {encoder.name: Work(10**7, 10**6, is_coded=False)}
    slow = replace(BOARD, core_hz=1e9, isa=("neon",))
    latencies = [
        predict(large, slow, {encoder.name: work}).operations["search"].p50_us
        for work in (Work(10**7, 10**6, is_coded=True), Work(0, 0, is_coded=False))
    ]
    coded, without = (latency or 0.0 for latency in latencies)
    for bound, fits in (
        (1.01 * coded, ("--codec int8",)),
        (1.01 * without, ("--distill of a transformer's folder, which makes it static",)),
        (0.99 * without, ()),
    ):
        (miss,) = misses(_within(large, search=bound), slow, works)
        # No dimensions, no codec of a table and no order: who exports an encoder takes none.
        assert miss.fits == fits


def test_export_refuses_a_named_budget_that_the_boards_memory_cannot_keep(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "pi-zero-2w"\npython_call_ns = 600.0\n[sources]\npython_call_ns = "measured"\n')
    assert board_named(str(path)).python_call_ns == 600
    budgets = {"lookup": LatencyBudget(0.5, 1000.0)}
    with pytest.raises(RequestError, match=r"lookup p50 on mine: expected at most 0\.5 us, predicted \d"):
        make_bundle(tmp_path / "bundle", board=str(path), latency_budgets=budgets)
    assert not (tmp_path / "bundle").exists()
    held = {"lookup": LatencyBudget(500.0, 5000.0)}
    assert make_bundle(tmp_path / "bundle", board=str(path), latency_budgets=held).manifest.budgets.board == "mine"
