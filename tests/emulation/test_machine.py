"""A whole board boots, and what it reported is there after a power cut. ``make board-test`` cuts at any moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edge_embed
from edge_embed_devices.emulation.debian import UnavailableError
from edge_embed_devices.emulation.machine import STORE, make, python
from edge_embed_devices.emulation.userlands import USERLANDS
from tests.emulation import conftest
from tests.emulation.whole_board import PATIENT, Board, last_json
from tests.making import make_bundle

NAME = "bookworm-arm64"


def test_a_board_whose_power_is_cut_when_an_installation_was_reported_serves_it_after_the_next_boot(
    boards: Callable[..., conftest.Board], tmp_path: Path
) -> None:
    site = boards(NAME, "cortex-a72").site
    try:
        firmware = make(USERLANDS[NAME], conftest.KEPT)
    except UnavailableError as error:
        pytest.skip(str(error))
    bundle = make_bundle(tmp_path / "bundle", graphs=(), **PATIENT).path
    board = Board(firmware, site, [bundle], tmp_path, tmp_path / "console")
    edge = ("-m", "edge_embed")
    with board.booted(strict=True, seed=1) as machine:
        installing = python(*edge, "install", f"{STORE}/bundle", "--store", f"{STORE}/store", "--json")
        installed = last_json(machine.run(installing))
    with board.booted(strict=False, seed=1) as machine:
        found = last_json(machine.run(python(*edge, "lookup", f"{STORE}/store", "word1", "--json")))
    with edge_embed.open(bundle) as runtime:
        assert [answer["vector"] for answer in found["answers"]] == [runtime.lookup("word1").tolist()]
    assert found["generation"] == installed["id"]
