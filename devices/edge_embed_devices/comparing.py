"""A check beside an earlier one, by ratio; and a check as CI servers read it (JUnit's XML).

What is judged is what has a budget: p50, p99 and private memory. The far tail and the first asking swing from run to
run on one machine, so they are told and not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from edge_embed.errors import RequestError
from edge_embed.named_files import read_named
from edge_embed_bundle import strict_json
from edge_embed_devices.checking import Line

THRESHOLD = 1.5


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


def earlier(path: Path, board: str) -> dict[str, float]:
    """Return the judged figures of an earlier check, as its ``--json`` printed them.

    Raises:
        RequestError: the file holds something else, or a check for another board.
        BundleError: the file is no strict JSON.
    """
    data = read_named(path, "what check --json printed", strict_json.MANIFEST_CEILING_BYTES)
    found = strict_json.loads(data, source=str(path))
    lines = found.get("lines")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise RequestError(f"{path}: lines: expected what check --json printed, found {lines!r:.60}")
    if found.get("board") != board:
        raise RequestError(f"{path}: board: expected a check for {board}, found {found.get('board')!r:.60}")
    return {
        line["name"]: line["measured"]
        for line in lines
        if isinstance(line.get("name"), str) and _is_number(line.get("measured")) and line.get("budget") is not None
    }


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


def write_junit(path: Path, board: str, lines: Sequence[Line], worse: Sequence[Regression]) -> None:
    """Write a check in JUnit's XML: a test case for each figure that is judged."""
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
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
