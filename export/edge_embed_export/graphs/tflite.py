"""The graphs in TFLite: GATHER the codes, then decode what was gathered. No TensorFlow is needed.

A ``.tflite`` is a graph of a few kilobytes followed by the table's sections on their 64 KiB boundaries, where the
runtime and the ONNX graph map the same bytes (``flatbuffer``).

Only operations that tflite-runtime 2.14 answers rightly are used: it has no GATHER of float16 (these travel as int16,
to be BITCAST), no operations on bits (a table of the 256 pairs takes a byte of int4 apart), and its per-row
EMBEDDING_LOOKUP is wrong. Codes are added up one after the other, in the kernels' order, so every bit agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from edge_embed_bundle.manifest import INT4_BLOCK, BagRecipe, HashRecipe
from edge_embed_bundle.values import Tensor
from edge_embed_bundle.writer import aligned
from edge_embed_export.codecs import pairs_of_bytes
from edge_embed_export.graphs.flatbuffer import Drawing

#: dtype and shape of each tensor of a codec.
Described = Mapping[str, tuple[str, tuple[int, ...]]]

# TensorType.INT32 of schema.fbs.
_INT32 = 2


class Pooling(NamedTuple):
    """What a bag graph follows: the recipes of its table, and the table's rows."""

    bag: BagRecipe
    hash: HashRecipe | None
    rows: int


def tflite_header(
    codec: str, weights: Described, dimensions: int, blob: str, pooling: Pooling | None = None
) -> tuple[bytes, dict[str, Tensor]]:
    """Return the graph's bytes and the places of the weights behind it.

    Args:
        codec: the table's codec.
        weights: dtype and shape of each of the codec's tensors, in the order they will be written.
        dimensions: of a vector.
        blob: the name of the file.
        pooling: the recipes of a subgraph ``bag`` beside the one of lookups, which has its name for a signature.
    """
    # The offsets are fixed-width fields, so the header is as long with the right ones as with any others.
    guess = {name: Tensor(blob, 1, dtype, shape) for name, (dtype, shape) in weights.items()}
    length = len(_drawn(codec, guess, dimensions, pooling))
    places = {}
    offset = aligned(length)
    for name, (dtype, shape) in weights.items():
        places[name] = Tensor(blob, offset, dtype, shape)
        offset = aligned(offset + places[name].size_bytes)
    header = _drawn(codec, places, dimensions, pooling)
    if len(header) != length:
        raise AssertionError("a flatbuffer's length depends on its offsets")
    return header, places


def _drawn(codec: str, weights: Mapping[str, Tensor], dimensions: int, pooling: Pooling | None) -> bytes:
    drawing = Drawing()
    ids = drawing.dynamic("ids", "int32", [])
    vectors = drawing.dynamic("vectors", "float32", [dimensions])
    _GRAPHS[codec](drawing, weights, ids, vectors)
    drawing.finish("lookup", [ids], vectors)
    if pooling is not None:
        _draw_bag(drawing, codec, weights, dimensions, pooling)
    return drawing.packed()


def _draw_bag(drawing: Drawing, codec: str, weights: Mapping[str, Tensor], dimensions: int, pooling: Pooling) -> None:
    """Draw what pools a table's bags by its recipe: ids, offsets and, for a sum, weights.

    UNSORTED_SEGMENT_SUM adds rows one after the other, as the kernels do; what is left out goes to a segment behind the
    last bag, which is cut off. Ids that a table hashes are hashed in the graph.
    """
    recipe = pooling.bag
    ids, offsets = drawing.dynamic("ids", "int32", []), drawing.dynamic("offsets", "int32", [])
    inputs = [ids, offsets]
    rows = ids if pooling.hash is None else _hashed(drawing, pooling.hash, pooling.rows, ids)
    vectors = drawing.dynamic("vectors", "float32", [dimensions])
    _GRAPHS[codec](drawing, weights, rows, vectors)
    one = drawing.constant("one", np.array([1], np.int32))
    column = drawing.constant("column", np.array([-1, 1], np.int32))
    n, b = (
        drawing.operator("SHAPE", [each], drawing.dynamic(name, "int32", []), "ShapeOptions", outType=_INT32)
        for each, name in ((ids, "n"), (offsets, "b"))
    )
    # A bag begins at each offset: the bag of an id is how many have begun, less one.
    ones = drawing.operator(
        "FILL",
        [b, drawing.constant("each", np.array(1, np.int32))],
        drawing.dynamic("ones", "int32", []),
        "FillOptions",
    )
    places = drawing.reshape(offsets, column, drawing.dynamic("offset_column", "int32", [1]))
    length = drawing.add(n, one, drawing.dynamic("places", "int32", []))
    begins = drawing.operator(
        "SCATTER_ND", [places, ones, length], drawing.dynamic("begins", "int32", []), "ScatterNdOptions"
    )
    axis = drawing.constant("cumsum_axis", np.array(0, np.int32))
    begun = drawing.operator("CUMSUM", [begins, axis], drawing.dynamic("begun", "int32", []), "CumsumOptions")
    at_ids = drawing.take_first(
        begun, drawing.constant("start", np.array([0], np.int32)), n, drawing.dynamic("begun_at_ids", "int32", [])
    )
    bag = drawing.operator("SUB", [at_ids, one], drawing.dynamic("bag_of_each", "int32", []), "SubOptions")
    if recipe.padding_row is not None:
        padding = drawing.constant("padding_row", np.array([recipe.padding_row], np.int32))
        left_out = drawing.operator("EQUAL", [rows, padding], drawing.dynamic("left_out", "bool", []), "EqualOptions")
        bag = drawing.operator(
            "SELECT_V2", [left_out, b, bag], drawing.dynamic("bag_of_each_kept", "int32", []), "SelectV2Options"
        )
    bags = drawing.add(b, one, drawing.dynamic("bags", "int32", []))
    if recipe.mode == "sum":
        factors = drawing.dynamic("weights", "float32", [])
        inputs.append(factors)
        factors = drawing.reshape(factors, column, drawing.dynamic("weight_column", "float32", [1]))
        vectors = drawing.multiply(vectors, factors, drawing.dynamic("weighted", "float32", [dimensions]))
    name = "MAX" if recipe.mode == "max" else "SUM"
    pooled = drawing.operator(
        f"UNSORTED_SEGMENT_{name}",
        [vectors, bag, bags],
        drawing.dynamic("reduced", "float32", [dimensions]),
        f"UnsortedSegment{name.title()}Options",
    )
    if recipe.mode != "sum":
        each = drawing.operator(
            "FILL",
            [n, drawing.constant("number", np.array(1, np.float32))],
            drawing.dynamic("each_id", "float32", []),
            "FillOptions",
        )
        each = drawing.reshape(each, column, drawing.dynamic("id_column", "float32", [1]))
        counts = drawing.operator(
            "UNSORTED_SEGMENT_SUM",
            [each, bag, bags],
            drawing.dynamic("counts", "float32", [1]),
            "UnsortedSegmentSumOptions",
        )
        first = drawing.constant("first_count", np.array([[1]], np.float32))
        if recipe.mode == "mean":
            divisors = drawing.operator(
                "MAXIMUM", [counts, first], drawing.dynamic("divisors", "float32", [1]), "MaximumMinimumOptions"
            )
            pooled = drawing.operator(
                "DIV", [pooled, divisors], drawing.dynamic("means", "float32", [dimensions]), "DivOptions"
            )
        else:
            empty = drawing.operator("LESS", [counts, first], drawing.dynamic("empty", "bool", [1]), "LessOptions")
            nothing = drawing.constant("nothing", np.array([[0]], np.float32))
            pooled = drawing.operator(
                "SELECT_V2",
                [empty, nothing, pooled],
                drawing.dynamic("largest", "float32", [dimensions]),
                "SelectV2Options",
            )
    width = drawing.constant("width", np.array([dimensions], np.int32))
    size = drawing.operator(
        "CONCATENATION", [b, width], drawing.dynamic("size_of_bags", "int32", []), "ConcatenationOptions", axis=0
    )
    begin = drawing.constant("begin_of_bags", np.array([0, 0], np.int32))
    output = drawing.take_first(pooled, begin, size, drawing.dynamic("pooled", "float32", [dimensions]))
    drawing.finish("bag", inputs, output, signed=True)


def _hashed(drawing: Drawing, recipe: HashRecipe, rows: int, ids: int) -> int:
    """Return the rows of ids: their own where the table has it, else one by the remainder of the floor."""
    count = drawing.constant("hashed_rows", np.array([recipe.rows], np.int32))
    remainder = drawing.operator(
        "FLOOR_MOD", [ids, count], drawing.dynamic("remainder", "int32", []), "FloorModOptions"
    )
    if recipe.rows == rows:
        # Every row is one of them, and a row's own remainder is the row.
        return remainder
    first, zero, end = (
        drawing.constant(name, np.array([value], np.int32))
        for name, value in (("first_row", recipe.first_row), ("first_id", 0), ("end_of_ids", rows))
    )
    hashed = drawing.add(remainder, first, drawing.dynamic("hashed", "int32", []))
    below = drawing.operator("LESS", [ids, zero], drawing.dynamic("below", "bool", []), "LessOptions")
    above = drawing.operator("GREATER_EQUAL", [ids, end], drawing.dynamic("above", "bool", []), "GreaterEqualOptions")
    outside = drawing.operator("LOGICAL_OR", [below, above], drawing.dynamic("outside", "bool", []), "LogicalOrOptions")
    result = drawing.dynamic("rows_of_ids", "int32", [])
    return drawing.operator("SELECT_V2", [outside, hashed, ids], result, "SelectV2Options")


def _float32(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    drawing.gather(_stored(drawing, weights, "rows"), ids, vectors)


def _float16(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    _halves(drawing, weights, "rows", ids, vectors)


def _int8(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    dimensions = weights["rows"].shape[1]
    codes = drawing.gather(_stored(drawing, weights, "rows"), ids, drawing.dynamic("codes", "int8", [dimensions]))
    numbers = drawing.cast(codes, drawing.dynamic("numbers", "float32", [dimensions]))
    scales = _stored(drawing, weights, "scales", (-1, 1))
    drawing.multiply(numbers, drawing.gather(scales, ids, drawing.dynamic("factors", "float32", [1])), vectors)


def _int4(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    bytes_a_row, blocks = weights["rows"].shape[1], weights["scales"].shape[1]
    dimensions = drawing.width(vectors)
    codes = drawing.gather(_stored(drawing, weights, "rows"), ids, drawing.dynamic("codes", "uint8", [bytes_a_row]))
    places = drawing.cast(codes, drawing.dynamic("places", "int32", [bytes_a_row]))
    table = drawing.constant("pairs_of_bytes", pairs_of_bytes())
    pairs = drawing.gather(table, places, drawing.dynamic("pairs", "float32", [bytes_a_row, 2]))
    numbers = _first(drawing, pairs, 2 * bytes_a_row, dimensions)
    scales = drawing.dynamic("scales_of_blocks", "float32", [blocks])
    _halves(drawing, weights, "scales", ids, scales)
    block_of_each = drawing.constant("block_of_each", np.arange(dimensions, dtype=np.int32) // INT4_BLOCK)
    factors = drawing.gather(scales, block_of_each, drawing.dynamic("factors", "float32", [dimensions]), axis=1)
    drawing.multiply(numbers, factors, vectors)


def _pq(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    m, count, width = weights["codebooks"].shape
    dimensions = drawing.width(vectors)
    places = _centroid_places(drawing, weights, ids)
    books = _stored(drawing, weights, "codebooks", (m * count, width))
    centroids = drawing.gather(books, places, drawing.dynamic("centroids", "float32", [m, width]))
    numbers = _first(drawing, centroids, m * width, dimensions)
    drawing.multiply(numbers, _lengths(drawing, weights, ids), vectors)


def _opq(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    m, count, width = weights["codebooks"].shape
    dimensions = drawing.width(vectors)
    books = _stored(drawing, weights, "codebooks", (m * count, width))
    places = _centroid_places(drawing, weights, ids)
    centroids = drawing.gather(books, places, drawing.dynamic("centroids", "float32", [m, width]))
    parts = _first(drawing, centroids, m * width, m * width)
    rotation = _stored(drawing, weights, "rotation")
    rotated = drawing.fully_connected(parts, rotation, drawing.dynamic("rotated", "float32", [dimensions]))
    drawing.multiply(rotated, _lengths(drawing, weights, ids), vectors)


def _rq(drawing: Drawing, weights: Mapping[str, Tensor], ids: int, vectors: int) -> None:
    m, count, dimensions = weights["codebooks"].shape
    columns = [_centroid_places(drawing, weights, ids)]
    if m > 1:
        parts = [drawing.dynamic(f"place{i}", "int32", [1]) for i in range(m)]
        columns = drawing.split(columns[0], drawing.constant("axis", np.array(1, np.int32)), parts)
    books = _stored(drawing, weights, "codebooks", (m * count, dimensions))
    total = -1
    for i, column in enumerate(columns):
        centroid = drawing.gather(books, column, drawing.dynamic(f"centroid{i}", "float32", [1, dimensions]))
        if i:
            centroid = drawing.add(total, centroid, drawing.dynamic(f"sum{i}", "float32", [1, dimensions]))
        total = centroid
    numbers = _first(drawing, total, dimensions, dimensions)
    drawing.multiply(numbers, _lengths(drawing, weights, ids), vectors)


def _stored(drawing: Drawing, weights: Mapping[str, Tensor], name: str, shape: tuple[int, ...] = ()) -> int:
    """Add a tensor of the table, under another shape of as many numbers where one is given."""
    tensor = weights[name]
    numbers = int(np.prod(tensor.shape))
    resolved = tuple(numbers // -int(np.prod(shape)) if n == -1 else n for n in shape) if shape else tensor.shape
    dtype = "int16" if tensor.dtype == "float16" else tensor.dtype
    return drawing.stored(name, dtype, resolved, tensor)


def _halves(drawing: Drawing, weights: Mapping[str, Tensor], name: str, ids: int, result: int) -> None:
    """Gather rows of float16 as float32."""
    width = weights[name].shape[1]
    bits = drawing.gather(_stored(drawing, weights, name), ids, drawing.dynamic(f"{name}_bits", "int16", [width]))
    drawing.cast(drawing.bitcast(bits, drawing.dynamic(f"{name}_halves", "float16", [width])), result)


def _centroid_places(drawing: Drawing, weights: Mapping[str, Tensor], ids: int) -> int:
    """Return where each code of the rows stands in all codebooks one after the other, ``(n, m)``."""
    m, count = weights["codebooks"].shape[:2]
    codes = drawing.gather(_stored(drawing, weights, "rows"), ids, drawing.dynamic("codes", "uint8", [m]))
    numbers = drawing.cast(codes, drawing.dynamic("numbers_of_codes", "int32", [m]))
    starts = drawing.constant("starts", count * np.arange(m, dtype=np.int32))
    return drawing.add(numbers, starts, drawing.dynamic("places", "int32", [m]))


def _lengths(drawing: Drawing, weights: Mapping[str, Tensor], ids: int) -> int:
    stored = _stored(drawing, weights, "length_codes", (-1, 1))
    codes = drawing.gather(stored, ids, drawing.dynamic("length_codes_of_rows", "uint8", [1]))
    places = drawing.cast(codes, drawing.dynamic("length_places", "int32", [1]))
    levels = _stored(drawing, weights, "length_levels")
    return drawing.gather(levels, places, drawing.dynamic("lengths", "float32", [1]))


def _first(drawing: Drawing, values: int, width: int, dimensions: int) -> int:
    """Return values of any shape as rows of ``width`` numbers, and of these the first ``dimensions``."""
    shape = drawing.constant("shape", np.array([-1, width], np.int32))
    rows = drawing.reshape(values, shape, drawing.dynamic("rows_of_numbers", "float32", [width]))
    if width == dimensions:
        return rows
    begin = drawing.constant("begin", np.array([0, 0], np.int32))
    size = drawing.constant("size", np.array([-1, dimensions], np.int32))
    return drawing.take_first(rows, begin, size, drawing.dynamic("first_numbers", "float32", [dimensions]))


_GRAPHS: Mapping[str, Callable[[Drawing, Mapping[str, Tensor], int, int], None]] = MappingProxyType(
    {"float32": _float32, "float16": _float16, "int8": _int8, "int4": _int4, "pq": _pq, "opq": _opq, "rq": _rq}
)
