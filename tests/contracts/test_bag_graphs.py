"""Graphs of bags answer as the kernels do, for every codec, mode and recipe; one copy of the table serves them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge_embed
from edge_embed_bundle.manifest import BagRecipe
from edge_embed_export.codecs import ENCODERS
from edge_embed_export.options import Hashing
from tests.contracts.bag_graphs import keep
from tests.contracts.test_legacy_engine import LEGACY_PYTHON, ROOT
from tests.making import make_bundle, tables_source

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

SHAPES = {"plain": (40, 37), "padded": (33, 5), "hashed": (200, 6), "spared": (21, 4), "one": (1, 3)}


def _made(folder: Path, codec: str, mode: str) -> Path:
    """A table of each recipe: nothing, padding, hashing to all rows, hashing beside a row that pads; and one row."""
    bags = {name: BagRecipe(mode) for name in SHAPES} | {
        "padded": BagRecipe(mode, 4),
        "spared": BagRecipe(mode, 0),
    }
    hashes = {"hashed": Hashing(), "spared": Hashing(first_row=1)}
    return make_bundle(folder / "bundle", source=tables_source(SHAPES), codec=codec, bags=bags, hashes=hashes).path


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("codec", ENCODERS)
def test_graphs_of_bags_answer_as_the_kernels_do(codec: str, mode: str, tmp_path: Path) -> None:
    with edge_embed.open(_made(tmp_path, codec, mode)) as runtime:
        for model in runtime.manifest.tables:
            proven = {(graph.format, graph.operation) for graph in model.graphs if graph.proven}
            assert proven == {(format, operation) for format in ("onnx", "tflite") for operation in ("lookup", "bag")}
            assert len(keep(runtime, model, ("onnx", "tflite"))) == 2


@pytest.mark.parametrize("codec", ENCODERS)
def test_the_legacy_engine_answers_bags_as_the_kernels_do(codec: str, tmp_path: Path) -> None:
    if not LEGACY_PYTHON.exists():
        pytest.skip("there is no .venv/legacy with tflite-runtime 2.14; make test makes it where Python 3.11 is")
    for mode in ("sum", "mean", "max"):
        (tmp_path / mode).mkdir()
        path = _made(tmp_path / mode, codec, mode)
        done = subprocess.run(
            [str(LEGACY_PYTHON), "-m", "tests.contracts.bag_graphs", str(path), "tflite"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("tflite-runtime 2.14") == len(SHAPES), done.stdout


def test_verify_runs_the_graphs_of_bags(tmp_path: Path) -> None:
    path = _made(tmp_path, "int8", "sum")
    command = [sys.executable, "-m", "edge_embed", "verify", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.count("bags off by") == 2 * len(SHAPES) and "FAILED" not in said
    assert "hashed.bag.onnx on onnxruntime" in said and "spared.tflite on litert" in said


def test_a_graph_of_bags_adds_no_copy_of_the_table(tmp_path: Path) -> None:
    shapes = {"large": (20_000, 32)}
    made = make_bundle(tmp_path / "with", source=tables_source(shapes), bags={"*": BagRecipe("mean")})
    without = make_bundle(tmp_path / "without", source=tables_source(shapes))
    assert made.manifest.size_bytes - without.manifest.size_bytes < 128 * 2**10 + 20_000
