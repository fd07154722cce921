"""A check is held against an earlier one by ratio, and told to CI servers in their own words."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge_embed.commands import main
from edge_embed.errors import BundleError, RequestError
from edge_embed_bundle.manifest import LatencyBudget
from edge_embed_devices.checking import Line
from edge_embed_devices.comparing import Regression, circumstances, earlier, missing, regressions, write_junit
from tests.making import make_bundle

LINES = [
    Line("private memory", "bytes", 100, 80, 80),
    Line("lookup p50", "us", 10, 4.0, 4.0),
    Line("lookup p99", "us", 10, 12.0, 12.0),
    Line("encode p50", "us", 10, None, None, "needs a package"),
    Line("lookup p99.9", "us", None, 99.0, 99.0),
]


@pytest.mark.parametrize(("before", "names"), [(2.0, ["lookup p50"]), (2.7, []), (4.0, []), (0.0, [])])
def test_what_grew_by_more_than_the_threshold_is_a_regression(before: float, names: list[str]) -> None:
    worse = regressions(LINES, {"lookup p50": before, "lookup p99.9": 1.0}, 1.5)
    assert [regression.name for regression in worse] == names


def test_a_regression_says_both_figures_and_their_ratio() -> None:
    said = str(Regression("lookup p50", "us", 2.0, 4.0))
    assert said == "lookup p50: found 4 us, 2.00 times the earlier 2"


def test_an_earlier_check_is_read_as_it_was_printed_without_what_was_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    lines = [{"name": line.name, "budget": line.budget, "measured": line.measured} for line in LINES]
    now = circumstances("pi-4", "notes")
    path.write_text(json.dumps({**now, "lines": lines}))
    assert earlier(path, now) == {"private memory": 80, "lookup p50": 4.0, "lookup p99": 12.0}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("board", "pi-5", "board: expected a check of pi-4, found 'pi-5'"),
        ("bundle", "words", "bundle: expected a check of notes, found 'words'"),
        ("machine", "a board, 4 cores", "machine: expected a check of .* cores, found 'a board, 4 cores'"),
    ],
)
def test_an_earlier_check_of_something_else_is_refused(tmp_path: Path, name: str, value: str, message: str) -> None:
    path = tmp_path / "before.json"
    now = circumstances("pi-4", "notes")
    path.write_text(json.dumps({**now, name: value, "lines": []}))
    with pytest.raises(RequestError, match=message):
        earlier(path, now)


@pytest.mark.parametrize(
    "lines",
    ["[1]", "7"]
    + [f'[{{"name": "lookup p50", "budget": 1, "measured": {each}}}]' for each in ('"7"', "-5", "true", "1e-320")]
    + ['[{"budget": 1, "measured": 1}]', "[" + ", ".join(2 * ['{"name": "a", "budget": 1, "measured": 1}']) + "]"],
)
def test_figures_that_no_check_has_are_refused(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "before.json"
    now = circumstances("pi-4", "notes")
    path.write_text(f'{json.dumps(now)[:-1]}, "lines": {lines}}}')
    with pytest.raises(RequestError, match=r"before\.json: lines: expected "):
        earlier(path, now)


@pytest.mark.parametrize("text", ['{"board": "pi-4"}', "{}", "[]", "{", "", '{"lines": NaN}'])
def test_a_file_that_is_no_check_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "before.json"
    path.write_text(text)
    with pytest.raises((RequestError, BundleError), match=r"before\.json: "):
        earlier(path, circumstances("pi-4", "notes"))


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody makes a file in /proc, root included.
    for junit in (tmp_path, tmp_path / "nowhere" / "check.xml", Path("/proc/check.xml")):
        assert main(["check", str(bundle), "--junit", str(junit)]) == 2
        assert f"{junit}: expected a file in a folder that is there" in capsys.readouterr().err


def test_a_report_that_finds_no_room_is_named() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_junit(Path("/dev/full"), "pi-4", LINES, [])


def test_figures_and_what_kept_their_report_from_being_written_are_one_object(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(bundle), "--json", "--junit", "/dev/full"]) == 2
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["lines"]
    assert found["error"] == "the system said: [Errno 28] No space left on device: '/dev/full'"
    assert shown.err == f"edge-embed: {found['error']}\n"


def test_junit_has_a_case_for_each_judged_figure_and_a_failure_for_each_miss(tmp_path: Path) -> None:
    path = tmp_path / "check.xml"
    write_junit(path, "pi-4", LINES, [Regression("lookup p50", "us", 2.0, 4.0)])
    suite = ElementTree.parse(path).getroot()  # noqa: S314
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    failures = {case.get("name"): case.findall("failure") for case in suite}
    assert failures["private memory"] == []
    assert failures["lookup p99"][0].get("message") == "expected at most 10 us, found 12.0"
    assert "2.00 times" in str(failures["lookup p50"][0].get("message"))


def test_a_figure_that_an_earlier_check_alone_has_is_told_and_is_a_case_that_was_skipped(tmp_path: Path) -> None:
    before = {"lookup p50": 4.0, "encode p50": 9.0, "search p50": 9.0, "lookup p99.9": 9.0}
    gone = missing(LINES, before)
    assert gone == ["encode p50", "search p50", "lookup p99.9"]
    path = tmp_path / "check.xml"
    write_junit(path, "pi-4", LINES, [], gone)
    suite = ElementTree.parse(path).getroot()  # noqa: S314
    skipped = {case.get("name"): found.get("message") for case in suite for found in case.findall("skipped")}
    why = "the earlier check has it, and this one does not"
    assert skipped == {"encode p50": "needs a package", "search p50": why, "lookup p99.9": why}


@pytest.fixture
def patient_bundle(tmp_path: Path) -> Path:
    """A bundle whose budgets hold however busy this machine is."""
    patient = dict.fromkeys(("lookup", "encode", "search"), LatencyBudget(1e7, 1e7))
    return make_bundle(tmp_path / "patient", latency_budgets=patient, memory_budget_bytes=2**30).path


def test_the_command_tells_a_figure_that_is_gone(
    patient_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(patient_bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    said["lines"].append({"name": "classify p50", "budget": 1.0, "measured": 1.0})
    before = tmp_path / "before.json"
    before.write_text(json.dumps(said))
    main(["check", str(patient_bundle), "--against", str(before), "--threshold", "1000"])
    assert "not compared: classify p50: the earlier check has it" in capsys.readouterr().out


def test_the_command_compares_with_what_it_printed_and_writes_junit(
    patient_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(patient_bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    before, junit = tmp_path / "before.json", tmp_path / "check.xml"
    words = ["check", str(patient_bundle), "--against", str(before), "--junit", str(junit), "--json"]
    before.write_text(json.dumps(said))
    assert main([*words, "--threshold", "1000"]) == 0
    capsys.readouterr()
    for line in said["lines"]:
        if line["name"] == "lookup p50":
            # So much that no pause of the machine makes another line worse.
            line["measured"] /= 10**9
    before.write_text(json.dumps(said))
    assert main([*words, "--threshold", "1000000"]) == 1
    (worse,) = json.loads(capsys.readouterr().out)["regressions"]
    assert worse["name"] == "lookup p50"
    assert ElementTree.parse(junit).getroot().get("failures") == "1"  # noqa: S314


@pytest.mark.parametrize("threshold", ["0.5", "nan", "inf"])
def test_a_threshold_that_is_none_is_refused(bundle: Path, threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(bundle), "--threshold", threshold]) == 2
    assert "expected a threshold of 1 or more" in capsys.readouterr().err
