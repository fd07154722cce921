"""Board profiles: one TOML file a board, units in the key names, each figure with its source beside it."""

from __future__ import annotations

import os
import platform
import time
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from edge_embed.errors import RequestError

THIS_MACHINE = "this-machine"


@dataclass(frozen=True)
class Board:
    """A device profile. Bandwidth is that of copying memory with one core, bytes read plus none counted twice."""

    name: str
    title: str
    architecture: str
    cores: int
    isa: tuple[str, ...]
    ram_bytes: int
    page_size_bytes: int
    memory_copy_bytes_per_s: float
    source: str


def board_names() -> tuple[str, ...]:
    """Return the names of all boards that are known, and of the machine that this runs on."""
    folder = resources.files("edge_embed_devices") / "boards"
    return (*sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")), THIS_MACHINE)


def board_named(name: str) -> Board:
    """Return a board's profile.

    Raises:
        RequestError: no board has that name.
    """
    if name == THIS_MACHINE:
        return this_machine()
    if name not in board_names():
        raise RequestError(f"expected a board of {', '.join(board_names())}, found {name!r}")
    text = (resources.files("edge_embed_devices") / "boards" / f"{name}.toml").read_text(encoding="utf-8")
    return _parsed(name, text)


@cache
def this_machine() -> Board:
    """Return what a second of measuring tells about the machine that this runs on."""
    page_size_bytes = os.sysconf("SC_PAGE_SIZE")
    return Board(
        name=THIS_MACHINE,
        title=platform.node() or "this machine",
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        isa=(),
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * page_size_bytes,
        page_size_bytes=page_size_bytes,
        memory_copy_bytes_per_s=_copy_bytes_per_s(),
        source="asked of the system; memory copy measured: best of 5 copies of 64 MiB by numpy",
    )


def _parsed(name: str, text: str) -> Board:
    fields = tomllib.loads(text)
    return Board(
        name=name,
        title=fields["title"],
        architecture=fields["architecture"],
        cores=fields["cores"],
        isa=tuple(fields["isa"]),
        ram_bytes=fields["ram_mib"] * 2**20,
        page_size_bytes=fields["page_size_bytes"],
        memory_copy_bytes_per_s=fields["memory_copy_gb_per_s"] * 1e9,
        source=fields["source"],
    )


def _copy_bytes_per_s() -> float:
    source = np.ones(64 * 2**20, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return source.nbytes / best
