"""Models as their trainers left them, each read by a module of its own into one ``Source``.

A reader checks a header's word against the size of the file before it allocates for it, and names file, expected and
found when it gives up. Formats are told apart by what is in the file or folder, not by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_bundle import strict_json
from edge_embed_bundle.manifest import ClassifyRecipe, SubwordRecipe
from edge_embed_bundle.values import Space
from edge_embed_export.clusters import Clusters
from edge_embed_export.matrix import Matrix

if TYPE_CHECKING:
    from edge_embed_export.sources.encoders import EncoderSource


@dataclass(frozen=True)
class SourceText:
    """How a source encodes text: a ``tokenizer.json`` (or None: words at white space), pooling by the mean.

    A text is cut after ``max_letters`` and after ``max_tokens``; ``skipped_token`` is then left out of the mean.
    """

    tokenizer: bytes | None
    normalize: bool
    max_tokens: int
    max_letters: int | None = None
    skipped_token: int | None = None


@dataclass(frozen=True, eq=False)
class SourceTable:
    """A table of a trained model.

    ``keys`` are the names of the rows as bytes, or None where a row has its id alone; ``vectors`` ``(n, d)`` float32;
    ``counts`` ``(n,)``: how often the trainer met each key, where it says. ``weights_digest`` and ``recipe`` say where
    the vectors come from: together with the text recipe they make the space.
    """

    name: str
    keys: Sequence[bytes] | None
    vectors: Matrix
    weights_digest: str
    recipe: Mapping[str, object] = field(default_factory=dict)
    text: SourceText | None = None
    counts: NDArray[np.int64] | None = None
    row_order: str = "source"
    #: How words are made of parts and texts get labels; they name other tables of the source.
    subwords: SubwordRecipe | None = None
    classify: ClassifyRecipe | None = None
    #: What the recipes need beside the vectors: the tensors ``bucket_ids`` and ``tree``.
    tensors: Mapping[str, NDArray[np.uint32]] = field(default_factory=dict)
    #: Whether only another table reads this one: then nobody searches it, and no graph is drawn for it.
    is_helper: bool = False
    #: The vectors ``(n, D)`` before they were made shorter, where they were.
    longer: Matrix | None = None
    #: The lists that a search goes through, where the rows stand in their order.
    clusters: Clusters | None = None
    #: The parent's space, where it was measured that the vectors stayed in it.
    space: Space | None = None

    @property
    def whole(self) -> Matrix:
        """The vectors as their trainer left them: what a bundle is compared with."""
        return self.vectors if self.longer is None else self.longer

    @property
    def text_ids(self) -> bytes | None:
        """The definition of a tokenizer whose ids are the table's rows, if it has one."""
        return None if self.text is None else self.text.tokenizer

    @property
    def space_id(self) -> str:
        """The digest of everything that makes two vectors comparable; the codec is no part of it."""
        if self.space is not None:
            return self.space.id
        text = self.text
        described = {
            "dimensions": int(self.vectors.shape[1]),
            "similarity": "cosine",
            "weights": self.weights_digest,
            "recipe": dict(self.recipe),
            "text": None
            if text is None
            else {
                "tokenizer": None if text.tokenizer is None else hashlib.sha256(text.tokenizer).hexdigest(),
                "pooling": "mean",
                "normalize": text.normalize,
                # Absent where nothing is skipped, as in the spaces that were made before.
                **({} if text.skipped_token is None else {"skipped_token": text.skipped_token}),
            },
        }
        return hashlib.sha256(b"edge-embed space 1\n" + strict_json.dumps(described)).hexdigest()


@dataclass(frozen=True, eq=False)
class Teacher:
    """The model that a source was distilled from: its name, and its vectors ``(n, d)`` of texts."""

    title: str
    encode: Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Source:
    """A trained model: one table or several; the first one answers where nobody names one.

    ``notes`` tell the user what was left out or changed on the way here.
    """

    title: str
    tables: tuple[SourceTable, ...]
    notes: tuple[str, ...] = ()
    #: What stands behind the vectors, where they were distilled: what its scores lose is told beside those of a codec.
    teacher: Teacher | None = None

    @property
    def table(self) -> SourceTable:
        """The first table."""
        return self.tables[0]


#: The name of a source's only table, and of the first one in a bundle.
TABLE = "table"

#: A key of ``Reading.keys`` for a source's only or first table.
ONLY_TABLE = "*"


@dataclass(frozen=True)
class Reading:
    """What the user says about a source that its content does not.

    ``keys`` are files with a key a line, by the table's name; ``key_column`` and ``vector_column`` name a column, a
    field or an array; ``tables`` are patterns of the tensors that are tables; ``trust_pickle`` lets gensim run what a
    pickle says; ``vocabulary`` is a file of words and their counts.
    """

    keys: Mapping[str, Path] = field(default_factory=dict)
    key_column: str | None = None
    vector_column: str | None = None
    trust_pickle: bool = False
    tables: tuple[str, ...] = ()
    vocabulary: Path | None = None

    @property
    def key_file(self) -> Path | None:
        """The keys of a source of one table."""
        return self.keys.get(ONLY_TABLE)


Reader = Callable[[Path], Source]

# What tells the formats apart: a header and a row, as a rule.
_HEAD_BYTES = 4096


def readers(reading: Reading | None = None, progress: Progress = SILENT) -> dict[str, Reader]:
    """Return every reader by the name of its format, each ready to read as ``reading`` says."""
    from edge_embed_export.sources.binary_vectors import read_glove_binary, read_word2vec_binary
    from edge_embed_export.sources.containers import container_readers
    from edge_embed_export.sources.fasttext import read_fasttext
    from edge_embed_export.sources.floret import read_floret
    from edge_embed_export.sources.sentence_transformers import read_static_from_transformer
    from edge_embed_export.sources.tensors import read_safetensors, read_torch
    from edge_embed_export.sources.text_vectors import read_with_header, read_without_header

    reading = reading or Reading()
    return {
        "word2vec-binary": partial(read_word2vec_binary, progress=progress),
        "word2vec-text": partial(read_with_header, progress=progress),
        "glove-binary": partial(read_glove_binary, vocabulary=reading.vocabulary, progress=progress),
        "glove-text": partial(read_without_header, progress=progress),
        "fasttext": read_fasttext,
        "floret": partial(read_floret, progress=progress),
        "transformer-tokens": read_static_from_transformer,
        "safetensors": partial(read_safetensors, chosen=reading.tables),
        "torch": partial(read_torch, chosen=reading.tables),
        **container_readers(reading, progress),
    }


#: The formats of graphs of other makers, which stay as they are: of images, in ONNX or TFLite; of texts, in TFLite.
IMAGE, TEXT_GRAPH, ONNX_TEXT = "image", "tflite-text", "onnx-text"

EncoderReader: TypeAlias = "Callable[[Path], EncoderSource]"


def encoder_readers(image_recipe: Path | None = None) -> dict[str, EncoderReader]:
    """Return every reader of encoders by the name of its format; ``image_recipe`` says how pictures become pixels."""
    from edge_embed_export.sources.image_encoders import read_image_encoder
    from edge_embed_export.sources.onnx_folders import read_onnx_folder
    from edge_embed_export.sources.text_graphs import read_text_graph
    from edge_embed_export.sources.transformers import read_transformer_encoder

    return {
        "transformer": read_transformer_encoder,
        IMAGE: partial(read_image_encoder, recipe=image_recipe),
        TEXT_GRAPH: read_text_graph,
        ONNX_TEXT: read_onnx_folder,
    }


def encoder_shown(path: Path) -> str | None:
    """Return the format of an encoder that a file's content shows; folders are named by their users."""
    from edge_embed_export.sources.image_encoders import is_graph_file
    from edge_embed_export.sources.text_graphs import names_a_tokenizer

    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            if not is_graph_file(file.read(_HEAD_BYTES), path):
                return None
    except OSError:
        return None
    return TEXT_GRAPH if names_a_tokenizer(path) else IMAGE


def read_encoder(path: Path, format: str, image_recipe: Path | None = None) -> EncoderSource:
    """Read an encoder in the named format.

    Raises:
        RequestError: the source is absent, damaged or of no known format.
    """
    known = encoder_readers(image_recipe)
    if format not in known:
        raise RequestError(f"expected a format of {', '.join(known)}, found {format!r}")
    if not path.exists():
        raise RequestError(f"{path}: expected a model to export, found nothing there")
    try:
        return known[format](path)
    except OSError as error:
        raise RequestError(f"{path}: expected a model to export, found: {error}") from error


def read_source(
    path: Path, format: str | None = None, reading: Reading | None = None, progress: Progress = SILENT
) -> Source:
    """Read a source, in the named format or in the one that its content shows.

    Args:
        path: a file or a folder.
        format: the name of a reader; what the content shows if not given.
        reading: what a source does not say itself: its keys, its columns, which of its tensors are tables.
        progress: told how far a long reading is.

    Raises:
        RequestError: the source is absent, damaged or of no known format.
    """
    from edge_embed_export.sources.containers import check_reading
    from edge_embed_export.sources.tensors import with_keys

    reading = reading or Reading()
    known = readers(reading, progress)
    if not path.exists():
        raise RequestError(f"{path}: expected a model to export, found nothing there")
    if not path.is_dir() and not path.is_file():
        # A device has no end, a pipe no size that a header could be compared with.
        raise RequestError(f"{path}: expected a model's file or folder, found something else")
    if format is None:
        format = _detected(path)
    if format not in known:
        raise RequestError(f"expected a format of {', '.join(known)}, found {format!r}")
    check_reading(reading, format)
    try:
        source = known[format](path)
        return with_keys(source, reading.keys) if format in ("safetensors", "torch") else source
    except OSError as error:
        raise RequestError(f"{path}: expected a model to export, found: {error}") from error


def _detected(path: Path) -> str:
    from edge_embed_export.sources.containers import container_by_folder, container_by_head
    from edge_embed_export.sources.fasttext import looks_like_fasttext
    from edge_embed_export.sources.floret import looks_like_floret
    from edge_embed_export.sources.tensors import is_safetensors, is_torch
    from edge_embed_export.sources.text_vectors import dimensions_of, header_of, is_number

    if path.is_dir():
        named = container_by_folder(path)
        if named is not None:
            return named
        if (path / "tokenizer.json").is_file() and (path / "model.safetensors").is_file():
            return "transformer-tokens"
        raise RequestError(f"{path}: expected tokenizer.json and model.safetensors in the folder, found neither or one")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise RequestError(f"{path}: expected a model to export, found: {error.strerror}") from error
    if is_safetensors(path, head):
        return "safetensors"
    if is_torch(path, head):
        return "torch"
    if looks_like_fasttext(head):
        return "fasttext"
    named = container_by_head(head)
    if named is not None:
        return named
    first, newline, rest = head.partition(b"\n")
    if looks_like_floret(first):
        return "floret"
    if header_of(first + newline) is None:
        if dimensions_of(head):
            return "glove-text"
        raise RequestError(
            f"{path}: expected a model's file of a known format, found one that begins with {first[:40]!r}; "
            "name the format with --format"
        )
    # A text row ends in its numbers; a binary one has bytes after the word that are none.
    row, newline, _ = rest.partition(b"\n")
    fields = row.split()[1:] if newline or len(head) < _HEAD_BYTES else row.split()[1:-1]
    return "word2vec-text" if fields and all(map(is_number, fields[-2:])) else "word2vec-binary"
