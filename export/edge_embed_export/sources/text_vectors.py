"""Vectors as text: a line a word, the word first, then its numbers.

One form, two heads. word2vec, fastText (``.vec``), LINE, node2vec and DeepWalk (``.emb``) begin with a line of two
whole numbers, rows and dimensions; GloVe begins with the first word, and its dimensions are what most lines end with.

* A word may hold spaces, so a line is read from its end.
* A word may be any bytes but a newline: only that ends a line, not what Unicode takes for a line's end.
* Lines are parsed a block at a time; the numbers go to a temporary file, so a file may be larger than memory.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.matrix import Matrix
from edge_embed_export.sources import Source
from edge_embed_export.sources.tables import WORDS, Rows, one_table

_BLOCK_BYTES = 2**20
# A word, and 65,536 numbers of two dozen letters.
_LINE_CEILING_BYTES = 2 * 2**20
_SHOWN = 60
_JUDGED_LINES = 100

#: Rows and dimensions.
_HEADER = re.compile(rb"[ \t]*([0-9]{1,20})[ \t]+([0-9]{1,20})[ \t]*\r?")

# float() of Python also takes 1_000 and words that are none of any trainer's.
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def read_with_header(path: Path, progress: Progress = SILENT) -> Source:
    """Read lines of words and numbers behind a line of two numbers; see ``sources.read_source``."""
    size = path.stat().st_size
    with path.open("rb") as file:
        line = file.readline(_SHOWN + 4)
        rows, dimensions = checked_header(path, line, size, bytes_per_number=2)
        return _read_lines(path, _lines(path, file, progress, size), dimensions, file_rows=rows)


def read_without_header(path: Path, progress: Progress = SILENT) -> Source:
    """Read lines of words and numbers; see ``sources.read_source``."""
    with path.open("rb") as file:
        head = file.read(_LINE_CEILING_BYTES)
        dimensions = dimensions_of(head)
        if not dimensions:
            raise RequestError(f"{path}: expected lines of a word and its numbers, found {head[:_SHOWN]!r}")
        file.seek(0)
        return _read_lines(path, _lines(path, file, progress, path.stat().st_size), dimensions)


def numbered_rows(
    path: Path, file: BinaryIO, dimensions: int, file_rows: int, progress: Progress
) -> tuple[Matrix, str]:
    """Return the rows of lines that begin with their number, from 0, and the digest of their numbers.

    Raises:
        RequestError: a line has another number, or there are more or fewer than ``file_rows``.
    """
    blocks = _lines(path, file, progress, path.stat().st_size)
    source = _read_lines(path, blocks, dimensions, file_rows, numbered=True)
    return source.table.vectors, source.table.weights_digest


def checked_header(path: Path, line: bytes, size: int, *, bytes_per_number: int) -> tuple[int, int]:
    """Return rows and dimensions of a header, after comparing its word with the size of the file.

    Raises:
        RequestError: it is no header, or the file is too short for what it says.
    """
    match = header_of(line)
    if match is None:
        raise RequestError(f"{path}: expected a header of two whole numbers, found {line[:40]!r}")
    rows, dimensions = match
    if not rows or not dimensions:
        raise RequestError(f"{path}: expected rows and dimensions of at least 1, found {rows} and {dimensions}")
    if rows * dimensions * bytes_per_number > size:
        raise RequestError(f"{path}: expected {rows} x {dimensions} numbers, found a file of {size} bytes")
    return rows, dimensions


def header_of(line: bytes) -> tuple[int, int] | None:
    """Return the two numbers of a header line, which ends in a newline, or None where it is none."""
    match = _HEADER.fullmatch(line.removesuffix(b"\n")) if line.endswith(b"\n") else None
    return None if match is None else (int(match[1]), int(match[2]))


def dimensions_of(head: bytes) -> int:
    """Return how many numbers the lines of a file's head end with; 0 where one of them ends with none.

    What most lines have, and the larger of two: a word may end in what looks like a number.
    """
    *lines, last = head.split(b"\n", _JUDGED_LINES)
    counts = Counter(map(_numbers_at_the_end, filter(bytes.strip, lines or [last])))
    return max(counts, key=lambda count: (counts[count], count)) if counts and 0 not in counts else 0


def is_number(field: bytes) -> bool:
    """Tell whether a field of a line is a number."""
    return _NUMBER.fullmatch(field) is not None


def _numbers_at_the_end(line: bytes) -> int:
    fields = line.split()
    count = 0
    while count < len(fields) - 1 and is_number(fields[-1 - count]):
        count += 1
    # A line that begins with a space names the empty word, and all its fields are numbers.
    return count + (line[:1] == b" " and count == len(fields) - 1 and is_number(fields[0]))


def _lines(path: Path, file: BinaryIO, progress: Progress, size: int) -> Iterator[list[bytes]]:
    """Yield blocks of whole lines without their ends; blank lines at the end of the file are none."""
    blank = 0
    with progress.task(f"reading {path.name}", size) as advance:
        rest = b""
        while True:
            data = file.read(_BLOCK_BYTES)
            advance(len(data))
            lines = (rest + data).split(b"\n")
            rest = lines.pop() if data else b""
            if len(rest) > _LINE_CEILING_BYTES:
                raise RequestError(
                    f"{path}: expected lines of at most {_LINE_CEILING_BYTES} bytes, found {rest[:_SHOWN]!r} ..."
                )
            # Blank lines count where something follows them.
            filled = next((i for i in range(len(lines), 0, -1) if lines[i - 1].strip()), 0)
            if filled:
                yield [b""] * blank + lines[:filled]
                blank = 0
            blank += len(lines) - filled
            if not data:
                return


def _read_lines(
    path: Path,
    blocks: Iterator[list[bytes]],
    dimensions: int,
    file_rows: int | None = None,
    *,
    numbered: bool = False,
) -> Source:
    rows = Rows(path)
    with warnings.catch_warnings():
        # This is how numpy says that it met something that is no number.
        warnings.simplefilter("error", DeprecationWarning)
        for block in blocks:
            if file_rows is None or rows.count + len(block) <= file_rows:
                words, numbers = _parsed(path, block, dimensions, rows.count)
                if numbered:
                    _check_numbers(path, words, rows.count)
                rows.add_all(words, numbers)
            else:
                # Counted to the end, not kept: the header is wrong.
                rows.count += len(block)
    if file_rows is not None and rows.count != file_rows:
        raise RequestError(f"{path}: expected {file_rows} rows as the header says, found {rows.count}")
    keys, vectors = rows.done()
    return one_table(path, keys, vectors, text=WORDS, digest=rows.digest)


def _check_numbers(path: Path, words: list[bytes], first_row: int) -> None:
    for row, word in enumerate(words, first_row):
        if word != b"%d" % row:
            raise RequestError(f"{path}: row {row}: expected its number, {row}, found {word[:_SHOWN]!r}")


def _parsed(path: Path, lines: list[bytes], dimensions: int, first_row: int) -> tuple[list[bytes], NDArray[np.float32]]:
    """Return the words and the numbers ``(n, d)`` of lines."""
    stripped = [line.rstrip() for line in lines]
    if all(line.count(b" ") == dimensions for line in stripped):
        # No word has a space: all numbers of the block are parsed at once.
        parts = [line.partition(b" ") for line in stripped]
        numbers = _numbers(b" ".join(part[2] for part in parts))
        if numbers is not None and numbers.size == len(lines) * dimensions:
            return [part[0] for part in parts], numbers.reshape(len(lines), dimensions)
    words = []
    vectors = np.empty((len(lines), dimensions), np.float32)
    for row, line in enumerate(stripped):
        fields = line.rsplit(None, dimensions)
        if len(fields) == dimensions and line[:1] in (b" ", b"\t"):
            fields = [b"", *fields]  # the empty word
        numbers = _numbers(b" ".join(fields[1:])) if len(fields) == dimensions + 1 else None
        if numbers is None or numbers.size != dimensions:
            raise RequestError(f"{path}: row {first_row + row}: expected {dimensions} numbers, found {line[:_SHOWN]!r}")
        words.append(fields[0])
        vectors[row] = numbers
    return words, vectors


def _numbers(text: bytes) -> NDArray[np.float32] | None:
    """Return the float32 numbers of a text, each the nearest to its double; None where some are none."""
    try:
        with np.errstate(over="ignore"):
            numbers: NDArray[np.float32] = np.fromstring(text, np.float32, sep=" ")
    except (ValueError, DeprecationWarning):
        return None
    return numbers
