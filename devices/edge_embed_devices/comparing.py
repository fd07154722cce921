"""A check beside an earlier one, by ratio; and a check as CI servers read it (JUnit's XML).

What is judged is what has a budget: p50, p99 and private memory. The far tail and the first asking swing from run to
run on one machine, so they are told and not judged. A ratio means something between two versions of one bundle, judged
for one board and measured on one machine; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from edge_embed.errors import RequestError
from edge_embed.named_files import naming, read_named
from edge_embed_bundle import strict_json
from edge_embed_devices.checking import Line
from edge_embed_devices.profiles import machine_model

THRESHOLD = 1.5
#: What is said of a figure that is missing.
GONE = "the earlier check has it, and this one does not"
# A ratio to less than this says nothing.
_LEAST = 1e-12


@dataclass(frozen=True)
class Regression:
    """A figure that grew by more than the threshold."""

    name: str
    unit: str
    before: float
    now: float

    @property
    def ratio(self) -> float:
        """How many times the earlier figure it is."""
        return self.now / self.before

    def __str__(self) -> str:
        """Return the sentence that says so."""
        return f"{self.name}: found {self.now:g} {self.unit}, {self.ratio:.2f} times the earlier {self.before:g}"


def circumstances(board: str, bundle: str) -> dict[str, str]:
    """Return what two checks must have alike for their ratio to mean something, as ``--json`` prints it."""
    return {"board": board, "bundle": bundle, "machine": machine_model()}


def earlier(path: Path, now: Mapping[str, str]) -> dict[str, float]:
    """Return the judged figures of an earlier check, as its ``--json`` printed them.

    Args:
        path: the file.
        now: the circumstances of the check that it is held against; the file's own must not differ.

    Raises:
        RequestError: the file holds something else, or a check in other circumstances.
        BundleError: the file is no strict JSON.
    """
    data = read_named(path, "what check --json printed", strict_json.MANIFEST_CEILING_BYTES)
    found = strict_json.loads(data, source=str(path))
    lines = found.get("lines")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise RequestError(f"{path}: lines: expected what check --json printed, found {lines!r:.60}")
    for name, value in now.items():
        if found.get(name) != value:
            raise RequestError(f"{path}: {name}: expected a check of {value}, found {found.get(name)!r:.60}")
    figures: dict[str, float] = {}
    for line in lines:
        name, measured = line.get("name"), line.get("measured")
        if line.get("budget") is None or measured is None:
            continue
        if not isinstance(name, str) or name in figures or not _is_figure(measured):
            raise RequestError(
                f"{path}: lines: expected a figure under each name once, found {name!r:.60}: {measured!r:.60}"
            )
        figures[name] = measured
    return figures


def regressions(lines: Sequence[Line], before: Mapping[str, float], threshold: float) -> list[Regression]:
    """Return the judged figures that are more than ``threshold`` times what they were."""
    return [
        Regression(line.name, line.unit, before[line.name], line.measured)
        for line in lines
        if line.budget is not None
        and line.measured is not None
        and before.get(line.name, 0) > 0
        and line.measured > threshold * before[line.name]
    ]


def missing(lines: Sequence[Line], before: Mapping[str, float]) -> list[str]:
    """Return the names of the judged figures that an earlier check has and this one does not."""
    there = {line.name for line in lines if line.budget is not None and line.measured is not None}
    return [name for name in before if name not in there]


def write_junit(
    path: Path, board: str, lines: Sequence[Line], worse: Sequence[Regression], gone: Sequence[str] = ()
) -> None:
    """Write a check in JUnit's XML: a test case for each figure that is judged, and for each that is gone."""
    suite = ElementTree.Element("testsuite", name=f"edge-embed check {board}")
    grown = {regression.name: regression for regression in worse}
    for line in lines:
        if line.budget is None:
            continue
        case = ElementTree.SubElement(suite, "testcase", classname="edge_embed.check", name=line.name)
        if line.skipped:
            ElementTree.SubElement(case, "skipped", message=line.skipped)
        elif not line.within:
            expected = f"expected at most {line.budget:g} {line.unit}, found {line.on_board}"
            ElementTree.SubElement(case, "failure", message=expected)
        elif line.name in grown:
            ElementTree.SubElement(case, "failure", message=str(grown[line.name]))
    for name in gone:
        if not any(line.name == name and line.budget is not None for line in lines):
            case = ElementTree.SubElement(suite, "testcase", classname="edge_embed.check", name=name)
            ElementTree.SubElement(case, "skipped", message=GONE)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    with naming(path):
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _is_figure(value: object) -> bool:
    """Return whether a check can have measured it: nothing, or no less than a clock tells apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or value >= _LEAST
