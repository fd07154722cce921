"""Wheels and emulated boards, made when a test first asks for them; a test of what cannot be had here is skipped."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from edge_embed_devices.emulation import userlands
from edge_embed_devices.emulation.debian import UnavailableError
from edge_embed_devices.emulation.userlands import USERLANDS, Userland

pytest.importorskip("hatchling", reason="wheels are built by hatchling")
from wheels import ROOT, TARGETS, Target, build

KEPT = ROOT / ".venv" / "boards"

Wheels = Callable[[Target | None], Path]
K = TypeVar("K")
V = TypeVar("V")


def made_once(make: Callable[[K], V]) -> Callable[[K], V]:
    """Return what makes a thing once, and skips each test of one that cannot be had here, which is tried once, too."""
    found: dict[K, V | UnavailableError] = {}

    def made(key: K) -> V:
        if key not in found:
            try:
                found[key] = make(key)
            except UnavailableError as error:
                found[key] = error
        thing = found[key]
        if isinstance(thing, UnavailableError):
            pytest.skip(str(thing))
        return thing

    return made


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
            return built[0] if built else build(target, shared / "wheels")

    return made_once(wheel)


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

    def make(name: str) -> dict[str, Path]:
        return userlands.make(USERLANDS[name], KEPT)

    def install(what: tuple[str, bool]) -> Path:
        name, native = what
        (target,) = (target for target in TARGETS if target.machine == USERLANDS[name].machine)
        site = tmp_path_factory.mktemp("site")
        userlands.install(wheels(target if native else None), site, USERLANDS[name])
        return site

    pythons, sites = made_once(make), made_once(install)

    def board(name: str, core: str, *, native: bool = True) -> Board:
        return Board(USERLANDS[name], core, pythons(name)[core], sites((name, native)))

    return board
