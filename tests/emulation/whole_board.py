"""A whole board with a store on a disk of its own, which it keeps from boot to boot as a card would.

* The machine's memory is lost with the power (SIGKILL), and with it what its kernel had not written yet.
* What was written and flushed is kept. What was written and not flushed is in qemu's file, and is taken out of it
  again: each such write is kept, lost, or kept in some of its blocks (``tests/crash/disk.py``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_embed_bundle.manifest import LatencyBudget
from edge_embed_devices.emulation.machine import (
    STORE,
    Disk,
    Firmware,
    Machine,
    MachineError,
    Said,
    disk_of_site,
    make_disk,
)
from tests.crash.disk import apply, kept, read_qemu_log

_DISK_MIB = 96
#: Without the comforts of ext4 that hide a forgotten fsync.
_STRICT = "noauto_da_alloc,data=writeback"

#: Budgets for bundles that an emulator keeps.
PATIENT: dict[str, Any] = {
    "latency_budgets": dict.fromkeys(("lookup", "encode", "search"), LatencyBudget(1e7, 1e7)),
    "memory_budget_bytes": 2**30,
}


class Board:
    """An emulated board whose store lies on a disk of its own, in ``/store/store``; beside it what it was brought."""

    def __init__(self, firmware: Firmware, site: Path, brought: Sequence[Path], place: Path, console: Path) -> None:
        """Make its disks in ``place``; ``site`` is a folder with edge-embed installed."""
        self._firmware = firmware
        self._console = console
        self._site, self._store = place / "site.img", place / "store.img"
        self._running, self._log = place / "running.img", place / "writes"
        disk_of_site(self._site, site, firmware)
        (place / "brought").mkdir()
        for path in brought:
            subprocess.run(["cp", "-r", str(path), str(place / "brought")], check=True)  # noqa: S607
        make_disk(self._store, "store", place / "brought", size_mib=_DISK_MIB)

    @contextmanager
    def booted(self, *, strict: bool, seed: int) -> Iterator[Machine]:
        """Boot, and mount the store's disk; in the end the power is cut. ``seed`` is that of ``kept``.

        Raises:
            MachineError: it does not boot, or the disk cannot be mounted.
        """
        shutil.copyfile(self._store, self._running)
        self._log.write_bytes(b"")
        with Machine(self._firmware, [Disk(self._site), Disk(self._running, self._log)], self._console) as machine:
            options = f"-o {_STRICT} " if strict else ""
            mounted = machine.run(f"mount -t ext4 {options}LABEL=store /board{STORE}")
            if mounted is None or mounted.status:
                raise MachineError(f"expected a disk that can be mounted, found: {mounted}")
            yield machine
        entries = read_qemu_log(self._log)
        apply(kept(entries, len(entries), seed), self._store)


def last_json(said: Said | None) -> Any:
    """Return the JSON that a command ended with.

    Raises:
        MachineError: it did not end well.
    """
    if said is None or said.status:
        raise MachineError(f"expected a command that ends well, found: {said}")
    return json.loads(said.text.splitlines()[-1])
