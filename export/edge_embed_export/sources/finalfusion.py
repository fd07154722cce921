"""finalfusion's ``.fifu``: a header with the kinds of its chunks, then the chunks: words, numbers, lengths.

 * Chunks are walked by the size that each states; a size is compared with the file before anything is read for it.
 * Words are read from every vocabulary but floret's, which has none. The rows of subwords, which stand behind those of
   the words, are left out, and the user is told.
 * finalfusion stores directions, and lengths apart: rows get their lengths back, as the trainer left them.
 * Product-quantized numbers are decoded, block by block.

Format: https://finalfusion.github.io/spec
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.exact import exact_product
from edge_embed_export.matrix import BLOCK_ROWS, Keys, Matrix, Spool, blocks_of
from edge_embed_export.sources import Source
from edge_embed_export.sources.tables import WORDS, FileMatrix, as_float32, one_table

MAGIC = b"FiFu"

_SIMPLE, _NDARRAY, _BUCKETS, _QUANTIZED, _METADATA, _NORMS, _FASTTEXT, _EXPLICIT, _FLORET = range(1, 10)
_NAMES = {
    _SIMPLE: "SimpleVocab",
    _NDARRAY: "NdArray",
    _BUCKETS: "BucketSubwordVocab",
    _QUANTIZED: "QuantizedArray",
    _METADATA: "Metadata",
    _NORMS: "NdNorms",
    _FASTTEXT: "FastTextSubwordVocab",
    _EXPLICIT: "ExplicitSubwordVocab",
    _FLORET: "FloretSubwordVocab",
}
#: What stands before the words: their number first.
_VOCABULARIES = {_SIMPLE: "<Q", _BUCKETS: "<QIII", _FASTTEXT: "<QIII", _EXPLICIT: "<QQII"}
_U8, _F32 = 1, 10
_CHUNK_CEILING = 64


@dataclass(frozen=True)
class _Chunk:
    """Where the content of a chunk lies in its file."""

    kind: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return _NAMES[self.kind]


@dataclass(frozen=True)
class _File:
    """The file, read with bounds: past the end of a chunk there is nothing."""

    path: Path
    file: IO[bytes]

    def read(self, chunk: _Chunk, at: int, size: int, what: str) -> bytes:
        if not 0 <= size <= chunk.stop - at:
            raise self.fault(chunk, at, f"expected {size} bytes of {what}, found {chunk.stop - at}")
        return os.pread(self.file.fileno(), size, at)

    def numbers(self, chunk: _Chunk, at: int, shape: tuple[int, ...], what: str) -> NDArray[np.float32]:
        data = self.read(chunk, at, 4 * math.prod(shape), what)
        found = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise self.fault(chunk, at, f"expected {what} of finite numbers, found NaN or infinity")
        return found

    def fault(self, chunk: _Chunk, at: int, fact: str) -> RequestError:
        return RequestError(f"{self.path}: {chunk.name} at byte {at}: {fact}")


def read_finalfusion(path: Path, progress: Progress = SILENT) -> Source:
    """Read a finalfusion file; see :func:`edge_embed_export.sources.read_source`."""
    with path.open("rb") as opened:
        file = _File(path, opened)
        chunks = _chunks(path, opened)
        words = _one(path, chunks, tuple(_VOCABULARIES), "vocabulary of words")
        storage = _one(path, chunks, (_NDARRAY, _QUANTIZED), "matrix")
        keys = _words(file, words)
        matrix, notes = _storage(file, storage, len(keys))
        if _NORMS in chunks:
            matrix = _with_lengths(matrix, _norms(file, chunks[_NORMS], len(keys)))
            notes = (*notes, "the lengths of finalfusion's norms were given back to its unit vectors")
    return one_table(path, keys, matrix, text=WORDS, notes=notes, progress=progress)


def _chunks(path: Path, file: IO[bytes]) -> Mapping[int, _Chunk]:
    """Return the chunks by their kind."""
    size_bytes = os.fstat(file.fileno()).st_size
    head = file.read(12)
    if len(head) < 12 or not head.startswith(MAGIC):
        raise RequestError(f"{path}: expected finalfusion's magic and 8 bytes, found {head!r}")
    version, count = struct.unpack("<II", head[4:])
    if version != 0 or not 0 < count <= _CHUNK_CEILING:
        raise RequestError(
            f"{path}: expected version 0 and 1 to {_CHUNK_CEILING} chunks, found version {version} and {count}"
        )
    kinds = file.read(4 * count)
    if len(kinds) < 4 * count:
        raise RequestError(f"{path}: expected the kinds of {count} chunks, found {len(kinds)} bytes")
    at = 12 + 4 * count
    chunks: dict[int, _Chunk] = {}
    for kind in struct.unpack(f"<{count}I", kinds):
        head = os.pread(file.fileno(), 12, at)
        if len(head) < 12:
            raise RequestError(f"{path}: byte {at}: expected a chunk's kind and size, found {len(head)} bytes")
        found, length = struct.unpack("<IQ", head)
        if found != kind or kind not in _NAMES or kind in chunks:
            raise RequestError(
                f"{path}: byte {at}: expected the chunk {_NAMES.get(kind, kind)} once, as the header says, found "
                f"{_NAMES.get(found, found)}"
            )
        if kind == _EXPLICIT:
            # finalfusion-python 0.7.1 forgets the indices of the n-grams when it adds up this chunk.
            length = _explicit_length(path, file, at + 12)
        if length > size_bytes - at - 12:
            raise RequestError(
                f"{path}: {_NAMES[kind]} at byte {at}: expected {length} bytes, found {size_bytes - at - 12}"
            )
        chunks[kind] = _Chunk(kind, at + 12, at + 12 + length)
        at += 12 + length
    if at != size_bytes:
        raise RequestError(f"{path}: expected the end after {count} chunks, found {size_bytes - at} more bytes")
    return chunks


def _explicit_length(path: Path, file: IO[bytes], start: int) -> int:
    """Return the bytes of an explicit vocabulary: its words, then its n-grams with the row of each."""
    place = file.tell()
    file.seek(start)
    head = file.read(24)
    if len(head) < 24:
        raise RequestError(f"{path}: {_NAMES[_EXPLICIT]} at byte {start}: expected counts, found {len(head)} bytes")
    words, ngrams = struct.unpack("<QQ", head[:16])
    size_bytes = os.fstat(file.fileno()).st_size
    at = start + 24
    for count, behind in ((words, 0), (ngrams, 8)):
        for _ in range(count):
            at += 4 + int.from_bytes(file.read(4), "little") + behind
            if at > size_bytes:
                raise RequestError(
                    f"{path}: {_NAMES[_EXPLICIT]} at byte {start}: expected {words} words and {ngrams} n-grams, found "
                    f"the end of the file at byte {size_bytes}"
                )
            file.seek(at)
    file.seek(place)
    return at - start


def _one(path: Path, chunks: Mapping[int, _Chunk], kinds: tuple[int, ...], what: str) -> _Chunk:
    found = [kind for kind in kinds if kind in chunks]
    if len(found) != 1:
        raise RequestError(
            f"{path}: expected one {what} ({' or '.join(_NAMES[kind] for kind in kinds)}), found "
            f"{', '.join(_NAMES[kind] for kind in chunks)}"
        )
    return chunks[found[0]]


def _words(file: _File, chunk: _Chunk) -> Keys:
    """Return the words; each stands behind its length."""
    head = _VOCABULARIES[chunk.kind]
    count = struct.unpack(head, file.read(chunk, chunk.start, struct.calcsize(head), "counts"))[0]
    start = chunk.start + struct.calcsize(head)
    if 4 * count > chunk.stop - start:
        raise file.fault(chunk, start, f"expected {count} words, found {chunk.stop - start} bytes")
    return Keys.of(_word_blocks(file, chunk, start, count))


def _word_blocks(file: _File, chunk: _Chunk, at: int, count: int) -> Iterator[list[bytes]]:
    file.file.seek(at)
    for start in range(0, count, BLOCK_ROWS):
        block = []
        for row in range(start, min(start + BLOCK_ROWS, count)):
            length = int.from_bytes(file.file.read(4), "little")
            if length > chunk.stop - at - 4:
                raise file.fault(chunk, at, f"word {row}: expected {length} bytes, found {chunk.stop - at - 4}")
            block.append(file.file.read(length))
            at += 4 + length
        yield block
    if chunk.kind != _EXPLICIT and at != chunk.stop:  # n-grams follow
        raise file.fault(chunk, at, f"expected the end after {count} words, found {chunk.stop - at} bytes")


def _storage(file: _File, chunk: _Chunk, words: int) -> tuple[Matrix, tuple[str, ...]]:
    """Return the rows of the words, and what the user should know of it."""
    rows, matrix = (_ndarray if chunk.kind == _NDARRAY else _quantized)(file, chunk, words)
    if rows == words:
        return matrix, ()
    return matrix, (f"{rows - words} rows of subwords were left out: words that are not in the file get no vector",)


def _padding(at: int) -> int:
    # One to four bytes: an aligned place is padded, too.
    return 4 - at % 4


def _check_rows(file: _File, chunk: _Chunk, rows: int, words: int) -> None:
    if rows < words:
        raise file.fault(chunk, chunk.start, f"expected a row for each of {words} words, found {rows} rows")


def _check_types(file: _File, chunk: _Chunk, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise file.fault(chunk, chunk.start, f"expected numbers of types {expected}, found {found}")


def _check_end(file: _File, chunk: _Chunk, at: int, needed: int) -> None:
    if needed != chunk.stop - at:
        raise file.fault(chunk, at, f"expected {needed} bytes of numbers, found {chunk.stop - at}")


def _ndarray(file: _File, chunk: _Chunk, words: int) -> tuple[int, Matrix]:
    rows, dimensions, kind = struct.unpack("<QII", file.read(chunk, chunk.start, 16, "rows, dimensions and type"))
    _check_types(file, chunk, (kind,), (_F32,))
    _check_rows(file, chunk, rows, words)
    start = chunk.start + 16 + _padding(chunk.start + 16)
    _check_end(file, chunk, start, 4 * rows * dimensions)
    return rows, FileMatrix(file.path, start, np.dtype("<f4"), (words, dimensions))


def _quantized(file: _File, chunk: _Chunk, words: int) -> tuple[int, Matrix]:
    head = "<IIIIIQII"
    projected, scaled, m, dimensions, k, rows, *types = struct.unpack(
        head, file.read(chunk, chunk.start, struct.calcsize(head), "counts")
    )
    _check_types(file, chunk, tuple(types), (_U8, _F32))
    _check_rows(file, chunk, rows, words)
    if not m or not k or not dimensions or dimensions % m:
        raise file.fault(
            chunk, chunk.start, f"expected {dimensions} dimensions in {m} equal parts of {k} centroids, at least 1 each"
        )
    at = chunk.start + struct.calcsize(head)
    at += _padding(at)
    lengths_bytes = 4 * rows if scaled else 0
    projection_bytes = 4 * dimensions * dimensions if projected else 0
    _check_end(file, chunk, at, projection_bytes + 4 * k * dimensions + lengths_bytes + m * rows)
    projection = file.numbers(chunk, at, (dimensions, dimensions), "a projection") if projected else None
    at += projection_bytes
    codebooks = file.numbers(chunk, at, (m, k, dimensions // m), "centroids")
    at += 4 * k * dimensions
    lengths = file.numbers(chunk, at, (words,), "lengths") if scaled else None
    codes = FileMatrix(file.path, at + lengths_bytes, np.dtype(np.uint8), (words, m))
    return rows, Spool.of(_decoded(file, chunk, codes, codebooks, projection, lengths), np.float32, (dimensions,))


def _decoded(
    file: _File,
    chunk: _Chunk,
    codes: FileMatrix,
    codebooks: NDArray[np.float32],
    projection: NDArray[np.float32] | None,
    lengths: NDArray[np.float32] | None,
) -> Iterator[NDArray[Any]]:
    m, k, _ = codebooks.shape
    for place in blocks_of(codes):
        block = codes[place].astype(np.int64)
        if int(block.max(initial=0)) >= k:
            raise file.fault(chunk, chunk.start, f"expected codes below {k}, found {int(block.max())}")
        rows = codebooks[np.arange(m), block].reshape(len(block), -1)
        if projection is not None:
            rows = as_float32(exact_product(rows, projection.T))
        yield rows if lengths is None else _scaled(rows, lengths[place])


def _norms(file: _File, chunk: _Chunk, words: int) -> NDArray[np.float32]:
    count, kind = struct.unpack("<QI", file.read(chunk, chunk.start, 12, "count and type"))
    _check_types(file, chunk, (kind,), (_F32,))
    start = chunk.start + 12 + _padding(chunk.start + 12)
    _check_end(file, chunk, start, 4 * count)
    if count != words:
        raise file.fault(chunk, chunk.start, f"expected a length for each of {words} words, found {count}")
    return file.numbers(chunk, start, (words,), "lengths")


def _with_lengths(matrix: Matrix, lengths: NDArray[np.float32]) -> Spool:
    blocks = (_scaled(matrix[place], lengths[place]) for place in blocks_of(matrix))
    return Spool.of(blocks, np.float32, matrix.shape[1:])


def _scaled(rows: NDArray[np.float32], lengths: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return rows * lengths[:, np.newaxis]
