"""A text encoder in ONNX: token ids in, a vector out. No torch is needed.

* ``ids`` ``(n, length)``, ``vectors`` ``(n, d)``; any length. Texts of one length alone go together, so nothing is ever
  padded, and there is no mask. Every row is computed as if it were alone, to the last bit: pooling is a pool over
  each channel, since ONNX Runtime adds a ReduceMean of one row in another order than that of several.
* Operators of the standard alone, but for ``int8-blocks``: ONNX Runtime runs them as fast as its own fused ones
  (MiniLM, 128 tokens, one thread of this day's Xeon: 26 ms against 31), and any engine knows them.
* ``int8``: weights have a scale for each output, activations one for each *token*, taken as it comes. The one scale for
  a whole tensor that DynamicQuantizeLinear takes makes a text's vector hang on the texts beside it (off by .04), and
  costs more: a mean cosine of .9940 against .9973 (STS-B). Codes of activations are uint8 around 128: ONNX Runtime's
  kernels for int8 by int8 are ten times as slow on x86-64.
* ``int8-blocks``: weights have a scale for each block of 32 (MatMulNBits, ONNX Runtime's own operator): a mean cosine
  of .9997, and float32's speed at a quarter of its size.
* Large weights are external data, which ONNX Runtime maps; small ones stand in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_bundle.values import Tensor
from edge_embed_bundle.writer import BlobWriter
from edge_embed_export.codecs import encode_int8
from edge_embed_export.graphs.onnx import Drawing, Value
from edge_embed_export.matrix import Matrix, blocks_of
from edge_embed_export.transformer import Layer, Linear, Norm, Transformer

VARIANTS = ("float32", "int8", "int8-blocks")
POOLINGS = ("mean", "cls", "max")

# The first with Gelu, and the file version that came with it.
_OPSET = 20
_IR_VERSION = 9
_BLOCK = 32
# What int8 kernels of activations compute in: 4 is int8 by int8.
_ACCURACY_LEVEL = 4
#: What is smaller stands in the graph: of so many bytes a page of its own would be mostly empty.
_INSIDE_BYTES = 16 * 2**10
_ALIGNMENT = 4096
_ZERO_POINT = 128
_LARGEST_CODE = 127.0
# A token of zeros has a scale, too.
_SMALLEST = 1e-20


def draw_text(
    model: Transformer, variant: str, *, pooling: str, normalize: bool, longest: int, weights: BlobWriter
) -> bytes:
    """Write a transformer's weights into a blob, layer by layer, and return the graph file over them."""
    if variant not in VARIANTS or pooling not in POOLINGS or not 1 <= longest <= model.longest:
        raise ValueError(f"no graph of {variant}, {pooling}, {longest} tokens")
    pen = _Pen(weights, variant)
    states = pen.norm("norm", _embedded(pen, model, longest), model.norm, model.epsilon)
    for i in range(model.layers):
        states = _layer(pen, model, model.layer(i), states, f"{i}.")
    _vector(pen, states, pooling, normalize)
    output = Value("vectors", "float32", ("n", model.width))
    return pen.packed("encode", [Value("ids", "int64", ("n", "length"))], output, ir_version=_IR_VERSION)


class _Pen(Drawing):
    """A drawing that writes its large weights as it goes, and knows how a variant stores those of a matrix."""

    def __init__(self, weights: BlobWriter, variant: str) -> None:
        super().__init__({}, _OPSET)
        self._places: dict[str, Tensor] = {}
        self.tensors: Mapping[str, Tensor] = self._places
        self._blob = weights
        self._written = 0
        self._variant = variant
        self._known: set[str] = set()

    def weight(self, name: str, values: Matrix, *, outside: bool = False) -> str:
        """Add an array, where its size or the caller says: in the graph or in the blob, there block by block."""
        if values.nbytes < _INSIDE_BYTES and not outside:
            return self.constant(name, np.ascontiguousarray(values[:]))
        gap = -self._written % _ALIGNMENT
        self._blob.write(bytes(gap))
        self._places[name] = Tensor(self._blob.name, self._written + gap, values.dtype.name, values.shape)
        for block in blocks_of(values):
            self._blob.write(np.ascontiguousarray(values[block], values.dtype.newbyteorder("<")).data.cast("B"))
        self._written += gap + values.nbytes
        return self.stored(name)

    def once(self, name: str, values: NDArray[Any]) -> str:
        """Add a small constant that several nodes share."""
        if name not in self._known:
            self._known.add(name)
            self.constant(name, values)
        return name

    def number(self, name: str, value: float) -> str:
        """Add a float32 that several nodes share."""
        return self.once(name, np.array(value, np.float32))

    def norm(self, name: str, values: str, norm: Norm, epsilon: float) -> str:
        """Add a layer normalization."""
        parts = [values, self.weight(f"{name}.weight", norm.weight), self.weight(f"{name}.bias", norm.bias)]
        return self.node("LayerNormalization", parts, name, epsilon=epsilon)

    def linear(self, name: str, values: str, linear: Linear) -> str:
        """Add a dense step, its weights as the variant stores them."""
        if self._variant == "float32":
            weight = self.weight(f"{name}.weight", np.ascontiguousarray(linear.weight.T))
            product = self.node("MatMul", [values, weight], f"{name}.product")
            return self.node("Add", [product, self.weight(f"{name}.bias", linear.bias)], name)
        if self._variant == "int8-blocks" and not linear.weight.shape[1] % _BLOCK:
            return self._linear_in_blocks(name, values, linear)
        codes, scales = self._quantized_tokens(values)
        stored = encode_int8(linear.weight)
        weight = self.weight(f"{name}.codes", np.ascontiguousarray(stored["rows"][:].T))
        zero = self.once("zero_point", np.array(_ZERO_POINT, np.uint8))
        product = self.node("MatMulInteger", [codes, weight, zero], f"{name}.sums")
        numbers = self.cast(product, "FLOAT", f"{name}.numbers")
        by_token = self.node("Mul", [numbers, scales], f"{name}.by_token")
        scaled = self.node("Mul", [by_token, self.weight(f"{name}.scales", stored["scales"])], f"{name}.product")
        return self.node("Add", [scaled, self.weight(f"{name}.bias", linear.bias)], name)

    def _quantized_tokens(self, values: str) -> tuple[str, str]:
        """Return values as codes ``(n, length, k)``, uint8 around 128, and each token's scale ``(n, length, 1)``."""
        codes, scales = f"{values}.codes_of_tokens", f"{values}.scales_of_tokens"
        if codes in self._known:
            return codes, scales
        self._known.add(codes)
        last = self.once("last_axis", np.array([-1]))
        sizes = self.node("Abs", [values], f"{values}.sizes")
        largest = self.node("ReduceMax", [sizes, last], f"{values}.largest", keepdims=1)
        largest = self.node("Max", [largest, self.number("smallest", _SMALLEST)], f"{values}.range")
        steps = self.node("Div", [self.number("largest_code", _LARGEST_CODE), largest], f"{values}.steps")
        rounded = self.node("Round", [self.node("Mul", [values, steps], f"{values}.scaled")], f"{values}.rounded")
        shifted = self.node("Add", [rounded, self.number("shift", _ZERO_POINT)], f"{values}.shifted")
        self.cast(shifted, "UINT8", codes)
        self.node("Mul", [largest, self.number("a_code", 1 / _LARGEST_CODE)], scales)
        return codes, scales

    def _linear_in_blocks(self, name: str, values: str, linear: Linear) -> str:
        outputs, inputs = linear.weight.shape
        blocks = linear.weight.reshape(outputs, inputs // _BLOCK, _BLOCK)
        scales = np.abs(blocks).max(axis=2) / np.float32(_LARGEST_CODE)
        codes = np.rint(blocks / np.where(scales > 0, scales, 1)[:, :, np.newaxis]) + _ZERO_POINT
        parts = [
            values,
            self.weight(f"{name}.codes", codes.astype(np.uint8)),
            self.weight(f"{name}.scales", scales.reshape(-1)),
            "",
            "",
            self.weight(f"{name}.bias", linear.bias),
        ]
        how = {"K": inputs, "N": outputs, "bits": 8, "block_size": _BLOCK, "accuracy_level": _ACCURACY_LEVEL}
        return self.node("MatMulNBits", parts, name, domain="com.microsoft", **how)


def _embedded(pen: _Pen, model: Transformer, longest: int) -> str:
    """Draw a token's row and its position's ``(n, length, d)``."""
    if pen._variant == "float32":
        words = pen.node("Gather", [pen.weight("words", model.words, outside=True), "ids"], "words_of_ids")
    else:
        stored = encode_int8(model.words)
        codes = pen.node("Gather", [pen.weight("words.codes", stored["rows"], outside=True), "ids"], "codes_of_ids")
        # As a column, a scale multiplies its row by broadcasting.
        column = pen.weight("words.scales", stored["scales"][:].reshape(-1, 1))
        scales = pen.node("Gather", [column, "ids"], "scales_of_ids")
        words = pen.node("Mul", [pen.cast(codes, "FLOAT", "numbers_of_ids"), scales], "words_of_ids")
    length = pen.node("Shape", ["ids"], "length", start=1, end=2)
    # An own array: a slice of a mapped table would be written as a view of it.
    positions = pen.weight("positions", np.ascontiguousarray(model.positions[:longest]))
    used = pen.node("Slice", [positions, pen.once("first", np.array([0])), length], "positions_of_ids")
    return pen.node("Add", [words, used], "embedded")


def _layer(pen: _Pen, model: Transformer, layer: Layer, states: str, name: str) -> str:
    """Draw attention and two dense steps, each with its residual and its normalization."""
    parts = (layer.query, layer.key, layer.value)
    joined = Linear(np.concatenate([part.weight for part in parts]), np.concatenate([part.bias for part in parts]))
    query, key, value = pen.split(
        pen.linear(f"{name}attention", states, joined), (f"{name}query", f"{name}key", f"{name}value"), axis=2
    )
    heads, size = model.heads, model.width // model.heads
    apart = pen.once("apart", np.array([0, 0, heads, size]))
    together = pen.once("together", np.array([0, 0, model.width]))

    def by_head(values: str, order: tuple[int, ...]) -> str:
        shaped = pen.node("Reshape", [values, apart], f"{values}.apart")
        return pen.node("Transpose", [shaped], f"{values}.by_head", perm=order)

    scores = pen.node("MatMul", [by_head(query, (0, 2, 1, 3)), by_head(key, (0, 2, 3, 1))], f"{name}scores")
    scaled = pen.node("Mul", [scores, pen.number("attention_scale", size**-0.5)], f"{name}scaled")
    shares = pen.node("Softmax", [scaled], f"{name}shares", axis=-1)
    mixed = pen.node("MatMul", [shares, by_head(value, (0, 2, 1, 3))], f"{name}mixed")
    turned = pen.node("Transpose", [mixed], f"{name}turned", perm=(0, 2, 1, 3))
    mixed = pen.node("Reshape", [turned, together], f"{name}heads")
    mixed = pen.linear(f"{name}output", mixed, layer.output)
    summed = pen.node("Add", [mixed, states], f"{name}attended")
    states = pen.norm(f"{name}attention_norm", summed, layer.attention_norm, model.epsilon)
    inner = _activated(pen, model.activation, pen.linear(f"{name}inner", states, layer.inner))
    summed = pen.node("Add", [pen.linear(f"{name}outer", inner, layer.outer), states], f"{name}summed")
    return pen.norm(f"{name}output_norm", summed, layer.output_norm, model.epsilon)


def _activated(pen: _Pen, activation: str, values: str) -> str:
    if activation == "relu":
        return pen.node("Relu", [values], f"{values}.activated")
    how = {"approximate": "tanh"} if activation == "gelu-tanh" else {}
    return pen.node("Gelu", [values], f"{values}.activated", **how)


def _vector(pen: _Pen, states: str, pooling: str, normalize: bool) -> None:
    """Draw a text's vector ``(n, d)`` of its tokens ``(n, length, d)``."""
    result = "pooled" if normalize else "vectors"
    if pooling == "cls":
        pen.node("Gather", [states, pen.constant("first_token", np.array(0))], result, axis=1)
    else:
        channels = pen.node("Transpose", [states], "channels", perm=(0, 2, 1))
        pool = pen.node("GlobalAveragePool" if pooling == "mean" else "GlobalMaxPool", [channels], "pool")
        pen.node("Squeeze", [pool, pen.constant("length_axis", np.array([2]))], result)
    if normalize:
        pen.node("LpNormalization", ["pooled"], "vectors", axis=-1, p=2)
