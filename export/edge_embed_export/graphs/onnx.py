"""The lookup graph in ONNX: Gather the stored rows, then decode the gathered ones.

The table is external data in a blob of the bundle, so ONNX Runtime maps it. Decoding the whole table first (a
DequantizeLinear before the Gather) would make it private and slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_embed.errors import MissingExtraError
from edge_embed_bundle.manifest import Tensor

_OPSET = 17
# The oldest file version with that opset: older engines than ours may read it, too.
_IR_VERSION = 8


def onnx_lookup(codec: str, tensors: Mapping[str, Tensor], dimensions: int) -> bytes:
    """Return the graph file for a codec's tensors; its weights stay where ``tensors`` says."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingExtraError.of("onnx", "export", "writing an ONNX graph") from error
    rows = tensors["rows"]
    if codec == "int8":
        # As a column, a scale multiplies its row by broadcasting; the bytes are the same.
        nodes = [
            helper.make_node("Gather", ["rows", "ids"], ["codes"], axis=0),
            helper.make_node("Cast", ["codes"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["scales", "ids"], ["factors"], axis=0),
            helper.make_node("Mul", ["numbers", "factors"], ["vectors"]),
        ]
        weights = [
            _external("rows", TensorProto.INT8, rows.shape, rows),
            _external("scales", TensorProto.FLOAT, (rows.shape[0], 1), tensors["scales"]),
        ]
    else:
        nodes = [helper.make_node("Gather", ["rows", "ids"], ["vectors"], axis=0)]
        weights = [_external("rows", TensorProto.FLOAT, rows.shape, rows)]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dimensions])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    model.producer_name = "edge-embed"
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def check_onnx(path: Path) -> None:
    """Let ``onnx.checker`` judge a graph file beside its external data."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)


def _external(name: str, data_type: int, shape: tuple[int, ...], tensor: Tensor) -> Any:
    from onnx import TensorProto

    weight = TensorProto()
    weight.name = name
    weight.data_type = data_type
    weight.dims.extend(shape)
    weight.data_location = TensorProto.EXTERNAL
    place = {"location": tensor.blob, "offset": tensor.offset_bytes, "length": tensor.size_bytes}
    for key, value in place.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, str(value)
    return weight
