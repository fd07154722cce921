"""A small network of digits keeps its vectors as ONNX of int8 and as TFLite of whole numbers, through a bundle."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed.commands import main
from tests.contracts.test_legacy_engine import LEGACY_PYTHON, ROOT
from tests.small_digits import (
    DIMENSIONS,
    Digits,
    load_digits,
    maps_of,
    pixels_of,
    trained,
    write_onnx,
    write_onnx_int8,
    write_tflite_int8,
)
from tests.tflite_running import answers

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")
pytest.importorskip("PIL")

TRAINED, ASKED, CALIBRATION = slice(0, 1300), slice(1300, None), slice(0, 200)

Weights = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()


@pytest.fixture(scope="module")
def weights(digits: Digits) -> Weights:
    return trained(digits.part(TRAINED))


def _right(vectors: NDArray[np.float32], digits: Digits) -> float:
    """Return how many of the asked digits lie next to one of their kind among those of the training."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = (unit[ASKED] @ unit[TRAINED].T).argmax(axis=1)
    return float((digits.labels[TRAINED][nearest] == digits.labels[ASKED]).mean())


def _cosines(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((ones * others).sum(axis=1) / lengths)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["float32.onnx", "int8.onnx", "int8.tflite"])
def test_digits_lie_beside_their_kind_by_every_file(
    kind: str, digits: Digits, weights: Weights, tmp_path: Path
) -> None:
    source = write_onnx(tmp_path / "float32.onnx", weights)
    if kind == "int8.onnx":
        source = write_onnx_int8(tmp_path / kind, source, digits.part(CALIBRATION))
    elif kind == "int8.tflite":
        source = write_tflite_int8(tmp_path / kind, weights, digits.part(CALIBRATION))
    if source.suffix == ".onnx":
        source.with_suffix(".image.toml").write_text("mean = 0\nstd = 1\n")
    bundle = tmp_path / "digits"
    assert main(["export", str(source), "-o", str(bundle), "--name", "digits"]) == 0
    expected = maps_of(weights, pixels_of(digits.pictures))["vector"]
    with edge_embed.open(bundle) as runtime:
        found = runtime.encode_image(list(digits.pictures))
    assert found.shape == (1797, DIMENSIONS)
    assert _right(expected, digits) > 0.93
    if kind == "float32.onnx":
        np.testing.assert_allclose(found, expected, atol=1e-4)
    else:
        assert _cosines(found, expected).mean() > 0.995
        assert _right(expected, digits) - _right(found, digits) < 0.01


def test_the_legacy_engine_answers_whole_numbers_alike(digits: Digits, weights: Weights, tmp_path: Path) -> None:
    if not LEGACY_PYTHON.exists():
        pytest.skip("there is no .venv/legacy with tflite-runtime 2.14; make test makes it where Python 3.11 is")
    source = write_tflite_int8(tmp_path / "digits.tflite", weights, digits.part(CALIBRATION))
    pixels = (digits.pictures[:100, np.newaxis, :, :, np.newaxis].astype(np.int16) - 128).astype(np.int8)
    np.save(tmp_path / "pixels.npy", pixels)
    ask = """
import sys
import numpy as np
from tests.tflite_running import answers
np.save(sys.argv[3], np.concatenate(answers(sys.argv[1], list(np.load(sys.argv[2])))))
"""
    words = [str(LEGACY_PYTHON), "-c", ask, str(source), str(tmp_path / "pixels.npy"), str(tmp_path / "found.npy")]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    here = np.concatenate(answers(str(source), list(pixels)))
    # A rounding of the last layer apart, and those of the layers before it.
    assert np.abs(here.astype(int) - np.load(tmp_path / "found.npy").astype(int)).max() <= 3
