"""fastText's own models: ``.bin`` (old ones without magic, versions 11 and 12) and ``.ftz``, read without fastText.

The order of the file, all of it little-endian (``fasttext.cc``, ``dictionary.cc`` and ``quantmatrix.cc`` of 0.9.2):

    magic, version            int32 each; files of the first releases have neither
    arguments                 12 int32 and a float64
    dictionary                int32 size, words, labels; int64 tokens; int64 of kept buckets (not in old files)
      entries                 bytes to a NUL, int64 count, int8 type: the words, then the labels
      kept buckets            int32 bucket and int32 row, each
    input matrix              a row a word, then a row a bucket; a flag before it says whether it is quantized
    output matrix             a row a label (or a word, which nobody asks for after the training); a flag as well

    a matrix                  int64 rows, int64 columns, float32 numbers
    a quantized one           int8 flag of norms, int64 rows, int64 columns, int32 and as many codes, a quantizer; with
                              norms: a code a row, a quantizer
    a quantizer               int32 dimensions, parts, width of a part, width of the last one; float32 centroids

 * Every count is compared with what is left of the file before anything is made for it.
 * A matrix stays in the file and is read by rows; what is quantized keeps its codes, which codec ``pq`` takes as they
   are.
 * A bundle of an unsupervised model holds the words' vectors, whole, and the buckets for words that it does not know.
   One of a supervised model holds parts, since a text is the mean of them, and the labels.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.subwords import ngram_buckets
from edge_embed_bundle.manifest import ClassifyRecipe, SubwordRecipe
from edge_embed_bundle.values import DIMENSIONS_CEILING
from edge_embed_export.matrix import Keys, Matrix, Selection, Spool, blocks_of
from edge_embed_export.quantized import PqMatrix
from edge_embed_export.sources import TABLE, Source, SourceTable, SourceText
from edge_embed_export.sources.tables import FileMatrix

MAGIC = 793712314
SUBWORDS = "subwords"
LABELS = "labels"

_VERSIONS = (11, 12)
_HEAD = struct.Struct("<12id")
_ENTRY = struct.Struct("<qb")
_CENTROIDS = 256
_KEY_CEILING_BYTES = 2**16
_READ_BYTES = 2**20
# What the original takes for the count of a node of the labels' tree that is not made yet.
_COUNT_CEILING = 10**15
_NGRAM_CEILING = 1000
_MAX_TOKENS = 1_000_000
_SUPERVISED = 3
_HIERARCHICAL, _NEGATIVE, _SOFTMAX, _ONE_VS_ALL = 1, 2, 3, 4
_OUTPUTS = {_HIERARCHICAL: "tree", _NEGATIVE: "sigmoid", _SOFTMAX: "softmax", _ONE_VS_ALL: "sigmoid"}


class _Arguments(NamedTuple):
    dim: int
    ws: int
    epoch: int
    min_count: int
    neg: int
    word_ngrams: int
    loss: int
    model: int
    bucket: int
    minn: int
    maxn: int
    lr_update_rate: int
    t: float

    def fault(self) -> str | None:
        """Return what no model has, or None."""
        for name, low, high in (
            ("dim", 1, DIMENSIONS_CEILING),
            ("word_ngrams", 0, _NGRAM_CEILING),
            ("loss", 1, 4),
            ("model", 1, 3),
            ("bucket", 0, 2**31 - 1),
            ("minn", 0, _NGRAM_CEILING),
            ("maxn", 0, _NGRAM_CEILING),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                return f"{name} from {low} to {high}, found {value}"
        return None


@dataclass(frozen=True, eq=False)
class _Dictionary:
    keys: Keys
    counts: NDArray[np.int64]
    words: int
    labels: int
    #: Which bucket is which row, ``(k, 2)``, or None where all of them are there.
    kept: NDArray[np.int64] | None


def looks_like_fasttext(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is a fastText model."""
    if len(head) < _HEAD.size + 8:
        return False
    if head[:4] == struct.pack("<i", MAGIC):
        return True
    arguments = _Arguments(*_HEAD.unpack_from(head))
    return arguments.fault() is None and 0 < arguments.ws <= 10_000 and head[:4].count(0) >= 2


def read_fasttext(path: Path) -> Source:
    """Read a model; see :func:`edge_embed_export.sources.read_source`."""
    with _File(path) as file:
        arguments, is_old = _arguments(file)
        dictionary = _dictionary(file, is_old)
        input_is_quantized = not is_old and file.flag("the input matrix's flag")
        if dictionary.kept is not None and not input_is_quantized:
            file.fail("a quantized matrix behind a pruned dictionary", "one of float32")
        rows = _matrix(file, "the input matrix", input_is_quantized)
        output_is_quantized = not is_old and file.flag("the output matrix's flag") and input_is_quantized
        output = _matrix(file, "the output matrix", output_is_quantized)
        if file.left:
            file.fail("the end after the output matrix", f"{file.left} more bytes")
    buckets = arguments.bucket if dictionary.kept is None else len(dictionary.kept)
    for what, matrix, expected in (
        ("input", rows, {dictionary.words + buckets, dictionary.words if not _has_parts(arguments) else -1}),
        ("output", output, {dictionary.labels if arguments.model == _SUPERVISED else dictionary.words}),
    ):
        if matrix.shape[0] not in expected or matrix.shape[1] != arguments.dim:
            counts = " or ".join(str(count) for count in sorted(expected) if count >= 0)
            raise RequestError(
                f"{path}: expected the {what} matrix to be {counts} x {arguments.dim} as the dictionary says, "
                f"found {matrix.shape[0]} x {matrix.shape[1]}"
            )
    return _source(path, arguments, dictionary, rows, output)


def _has_parts(arguments: _Arguments) -> bool:
    """Whether anything is ever hashed into a bucket."""
    return arguments.maxn > 0 or (arguments.model == _SUPERVISED and arguments.word_ngrams > 1)


def _arguments(file: _File) -> tuple[_Arguments, bool]:
    magic, version = file.unpack("<2i", "magic and version")
    is_old = magic != MAGIC
    if is_old:
        file.at -= 8
    elif version not in _VERSIONS:
        file.fail("version 11 or 12", version)
    arguments = _Arguments(*file.unpack(_HEAD.format, "the arguments"))
    fault = arguments.fault()
    if fault is not None:
        expected, _, found = fault.partition(", found ")
        file.fail(f"fastText's arguments, {expected}", found)
    if arguments.model == _SUPERVISED and (is_old or version == 11):
        # As the original: supervised models of that time had no n-grams of letters, whatever the file says.
        arguments = arguments._replace(maxn=0)
    return arguments._replace(minn=max(1, arguments.minn), word_ngrams=max(1, arguments.word_ngrams)), is_old


def _dictionary(file: _File, is_old: bool) -> _Dictionary:
    size, words, labels, _ = file.unpack("<3iq", "the dictionary's counts")
    kept_count = -1 if is_old else file.unpack("<q", "the count of kept buckets")[0]
    # An entry is a NUL, a count and a type at least.
    if min(size, words, labels) < 0 or words + labels != size or size * (_ENTRY.size + 1) > file.left:
        file.fail(
            f"words and labels that together are at most {file.left} bytes of entries",
            f"{words} and {labels} of {size}",
        )
    counts = np.empty(size, np.int64)
    keys = Keys.of(_entries(file, counts, words))
    if kept_count > 0 and 8 * kept_count > file.left:
        file.fail(f"at most {file.left} bytes of kept buckets", f"{kept_count} of 8 bytes")
    kept = None
    if kept_count >= 0:
        kept = np.frombuffer(file.read(8 * kept_count, "the kept buckets"), "<i4").reshape(-1, 2).astype(np.int64)
        if len(kept) and not (kept.min() >= 0 and kept[:, 1].max() < kept_count):
            file.fail(f"kept buckets in rows from 0 to {kept_count - 1}", f"{kept[:, 1].min()} to {kept[:, 1].max()}")
        if len(np.unique(kept[:, 0])) != kept_count:
            file.fail("kept buckets that differ", "one twice")
    return _Dictionary(keys, counts, words, labels, kept)


def _entries(file: _File, counts: NDArray[np.int64], words: int) -> Iterator[Sequence[bytes]]:
    block: list[bytes] = []
    for i in range(len(counts)):
        key = file.text("an entry of the dictionary")
        count, kind = file.unpack(_ENTRY.format, "an entry's count and type")
        if kind != (i >= words):
            file.fail(f"{words} words and then the labels", f"type {kind} of entry {i} ({key[:40]!r})")
        if not 0 <= count < _COUNT_CEILING:
            file.fail(f"a count from 0 to {_COUNT_CEILING - 1}", f"{count} of entry {i} ({key[:40]!r})")
        counts[i] = count
        block.append(key)
        if len(block) == 4096:
            yield block
            block = []
    yield block


def _matrix(file: _File, what: str, quantized: bool) -> Matrix:
    if quantized:
        return _quantized(file, what)
    rows, columns = file.unpack("<2q", f"the shape of {what}")
    if not (rows >= 0 and 0 < columns <= DIMENSIONS_CEILING and rows * columns * 4 <= file.left):
        file.fail(f"{what} within the {file.left} bytes that are left", f"{rows} x {columns} numbers")
    found = FileMatrix(file.path, file.at, np.dtype("<f4"), (rows, columns))
    file.at += found.nbytes
    return found


def _quantized(file: _File, what: str) -> PqMatrix:
    has_norms = file.flag(f"the norms' flag of {what}")
    rows, columns = file.unpack("<2q", f"the shape of {what}")
    (code_count,) = file.unpack("<i", f"the codes of {what}")
    if not (rows >= 0 and 0 < columns <= DIMENSIONS_CEILING and 0 <= code_count <= file.left):
        file.fail(
            f"{what} within the {file.left} bytes that are left", f"{code_count} codes of {rows} x {columns} numbers"
        )
    codes = np.frombuffer(file.read(code_count, f"the codes of {what}"), np.uint8)
    books = _quantizer(file, what, columns)
    if code_count != rows * len(books):
        file.fail(f"{rows * len(books)} codes of {what}, {len(books)} a row", code_count)
    levels = np.ones(_CENTROIDS, np.float32)
    length_codes = np.zeros(rows, np.uint8)
    if has_norms:
        length_codes = np.frombuffer(file.read(rows, f"the norms of {what}"), np.uint8)
        levels = _quantizer(file, f"the norms of {what}", 1).reshape(-1)
    tensors: dict[str, NDArray[Any]] = {
        "rows": codes.reshape(rows, len(books)),
        "codebooks": books,
        "length_codes": length_codes,
        "length_levels": levels,
    }
    return PqMatrix(tensors, columns)


def _quantizer(file: _File, what: str, columns: int) -> NDArray[np.float32]:
    """Return codebooks ``(m, 256, s)``; the last part may be narrower, and is filled with zeros."""
    dimensions, parts, width, last = file.unpack("<4i", f"the quantizer of {what}")
    if dimensions != columns or not (0 < last <= width and parts > 0 and (parts - 1) * width + last == columns):
        file.fail(
            f"a quantizer of {what} whose parts make {columns} columns",
            f"{parts} of {width}, the last of {last}, for {dimensions}",
        )
    numbers = np.frombuffer(file.read(4 * _CENTROIDS * columns, f"the centroids of {what}"), "<f4")
    if not np.isfinite(numbers).all():
        file.fail(f"finite centroids of {what}", "NaN or infinity")
    books = np.zeros((parts, _CENTROIDS, width), np.float32)
    whole = (parts - 1) * _CENTROIDS * width
    books[:-1] = numbers[:whole].reshape(parts - 1, _CENTROIDS, width)
    books[-1, :, :last] = numbers[whole:].reshape(_CENTROIDS, last)
    return books


def _source(path: Path, arguments: _Arguments, dictionary: _Dictionary, rows: Matrix, output: Matrix) -> Source:
    words, labels = dictionary.words, dictionary.labels
    keys = dictionary.keys
    supervised = arguments.model == _SUPERVISED
    digest = _digest(rows, keys)
    buckets, bucket_ids = _buckets(arguments, dictionary, rows)
    recipe = SubwordRecipe(
        algorithm="fasttext",
        rows="parts" if supervised else "words",
        table=None if buckets is None else SUBWORDS,
        buckets=0 if buckets is None else arguments.bucket,
        minn=arguments.minn,
        maxn=arguments.maxn,
        word_ngrams=arguments.word_ngrams if supervised else 1,
    )
    described = {"subwords": recipe.to_json()}
    word_rows: Matrix = _selected(rows, np.arange(words))
    if not supervised and buckets is not None:
        word_rows = _composed(keys, recipe, word_rows, buckets, bucket_ids)
    counts = dictionary.counts
    tables = [
        SourceTable(
            name=TABLE,
            keys=_first(keys, words),
            vectors=word_rows,
            weights_digest=digest,
            recipe=described,
            text=SourceText(tokenizer=None, normalize=False, max_tokens=_MAX_TOKENS),
            row_order="frequency" if (np.diff(counts[:words]) <= 0).all() else "source",
            subwords=recipe,
            classify=ClassifyRecipe(LABELS, _OUTPUTS[arguments.loss]) if supervised and labels else None,
        )
    ]
    if buckets is not None:
        extra = {} if bucket_ids is None else {"bucket_ids": bucket_ids}
        tables.append(SourceTable(SUBWORDS, None, buckets, digest, described, tensors=extra, is_helper=True))
    if supervised and labels:
        tree = {"tree": _tree(counts[words:])} if arguments.loss == _HIERARCHICAL else {}
        tables.append(
            SourceTable(LABELS, keys[words:], output, _digest(output, keys), described, tensors=tree, is_helper=True)
        )
    return Source(path.name, tuple(tables))


def _first(keys: Keys, count: int) -> Sequence[bytes]:
    return keys if len(keys) == count else keys[:count]


def _buckets(
    arguments: _Arguments, dictionary: _Dictionary, rows: Matrix
) -> tuple[Matrix | None, NDArray[np.uint32] | None]:
    """Return the rows of buckets and, where not all of them are there, which bucket each is, ascending."""
    words = dictionary.words
    if not _has_parts(arguments) or not arguments.bucket or len(rows) == words:
        return None, None
    if dictionary.kept is None:
        return _selected(rows, np.arange(words, words + arguments.bucket)), None
    order = np.argsort(dictionary.kept[:, 0], kind="stable")
    kept = dictionary.kept[order]
    return _selected(rows, words + kept[:, 1]), kept[:, 0].astype(np.uint32)


def _selected(rows: Matrix, ids: NDArray[np.int64]) -> Matrix:
    if isinstance(rows, PqMatrix):
        return rows.selected(ids)
    if isinstance(rows, FileMatrix) and len(ids) and ids[-1] - ids[0] + 1 == len(ids):
        return rows.run(int(ids[0]), len(ids))
    return Selection(rows, ids)


def _composed(
    keys: Sequence[bytes],
    recipe: SubwordRecipe,
    words: Matrix,
    buckets: Matrix,
    bucket_ids: NDArray[np.uint32] | None,
) -> Matrix:
    """Return the whole vectors ``(n, d)`` of words: sums of their parts in the original's order, block by block."""

    def composed() -> Iterator[NDArray[np.float32]]:
        for block in blocks_of(words):
            parts = [
                ngram_buckets(keys[row], recipe.minn, recipe.maxn, recipe.buckets) for row in range(len(words))[block]
            ]
            yield _summed(words[block], parts, buckets, bucket_ids)

    return Spool.of(composed(), np.float32, words.shape[1:])


@np.errstate(over="ignore", invalid="ignore")  # a word whose parts are no numbers is refused by its row
def _summed(
    own: NDArray[np.float32], parts: list[list[int]], buckets: Matrix, bucket_ids: NDArray[np.uint32] | None
) -> NDArray[np.float32]:
    flat = np.fromiter((bucket for of in parts for bucket in of), np.int64)
    owner = np.repeat(np.arange(len(parts)), [len(of) for of in parts])
    if bucket_ids is not None:
        places = np.searchsorted(bucket_ids, flat)
        there = places < len(bucket_ids)
        there[there] = bucket_ids[places[there]] == flat[there]
        flat, owner = places[there], owner[there]
    counts = np.bincount(owner, minlength=len(parts))
    starts = np.cumsum(counts) - counts
    used, at = np.unique(flat, return_inverse=True)
    rows = buckets[used]
    total = own.copy()
    for turn in range(int(counts.max(initial=0))):
        # The part of each word that is next: so each word adds up its own in their order.
        of = np.flatnonzero(counts > turn)
        total[of] += rows[at[starts[of] + turn]]
    inverse: NDArray[np.float32] = (1 / (1.0 + counts)).astype(np.float32)
    return total * inverse[:, np.newaxis]


def _tree(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the children ``(n - 1, 2)`` of the inner nodes of the original's Huffman tree over labels' counts."""
    leaves = len(counts)
    weights = [*counts.tolist(), *([_COUNT_CEILING] * (leaves - 1))]
    leaf, node = leaves - 1, leaves
    children = np.zeros((leaves - 1, 2), np.uint32)
    for i in range(leaves, 2 * leaves - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children[i - leaves, side], leaf = leaf, leaf - 1
            else:
                children[i - leaves, side], node = node, node + 1
        weights[i] = sum(weights[child] for child in children[i - leaves].tolist())
    return children


def _digest(rows: Matrix, keys: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks_of(rows):
        digest.update(np.ascontiguousarray(rows[block], "<f4").data)
    for key in keys:
        digest.update(key + b"\n")
    return digest.hexdigest()


class _File:
    """A file that is read from its beginning to its end, and says where it was when something is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size
        self.at = 0
        self._buffer = b""
        self._buffer_at = 0

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    @property
    def left(self) -> int:
        """The bytes behind this place."""
        return self.size - self.at

    def fail(self, expected: str, found: object) -> NoReturn:
        """Raise the one error of this module."""
        raise RequestError(f"{self.path}: byte {self.at}: expected {expected}, found {found}")

    def read(self, count: int, what: str) -> bytes:
        """Return the next bytes."""
        if count > self.left:
            self.fail(f"{count} bytes of {what}", f"the end after {self.left}")
        start = self.at - self._buffer_at
        if not (start >= 0 and start + count <= len(self._buffer)):
            self._buffer_at, start = self.at, 0
            self._buffer = _read_at(self.descriptor, self.at, min(self.left, max(count, _READ_BYTES)), self.path)
        self.at += count
        return self._buffer[start : start + count]

    def unpack(self, format: str, what: str) -> tuple[Any, ...]:
        """Return the next numbers."""
        return struct.unpack(format, self.read(struct.calcsize(format), what))

    def flag(self, what: str) -> bool:
        """Return the next byte, which is 0 or 1."""
        (value,) = self.read(1, what)
        if value > 1:
            self.at -= 1
            self.fail(f"{what} of 0 or 1", value)
        return bool(value)

    def text(self, what: str) -> bytes:
        """Return the bytes before the next NUL."""
        start = self.at - self._buffer_at
        end = self._buffer.find(b"\0", start) if 0 <= start < len(self._buffer) else -1
        if end < 0:
            self._buffer_at, start = self.at, 0
            self._buffer = _read_at(self.descriptor, self.at, min(self.left, _READ_BYTES), self.path)
            end = self._buffer.find(b"\0")
        if end < 0 or end - start > _KEY_CEILING_BYTES:
            self.fail(f"{what} of at most {_KEY_CEILING_BYTES} bytes and a NUL", "none so near")
        self.at += end - start + 1
        return self._buffer[start:end]


def _read_at(descriptor: int, at: int, count: int, path: Path) -> bytes:
    parts = []
    while count:
        part = os.pread(descriptor, count, at)
        if not part:
            raise RequestError(f"{path}: byte {at}: expected {count} more bytes, found the file cut while it was read")
        parts.append(part)
        at, count = at + len(part), count - len(part)
    return b"".join(parts)
