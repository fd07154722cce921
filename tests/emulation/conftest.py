"""Wheels and emulated boards, made when a test first asks for them; a test of what cannot be had here is skipped."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_embed_devices.emulation import userlands
from edge_embed_devices.emulation.debian import UnavailableError
from edge_embed_devices.emulation.userlands import USERLANDS, Userland

pytest.importorskip("hatchling", reason="wheels are built by hatchling")
from wheels import ROOT, TARGETS, Target, build

KEPT = ROOT / ".venv" / "boards"

Wheels = Callable[[Target | None], Path]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """What returns the wheel of a target (None: the pure one), built once for all processes of this run."""
    place = tmp_path_factory.getbasetemp()
    shared = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place

    def wheel(target: Target | None) -> Path:
        platform = "any" if target is None else target.platform
        with (shared / f"wheel-{platform}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            built = list((shared / "wheels").glob(f"*{platform}.whl"))
            try:
                return built[0] if built else build(target, shared / "wheels")
            except UnavailableError as error:
                pytest.skip(str(error))

    return wheel


@dataclass(frozen=True)
class Board:
    """A core that runs a userland with edge-embed installed."""

    userland: Userland
    core: str
    python: Path
    site: Path

    def command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """Return what runs the board's Python, and its environment, which knows nothing of this machine's."""
        return [str(self.python), *words], {"PATH": os.defpath, "PYTHONPATH": str(self.site)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the board's Python to its end."""
        command, environment = self.command(*words)
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


@pytest.fixture(scope="session")
def boards(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Board]:
    """What returns a board by the names of its userland and its core, with the native kernels or without."""
    sites: dict[tuple[str, bool], Path] = {}

    def board(name: str, core: str, *, native: bool = True) -> Board:
        userland = USERLANDS[name]
        (target,) = (target for target in TARGETS if target.machine == userland.machine)
        wheel = wheels(target if native else None)
        try:
            python = userlands.make(userland, KEPT)[core]
            if (name, native) not in sites:
                site = tmp_path_factory.mktemp("site")
                userlands.install(wheel, site, userland)
                sites[name, native] = site
        except UnavailableError as error:
            pytest.skip(str(error))
        return Board(userland, core, python, sites[name, native])

    return board
