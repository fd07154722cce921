"""numpy's ``.npy`` and ``.npz``: a matrix of numbers, and its keys beside it or in the same archive.

 * Nothing is unpickled: an array of Python objects is refused.
 * A header is compared with the bytes that stand behind it before anything is allocated for it.
 * A ``.npy`` stays where it is and is read row by row; an archive's arrays are unpacked by blocks.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.matrix import BLOCK_ROWS, Keys, Matrix, Spool
from edge_embed_export.sources import Reading, Source
from edge_embed_export.sources.tables import (
    NO_KEYS,
    WORDS,
    FileMatrix,
    as_float32,
    keys_beside,
    one_table,
    read_keys,
)

MAGIC = b"\x93NUMPY"
ARCHIVE_MAGIC = b"PK\x03\x04"

_HEADER_CEILING_BYTES = 64 * 1024
_BLOCK_BYTES = 4 * 2**20
_KEY_CEILING_BYTES = 2**20
# Tables of real numbers hardly shrink by half. What grows a hundredfold into much is an attack, or zeros.
_EXPANSION_CEILING = 100
_UNSUSPICIOUS_BYTES = 64 * 2**20

_NUMBERS = re.compile(r"[<>|=]?(f[248]|[iu][1248])")
_TEXTS = re.compile(r"[<>|=]?([SU][0-9]{1,9}|[iu][1248])")
_DESCRIPTION = {"descr", "fortran_order", "shape"}
_PYTHON_2_LONG = re.compile(r"(?<=[0-9])L")


@dataclass(frozen=True)
class _Header:
    """What a ``.npy`` says of itself; ``bytes`` is its own length."""

    bytes: int
    description: str
    shape: tuple[int, ...]
    fortran: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.description)

    @property
    def size_bytes(self) -> int:
        """The bytes of all numbers, by the header's word."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and _NUMBERS.fullmatch(self.description) is not None

    @property
    def is_names(self) -> bool:
        return len(self.shape) == 1 and _TEXTS.fullmatch(self.description) is not None


def read_npy(path: Path, progress: Progress = SILENT, *, reading: Reading = Reading()) -> Source:  # noqa: B008, frozen
    """Read a matrix; see :func:`edge_embed_export.sources.read_source`.

    Keys come from ``--keys`` or from ``X.keys.txt`` beside ``X.npy``; without, rows have their number alone.
    """
    with path.open("rb") as file:
        header = _header(file, str(path))
        _check_matrix(header, str(path), path.stat().st_size)
        matrix: Matrix
        if header.fortran and min(header.shape) > 1:
            matrix = _transposed(path, header)
        else:
            matrix = FileMatrix(path, header.bytes, header.dtype, (header.shape[0], header.shape[1]))
    keys = keys_beside(path, reading)
    return one_table(
        path,
        keys,
        matrix,
        text=None if keys is None else WORDS,
        notes=() if keys is not None else (NO_KEYS,),
        progress=progress,
    )


def read_npz(path: Path, progress: Progress = SILENT, *, reading: Reading = Reading()) -> Source:  # noqa: B008, frozen
    """Read an archive with one matrix and, as a rule, one array of keys."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            name = _chosen(path, members, reading.vector_column, "matrix", [m for m in members if members[m].is_matrix])
            vectors = _unpacked(archive, path, name, members[name])
            keys = _archived_keys(archive, path, members, reading)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise RequestError(f"{path}: expected a whole .npz archive, found: {error}") from error
    if keys is None:
        keys = keys_beside(path, reading)
    return one_table(
        path,
        keys,
        vectors,
        text=None if keys is None else WORDS,
        notes=() if keys is not None else (NO_KEYS,),
        progress=progress,
    )


def _header(file: IO[bytes], place: str) -> _Header:
    """Return the header, read from where a ``.npy`` begins."""
    head = file.read(12)
    major = head[6] if len(head) > 6 else 0
    if not head.startswith(MAGIC) or major not in (1, 2, 3) or len(head) < 12:
        raise RequestError(f"{place}: expected the beginning of a .npy file of version 1 to 3, found {head!r}")
    width = 2 if major == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    if length > _HEADER_CEILING_BYTES:
        raise RequestError(f"{place}: expected a header of at most {_HEADER_CEILING_BYTES} bytes, found {length}")
    line = head[8 + width :] + file.read(max(0, length - (4 - width)))
    if len(line) < length:
        raise RequestError(f"{place}: expected a header of {length} bytes, found {len(line)}")
    try:
        found = ast.literal_eval(_PYTHON_2_LONG.sub("", line[:length].decode("utf-8").strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RequestError(f"{place}: expected a header that is a dictionary, found {line[:60]!r}") from error
    if not isinstance(found, dict) or set(found) != _DESCRIPTION:
        raise RequestError(f"{place}: expected a header of descr, fortran_order and shape, found {line[:60]!r}")
    shape, description = found["shape"], found["descr"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise RequestError(f"{place}: expected a shape of whole numbers, found {str(shape)[:60]}")
    if not isinstance(description, str) or "O" in description:
        raise RequestError(
            f"{place}: expected numbers or text, found Python objects ({str(description)[:40]}), which are a pickle "
            "and never opened; save texts as np.array(keys, dtype=str)"
        )
    if not (_NUMBERS.fullmatch(description) or _TEXTS.fullmatch(description)):
        raise RequestError(
            f"{place}: expected float16, float32, float64, whole numbers or text, found the type {description[:40]!r}"
        )
    return _Header(8 + width + length, description, shape, bool(found["fortran_order"]))


def _check_matrix(header: _Header, place: str, size_bytes: int) -> None:
    """Compare a matrix's header with the ``size_bytes`` of its file."""
    if not header.is_matrix:
        raise RequestError(
            f"{place}: expected a matrix of numbers, rows by dimensions, found shape {str(header.shape)[:60]} "
            f"of {header.description}"
        )
    _check_size(header, place, size_bytes)
    if not all(header.shape):
        raise RequestError(f"{place}: expected rows and dimensions of at least 1, found shape {header.shape}")


def _check_size(header: _Header, place: str, size_bytes: int) -> None:
    if header.bytes + header.size_bytes != size_bytes:
        raise RequestError(
            f"{place}: expected {header.size_bytes} bytes of numbers behind the header for shape "
            f"{str(header.shape)[:60]}, found {size_bytes - header.bytes}"
        )


def _transposed(path: Path, header: _Header) -> Spool:
    """Return the rows of a matrix whose columns lie in one piece (Fortran's order)."""
    rows, dimensions = header.shape
    columns = FileMatrix(path, header.bytes, header.dtype, (dimensions, rows))
    spool = Spool(np.float32, (dimensions,))
    step = max(1, _BLOCK_BYTES // (4 * dimensions))
    for start in range(0, rows, step):
        spool.append(columns.part(slice(start, min(start + step, rows))).T)
    return spool


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, _Header]:
    """Return the headers of the arrays by name.

    Raises:
        RequestError: one of them cannot be read.
    """
    members: dict[str, _Header] = {}
    refused: RequestError | None = None
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        place = f"{path}: {info.filename}"
        try:
            with archive.open(info) as file:
                members[info.filename.removesuffix(".npy")] = _header(file, place)
        except RequestError as error:
            refused = refused or error
    # What cannot be read may be the keys: to leave it out would give a table without them.
    if refused is not None:
        raise refused
    return members


def _chosen(path: Path, members: dict[str, _Header], wanted: str | None, what: str, fitting: list[str]) -> str:
    if wanted is not None:
        if wanted not in fitting:
            raise RequestError(f"{path}: expected a {what} named {wanted!r}, found {_shown(members)}")
        return wanted
    if len(fitting) != 1:
        raise RequestError(
            f"{path}: expected one {what}, or its name by --vector-column, found {len(fitting)} among {_shown(members)}"
        )
    return fitting[0]


def _shown(members: dict[str, _Header]) -> str:
    shown = [f"{name} {header.shape} {header.description}" for name, header in members.items()]
    return ("; ".join(shown) or "no arrays")[:300]


def _archived_keys(archive: zipfile.ZipFile, path: Path, members: dict[str, _Header], reading: Reading) -> Keys | None:
    if reading.key_file is not None:
        return read_keys(reading.key_file)
    names = [name for name, header in members.items() if header.is_names]
    texts = [name for name in names if members[name].dtype.kind in "SU"]
    if reading.key_column is not None:
        if reading.key_column not in names:
            raise RequestError(f"{path}: expected keys named {reading.key_column!r}, found {_shown(members)}")
    elif len(texts) > 1:
        raise RequestError(f"{path}: expected one array of text, or its name by --key-column, found {_shown(members)}")
    name = reading.key_column or next(iter(texts), None)
    if name is None:
        return None
    if members[name].dtype.itemsize > _KEY_CEILING_BYTES:
        raise RequestError(f"{path}: {name}: expected keys of at most 1 MiB, found {members[name].description}")
    blocks = _blocks(archive, path, name, members[name])
    place = f"{path}: {name}"
    return Keys.of(_as_keys(block, place) for block in blocks)


def _as_keys(block: NDArray[Any], place: str) -> list[bytes]:
    try:
        if block.dtype.kind == "U":
            return [str(key).encode("utf-8") for key in block.tolist()]
    except ValueError as error:
        raise RequestError(f"{place}: expected keys of Unicode text, found: {error}") from error
    return block.tolist() if block.dtype.kind == "S" else [b"%d" % key for key in block.tolist()]


def _unpacked(archive: zipfile.ZipFile, path: Path, name: str, header: _Header) -> Spool:
    if header.fortran and min(header.shape) > 1:
        raise RequestError(
            f"{path}: {name}: expected rows one after the other, found Fortran's order; save np.ascontiguousarray(...)"
        )
    info = archive.getinfo(f"{name}.npy")
    _check_matrix(header, f"{path}: {name}", info.file_size)
    blocks = map(as_float32, _blocks(archive, path, name, header))
    return Spool.of(blocks, np.float32, header.shape[1:])


def _blocks(archive: zipfile.ZipFile, path: Path, name: str, header: _Header) -> Iterator[NDArray[Any]]:
    """Yield an array of an archive by blocks of rows; all of them, or an error."""
    info = archive.getinfo(f"{name}.npy")
    place = f"{path}: {name}"
    _check_size(header, place, info.file_size)
    if info.file_size > max(_UNSUSPICIOUS_BYTES, _EXPANSION_CEILING * info.compress_size):
        raise RequestError(
            f"{place}: expected an array that grows at most {_EXPANSION_CEILING} times when it is unpacked, found "
            f"{info.compress_size} bytes that become {info.file_size}; save it with np.save if this is meant"
        )
    row_bytes = header.size_bytes // max(1, header.shape[0])
    step = max(1, min(BLOCK_ROWS, _BLOCK_BYTES // max(1, row_bytes)))
    with archive.open(info) as file:
        file.read(header.bytes)
        for start in range(0, header.shape[0], step):
            rows = min(step, header.shape[0] - start)
            data = file.read(rows * row_bytes)
            if len(data) != rows * row_bytes:
                raise RequestError(f"{place}: row {start}: expected {rows * row_bytes} bytes, found {len(data)}")
            yield np.frombuffer(data, header.dtype).reshape(rows, *header.shape[1:])
        file.read(1)  # at the end zipfile compares the checksum
