"""A TFLite model in the making: tensors, constants and operators, one call each; packed by the schema's own classes.

Large weights are not in the flatbuffer: a buffer may lie behind it, at an offset of the file (schema.fbs:
``Buffer.offset``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError
from edge_embed_bundle.values import Tensor

_TYPES = {"int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32"} | {
    "float16": "FLOAT16",
    "float32": "FLOAT32",
    "bool": "BOOL",
}


class Drawing:
    """Subgraphs, one after the other. Every method that adds an operator returns the index of the operator's result."""

    def __init__(self) -> None:
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise MissingExtraError.of("ai-edge-litert", "export", "writing a TFLite graph") from error
        self._schema: Any = schema
        # Buffer 0 is empty by the format's convention: tensors without constant data name it.
        self._buffers: list[Any] = [schema.BufferT()]
        self._tensors: list[Any] = []
        self._codes: list[tuple[str, int]] = []
        self._operators: list[Any] = []
        self._subgraphs: list[Any] = []
        self._signatures: list[Any] = []

    def dynamic(self, name: str, dtype: str, shape: Sequence[int]) -> int:
        """Add a tensor of a batch, whose first axis is as long as the ids are."""
        return self.free(name, dtype, [-1, *shape])

    def free(self, name: str, dtype: str, shape: Sequence[int]) -> int:
        """Add a tensor whose axes of -1 are as long as the input makes them."""
        tensor = self._tensor(name, dtype, [1 if length < 0 else length for length in shape], 0)
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        return len(self._tensors) - 1

    def stored(
        self, name: str, dtype: str, shape: Sequence[int], place: Tensor, *, quantized_by: float | None = None
    ) -> int:
        """Add a tensor whose bytes lie behind the flatbuffer; codes of one scale where ``quantized_by`` says so."""
        buffer = self._schema.BufferT()
        buffer.offset, buffer.size = place.offset_bytes, place.size_bytes
        self._buffers.append(buffer)
        tensor = self._tensor(name, dtype, list(shape), len(self._buffers) - 1)
        if quantized_by is not None:
            tensor.quantization = self._schema.QuantizationParametersT()
            tensor.quantization.scale = np.array([quantized_by], np.float32)
            tensor.quantization.zeroPoint = np.zeros(1, np.int64)
        return len(self._tensors) - 1

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """Add a small tensor whose bytes are in the flatbuffer."""
        buffer = self._schema.BufferT()
        little = values.astype(values.dtype.newbyteorder("<"))
        buffer.data = np.frombuffer(little.tobytes(), np.uint8)
        self._buffers.append(buffer)
        self._tensor(name, values.dtype.name, list(values.shape), len(self._buffers) - 1)
        return len(self._tensors) - 1

    def width(self, tensor: int) -> int:
        """Return the length of a tensor's last axis."""
        return int(self._tensors[tensor].shape[-1])

    def gather(self, values: int, places: int, result: int, *, axis: int = 0) -> int:
        """GATHER slices of ``values`` along an axis."""
        options = self._schema.GatherOptionsT()
        options.axis = axis
        return self._add("GATHER", [values, places], [result], options)

    def cast(self, values: int, result: int) -> int:
        """CAST numbers to the type of the result."""
        options = self._schema.CastOptionsT()
        options.inDataType, options.outDataType = self._tensors[values].type, self._tensors[result].type
        return self._add("CAST", [values], [result], options)

    def bitcast(self, values: int, result: int) -> int:
        """BITCAST numbers: the same bits under the type of the result."""
        return self._add("BITCAST", [values], [result], self._schema.BitcastOptionsT())

    def add(self, a: int, b: int, result: int) -> int:
        """ADD two tensors."""
        return self._add("ADD", [a, b], [result], self._schema.AddOptionsT())

    def multiply(self, a: int, b: int, result: int) -> int:
        """MUL two tensors."""
        return self._add("MUL", [a, b], [result], self._schema.MulOptionsT())

    def fully_connected(self, values: int, weights: int, result: int) -> int:
        """FULLY_CONNECTED: rows times the transposed weights."""
        return self._add("FULLY_CONNECTED", [values, weights, -1], [result], self._schema.FullyConnectedOptionsT())

    def reshape(self, values: int, shape: int, result: int) -> int:
        """RESHAPE to a constant shape."""
        return self._add("RESHAPE", [values, shape], [result], self._schema.ReshapeOptionsT())

    def take_first(self, values: int, begin: int, size: int, result: int) -> int:
        """SLICE by constant begins and sizes."""
        return self._add("SLICE", [values, begin, size], [result], self._schema.SliceOptionsT())

    def split(self, values: int, axis: int, results: list[int]) -> list[int]:
        """SPLIT along a constant axis into equal parts."""
        options = self._schema.SplitOptionsT()
        options.numSplits = len(results)
        self._add("SPLIT", [axis, values], results, options)
        return results

    def operator(
        self, name: str, inputs: list[int], result: int, options: str = "", *, version: int = 1, **values: Any
    ) -> int:
        """Add an operator by its name; ``options`` names its table of options, whose fields ``values`` are."""
        made = getattr(self._schema, f"{options}T")() if options else None
        for field, value in values.items():
            setattr(made, field, value)
        return self._add(name, inputs, [result], made, version)

    def finish(self, name: str, inputs: list[int], output: int, *, signed: bool = False) -> None:
        """End a subgraph, from some tensors to one; the next begins empty, over the same buffers.

        Subgraph 0 is what an interpreter runs; another is asked for by the signature of its name.
        """
        schema = self._schema
        graph = schema.SubGraphT()
        graph.name = name
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = inputs, [output]
        if signed:
            signature = schema.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = name, len(self._subgraphs)
            signature.inputs = [self._named(tensor) for tensor in inputs]
            signature.outputs = [self._named(output)]
            self._signatures.append(signature)
        self._subgraphs.append(graph)
        self._tensors, self._operators = [], []

    def _named(self, tensor: int) -> Any:
        named = self._schema.TensorMapT()
        named.name, named.tensorIndex = self._tensors[tensor].name, tensor
        return named

    def packed(self, description: str = "edge-embed lookup") -> bytes:
        """Return the bytes of the model."""
        import flatbuffers

        schema = self._schema
        model = schema.ModelT()
        model.version = 3
        model.description = description
        model.buffers, model.subgraphs = self._buffers, self._subgraphs
        if self._signatures:
            model.signatureDefs = self._signatures
        model.operatorCodes = [_operator_code(schema, name, version) for name, version in self._codes]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _tensor(self, name: str, dtype: str, shape: list[int], buffer: int) -> Any:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, shape, buffer
        tensor.type = getattr(self._schema.TensorType, _TYPES[dtype])
        self._tensors.append(tensor)
        return tensor

    def _add(self, name: str, inputs: list[int], outputs: list[int], options: Any, version: int = 1) -> int:
        if (name, version) not in self._codes:
            self._codes.append((name, version))
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.index((name, version))
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind, 0)
            operator.builtinOptions = options
        self._operators.append(operator)
        return outputs[0]


def _operator_code(schema: Any, name: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    # The field of readers from before 2020 holds a byte; 127 in it points to the other field.
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code
