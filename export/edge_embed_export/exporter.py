"""From a source to a bundle: encode, write, draw the graphs, ask the golden questions, measure, sign off.

The order is the argument of the bundle's truth:

 1. the tables, the tokenizer and the graphs are written;
 2. the partial bundle is opened by the runtime that boards run, and every graph by its engine: a graph that answers
    unlike the kernels ends the export;
 3. what the runtime answers becomes the golden answers, what it decodes is compared with the source;
 4. only then the manifest is written, and the bundle gets its name.

Nothing in a bundle depends on the time or on the machine: the same source, options and packages give the same bytes,
whatever its CPU and however many of its cores take part (``exact``). The exception are codebooks: faiss trains them by
distances that carry a CPU's rounding, so they are the same again on the same machine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.engines import engine_of, open_bag_graph, open_graph
from edge_embed.errors import BundleError, MissingExtraError, RequestError
from edge_embed.golden import bag_difference
from edge_embed.kernels.reference import SCAN_ROWS
from edge_embed.memory import format_size
from edge_embed.progress import SILENT, Progress
from edge_embed.runtime import Runtime
from edge_embed.text import BATCH_TOKENS, HuggingFaceTokenizer, TextEncoder
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import (
    DIMENSIONS_CEILING,
    HASH_ALGORITHM,
    INDEX_ALGORITHM,
    NAME,
    VERSION,
    BagRecipe,
    Blob,
    Budgets,
    ClassifyRecipe,
    Engine,
    Golden,
    Graph,
    HashRecipe,
    KeyIndex,
    LatencyBudget,
    Manifest,
    Model,
    Requirements,
    Space,
    SubwordRecipe,
    Tensor,
    TextRecipe,
)
from edge_embed_bundle.writer import BlobWriter, BundleWriter
from edge_embed_devices.budgets import default_budgets
from edge_embed_devices.profiles import board_named
from edge_embed_export.codecs import Encoded, decoded_blocks, encoder
from edge_embed_export.evaluation import Evaluation, Task
from edge_embed_export.graphs.onnx import check_onnx, onnx_bag, onnx_lookup
from edge_embed_export.graphs.tflite import Pooling, tflite_header
from edge_embed_export.key_index import build_index
from edge_embed_export.matrix import BLOCK_ROWS, Matrix, Places, Selection, blocks_of
from edge_embed_export.pricing import Price, check_loss, evaluated, manifest_quality
from edge_embed_export.quality import Quality, measure_quality
from edge_embed_export.questions import answered, searchable, spread_rows
from edge_embed_export.sources import Source, SourceTable

GRAPH_FORMATS = ("onnx", "tflite")
DEFAULT_BOARD = "pi-zero-2w"
COLLECTION = "collection"
ALL_TABLES = "*"
GOLDEN_BLOB = "golden.bin"
TOKENIZER_BLOB = "tokenizer.json"

_PROOF_ROWS = 16
# Labels are few, and a rounding of theirs is a rounding of every answer.
_LABELS_CODEC = "float32"
# Nobody looks for neighbours in a table of parts: of a large one a share says what its rows cost.
_HELPER_ROWS = 20_000

# Private memory of a runtime beyond numpy, measured on x86-64 with CPython 3.11 and rounded up: its modules and maps;
# the tokenizers package with its threads; what a tokenizer takes per byte of its definition.
_RUNTIME_BYTES = 4 * 2**20
# Each further table: its maps, its arrays and its part of the manifest.
_TABLE_BYTES = 48 * 2**10
_TOKENIZERS_BYTES = 6 * 2**20
_TOKENIZER_FACTOR = 24
# What a number takes while it is decoded, the result included, and while it is scanned: codes are scanned by tables of
# products and never decoded.
_DECODE_BYTES = {"float32": 5, "float16": 7, "int8": 5, "int4": 14, "pq": 17, "opq": 21, "rq": 13}
_SCAN_BYTES = {"float32": 4, "float16": 6, "int8": 4, "int4": 14, "pq": 0, "opq": 0, "rq": 0}


@dataclass(frozen=True)
class Hashing:
    """That unknown ids and keys of a table get one of its rows: all of them, or some from ``first_row`` on."""

    first_row: int = 0
    rows: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Options:
    """What the user decided about an export."""

    target: Path
    name: str
    version: str = "1.0.0"
    codec: str = "int8"
    #: Of single tables, by their names; ``ALL_TABLES`` in ``bags`` and ``hashes`` stands for those that have none.
    codecs: Mapping[str, str] = field(default_factory=dict)
    bags: Mapping[str, BagRecipe] = field(default_factory=dict)
    hashes: Mapping[str, Hashing] = field(default_factory=dict)
    graphs: tuple[str, ...] = GRAPH_FORMATS
    board: str = DEFAULT_BOARD
    memory_budget_bytes: int | None = None
    latency_budgets: Mapping[str, LatencyBudget] = field(default_factory=dict)
    collection: tuple[str, ...] = ()
    parent: str | None = None
    replace: bool = False
    evaluations: tuple[Task, ...] = ()
    max_loss: float | None = None


@dataclass(frozen=True)
class Report:
    """What came out: the manifest, and what the codec cost."""

    path: Path
    manifest: Manifest
    price: Price

    @property
    def quality(self) -> Mapping[str, Quality]:
        """The price of each table."""
        return self.price.quality


@dataclass(frozen=True, eq=False)
class _Part:
    """One table on its way into the bundle: its model without places, and the arrays that get them."""

    name: str
    codec: str
    vectors: Matrix
    codes: Encoded
    shared: Encoded
    row_order: str
    index: KeyIndex | None
    text: TextRecipe | None
    graphs: tuple[str, ...]
    space: Space | None = None
    bag: BagRecipe | None = None
    hash: HashRecipe | None = None
    subwords: SubwordRecipe | None = None
    classify: ClassifyRecipe | None = None


def export(source: Source, options: Options, progress: Progress = SILENT) -> Report:
    """Write the bundle of a source.

    Raises:
        RequestError: an option is impossible for this source.
        LossError: the codec loses more than ``options.max_loss``.
        BundleError: the target is taken, or a graph does not answer as the kernels do.
        MissingExtraError: a package of the ``export`` extra is not installed.
    """
    _check_options(options)
    _check_tables(source, options)
    with BundleWriter(options.target, replace=options.replace) as writer:
        parts = _parts(source, options, progress)
        models = tuple(_write_part(writer, part, progress) for part in parts)
        tokenizer = _tokenizer(source)
        if tokenizer is not None:
            writer.blob(TOKENIZER_BLOB, partial(_write_bytes, tokenizer))
        draft = partial(_manifest, source, options, models)
        with Runtime(writer.preview(draft), verify=False) as runtime:
            proven = tuple(_prove(model, runtime, runtime.bundle) for model in models)
            quality = _measure(parts, models, runtime, progress)
            evaluations = evaluated(source, options.evaluations, runtime)
            golden = _write_golden(writer, runtime)
        prices: list[Price] = []

        def sign(blobs: Mapping[str, Blob]) -> Manifest:
            signed = _signed_off(_manifest(source, options, proven, blobs), golden, quality, evaluations)
            prices.append(Price(options.codec, signed.size_bytes, quality, evaluations))
            check_loss(prices[0], options.max_loss)
            return signed

        manifest = writer.finish(sign)
    return Report(options.target, manifest, prices[0])


def _check_options(options: Options) -> None:
    for codec in (options.codec, *options.codecs.values()):
        encoder(codec)
    if not NAME.fullmatch(options.name):
        raise RequestError(
            f"name: expected letters, digits, dots, dashes, underscores, found {options.name!r}; pass --name"
        )
    if not VERSION.fullmatch(options.version):
        raise RequestError(f"version: expected something like 1.2.0 or 1.2.0-rc1, found {options.version!r}")
    unknown = set(options.graphs) - set(GRAPH_FORMATS)
    if unknown:
        raise RequestError(f"expected graphs of {', '.join(GRAPH_FORMATS)}, found {', '.join(sorted(unknown))}")
    board_named(options.board)


def _check_tables(source: Source, options: Options) -> None:
    """Refuse names that are none, and what no cosine can be taken of: NaN, infinity, numbers of too large squares."""
    names = [table.name for table in source.tables]
    if options.collection and COLLECTION in names:
        raise RequestError(f"{source.title}: expected tables of other names than {COLLECTION} beside a collection")
    strangers = {*options.codecs, *options.bags, *options.hashes} - {*names, ALL_TABLES}
    if strangers:
        raise RequestError(
            f"{source.title}: expected options for the tables {', '.join(names)}, found {', '.join(sorted(strangers))}"
        )
    if not names or len(set(names)) != len(names) or not all(map(NAME.fullmatch, names)):
        raise RequestError(f"{source.title}: expected tables, each with a name of its own, found {names}")
    for table in source.tables:
        dimensions = table.vectors.shape[1]
        if dimensions > DIMENSIONS_CEILING:
            raise RequestError(
                f"{source.title}: expected at most {DIMENSIONS_CEILING} dimensions, found {dimensions} in {table.name}"
            )
        for block in blocks_of(table.vectors):
            with np.errstate(over="ignore"):
                lengths = np.linalg.norm(table.vectors[block], axis=1)
            endless = np.flatnonzero(~np.isfinite(lengths))
            if len(endless):
                row = block.start + int(endless[0])
                key = "" if table.keys is None else f" ({table.keys[row]!r})"
                raise RequestError(
                    f"{table.name} of {source.title}: row {row}{key}: expected a vector of finite length, "
                    f"found {lengths[endless[0]]}"
                )


def _parts(source: Source, options: Options, progress: Progress) -> list[_Part]:
    """Return the source's tables and, where one is asked for, the collection's."""
    parts = []
    for table in source.tables:
        part = _part(table, source.title, options.codecs.get(table.name, options.codec), options.graphs)
        if table.is_helper:
            # Its rows are in the space of the table that reads them, and nobody else asks it.
            parts.append(part)
            continue
        bag = options.bags.get(table.name, options.bags.get(ALL_TABLES))
        hashing = options.hashes.get(table.name, options.hashes.get(ALL_TABLES))
        space = None if table.space_id == source.table.space_id else _space(table, f"{source.title}: {table.name}")
        hashed = None if hashing is None else _hash_recipe(table, hashing, source.title)
        if bag is not None and bag.padding_row is not None and bag.padding_row >= len(table.vectors):
            raise RequestError(
                f"{table.name} of {source.title}: expected a padding row below {len(table.vectors)}, "
                f"found {bag.padding_row}"
            )
        parts.append(replace(part, space=space, bag=bag, hash=hashed))
    if options.collection:
        parts.append(_part(_collection(source, options.collection, progress), source.title, options.codec, ()))
    return parts


def _space(table: SourceTable, title: str) -> Space:
    # A file's name may hold bytes that are no UTF-8; JSON may not.
    said = title.encode("utf-8", "backslashreplace").decode()
    return Space(table.space_id, table.vectors.shape[1], "cosine", said)


def _hash_recipe(table: SourceTable, hashing: Hashing, title: str) -> HashRecipe:
    rows = len(table.vectors)
    count = rows - hashing.first_row if hashing.rows is None else hashing.rows
    if count < 1 or hashing.first_row + count > rows:
        raise RequestError(
            f"{table.name} of {title}: expected rows for hashed ids within 0 to {rows - 1}, "
            f"found {count} from {hashing.first_row} on"
        )
    return HashRecipe(HASH_ALGORITHM, hashing.seed, hashing.first_row, count)


def _part(table: SourceTable, title: str, codec: str, graphs: tuple[str, ...]) -> _Part:
    # floret's table of words is empty: nothing to store, to run or to price.
    is_empty = not len(table.vectors)
    is_labels = table.is_helper and table.keys is not None
    codec, encode = encoder("float32" if is_empty else _LABELS_CODEC if is_labels else codec)
    try:
        codes = encode(table.vectors)
        shared: dict[str, Matrix] = dict(table.tensors)
        if _is_searched(table):
            shared["norms"] = _norms(codec, codes, table.vectors)
        index = None if table.keys is None else _indexed(table.keys, shared)
    except RequestError as error:
        raise RequestError(f"{table.name} of {title}: {error}") from error
    return _Part(
        table.name,
        codec,
        table.vectors,
        codes,
        shared,
        table.row_order,
        index,
        _recipe(table),
        () if table.is_helper or is_empty else graphs,
        subwords=table.subwords,
        classify=table.classify,
    )


def _is_searched(table: SourceTable) -> bool:
    """Whether a search may answer with a row's key: it has one, and the row is what it stands for, not a part."""
    parts = table.subwords is not None and table.subwords.rows == "parts" and table.subwords.maxn > 0
    return table.keys is not None and not table.is_helper and not parts and len(table.vectors) > 0


def _norms(codec: str, codes: Encoded, vectors: Matrix) -> NDArray[np.float32]:
    """Return the length ``(n,)`` of each row as a board decodes it."""
    norms = np.empty(len(vectors), np.float32)
    at = 0
    for decoded in decoded_blocks(codec, codes, vectors.shape[1]):
        # In float64: the squares of a row of tiny numbers are zeros in float32.
        norms[at : at + len(decoded)] = np.linalg.norm(decoded.astype(np.float64), axis=1)
        at += len(decoded)
    return norms


def _indexed(keys: Sequence[bytes], shared: dict[str, Matrix]) -> KeyIndex:
    """Add the tensors of keys, in both directions."""
    index = build_index(keys)
    lengths = np.fromiter(map(len, keys), np.uint64, len(keys))
    total = int(lengths.sum())
    if total >= 2**32:
        raise RequestError(f"expected at most 4 GiB of keys, found {total} bytes")
    shared |= {
        "index_pilots": index.pilots,
        "index_slots": index.slots,
        "key_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
        "key_bytes": np.frombuffer(b"".join(keys), np.uint8),
    }
    return KeyIndex(INDEX_ALGORITHM, index.seed)


def _recipe(table: SourceTable) -> TextRecipe | None:
    text = table.text
    if text is None:
        return None
    if table.subwords is not None:
        pooling = "mean-of-directions" if table.subwords.rows == "words" else "mean"
        return TextRecipe("fasttext", None, pooling, normalize=False, max_tokens=text.max_tokens)
    return TextRecipe(
        tokenizer="whitespace" if text.tokenizer is None else "huggingface",
        tokenizer_blob=None if text.tokenizer is None else TOKENIZER_BLOB,
        pooling="mean",
        normalize=text.normalize,
        max_tokens=text.max_tokens,
        max_letters=text.max_letters,
        skipped_token=text.skipped_token,
    )


def _tokenizer(source: Source) -> bytes | None:
    """Return the ``tokenizer.json`` of the source's encoder, if it has one."""
    return next((table.text.tokenizer for table in source.tables if table.text and table.text.tokenizer), None)


def _collection(source: Source, lines: Sequence[str], progress: Progress) -> SourceTable:
    """Return lines of text with their vectors by the encoder as its source has it, before any codec."""
    table = source.table
    if table.text is None or table.text.tokenizer is None:
        raise RequestError(f"{source.title}: expected a source with a tokenizer to encode a collection, found none")
    encoder = TextEncoder(
        HuggingFaceTokenizer(
            table.text.tokenizer,
            table.text.max_tokens,
            source.title,
            max_letters=table.text.max_letters,
            skipped=table.text.skipped_token,
        ),
        lambda ids: table.vectors[ids],
        dimensions=table.vectors.shape[1],
        normalize=table.text.normalize,
    )
    blocks = []
    with progress.task("encoding the collection", len(lines)) as advance:
        for start in range(0, len(lines), BLOCK_ROWS):
            blocks.append(encoder.encode(lines[start : start + BLOCK_ROWS]))
            advance(len(blocks[-1]))
    keys = tuple(line.encode("utf-8") for line in lines)
    return SourceTable(COLLECTION, keys, np.concatenate(blocks), table.weights_digest)


def _write_part(writer: BundleWriter, part: _Part, progress: Progress) -> Model:
    """Write a table's blobs and graphs and return its model; what its graphs are proven on is still open."""
    tensors: dict[str, Tensor] = {}
    rows, dimensions = part.vectors.shape
    total = sum(array.nbytes for array in (*part.codes.values(), *part.shared.values()))
    with progress.task(f"writing {part.name}", total) as advance:
        if "tflite" in part.graphs:
            # The one copy of the table stands behind the TFLite graph; runtime and ONNX graph point into it.
            writer.blob(f"{part.name}.tflite", partial(_write_tflite, part, tensors, advance))
            if part.shared:
                writer.blob(f"{part.name}.bin", partial(_write_sections, part.shared, tensors, advance))
        else:
            writer.blob(f"{part.name}.bin", partial(_write_sections, {**part.codes, **part.shared}, tensors, advance))
    if "onnx" in part.graphs:
        graph = onnx_lookup(part.codec, tensors, dimensions)
        writer.blob(f"{part.name}.onnx", partial(_write_bytes, graph))
    graphs = [Graph(name, "lookup", f"{part.name}.{name}") for name in part.graphs]
    if part.bag is not None:
        # A TFLite file holds both graphs, since its table lies in it; of ONNX each is a file over one table.
        blobs = {"onnx": f"{part.name}.bag.onnx", "tflite": f"{part.name}.tflite"}
        graphs += [Graph(name, "bag", blobs[name]) for name in part.graphs]
    model = Model(
        name=part.name,
        kind="table",
        codec=part.codec,
        rows=rows,
        dimensions=dimensions,
        tensors=tensors,
        row_order=part.row_order,
        key_index=part.index,
        text=part.text,
        unknown=_policy(part),
        graphs=tuple(graphs),
        space=part.space,
        bag=part.bag,
        hash=part.hash,
        subwords=part.subwords,
        classify=part.classify,
    )
    if part.bag is not None and "onnx" in part.graphs:
        writer.blob(f"{part.name}.bag.onnx", partial(_write_bytes, onnx_bag(model, tensors)))
    return model


def _policy(part: _Part) -> str:
    """Return what an unknown key gets."""
    if part.hash is not None:
        return "hash"
    return "error" if part.subwords is None else "subwords"


def _write_bytes(data: bytes, blob: BlobWriter) -> None:
    blob.write(data)


def _write_sections(
    arrays: Encoded, tensors: dict[str, Tensor], advance: Callable[[int], None], blob: BlobWriter
) -> None:
    """Write arrays as sections and note their places in ``tensors``."""
    for name, array in arrays.items():
        tensors[name] = blob.section(_chunks(array, advance), dtype=array.dtype.name, shape=array.shape)


def _chunks(array: Matrix, advance: Callable[[int], None]) -> Iterator[memoryview]:
    """Yield the little-endian bytes of an array."""
    for block in blocks_of(array):
        little = np.ascontiguousarray(array[block], array.dtype.newbyteorder("<"))
        if little.size:
            yield little.data
        advance(little.nbytes)


def _write_tflite(part: _Part, tensors: dict[str, Tensor], advance: Callable[[int], None], blob: BlobWriter) -> None:
    """Write the graph and, behind it, the table where the graph's offsets say."""
    weights = {name: (array.dtype.name, array.shape) for name, array in part.codes.items()}
    rows, dimensions = part.vectors.shape
    pooling = None if part.bag is None else Pooling(part.bag, part.hash, rows)
    header, places = tflite_header(part.codec, weights, dimensions, blob.name, pooling)
    blob.write(header)
    _write_sections(part.codes, tensors, advance, blob)
    if any(tensors[name] != place for name, place in places.items()):
        raise AssertionError("the sections lie where the graph says")


def _manifest(source: Source, options: Options, models: tuple[Model, ...], blobs: Mapping[str, Blob]) -> Manifest:
    """Return the manifest without what is only known when the bundle has answered."""
    codecs = {f"codec-{model.codec}" for model in models}
    text = {feature for model in models if model.text is not None for feature in model.text.features}
    words = {f"subwords-{model.subwords.algorithm}" for model in models if model.subwords is not None}
    words |= {"classify-fasttext" for model in models if model.classify is not None}
    keys = {"key-index-1" for model in models if model.key_index is not None}
    bags = {"bag-1" for model in models if model.bag is not None}
    spaces = {"model-space" for model in models if model.space is not None}
    hashes = {"unknown-hash" for model in models if model.hash is not None}
    features = tuple(sorted({*codecs, *text, *words, *keys, *bags, *spaces, *hashes}))
    return Manifest(
        name=options.name,
        version=options.version,
        space=_space(source.table, source.title),
        models=models,
        blobs=blobs,
        requirements=Requirements(features, _private_bytes(source, models)),
        budgets=_budgets(source, options, models),
        quality={},
        golden=(),
        parent=options.parent,
    )


def _signed_off(
    draft: Manifest,
    golden: tuple[Golden, ...],
    quality: Mapping[str, Quality],
    evaluations: tuple[Evaluation, ...],
) -> Manifest:
    """Return the manifest with what the bundle answered; a budget that no question measures is no promise."""
    asked = {question.operation for question in golden if question.inputs}
    operations = {name: budget for name, budget in draft.budgets.operations.items() if name in asked}
    return draft._replace(
        golden=golden,
        quality=manifest_quality(quality, evaluations, draft.models[0].name),
        budgets=draft.budgets._replace(operations=operations),
    )


def _private_bytes(source: Source, models: tuple[Model, ...]) -> int:
    """Predict what a runtime adds to a process that has numpy: its objects, a tokenizer, the buffers of a call."""
    definition = _tokenizer(source)
    tokenizer = 0 if definition is None else _TOKENIZERS_BYTES + _TOKENIZER_FACTOR * len(definition)
    # A scan holds a block of rows as float32, and scores with their quotients and order; see kernels and table.
    scan = max(
        (
            _SCAN_BYTES[model.codec] * model.dimensions * min(SCAN_ROWS, model.rows) + 32 * model.rows
            for model in models
            # Those that are searched, and labels: of parts, a call reads a few rows.
            if "norms" in model.tensors or (model.key_index is not None and model.subwords is None)
        ),
        default=0,
    )
    batch = max(
        _DECODE_BYTES[model.codec] * BATCH_TOKENS * model.dimensions if model.text is not None else 0
        for model in models
    )
    return _RUNTIME_BYTES + _TABLE_BYTES * (len(models) - 1) + tokenizer + scan + batch


def _budgets(source: Source, options: Options, models: tuple[Model, ...]) -> Budgets:
    there = {
        "lookup": True,
        "encode": models[0].text is not None,
        "classify": models[0].classify is not None,
        "search": any(map(searchable, models)),
        "bag": any(model.bag is not None for model in models),
    }
    operations = tuple(name for name, answered in there.items() if answered)
    scanned = max((model.rows * model.dimensions for model in models if searchable(model)), default=0)
    budgets = default_budgets(board_named(options.board), operations, scanned)
    strangers = set(options.latency_budgets) - set(operations)
    if strangers:
        raise RequestError(f"expected budgets for {', '.join(operations)}, found {', '.join(sorted(strangers))}")
    budget_bytes = budgets.memory_private_bytes
    if options.memory_budget_bytes is not None:
        budget_bytes = options.memory_budget_bytes
    needed_bytes = _private_bytes(source, models)
    if needed_bytes > budget_bytes:
        raise RequestError(
            f"{source.title}: expected a memory budget of {format_size(needed_bytes)} or more, which the bundle adds "
            f"to a process, found {format_size(budget_bytes)}; pass --budget memory=..."
        )
    return budgets._replace(
        memory_private_bytes=budget_bytes, operations={**budgets.operations, **options.latency_budgets}
    )


def _prove(model: Model, runtime: Runtime, bundle: Bundle) -> Model:
    """Run every graph beside the kernels; note the engine and its version where they agree to the last bit.

    A graph whose engine is not installed here stays unproven, and says so by an empty list.
    """
    ids = spread_rows(model.rows, _PROOF_ROWS)
    expected = runtime.lookup_ids(ids, model=model.name)
    graphs = []
    for graph in model.graphs:
        path = bundle.path / graph.blob
        if graph.format == "onnx":
            check_onnx(path)
        name = engine_of(graph)
        if graph.operation == "bag":
            graphs.append(_proven_bag(model, graph, runtime, bundle))
            continue
        try:
            engine = open_graph(graph, bundle, runtime.table(model.name).rows, model.dimensions)
        except MissingExtraError:
            graphs.append(graph)
            continue
        if not np.array_equal(engine.decode(ids), expected):
            raise BundleError(
                f"{path.name}: expected the kernels' vectors from {name} {engine.version}, found others; "
                "the bundle was not written"
            )
        graphs.append(graph._replace(proven=(Engine(name, engine.version),)))
    return model._replace(graphs=tuple(graphs))


def _proven_bag(model: Model, graph: Graph, runtime: Runtime, bundle: Bundle) -> Graph:
    """Run a graph of bags beside the kernels, which may add in another order: within ``error_bound``."""
    try:
        engine = open_bag_graph(graph, bundle)
    except MissingExtraError:
        return graph
    off, bound = bag_difference(runtime, model, engine) if model.rows else (0.0, 0.0)
    if off > bound:
        raise BundleError(
            f"{graph.blob}: expected the kernels' bags from {engine.name} {engine.version} within {bound:.3g}, "
            f"found them off by {off:.3g}; the bundle was not written"
        )
    return graph._replace(proven=(Engine(engine.name, engine.version),))


def _measure(
    parts: Sequence[_Part], models: tuple[Model, ...], runtime: Runtime, progress: Progress
) -> dict[str, Quality]:
    prices = {}
    for part, model in zip(parts, models, strict=True):
        decoded = Decoded(runtime, model)
        bytes_after = sum(model.tensors[name].size_bytes for name in part.codes)
        if not model.rows:
            continue
        if part.graphs or "norms" in part.shared or len(part.vectors) <= _HELPER_ROWS:
            prices[model.name] = measure_quality(part.vectors, decoded, bytes_after, progress)
            continue
        some = spread_rows(len(part.vectors), _HELPER_ROWS)
        price = measure_quality(Selection(part.vectors, some), Selection(decoded, some), bytes_after, progress)
        prices[model.name] = replace(price, bytes_before=part.vectors.nbytes)
    return prices


class Decoded:
    """A model's vectors as a matrix: what the runtime answers for its rows."""

    dtype = np.dtype(np.float32)

    def __init__(self, runtime: Runtime, model: Model) -> None:
        self._runtime = runtime
        self._name = model.name
        self.shape = (model.rows, model.dimensions)
        self.nbytes = 4 * model.rows * model.dimensions

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        ids = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return self._runtime.lookup_ids(ids, model=self._name)


def _write_golden(writer: BundleWriter, runtime: Runtime) -> tuple[Golden, ...]:
    """Ask the golden questions, write their answers and return the questions with their places."""
    questions = answered(runtime)
    tensors: dict[str, Tensor] = {}
    answers = {str(i): question.answer for i, question in enumerate(questions)}
    writer.blob(GOLDEN_BLOB, partial(_write_sections, answers, tensors, lambda _: None))
    return tuple(
        Golden(question.operation, question.model, question.by, question.inputs, tensors[str(i)], question.tolerance)
        for i, question in enumerate(questions)
    )
