"""Power cuts of a whole board: a virtual machine that is killed at random moments of an update, fifty times.

* A real kernel, a real ext4, the published wheel: ``edge-embed update`` from a signed repository over a slow link, in a
  process that has its imports behind it (``agent.py``); every other release comes as a delta. The first two updates run
  undisturbed, and say how long one takes.
* A kill (SIGKILL) loses the board's memory, and with it what its kernel had not written yet. What it had written, and
  flushed, is kept. What it had written and not flushed a card may have kept: all of it after the first kill, nothing
  after the second, then what the dice say (``whole_board.py``).
* Every third time ext4 is mounted without the comforts that hide a forgotten fsync.
* The next boot mounts, which replays the journal. Then the old or the new bundle serves: every byte, every golden
  answer, vectors bit for bit; what was reported done is done; and the update, run again, comes to its end, after every
  other kill undisturbed, else until it is killed, too.
* Then a writer that syncs its slots alone (``tests/crash/naive.py``) has to lose something by such kills, those that
  come latest first, or this finds nothing.

``make board-test`` runs all of it: half an hour on two cores that had other work, too. ``test_machine.py`` is one kill.

    python -m tests.emulation.power_cuts [--cuts 50] [--seed 1] [--json]    exit status 1: a fault; 77: no board here
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import edge_embed
from edge_embed.errors import EdgeEmbedError
from edge_embed_devices.emulation import userlands
from edge_embed_devices.emulation.debian import UnavailableError
from edge_embed_devices.emulation.machine import HOST, STORE, Machine, MachineError, make, python
from edge_embed_devices.emulation.userlands import USERLANDS
from tests.emulation.on_board import KEYS
from tests.emulation.whole_board import PATIENT, Board, last_json
from tests.fakes.bad_servers import RepositoryServer
from tests.making import make_bundle, small_source, vectors_of, with_table
from tests.repositories import Publisher
from wheels import ROOT, TARGETS, build

SKIPPED = 77
KEPT = ROOT / ".venv" / "boards"

_USERLAND = USERLANDS["bookworm-arm64"]
#: What a board is given beside the wheel.
_SCRIPTS = ("tests/emulation/agent.py", "tests/emulation/on_board.py", "tests/crash/naive.py")

_ROWS, _DIMENSIONS, _CHANGED_ROWS = 12_000, 128, 600
_LINK_BYTES_PER_SECOND = 600_000
#: Moments are spread over an update and a little of what comes after.
_SPREAD = 1.1
_SHOWN_LINES = 40

BEFORE, DOWNLOAD, TRIAL, AFTER = "before the download", "in the download", "in the trial", "after the confirmation"
PHASES = (BEFORE, DOWNLOAD, TRIAL, AFTER)


@dataclass(frozen=True)
class Release:
    """A bundle that was published, and the repository as it was then."""

    number: int
    id: str
    bundle: Path
    site: Path
    way: str


class Releases:
    """Publishes one release after the other: in turn one with new vectors, and one that changes a few."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._publisher = Publisher.make(place)
        self._source = small_source(dimensions=_DIMENSIONS, keys=tuple(f"word{i}" for i in range(_ROWS)))
        self._pool = ThreadPoolExecutor(1)
        self.root = self._publisher.keys / "1.root.json"
        self.old = self._publish(0)
        self._next = self._begin(1)

    def next(self) -> Release:
        """Return the next release, and begin to make the one behind it."""
        found = self._next.result()
        self._next = self._begin(found.number + 1)
        return found

    def close(self) -> None:
        """Let go of what is being made."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, number: int) -> Future[Release]:
        return self._pool.submit(self._publish, number)

    def _publish(self, number: int) -> Release:
        random = np.random.default_rng(number)
        if number % 2:
            vectors = vectors_of(self._source).copy()
            vectors[random.choice(_ROWS, _CHANGED_ROWS, replace=False)] *= -1
        else:
            vectors = random.normal(size=(_ROWS, _DIMENSIONS)).astype(np.float32)
        digest = hashlib.sha256(vectors.tobytes()).hexdigest()
        self._source = with_table(self._source, vectors=vectors, weights_digest=digest)
        bundle, site = self._place / f"bundle-{number}", self._place / f"site-{number}"
        make_bundle(bundle, version=f"1.{number}.0", source=self._source, graphs=(), **PATIENT)
        release = self._publisher.publish(bundle)
        # By links: a repository gives its files other bytes by other files alone.
        subprocess.run(["cp", "-al", str(self._publisher.site), str(site)], check=True)  # noqa: S607
        return Release(number, release.id, bundle, site, "delta" if release.deltas else "full")


@dataclass(frozen=True)
class Cut:
    """A kill: at which moment of which update, and what was seen afterwards."""

    number: int
    way: str
    strict: bool
    naive: bool
    resumed: bool
    moment_seconds: float
    reported: bool
    fetching: bool
    phase: str = ""
    served: str = ""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the cut for people."""
        writer = "a naive writer's " if self.naive else ""
        mount = ", strict ext4" if self.strict else ""
        seen = "; ".join(self.faults) or f"the {self.served} bundle serves"
        update = f"{self.way} update{' run again' if self.resumed else ''}"
        return f"{self.number}: {writer}{update}{mount}, {self.moment_seconds:.1f} s: {self.phase}; {seen}"


@dataclass
class Cycles:
    """A board that is killed again and again."""

    board: Board
    releases: Releases
    server: RepositoryServer
    seed: int
    tell: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._old = self._new = self.releases.old
        self._is_done = True
        self._repository = self.server.address.replace("127.0.0.1", HOST)
        self._store, root = f"{STORE}/store", f"{STORE}/{self.releases.root.name}"
        trusted = ("--repository", self._repository, "--root", root, "--device-id", "a board")
        self._update = shlex.join(("update", self._store, *trusted, "--new-space", "allow", "--json"))
        self._naive_update = shlex.join(("naive", self._store, self._repository, root))

    def begin(self) -> None:
        """Install the first bundle, and update twice without a disturbance, which says how long that takes."""
        with self._booted(strict=False, seed=1) as machine:
            bundle = f"{STORE}/{self._new.bundle.name}"
            last_json(machine.run(f"install {bundle} --store {self._store} --json"))
            for _ in range(2):
                self._publish()
                began = time.monotonic()
                found = last_json(machine.run(self._update))
                self.seconds[self._new.way] = time.monotonic() - began
                if found["version"] != f"1.{self._new.number}.0" or found["plan"] != self._new.way:
                    raise MachineError(f"expected a {self._new.way} update, found {found}")
        self.tell("; ".join(f"an undisturbed {way} update takes {took:.1f} s" for way, took in self.seconds.items()))

    def run(self, count: int, *, naive: bool = False) -> list[Cut]:
        """Kill so many times, until something is wrong; return what was seen."""
        dice = random.Random(self.seed)  # noqa: S311, a repeatable die, no secret
        moments = [_SPREAD * (i + dice.random()) / count for i in range(count)]
        moments = moments[::-1] if naive else dice.sample(moments, count)
        cuts: list[Cut] = []
        for number in range(count + 1):
            try:
                strict = naive or number % 3 == 2
                with self._booted(strict=strict, seed=number if number < 2 else self.seed + number) as machine:
                    if cuts:
                        cuts[-1] = self._seen(machine, cuts[-1], finish=number % 2 == 0 or number == count)
                        self.tell(str(cuts[-1]))
                    if number == count or (cuts and cuts[-1].faults):
                        break
                    cuts.append(self._kill(machine, number + 1, moments[number], strict=strict, naive=naive))
            except (EdgeEmbedError, ValueError) as error:
                if not cuts:
                    raise
                cuts[-1] = replace(cuts[-1], phase=cuts[-1].phase or "?", faults=[*cuts[-1].faults, str(error)])
                self.tell(str(cuts[-1]))
                break
        return cuts

    @contextmanager
    def _booted(self, *, strict: bool, seed: int) -> Iterator[Machine]:
        with self.board.booted(strict=strict, seed=seed) as machine:
            if machine.run(python("-m", "tests.emulation.agent")) is None:
                raise MachineError("expected the agent to answer, found nothing")
            yield machine

    def _publish(self) -> None:
        self._old, self._new = self._new, self.releases.next()
        self.server.folder = self._new.site

    def _kill(self, machine: Machine, number: int, moment: float, *, strict: bool, naive: bool) -> Cut:
        """Begin an update, and let it come as far as it does; whoever booted the machine ends it."""
        resumed = not self._is_done
        if not resumed:
            self._publish()
        self.server.asked.clear()
        seconds = moment * self.seconds[self._new.way]
        said = machine.run(self._naive_update if naive else self._update, seconds)
        reported = said is not None and last_json(said)["outcome"] == "installed"
        fetching = any(asked.path.startswith("blobs/") for asked in self.server.asked)
        return Cut(number, self._new.way, strict, naive, resumed, seconds, reported, fetching)

    def _seen(self, machine: Machine, cut: Cut, *, finish: bool) -> Cut:
        """Return a cut with what the board answers afterwards, and, to ``finish``, when the update is run again."""
        found = last_json(machine.run(f"served {self._store}"))
        status = found["status"]
        active, trial = status.get("active"), status.get("trial")
        phase = AFTER if active == self._new.id else TRIAL if trial == self._new.id else BEFORE
        phase = DOWNLOAD if phase == BEFORE and cut.fetching else phase
        serves = next((release for release in (self._old, self._new) if release.id == active), None)
        faults = _faults(found, serves)
        if cut.reported and active != self._new.id:
            faults.append("what was reported done is lost")
        self._is_done = serves is self._new or finish
        if serves is self._old and finish and not faults:
            again = last_json(machine.run(self._naive_update if cut.naive else self._update))
            # A trial that was cut off is settled first, and then there is nothing to do.
            if again["id"] != self._new.id or again["outcome"] not in ("installed", "up to date"):
                faults.append(f"run again, the update came to another end: {again}")
        served = "new" if serves is self._new else "old"
        return replace(cut, phase=phase, served=served, faults=faults)


def _faults(found: Any, serves: Release | None) -> list[str]:
    """Return what is wrong with what a store said of itself, and with what it answered."""
    if serves is None:
        return [f"expected the old or the new bundle, found {found['status']}"]
    faults = []
    if found["status"]["status"]:
        faults.append(f"status: {found['status']}")
    if not found["verify"].get("passed"):
        faults.append(f"verify: {found['verify']}")
    with edge_embed.open(serves.bundle) as runtime:
        expected = runtime.lookup(list(KEYS)).tolist()
    answers = found["lookup"].get("answers", [])
    if found["lookup"].get("generation") != serves.id or [answer["vector"] for answer in answers] != expected:
        faults.append("the vectors have other bits")
    return faults


def _report(cycles: Cycles, cuts: Sequence[Cut], naive: Sequence[Cut], began: float) -> dict[str, Any]:
    return {
        "seed": cycles.seed,
        "undisturbed_seconds": cycles.seconds,
        "cuts": [asdict(cut) for cut in cuts],
        "phases": {phase: sum(cut.phase == phase for cut in cuts) for phase in PHASES},
        "faults": sum(bool(cut.faults) for cut in cuts),
        "naive_cuts": [asdict(cut) for cut in naive],
        "naive_caught": any(cut.faults for cut in naive),
        "took_seconds": time.monotonic() - began,
    }


def main() -> int:
    """Cut the power of a board; print what was seen."""
    parser = argparse.ArgumentParser(description="a virtual machine killed at random moments of an update")
    parser.add_argument("--cuts", type=int, default=50, help="how often (50)")
    parser.add_argument("--naive", type=int, default=6, help="how often at most for the writer that has to fail (6)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments, and of what is kept (1)")
    parser.add_argument("--console", type=Path, default=Path("build", "board-test.log"), help="(build/board-test.log)")
    parser.add_argument("--json", action="store_true", help="one object on stdout, the rest on stderr")
    arguments = parser.parse_args()
    out = sys.stderr if arguments.json else sys.stdout

    def tell(said: str) -> None:
        print(said, file=out, flush=True)

    began, console = time.monotonic(), arguments.console
    console.parent.mkdir(parents=True, exist_ok=True)
    console.write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="edge-embed-board-") as folder, ExitStack() as stack:
        place = Path(folder)
        try:
            firmware = make(_USERLAND, KEPT)
            (target,) = (target for target in TARGETS if target.machine == _USERLAND.machine)
            userlands.install(build(target, place / "wheels"), place / "installed", _USERLAND)
            releases = Releases(place)
            stack.callback(releases.close)
            for script in _SCRIPTS:
                copy = place / "installed" / script
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / script, copy)
            brought = (releases.root, releases.old.bundle)
            board = Board(firmware, place / "installed", brought, place, console)
        except UnavailableError as error:
            tell(f"skipped: {error}")
            return SKIPPED
        server = RepositoryServer(releases.old.site, link_bytes_per_second=_LINK_BYTES_PER_SECOND)
        cycles = Cycles(board, releases, stack.enter_context(server), arguments.seed, tell)
        cycles.begin()
        cuts = cycles.run(arguments.cuts)
        faulty = any(cut.faults for cut in cuts)
        naive = [] if faulty else cycles.run(arguments.naive, naive=True)
        report = _report(cycles, cuts, naive, began)
    fell = ", ".join(f"{count} {phase}" for phase, count in report["phases"].items())
    tell(f"{len(cuts)} kills in {report['took_seconds'] / 60:.0f} minutes: {fell}; {report['faults']} faults")
    if arguments.json:
        print(json.dumps(report))
    if faulty:
        tell(f"seed {arguments.seed}, kill {cuts[-1].number}; the end of the console, {console}:")
        tell("\n".join(console.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]))
        return 1
    if naive and not report["naive_caught"]:
        tell("a writer that syncs its slots alone lost nothing: these kills are too kind")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
