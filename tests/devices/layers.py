"""Draws the graphs that ``boards calibrate`` runs: layers as many and as wide as all-MiniLM's, without their weights.

Kept to show where they come from: ``python -m tests.devices.layers FOLDER`` writes them there. They are in the package
(``devices/edge_embed_devices/layers/``) because a board, which calibrates itself, has nothing that draws graphs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_embed_bundle.writer import BlobWriter
from edge_embed_devices.engine_speeds import LAYERS, LENGTHS, WEIGHTS_NAME
from edge_embed_export.graphs import onnx_text, tflite_text
from edge_embed_export.transformer import Layer, Linear, Norm, Transformer

WIDTH, HEADS, INNER, WORDS = 384, 12, 1536, 16


class _Zeros(Transformer):
    """Layers of zeros."""

    def layer(self, i: int) -> Layer:
        norm = Norm(np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32))
        square, inner, outer = (_linear(*shape) for shape in ((WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)))
        return Layer(square, square, square, square, norm, inner, outer, norm)


def _linear(outputs: int, inputs: int) -> Linear:
    return Linear(np.zeros((outputs, inputs), np.float32), np.zeros(outputs, np.float32))


class _Sink(BlobWriter):
    """A blob that is kept in memory."""

    def __init__(self) -> None:
        self.name = WEIGHTS_NAME
        #: What was written: of a TFLite file the header comes first.
        self.pieces: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        self.pieces.append(bytes(data))


def drawn() -> dict[str, bytes]:
    """Return the files by their names."""
    norm = Norm(np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32))
    words, positions = np.zeros((WORDS, WIDTH), np.float32), np.zeros((max(LENGTHS), WIDTH), np.float32)
    model = _Zeros(WIDTH, HEADS, LAYERS, INNER, "gelu", 1e-12, words, positions, norm, None, None)  # type: ignore[arg-type]
    found = {}
    for variant in ("float32", "int8"):
        how = {"pooling": "mean", "normalize": True, "longest": max(LENGTHS)}
        found[f"{variant}.onnx"] = onnx_text.draw_text(model, variant, weights=_Sink(), **how)  # type: ignore[arg-type]
        sink = _Sink()
        tflite_text.TextGraph(model, variant, **how).write(sink)  # type: ignore[arg-type]
        found[f"{variant}.tflite"] = sink.pieces[0]
    return found


if __name__ == "__main__":
    for name, data in drawn().items():
        (Path(sys.argv[1]) / name).write_bytes(data)
