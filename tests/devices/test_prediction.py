"""Predictions follow the profile: what does not fit into memory waits for flash, or is not predicted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Manifest
from edge_embed_devices.graph_work import Work, works_of
from edge_embed_devices.prediction import encode, lookup, predict, random_read_ns, run, scanned_rows, search
from edge_embed_devices.profiles import Board, board_named
from tests.making import make_bundle, rows_in_topics


@pytest.fixture(name="manifest")
def _manifest(bundle: Path) -> Manifest:
    with Bundle.open(bundle) as opened:
        return opened.manifest


BOARD = Board(
    name="mine",
    title="measured",
    architecture="aarch64",
    cores=4,
    isa=(),
    ram_bytes=2**30,
    page_size_bytes=4096,
    memory_copy_bytes_per_s=2e9,
    memory_random_read_ns=150.0,
    python_call_ns=400.0,
    scan_bytes_per_s=3e9,
    scan_row_ns=50.0,
    flash_random_reads_per_s=2000.0,
    flash_read_bytes_per_s=40e6,
)


def as_if_larger(manifest: Manifest, rows: int, dimensions: int | None = None) -> Manifest:
    """Return the manifest as if its table had that many rows, and numbers in each."""
    model = manifest.tables[0]
    wide = model.dimensions if dimensions is None else dimensions
    tensors = {
        name: tensor._replace(shape=(rows, *tensor.shape[1:])) if tensor.shape[0] == model.rows else tensor
        for name, tensor in model.tensors.items()
    }
    tensors["rows"] = tensors["rows"]._replace(shape=(rows, wide))
    return manifest._replace(models=(model._replace(rows=rows, dimensions=wide, tensors=tensors),))


def test_every_operation_of_a_table_is_predicted_and_its_memory(manifest: Manifest) -> None:
    found = predict(manifest, BOARD)
    assert set(found.operations) == {"lookup", "batch", "encode", "search"}
    assert found.flash_bytes == found.resident_bytes == manifest.size_bytes
    assert found.memory_private_bytes == manifest.requirements.memory_private_bytes
    for latency in found.operations.values():
        assert latency.p50_us is not None
        assert latency.p99_us is not None
        assert 0 < latency.p50_us < latency.p99_us
    assert found.guessed == ()


def test_a_scan_takes_what_its_rows_and_their_bytes_take(manifest: Manifest) -> None:
    one, two = (predict(as_if_larger(manifest, rows), BOARD).operations["search"].p50_us for rows in (10**6, 2 * 10**6))
    assert one is not None
    assert two is not None
    # 16 bytes a row: no more than a row takes for itself.
    assert two - one == pytest.approx(10**6 * 0.050, rel=0.01)


def test_where_nobody_measured_a_row_its_bytes_take_what_memory_takes_however_few_they_are(manifest: Manifest) -> None:
    published = replace(BOARD, scan_row_ns=None, python_call_ns=1.0)
    for dimensions in (16, 64, 256):
        found = search(as_if_larger(manifest, 10**6, dimensions).tables[0], published).p50_us
        assert found == pytest.approx(dimensions * 1e6 / 3e9 * 1e6, rel=0.01)


@pytest.mark.parametrize("operation", ["lookup", "batch", "encode", "search"])
def test_a_slower_interpreter_and_a_slower_memory_make_it_slower(manifest: Manifest, operation: str) -> None:
    large = as_if_larger(manifest, 10**6)
    usual = predict(large, BOARD).operations[operation].p50_us
    slower = predict(large, replace(BOARD, python_call_ns=800.0)).operations[operation].p50_us
    assert usual is not None
    assert slower is not None
    assert slower > usual


def test_a_scan_of_more_than_a_cache_costs_the_interpreter_more_calls_around_it(manifest: Manifest) -> None:
    board = replace(BOARD, python_call_ns=1000.0, scan_row_ns=0.0, scan_bytes_per_s=1e18)
    scanned_mib = {0.25: 1200, 0.5: 1200, 1: 1742, 3: 2600, 64: 2600}
    for mib, calls in scanned_mib.items():
        larger = as_if_larger(manifest, int(mib * 2**20) // 64, 64)
        assert search(larger.tables[0], board).p50_us == pytest.approx(calls, rel=0.001)


def test_a_random_read_is_as_slow_as_the_memory_that_holds_the_table() -> None:
    board = replace(BOARD, memory_random_read_4_mib_ns=10.0, memory_random_read_64_mib_ns=90.0)
    assert [random_read_ns(board, mib * 2**20) for mib in (1, 4, 16, 64, 512, 4096)] == [10, 10, 50, 90, 150, 150]
    assert random_read_ns(BOARD, 2**20) == 150
    near = replace(board, memory_random_read_1_mib_ns=6.0)
    assert [random_read_ns(near, kib * 2**10) for kib in (4, 16, 128, 1024, 2048, 4096)] == [0, 0, 3, 6, 8, 10]


def test_what_does_not_fit_waits_for_flash_and_is_not_predicted_where_its_speed_is_not_known(
    manifest: Manifest,
) -> None:
    large = as_if_larger(manifest, 10**6)
    blobs = {name: blob._replace(size_bytes=2**30) for name, blob in large.blobs.items()}
    crowded = large._replace(blobs=blobs)
    warm, cold = predict(large, BOARD), predict(crowded, BOARD)
    assert cold.resident_bytes < cold.flash_bytes
    for operation in ("lookup", "search"):
        before, after = warm.operations[operation].p99_us, cold.operations[operation].p99_us
        assert before is not None
        assert after is not None
        assert after > before + 400
    unknown = predict(crowded, replace(BOARD, flash_random_reads_per_s=None, flash_read_bytes_per_s=None))
    assert {latency.p50_us for latency in unknown.operations.values()} == {None}
    assert unknown.guessed == ("flash_random_reads_per_s", "flash_sequential_read_mb_per_s")


def test_a_large_page_takes_a_random_read_and_what_follows_it(manifest: Manifest) -> None:
    table = manifest.tables[0]

    def waiting_us(**figures: float | None) -> float:
        board = replace(BOARD, **figures)  # type: ignore[arg-type]
        cold, warm = lookup(table, board, 1.0).p50_us, lookup(table, board).p50_us
        assert cold is not None
        assert warm is not None
        return cold - warm

    pages = waiting_us() / 500
    assert waiting_us(page_size_bytes=16_384) == pytest.approx(pages * (500 + 12_288 / 40), rel=0.01)
    # What follows comes no slower than by a random read for each 4 KiB of it.
    assert waiting_us(page_size_bytes=16_384, flash_read_bytes_per_s=None) == pytest.approx(pages * 2000, rel=0.01)


def test_a_published_profile_is_helped_out_and_says_with_what(manifest: Manifest) -> None:
    assert predict(manifest, board_named("pi-zero-2w")).guessed == ("python_call_ns", "scan_gb_per_s")
    zero, five = (predict(manifest, board_named(name)).operations["search"].p50_us for name in ("pi-zero-2w", "pi-5"))
    assert zero is not None
    assert five is not None
    assert zero > 2 * five


def test_a_search_scans_all_rows_where_there_are_no_lists(manifest: Manifest) -> None:
    assert scanned_rows(manifest.tables[0]) == manifest.tables[0].rows


def test_a_search_behind_a_plane_reads_the_plane_and_waits_for_the_rows_that_it_compares(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", source=rows_in_topics(600, 9), graphs=(), clustered=True, plane=True)
    with Bundle.open(tmp_path / "bundle") as opened:
        table = opened.manifest.tables[0]
    assert table.search is not None and table.search.shortlist is not None
    assert scanned_rows(table) < table.rows + table.tensors["list_ends"].shape[0]

    def cold_us(reads_per_s: float) -> float:
        found = search(table, replace(BOARD, flash_random_reads_per_s=reads_per_s), missing=1.0).p50_us
        assert found is not None
        return found

    compared = 10 * table.search.shortlist
    assert cold_us(100) - cold_us(200) == pytest.approx(compared * (1 / 100 - 1 / 200) * 1e6, rel=0.01)
    assert search(table, replace(BOARD, flash_random_reads_per_s=None), missing=1.0).p50_us is None


WORK = Work(products=10**7, weights=10**7, is_coded=True)
ENGINES = replace(BOARD, onnx_int8_products_per_s=2e9, onnx_int8_weights_per_s=4e9)


def test_a_graph_takes_its_products_for_each_token_and_its_weights_for_each_text() -> None:
    def p50_us(tokens: int, work: Work = WORK) -> float:
        found = run(work, "onnx", ENGINES, tokens).p50_us
        assert found is not None
        return found

    # Ten million products at two a nanosecond; the interpreter has a part of a thousandth.
    assert p50_us(65) - p50_us(64) == pytest.approx(5_000, rel=0.01)
    heavier = WORK._replace(weights=2 * WORK.weights)
    assert p50_us(64, heavier) - p50_us(64) == pytest.approx(2_500, rel=0.01)


def test_an_image_is_one_run() -> None:
    (one, text) = (run(WORK, "onnx", ENGINES, tokens).p50_us for tokens in (None, 1))
    assert one == pytest.approx(text, rel=0.01)


def test_a_board_that_nobody_measured_is_guessed_by_its_clock_and_its_instructions() -> None:
    # 568 million products in 164 ms (https://coral.ai/docs/edgetpu/benchmarks/).
    mobilenet = Work(products=568_000_000, weights=4_200_000, is_coded=True)
    found = run(mobilenet, "tflite", board_named("coral-dev-board"), None).p50_us
    assert found == pytest.approx(164_000, rel=0.05)
    four, five = (run(WORK, "tflite", board_named(name), 64).p50_us for name in ("pi-4", "pi-5"))
    assert four is not None
    assert five is not None
    # Dot products are four times as many a cycle, and cycles are 1.6 times as many.
    assert 4 < four / five < 7


def test_what_no_board_can_beat_is_faster_than_a_guess_and_no_faster_than_a_measurement() -> None:
    for board, is_guess in ((BOARD, True), (ENGINES, False)):
        least, likely = (run(WORK, "onnx", board, 640, least=each).p50_us for each in (True, False))
        assert least is not None
        assert likely is not None
        assert (least < likely / 2) is is_guess


def test_weights_that_do_not_fit_are_read_from_flash_for_each_text() -> None:
    there, away = (run(WORK, "onnx", ENGINES, 64, missing).p50_us for missing in (0, 1))
    assert there is not None
    # Ten megabytes at forty a second.
    assert away == pytest.approx(there + 250_000, rel=0.01)
    assert run(WORK, "onnx", replace(ENGINES, flash_read_bytes_per_s=None), 64, 1).p50_us is None


def test_an_encoder_is_predicted_by_its_golden_texts_and_a_search_by_text_has_it_in_it(encoder_bundle: Path) -> None:
    with Bundle.open(encoder_bundle) as opened:
        manifest, works = opened.manifest, works_of(opened)
    assert "encode" not in predict(manifest, BOARD).operations
    found = predict(manifest, BOARD, {"encoder": WORK})
    encode, search_us = found.operations["encode"], found.operations["search"]
    assert encode.p50_us is not None
    assert search_us.p50_us is not None
    assert search_us.p50_us > encode.p50_us > 1000
    assert {"onnx_int8_products_g_per_s", "onnx_int8_weights_g_per_s"} <= set(found.guessed)
    assert found.rougher == ()
    assert predict(manifest, BOARD, works).rougher == ("encode",)
    # The longest of the golden texts decides the hundredth slowest, the typical one the usual.
    (texts,) = (asked.inputs for asked in manifest.golden if asked.operation == "encode")
    longest = predict(manifest, BOARD, {"encoder": WORK}, tokens=math.ceil(max(map(_bytes, texts)) / 4.5))
    assert encode.p99_us == longest.operations["encode"].p50_us


def _bytes(text: str) -> int:
    return len(text.encode())


@pytest.mark.parametrize(("tokenizer", "slower"), [("whitespace", False), ("fasttext", True)])
def test_a_static_encoder_takes_time_by_who_finds_its_tokens(manifest: Manifest, tokenizer: str, slower: bool) -> None:
    table = manifest.tables[0]
    assert table.text is not None
    asked = table._replace(text=table.text._replace(tokenizer=tokenizer))
    by_huggingface = table._replace(text=table.text._replace(tokenizer="huggingface"))
    this, other = (encode(model, BOARD, 8).p50_us for model in (asked, by_huggingface))
    assert this is not None
    assert other is not None
    assert (this > 2 * other) is slower
