"""``check``: what a bundle promised beside what it costs, line by line, and beside what it cost before.

Memory and latency are measured on the machine at hand, in processes of their own: see ``measuring``. Lines without a
budget are told, not judged: the far tail, the first asking, page faults, mapped pages. For another board the latency is
*predicted*: the measured figure times what the board's profile predicts over what this machine's does, which is
measured in the same minute. So what a prediction leaves out is in it, as far as both have it alike. The first asking
waits for a board's flash and is not predicted. ``check`` on the board itself measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edge_embed import probing
from edge_embed.errors import BundleError
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Budgets
from edge_embed_bundle.slots import is_store
from edge_embed_bundle.store import Store
from edge_embed_devices import measuring
from edge_embed_devices.calibrating import this_machine_for
from edge_embed_devices.graph_work import works_of
from edge_embed_devices.prediction import Prediction, predict
from edge_embed_devices.profiles import Board, is_here

_UNKNOWN = "what waits for flash, whose speed the board's profile does not say: it has too little memory for the bundle"


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


class Check(NamedTuple):
    """The lines of a check, and how rough they are where the board was predicted."""

    lines: list[Line]
    #: Figures that the board's profile does not have.
    guessed: tuple[str, ...] = ()
    #: Operations whose graph is none of a transformer, which the figures of engines are of.
    rougher: tuple[str, ...] = ()


#: From an operation, a percentile and what was measured here, in microseconds, to what it takes on the board.
OnBoard = Callable[[str, str, float], float | None]


def check(path: Path, board: Board) -> Check:
    """Measure the bundle at ``path`` (or the one that a store serves) against its budgets on ``board``.

    Raises:
        BundleError: the bundle cannot be opened: there is nothing to measure.
    """
    folder = _served(path)
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
        return Check([Line("wrong golden answers", "answers", 0, wrong, wrong)])
    operations = {name: measuring.report(folder, name) for name in found["operations"]}
    found["operations"] = {name: each["warm"] for name, each in operations.items()}
    on_board: OnBoard = _measured_there
    guessed: tuple[str, ...] = ()
    rougher: tuple[str, ...] = ()
    if not is_here(board):
        with Bundle.open(folder) as bundle:
            works = works_of(bundle)
            boards = this_machine_for(bundle.manifest), board
            here, there = (predict(bundle.manifest, each, works) for each in boards)
        on_board, guessed, rougher = _predicted(here, there), there.guessed, there.rougher
    lines = [
        *_memory_lines(found["memory"], budgets, flash_bytes, board),
        *_latency_lines(found, budgets, on_board),
        *_told_lines(operations, on_board),
    ]
    return Check(lines, guessed, rougher)


def name_of(path: Path) -> str:
    """Return the name of the bundle at ``path``, or of the one that a store serves, whatever its version."""
    with Bundle.open(_served(path)) as bundle:
        return bundle.manifest.name


def _served(path: Path) -> Path:
    return Store(path).active() if is_store(path) else path


def _measured_there(operation: str, name: str, measured_us: float) -> float | None:
    """Return what an operation takes on the board where it takes ``measured_us`` here; None if nobody knows."""
    return measured_us


def _predicted(here: Prediction, there: Prediction) -> OnBoard:
    def on_board(operation: str, name: str, measured_us: float) -> float | None:
        # The far tail is no further from the typical call there than here; of the first asking nothing is known.
        by = {"p50": "p50_us", "p99": "p99_us", "p99.9": "p99_us"}.get(name, "")
        usual_us, us = (getattr(each.operations.get(operation), by, None) for each in (here, there))
        return None if usual_us is None or us is None else round(measured_us * us / usual_us, 2)

    return on_board


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


def _told_lines(operations: Mapping[str, Mapping[str, Any]], on_board: OnBoard) -> list[Line]:
    lines = []
    for operation, found in operations.items():
        times = {"p99.9": found["warm"]["p99.9_us"]}
        times |= {f"cold {name}": found["cold"][f"{name}_us"] for name in ("p50", "p99", "p99.9")}
        for name, value in times.items():
            lines.append(Line(f"{operation} {name}", "us", None, value, on_board(operation, name, value)))
        for state in ("cold", "warm"):
            for kind in ("major", "minor"):
                faults = found[state][f"{kind}_faults"]
                lines.append(Line(f"{operation} {state}: {kind} page faults", "faults", None, faults, faults))
    mapped = max((found["mapped_bytes"] for found in operations.values()), default=0)
    return [*lines, Line("mapped pages in memory", "bytes", None, mapped, mapped)]


def _latency_lines(found: dict[str, Any], budgets: Budgets, on_board: OnBoard) -> list[Line]:
    lines = []
    for operation, budget in budgets.operations.items():
        measured = found["operations"].get(operation, {})
        skipped = found.get("skipped", {}).get(operation, "")
        for percentile in ("p50", "p99"):
            value = measured.get(f"{percentile}_us")
            bound = getattr(budget, f"{percentile}_us")
            there = None if value is None else on_board(operation, percentile, value)
            unknown = _UNKNOWN if value is not None and there is None else skipped
            lines.append(Line(f"{operation} {percentile}", "us", bound, value, there, unknown))
    return lines
