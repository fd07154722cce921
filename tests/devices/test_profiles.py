"""Board profiles say what a board is, in figures that a board can have, with where they come from."""

from __future__ import annotations

import os
import platform
from dataclasses import replace

import pytest

from edge_embed.errors import RequestError
from edge_embed_devices.budgets import MEMORY_PRIVATE_BYTES, default_budgets
from edge_embed_devices.profiles import THIS_MACHINE, board_named, board_names, this_machine

BOARDS = [name for name in board_names() if name != THIS_MACHINE]
OPERATIONS = ("lookup", "encode", "search")


def test_the_boards_that_this_project_speaks_of_are_there_and_this_machine_is_one() -> None:
    assert {"pi-zero-2w", "pi-3b-plus", "pi-4", "pi-5"} <= set(BOARDS)
    assert board_names()[-1] == THIS_MACHINE


@pytest.mark.parametrize("name", BOARDS)
def test_a_profile_has_figures_that_a_board_can_have_and_their_sources(name: str) -> None:
    board = board_named(name)
    assert board.name == name
    assert board.title
    assert board.architecture in ("aarch64", "armv7l")
    assert set(board.isa) <= {"neon", "dotprod", "fp16", "i8mm"}
    assert 1 <= board.cores <= 16
    assert 256 * 2**20 <= board.ram_bytes <= 32 * 2**30
    assert board.page_size_bytes in (4096, 16_384, 65_536)
    assert 0.3e9 <= board.memory_copy_bytes_per_s <= 30e9
    for figure in ("Cores, ISA and RAM: ", "Page size: ", "Memory copy: "):
        assert figure in board.source


def test_a_pi_5_has_large_pages_and_dot_products_and_a_pi_zero_2w_half_a_gigabyte() -> None:
    assert board_named("pi-5").page_size_bytes == 16_384
    assert "dotprod" in board_named("pi-5").isa
    assert "dotprod" not in board_named("pi-4").isa
    assert board_named("pi-zero-2w").ram_bytes == 512 * 2**20


@pytest.mark.parametrize("name", ["pi-99", "", "PI-4", "../boards/pi-4", "pi-4.toml"])
def test_an_unknown_board_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(RequestError, match=r"expected a board of .*pi-zero-2w, this-machine, found") as error:
        board_named(name)
    assert repr(name) in str(error.value)


def test_this_machine_is_what_the_system_says_and_is_measured_once() -> None:
    board = this_machine()
    assert board.name == THIS_MACHINE
    assert board.architecture == platform.machine()
    assert board.cores == os.cpu_count()
    assert board.page_size_bytes == os.sysconf("SC_PAGE_SIZE")
    assert board.ram_bytes > 64 * 2**20
    assert board.memory_copy_bytes_per_s > 50e6
    assert board_named(THIS_MACHINE) is board


@pytest.mark.parametrize("name", BOARDS)
def test_default_budgets_grow_with_the_table_that_a_search_scans_and_with_nothing_else(name: str) -> None:
    board = board_named(name)
    small, large, larger = (default_budgets(board, OPERATIONS, numbers) for numbers in (1000, 10**7, 10**8))
    assert small.board == name
    for budgets in (small, large, larger):
        assert tuple(budgets.operations) == OPERATIONS
        assert all(0 < latency.p50_us <= latency.p99_us for latency in budgets.operations.values())
        assert budgets.operations["lookup"] == small.operations["lookup"]
        assert budgets.operations["encode"] == small.operations["encode"]
        assert budgets.memory_private_bytes == small.memory_private_bytes
    p50s = [budgets.operations["search"].p50_us for budgets in (small, large, larger)]
    assert p50s[0] < p50s[1] < p50s[2]
    # A scan cannot be faster than the board's memory; the budget leaves room above that and not without end.
    for numbers, p50_us in zip((10**7, 10**8), p50s[1:], strict=True):
        traffic_us = 9 * numbers / board.memory_copy_bytes_per_s * 1e6
        assert traffic_us < p50_us < 10_000 + 4 * traffic_us


def test_default_budgets_are_wider_for_a_slower_memory_and_narrower_for_a_smaller_one() -> None:
    board = board_named("pi-4")
    slow = replace(board, memory_copy_bytes_per_s=board.memory_copy_bytes_per_s / 10)
    assert (
        default_budgets(slow, OPERATIONS, 10**7).operations["search"].p50_us
        > 5 * default_budgets(board, OPERATIONS, 10**7).operations["search"].p50_us
    )
    assert default_budgets(board, OPERATIONS, 0).memory_private_bytes == MEMORY_PRIVATE_BYTES
    tiny = replace(board, ram_bytes=128 * 2**20)
    assert default_budgets(tiny, OPERATIONS, 0).memory_private_bytes == 32 * 2**20


def test_only_what_a_bundle_answers_has_a_budget() -> None:
    assert tuple(default_budgets(board_named("pi-4"), ("search",), 9).operations) == ("search",)
