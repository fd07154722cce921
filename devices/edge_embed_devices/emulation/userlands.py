"""Userlands that boards run, made of Debian's packages and of wheels, and a Python of theirs for each core.

A userland is made once, in a folder:

    NAME/root/          the packages unpacked; wheels lie where Debian's own Python packages lie
    NAME/CORE/          the same root by links, with the files in which Linux describes that core
    NAME/CORE/python    runs on this machine as any program does: a script that lets qemu run the board's Python

No chroot, no root's rights and no binfmt are asked for. Python finds itself at that script, so processes that it starts
(a probe) are emulated, too.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_embed_devices.emulation.cores import CORES, Core, write_identity
from edge_embed_devices.emulation.debian import UnavailableError, tool, unpack

_UPDATE = ("tuf>=6.0", "securesystemslib", "urllib3")
_ENGINES = ("onnxruntime", "ai-edge-litert")
_LEGACY_ENGINE = "tflite-runtime==2.14.0"

#: Wheels say which C library they ask for; a userland takes those that ask for its own or an older one.
_OLDEST_GLIBC = 17
_PIP_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Userland:
    """What a board runs: a release of Debian for an architecture, with its Python.

    Attributes:
        name: what it is called here.
        suite: the release.
        architecture: as Debian calls it.
        python: the version of its Python.
        glibc: the minor version of its C library 2.
        packages: Debian's packages beside Python.
        wheels: what pip brings, each without what it depends on.
    """

    name: str
    suite: str
    architecture: str
    python: str
    glibc: int
    packages: tuple[str, ...]
    wheels: tuple[str, ...]

    @property
    def cores(self) -> tuple[Core, ...]:
        """The cores that it is run on."""
        return CORES[self.architecture]

    @property
    def triplet(self) -> str:
        """Its architecture, as compilers and Debian's folders of libraries call it."""
        return {"arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}[self.architecture]

    @property
    def machine(self) -> str:
        """Its architecture, as the kernel and wheels call it."""
        return {"arm64": "aarch64", "armhf": "armv7l"}[self.architecture]

    @property
    def emulator(self) -> str:
        """The name of its emulator."""
        return {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}[self.architecture]


#: numpy is Debian's own where a board would have that, and the newest one elsewhere.
USERLANDS = {
    userland.name: userland
    for userland in (
        Userland(
            "bookworm-arm64",
            "bookworm",
            "arm64",
            "3.11",
            36,
            ("python3-numpy", "libstdc++6"),
            (*_ENGINES, _LEGACY_ENGINE, "tokenizers", "pillow", "cryptography", *_UPDATE),
        ),
        Userland(
            "trixie-arm64",
            "trixie",
            "arm64",
            "3.13",
            41,
            ("python3", "libstdc++6"),
            ("numpy", *_ENGINES, "tokenizers", "pillow", "cryptography", *_UPDATE),
        ),
        Userland(
            "bookworm-armhf",
            "bookworm",
            "armhf",
            "3.11",
            36,
            ("python3-numpy", "python3-pil"),
            (_LEGACY_ENGINE, "tokenizers", *_UPDATE),
        ),
    )
}


def make(userland: Userland, kept: Path) -> dict[str, Path]:
    """Make a userland, unless it is there, and return its Pythons by the names of their cores.

    Args:
        userland: which one.
        kept: the folder that holds all of them; made if absent. Two processes may ask for one userland.

    Raises:
        UnavailableError: qemu, apt, the archive, or the network is not to be had here.
    """
    emulator = tool(f"{userland.emulator}-static", "qemu-user-static")
    folder = kept / userland.name
    root, done = folder / "root", folder / "ready"
    made_of = f"{userland} {userland.cores} {emulator}"
    with one_at_a_time(kept / f"{userland.name}.lock"):
        if not done.exists() or done.read_text() != made_of:
            shutil.rmtree(folder, ignore_errors=True)
            unpack(userland.packages, userland.suite, userland.architecture, root)
            _do_what_scripts_do(root, userland)
            _install(userland.wheels, root / "usr" / "lib" / "python3" / "dist-packages", userland)
            for core in userland.cores:
                _make_core(core, folder / core.name, userland, emulator)
            done.write_text(made_of)
    return {core.name: folder / core.name / "python" for core in userland.cores}


def install(wheel: Path, target: Path, userland: Userland) -> None:
    """Install a wheel for a userland into a folder of its own, which then belongs on ``PYTHONPATH``.

    Raises:
        UnavailableError: pip refuses it.
    """
    _install((str(wheel),), target, userland)


def _do_what_scripts_do(root: Path, userland: Userland) -> None:
    """Link what Debian's alternatives link: the plain BLAS and LAPACK, where there are any."""
    libraries = root / "usr" / "lib" / userland.triplet
    for name in ("blas", "lapack"):
        if (libraries / name).is_dir():
            (libraries / f"lib{name}.so.3").symlink_to(f"{name}/lib{name}.so.3")


def _install(wheels: tuple[str, ...], target: Path, userland: Userland) -> None:
    glibcs = range(_OLDEST_GLIBC, userland.glibc + 1)
    platforms = [f"manylinux_2_{minor}_{userland.machine}" for minor in glibcs]
    platforms += [f"manylinux2014_{userland.machine}", f"linux_{userland.machine}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += [
        "--upgrade",
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={userland.python}",
        f"--target={target}",
    ]
    command += [f"--platform={platform}" for platform in platforms]
    try:
        done = subprocess.run(
            [*command, *wheels], capture_output=True, text=True, timeout=_PIP_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{userland.name}: expected wheels within {error.timeout:g} seconds") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise UnavailableError(f"{userland.name}: expected the wheels {', '.join(wheels)}, pip said: {said[0]}")


def _make_core(core: Core, folder: Path, userland: Userland, emulator: str) -> None:
    folder.mkdir()
    for entry in (folder.parent / "root").iterdir():
        (folder / entry.name).symlink_to(f"../root/{entry.name}")
    write_identity(core, folder)
    python = folder / "python"
    program = folder / "usr" / "bin" / f"python{userland.python}"
    python.write_text(f'#!/bin/sh\nexec {emulator} -cpu {core.name} -L {folder} -0 "$0" {program} "$@"\n')
    python.chmod(0o755)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
