"""Vectors as bytes: word2vec's binary format, which LINE and gensim write as well, and GloVe's.

word2vec: a line of rows and dimensions; then the word, a space and its float32 numbers, and a newline that some writers
leave out. GloVe: float64 numbers alone, words first and contexts behind them, each with a bias at the end of its row;
the words stand in the vocabulary file, a line each with its count.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.named_files import open_named
from edge_embed.progress import SILENT, Progress
from edge_embed_export.matrix import BLOCK_ROWS
from edge_embed_export.sources import Source
from edge_embed_export.sources.tables import WORDS, Rows, one_table
from edge_embed_export.sources.text_vectors import checked_header

_BLOCK_BYTES = 2**20
_HEADER_BYTES = 64
_WORD_CEILING_BYTES = 4096
_GLOVE_VOCABULARY = "vocab.txt"

# A word and its count; a longer line is cut and refused.
_LINE_CEILING_BYTES = 2**16


def read_word2vec_binary(path: Path, progress: Progress = SILENT) -> Source:
    """Read word2vec's binary format; see ``sources.read_source``."""
    size = path.stat().st_size
    rows = Rows(path)
    with path.open("rb") as file, progress.task(f"reading {path.name}", size) as advance:
        line = file.readline(_HEADER_BYTES)
        count, dimensions = checked_header(path, line, size, bytes_per_number=4)
        data, at = b"", len(line)
        while rows.count < count:
            more = file.read(_BLOCK_BYTES)
            advance(len(more))
            data += more
            words, vectors, used = _whole_rows(path, data, at, rows.count, count, dimensions)
            rows.add_all(words, vectors)
            data, at = data[used:], at + used
            if not more and rows.count < count:
                raise _cut(path, data, at, rows.count, dimensions)
        data += file.read(1 + _WORD_CEILING_BYTES)
        if data.strip():
            raise RequestError(f"{path}: expected the end after {count} rows, found {size - at} more bytes")
    keys, numbers = rows.done()
    return one_table(path, keys, numbers, text=WORDS, digest=rows.digest)


def _whole_rows(
    path: Path, data: bytes, offset: int, first_row: int, rows: int, dimensions: int
) -> tuple[list[bytes], NDArray[np.float32], int]:
    """Return the words and the numbers ``(n, d)`` of the whole rows at the begin of ``data``, and their bytes."""
    width = 4 * dimensions
    last = len(data) - width - 1
    words: list[bytes] = []
    starts: list[int] = []
    at = 0
    # A million turns for a common table: nothing is looked up or sliced twice in it.
    find, add_word, add_start = data.find, words.append, starts.append
    for _ in range(first_row, rows):
        end = find(b" ", at, at + _WORD_CEILING_BYTES)
        if not 0 <= end <= last:
            break
        # With the newline behind the row before, if there is one; a word does not begin with one.
        add_word(data[at:end].removeprefix(b"\n"))
        at = end + 1
        add_start(at)
        at += width
    is_endless = len(data) - at >= _WORD_CEILING_BYTES and find(b" ", at, at + _WORD_CEILING_BYTES) < 0
    if is_endless and len(words) < rows - first_row:
        row = first_row + len(words)
        raise RequestError(f"{path}: row {row} at byte {offset + at}: expected a word and a space, found neither")
    view = memoryview(data)
    numbers = np.frombuffer(b"".join([view[start : start + width] for start in starts]), "<f4")
    return words, numbers.reshape(len(words), dimensions), at


def _cut(path: Path, data: bytes, offset: int, row: int, dimensions: int) -> RequestError:
    begin = 1 if data[:1] == b"\n" else 0
    end = data.find(b" ", begin, begin + _WORD_CEILING_BYTES)
    if end < 0:
        return RequestError(f"{path}: row {row} at byte {offset + begin}: expected a word and a space, found neither")
    return RequestError(f"{path}: row {row}: expected {4 * dimensions} bytes of numbers, found {len(data) - end - 1}")


def read_glove_binary(path: Path, vocabulary: Path | None = None, progress: Progress = SILENT) -> Source:
    """Read GloVe's binary format (``-binary 1``): a word's vector is the sum of its word's and its context's row.

    Args:
        path: the file.
        vocabulary: a word and its count a line; ``vocab.txt`` beside the file if not given.
        progress: told the rows.

    Raises:
        RequestError: there is no vocabulary, or it does not fit the file's size.
    """
    vocabulary = path.with_name(_GLOVE_VOCABULARY) if vocabulary is None else vocabulary
    words, counts = read_counts(vocabulary)
    size = path.stat().st_size
    width, rest = divmod(size, 16 * max(1, len(words)))
    if not words or rest or width < 2:
        raise RequestError(
            f"{path}: expected two rows of float64 for each of the {len(words)} words of {vocabulary}, "
            f"found a file of {size} bytes"
        )
    rows = Rows(path)
    with progress.task(f"reading {path.name}", len(words)) as advance:
        for start in range(0, len(words), BLOCK_ROWS):
            block = words[start : start + BLOCK_ROWS]
            of_words, of_contexts = (
                np.fromfile(path, "<f8", len(block) * width, offset=8 * width * row).reshape(len(block), width)
                for row in (start, len(words) + start)
            )
            with np.errstate(over="ignore", invalid="ignore"):
                rows.add_all(block, (of_words + of_contexts)[:, :-1].astype(np.float32))
            advance(len(block))
    keys, vectors = rows.done()
    return one_table(path, keys, vectors, text=WORDS, counts=np.array(counts, np.int64), digest=rows.digest)


def read_counts(path: Path) -> tuple[list[bytes], list[int]]:
    """Return the words of a vocabulary file and how often each was met: ``word count`` lines.

    Raises:
        RequestError: there is none, or a line is of another form.
    """
    words, counts = [], []
    for row, line in enumerate(_vocabulary_lines(path)):
        word, _, count = line.rpartition(b" ") if b" " in line else line.rpartition(b"\t")
        if not count.isdigit() or len(count) > 18:
            raise RequestError(f"{path}: line {row + 1}: expected a word and its count, found {line[:60]!r}")
        words.append(word)
        counts.append(int(count))
    return words, counts


def _vocabulary_lines(path: Path) -> Iterator[bytes]:
    with open_named(path, "the vocabulary, a word and its count a line") as file:
        while line := file.readline(_LINE_CEILING_BYTES):
            yield line.rstrip(b"\r\n")
