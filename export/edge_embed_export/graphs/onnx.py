"""The graphs in ONNX: ``lookup`` gathers the stored rows, then decodes the gathered ones; ``bag`` pools them, too.

The table is external data in a blob of the bundle, so ONNX Runtime maps it. Decoding the whole table first (a
DequantizeLinear before the Gather) would make it private and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError
from edge_embed_bundle.manifest import INT4_BLOCK, BagRecipe, HashRecipe, TableModel
from edge_embed_bundle.values import Tensor
from edge_embed_export.codecs import pairs_of_bytes

_TYPES = {"int8": "INT8", "uint8": "UINT8", "int64": "INT64", "float16": "FLOAT16", "float32": "FLOAT"}
_OPSET = 17
# The oldest file version with that opset: older engines than ours may read it, too.
_IR_VERSION = 8
# The first with ScatterElements by the maximum.
_BAG_OPSET = 18


def onnx_lookup(codec: str, tensors: Mapping[str, Tensor], dimensions: int) -> bytes:
    """Return the graph file for a codec's tensors; its weights stay where ``tensors`` says."""
    drawing = Drawing(tensors)
    _GRAPHS[codec](drawing, dimensions)
    return drawing.packed("lookup", [Value("ids", "int64", ("n",))], Value("vectors", "float32", ("n", dimensions)))


def onnx_bag(model: TableModel, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the graph file that pools a table's bags by its recipe: ids, offsets and, for a sum, weights.

    Rows are scattered into the row of their bag one after the other, as the kernels add them; what is left out goes to
    a row behind the last bag, which is cut off. Ids that a table hashes are hashed in the graph.
    """
    if model.bag is None:
        raise ValueError("a bag graph follows the recipe of its model")
    drawing = Drawing(tensors, _BAG_OPSET)
    if model.hash is not None:
        drawing.rows = _hashed(drawing, model.hash, model.rows)
    _GRAPHS[model.codec](drawing, model.dimensions)
    pooled = _pooled(drawing, model.bag, model.dimensions)
    inputs = [Value("ids", "int64", ("n",)), Value("offsets", "int64", ("b",))]
    if model.bag.mode == "sum":
        inputs.append(Value("weights", "float32", ("n",)))
    return drawing.packed("bag", inputs, Value(pooled, "float32", ("b", model.dimensions)))


class Value(NamedTuple):
    """An input or an output of a graph; a name in ``shape`` is an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Drawing:
    """Nodes and weights in the making; every method that adds a node returns the name of its result.

    Raises:
        MissingExtraError: the package ``onnx`` is not installed.
    """

    def __init__(self, tensors: Mapping[str, Tensor], opset: int = _OPSET) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingExtraError.of("onnx", "export", "writing an ONNX graph") from error
        self.version: str = onnx.__version__
        self.opset = opset
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.tensors = tensors
        #: What names the rows to gather: the input itself, or what it was hashed to.
        self.rows = "ids"

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

    def split(self, values: str, results: tuple[str, ...], axis: int) -> tuple[str, ...]:
        """Add a Split into equal parts."""
        from onnx import helper

        # From opset 18 on the number is said twice.
        number = {"num_outputs": len(results)} if self.opset >= _BAG_OPSET else {}
        self.nodes.append(helper.make_node("Split", [values], list(results), axis=axis, **number))
        return results

    def cast(self, values: str, data_type: str, result: str) -> str:
        """Add a Cast."""
        from onnx import TensorProto

        return self.node("Cast", [values], result, to=getattr(TensorProto, data_type))

    def packed(self, name: str, inputs: Sequence[Value], output: Value, *, ir_version: int = _IR_VERSION) -> bytes:
        """Return the graph file."""
        from onnx import TensorProto, helper

        ends = [
            helper.make_tensor_value_info(value.name, getattr(TensorProto, _TYPES[value.dtype]), list(value.shape))
            for value in (*inputs, output)
        ]
        graph = helper.make_graph(self.nodes, name, ends[:-1], ends[-1:], self.weights)
        domains = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        model.producer_name = "edge-embed"
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _float32(drawing: Drawing, _: int) -> None:
    drawing.node("Gather", [drawing.stored("rows"), drawing.rows], "vectors")


def _float16(drawing: Drawing, _: int) -> None:
    drawing.cast(drawing.node("Gather", [drawing.stored("rows"), drawing.rows], "halves"), "FLOAT", "vectors")


def _int8(drawing: Drawing, _: int) -> None:
    codes = drawing.node("Gather", [drawing.stored("rows"), drawing.rows], "codes")
    numbers = drawing.cast(codes, "FLOAT", "numbers")
    # As a column, a scale multiplies its row by broadcasting; the bytes are the same.
    scales = drawing.stored("scales", (drawing.tensors["rows"].shape[0], 1))
    drawing.node("Mul", [numbers, drawing.node("Gather", [scales, drawing.rows], "factors")], "vectors")


def _int4(drawing: Drawing, dimensions: int) -> None:
    codes = drawing.node("Gather", [drawing.stored("rows"), drawing.rows], "codes")
    places = drawing.cast(codes, "INT32", "places")
    pairs = drawing.node("Gather", [drawing.constant("pairs_of_bytes", pairs_of_bytes()), places], "pairs")
    numbers = _first(drawing, pairs, 2 * drawing.tensors["rows"].shape[1], dimensions)
    halves = drawing.node("Gather", [drawing.stored("scales"), drawing.rows], "halves")
    scales = drawing.cast(halves, "FLOAT", "scales_of_blocks")
    block_of_each = drawing.constant("block_of_each", np.arange(dimensions, dtype=np.int64) // INT4_BLOCK)
    drawing.node("Mul", [numbers, drawing.node("Gather", [scales, block_of_each], "factors", axis=1)], "vectors")


def _pq(drawing: Drawing, dimensions: int) -> None:
    m, count, width = drawing.tensors["codebooks"].shape
    books = drawing.stored("codebooks", (m * count, width))
    centroids = drawing.node("Gather", [books, _centroid_places(drawing)], "centroids")
    numbers = _first(drawing, centroids, m * width, dimensions)
    drawing.node("Mul", [numbers, _lengths(drawing)], "vectors")


def _opq(drawing: Drawing, dimensions: int) -> None:
    m, count, width = drawing.tensors["codebooks"].shape
    books = drawing.stored("codebooks", (m * count, width))
    centroids = drawing.node("Gather", [books, _centroid_places(drawing)], "centroids")
    parts = _first(drawing, centroids, m * width, m * width)
    rotated = drawing.node("Gemm", [parts, drawing.stored("rotation")], "rotated", transB=1)
    drawing.node("Mul", [rotated, _lengths(drawing)], "vectors")


def _rq(drawing: Drawing, dimensions: int) -> None:
    m, count, _ = drawing.tensors["codebooks"].shape
    columns = [_centroid_places(drawing)]
    if m > 1:
        columns = list(drawing.split(columns[0], tuple(f"place{i}" for i in range(m)), axis=1))
    books = drawing.stored("codebooks", (m * count, dimensions))
    total = ""
    for i, column in enumerate(columns):
        centroid = drawing.node("Gather", [books, column], f"centroid{i}")
        total = drawing.node("Add", [total, centroid], f"sum{i}") if i else centroid
    drawing.node("Mul", [_first(drawing, total, dimensions, dimensions), _lengths(drawing)], "vectors")


def _centroid_places(drawing: Drawing) -> str:
    """Return where each code of the rows stands in all codebooks one after the other, ``(n, m)``."""
    m, count = drawing.tensors["codebooks"].shape[:2]
    codes = drawing.node("Gather", [drawing.stored("rows"), drawing.rows], "codes")
    starts = drawing.constant("starts", count * np.arange(m, dtype=np.int32))
    return drawing.node("Add", [drawing.cast(codes, "INT32", "numbers_of_codes"), starts], "places")


def _lengths(drawing: Drawing) -> str:
    codes = drawing.stored("length_codes", (drawing.tensors["rows"].shape[0], 1))
    places = drawing.cast(
        drawing.node("Gather", [codes, drawing.rows], "length_codes_of_rows"), "INT32", "length_places"
    )
    return drawing.node("Gather", [drawing.stored("length_levels"), places], "lengths")


def _first(drawing: Drawing, values: str, width: int, dimensions: int) -> str:
    """Return values of any shape as rows of ``width`` numbers, and of these the first ``dimensions``."""
    shape = drawing.constant("shape", np.array([-1, width], np.int64))
    rows = drawing.node("Reshape", [values, shape], "rows_of_numbers")
    if width == dimensions:
        return rows
    limits = [drawing.constant(name, np.array([at])) for name, at in (("begin", 0), ("end", dimensions), ("axis", 1))]
    return drawing.node("Slice", [rows, *limits], "first_numbers")


def _hashed(drawing: Drawing, recipe: HashRecipe, rows: int) -> str:
    """Return the rows of ids: their own where the table has it, else one by the remainder of the floor."""
    count = drawing.constant("hashed_rows", np.array([recipe.rows]))
    remainder = drawing.node("Mod", ["ids", count], "remainder")
    if recipe.rows == rows:
        # Every row is one of them, and a row's own remainder is the row.
        return remainder
    first = drawing.constant("first_row", np.array([recipe.first_row]))
    zero, end = drawing.constant("first_id", np.array([0])), drawing.constant("end_of_ids", np.array([rows]))
    below, above = drawing.node("Less", ["ids", zero], "below"), drawing.node("GreaterOrEqual", ["ids", end], "above")
    outside = drawing.node("Or", [below, above], "outside")
    return drawing.node("Where", [outside, drawing.node("Add", [remainder, first], "hashed"), "ids"], "rows_of_ids")


def _pooled(drawing: Drawing, recipe: BagRecipe, dimensions: int) -> str:
    one, zero = drawing.constant("one", np.array([1])), drawing.constant("zero", np.array([0]))
    width = drawing.constant("width", np.array([dimensions]))
    n, b = drawing.node("Shape", ["ids"], "n"), drawing.node("Shape", ["offsets"], "b")
    bags = drawing.node("Add", [b, one], "bags")
    # A bag begins at each offset: the bag of an id is how many have begun, less one.
    blank = drawing.node("Expand", [zero, drawing.node("Add", [n, one], "place_count")], "blank")
    begins = [blank, "offsets", drawing.node("Expand", [one, b], "ones")]
    begun = drawing.node("CumSum", [drawing.node("ScatterElements", begins, "begins", reduction="add"), zero], "begun")
    bag = drawing.node("Sub", [drawing.node("Slice", [begun, zero, n], "begun_at_ids"), one], "bag_of_each")
    if recipe.padding_row is not None:
        padding = drawing.constant("padding_row", np.array([recipe.padding_row]))
        left_out = drawing.node("Equal", [drawing.rows, padding], "left_out")
        bag = drawing.node("Where", [left_out, b, bag], "bag_of_each_kept")
    vectors = "vectors"
    if recipe.mode == "sum":
        vectors = drawing.node(
            "Mul", [vectors, drawing.node("Unsqueeze", ["weights", one], "factors_of_ids")], "weighted"
        )
    columns = drawing.node("Unsqueeze", [bag, one], "bag_column")
    places = drawing.node("Expand", [columns, drawing.node("Concat", [n, width], "shape_of_ids", axis=0)], "bag_places")
    lowest = np.finfo(np.float32).min if recipe.mode == "max" else 0
    start = drawing.constant("start", np.array([lowest], np.float32))
    shape = drawing.node("Concat", [bags, width], "shape_of_bags", axis=0)
    reduction = "max" if recipe.mode == "max" else "add"
    scattered = [drawing.node("Expand", [start, shape], "starts_of_bags"), places, vectors]
    pooled = drawing.node("ScatterElements", scattered, "reduced", axis=0, reduction=reduction)
    if recipe.mode != "sum":
        nothing = drawing.constant("nothing", np.array([0], np.float32))
        each = drawing.constant("each", np.array([1], np.float32))
        counting = [
            drawing.node("Expand", [nothing, bags], "no_counts"),
            bag,
            drawing.node("Expand", [each, n], "each_id"),
        ]
        counted = drawing.node("ScatterElements", counting, "counted", axis=0, reduction="add")
        counts = drawing.node("Unsqueeze", [counted, one], "counts")
        if recipe.mode == "mean":
            pooled = drawing.node("Div", [pooled, drawing.node("Max", [counts, each], "divisors")], "means")
        else:
            empty = drawing.node("Equal", [counts, nothing], "empty")
            pooled = drawing.node("Where", [empty, nothing, pooled], "largest")
    return drawing.node("Slice", [pooled, zero, b], "pooled")


_GRAPHS: Mapping[str, Callable[[Drawing, int], None]] = MappingProxyType(
    {"float32": _float32, "float16": _float16, "int8": _int8, "int4": _int4, "pq": _pq, "opq": _opq, "rq": _rq}
)


def check_onnx(path: Path) -> None:
    """Let ``onnx.checker`` judge a graph file beside its external data."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
