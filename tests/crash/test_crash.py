"""A sample of ``make crash``: of each act some calls that fail, and some moments at which the power goes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from tests.crash.calls import SKIPPED


def _held(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"tests.crash.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_process_that_dies_or_fails_at_a_system_call_leaves_a_whole_bundle_serving() -> None:
    _held("calls", "--sample", "3")


def test_a_file_system_that_lost_power_has_a_whole_bundle_serving_and_a_naive_writer_loses_it() -> None:
    _held("disks", "--states", "7", "--only", "ext4, strict")
