"""Progress is a line on a terminal and nothing in a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from edge_embed.progress import Progress


def test_a_task_in_a_pipe_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().task("working", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_task_on_a_terminal_draws_a_line_and_takes_it_away(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(shown=True).task("working", 10) as advance:
        advance(5)
    shown = capsys.readouterr().err
    assert "working [" in shown
    assert shown.endswith("\r\x1b[K")


def test_a_task_that_fails_takes_its_line_away_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), Progress(shown=True).task("working", 10):
        raise ValueError("broken")
    assert capsys.readouterr().err.endswith("\r\x1b[K")


def test_verify_shows_its_progress_on_a_real_terminal_and_its_answer_on_stdout(bundle: Path) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "edge_embed", "verify", str(bundle)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=60, check=True)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(terminal)
        os.close(master)
    assert "verifying [" in shown
    assert done.stdout.startswith(b"ok ")
