"""One operation of a bundle, measured in a process of its own: cold first, then warm.

* Cold: the parent drops the bundle's pages from the page cache (without root: ``posix_fadvise``; what another process
  has mapped stays). The child opens the bundle and asks each question once.
* Warm: rounds of the same questions. The round with the lowest p99 counts: one that another process disturbed says
  nothing about the bundle.
* Page faults are the system's count: major ones waited for flash, minor ones found their page in memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_embed import memory
from edge_embed.errors import BundleError, EdgeEmbedError
from edge_embed.measure import ROUND_SECONDS, ROUNDS, operations_of
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_devices.histogram import Histogram

TIMEOUT_SECONDS = 120
_COLD_SECONDS = 2.0


def report(folder: Path, operation: str) -> dict[str, Any]:
    """Measure an operation that the bundle answers here, and return what the child found.

    Raises:
        BundleError: the child did not live to report.
    """
    drop_pages(folder)
    # -P: what lies in the folder that somebody stands in is no module of ours.
    command = [sys.executable, "-P", "-m", "edge_embed_devices.measuring", str(folder.absolute()), operation]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        found: dict[str, Any] = json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise BundleError(
            f"{folder}: expected figures of {operation} within {TIMEOUT_SECONDS} s, found none"
        ) from error
    if "error" in found:
        raise BundleError(found["error"])
    return found


def drop_pages(folder: Path) -> None:
    """Drop the pages of a bundle's files from the page cache, as far as nobody has them mapped."""
    with Bundle.open(folder) as bundle:
        for name in bundle.manifest.blobs:
            os.posix_fadvise(bundle.descriptor(name), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(call: Callable[[Any], Any], inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the distribution and the page faults of each question asked once, then of rounds of them."""
    before = _faults()
    # Searches of a large table take their time: those that were asked by then are enough.
    cold = _round(call, inputs, _COLD_SECONDS, most=len(inputs))
    between = _faults()
    warm = min((_round(call, inputs, ROUND_SECONDS) for _ in range(ROUNDS)), key=lambda found: found.at(0.99))
    after = _faults()
    return {
        "cold": {**_percentiles(cold), **_difference(between, before)},
        "warm": {**_percentiles(warm), **_difference(after, between)},
    }


def _round(call: Callable[[Any], Any], inputs: Sequence[Any], seconds: float, most: int | None = None) -> Histogram:
    found = Histogram()
    end = time.perf_counter() + seconds
    while not found.count or (time.perf_counter() < end and found.count != most):
        value = inputs[found.count % len(inputs)]
        start = time.perf_counter_ns()
        call(value)
        found.add(time.perf_counter_ns() - start)
    return found


def _percentiles(found: Histogram) -> dict[str, float]:
    shares = {"p50_us": 0.5, "p99_us": 0.99, "p99.9_us": 0.999}
    return {"calls": found.count, **{name: found.at(share) / 1000 for name, share in shares.items()}}


def _faults() -> dict[str, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"major_faults": usage.ru_majflt, "minor_faults": usage.ru_minflt}


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def _report_here(folder: Path, operation: str) -> dict[str, Any]:
    try:
        # The check has just verified the bundle; here it is opened the way it is served.
        with Runtime(folder, verify=False) as runtime:
            found = measured(*operations_of(runtime)[operation])
            return {**found, "mapped_bytes": memory.current().mapped_bytes}
    except EdgeEmbedError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    print(json.dumps(_report_here(Path(sys.argv[1]), sys.argv[2])))
