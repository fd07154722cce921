"""Debian's packages for another machine: fetched by this machine's apt, unpacked into a folder, nothing installed.

* From where is what this machine's own apt already uses; ``EDGE_EMBED_DEBIAN`` names another archive.
* apt works in folders of its own, so neither its lists nor what is installed here changes, and no root is needed.
* apt verifies what it fetches by Debian's keys.
* No script of a package runs; what one would have done is done by who unpacks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edge_embed.errors import EdgeEmbedError

_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITE = re.compile(r"(?:old)*stable|testing|unstable|sid|bullseye|bookworm|trixie|forky")

#: What a package may ship in the root beside what lies under /usr: there both are one.
_MERGED = ("bin", "sbin", "lib")

_TIMEOUT_SECONDS = 300


class UnavailableError(EdgeEmbedError):
    """Here one cannot have what emulation needs: a tool, the archive, or the network."""


def unpack(packages: Sequence[str], suite: str, architecture: str, root: Path, *, alone: bool = False) -> None:
    """Unpack packages into ``root``, which is made if absent.

    Args:
        packages: their names.
        suite: Debian's release: ``bookworm``.
        architecture: as Debian calls it: ``arm64``, ``armhf``.
        root: the folder.
        alone: without what they depend on.

    Raises:
        UnavailableError: there is no apt, no archive of Debian, no network, or no such package.
    """
    with tempfile.TemporaryDirectory(prefix="edge-embed-apt-") as folder:
        archives = _fetched(packages, suite, architecture, Path(folder), alone)
        for name in _MERGED:
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        for archive in archives:
            _unpack(archive, root)


def tool(name: str, package: str) -> str:
    """Return the path of a program.

    Raises:
        UnavailableError: it is not installed.
    """
    # Where an administrator's tools lie, others may look, too.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        raise UnavailableError(f"expected {name}, found none; Debian has it in the package {package}")
    return found


def _fetched(packages: Sequence[str], suite: str, architecture: str, folder: Path, alone: bool) -> list[Path]:
    apt, archives = tool("apt-get", "apt"), folder / "archives"
    for part in ("lists", "archives"):
        (folder / part / "partial").mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={_KEYS}] {_archive(apt)} {suite} main\n")
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": archives,
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        # Another user, which apt becomes to fetch where it is root, may not write into these folders.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 20,
    }
    command = [apt, "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    run([*command, "update", "-oAPT::Update::Error-Mode=any"])
    how = ["download"] if alone else ["--yes", "--download-only", "--no-install-recommends", "install"]
    # What is downloaded alone is put where apt stands.
    run([*command, *how, *packages], folder=archives)
    return sorted(archives.glob("*.deb"))


def _archive(apt: str) -> str:
    """Return the address of the archive of Debian that this machine's apt uses."""
    if named := os.environ.get("EDGE_EMBED_DEBIAN"):
        return named
    shown = run([apt, "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
    for line in shown.splitlines():
        address, suite, component = line.split()[:3]
        if component == "main" and _SUITE.fullmatch(suite):
            return address
    raise UnavailableError("expected an archive of Debian among apt's sources, found none; EDGE_EMBED_DEBIAN names one")


def _unpack(archive: Path, root: Path) -> None:
    tar = ["tar", "--directory", str(root), "--extract", "--keep-directory-symlink", "--no-same-owner"]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as package:  # noqa: S607
        run(tar, stdin=package.stdout)
    if package.returncode:
        raise UnavailableError(
            f"{archive.name}: expected a package of Debian, dpkg-deb ended with {package.returncode}"
        )


def run(
    command: Sequence[str], *, stdin: IO[bytes] | int | None = subprocess.DEVNULL, folder: Path | None = None
) -> str:
    """Run a tool to its end and return what it said.

    Raises:
        UnavailableError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=stdin, cwd=folder, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: expected it to run, found {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise UnavailableError(f"{command[0]}: expected it to end well, found status {done.returncode}: {said[0]}")
    return done.stdout
