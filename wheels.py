"""Builds the wheels that are published: ``python wheels.py [FOLDER]``.

* Pure for every machine, and with the kernels for x86-64, aarch64 and armv7l: one file each for CPython 3.11 and newer.
* A tag ``manylinux_2_17`` says that the C library of 2014 is enough (PEP 600); a wheel that asks for a newer one is
  refused, so no later compiler breaks old boards in silence.
* The same tree gives the same bytes.
* Debian's cross compilers are wanted (``gcc-aarch64-linux-gnu``, ``gcc-arm-linux-gnueabihf``). Headers, numpy's own for
  each machine among them, are fetched from Debian and kept in ``.venv/boards``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from edge_embed_devices.emulation.debian import UnavailableError, tool, unpack

ROOT = Path(__file__).parent
GLIBC = (2, 17)


class WheelError(Exception):
    """A wheel that must not be published."""


class Target(NamedTuple):
    """A machine that wheels are built for: as Python, the compiler and Debian call it."""

    machine: str
    triplet: str = ""
    architecture: str = ""

    @property
    def platform(self) -> str:
        """What the wheel is for, as its name says it."""
        return f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{self.machine}"

    def settings(self, kept: Path) -> dict[str, str]:
        """Return what the build hook has to know to compile for it.

        Raises:
            UnavailableError: there is no compiler, or the headers cannot be had.
        """
        if not self.triplet:
            return {"EDGE_EMBED_PLATFORM": self.platform}
        compiler = tool(f"{self.triplet}-gcc", f"gcc-{self.triplet}")
        folders = _headers(self, kept)
        return {"CC": compiler, "EDGE_EMBED_HEADERS": os.pathsep.join(folders), "EDGE_EMBED_PLATFORM": self.platform}


TARGETS = (
    Target("x86_64"),
    Target("aarch64", "aarch64-linux-gnu", "arm64"),
    Target("armv7l", "arm-linux-gnueabihf", "armhf"),
)


def build(target: Target | None, folder: Path, kept: Path = ROOT / ".venv" / "boards") -> Path:
    """Build the wheel of a target, or the pure one, into ``folder`` and return it.

    Args:
        target: the machine; None for all.
        folder: where the wheel goes; made if absent.
        kept: where headers are kept for the next time.

    Raises:
        UnavailableError: there is no compiler for it, or its headers cannot be had.
        WheelError: the build failed, or the wheel asks for a newer C library than its name says.
    """
    settings = {"EDGE_EMBED_PURE": "1"} if target is None else {"EDGE_EMBED_NATIVE": "1", **target.settings(kept)}
    left = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_EMBED_")}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=left | settings, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
    if done.returncode:
        raise WheelError(f"{target.machine if target else 'pure'}: expected a wheel, hatchling said: {said[0]}")
    # Its last word is where the wheel lies, as seen from where hatchling stood.
    wheel = folder / Path(said[0]).name
    check(wheel)
    return wheel


def check(wheel: Path) -> None:
    """See that a wheel asks for no newer C library than its name says.

    Raises:
        WheelError: it does.
    """
    said, wanted = re.search(r"manylinux_(\d+)_(\d+)", wheel.name), newest_glibc(wheel)
    promised = (int(said[1]), int(said[2])) if said else (0, 0)
    if wanted > promised:
        raise WheelError(f"{wheel.name}: expected no symbol newer than glibc {promised}, found one of {wanted}")


def newest_glibc(wheel: Path) -> tuple[int, int]:
    """Return the version of the C library that a wheel asks for; (0, 0) for a pure one."""
    with zipfile.ZipFile(wheel) as archive:
        # The names of versions stand as text in a library's table of strings (LSB, "Symbol Versioning").
        found = [
            (int(major), int(minor))
            for name in archive.namelist()
            if name.endswith(".so")
            for major, minor in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", archive.read(name))
        ]
    return max(found, default=(0, 0))


def _headers(target: Target, kept: Path) -> list[str]:
    root = kept / f"headers-{target.architecture}"
    done = root / "ready"
    if not done.exists():
        unpack(["libpython3.13-dev", "python3-numpy-dev"], "trixie", target.architecture, root, alone=True)
        done.touch()
    numpy = root / "usr" / "lib" / target.triplet / "python3-numpy" / "numpy" / "_core" / "include"
    return [str(root / "usr" / "include" / "python3.13"), str(root / "usr" / "include"), str(numpy)]


def main() -> int:
    """Build all wheels; one that cannot be built here is said so, and the status is 1."""
    folder, status = Path(sys.argv[1] if len(sys.argv) > 1 else "dist"), 0
    with ThreadPoolExecutor(len(TARGETS)) as threads:
        for building in [threads.submit(build, target, folder.absolute()) for target in (None, *TARGETS)]:
            try:
                print(building.result().name)
            except UnavailableError as error:
                print(f"not built: {error}", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
