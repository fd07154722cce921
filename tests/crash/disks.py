"""Each act on a real file system that loses power at any moment of it.

* The act runs once, on a file system over a disk that remembers (``disk.py``). Then the disk is brought back to what it
  may hold at many moments, and is mounted, so that the file system mends itself; then what must hold of an act holds.
* ext4 is asked twice: as it comes, and with the comforts off that hide a forgotten fsync (``noauto_da_alloc``,
  ``data=writeback``).
* On each of them a writer that syncs its slots alone has to fail, or this finds nothing.

    python -m tests.crash.disks [--states 500] [--only ext4]     exit status 1: a fault; 77: nothing can be mounted here
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_embed_bundle.store import Store
from tests.crash.acts import Act, make_acts
from tests.crash.disk import FILE, Entry, apply, kept, read_log
from tests.crash.naive import NaiveFs
from tests.fakes.probes import FakeProbe

SKIPPED = 77
_SHOWN = 5
#: So many moments are looked at for each that is asked for: many leave the same disk.
_DRAWS = 30


@dataclass(frozen=True)
class FileSystem:
    """How a file system is made and mounted."""

    name: str
    kind: str
    size_mib: int
    make: tuple[str, ...]
    options: str = ""

    def why_not(self, place: Path) -> str:
        """Return why it cannot be asked here, or nothing."""
        if os.geteuid():
            return "only root mounts"
        if f"\t{self.kind}\n" not in Path("/proc/filesystems").read_text():
            return f"this kernel has no {self.kind}"
        if shutil.which(self.make[0]) is None:
            return f"{self.make[0]} is not installed"
        if not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists():
            return "there is no /dev/fuse or no loop device"
        try:
            with mounted(self, _made(self, place / "tried.img"), place / "mount"):
                return ""
        except OSError as error:
            return str(error)


FILE_SYSTEMS = (
    FileSystem("ext4, strict", "ext4", 24, ("mkfs.ext4", "-q", "-E", "nodiscard"), "noauto_da_alloc,data=writeback"),
    FileSystem("ext4", "ext4", 24, ("mkfs.ext4", "-q", "-E", "nodiscard")),
    FileSystem("xfs", "xfs", 300, ("mkfs.xfs", "-q", "-K")),
    FileSystem("btrfs", "btrfs", 128, ("mkfs.btrfs", "-q", "-K", "-m", "single")),
)


def naive(act: Act, bundle: Path) -> Act:
    """Return an install by such a writer."""

    def run(store: Path) -> None:
        Store(store, fs=NaiveFs()).install(bundle, FakeProbe(), retry=True)

    return replace(act, name="a naive install", run=run)


@contextlib.contextmanager
def mounted(system: FileSystem, disk: Path, place: Path) -> Iterator[Path]:
    """Mount a disk read-write."""
    place.mkdir(exist_ok=True)
    device = _said("losetup", "--find", "--show", str(disk))
    try:
        options = ["-o", system.options] if system.options else []
        _said("mount", "-t", system.kind, *options, device, str(place))
        try:
            yield place
        finally:
            _said("umount", str(place))
    finally:
        _said("losetup", "--detach", device)


@contextlib.contextmanager
def remembering(image: Path, place: Path) -> Iterator[tuple[Path, Path]]:
    """Serve an image as a disk that remembers; yield the disk and its log."""
    folder, log = place / "fuse", place / "log"
    folder.mkdir(exist_ok=True)
    log.write_bytes(b"")
    command = [sys.executable, "-m", "tests.crash.disk", str(folder), str(image), str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None or server.stdout.readline() != "mounted\n":
                raise OSError("expected to mount a file by FUSE, which failed")
            try:
                yield folder / FILE, log
            finally:
                _said("umount", str(folder))
        finally:
            server.kill()


def _made(system: FileSystem, disk: Path) -> Path:
    """Make an empty file system in a file."""
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(system.size_mib * 2**20)
    _said(*system.make, str(disk))
    return disk


def record(act: Act, system: FileSystem, place: Path) -> tuple[Path, list[Entry]]:
    """Run an act once; return the disk as it was before, and what was written until it was done."""
    before, image = place / "before.img", place / "recorded.img"
    _made(system, before)
    with mounted(system, before, place / "mount") as root:
        act.begin(root / "board")
    _copy(before, image)
    with remembering(image, place) as (disk, log), mounted(system, disk, place / "mount") as root:
        act.run(root / "board" / "store")
        # What is written from here on, by unmounting it too, came after the act was reported done.
        done = log.stat().st_size
        return before, read_log(log, done)


def faults_at(
    act: Act, system: FileSystem, place: Path, before: Path, entries: Sequence[Entry], cut: int, seed: int
) -> list[str]:
    """Return what is wrong after a power cut."""
    disk = place / "state.img"
    _copy(before, disk)
    apply(kept(entries, cut, seed), disk)
    try:
        with mounted(system, disk, place / "mount") as root:
            return act.faults(root / "board" / "store", is_done=cut == len(entries))
    except OSError as error:
        return [f"{error}"]


def cuts(entries: Sequence[Entry], states: int) -> list[tuple[int, int]]:
    """Return moments with a seed that leave so many different disks, or fewer where there are no more.

    The end comes first, with what is safe and with all; the others are found by chance.
    """
    dice = random.Random(len(entries))  # noqa: S311, a repeatable die, no secret
    drawn = [(len(entries), 1), (len(entries), 0)]
    drawn += [(dice.randint(0, len(entries)), i) for i in range(2, _DRAWS * states)]
    chosen: dict[frozenset[tuple[int, bytes]], tuple[int, int]] = {}
    for moment in drawn:
        if len(chosen) < states:
            chosen.setdefault(frozenset(kept(entries, *moment).items()), moment)
    return list(chosen.values())


def ask(act: Act, system: FileSystem, place: Path, states: int) -> tuple[int, int]:
    """Cut the power at so many moments of an act; print and return how many there were, and in how many a fault."""
    before, entries = record(act, system, place)
    flushes = sum(entry.is_flush for entry in entries)
    chosen, found = cuts(entries, states), []
    for cut, seed in chosen:
        faults = faults_at(act, system, place, before, entries, cut, seed)
        found += [f"  after {cut} of {len(entries)}, seed {seed}: {'; '.join(faults)}"] if faults else []
    print(
        f"{system.name}: {act.name}: {len(entries) - flushes} writes, {flushes} flushes; {len(chosen)} states, "
        f"{len(found)} faults",
        flush=True,
    )
    print("".join(f"{line}\n" for line in found[:_SHOWN]), end="", flush=True)
    return len(chosen), len(found)


def _copy(source: Path, target: Path) -> None:
    _said("cp", "--sparse=always", str(source), str(target))


def _said(*command: str) -> str:
    """Run a command and return what it said.

    Raises:
        OSError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> int:
    """Cut the power on every file system that there is; print what was seen."""
    parser = argparse.ArgumentParser(description="power cuts on real file systems")
    parser.add_argument("--states", type=int, default=500, help="on each file system, for all acts together (500)")
    parser.add_argument("--only", help="the file system of that name")
    arguments = parser.parse_args()
    faults = asked = 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-crash-") as folder:
        place = Path(folder)
        acts = make_acts(place)
        for system in FILE_SYSTEMS:
            if arguments.only not in (None, system.name):
                continue
            if why := system.why_not(place):
                print(f"{system.name}: skipped: {why}")
                continue
            asked += 1
            left = arguments.states
            for i, act in enumerate(acts):
                # What one act has too few states for the others get.
                asked_states, found = ask(act, system, place, -(-left // (len(acts) - i)))
                left, faults = left - asked_states, faults + found
            install = next(act for act in acts if act.name == "install")
            if not ask(naive(install, place / "v1"), system, place, 10)[1]:
                print("a writer that syncs its slots alone loses nothing here: these power cuts are too kind")
                faults += 1
    return 1 if faults else 0 if asked else SKIPPED


if __name__ == "__main__":
    sys.exit(main())
