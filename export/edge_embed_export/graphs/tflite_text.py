"""A text encoder in TFLite: token ids in, a pooled vector out. No TensorFlow and no torch are needed.

* One graph for every length: ``ids`` ``(1, n)``, ``vectors`` ``(1, d)``. An engine plans its memory anew where n
  changes (.1 ms) and packs the weights once; signatures of fixed lengths would pack them once each.
* A text is alone in its batch and never padded, so there is no mask, and its vector depends on nothing beside it.
* Weights lie behind the flatbuffer, each once, on boundaries of 64 bytes; they are written as they are read.
* ``int8``: the codes of each row of weights have a scale of their own. FULLY_CONNECTED is told the scale 1, and what
  it answers is multiplied by the rows' scales: tflite-runtime 2.14 takes one scale for all rows, whatever the file
  says, and is wrong without a word where each has its own. Activations are quantized by the engine, token by token.
* Only operators and versions that tflite-runtime 2.14 knows are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_bundle.values import Tensor
from edge_embed_bundle.writer import BlobWriter
from edge_embed_export.codecs import encode_int8
from edge_embed_export.graphs.flatbuffer import Drawing
from edge_embed_export.matrix import blocks_of
from edge_embed_export.transformer import Floats, Linear, Transformer

VARIANTS = ("float32", "int8")
POOLINGS = ("mean", "cls", "max")

#: What torch's ``normalize`` divides by at least, squared.
_SHORTEST_SQUARE = 1e-24
# What XNNPACK's and the reference kernels read fastest; no engine asks for more.
_ALIGNMENT = 64


_Described = Mapping[str, tuple[str, tuple[int, ...]]]


class TextGraph:
    """The graph of one transformer, ready to be written."""

    def __init__(self, model: Transformer, variant: str, *, pooling: str, normalize: bool, longest: int) -> None:
        if variant not in VARIANTS or pooling not in POOLINGS or not 1 <= longest <= model.longest:
            raise ValueError(f"no graph of {variant}, {pooling}, {longest} tokens")
        self._model = model
        self._variant = variant
        self._pooling = pooling
        self._normalize = normalize
        self._longest = longest

    def write(self, blob: BlobWriter) -> None:
        """Write the graph and, behind it, the weights where it says they are."""
        described = _described(self._model, self._variant, self._longest)
        # The offsets are fixed-width fields, so the header is as long with the right ones as with any others.
        guess = {name: Tensor(blob.name, 1, dtype, shape) for name, (dtype, shape) in described.items()}
        length = len(self._drawn(guess))
        places, offset = {}, _aligned(length)
        for name, (dtype, shape) in described.items():
            places[name] = Tensor(blob.name, offset, dtype, shape)
            offset = _aligned(offset + places[name].size_bytes)
        header = self._drawn(places)
        blob.write(header)
        written = len(header)
        for name, chunks in _weights(self._model, self._variant, self._longest):
            blob.write(bytes(places[name].offset_bytes - written))
            written = places[name].offset_bytes
            for chunk in chunks:
                blob.write(np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<")).data.cast("B"))
                written += chunk.nbytes
            if written != places[name].offset_bytes + places[name].size_bytes:
                raise AssertionError(f"{name} does not lie where the graph says")

    def _drawn(self, places: Mapping[str, Tensor]) -> bytes:
        drawing = _Pen(places)
        ids = drawing.free("ids", "int32", (1, -1))
        tokens = _draw_layers(drawing, self._model, self._variant, ids)
        drawing.finish(
            "encode", [ids], _draw_vector(drawing, tokens, self._model.width, self._pooling, self._normalize)
        )
        return drawing.packed(f"edge-embed text encoder, {self._variant}")


class _Pen(Drawing):
    """A drawing whose stored tensors have their places, and whose results are named after their operators."""

    def __init__(self, places: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._places = places
        self._operations = 0

    def weight(self, name: str, *, quantized_by: float | None = None) -> int:
        """Add a stored tensor by its name."""
        place = self._places[name]
        return self.stored(name, place.dtype, place.shape, place, quantized_by=quantized_by)

    def whole(self, *numbers: int) -> int:
        """Add a constant row of int32."""
        return self.constant("numbers", np.array(numbers, np.int32))

    def number(self, number: float) -> int:
        """Add a constant ``(1, 1)`` float32."""
        return self.constant("number", np.array([[number]], np.float32))

    def draw(
        self,
        name: str,
        inputs: list[int],
        shape: tuple[int, ...],
        options: str = "",
        dtype: str = "float32",
        **values: Any,
    ) -> int:
        """Add an operator, and a tensor of its own for the result; return the latter."""
        self._operations += 1
        result = self.free(f"{name.lower()}_{self._operations}", dtype, shape)
        return self.operator(name, inputs, result, options, **values)

    def reshaped(self, values: int, shape: tuple[int, ...], dtype: str = "float32") -> int:
        """RESHAPE; one axis may be -1."""
        return self.draw("RESHAPE", [values, self.whole(*shape)], shape, "ReshapeOptions", dtype)

    def reduced(self, name: str, values: int, axis: int, shape: tuple[int, ...]) -> int:
        """MEAN, SUM or REDUCE_MAX over an axis, which stays with the length 1."""
        return self.draw(name, [values, self.whole(axis)], shape, "ReducerOptions", keepDims=True)


def _draw_layers(pen: _Pen, model: Transformer, variant: str, ids: int) -> int:
    """Draw everything from ids to the last layer's tokens ``(n, d)``."""
    d, heads = model.width, model.heads
    rows, size = (-1, d), d // heads
    x = _draw_norm(pen, _draw_embeddings(pen, variant, ids, d), "norm", d, model.epsilon)
    for i in range(model.layers):

        def dense(values: int, name: str, width: int, layer: str = f"{i}.") -> int:
            return _draw_linear(pen, variant, values, layer + name, width)

        def by_head(values: int) -> int:
            apart = pen.reshaped(values, (-1, heads, size))
            return pen.draw("TRANSPOSE", [apart, pen.whole(1, 0, 2)], (heads, -1, size), "TransposeOptions")

        query, key, value = (by_head(dense(x, name, d)) for name in ("query", "key", "value"))
        scores = pen.draw("BATCH_MATMUL", [query, key], (heads, -1, -1), "BatchMatMulOptions", adjY=True)
        shares = pen.draw("SOFTMAX", [scores], (heads, -1, -1), "SoftmaxOptions", beta=1.0)
        mixed = pen.draw("BATCH_MATMUL", [shares, value], (heads, -1, size), "BatchMatMulOptions")
        mixed = pen.draw("TRANSPOSE", [mixed, pen.whole(1, 0, 2)], (-1, heads, size), "TransposeOptions")
        attended = pen.add(dense(pen.reshaped(mixed, rows), "output", d), x, pen.free("attended", "float32", rows))
        x = _draw_norm(pen, attended, f"{i}.attention_norm", d, model.epsilon)
        inner = _draw_activation(pen, model.activation, dense(x, "inner", model.inner), model.inner)
        outer = pen.add(dense(inner, "outer", d), x, pen.free("stepped", "float32", rows))
        x = _draw_norm(pen, outer, f"{i}.output_norm", d, model.epsilon)
    return x


def _draw_embeddings(pen: _Pen, variant: str, ids: int, d: int) -> int:
    flat = pen.reshaped(ids, (-1,), "int32")
    words = _draw_words(pen, variant, flat, d)
    # One for each token, whatever it is; how many stand before a token is its position.
    zeros = pen.multiply(flat, pen.whole(0), pen.free("zeros", "int32", (-1,)))
    ones = pen.add(zeros, pen.whole(1), pen.free("ones", "int32", (-1,)))
    axis = pen.constant("axis", np.array(0, np.int32))
    places = pen.draw("CUMSUM", [ones, axis], (-1,), "CumsumOptions", "int32", exclusive=True)
    positions = pen.gather(pen.weight("positions"), places, pen.free("positions_of_tokens", "float32", (-1, d)))
    return pen.add(words, positions, pen.free("embeddings", "float32", (-1, d)))


def _draw_words(pen: _Pen, variant: str, ids: int, d: int) -> int:
    if variant == "float32":
        return pen.gather(pen.weight("words"), ids, pen.free("words_of_tokens", "float32", (-1, d)))
    codes = pen.gather(pen.weight("words"), ids, pen.free("codes_of_tokens", "int8", (-1, d)))
    numbers = pen.cast(codes, pen.free("numbers_of_tokens", "float32", (-1, d)))
    scales = pen.gather(pen.weight("words.scales"), ids, pen.free("scales_of_tokens", "float32", (-1, 1)))
    return pen.multiply(numbers, scales, pen.free("words_of_tokens", "float32", (-1, d)))


def _draw_linear(pen: _Pen, variant: str, values: int, name: str, width: int) -> int:
    shape, options = (-1, width), "FullyConnectedOptions"
    bias = pen.weight(f"{name}.bias")
    if variant == "float32":
        return pen.draw("FULLY_CONNECTED", [values, pen.weight(f"{name}.weight"), bias], shape, options)
    codes = pen.weight(f"{name}.weight", quantized_by=1.0)
    # Version 9 came with asymmetric activations, which are nearer; LiteRT takes them so in any case.
    sums = pen.draw("FULLY_CONNECTED", [values, codes, bias], shape, options, version=9, asymmetricQuantizeInputs=True)
    return pen.multiply(sums, pen.weight(f"{name}.scales"), pen.free("scaled", "float32", shape))


def _draw_norm(pen: _Pen, values: int, name: str, d: int, epsilon: float) -> int:
    rows, column = (-1, d), (-1, 1)
    centred = pen.draw("SUB", [values, pen.reduced("MEAN", values, 1, column)], rows, "SubOptions")
    squares = pen.multiply(centred, centred, pen.free("squares", "float32", rows))
    variance = pen.reduced("MEAN", squares, 1, column)
    above_zero = pen.add(variance, pen.number(epsilon), pen.free("above_zero", "float32", column))
    factors = pen.draw("RSQRT", [above_zero], column)
    normal = pen.multiply(centred, factors, pen.free("normal", "float32", rows))
    stretched = pen.multiply(normal, pen.weight(f"{name}.weight"), pen.free("stretched", "float32", rows))
    return pen.add(stretched, pen.weight(f"{name}.bias"), pen.free("normed", "float32", rows))


def _draw_activation(pen: _Pen, name: str, values: int, width: int) -> int:
    if name == "relu":
        return pen.draw("RELU", [values], (-1, width))
    return pen.draw("GELU", [values], (-1, width), "GeluOptions", approximate=name == "gelu-tanh")


def _draw_vector(pen: _Pen, tokens: int, d: int, pooling: str, normalize: bool) -> int:
    """Draw the pooled vector ``(1, d)`` of tokens ``(n, d)``, and its direction."""
    if pooling == "cls":
        pooled = pen.take_first(tokens, pen.whole(0, 0), pen.whole(1, d), pen.free("first", "float32", (1, d)))
    else:
        pooled = pen.reduced("MEAN" if pooling == "mean" else "REDUCE_MAX", tokens, 0, (1, d))
    if normalize:
        squares = pen.multiply(pooled, pooled, pen.free("pooled_squares", "float32", (1, d)))
        square = pen.reduced("SUM", squares, 1, (1, 1))
        square = pen.draw("MAXIMUM", [square, pen.number(_SHORTEST_SQUARE)], (1, 1), "MaximumMinimumOptions")
        factor = pen.draw("RSQRT", [square], (1, 1))
        pooled = pen.multiply(pooled, factor, pen.free("direction", "float32", (1, d)))
    # Under a name of its own, whatever came before.
    return pen.operator("RESHAPE", [pooled, pen.whole(1, d)], pen.free("vectors", "float32", (1, d)), "ReshapeOptions")


def _described(model: Transformer, variant: str, longest: int) -> _Described:
    """Return dtype and shape of each stored tensor, in the order in which they are written."""
    d, inner = model.width, model.inner
    coded = variant == "int8"
    dtype = "int8" if coded else "float32"
    described: dict[str, tuple[str, tuple[int, ...]]] = {"words": (dtype, (len(model.words), d))}
    if coded:
        described["words.scales"] = ("float32", (len(model.words), 1))
    described["positions"] = ("float32", (longest, d))

    def norm(name: str) -> None:
        described[f"{name}.weight"] = described[f"{name}.bias"] = ("float32", (d,))

    norm("norm")
    for i in range(model.layers):
        for name, rows, columns in _DENSE:
            size = {"d": d, "inner": inner}
            described[f"{i}.{name}.weight"] = (dtype, (size[rows], size[columns]))
            described[f"{i}.{name}.bias"] = ("float32", (size[rows],))
            if coded:
                described[f"{i}.{name}.scales"] = ("float32", (size[rows],))
        norm(f"{i}.attention_norm")
        norm(f"{i}.output_norm")
    return described


#: The dense steps of a layer, with what is as long as their rows and columns.
_DENSE = (
    *((name, "d", "d") for name in ("query", "key", "value", "output")),
    ("inner", "inner", "d"),
    ("outer", "d", "inner"),
)


def _weights(model: Transformer, variant: str, longest: int) -> Iterator[tuple[str, Iterable[NDArray[Any]]]]:
    """Yield the name of each stored tensor and its numbers, in chunks of rows, in the order of ``_described``."""
    yield from _word_weights(model, variant)
    yield "positions", [model.positions[:longest]]
    yield from _named("norm", {"weight": model.norm.weight, "bias": model.norm.bias})
    # Attention divides its products by the root of a head's size; the query may as well carry that.
    share = np.float32((model.width // model.heads) ** -0.5)
    for i in range(model.layers):
        layer = model.layer(i)
        query = Linear(layer.query.weight * share, layer.query.bias * share)
        dense = (query, layer.key, layer.value, layer.output, layer.inner, layer.outer)
        for (name, _, _), linear in zip(_DENSE, dense, strict=True):
            yield from _named(f"{i}.{name}", _linear_weights(linear, variant))
        for name, norm in (("attention_norm", layer.attention_norm), ("output_norm", layer.output_norm)):
            yield from _named(f"{i}.{name}", norm._asdict())


def _named(name: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Iterable[NDArray[Any]]]]:
    return ((f"{name}.{part}", [array]) for part, array in arrays.items())


def _word_weights(model: Transformer, variant: str) -> Iterator[tuple[str, Iterable[NDArray[Any]]]]:
    blocks: Iterator[Floats] = (model.words[block] for block in blocks_of(model.words))
    if variant == "float32":
        yield "words", blocks
        return
    scales: list[NDArray[Any]] = []

    def codes() -> Iterator[NDArray[Any]]:
        for block in blocks:
            encoded = encode_int8(block)
            scales.append(encoded["scales"][:])
            yield encoded["rows"][:]

    yield "words", codes()
    yield "words.scales", scales


def _linear_weights(linear: Linear, variant: str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a dense step: codes, their rows' scales, and the bias in units of these."""
    if variant == "float32":
        return linear._asdict()
    encoded = encode_int8(linear.weight)
    scales = encoded["scales"][:]
    scales = np.where(scales > 0, scales, np.float32(1))
    return {"weight": encoded["rows"][:], "bias": (linear.bias / scales).astype(np.float32), "scales": scales}


def _aligned(offset_bytes: int) -> int:
    return -(-offset_bytes // _ALIGNMENT) * _ALIGNMENT
