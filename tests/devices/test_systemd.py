"""The units that update a board: known to systemd, without privileges, and a command line that the command takes."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_embed.commands.updates import UPDATE

UNITS = Path(__file__).parents[2] / "devices" / "systemd"
COMMAND = "/opt/edge-embed/bin/edge-embed"

ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copies of the units whose command is there."""
    for path in UNITS.glob("*@.*"):
        (tmp_path / path.name).write_text(path.read_text().replace(COMMAND, "/bin/true"))
    return sorted(str(path) for path in tmp_path.iterdir())


def _analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *arguments], capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_knows_every_line_of_the_units(units: list[str]) -> None:
    assert len(units) == 2
    done = _analyzed("verify", *units)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_an_update_runs_with_next_to_nothing_that_it_could_harm(units: list[str]) -> None:
    done = _analyzed("security", "--offline=true", "--no-pager", "--threshold=16", units[0])
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd judges no unit offline")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_units_command_line_is_one_that_update_takes() -> None:
    service = (UNITS / "edge-embed-update@.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
    settings = dict(re.findall(r"^([A-Z_]+)=(.*)$", (UNITS / "NAME.conf.example").read_text(), re.MULTILINE))
    settings["STATE_DIRECTORY"] = "/var/lib/edge-embed/NAME"
    words = [re.sub(r"\$\{(\w+)\}", lambda found: settings.pop(found[1]), word) for word in shlex.split(line)]
    assert words[:2] == [COMMAND, "update"]
    parser = argparse.ArgumentParser()
    UPDATE.configure(parser)
    found = parser.parse_args(words[2:])
    assert (str(found.store), found.channel, found.board) == ("/var/lib/edge-embed/NAME", "stable", "pi-4")
    assert not settings, "an example of a setting that nobody reads"
