"""Wheels: for whom they say they are, and the same from the same tree."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pip
import pytest

from edge_embed_devices.emulation.debian import UnavailableError
from edge_embed_devices.emulation.userlands import USERLANDS
from tests.emulation.conftest import Board, Wheels

pytest.importorskip("hatchling", reason="wheels are built by hatchling")
from wheels import TARGETS, Target, WheelError, build, check, newest_glibc

#: ``e_machine`` of an ELF file (its bytes 18 and 19) by the platform.
MACHINES = {"x86_64": 62, "aarch64": 183, "armv7l": 40}
EXTENSION = "edge_embed/kernels/_native.abi3.so"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.machine)
def test_a_wheel_holds_the_kernels_of_the_machine_that_its_name_says(target: Target, wheels: Wheels) -> None:
    wheel = wheels(target)
    assert wheel.name.endswith(f"-cp311-abi3-manylinux_2_17_{target.machine}.whl")
    with zipfile.ZipFile(wheel) as archive:
        header = archive.read(EXTENSION)[:20]
    assert int.from_bytes(header[18:], "little") == MACHINES[target.machine]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.machine)
def test_a_wheel_asks_for_no_newer_library_than_its_name_says(target: Target, wheels: Wheels, tmp_path: Path) -> None:
    wheel = wheels(target)
    assert (0, 0) < newest_glibc(wheel) <= (2, 17)
    older = tmp_path / wheel.name.replace("2_17", "2_3")
    older.symlink_to(wheel)
    with pytest.raises(WheelError, match="newer than glibc"):
        check(older)


def test_the_pure_wheel_holds_no_library(wheels: Wheels) -> None:
    wheel = wheels(None)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.parametrize("target", [None, TARGETS[1]], ids=["pure", "aarch64"])
def test_the_same_tree_gives_the_same_wheel(target: Target | None, wheels: Wheels, tmp_path: Path) -> None:
    wheel = wheels(target)
    try:
        again = build(target, tmp_path)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert again.read_bytes() == wheel.read_bytes()


#: Said on the board itself, by what pip decides with.
TAKES = """
import os, sys
# pip reads in the interpreter itself whether a 32-bit board has hardware floats; here a script stands for it.
sys.executable = os.path.realpath("/proc/self/exe")
from pip._vendor.packaging.tags import sys_tags
from pip._vendor.packaging.utils import parse_wheel_filename
print(not parse_wheel_filename(sys.argv[1])[3].isdisjoint(sys_tags()))
"""


@pytest.mark.parametrize("name", USERLANDS)
def test_a_board_takes_the_wheel_for_its_machine_and_no_other(
    name: str, wheels: Wheels, boards: Callable[..., Board], tmp_path: Path
) -> None:
    board = boards(name, USERLANDS[name].cores[0].name)
    (tmp_path / "pip").symlink_to(Path(pip.__file__).parent)
    environment = {"PATH": os.defpath, "PYTHONPATH": str(tmp_path)}
    taken = {}
    for target in TARGETS:
        command = [str(board.python), "-c", TAKES, wheels(target).name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        taken[target.machine] = done.stdout.strip() == "True"
    assert [machine for machine, takes in taken.items() if takes] == [USERLANDS[name].machine]
