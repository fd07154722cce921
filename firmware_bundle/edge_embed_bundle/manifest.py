"""``manifest.json`` as frozen values: what a bundle holds, what it needs and what it promises.

 * ``Manifest.parse`` is the gate. Behind it every name is a plain file name, every tensor lies inside its blob,
   every codec has its tensors in their shapes, and no code looks again.
 * ``Manifest.to_bytes`` is the one place where values become JSON. Fields that this reader does not know survive
   in ``extra``.
 * What a reader *must* know to answer rightly stands in ``requirements.features``; an unknown one is refused.

SPEC.md says the same in the order of the file. The values are named tuples where the rest of the project uses frozen
dataclasses: every start of a board's process pays for making these classes, 0.04 ms each instead of 0.68.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from edge_embed_bundle import strict_json
from edge_embed_bundle.encoders import ENCODER_KIND, EncoderModel
from edge_embed_bundle.errors import UnsupportedFormatError
from edge_embed_bundle.fields import HEX_DIGEST, NOTHING_THERE, Fields, shown
from edge_embed_bundle.values import (
    DIMENSIONS_CEILING,
    FILE_NAME,
    ITEM_BYTES,
    NAME,
    NOTHING,
    SECTION_BYTES,
    Blob,
    Engine,
    Space,
    Tensor,
)

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

#: Numbers of a row that share a scale in codec ``int4``.
INT4_BLOCK = 32

#: What ``pq``, ``opq`` and ``rq`` have in common: m codes a row, and a code for the row's length.
_CODES = {"rows": ("uint8", ("n", "m")), "length_codes": ("uint8", ("n",)), "length_levels": ("float32", ("256",))}

#: The tensors of each codec and the axes they span: n rows of d dimensions, in h bytes and g blocks of int4; m codes
#: of 256 centroids, each of s dimensions, w in all.
CODEC_TENSORS: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "float32": {"rows": ("float32", ("n", "d"))},
        "float16": {"rows": ("float16", ("n", "d"))},
        "int8": {"rows": ("int8", ("n", "d")), "scales": ("float32", ("n",))},
        "int4": {"rows": ("uint8", ("n", "h")), "scales": ("float16", ("n", "g"))},
        "pq": {**_CODES, "codebooks": ("float32", ("m", "256", "s"))},
        "opq": {**_CODES, "codebooks": ("float32", ("m", "256", "s")), "rotation": ("float32", ("d", "w"))},
        "rq": {**_CODES, "codebooks": ("float32", ("m", "256", "d"))},
    }
)

#: The tensors that any model may have beside those of its codec. An axis of another letter is free.
SHARED_TENSORS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "norms": ("float32", ("n",)),
        "centroids": ("int8", ("c", "d")),
        "centroid_scales": ("float32", ("c",)),
        "centroid_norms": ("float32", ("c",)),
        "list_ends": ("uint32", ("c",)),
        "plane": ("uint8", ("n", "h")),
        "plane_scales": ("float32", ("n",)),
        "index_pilots": ("uint16", ("b",)),
        "index_slots": ("uint32", ("slots", "2")),
        "key_offsets": ("uint32", ("n+1",)),
        "key_bytes": ("uint8", ("t",)),
        "bucket_ids": ("uint32", ("n",)),
        "tree": ("uint32", ("n-1", "2")),
    }
)

#: What this reader knows; a bundle lists what a reader must know.
FEATURES = frozenset(
    {*(f"codec-{codec}" for codec in CODEC_TENSORS), "key-index-1", "text-mean", "bag-1", "model-space", "unknown-hash"}
    | {"text-limits", "subwords-fasttext", "subwords-floret", "classify-fasttext"}
    | {"encoder-text-1", "encoder-image-1", "lists-4-bit"}
)

OPERATIONS = ("lookup", "encode", "encode_image", "search", "bag", "classify")
TABLE_KIND = "table"
BAG_MODES = ("sum", "mean", "max")
HASH_ALGORITHM = "xxh64-modulo"
INDEX_ALGORITHM = "xxh64-pilot"
SEARCH_ALGORITHM = "lists"
#: The tensors of a table's lists.
LIST_TENSORS = ("centroids", "centroid_scales", "centroid_norms", "list_ends")
PLANE_TENSORS = ("plane", "plane_scales")

VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,3}([-+][0-9A-Za-z.-]{1,40})?")
_ROW = re.compile(r"[0-9]{1,10}")
#: What a word begins or ends with: a field of a header line.
_EDGE = re.compile(r"\S{1,40}")
_BAG = re.compile(r"([0-9]{1,10}( [0-9]{1,10})*)?")
_ROWS_CEILING = 2**32 - 2
_TOKENS_CEILING = 1_000_000
# A word of so many letters has more parts than one of them is worth.
_NGRAM_CEILING = 1_000
_LETTERS_CEILING = 2**32
_SHORTLIST_CEILING = 10_000
# numpy multiplies the other axes of an empty array, too, and refuses what a board's word cannot count.
_EMPTY_CEILING_BYTES = 2**31 - 1


class Graph(NamedTuple):
    """A portable graph over the model's table.

    ``lookup`` takes ids ``(n,)`` to vectors ``(n, d)``; ``bag`` takes ids, offsets ``(b,)`` and, where the recipe says
    ``sum``, weights ``(n,)`` to pooled vectors ``(b, d)``.
    """

    format: str
    operation: str
    blob: str
    proven: tuple[Engine, ...] = ()
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Graph:
        """Read one entry of ``graphs``."""
        return cls(
            fields.text("format", among=("onnx", "tflite")),
            fields.text("operation", among=("lookup", "bag")),
            fields.text("blob", pattern=FILE_NAME),
            fields.listed("proven", Engine.read),
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            "format": self.format,
            "operation": self.operation,
            "blob": self.blob,
            "proven": [engine.to_json() for engine in self.proven],
        }


class KeyIndex(NamedTuple):
    """How keys find their rows: the tensors ``index_pilots`` and ``index_slots``, and the seed of the hash."""

    algorithm: str
    seed: int
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> KeyIndex:
        """Read ``key_index``."""
        return cls(fields.text("algorithm", among=(INDEX_ALGORITHM,)), fields.count("seed"), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "algorithm": self.algorithm, "seed": self.seed}


class TextRecipe(NamedTuple):
    """How a text becomes one vector: tokenizer, the rows of its tokens, their mean, its direction.

    A text is cut after ``max_letters``, its tokens after ``max_tokens``; ``skipped_token`` is then left out.
    """

    tokenizer: str
    tokenizer_blob: str | None
    pooling: str
    normalize: bool
    max_tokens: int
    max_letters: int | None = None
    skipped_token: int | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> TextRecipe:
        """Read ``text``."""
        tokenizer = fields.text("tokenizer", among=("huggingface", "whitespace", "fasttext"))
        return cls(
            tokenizer,
            fields.text("tokenizer_blob", pattern=FILE_NAME) if tokenizer == "huggingface" else None,
            fields.text("pooling", among=("mean", "mean-of-directions") if tokenizer == "fasttext" else ("mean",)),
            fields.flag("normalize"),
            fields.count("max_tokens", floor=1, ceiling=_TOKENS_CEILING),
            fields.count("max_letters", floor=1, ceiling=_LETTERS_CEILING) if fields.has("max_letters") else None,
            fields.count("skipped_token", ceiling=_ROWS_CEILING) if fields.has("skipped_token") else None,
            fields.rest(),
        )

    @property
    def features(self) -> tuple[str, ...]:
        """What a reader must know to answer rightly."""
        if self.tokenizer == "fasttext":
            return ()  # that of the model's subwords says it all
        plain = self.max_letters is None and self.skipped_token is None
        return ("text-mean",) if plain else ("text-limits", "text-mean")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        blob = {} if self.tokenizer_blob is None else {"tokenizer_blob": self.tokenizer_blob}
        letters = {} if self.max_letters is None else {"max_letters": self.max_letters}
        skipped = {} if self.skipped_token is None else {"skipped_token": self.skipped_token}
        return {
            **self.extra,
            **blob,
            **letters,
            **skipped,
            "tokenizer": self.tokenizer,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
        }


class BagRecipe(NamedTuple):
    """How the rows of a bag become one vector where the caller does not say: the mode, and the row that is left out."""

    mode: str
    padding_row: int | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> BagRecipe:
        """Read ``bag``; whether the table has the row is checked with the model."""
        return cls(
            fields.text("mode", among=BAG_MODES),
            fields.count("padding_row", ceiling=_ROWS_CEILING) if fields.has("padding_row") else None,
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        padding = {} if self.padding_row is None else {"padding_row": self.padding_row}
        return {**self.extra, **padding, "mode": self.mode}


class HashRecipe(NamedTuple):
    """Which row an unknown key or id gets: one of ``rows`` rows from ``first_row`` on, by a hash and its remainder."""

    algorithm: str
    seed: int
    first_row: int
    rows: int
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> HashRecipe:
        """Read ``hash``; whether the table has the rows is checked with the model."""
        return cls(
            fields.text("algorithm", among=(HASH_ALGORITHM,)),
            fields.count("seed"),
            fields.count("first_row", ceiling=_ROWS_CEILING),
            fields.count("rows", floor=1, ceiling=_ROWS_CEILING),
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "first_row": self.first_row,
            "rows": self.rows,
        }


class BloomRecipe(NamedTuple):
    """How a part finds its rows in floret's table: ``hashes`` of them, and what a word begins and ends with."""

    hashes: int
    seed: int
    begin: str
    end: str
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> BloomRecipe:
        """Read ``subwords.bloom``."""
        hashes = fields.count("hashes", floor=1, ceiling=4)
        seed = fields.count("seed", ceiling=2**32 - 1)
        return cls(hashes, seed, fields.text("begin", pattern=_EDGE), fields.text("end", pattern=_EDGE), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "hashes": self.hashes, "seed": self.seed, "begin": self.begin, "end": self.end}


class SubwordRecipe(NamedTuple):
    """How words are made of parts: the rows of their n-grams, which stand in the model ``table`` by their buckets.

    ``rows`` says what a row of this model's own table is: a word's whole vector (``words``), or one part of it.
    """

    algorithm: str
    rows: str
    table: str | None
    buckets: int
    minn: int
    maxn: int
    word_ngrams: int
    bloom: BloomRecipe | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> SubwordRecipe:
        """Read ``subwords``."""
        algorithm = fields.text("algorithm", among=("fasttext", "floret"))
        rows = fields.text("rows", among=("words", "parts"))
        table = fields.text("table", pattern=NAME) if fields.has("table") else None
        buckets = fields.count("buckets", floor=0 if table is None else 1, ceiling=_ROWS_CEILING)
        maxn = fields.count("maxn", ceiling=_NGRAM_CEILING)
        minn = fields.count("minn", ceiling=_NGRAM_CEILING)
        word_ngrams = fields.count("word_ngrams", floor=1, ceiling=_NGRAM_CEILING)
        bloom = fields.nested("bloom", BloomRecipe.read) if fields.has("bloom") else None
        if (algorithm == "floret") != (bloom is not None and rows == "words" and table is not None):
            fields.fail("bloom", "a recipe beside floret, whose rows are words and whose buckets a table", algorithm)
        return cls(algorithm, rows, table, buckets, minn, maxn, word_ngrams, bloom, fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        table = {} if self.table is None else {"table": self.table}
        bloom = {} if self.bloom is None else {"bloom": self.bloom.to_json()}
        return {
            **self.extra,
            **table,
            **bloom,
            "algorithm": self.algorithm,
            "rows": self.rows,
            "buckets": self.buckets,
            "minn": self.minn,
            "maxn": self.maxn,
            "word_ngrams": self.word_ngrams,
        }


class ClassifyRecipe(NamedTuple):
    """How a text gets labels: the keys of the model ``labels``, whose rows the text's vector is compared with."""

    labels: str
    output: str
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> ClassifyRecipe:
        """Read ``classify``."""
        labels = fields.text("labels", pattern=NAME)
        return cls(labels, fields.text("output", among=("softmax", "sigmoid", "tree")), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "labels": self.labels, "output": self.output}


class SearchRecipe(NamedTuple):
    """How a table in the order of its clusters is searched: the lists of the ``probes`` nearest centroids.

    Where there is a ``shortlist``, a plane of 4-bit codes is scanned first, and so many rows for each neighbour that is
    asked for are then compared as they are. ``recall_at_10`` is what was found of the ten nearest rows by the source's
    vectors, of ``queries`` rows that the clusters were not trained on.
    """

    algorithm: str
    probes: int
    recall_at_10: float
    queries: int
    shortlist: int | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> SearchRecipe:
        """Read ``search``; whether there are so many lists is checked with the model."""
        return cls(
            fields.text("algorithm", among=(SEARCH_ALGORITHM,)),
            fields.count("probes", floor=1, ceiling=_ROWS_CEILING),
            fields.number("recall_at_10"),
            fields.count("queries"),
            fields.count("shortlist", floor=1, ceiling=_SHORTLIST_CEILING) if fields.has("shortlist") else None,
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        shortlist = {} if self.shortlist is None else {"shortlist": self.shortlist}
        return {
            **self.extra,
            **shortlist,
            "algorithm": self.algorithm,
            "probes": self.probes,
            "recall_at_10": self.recall_at_10,
            "queries": self.queries,
        }


class TableModel(NamedTuple):
    """One table of ``rows`` vectors of ``dimensions``, and what can be asked of it."""

    name: str
    codec: str
    rows: int
    dimensions: int
    tensors: Mapping[str, Tensor]
    row_order: str = "source"
    unknown: str = "error"
    key_index: KeyIndex | None = None
    text: TextRecipe | None = None
    graphs: tuple[Graph, ...] = ()
    #: Its own space; the bundle's where it has none.
    space: Space | None = None
    bag: BagRecipe | None = None
    hash: HashRecipe | None = None
    subwords: SubwordRecipe | None = None
    classify: ClassifyRecipe | None = None
    search: SearchRecipe | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> TableModel:
        """Read one entry of ``models`` whose kind is ``table``."""
        model = cls(
            fields.text("name", pattern=NAME),
            fields.text("codec", among=tuple(CODEC_TENSORS)),
            fields.count("rows", ceiling=_ROWS_CEILING),
            fields.count("dimensions", ceiling=DIMENSIONS_CEILING),
            fields.named("tensors", Tensor.read, pattern=NAME),
            fields.text("row_order", among=("source", "frequency", "cluster")),
            fields.text("unknown", among=("error", "zeros", "hash", "subwords")),
            fields.nested("key_index", KeyIndex.read) if fields.has("key_index") else None,
            fields.nested("text", TextRecipe.read) if fields.has("text") else None,
            fields.listed("graphs", Graph.read),
            fields.nested("space", Space.read) if fields.has("space") else None,
            fields.nested("bag", BagRecipe.read) if fields.has("bag") else None,
            fields.nested("hash", HashRecipe.read) if fields.has("hash") else None,
            fields.nested("subwords", SubwordRecipe.read) if fields.has("subwords") else None,
            fields.nested("classify", ClassifyRecipe.read) if fields.has("classify") else None,
            fields.nested("search", SearchRecipe.read) if fields.has("search") else None,
            fields.rest(),
        )
        _check_tensors(model, fields)
        _check_recipes(model, fields)
        return model

    @property
    def centroids_are_plane(self) -> bool:
        """Whether the centroids of its lists have 4 bits a number, as a plane has, or 8."""
        centroids = self.tensors.get("centroids")
        return self.search is not None and centroids is not None and centroids.dtype == "uint8"

    @property
    def blobs(self) -> tuple[str, ...]:
        """The files of this model that are read whole: its graphs and its tokenizer."""
        tokenizer = () if self.text is None or self.text.tokenizer_blob is None else (self.text.tokenizer_blob,)
        return (*(graph.blob for graph in self.graphs), *tokenizer)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        optional = {
            "key_index": self.key_index,
            "text": self.text,
            "space": self.space,
            "bag": self.bag,
            "hash": self.hash,
            "subwords": self.subwords,
            "classify": self.classify,
            "search": self.search,
        }
        return {
            **self.extra,
            **{name: value.to_json() for name, value in optional.items() if value is not None},
            "name": self.name,
            "kind": TABLE_KIND,
            "codec": self.codec,
            "rows": self.rows,
            "dimensions": self.dimensions,
            "tensors": {name: tensor.to_json() for name, tensor in self.tensors.items()},
            "row_order": self.row_order,
            "unknown": self.unknown,
            "graphs": [graph.to_json() for graph in self.graphs],
        }


#: What a bundle holds: a table of vectors, or an encoder that makes them.
Model: TypeAlias = TableModel | EncoderModel


def _read_model(fields: Fields) -> Model:
    if fields.text("kind", among=(TABLE_KIND, ENCODER_KIND)) == TABLE_KIND:
        return TableModel.read(fields)
    return EncoderModel.read(fields)


class Requirements(NamedTuple):
    """What the bundle needs: features of the reader, and private memory beyond a bare numpy process."""

    features: tuple[str, ...]
    memory_private_bytes: int
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Requirements:
        """Read ``requirements``."""
        return cls(fields.texts("features"), fields.count("memory_private_bytes"), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            "features": list(self.features),
            "memory_private_bytes": self.memory_private_bytes,
        }


class LatencyBudget(NamedTuple):
    """The slowest that an operation may be, in microseconds, at the median and at the 99th percentile."""

    p50_us: float
    p99_us: float
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> LatencyBudget:
        """Read one value of ``operations``."""
        return cls(fields.number("p50_us"), fields.number("p99_us"), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "p50_us": self.p50_us, "p99_us": self.p99_us}


class Budgets(NamedTuple):
    """What the bundle promises on ``board``: private memory of the whole process, and latency by operation."""

    board: str | None
    memory_private_bytes: int
    operations: Mapping[str, LatencyBudget]
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Budgets:
        """Read ``budgets``."""
        return cls(
            fields.text("board", pattern=NAME) if fields.has("board") else None,
            fields.count("memory_private_bytes"),
            fields.named("operations", LatencyBudget.read, pattern=re.compile("|".join(OPERATIONS))),
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        board = {} if self.board is None else {"board": self.board}
        return {
            **self.extra,
            **board,
            "memory_private_bytes": self.memory_private_bytes,
            "operations": {name: budget.to_json() for name, budget in self.operations.items()},
        }


class Golden(NamedTuple):
    """Questions and the answers that every board must give.

    ``lookup`` expects vectors ``(n, d)`` for keys (``by`` ``row``: for row ids), ``encode`` vectors ``(n, d)`` for
    texts, ``encode_image`` for pictures (``by`` ``image``: names of blobs), ``bag`` pooled vectors ``(n, d)`` for bags
    by the model's recipe (row ids with spaces between), ``search`` the scores ``(n, k)`` of the best neighbours for
    keys, texts or images (``by``) in ``model``, ``classify`` the probabilities ``(n, k)`` of the likeliest labels of
    texts; all float32. ``tolerance`` bounds the absolute difference of every number; a lookup is right to the last
    bit.
    """

    operation: str
    model: str
    by: str
    inputs: tuple[str, ...]
    expected: Tensor
    tolerance: float
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Golden:
        """Read one entry of ``golden``."""
        golden = cls(
            fields.text("operation", among=OPERATIONS),
            fields.text("model", pattern=NAME),
            fields.text("by", among=("key", "text", "row", "image")),
            fields.texts("inputs"),
            fields.nested("expected", Tensor.read),
            fields.number("tolerance"),
            fields.rest(),
        )
        if golden.operation == "lookup" and golden.tolerance != 0:
            fields.fail("tolerance", "0 for a lookup, whose answers are exact", golden.tolerance)
        spelled = {"lookup": _ROW, "bag": _BAG}.get(golden.operation)
        if golden.by == "row" and (spelled is None or not all(map(spelled.fullmatch, golden.inputs))):
            fields.fail("inputs", "row ids in decimal digits, for a lookup or a bag", list(golden.inputs))
        if golden.operation == "bag" and golden.by != "row":
            fields.fail("by", "row, for a bag", golden.by)
        if golden.operation in ("lookup", "encode", "classify") and golden.by == "image":
            fields.fail("by", "key, text or row", golden.by)
        if golden.operation == "encode_image" and golden.by != "image":
            fields.fail("by", "image, for images", golden.by)
        tensor = golden.expected
        if tensor.dtype != "float32" or len(tensor.shape) != 2 or tensor.shape[0] != len(golden.inputs):
            fields.fail("expected", f"float32 of shape ({len(golden.inputs)}, ...)", tensor.to_json())
        return golden

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            "operation": self.operation,
            "model": self.model,
            "by": self.by,
            "inputs": list(self.inputs),
            "expected": self.expected.to_json(),
            "tolerance": self.tolerance,
        }


class Manifest(NamedTuple):
    """The whole of ``manifest.json``. The first model answers where a caller names none."""

    name: str
    version: str
    space: Space
    models: tuple[Model, ...]
    blobs: Mapping[str, Blob]
    requirements: Requirements
    budgets: Budgets
    quality: Mapping[str, Mapping[str, Any]]
    golden: tuple[Golden, ...]
    parent: str | None = None
    extra: Mapping[str, Any] = NOTHING

    @property
    def tables(self) -> tuple[TableModel, ...]:
        """The models that hold vectors; of these, too, the first one answers where a caller names none."""
        return tuple(model for model in self.models if isinstance(model, TableModel))

    @property
    def encoders(self) -> tuple[EncoderModel, ...]:
        """The models that make vectors by a graph."""
        return tuple(model for model in self.models if isinstance(model, EncoderModel))

    @property
    def helpers(self) -> frozenset[str]:
        """The models that only another one reads: its subwords and its labels."""
        named = {model.subwords.table for model in self.tables if model.subwords is not None}
        labels = {model.classify.labels for model in self.tables if model.classify is not None}
        return frozenset(name for name in named | labels if name is not None)

    def space_of(self, model: Model) -> Space:
        """Return what a model's vectors may be compared with: its own space, or the bundle's."""
        return self.space if model.space is None else model.space

    def model(self, name: str) -> Model | None:
        """Return the model of that name, if the bundle has it."""
        return next((model for model in self.models if model.name == name), None)

    def table(self, name: str) -> TableModel | None:
        """Return the table of that name, if the bundle has it."""
        return next((model for model in self.tables if model.name == name), None)

    @property
    def size_bytes(self) -> int:
        """The bytes of all blobs."""
        return sum(blob.size_bytes for blob in self.blobs.values())

    @classmethod
    def parse(cls, data: bytes, *, source: str) -> Manifest:
        """Read and check a manifest.

        Args:
            data: the bytes of ``manifest.json``.
            source: the file's name, for errors.

        Raises:
            ManifestError: a rule of SPEC.md is broken.
            UnsupportedFormatError: the bundle needs a newer reader.
        """
        fields = Fields(strict_json.loads(data, source=source), source=source)
        version = fields.count("format")
        if version != FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{source}: expected format version {FORMAT_VERSION}, found {version}; update edge-embed on this board"
            )
        requirements = fields.nested("requirements", Requirements.read)
        unknown = sorted(set(requirements.features) - FEATURES)
        if unknown:
            raise UnsupportedFormatError(
                f"{source}: requirements.features: expected features that this reader knows "
                f"({', '.join(sorted(FEATURES))}), found {shown(', '.join(unknown))}; update edge-embed on this board"
            )
        manifest = cls(
            fields.text("name", pattern=NAME),
            fields.text("version", pattern=VERSION),
            fields.nested("space", Space.read),
            fields.listed("models", _read_model),
            fields.named("blobs", Blob.read, pattern=FILE_NAME),
            requirements,
            fields.nested("budgets", Budgets.read),
            fields.named("quality", Fields.rest, pattern=NAME),
            fields.listed("golden", Golden.read),
            fields.text("parent", pattern=HEX_DIGEST) if fields.has("parent") else None,
            fields.rest(),
        )
        _check_references(manifest, fields)
        return manifest

    def to_bytes(self) -> bytes:
        """Return the file: one spelling for one value."""
        parent = {} if self.parent is None else {"parent": self.parent}
        return strict_json.dumps(
            {
                **self.extra,
                **parent,
                "format": FORMAT_VERSION,
                "name": self.name,
                "version": self.version,
                "space": self.space.to_json(),
                "models": [model.to_json() for model in self.models],
                "blobs": {name: blob.to_json() for name, blob in self.blobs.items()},
                "requirements": self.requirements.to_json(),
                "budgets": self.budgets.to_json(),
                "quality": {name: dict(price) for name, price in self.quality.items()},
                "golden": [golden.to_json() for golden in self.golden],
            }
        )


def _check_tensors(model: TableModel, fields: Fields) -> None:
    """Every tensor that a codec or the index needs is there, in its dtype and shape."""
    d = model.dimensions
    axes = {"n": model.rows, "d": d, "n+1": model.rows + 1, "n-1": model.rows - 1, "2": 2, "256": 256}
    axes |= {"h": -(-d // 2), "g": -(-d // INT4_BLOCK)}
    codes, books = (model.tensors[name].shape if name in model.tensors else () for name in ("rows", "codebooks"))
    if len(codes) == 2 and len(books) == 3:
        axes |= {"m": codes[1], "s": books[2], "w": codes[1] * books[2]}
    needed = dict(CODEC_TENSORS[model.codec])
    if model.key_index is not None:
        needed |= {name: SHARED_TENSORS[name] for name in ("index_pilots", "index_slots")}
    if "key_offsets" in model.tensors or "key_bytes" in model.tensors:
        needed |= {name: SHARED_TENSORS[name] for name in ("key_offsets", "key_bytes")}
    needed |= {name: SHARED_TENSORS[name] for name in ("norms", "bucket_ids", "tree") if name in model.tensors}
    if model.search is not None:
        plane = () if model.search.shortlist is None else PLANE_TENSORS
        needed |= {name: SHARED_TENSORS[name] for name in ("norms", *LIST_TENSORS, *plane)}
        if model.centroids_are_plane:
            needed["centroids"] = ("uint8", ("c", "h"))
        axes |= {"c": next(iter(model.tensors["list_ends"].shape), 0)} if "list_ends" in model.tensors else {}
    for name, (dtype, letters) in needed.items():
        tensor = model.tensors.get(name)
        if tensor is None:
            fields.fail("tensors", f"the tensor {name}", NOTHING_THERE)
        fits = len(tensor.shape) == len(letters) and all(
            axes.get(letter, size) == size for letter, size in zip(letters, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits:
            shape = ", ".join(str(axes.get(letter, letter)) for letter in letters)
            fields.fail(f"tensors.{name}", f"{dtype} of shape ({shape})", f"{tensor.dtype} of {tensor.shape}")
    if "codebooks" in CODEC_TENSORS[model.codec]:
        m, width = axes["m"], axes["s"]
        if not m or not width or (model.codec == "pq" and not (m - 1) * width < d <= m * width):
            fields.fail("tensors.codebooks", f"one book or more, whose parts just make {d} dimensions", books)
    if model.key_index is not None and not model.tensors["index_pilots"].size_bytes:
        # Every key hashes into a bucket, so there is one at least.
        fields.fail("tensors.index_pilots", "one pilot or more", "none")


def _check_recipes(model: TableModel, fields: Fields) -> None:
    """What a bag leaves out and where unknown ids go are rows of the table; what a recipe needs of another is there."""
    if model.bag is not None and model.bag.padding_row is not None and model.bag.padding_row >= model.rows:
        fields.fail("bag.padding_row", f"a row of the table's {model.rows}", model.bag.padding_row)
    if model.hash is not None and model.hash.first_row + model.hash.rows > model.rows:
        end = model.hash.first_row + model.hash.rows
        fields.fail("hash", f"rows among the table's {model.rows}", f"an end at row {end}")
    if (model.unknown == "hash") != (model.hash is not None):
        found = NOTHING_THERE if model.hash is None else f"one beside {model.unknown}"
        fields.fail("hash", "a recipe where unknown is hash, and none elsewhere", found)
    if model.bag is None and any(graph.operation == "bag" for graph in model.graphs):
        fields.fail("bag", "the recipe of the bag graphs", NOTHING_THERE)
    if model.unknown == "subwords" and model.subwords is None:
        fields.fail("unknown", "subwords where there is a recipe for them", model.unknown)
    if model.subwords is not None and model.key_index is None:
        fields.fail("subwords", "a model with a key index", NOTHING_THERE)
    if model.text is not None and model.text.tokenizer == "fasttext":
        if model.subwords is None:
            fields.fail("text.tokenizer", "fasttext where there is a recipe for subwords", model.text.tokenizer)
        pooling = {"words": "mean-of-directions", "parts": "mean"}[model.subwords.rows]
        if model.text.pooling != pooling:
            fields.fail("text.pooling", f"{pooling} of {model.subwords.rows}", model.text.pooling)
    if model.classify is not None and (model.text is None or model.text.pooling != "mean"):
        fields.fail("classify", "a model whose texts are the mean of their words' parts", NOTHING_THERE)
    if model.search is not None and model.search.probes > model.tensors["list_ends"].shape[0]:
        fields.fail("search.probes", f"at most the {model.tensors['list_ends'].shape[0]} lists", model.search.probes)
    if model.classify is not None and model.subwords is None:
        fields.fail("classify", "a model with a recipe for subwords", NOTHING_THERE)


def _check_helpers(manifest: Manifest, model: TableModel, fields: Fields) -> None:
    """The models that a recipe names are there, and made for it."""
    where = f"models.{model.name}"
    if model.subwords is not None and model.subwords.table is not None:
        table = manifest.table(model.subwords.table)
        if table is None or table.subwords is not None or table.dimensions != model.dimensions:
            name = model.subwords.table
            fields.fail(f"{where}.subwords.table", "another model of this bundle, as wide, made of no others", name)
        if "bucket_ids" not in table.tensors and table.rows != model.subwords.buckets:
            fields.fail(f"{where}.subwords.buckets", f"the {table.rows} rows of {table.name}", model.subwords.buckets)
    if model.classify is not None:
        labels = manifest.table(model.classify.labels)
        if labels is None or labels.subwords is not None or labels.dimensions != model.dimensions:
            fields.fail(f"{where}.classify.labels", "another model of this bundle, as wide", model.classify.labels)
        if not labels.rows or labels.key_index is None or "key_offsets" not in labels.tensors:
            fields.fail(f"{where}.classify.labels", "a model with keys, one or more", labels.name)
        if model.classify.output == "tree" and "tree" not in labels.tensors:
            fields.fail(f"{where}.classify.output", "tree where the labels have that tensor", model.classify.output)


def _check_references(manifest: Manifest, fields: Fields) -> None:
    """Every name that is used is one that exists, and every tensor lies inside its blob."""
    names = [model.name for model in manifest.models]
    if not names or len(set(names)) != len(names):
        fields.fail("models", "at least one model, each with a name of its own", names)
    for model in manifest.models:
        dimensions = manifest.space_of(model).dimensions
        if model.dimensions != dimensions:
            fields.fail(f"models.{model.name}", f"the {dimensions} dimensions of the space", model.dimensions)
        if isinstance(model, TableModel):
            for name, tensor in model.tensors.items():
                _check_tensor_place(manifest, tensor, f"models.{model.name}.tensors.{name}", fields)
            _check_helpers(manifest, model, fields)
        for blob in model.blobs:
            if blob not in manifest.blobs:
                fields.fail(f"models.{model.name}", "a file of this bundle", blob)
    for i, golden in enumerate(manifest.golden):
        if golden.model not in names:
            fields.fail(f"golden[{i}].model", "a model of this bundle", golden.model)
        _check_asked(manifest, golden, manifest.models[names.index(golden.model)], f"golden[{i}]", fields)
        _check_tensor_place(manifest, golden.expected, f"golden[{i}].expected", fields)


def _check_asked(manifest: Manifest, golden: Golden, model: Model, where: str, fields: Fields) -> None:
    """A golden question is one that its model can be asked, and the pictures in it are there."""
    if isinstance(model, EncoderModel) and golden.operation != model.operation:
        fields.fail(f"{where}.operation", f"{model.operation} for an encoder", golden.operation)
    if isinstance(model, TableModel) and golden.operation == "encode_image":
        fields.fail(f"{where}.model", "a model that encodes images", golden.model)
    if isinstance(model, TableModel) and golden.operation == "bag" and model.bag is None:
        fields.fail(f"{where}.model", "a model with a recipe for bags", golden.model)
    if golden.by == "image":
        for name in golden.inputs:
            if name not in manifest.blobs:
                fields.fail(f"{where}.inputs", "files of this bundle", name)


def _check_tensor_place(manifest: Manifest, tensor: Tensor, where: str, fields: Fields) -> None:
    blob = manifest.blobs.get(tensor.blob)
    if blob is None:
        fields.fail(where, "a file of this bundle", tensor.blob)
    if tensor.offset_bytes % SECTION_BYTES:
        fields.fail(where, f"an offset that is a multiple of {SECTION_BYTES}", tensor.offset_bytes)
    if not tensor.size_bytes and ITEM_BYTES[tensor.dtype] * prod(n or 1 for n in tensor.shape) > _EMPTY_CEILING_BYTES:
        fields.fail(where, f"other axes of at most {_EMPTY_CEILING_BYTES} bytes beside an empty one", tensor.shape)
    end = tensor.offset_bytes + tensor.size_bytes
    if end > blob.size_bytes:
        fields.fail(where, f"a tensor inside the {blob.size_bytes} bytes of {tensor.blob}", f"an end at byte {end}")
