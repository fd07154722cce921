"""The gate for ``.tflite`` files: sound ones are described, all others are refused before an engine follows them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.engines.tflite_files import Detail, examine

schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")


def _tensor(name: str, shape: list[int], buffer: int = 0, **fields: Any) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, buffer, schema.TensorType.FLOAT32
    for field, value in fields.items():
        setattr(tensor, field, value)
    return tensor


def _operator(code: int, inputs: list[int], outputs: list[int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    return operator


def _code(name: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    return code


def _model() -> Any:
    """Return a model that adds a constant to its input, and takes the square root of that."""
    model = schema.ModelT()
    model.version = 3
    empty, data = schema.BufferT(), schema.BufferT()
    data.data = np.frombuffer(np.arange(4, dtype="<f4").tobytes(), np.uint8)
    model.buffers = [empty, data]
    model.operatorCodes = [_code("ADD"), _code("SQRT")]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [
        _tensor("x", [1, 4], shapeSignature=[-1, 4]),
        _tensor("c", [4], 1),
        _tensor("sum", [1, 4]),
        _tensor("root", [1, 4]),
    ]
    graph.operators = [_operator(0, [0, 1], [2]), _operator(1, [2], [3])]
    graph.inputs, graph.outputs = [0], [3]
    model.subgraphs = [graph]
    return model


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _changed(change: Callable[[Any], None]) -> bytes:
    model = _model()
    change(model)
    return _packed(model)


def test_a_sound_file_is_described() -> None:
    entry = examine(memoryview(_packed(_model()))).plain
    assert entry.signature is None
    assert entry.inputs == {"x": Detail("x", "float32", (-1, 4), None, 0)}
    assert entry.outputs == {"root": Detail("root", "float32", (1, 4), None, 0)}


def _quantized(model: Any) -> None:
    tensor = model.subgraphs[0].tensors[0]
    tensor.type, tensor.quantization = schema.TensorType.UINT8, schema.QuantizationParametersT()
    tensor.quantization.scale = np.array([0.5], np.float32)
    tensor.quantization.zeroPoint = np.array([128], np.int64)


def test_what_whole_numbers_mean_is_read() -> None:
    entry = examine(memoryview(_changed(_quantized))).plain
    assert entry.inputs["x"] == Detail("x", "uint8", (-1, 4), 0.5, 128)


def _signed(model: Any) -> None:
    signature, named = schema.SignatureDefT(), []
    for name, place in (("image", 0), ("vector", 3)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, place
        named.append(entry)
    signature.signatureKey, signature.inputs, signature.outputs = "serve", named[:1], named[1:]
    model.signatureDefs = [signature]


def test_signatures_name_their_inputs_and_outputs() -> None:
    (entry,) = examine(memoryview(_changed(_signed))).signatures
    assert entry.signature == "serve" and list(entry.inputs) == ["image"] and list(entry.outputs) == ["vector"]


def test_metadata_is_found_by_its_name() -> None:
    def described(model: Any) -> None:
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(b"hello", np.uint8)
        model.buffers.append(buffer)
        entry.name, entry.buffer = "TFLITE_METADATA", 2
        model.metadata = [entry]

    assert bytes(examine(memoryview(_changed(described))).metadata["TFLITE_METADATA"]) == b"hello"


def _second_graph(operator: str, options: str, **fields: Any) -> Callable[[Any], None]:
    """Return the change by which an operator runs a subgraph."""

    def change(model: Any) -> None:
        model.operatorCodes.append(_code(operator))
        runs = _operator(2, [2], [])
        runs.builtinOptions = getattr(schema, f"{options}T")()
        runs.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        for name, value in fields.items():
            setattr(runs.builtinOptions, name, value)
        model.subgraphs[0].operators.append(runs)
        model.subgraphs.append(_model().subgraphs[0])

    return change


def test_a_subgraph_may_run_a_later_one() -> None:
    later = _changed(_second_graph("CALL_ONCE", "CallOnceOptions", initSubgraphIndex=1))
    assert examine(memoryview(later)).plain.inputs


def _assigned(whose: Callable[[Any], Any], **fields: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name, value in fields.items():
            setattr(whose(model), name, value)

    return change


def _set(**fields: Any) -> Callable[[Any], None]:
    return _assigned(lambda model: model.subgraphs[0], **fields)


def _of_tensor(place: int, **fields: Any) -> Callable[[Any], None]:
    return _assigned(lambda model: model.subgraphs[0].tensors[place], **fields)


def _of_operator(**fields: Any) -> Callable[[Any], None]:
    return _assigned(lambda model: model.subgraphs[0].operators[0], **fields)


def _custom(model: Any) -> None:
    model.operatorCodes[0] = _code("CUSTOM")
    model.operatorCodes[0].customCode = "FlexEverything"


def _delegate(model: Any) -> None:
    model.operatorCodes[0] = _code("DELEGATE")


def _elsewhere(offset: int, size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, offset, size

    return change


def _stablehlo(model: Any) -> None:
    kind, options = schema.BuiltinOptions2.StablehloReduceOptions, schema.StablehloReduceOptionsT()
    _of_operator(builtinOptions2Type=kind, builtinOptions2=options)(model)


def _sparse(model: Any) -> None:
    model.subgraphs[0].tensors[1].sparsity = schema.SparsityParametersT()


def _scales(*scales: float, axis: int = 0) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[1].quantization = quantization = schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = np.array(scales, np.float32), np.zeros(len(scales), np.int64)
        quantization.quantizedDimension = axis

    return change


def _wrong_signature(model: Any) -> None:
    _signed(model)
    model.signatureDefs[0].inputs[0].tensorIndex = 1


def _signature_of_nothing(model: Any) -> None:
    _signed(model)
    model.signatureDefs[0].subgraphIndex = 7


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "no subgraph": (lambda model: setattr(model, "subgraphs", []), "no subgraph or no buffers"),
    "an input that is not there": (_set(inputs=[9]), "a tensor 9 of 4"),
    "an output before the first": (_set(outputs=[-1]), "a tensor -1 of 4"),
    "an output that nothing writes": (
        lambda model: model.subgraphs[0].operators.pop(),
        "an output 'root' that nothing",
    ),
    "a buffer that is not there": (_of_tensor(1, buffer=5), "a buffer 5 of 2"),
    "a constant of too many numbers": (
        _of_tensor(1, shape=[5]),
        r"16 bytes for 'c', which is float32 \(5,\) and takes 20",
    ),
    "a constant of another type": (_of_tensor(1, type=schema.TensorType.INT8), "16 bytes for 'c', which is int8"),
    "a type that nobody knows": (_of_tensor(0, type=99), "a tensor 'x' of the unknown type 99"),
    "a negative axis": (_of_tensor(2, shape=[1, -4]), "a tensor 'sum' of the shape"),
    "an activation of terabytes": (_of_tensor(2, shape=[2**20, 2**20]), "a tensor 'sum' of the shape"),
    "a shape and another": (_of_tensor(0, shapeSignature=[-1]), "a tensor 'x' of the shape"),
    "a tensor in another file": (_of_tensor(1, externalBuffer=1), "in another file"),
    "sparse weights": (_sparse, "a tensor 'c' that is sparse"),
    "scales for an axis of another length": (_scales(1, 2, 3), "3 scales for axis 0 of 'c'"),
    "scales for no axis": (_scales(1, 2, 3, 4, axis=3), "4 scales for axis 3"),
    "an operator that is not there": (_of_operator(opcodeIndex=2), "an operator's code 2 of 2"),
    "an input of an operator that is not there": (_of_operator(inputs=[0, 4]), "a tensor 4 of 4"),
    "a cycle": (_of_operator(inputs=[0, 3]), "an operator that reads 'root' before it is written"),
    "an operator that writes its input": (_of_operator(outputs=[0]), "a second writer of 'x'"),
    "an operator that writes the weights": (_of_operator(outputs=[1]), "a second writer of 'c'"),
    "a custom operator": (_custom, "the custom operator 'FlexEverything'"),
    "a delegate": (_delegate, "the operator 51, which is none of a model"),
    "an operator of another dialect": (_stablehlo, "an operator of StableHLO"),
    "a buffer past the end": (_elsewhere(64, 2**40), "a buffer of 1099511627776 bytes at byte 64"),
    "a buffer whose end wraps": (_elsewhere(2**64 - 8, 16), "a buffer of 16 bytes at byte"),
    "a subgraph that runs itself": (
        _second_graph("CALL_ONCE", "CallOnceOptions", initSubgraphIndex=0),
        "subgraph 0 that runs subgraph 0 of 2",
    ),
    "a loop over a subgraph that is not there": (
        _second_graph("WHILE", "WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2),
        "subgraph 0 that runs subgraph 2 of 2",
    ),
    "a signature of a constant": (_wrong_signature, "a signature of the tensor 1, which is no end"),
    "a signature of no subgraph": (_signature_of_nothing, "a subgraph 7 of 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_engine_would_follow_into_the_dark_is_refused(name: str) -> None:
    change, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        examine(memoryview(_changed(change)))


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", bytes(64), b"\x08\x00\x00\x00TFL3", b"\xff" * 4 + b"TFL3" + b"\xff" * 64]
)
def test_what_is_no_flatbuffer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        examine(memoryview(data))


def test_every_cut_and_every_changed_byte_is_a_refusal_or_a_description() -> None:
    good = _changed(_signed)
    for cut in range(len(good)):
        with pytest.raises(ValueError):
            examine(memoryview(good[:cut]))
    for seed in range(3000):
        dice = random.Random(seed)  # noqa: S311, no secrets here
        bad = bytearray(good)
        for _ in range(dice.choice((1, 1, 2, 5))):
            place = dice.randrange(len(bad) - 4)
            bad[place : place + 4] = dice.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", dice.randbytes(4)))
        try:
            examine(memoryview(bytes(bad)))
        except ValueError as error:
            assert str(error)


def test_tables_that_share_their_tables_without_end_are_refused_in_time() -> None:
    # A vector of many entries that are all one table: a file of some KiB that would be followed a million times.
    model = _model()
    model.subgraphs *= 2000
    model.subgraphs[0].tensors *= 700
    with pytest.raises(ValueError, match="more than 100000 tables"):
        examine(memoryview(_shared(model)))


def _shared(model: Any) -> bytes:
    """Pack a model each of whose subgraphs is the first one, by offset."""
    count = len(model.subgraphs)
    model.subgraphs = model.subgraphs[:1]
    builder = flatbuffers.Builder(1024)
    graph = model.subgraphs[0].Pack(builder)
    codes = [code.Pack(builder) for code in model.operatorCodes]
    buffers = [buffer.Pack(builder) for buffer in model.buffers]

    def vector(entries: list[int]) -> int:
        builder.StartVector(4, len(entries), 4)
        for entry in reversed(entries):
            builder.PrependUOffsetTRelative(entry)
        made: int = builder.EndVector()
        return made

    vectors = [vector(entries) for entries in ([graph] * count, codes, buffers)]
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, vectors[0])
    schema.ModelAddOperatorCodes(builder, vectors[1])
    schema.ModelAddBuffers(builder, vectors[2])
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def _offsets(builder: Any, entries: list[int]) -> int:
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    made: int = builder.EndVector()
    return made


def _one_graph(builder: Any, tensors: list[int], operators: list[int], inputs: list[int], maps: list[int]) -> bytes:
    """Pack a model of one subgraph from tables that are packed already, so that some may be there many times."""
    ends = builder.CreateNumpyVector(np.array(inputs, np.int32))
    vectors = [_offsets(builder, tensors), _offsets(builder, operators)]
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, vectors[0])
    schema.SubGraphAddOperators(builder, vectors[1])
    schema.SubGraphAddInputs(builder, ends)
    graphs = _offsets(builder, [schema.SubGraphEnd(builder)])
    codes = _offsets(builder, [_code("ADD").Pack(builder)])
    buffers = _offsets(builder, [schema.BufferT().Pack(builder)])
    named = _offsets(builder, maps)
    schema.SignatureDefStart(builder)
    schema.SignatureDefAddInputs(builder, named)
    signatures = _offsets(builder, [schema.SignatureDefEnd(builder)])
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    schema.ModelAddOperatorCodes(builder, codes)
    schema.ModelAddBuffers(builder, buffers)
    schema.ModelAddSignatureDefs(builder, signatures)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def _operators_of_many_inputs(builder: Any) -> bytes:
    tensor = _tensor("x", [1]).Pack(builder)
    operator = _operator(0, [0] * 50_000, []).Pack(builder)
    return _one_graph(builder, [tensor], [operator] * 100, [0], [])


def _tensors_of_one_long_name(builder: Any) -> bytes:
    tensor = _tensor("x" * 200_000, [1]).Pack(builder)
    return _one_graph(builder, [tensor] * 100, [], [0], [])


def _operators_of_wide_options(builder: Any) -> bytes:
    tensor = _tensor("x", [1]).Pack(builder)
    builder.StartObject(30_000)
    builder.PrependInt32Slot(29_999, 1, 0)
    options = builder.EndObject()
    schema.OperatorStart(builder)
    schema.OperatorAddBuiltinOptions(builder, options)
    operator = schema.OperatorEnd(builder)
    return _one_graph(builder, [tensor], [operator] * 200, [0], [])


@pytest.mark.parametrize("pack", [_operators_of_many_inputs, _tensors_of_one_long_name, _operators_of_wide_options])
def test_tables_that_share_a_long_vector_are_refused_in_time(pack: Callable[[Any], bytes]) -> None:
    data = pack(flatbuffers.Builder(1024))
    assert len(data) < 300_000
    with pytest.raises(ValueError, match="more than 16777216 bytes of numbers and names"):
        examine(memoryview(data))


def test_a_signature_finds_its_ends_among_many_in_time() -> None:
    builder = flatbuffers.Builder(1024)
    tensors = [_tensor(name, [1]).Pack(builder) for name in "xy"]
    end = schema.TensorMapT()
    end.name, end.tensorIndex = "y", 1
    data = _one_graph(builder, tensors, [], [0] * 200_000 + [1], [end.Pack(builder)] * 20_000)
    start = time.process_time()
    (entry,) = examine(memoryview(data)).signatures
    # Looking through all ends for each took 100 seconds, 2026-11; the limit leaves room for a slow machine.
    assert list(entry.inputs) == ["y"] and time.process_time() - start < 10


def test_real_files_are_sound(shared_data: Path) -> None:
    mobilenet = shared_data / "image" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    entry = examine(memoryview(mobilenet.read_bytes())).plain
    assert entry.inputs["input"] == Detail("input", "uint8", (1, 224, 224, 3), 0.0078125, 128)
    assert [detail.shape for detail in entry.outputs.values()] == [(1, 1, 1, 1024)]
    text = shared_data / "text-tflite" / "regex_one_embedding_with_metadata.tflite"
    assert "TFLITE_METADATA" in examine(memoryview(text.read_bytes())).metadata
