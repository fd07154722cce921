"""Each act in a process of its own, which is killed, or refused, at each of its system calls.

* A process is forked, stops, is held by strace and goes on. In a first run strace tells the calls that touch the act's
  files; then one run follows for each of them and each fate: EIO and, where it changes something, ENOSPC, and killed
  before it; and one for each size of file with writes that are cut short, and refused from there on (RLIMIT_FSIZE).
* Afterwards what must hold of an act holds; what was refused ended with one sentence of this project's own errors.

    python -m tests.crash.calls [--sample N]      exit status 1: a fault; 77: no strace here, or no right to use it
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_embed_bundle.errors import EdgeEmbedError
from tests.crash.acts import Act, make_acts

SKIPPED = 77

_CHANGES = (
    "openat",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "fchmod",
    "chmod",
    "mkdir",
    "link",
    "linkat",
    "symlink",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "flock",
)
# ``os.preadv``, by which bundles are verified, is ``preadv2`` to the system.
_READS = ("read", "pread64", "preadv", "preadv2", "getdents64", "newfstatat", "statfs")
_CALL = re.compile(r"(\w+)\((.*)\) += ")
_ERRORS = ("EIO", "ENOSPC")
_KILL = "kill"
_SHORT = "short write"

_DONE, _SAID, _TRACEBACK = 0, 2, 3
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Case:
    """What is done to a process: at which call (of its name, the first is 1), or from which byte of a file on."""

    fate: str
    call: str = ""
    number: int = 0

    def __str__(self) -> str:
        """Return the case for a report."""
        return f"{self.fate} at {self.call} {self.number}" if self.call else f"{self.fate} after {self.number} bytes"

    @property
    def injection(self) -> list[str]:
        """The arguments of strace."""
        if not self.call:
            return ["-e", "trace=none"]
        what = "signal=KILL" if self.fate == _KILL else f"error={self.fate}"
        return ["-e", f"trace={self.call}", "-e", f"inject={self.call}:{what}:when={self.number}"]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (None: killed), and what it said."""

    status: int | None
    said: str


def why_not() -> str:
    """Return why no process can be held here, or nothing."""
    if shutil.which("strace") is None:
        return "there is no strace here (Debian: apt-get install strace)"
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() and yama.exists() and yama.read_text().strip() != "0":
        return f"only root may hold a process that is not its child here ({yama})"
    done = subprocess.run(["strace", "-e", "inject=fsync:error=EIO", "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"strace may not hold a process here: {done.stderr.strip()}"


def run(act: Act, place: Path, strace: Sequence[str], limit_bytes: int = 0) -> tuple[Ended, str]:
    """Run an act on a store in ``place``; return how its process ended, and what strace saw."""
    said, log = place / "said", place / "strace"
    child = os.fork()
    if child == 0:
        _be(act, place, said, limit_bytes)
    os.waitpid(child, os.WUNTRACED)
    tracer = subprocess.Popen(["strace", "-q", "-y", "-s0", "-o", str(log), *strace, "-p", str(child)])
    try:
        _wait_for(lambda: "TracerPid:\t0\n" not in Path(f"/proc/{child}/status").read_text())
        os.kill(child, signal.SIGCONT)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
        tracer.wait()
    code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    return Ended(code, said.read_text() if said.exists() else ""), log.read_text()


def _be(act: Act, place: Path, said: Path, limit_bytes: int) -> None:
    """Be the process: stop until somebody holds this one, act, and end without a trace of what forked it."""
    status = _TRACEBACK
    try:
        os.kill(os.getpid(), signal.SIGSTOP)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, unlimited[1]))
        try:
            act.run(place / "board" / "store")
            status, text = _DONE, ""
        except EdgeEmbedError as error:
            status, text = _SAID, str(error)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        said.write_text(text)
    finally:
        os._exit(status)


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("strace did not take hold of a process")
        time.sleep(0.001)


def cases_of(act: Act, place: Path) -> list[Case]:
    """Run an act undisturbed; return what is to be done to it."""
    act.begin(place / "board")
    ended, log = run(act, place, ["-e", "trace=" + ",".join((*_CHANGES, *_READS))])
    if ended.status != _DONE:
        raise AssertionError(f"{act.name}: undisturbed it said {ended.said!r}")
    seen: dict[str, int] = {}
    cases: list[Case] = []
    for call, arguments in _CALL.findall(log):
        seen[call] = seen.get(call, 0) + 1
        if str(place.parent) not in arguments or str(place / "said") in arguments:
            continue
        if call in _READS or (call == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT", arguments)):
            fates: tuple[str, ...] = ("EIO",)
        else:
            fates = (_KILL, *_ERRORS)
        cases += [Case(fate, call, seen[call]) for fate in fates]
    sizes = {path.stat().st_size for path in (place / "board").rglob("*") if path.is_file()}
    cases += [Case(_SHORT, number=size // 2) for size in sorted(sizes) if size > 1]
    shutil.rmtree(place / "board")
    return cases


def faults_of(act: Act, case: Case, place: Path) -> list[str]:
    """Run one case; return what is wrong afterwards."""
    store = act.begin(place / "board")
    ended, _ = run(act, place, case.injection, 0 if case.call else case.number)
    faults = []
    if case.fate == _KILL and ended.status is not None:
        faults.append("nobody was killed")
    elif case.fate != _KILL and ended.status not in (_DONE, _SAID):
        faults.append(f"it said {ended.said!r}")
    elif ended.status == _SAID and len(ended.said.splitlines()) != 1:
        faults.append(f"expected a sentence, it said {ended.said!r}")
    faults += act.faults(store, is_done=ended.status == _DONE)
    shutil.rmtree(place / "board")
    return faults


def main() -> int:
    """Run all cases, or a sample of them; print what was done, and every fault."""
    parser = argparse.ArgumentParser(description="processes that die or fail at each system call")
    parser.add_argument("--sample", type=int, default=0, help="so many cases of each act (all)")
    parser.add_argument("--act", help="one of them alone")
    arguments = parser.parse_args()
    if why := why_not():
        print(f"skipped: {why}")
        return SKIPPED
    found = 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-crash-") as folder:
        place = Path(folder)
        # What an update copies for itself is its own file, too.
        tempfile.tempdir = folder
        (place / "case").mkdir()
        for act in make_acts(place):
            if arguments.act not in (None, act.name):
                continue
            cases = cases_of(act, place / "case")
            every = max(1, len(cases) // arguments.sample) if arguments.sample else 1
            chosen = cases[::every]
            bad = [(case, faults) for case in chosen if (faults := faults_of(act, case, place / "case"))]
            found += len(bad)
            print(f"{act.name}: {len(chosen)} of {len(cases)} cases, {len(bad)} faults", flush=True)
            for case, faults in bad:
                print(f"  {case}: {'; '.join(faults)}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
