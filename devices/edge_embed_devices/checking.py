"""``check``: what a bundle promised beside what it costs, line by line, and beside what it cost before.

Memory and latency are measured on the machine at hand, in processes of their own: see ``measuring``. Lines without a
budget are told, not judged: the far tail, the first asking, page faults, mapped pages. For another board the latency is
*estimated*: the measured figure times the ratio of the two machines' memory copy speed, never less than measured.
That is a first guess, and is called so; ``check`` on the board itself measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_embed import probing
from edge_embed.errors import BundleError
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Budgets
from edge_embed_bundle.slots import is_store
from edge_embed_bundle.store import Store
from edge_embed_devices import measuring
from edge_embed_devices.profiles import THIS_MACHINE, Board, this_machine


@dataclass(frozen=True)
class Line:
    """One figure: its unit, its bound, what was measured here, what that means on the board, and the verdict.

    Where nothing was promised, ``budget`` is None. What could not be measured is None, and is not within; nobody
    promised what ``skipped`` gives the reason for: this machine lacks a package, and its store let the bundle serve
    without.
    """

    name: str
    unit: str
    budget: float | None
    measured: float | None
    on_board: float | None
    skipped: str = ""

    @property
    def within(self) -> bool:
        """Whether the promise holds on the board."""
        if self.budget is None:
            return True
        return bool(self.skipped) or (self.on_board is not None and self.on_board <= self.budget)


def check(path: Path, board: Board) -> list[Line]:
    """Measure the bundle at ``path`` (or the one that a store serves) against its budgets on ``board``.

    Raises:
        BundleError: the bundle cannot be opened: there is nothing to measure.
    """
    folder = Store(path).active() if is_store(path) else path
    with Bundle.open(folder) as bundle:
        bundle.verify()
        budgets = bundle.manifest.budgets
        flash_bytes = bundle.manifest.size_bytes
    found = probing.report(folder)
    if "error" in found:
        raise BundleError(found["error"])
    wrong = sum(not outcome["passed"] for outcome in found["golden"])
    if wrong:
        # A wrong answer has no price: neither memory nor latency was measured.
        return [Line("wrong golden answers", "answers", 0, wrong, wrong)]
    slower = 1.0 if board.name == THIS_MACHINE else _times_slower(board)
    operations = {name: measuring.report(folder, name) for name in found["operations"]}
    found["operations"] = {name: each["warm"] for name, each in operations.items()}
    return [
        *_memory_lines(found["memory"], budgets, flash_bytes, board),
        *_latency_lines(found, budgets, slower),
        *_told_lines(operations, slower),
    ]


def _times_slower(board: Board) -> float:
    return max(1.0, this_machine().memory_copy_bytes_per_s / board.memory_copy_bytes_per_s)


def _memory_lines(memory: dict[str, int], budgets: Budgets, flash_bytes: int, board: Board) -> list[Line]:
    private = memory["private_bytes"]
    return [
        Line("private memory", "bytes", budgets.memory_private_bytes, private, private),
        # What is mapped may be dropped and read again, so it need not fit; where it fits, nothing is read twice.
        Line(
            "private memory and all blobs in RAM",
            "bytes",
            board.ram_bytes,
            private + flash_bytes,
            private + flash_bytes,
        ),
    ]


def _told_lines(operations: Mapping[str, Mapping[str, Any]], slower: float) -> list[Line]:
    lines = []
    for operation, found in operations.items():
        times = {"p99.9": found["warm"]["p99.9_us"]}
        times |= {f"cold {name}": found["cold"][f"{name}_us"] for name in ("p50", "p99", "p99.9")}
        lines += [
            Line(f"{operation} {name}", "us", None, value, round(value * slower, 2)) for name, value in times.items()
        ]
        for state in ("cold", "warm"):
            for kind in ("major", "minor"):
                faults = found[state][f"{kind}_faults"]
                lines.append(Line(f"{operation} {state}: {kind} page faults", "faults", None, faults, faults))
    mapped = max((found["mapped_bytes"] for found in operations.values()), default=0)
    return [*lines, Line("mapped pages in memory", "bytes", None, mapped, mapped)]


def _latency_lines(found: dict[str, Any], budgets: Budgets, slower: float) -> list[Line]:
    lines = []
    for operation, budget in budgets.operations.items():
        measured = found["operations"].get(operation, {})
        for percentile in ("p50_us", "p99_us"):
            value = measured.get(percentile)
            bound = getattr(budget, percentile)
            on_board = None if value is None else round(value * slower, 2)
            skipped = found.get("skipped", {}).get(operation, "")
            lines.append(Line(f"{operation} {percentile[:3]}", "us", bound, value, on_board, skipped))
    return lines
