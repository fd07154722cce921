"""Board profiles say what a board is, in figures that a board can have, with where they come from."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from edge_embed.commands import main
from edge_embed.errors import RequestError
from edge_embed_devices.budgets import MEMORY_PRIVATE_BYTES, default_budgets
from edge_embed_devices.profiles import (
    FIGURES,
    THIS_MACHINE,
    board_named,
    board_names,
    is_here,
    machine_model,
    read_profile,
    this_machine,
)

BOARDS = [name for name in board_names() if name != THIS_MACHINE]
OPERATIONS = ("lookup", "encode", "search")


def test_the_boards_that_this_project_speaks_of_are_there_and_this_machine_is_one() -> None:
    pis = {"pi-zero-2w", "pi-3b-plus", "pi-4", "pi-4-1gb", "pi-4-4gb", "pi-4-8gb", "pi-5", "cm4", "cm5"}
    others = {"beaglebone-black", "beagleplay", "orange-pi-zero-3", "orange-pi-5", "rock-5b", "jetson-orin-nano"}
    assert {*pis, *others, "imx8m-plus", "coral-dev-board"} == set(BOARDS)
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
    assert 0.15e9 <= board.memory_copy_bytes_per_s <= 30e9
    for figure in ("cores", "core_mhz", "isa", "ram_mib", "page_size_bytes", "memory_copy_gb_per_s"):
        assert board.sources[figure]


def test_a_pi_5_has_large_pages_and_dot_products_and_a_pi_zero_2w_half_a_gigabyte() -> None:
    assert board_named("pi-5").page_size_bytes == 16_384
    assert "dotprod" in board_named("pi-5").isa
    assert "dotprod" not in board_named("pi-4").isa
    assert board_named("pi-zero-2w").ram_bytes == 512 * 2**20


@pytest.mark.parametrize("name", ["pi-99", "", "PI-4", "../boards/pi-4", "pi-4.toml/"])
def test_an_unknown_board_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(RequestError, match=r"expected a board of .*pi-zero-2w.*, this-machine, found") as error:
        board_named(name)
    assert repr(name) in str(error.value)


SMALL = """
title = "A board of mine"
architecture = "aarch64"
cores = 2
isa = ["neon"]
ram_mib = 256
page_size_bytes = 4096
memory_copy_gb_per_s = 0.9

[sources]
cores = "its box"
ram_mib = "its box"
page_size_bytes = "getconf"
memory_copy_gb_per_s = "measured"
"""


def test_a_profile_is_read_from_a_path_and_what_nobody_measured_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    board = board_named(str(path))
    assert (board.name, board.ram_bytes, board.memory_copy_bytes_per_s) == ("mine", 256 * 2**20, 0.9e9)
    assert board.flash_random_reads_per_s is None
    assert default_budgets(board, OPERATIONS, 10**6).board == "mine"


def test_a_profile_that_cannot_be_read_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    for name, found in (("none", "No such file"), ("folder", "a folder"), ("loop", "Too many"), ("pipe", "no file")):
        with pytest.raises(RequestError, match=rf"{name}\.toml: expected a board's profile, found:? {found}"):
            board_named(str(tmp_path / f"{name}.toml"))
    with pytest.raises(RequestError, match="expected a board's profile, found: File name too long"):
        board_named("a" * 5000 + ".toml")


def test_profiles_in_the_users_folder_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(SMALL)
    (tmp_path / "pi-4.toml").write_text(SMALL)
    monkeypatch.setenv("EDGE_EMBED_BOARDS", str(tmp_path))
    assert "mine" in board_names()
    assert board_named("pi-4").cores == 2


def test_a_users_folder_that_is_not_there_is_an_error_and_not_a_folder_without_boards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_EMBED_BOARDS", str(tmp_path / "baords"))
    with pytest.raises(RequestError, match=r"EDGE_EMBED_BOARDS: expected a folder of boards' profiles, found .*baords"):
        board_named("pi-4")


def test_a_broken_profile_in_the_users_folder_is_told_beside_the_boards_that_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(SMALL)
    (tmp_path / "broken.toml").write_text("cores =")
    monkeypatch.setenv("EDGE_EMBED_BOARDS", str(tmp_path))
    assert main(["boards", "list"]) == 2
    listed, said = capsys.readouterr()
    assert "mine " in listed
    assert "pi-zero-2w " in listed
    assert "broken.toml: expected a board's profile in TOML" in said
    assert main(["boards", "list", "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "broken.toml" in problem


def test_a_board_like_another_has_its_figures_and_their_sources_but_for_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "pi-4"\nram_mib = 512\n[sources]\nram_mib = "its box"\n')
    mine, model = board_named(str(path)), board_named("pi-4")
    assert mine == replace(model, name="mine", ram_bytes=512 * 2**20, sources={**model.sources, "ram_mib": "its box"})


def test_a_figure_of_ones_own_is_not_vouched_for_by_the_board_that_it_differs_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "pi-4"\nmemory_copy_gb_per_s = 9.5\n')
    with pytest.raises(RequestError, match="memory_copy_gb_per_s: expected its source"):
        board_named(str(path))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("cores = 2", "", r"cores: expected it in every profile"),
        ("cores = 2", "cores = true", r"cores: expected a whole number from 1 to 1024, found True"),
        ("cores = 2", "cores = 2.0", r"cores: expected a whole number from 1 to 1024, found 2\.0"),
        ("= 0.9", "= -1", r"memory_copy_gb_per_s: expected a number from 0\.01 to 10000, found -1"),
        ("= 0.9", "= nan", r"memory_copy_gb_per_s: expected a number .*found nan"),
        ("= 0.9", '= "fast"', r"memory_copy_gb_per_s: expected a number .*found 'fast'"),
        ("cores = 2", "kores = 2", r"expected keys of .*cores.*, found 'kores'"),
        ("cores = 2", 'cores = 2\nlike = "pi-99"', r"like: expected a board of .*, found 'pi-99'"),
        ("cores = 2", 'cores = 2\nlike = "cm4"', r"like: expected a board that is like no other, found 'cm4'"),
        ("cores = 2", "cores = 2\nlike = [1]", r"like: expected a board of .*, found \[1\]"),
        ('cores = "its box"', "", r"cores: expected its source in \[sources\], found none"),
        ('cores = "its box"', "cores = 7", r"sources: 'cores': expected a line of text, found 7"),
        ('cores = "its box"', 'cores = "box\\u001b[2J"', r"sources: 'cores': expected a line of text"),
        ("[sources]", "[[sources]]", r"sources: expected a table of texts"),
        ("cores = 2", "cores = 0x" + "f" * 5000, r"expected a board's profile in TOML"),
        ('["neon"]', '["mmx"]', r"isa: expected a list of neon"),
        ('["neon"]', "[[1]]", r"isa: expected a list of neon"),
        ('"A board of mine"', '"A board\\u001b[2J"', r"title: expected a line of text"),
        ("cores = 2", "cores = ", r"expected a board's profile in TOML"),
        ("cores = 2", "cores = " + "[" * 5000, r"expected a board's profile in TOML"),
        ("= 4096", "= 5000", r"page_size_bytes: expected a power of two, found 5000"),
        ('"A board of mine"', '" "', r"title: expected a line of text"),
        ("= 0.9", "= 0.9\ncore_mhz = inf", r"core_mhz: expected a number from 10 to 20000, found inf"),
        (
            "= 0.9",
            "= 0.9\ntflite_int8_products_g_per_s = 0",
            r"tflite_int8_products_g_per_s: expected a number .*found 0",
        ),
        ("cores = 2", "# " + "x" * 70_000, r"expected a board's profile of at most 65536 bytes"),
    ],
)
def test_a_profile_that_breaks_a_rule_is_refused_by_file_key_expected_and_found(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    assert before in SMALL
    path.write_text(SMALL.replace(before, after, 1))
    with pytest.raises(RequestError, match=message) as error:
        read_profile(path)
    assert str(error.value).startswith(f"{path}: ")


def test_bytes_that_are_no_text_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"title = '\xff'")
    (tmp_path / "folder.toml").mkdir()
    for name in ("mine.toml", "folder.toml", "none.toml"):
        with pytest.raises(RequestError, match=f"{name}: expected a board's profile"):
            read_profile(tmp_path / name)


def test_every_figure_of_a_profile_has_a_place_in_a_board() -> None:
    board = board_named("pi-4")
    assert all(hasattr(board, figure.attribute) for figure in FIGURES.values())


def test_this_machine_is_what_the_system_says_and_is_measured_once() -> None:
    board = this_machine()
    assert board.name == THIS_MACHINE
    assert board.architecture == platform.machine()
    assert board.cores == os.cpu_count()
    assert board.page_size_bytes == os.sysconf("SC_PAGE_SIZE")
    assert board.ram_bytes > 64 * 2**20
    assert board.memory_copy_bytes_per_s > 50e6
    assert board_named(THIS_MACHINE) is board


def test_a_kept_profile_of_some_machine_is_not_the_machine_at_hand(tmp_path: Path) -> None:
    path = tmp_path / f"{THIS_MACHINE}.toml"
    path.write_text(SMALL)
    assert not is_here(board_named(str(path)))
    assert is_here(board_named(THIS_MACHINE))


def test_a_machine_says_what_it_is() -> None:
    assert machine_model().endswith(f", {os.cpu_count()} cores")


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
