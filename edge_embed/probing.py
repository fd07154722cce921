"""The probe: golden answers, memory and latency of a bundle, found out in a process of its own.

* The child process opens the bundle as a serving process would, answers, measures and prints one JSON object. A
  bundle that crashes, hangs or eats memory takes the child with it, not the installer and not what serves.
* Where the memory of a board ends, the child is the one that the system ends, before those who serve.
* ``judge`` compares that report with the bundle's own budgets; it sees no disk and no clock.
* A child that died or hung may be tried again; a wrong answer or a missed budget is final.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_embed import measure
from edge_embed.errors import EdgeEmbedError, MissingExtraError
from edge_embed.golden import check_asked
from edge_embed.memory import format_size
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import OPERATIONS, Budgets
from edge_embed_bundle.store import Verdict

TIMEOUT_SECONDS = 120


def probe(generation: Path) -> Verdict:
    """Judge the bundle in ``generation`` on this machine; see :class:`edge_embed_bundle.store.Probe`."""
    try:
        found = report(generation)
    except ProbeCrashError as error:
        return Verdict(False, str(error), crashed=True)
    with Bundle.open(generation) as bundle:
        return judge(found, bundle.manifest.budgets)


class ProbeCrashError(EdgeEmbedError):
    """The probe's process did not live to report."""


def report(path: Path) -> dict[str, Any]:
    """Open the bundle in a child process and return what it reports.

    Raises:
        ProbeCrashError: the child died, hung, or said something else than a report.
    """
    # -P: what lies in the folder that somebody stands in is no module of ours.
    command = [sys.executable, "-P", "-m", "edge_embed.probing", str(path.absolute())]
    try:
        # An engine may say anything there, text or not.
        child = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeCrashError(f"the probe of {path} gave no answer within {TIMEOUT_SECONDS} seconds") from error
    except OSError as error:
        raise ProbeCrashError(f"the probe of {path} could not be started: {error}") from error
    if child.returncode != 0:
        said = child.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise ProbeCrashError(f"the probe of {path} ended with status {child.returncode}: {said[0]}")
    try:
        found: dict[str, Any] = json.loads(child.stdout)
    except ValueError as error:
        raise ProbeCrashError(f"the probe of {path} said {child.stdout[:60]!r}, which is no report") from error
    return found


def judge(found: Mapping[str, Any], budgets: Budgets) -> Verdict:
    """Compare a report with the budgets and return the verdict, which names every miss."""
    misses = [found["error"]] if "error" in found else []
    misses += [outcome["text"] for outcome in found.get("golden", ()) if not outcome["passed"]]
    if "memory" in found and found["memory"]["private_bytes"] > budgets.memory_private_bytes:
        misses.append(
            f"expected at most {format_size(budgets.memory_private_bytes)} of private memory, "
            f"found {format_size(found['memory']['private_bytes'])}"
        )
    for name, budget in budgets.operations.items():
        measured = found.get("operations", {}).get(name)
        if measured is None:
            if not misses and name not in found.get("skipped", {}):
                misses.append(f"expected golden questions to measure {name} by, found none")
            continue
        for percentile in ("p50_us", "p99_us"):
            if measured[percentile] > getattr(budget, percentile):
                misses.append(
                    f"expected {name} within {getattr(budget, percentile):g} us at {percentile[:3]}, "
                    f"found {measured[percentile]:g} us"
                )
    return Verdict(not misses, "; ".join(misses), report=found)


def _report_here(path: Path) -> dict[str, Any]:
    try:
        # The installer has just verified the generation; here it is opened the way it will be served.
        with Runtime(path, verify=False) as runtime:
            check_asked(runtime.manifest)
            golden, skipped = [], {}
            for operation in OPERATIONS:
                try:
                    outcomes = runtime.check_golden([operation])
                except MissingExtraError as error:
                    # Not the bundle's fault: what this board cannot do it refuses to do, by the same words.
                    skipped[operation] = str(error)
                    continue
                golden += [{**asdict(o), "passed": o.passed, "text": str(o)} for o in outcomes]
            found = {"golden": golden, "skipped": skipped}
            if all(outcome["passed"] for outcome in golden):
                costs = measure.costs(runtime, without=tuple(skipped))
                operations = {name: asdict(latency) for name, latency in costs.operations.items()}
                found |= {"memory": costs.memory._asdict(), "operations": operations}
            return found
    except EdgeEmbedError as error:
        return {"error": str(error)}


def _go_first() -> None:
    """Let the system end this process, and none that serves, where memory ends."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _go_first()
    print(json.dumps(_report_here(Path(sys.argv[1]))))
