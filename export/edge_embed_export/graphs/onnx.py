"""The lookup graph in ONNX: Gather the stored rows, then decode the gathered ones.

The table is external data in a blob of the bundle, so ONNX Runtime maps it. Decoding the whole table first (a
DequantizeLinear before the Gather) would make it private and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError
from edge_embed_bundle.manifest import INT4_BLOCK, Tensor
from edge_embed_export.codecs import pairs_of_bytes

_TYPES = {"int8": "INT8", "uint8": "UINT8", "float16": "FLOAT16", "float32": "FLOAT"}
_OPSET = 17
# The oldest file version with that opset: older engines than ours may read it, too.
_IR_VERSION = 8


def onnx_lookup(codec: str, tensors: Mapping[str, Tensor], dimensions: int) -> bytes:
    """Return the graph file for a codec's tensors; its weights stay where ``tensors`` says."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingExtraError.of("onnx", "export", "writing an ONNX graph") from error
    drawing = _Drawing(tensors)
    _GRAPHS[codec](drawing, dimensions)
    graph = helper.make_graph(
        drawing.nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dimensions])],
        drawing.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    model.producer_name = "edge-embed"
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class _Drawing:
    """Nodes and weights in the making; every method that adds a node returns the name of its result."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.tensors = tensors

    def stored(self, name: str, shape: tuple[int, ...] = ()) -> str:
        """Add a tensor of the table, under another shape of as many numbers where one is given."""
        from onnx import TensorProto

        tensor = self.tensors[name]
        weight = TensorProto()
        weight.name = name
        weight.data_type = getattr(TensorProto, _TYPES[tensor.dtype])
        weight.dims.extend(shape or tensor.shape)
        weight.data_location = TensorProto.EXTERNAL
        place = {"location": tensor.blob, "offset": tensor.offset_bytes, "length": tensor.size_bytes}
        for key, value in place.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
        self.weights.append(weight)
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a small tensor whose bytes are in the graph."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, operation: str, inputs: list[str], result: str, **attributes: Any) -> str:
        """Add a node."""
        from onnx import helper

        self.nodes.append(helper.make_node(operation, inputs, [result], **attributes))
        return result

    def cast(self, values: str, data_type: str, result: str) -> str:
        """Add a Cast."""
        from onnx import TensorProto

        return self.node("Cast", [values], result, to=getattr(TensorProto, data_type))


def _float32(drawing: _Drawing, _: int) -> None:
    drawing.node("Gather", [drawing.stored("rows"), "ids"], "vectors")


def _float16(drawing: _Drawing, _: int) -> None:
    drawing.cast(drawing.node("Gather", [drawing.stored("rows"), "ids"], "halves"), "FLOAT", "vectors")


def _int8(drawing: _Drawing, _: int) -> None:
    codes = drawing.node("Gather", [drawing.stored("rows"), "ids"], "codes")
    numbers = drawing.cast(codes, "FLOAT", "numbers")
    # As a column, a scale multiplies its row by broadcasting; the bytes are the same.
    scales = drawing.stored("scales", (drawing.tensors["rows"].shape[0], 1))
    drawing.node("Mul", [numbers, drawing.node("Gather", [scales, "ids"], "factors")], "vectors")


def _int4(drawing: _Drawing, dimensions: int) -> None:
    codes = drawing.node("Gather", [drawing.stored("rows"), "ids"], "codes")
    places = drawing.cast(codes, "INT32", "places")
    pairs = drawing.node("Gather", [drawing.constant("pairs_of_bytes", pairs_of_bytes()), places], "pairs")
    numbers = _first(drawing, pairs, 2 * drawing.tensors["rows"].shape[1], dimensions)
    halves = drawing.node("Gather", [drawing.stored("scales"), "ids"], "halves")
    scales = drawing.cast(halves, "FLOAT", "scales_of_blocks")
    block_of_each = drawing.constant("block_of_each", np.arange(dimensions, dtype=np.int64) // INT4_BLOCK)
    drawing.node("Mul", [numbers, drawing.node("Gather", [scales, block_of_each], "factors", axis=1)], "vectors")


def _pq(drawing: _Drawing, dimensions: int) -> None:
    m, count, width = drawing.tensors["codebooks"].shape
    books = drawing.stored("codebooks", (m * count, width))
    centroids = drawing.node("Gather", [books, _centroid_places(drawing)], "centroids")
    numbers = _first(drawing, centroids, m * width, dimensions)
    drawing.node("Mul", [numbers, _lengths(drawing)], "vectors")


def _opq(drawing: _Drawing, dimensions: int) -> None:
    m, count, width = drawing.tensors["codebooks"].shape
    books = drawing.stored("codebooks", (m * count, width))
    centroids = drawing.node("Gather", [books, _centroid_places(drawing)], "centroids")
    parts = _first(drawing, centroids, m * width, m * width)
    rotated = drawing.node("Gemm", [parts, drawing.stored("rotation")], "rotated", transB=1)
    drawing.node("Mul", [rotated, _lengths(drawing)], "vectors")


def _rq(drawing: _Drawing, dimensions: int) -> None:
    from onnx import helper

    m, count, _ = drawing.tensors["codebooks"].shape
    columns = [_centroid_places(drawing)]
    if m > 1:
        parts = [f"place{i}" for i in range(m)]
        drawing.nodes.append(helper.make_node("Split", columns, parts, axis=1))
        columns = parts
    books = drawing.stored("codebooks", (m * count, dimensions))
    total = ""
    for i, column in enumerate(columns):
        centroid = drawing.node("Gather", [books, column], f"centroid{i}")
        total = drawing.node("Add", [total, centroid], f"sum{i}") if i else centroid
    drawing.node("Mul", [_first(drawing, total, dimensions, dimensions), _lengths(drawing)], "vectors")


def _centroid_places(drawing: _Drawing) -> str:
    """Return where each code of the rows stands in all codebooks one after the other, ``(n, m)``."""
    m, count = drawing.tensors["codebooks"].shape[:2]
    codes = drawing.node("Gather", [drawing.stored("rows"), "ids"], "codes")
    starts = drawing.constant("starts", count * np.arange(m, dtype=np.int32))
    return drawing.node("Add", [drawing.cast(codes, "INT32", "numbers_of_codes"), starts], "places")


def _lengths(drawing: _Drawing) -> str:
    codes = drawing.stored("length_codes", (drawing.tensors["rows"].shape[0], 1))
    places = drawing.cast(drawing.node("Gather", [codes, "ids"], "length_codes_of_rows"), "INT32", "length_places")
    return drawing.node("Gather", [drawing.stored("length_levels"), places], "lengths")


def _first(drawing: _Drawing, values: str, width: int, dimensions: int) -> str:
    """Return values of any shape as rows of ``width`` numbers, and of these the first ``dimensions``."""
    shape = drawing.constant("shape", np.array([-1, width], np.int64))
    rows = drawing.node("Reshape", [values, shape], "rows_of_numbers")
    if width == dimensions:
        return rows
    limits = [drawing.constant(name, np.array([at])) for name, at in (("begin", 0), ("end", dimensions), ("axis", 1))]
    return drawing.node("Slice", [rows, *limits], "first_numbers")


_GRAPHS: Mapping[str, Callable[[_Drawing, int], None]] = MappingProxyType(
    {"float32": _float32, "float16": _float16, "int8": _int8, "int4": _int4, "pq": _pq, "opq": _opq, "rq": _rq}
)


def check_onnx(path: Path) -> None:
    """Let ``onnx.checker`` judge a graph file beside its external data."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
