"""What readers of containers share: options, rows gathered by blocks, rows that stay in their file, one table.

Every number passes :func:`one_table` once, block by block: there it is found finite, and there its digest is taken.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.named_files import open_named
from edge_embed.progress import SILENT, Progress
from edge_embed_export.matrix import BLOCK_ROWS, Keys, Matrix, Places, Spool, blocks_of
from edge_embed_export.sources import TABLE, Reading, Source, SourceTable, SourceText

_MAX_TOKENS = 512
_SPOOL_BLOCK_BYTES = 4 * 2**20

#: How a table of words encodes a text: the mean of the words that it knows.
WORDS = SourceText(tokenizer=None, normalize=True, max_tokens=_MAX_TOKENS)


class FileMatrix:
    """Rows of numbers as they lie in a file, ``(n, d)``, converted to float32 as they are read.

    ``bfloat16`` is given as uint16, for numpy has no such type: its bits are the upper half of a float32's.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, path: Path, offset: int, stored: np.dtype[Any], shape: tuple[int, int], *, bfloat16: bool = False
    ) -> None:
        self._path = path
        self._offset = offset
        self._stored = stored
        self._bfloat16 = bfloat16
        self.shape = shape
        self.nbytes = 4 * shape[0] * shape[1]
        self._row_bytes = shape[1] * stored.itemsize
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            found = np.empty((max(0, stop - start), self.shape[1]), self._stored)
            self._read(found.reshape(-1).view(np.uint8), start)
            return self._numbers(found)
        ids = np.asarray(rows, np.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise IndexError(f"expected rows from 0 to {len(self) - 1}, found {ids.min()} to {ids.max()}")
        found = np.empty((len(ids), self.shape[1]), self._stored)
        for line, row in zip(found, ids.tolist(), strict=True):
            self._read(line.view(np.uint8), row)
        return self._numbers(found)

    def run(self, start: int, count: int) -> FileMatrix:
        """Return rows that follow each other as a matrix of their own, so that a slice of it is read at once."""
        at = self._offset + start * self._row_bytes
        return FileMatrix(self._path, at, self._stored, (count, self.shape[1]), bfloat16=self._bfloat16)

    def part(self, columns: slice) -> NDArray[np.float32]:
        """Return some columns of all rows; ``columns`` has a start and a stop."""
        found = np.empty((len(self), columns.stop - columns.start), self._stored)
        for row, line in enumerate(found):
            self._read(line.view(np.uint8), row, columns.start * self._stored.itemsize)
        return self._numbers(found)

    def _read(self, into: NDArray[np.uint8], row: int, skipped_bytes: int = 0) -> None:
        left, at = into.data, self._offset + row * self._row_bytes + skipped_bytes
        while left:
            count = os.preadv(self._file, [left], at)
            if not count:
                raise RequestError(f"{self._path}: row {row}: expected numbers up to byte {at + len(left)}, found none")
            left, at = left[count:], at + count

    def _numbers(self, found: NDArray[Any]) -> NDArray[np.float32]:
        if self._bfloat16:
            return (found.astype(np.uint32) << 16).view(np.float32)
        return as_float32(found)


def as_float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers as float32; what is too large for it becomes infinite, which :func:`one_table` refuses."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32, copy=False)


class Rows:
    """A table that grows; its numbers go to a temporary file, block by block.

    A thread checks, hashes and writes a block while the reader parses the next one: none of the three needs the
    interpreter's lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._width = 0
        self._spool: Spool | None = None
        self._vectors: list[NDArray[np.float32]] = []
        self._keys: list[bytes] = []
        self._blocks: list[Keys] = []
        self._named: bool | None = None
        self._storing: Future[None] | None = None
        self._worker = ThreadPoolExecutor(1)
        self.count = 0
        #: Of the numbers stored so far, as :func:`one_table` takes it.
        self.digest = hashlib.sha256()

    def add(self, key: bytes | None, vector: NDArray[np.float32]) -> None:
        """Add a row ``(d,)``.

        Raises:
            RequestError: it has another length than the rows before, or just some rows have a key.
        """
        named = key is not None
        if self._spool is None:
            self._begin(len(vector), named)
        if len(vector) != self._width:
            raise RequestError(
                f"{self._path}: {self._place(key)}: expected {self._width} numbers like the rows before, "
                f"found {len(vector)}"
            )
        if named is not self._named:
            raise RequestError(f"{self._path}: {self._place(key)}: expected a key in every row or in none")
        self._vectors.append(vector)
        if key is not None:
            self._keys.append(key)
        self.count += 1
        if len(self._vectors) >= BLOCK_ROWS or len(self._vectors) * self._width * 4 >= _SPOOL_BLOCK_BYTES:
            self._flush()

    def add_all(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Add rows ``(m, d)`` and their keys; a table takes either these or single rows."""
        if not len(keys):
            return
        if self._spool is None:
            self._begin(vectors.shape[1], True)
        packed = Keys.of(iter([keys]))
        self._store(packed, vectors)
        self.count += len(keys)

    def done(self) -> tuple[Keys | None, Matrix]:
        """Return the keys, or None where rows have none, and the numbers."""
        self._flush()
        self._wait()
        self._worker.shutdown()
        if self._spool is None:
            raise RequestError(f"{self._path}: expected at least one row, found none")
        return (Keys.joined(self._blocks) if self._named else None), self._spool

    def _begin(self, width: int, named: bool) -> None:
        if not width:
            raise RequestError(f"{self._path}: row 0: expected numbers, found none")
        self._width, self._named = width, named
        self._spool = Spool(np.float32, (width,))

    def _place(self, key: bytes | None) -> str:
        return f"row {self.count}" if key is None else f"row {self.count} ({key[:60]!r})"

    def _flush(self) -> None:
        if self._vectors:
            self._store(Keys.of(iter([self._keys])), np.stack(self._vectors))
        self._vectors, self._keys = [], []

    def _store(self, keys: Keys, vectors: NDArray[np.float32]) -> None:
        # One block waits at most, so memory stays what two of them take.
        self._wait()
        self._blocks.append(keys)
        self._storing = self._worker.submit(self._store_block, keys if self._named else None, vectors)

    def _wait(self) -> None:
        if self._storing is not None:
            storing, self._storing = self._storing, None
            storing.result()

    def _store_block(self, keys: Keys | None, vectors: NDArray[np.float32]) -> None:
        if self._spool is None:
            raise AssertionError("a table begins with its first row")
        little = np.ascontiguousarray(vectors, "<f4")
        check_finite(self._path, little, len(self._spool), keys)
        self.digest.update(little.data)
        self._spool.append(little)


def check_finite(path: Path, block: NDArray[np.float32], first_row: int, keys: Sequence[bytes] | None) -> None:
    """Refuse NaN and infinity; ``keys`` are those of the block.

    Raises:
        RequestError: a row holds one of them.
    """
    if np.isfinite(block).all():
        return
    row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
    key = "" if keys is None else f" ({keys[row][:60]!r})"
    raise RequestError(f"{path}: row {first_row + row}{key}: expected finite numbers, found NaN or infinity")


def one_table(
    path: Path,
    keys: Sequence[bytes] | None,
    vectors: Matrix,
    *,
    title: str | None = None,
    text: SourceText | None = None,
    counts: NDArray[np.int64] | None = None,
    recipe: Mapping[str, object] | None = None,
    notes: tuple[str, ...] = (),
    digest: hashlib._Hash | None = None,
    progress: Progress = SILENT,
) -> Source:
    """Return the source of a table; its numbers are gone through once, unless ``Rows`` did and gives their digest.

    Raises:
        RequestError: there are none, they are not finite, or there are more or fewer keys than rows.
    """
    rows, dimensions = vectors.shape
    if not rows or not dimensions:
        raise RequestError(f"{path}: expected rows and dimensions of at least 1, found {rows} and {dimensions}")
    if keys is not None and len(keys) != rows:
        raise RequestError(f"{path}: expected a key for each of {rows} rows, found {len(keys)}")
    if digest is None:
        digest = hashlib.sha256()
        with progress.task(f"reading {path.name}", rows) as advance:
            for place in blocks_of(vectors):
                block = np.ascontiguousarray(vectors[place], "<f4")
                check_finite(path, block, place.start, None if keys is None else keys[place])
                digest.update(block.data)
                advance(len(block))
    # The tokenizer is a part of the space by itself, and its tokens with it.
    if keys is not None and (text is None or text.tokenizer is None):
        for start in range(0, rows, BLOCK_ROWS):
            digest.update(b"\n" * (start > 0) + b"\n".join(keys[start : start + BLOCK_ROWS]))
    table = SourceTable(TABLE, keys, vectors, digest.hexdigest(), recipe or {}, text, counts)
    return Source(path.name if title is None else title, (table,), notes)


NO_KEYS = "no keys: rows are asked for by their number; pass --keys FILE, a key a line, to name them"


def read_keys(path: Path) -> Keys:
    """Return the lines of a key file.

    Raises:
        RequestError: there is none.
    """
    with open_named(path, "a file of keys, a key a line") as file:
        return Keys.of(_lines(iter(lambda: file.readlines(2**20), [])))


def _lines(blocks: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    for block in blocks:
        yield [line.removesuffix(b"\n").removesuffix(b"\r") for line in block]


def keys_beside(path: Path, reading: Reading) -> Keys | None:
    """Return the keys of the file that the user names, else of ``X.keys.txt`` beside ``X.npy``, else None."""
    if reading.key_file is not None:
        return read_keys(reading.key_file)
    beside = path.with_suffix(".keys.txt")
    return read_keys(beside) if beside.is_file() else None


def key_of(value: object, fault: Callable[[str], RequestError]) -> bytes:
    """Return a key that is text or a whole number as bytes.

    Raises:
        RequestError: it is neither, or no Unicode.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise fault(f"expected a key of Unicode text, found a lone surrogate at {error.start}") from error
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).encode()
    raise fault(f"expected a key of text or a whole number, found {type(value).__name__}")
