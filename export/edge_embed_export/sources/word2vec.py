"""word2vec's two formats, as the C tool and gensim write them.

Both begin with ``rows dimensions``. Binary: the word, a space, ``dimensions`` float32, and a newline that some writers
leave out. Text: a line a word, numbers at the end, so a word may hold spaces.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed_export.sources import TABLE, Source, SourceTable, SourceText

_WORD_CEILING_BYTES = 4096
_MAX_TOKENS = 512


def read_word2vec_binary(path: Path) -> Source:
    """Read the binary format; see :func:`edge_embed_export.sources.read_source`."""
    data = path.read_bytes()
    rows, dimensions, at = _header(path, data, bytes_per_number=4)
    keys = []
    vectors = np.empty((rows, dimensions), np.float32)
    width = 4 * dimensions
    for row in range(rows):
        if data[at : at + 1] == b"\n":
            at += 1
        end = data.find(b" ", at, at + _WORD_CEILING_BYTES)
        if end < 0:
            raise RequestError(f"{path}: row {row} at byte {at}: expected a word and a space, found neither")
        if end + 1 + width > len(data):
            raise RequestError(f"{path}: row {row}: expected {width} bytes of numbers, found {len(data) - end - 1}")
        keys.append(data[at:end])
        vectors[row] = np.frombuffer(data, "<f4", dimensions, end + 1)
        at = end + 1 + width
    if data[at:].strip():
        raise RequestError(f"{path}: expected the end after {rows} rows, found {len(data) - at} more bytes")
    return _source(path, keys, vectors)


@np.errstate(over="ignore")  # a number too large for float32 becomes infinity, which is refused by its row
def read_word2vec_text(path: Path) -> Source:
    """Read the text format; see :func:`edge_embed_export.sources.read_source`."""
    data = path.read_bytes()
    # A number needs a digit and a space at least.
    rows, dimensions, at = _header(path, data, bytes_per_number=2)
    keys = []
    vectors = np.empty((rows, dimensions), np.float32)
    lines = data[at:].rstrip().split(b"\n")
    if len(lines) != rows:
        raise RequestError(f"{path}: expected {rows} rows as the header says, found {len(lines)}")
    for row, line in enumerate(lines):
        word, *numbers = line.rstrip().rsplit(b" ", dimensions)
        try:
            # With the length of the row: a single number would be spread over all of it.
            vectors[row] = np.array(numbers, dtype=np.float32).reshape(dimensions)
        except ValueError as error:
            raise RequestError(f"{path}: row {row}: expected {dimensions} numbers, found {line[:60]!r}") from error
        keys.append(word)
    return _source(path, keys, vectors)


def _header(path: Path, data: bytes, *, bytes_per_number: int) -> tuple[int, int, int]:
    """Return rows, dimensions and where the rows begin, after comparing the header's word with the file's size."""
    line, newline, _ = data[:64].partition(b"\n")
    fields = line.split()
    if not newline or len(fields) != 2 or not all(field.isdigit() for field in fields):
        raise RequestError(f"{path}: expected a header of two whole numbers, found {line[:40]!r}")
    rows, dimensions = map(int, fields)
    if not rows or not dimensions:
        raise RequestError(f"{path}: expected rows and dimensions of at least 1, found {rows} and {dimensions}")
    needed = rows * dimensions * bytes_per_number
    if needed > len(data):
        raise RequestError(f"{path}: expected {rows} x {dimensions} numbers, found a file of {len(data)} bytes")
    return rows, dimensions, len(line) + 1


def _source(path: Path, keys: list[bytes], vectors: NDArray[np.float32]) -> Source:
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise RequestError(f"{path}: row {row} ({keys[row]!r}): expected finite numbers, found NaN or infinity")
    digest = hashlib.sha256(vectors.tobytes())
    digest.update(b"\n".join(keys))
    table = SourceTable(
        name=TABLE,
        keys=tuple(keys),
        vectors=vectors,
        weights_digest=digest.hexdigest(),
        text=SourceText(tokenizer=None, normalize=True, max_tokens=_MAX_TOKENS),
    )
    return Source(path.name, (table,))
