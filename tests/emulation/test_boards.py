"""Boards answer: real ARM userlands, on emulated cores, with the wheels that are published.

A core is named to its emulator, so an instruction that it lacks ends the process, and the test fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed_bundle.manifest import LatencyBudget
from edge_embed_devices.emulation.userlands import USERLANDS
from tests.emulation.conftest import Board
from tests.making import make_bundle, small_source
from tests.repositories import Publisher

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
ON_BOARD = Path(__file__).with_name("on_board.py")

BOARDS = [(name, core.name) for name, userland in USERLANDS.items() for core in userland.cores]

#: The spelling of the kernels that each core has to choose.
VARIANTS = {"cortex-a53": "baseline", "cortex-a72": "baseline", "cortex-a76": "dotprod", "cortex-a7": "neon"}

ENGINES = {
    "bookworm-arm64": {"onnxruntime", "litert", "tflite-runtime"},
    "trixie-arm64": {"onnxruntime", "litert"},
    "bookworm-armhf": {"tflite-runtime"},
}

#: Of vectors of length 1, and of cosines: numpy adds float32 up in another order on each processor.
CLOSE = 1e-6

Boards = Callable[..., Board]


def _said(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@cache
def _here() -> Any:
    """What this machine answers."""
    command = [sys.executable, str(ON_BOARD), "asked", str(GOLDEN)]
    return _said(subprocess.run(command, capture_output=True, text=True, timeout=600, check=False))["asked"]


@pytest.fixture(scope="module")
def natively(boards: Boards) -> Callable[[str, str], Any]:
    """What returns all that a board with the native kernels says, which it is asked once."""
    return cache(lambda name, core: _said(boards(name, core).run(str(ON_BOARD), "asked,verified,decoded", str(GOLDEN))))


def _numbers(spelled: Any) -> Any:
    return np.frombuffer(bytes.fromhex(spelled["float32"]), "<f4").reshape(spelled["shape"])


def _compare(asked: Any, *, scores_have_bits: bool) -> None:
    """Hold what a board answered against this machine: integers and decoded numbers by their bits."""
    for bundle, said in asked.items():
        assert said["golden"], bundle
        assert all(said["golden"].values()), said["golden"]
        for question, answer in _here()[bundle]["answers"].items():
            found = said["answers"][question]
            codec, _, rest = question.partition(": ")
            if rest.startswith("encode") or (rest.startswith("scores") and codec != "int8" and not scores_have_bits):
                np.testing.assert_allclose(_numbers(found), _numbers(answer), rtol=0, atol=CLOSE, err_msg=question)
            else:
                assert found == answer, f"{bundle}: {question}"
    assert asked.keys() == _here().keys()


@pytest.mark.parametrize(("name", "core"), BOARDS)
def test_a_board_answers_with_the_bits_of_this_machine(name: str, core: str, natively: Callable[..., Any]) -> None:
    said = natively(name, core)
    assert said["variant"] == VARIANTS[core]
    _compare(said["asked"], scores_have_bits=True)


@pytest.mark.parametrize(("name", "core"), BOARDS)
def test_a_board_without_the_kernels_answers_alike(name: str, core: str, boards: Boards) -> None:
    said = _said(boards(name, core, native=False).run(str(ON_BOARD), "asked", str(GOLDEN)))
    assert said["variant"] == "numpy"
    _compare(said["asked"], scores_have_bits=False)


@pytest.mark.parametrize(("name", "core"), BOARDS)
def test_every_graph_is_right_on_every_engine_of_a_board(name: str, core: str, natively: Callable[..., Any]) -> None:
    said = natively(name, core)
    for bundle, verified in said["verified"].items():
        wrong = [check["check"] for check in verified["checks"] if check["passed"] is False]
        assert verified["passed"], f"{bundle}: {wrong}"
    assert said["decoded"].keys() == ENGINES[name]
    for engine, tables in said["decoded"].items():
        assert tables, engine
        for bundle, vectors in tables.items():
            answers = _here()[bundle]["answers"]
            (lookup,) = (answer for question, answer in answers.items() if question.endswith("lookup in table"))
            assert vectors == lookup, f"{engine}: {bundle}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """A repository with two releases; their budgets are an emulator's."""
    pytest.importorskip("tuf")
    place = tmp_path_factory.mktemp("published")
    patient = dict.fromkeys(("lookup", "encode", "search"), LatencyBudget(1e7, 1e7))
    budgets: dict[str, Any] = {"latency_budgets": patient, "memory_budget_bytes": 2**30}
    publisher = Publisher.make(place)
    publisher.publish(make_bundle(place / "old", **budgets).path)
    publisher.publish(make_bundle(place / "new", version="1.1.0", source=small_source(seed=1), **budgets).path)
    return publisher


@pytest.mark.parametrize(("name", "core"), BOARDS)
def test_a_board_installs_updates_and_rolls_back(
    name: str, core: str, boards: Boards, published: Publisher, tmp_path: Path
) -> None:
    board = boards(name, core)
    place = published.site.parent
    root = next(published.keys.glob("1.root.json"))
    paths = (tmp_path / "store", place / "old", published.site, root)
    steps = _said(board.run(str(ON_BOARD), "swapped", *map(str, paths)))["swapped"]
    assert [step["status"] for step in steps] == [0] * 5
    installed, updated, status, back, looked_up = steps
    assert installed["installed"]
    assert (updated["outcome"], updated["version"]) == ("installed", "1.1.0")
    assert [g["version"] for g in status["generations"] if g["role"] in ("active", "previous")] == ["1.1.0", "1.0.0"]
    assert back["version"] == "1.0.0"
    assert looked_up["generation"] == installed["id"]


def test_an_instruction_that_a_core_lacks_ends_the_process(boards: Boards, tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        pytest.skip("aarch64-linux-gnu-gcc is not installed here")
    source, program = tmp_path / "sdot.c", tmp_path / "sdot"
    source.write_text('int main(void) { __asm__(".arch armv8.2-a+dotprod\\nsdot v0.4s, v1.16b, v2.16b"); return 0; }\n')
    subprocess.run([compiler, "-static", str(source), "-o", str(program)], check=True, timeout=60)
    ended = {}
    for core in ("cortex-a53", "cortex-a72", "cortex-a76"):
        emulator = boards("bookworm-arm64", core).python.read_text().split()[1:]
        command = [emulator[emulator.index("exec") + 1], "-cpu", core, str(program)]
        ended[core] = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
    assert ended["cortex-a76"] == 0
    assert {ended["cortex-a53"], ended["cortex-a72"]} == {-4}
