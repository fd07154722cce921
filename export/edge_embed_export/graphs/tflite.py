"""The lookup graph in TFLite: GATHER the codes, CAST them, MUL by the gathered scales. No TensorFlow is needed.

A TFLite buffer may lie behind the flatbuffer, at an offset of the file (schema.fbs: ``Buffer.offset``). So a
``.tflite`` is a graph of a kilobyte followed by the table's sections on their 64 KiB boundaries, where the runtime and
the ONNX graph map the same bytes.

Per-row EMBEDDING_LOOKUP and HASHTABLE operations are not used: tflite-runtime 2.14 answers them wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_embed.errors import MissingExtraError
from edge_embed_bundle.manifest import Tensor
from edge_embed_bundle.writer import aligned


def tflite_header(codec: str, weights: Sequence[tuple[str, tuple[int, ...]]], blob: str) -> tuple[bytes, list[Tensor]]:
    """Return the graph's bytes and the places of the weights behind it.

    Args:
        codec: the table's codec.
        weights: dtype and shape of each of the codec's tensors, the rows first.
        blob: the name of the file.
    """
    # The offsets are fixed-width fields, so the header is as long with the right ones as with any others.
    length = len(_flatbuffer(codec, [Tensor(blob, 1, dtype, shape) for dtype, shape in weights]))
    places = []
    offset = aligned(length)
    for dtype, shape in weights:
        places.append(Tensor(blob, offset, dtype, shape))
        offset = aligned(offset + places[-1].size_bytes)
    header = _flatbuffer(codec, places)
    if len(header) != length:
        raise AssertionError("a flatbuffer's length depends on its offsets")
    return header, places


def _flatbuffer(codec: str, weights: Sequence[Tensor]) -> bytes:
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtraError.of("ai-edge-litert", "export", "writing a TFLite graph") from error
    model = schema.ModelT()
    model.version = 3
    model.description = "edge-embed lookup"
    # Buffer 0 is empty by the format's convention: tensors without constant data name it.
    model.buffers = [schema.BufferT(), *(_buffer(schema, weight) for weight in weights)]
    model.operatorCodes = [_operator_code(schema, name) for name in ("GATHER", "CAST", "MUL")]
    model.subgraphs = [_int8_graph(schema, weights) if codec == "int8" else _float32_graph(schema, weights)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _int8_graph(schema: Any, weights: Sequence[Tensor]) -> Any:
    rows, dimensions = weights[0].shape
    types = schema.TensorType
    graph = schema.SubGraphT()
    graph.name = "lookup"
    graph.tensors = [
        _tensor(schema, "ids", [1], types.INT32, dynamic=True),
        _tensor(schema, "rows", [rows, dimensions], types.INT8, buffer=1),
        _tensor(schema, "scales", [rows, 1], types.FLOAT32, buffer=2),
        _tensor(schema, "codes", [1, dimensions], types.INT8, dynamic=True),
        _tensor(schema, "numbers", [1, dimensions], types.FLOAT32, dynamic=True),
        _tensor(schema, "factors", [1, 1], types.FLOAT32, dynamic=True),
        _tensor(schema, "vectors", [1, dimensions], types.FLOAT32, dynamic=True),
    ]
    cast = schema.CastOptionsT()
    cast.inDataType, cast.outDataType = types.INT8, types.FLOAT32
    options = schema.BuiltinOptions
    graph.operators = [
        _operator(schema, 0, [1, 0], 3, options.GatherOptions, schema.GatherOptionsT()),
        _operator(schema, 1, [3], 4, options.CastOptions, cast),
        _operator(schema, 0, [2, 0], 5, options.GatherOptions, schema.GatherOptionsT()),
        _operator(schema, 2, [4, 5], 6, options.MulOptions, schema.MulOptionsT()),
    ]
    graph.inputs, graph.outputs = [0], [6]
    return graph


def _float32_graph(schema: Any, weights: Sequence[Tensor]) -> Any:
    rows, dimensions = weights[0].shape
    types = schema.TensorType
    graph = schema.SubGraphT()
    graph.name = "lookup"
    graph.tensors = [
        _tensor(schema, "ids", [1], types.INT32, dynamic=True),
        _tensor(schema, "rows", [rows, dimensions], types.FLOAT32, buffer=1),
        _tensor(schema, "vectors", [1, dimensions], types.FLOAT32, dynamic=True),
    ]
    graph.operators = [
        _operator(schema, 0, [1, 0], 2, schema.BuiltinOptions.GatherOptions, schema.GatherOptionsT()),
    ]
    graph.inputs, graph.outputs = [0], [2]
    return graph


def _buffer(schema: Any, weight: Tensor) -> Any:
    buffer = schema.BufferT()
    buffer.offset, buffer.size = weight.offset_bytes, weight.size_bytes
    return buffer


def _operator_code(schema: Any, name: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 1
    return code


def _tensor(schema: Any, name: str, shape: list[int], kind: int, *, buffer: int = 0, dynamic: bool = False) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, buffer
    if dynamic:
        tensor.shapeSignature = [-1, *shape[1:]]
    return tensor


def _operator(schema: Any, code: int, inputs: list[int], output: int, kind: int, options: Any) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, [output]
    operator.builtinOptionsType, operator.builtinOptions = kind, options
    return operator
