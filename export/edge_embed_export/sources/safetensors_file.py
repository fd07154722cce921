"""Where the tensors of a safetensors file lie: eight bytes of length, a JSON header, the numbers.

The package ``safetensors`` reads a tensor as a whole; here its rows are read where they lie, block by block.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed_export.sources.tables import FileMatrix

# The package's own ceiling.
_HEADER_CEILING_BYTES = 100_000_000

_BFLOAT16 = "BF16"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    _BFLOAT16: "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its name there, its type's name, and the byte at which it begins."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def tensors_of(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors by name.

    Raises:
        RequestError: the header is damaged, or says more than the file holds.
    """
    size_bytes = path.stat().st_size
    if size_bytes < 10:
        raise RequestError(f"{path}: expected a safetensors file, a length and a header, found {size_bytes} bytes")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_CEILING_BYTES, size_bytes - 8):
            raise RequestError(
                f"{path}: expected a safetensors header of at most {size_bytes - 8} bytes, found a length of {length}"
            )
        line = file.read(length)
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected a safetensors header of JSON, found: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise RequestError(f"{path}: expected a safetensors header, a JSON object, found {type(header).__name__}")
    return {
        name: _tensor(path, name, entry, 8 + length, size_bytes)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _tensor(path: Path, name: str, entry: Any, base: int, size_bytes: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise ValueError("no whole numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path}: {name[:60]}: expected dtype, shape and data_offsets, found {entry}"[:400]
        ) from error
    width = np.dtype(_DTYPES[dtype]).itemsize if dtype in _DTYPES else None
    if stop < start or base + stop > size_bytes or (width is not None and stop - start != width * math.prod(shape)):
        raise RequestError(
            f"{path}: {name[:60]}: expected bytes for shape {str(shape)[:60]} of {dtype[:10]} in a file of "
            f"{size_bytes}, found {start} to {stop} behind byte {base}"
        )
    return Tensor(name, dtype, shape, base + start)


def matrix_of(path: Path, tensor: Tensor) -> FileMatrix:
    """Return the rows of a tensor of two axes, where they lie."""
    if len(tensor.shape) != 2:
        raise RequestError(f"{path}: {tensor.name}: expected rows by dimensions, found shape {str(tensor.shape)[:60]}")
    rows, dimensions = tensor.shape
    return FileMatrix(path, tensor.offset, _dtype(path, tensor), (rows, dimensions), bfloat16=tensor.dtype == _BFLOAT16)


def vector_of(path: Path, tensor: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor of one axis."""
    if len(tensor.shape) != 1 or not tensor.shape[0]:
        raise RequestError(f"{path}: {tensor.name}: expected a row of numbers, found shape {str(tensor.shape)[:60]}")
    dtype = _dtype(path, tensor)
    with path.open("rb") as file:
        file.seek(tensor.offset)
        found = np.frombuffer(file.read(tensor.shape[0] * dtype.itemsize), dtype)
    return (found.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == _BFLOAT16 else found


def _dtype(path: Path, tensor: Tensor) -> np.dtype[Any]:
    if tensor.dtype not in _DTYPES:
        raise RequestError(
            f"{path}: {tensor.name}: expected numbers of {', '.join(_DTYPES)}, found {tensor.dtype[:20]}"
        )
    return np.dtype(_DTYPES[tensor.dtype])
