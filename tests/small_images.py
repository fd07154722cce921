"""Small image networks as files: the mean colour of a picture, multiplied with a matrix; in ONNX and in TFLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_export.graphs.flatbuffer import Drawing

SIDE = 8
MATRIX: NDArray[np.float32] = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def by_definition(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the vectors ``(n, 5)`` of pixels ``(n, h, w, 3)``."""
    return np.asarray(pixels.astype(np.float64).mean(axis=(1, 2)) @ MATRIX.T.astype(np.float64))


def write_onnx(path: Path, *, external: str | None = None) -> Path:
    """Write the network for pixels ``(1, 3, 8, 8)``; its matrix in another file where ``external`` names one."""
    from onnx import TensorProto, helper, numpy_helper

    matrix = numpy_helper.from_array(MATRIX, "matrix")
    if external is not None:
        path.with_name(Path(external).name).write_bytes(MATRIX.tobytes())
        matrix.ClearField("raw_data")
        matrix.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(MATRIX.nbytes))):
            entry = matrix.external_data.add()
            entry.key, entry.value = key, value
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["colour"]),
        helper.make_node("Gemm", ["colour", "matrix"], ["vectors"], transB=1),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    vectors = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 5])
    graph = helper.make_graph(nodes, "colour", [pixels], [vectors], [matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def write_tflite(path: Path) -> Path:
    """Write the network for pixels ``(1, 8, 8, 3)``; its answer is ``(1, 5)``."""
    drawing = Drawing()
    pixels = drawing.free("pixels", "float32", (1, SIDE, SIDE, 3))
    axes = drawing.constant("axes", np.array([1, 2], np.int32))
    means = drawing.operator("MEAN", [pixels, axes], drawing.free("colour", "float32", (1, 3)), "ReducerOptions")
    matrix = drawing.constant("matrix", MATRIX)
    vectors = drawing.fully_connected(means, matrix, drawing.free("vectors", "float32", (1, 5)))
    drawing.finish("encode", [pixels], vectors)
    path.write_bytes(drawing.packed("a test"))
    return path
