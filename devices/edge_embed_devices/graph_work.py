"""What a graph multiplies, read out of its file without an engine and without the package ``onnx``.

* Counted are products with weights: those of dense steps, once for each token of a text or once for an image, and those
  of convolutions, once for each point of what they make. Products of activations with one another (attention) are left
  out: of a text of 64 tokens they are 3 % in all-MiniLM.
* Weights that stand behind a step which only changes their form (a transposition, their scale) are found, too.
* The file has passed its gate: what is read here is believed, and is at worst a wrong number of products.

Fields are those of onnx.proto (IR version 10) and of TFLite's schema.fbs (version 3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from edge_embed.engines.onnx_files import Walk, varint
from edge_embed.engines.onnx_gate import check_graph_file
from edge_embed.engines.tflite_files import TYPES, Table, examine
from edge_embed.errors import BundleError
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph, EncoderModel

#: ONNX's operators that multiply with weights, those that only change the form of these, and those of a picture.
_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "Attention", "FusedMatMul"}
)
_FORMS = frozenset({"Transpose", "DequantizeLinear", "Cast", "Identity", "Reshape"})
_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger", "FusedConv"})
_STRIDING = _CONVOLUTIONS | {"MaxPool", "AveragePool"}
_BLOCKS = "MatMulNBits"
# TensorProto.DataType: uint8, int8.
_CODES_ONNX = frozenset({2, 3})
# BuiltinOperator: convolutions, and what else multiplies with weights (fully connected, a product of batches).
_CONVOLUTIONS_TFLITE, _PRODUCTS_TFLITE = frozenset({3, 4}), frozenset({9, 126})


class Work(NamedTuple):
    """What a graph takes for one token, or for one image."""

    #: Numbers that are multiplied and added.
    products: int
    #: Weights that are multiplied with, each counted once.
    weights: int
    #: The larger part of the products is of codes of 8 bits by codes.
    is_coded: bool


def works_of(bundle: Bundle) -> dict[str, Work]:
    """Return what the first graph of each encoder of a bundle takes, by the encoder's name.

    Raises:
        BundleError: a graph does not pass its gate.
    """
    encoders = [model for model in bundle.manifest.models if isinstance(model, EncoderModel)]
    return {model.name: work_of(bundle, model, model.graphs[0]) for model in encoders}


def work_of(bundle: Bundle, model: EncoderModel, graph: EncoderGraph) -> Work:
    """Return what a graph takes.

    Raises:
        BundleError: it does not pass its gate.
    """
    path, data = f"{bundle.folder}/{graph.blob}", bundle.map(graph.blob)
    if graph.format == "onnx":
        check_graph_file(path, data, {name: bundle.manifest.blobs[name].size_bytes for name in graph.blobs})
    try:
        if graph.format == "tflite":
            examine(data)
        return counted(data, graph.format, 0 if model.image is None else max(model.image.size))
    except ValueError as error:
        raise BundleError(f"{path}: expected a graph in {graph.format}, found: {error}") from error


def counted(data: memoryview, format: str, side: int = 0) -> Work:
    """Return what a graph's file takes, which has passed its gate; ``side`` is the longer one of its pictures."""
    steps = list(_of_onnx(data, side) if format == "onnx" else _of_tflite(data))
    products = sum(step.weights * step.times for step in steps)
    coded = sum(step.weights * step.times for step in steps if step.is_coded)
    return Work(products, sum(step.weights for step in steps), 2 * coded > products)


class _Step(NamedTuple):
    """The weights of one step, how often an answer goes through them, and whether both sides are codes."""

    weights: int
    times: int
    is_coded: bool


class _Weights(NamedTuple):
    """A constant: its shape, whether its numbers are codes, and whether these are scaled before they are multiplied."""

    shape: tuple[int, ...]
    is_coded: bool
    is_scaled: bool = False


def _of_onnx(data: memoryview, side: int) -> Iterator[_Step]:
    walk = Walk()
    graph = next((value for number, value in walk.messages(data) if number == 7), data[:0])
    parts = list(walk.messages(graph))
    stored = dict(_onnx_weights(walk, value) for number, value in parts if number == 5)
    # The longer side of the pictures that were made of the input.
    sides: dict[bytes, int] = {}
    # Values that were codes. Where both sides of a product were, engines multiply the codes.
    scaled: set[bytes] = set()
    for node in (_Node.read(walk, value) for number, value in parts if number == 1):
        before = next((sides[name] for name in node.takes if name in sides), side)
        after = -(-before // node.stride) if node.kind in _STRIDING else before
        sides |= dict.fromkeys(node.makes, after)
        if node.kind == _BLOCKS:
            yield _Step(node.numbers.get(b"K", 0) * node.numbers.get(b"N", 0), 1, False)
            continue
        if node.kind == "DequantizeLinear":
            scaled |= set(node.makes)
        known = [stored[name] for name in node.takes if name in stored and len(stored[name].shape) > 1]
        if not known:
            continue
        weights = max(known, key=lambda each: prod(each.shape))
        is_coded = weights.is_coded and (not weights.is_scaled or node.takes[0] in scaled)
        if node.kind in _FORMS:
            is_scaled = weights.is_scaled or node.kind == "DequantizeLinear"
            stored |= dict.fromkeys(node.makes, weights._replace(is_scaled=is_scaled))
        elif node.kind in _PRODUCTS:
            yield _Step(prod(weights.shape), 1, is_coded)
        elif node.kind in _CONVOLUTIONS:
            yield _Step(prod(weights.shape), max(1, after) ** 2, is_coded)


class _Node(NamedTuple):
    kind: str
    takes: tuple[bytes, ...]
    makes: tuple[bytes, ...]
    numbers: Mapping[bytes, int]

    @classmethod
    def read(cls, walk: Walk, data: memoryview) -> _Node:
        """Read a node: its operator, what it takes and makes, of its attributes the number, or the first of several."""
        fields = list(walk.messages(data))
        kind = next((bytes(value).decode("utf-8", "replace") for number, value in fields if number == 4), "")
        takes, makes = (tuple(bytes(value) for number, value in fields if number == side) for side in (1, 2))
        return cls(kind, takes, makes, dict(_onnx_attribute(walk, value) for number, value in fields if number == 5))

    @property
    def stride(self) -> int:
        """How many points of what it takes one step of it goes on."""
        return max(1, self.numbers.get(b"strides", 1))


def _onnx_attribute(walk: Walk, data: memoryview) -> tuple[bytes, int]:
    name, first = b"", 0
    for number, value in walk.fields(data):
        if number == 1 and isinstance(value, memoryview):
            name = bytes(value)
        elif number in (3, 8) and not first:
            first = value if isinstance(value, int) else varint(value, 0)[0] if len(value) else 0
    return name, first


def _onnx_weights(walk: Walk, data: memoryview) -> tuple[bytes, _Weights]:
    name, kind, shape = b"", 0, []
    for number, value in walk.fields(data):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 1 and isinstance(value, memoryview):
            at = 0
            while at < len(value):
                size, at = varint(value, at)
                shape.append(size)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, memoryview):
            name = bytes(value)
    return name, _Weights(tuple(shape), kind in _CODES_ONNX)


def _of_tflite(data: memoryview) -> Iterator[_Step]:
    model = Table(data, struct.unpack_from("<I", data)[0])
    codes = [max(table.number(4, "b"), table.number(10)) for table in model.tables(6)]
    # A constant has a buffer with bytes, inside of the flatbuffer or behind it.
    is_full = [table.number(8, "Q") > 0 or len(table.vector(4, 1)) > 0 for table in model.tables(12)]
    graph = next(model.tables(8))
    tensors = list(graph.tables(4))
    for operator in graph.tables(10):
        code, takes, makes = codes[operator.number(4, "I")], operator.numbers(6), operator.numbers(8)
        if code not in _CONVOLUTIONS_TFLITE | _PRODUCTS_TFLITE or len(takes) < 2 or takes[1] < 0 or not makes:
            continue
        weights = tensors[takes[1]]
        if not is_full[weights.number(8, "I")]:
            continue
        made = tensors[makes[0]].numbers(4)
        times = prod(made[1:3]) if code in _CONVOLUTIONS_TFLITE else 1
        yield _Step(prod(weights.numbers(4)), times, TYPES[weights.number(6, "b")][1] == 8)
