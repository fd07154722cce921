"""Many tables from one file of tensors: safetensors, and torch's state dicts.

* A table is a 2-D tensor of floats whose name is or ends in ``weight``, as ``nn.Embedding`` and ``nn.EmbeddingBag``
  leave it, and that has no ``bias`` beside it, as the matrices of layers have. Patterns choose others by their names.
* A table is named after its tensor, without ``.weight`` and without what the names of all begin with.
* Rows have no keys: they are known by their ids.
* Numbers (float16, bfloat16, float32, float64) come out of the file by blocks; it is never read whole.
* Nothing is unpickled: torch's reader is told ``weights_only``, and refuses every object but tensors and containers.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError, RequestError
from edge_embed_bundle.values import NAME
from edge_embed_export.matrix import Matrix, Places, blocks_of
from edge_embed_export.sources import ONLY_TABLE, TABLE, Source, SourceTable
from edge_embed_export.sources.safetensors_file import matrix_of, tensors_of
from edge_embed_export.sources.tables import as_float32, read_keys

_DEPTH_CEILING = 8
_SHOWN = 5
_STRANGE = re.compile(r"[^A-Za-z0-9._-]")
_HEADER_BYTES = 8
_SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")


class _Tensor(NamedTuple):
    """A tensor of the file: its shape, whether it holds floats, and what makes a matrix of it, if it has two axes."""

    shape: tuple[int, ...]
    floats: bool
    matrix: Callable[[], Matrix]


class _TorchRows:
    """A 2-D tensor of a state dict as a matrix of float32; torch maps it."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Any) -> None:
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.nbytes = 4 * self.shape[0] * self.shape[1]
        self._tensor = tensor.detach()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._run(start, max(start, stop))
            rows = np.arange(start, stop, step)
        found = np.empty((len(rows), self.shape[1]), np.float32)
        for place, row in enumerate(np.asarray(rows).tolist()):
            found[place] = self._run(row, row + 1)[0]
        return found

    def _run(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = self._tensor[start:stop]
        # numpy has float64; all others become float32 in torch, bfloat16 among them.
        rows = rows if str(rows.dtype) == "torch.float64" else rows.float()
        return as_float32(rows.contiguous().numpy())


def is_safetensors(path: Path, head: bytes) -> bool:
    """Tell whether a file begins as safetensors do: the length of a header, which fits into it, and its brace."""
    length = int.from_bytes(head[:_HEADER_BYTES], "little")
    return head[_HEADER_BYTES : _HEADER_BYTES + 1] == b"{" and 0 < length <= path.stat().st_size - _HEADER_BYTES


def is_torch(path: Path, head: bytes) -> bool:
    """Tell whether a file is an archive as ``torch.save`` writes it."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_safetensors(path: Path, chosen: Sequence[str] = ()) -> Source:
    """Read the tables of a safetensors file.

    Args:
        path: the file.
        chosen: patterns of tensor names, as a shell's; what stands above if there are none.

    Raises:
        RequestError: the file is damaged or holds no such table.
    """
    found = tensors_of(path)
    tensors = {
        name: _Tensor(part.shape, part.dtype in _SAFETENSORS_FLOATS, partial(matrix_of, path, part))
        for name, part in found.items()
    }
    return _source(path, tensors, chosen)


def read_torch(path: Path, chosen: Sequence[str] = ()) -> Source:
    """Read the tables of a state dict that ``torch.save`` wrote; see :func:`read_safetensors`.

    Raises:
        RequestError: the file is damaged, holds objects that are no tensors, or no such table.
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError.of("torch", "torch", "reading a state dict") from error
    with path.open("rb") as file:
        if not is_torch(path, file.read(4)):
            raise RequestError(f"{path}: expected a state dict as torch.save writes it (a zip archive), found none")
    try:
        # Mapped: a block of rows is read when it is asked for.
        loaded = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a damaged archive raises is not documented
        said = str(error).strip().split("\n")[0]
        raise RequestError(
            f"{path}: expected a state dict of tensors alone (weights_only), found: {said or type(error).__name__}"
        ) from error
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = {}
    for name, tensor in _flat(loaded, torch.Tensor, "", 0):
        if tensor.layout != torch.strided:
            continue
        needed, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if needed > there:
            # A stride of 0 makes a few bytes look like any number of rows.
            raise RequestError(f"{path}: {name[:60]}: expected {needed} bytes of numbers, found {there}")
        tensors[name] = _Tensor(tuple(tensor.shape), tensor.dtype in floats, partial(_TorchRows, tensor))
    return _source(path, tensors, chosen)


def _flat(value: Any, kind: type, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a state dict by their names; a checkpoint's inner objects are parts of a name."""
    if isinstance(value, kind):
        yield prefix, value
    elif isinstance(value, Mapping) and depth < _DEPTH_CEILING:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _flat(inner, kind, f"{prefix}.{key}" if prefix else key, depth + 1)


def _source(path: Path, tensors: Mapping[str, _Tensor], chosen: Sequence[str]) -> Source:
    names = _chosen(path, tensors, chosen)
    left_out = [name for name, tensor in tensors.items() if _is_matrix(tensor) and name not in names]
    tables = []
    for name, table in zip(names, _table_names(path, names), strict=True):
        rows = tensors[name].matrix()
        tables.append(SourceTable(table, None, rows, weights_digest(rows)))
    notes: tuple[str, ...] = ()
    if left_out:
        shown = ", ".join(left_out[:_SHOWN]) + (", ..." if len(left_out) > _SHOWN else "")
        notes = (f"{len(left_out)} matrices that look like no table were left out (--table takes them): {shown}",)
    return Source(path.name, tuple(tables), notes)


def _chosen(path: Path, tensors: Mapping[str, _Tensor], patterns: Sequence[str]) -> list[str]:
    if patterns:
        names = []
        for pattern in patterns:
            found = [name for name in tensors if fnmatch.fnmatchcase(name, pattern)]
            found = found or [name for name in tensors if fnmatch.fnmatchcase(name, f"{pattern}.weight")]
            if not found:
                raise RequestError(f"{path}: expected a tensor like {pattern!r}, found {_shown(tensors)}")
            wrong = [name for name in found if not _is_matrix(tensors[name])]
            if wrong:
                raise RequestError(
                    f"{path}: {wrong[0]}: expected a 2-D tensor of floats, found one of shape {tensors[wrong[0]].shape}"
                )
            names += [name for name in found if name not in names]
        return names
    names = [name for name, tensor in tensors.items() if _is_matrix(tensor) and _is_table(name, tensors)]
    if not names:
        raise RequestError(f"{path}: expected 2-D tensors of floats called ...weight, found {_shown(tensors)}")
    return sorted(names, key=_in_order)


def _is_matrix(tensor: _Tensor) -> bool:
    return tensor.floats and len(tensor.shape) == 2 and min(tensor.shape) > 0


def _is_table(name: str, tensors: Mapping[str, _Tensor]) -> bool:
    stem, _, last = name.rpartition(".")
    return last == "weight" and (f"{stem}.bias" if stem else "bias") not in tensors


def _in_order(name: str) -> tuple[tuple[bool, int, str], ...]:
    # Numbers by their value: t_cat_2 stands before t_cat_10.
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+|[0-9]+", name)
    return tuple((part.isdigit(), int(part) if part.isdecimal() and part.isascii() else 0, part) for part in parts)


def _table_names(path: Path, names: Sequence[str]) -> list[str]:
    """Return a table's name for each tensor's."""
    parts = [name.removesuffix("weight").rstrip(".").split(".") for name in names]
    common = 0
    while all(len(each) > common + 1 and each[common] == parts[0][common] for each in parts):
        common += 1
    tables = [_STRANGE.sub("_", ".".join(each[common:])).lstrip("._-") or TABLE for each in parts]
    if len(set(tables)) != len(tables) or not all(map(NAME.fullmatch, tables)):
        shown = ", ".join(tables[:_SHOWN])
        raise RequestError(f"{path}: expected tensors whose names make table names that differ, found {shown[:200]}")
    return tables


def _shown(tensors: Mapping[str, _Tensor]) -> str:
    shown = ", ".join(f"{name[:60]} {tensor.shape}" for name, tensor in list(tensors.items())[:_SHOWN])
    return f"{len(tensors)} tensors: {shown}" if tensors else "no tensor"


def weights_digest(vectors: Matrix, keys: Sequence[bytes] | None = None) -> str:
    """Return the digest of the numbers, little-endian in row order, followed by the keys where rows have them."""
    digest = hashlib.sha256()
    for block in blocks_of(vectors):
        digest.update(np.ascontiguousarray(vectors[block], "<f4").data)
    if keys is not None:
        digest.update(b"\n".join(keys))
    return digest.hexdigest()


def with_keys(source: Source, files: Mapping[str, Path]) -> Source:
    """Return a source whose tables have keys where a file of them is given by a table's name.

    Raises:
        RequestError: there is no such table, or it has another number of rows, or a file is none.
    """
    keys = {source.table.name if name == ONLY_TABLE else name: read_keys(file) for name, file in files.items()}
    strangers = set(keys) - {table.name for table in source.tables}
    if strangers:
        names = ", ".join(table.name for table in source.tables)
        raise RequestError(
            f"{source.title}: expected keys for the tables {names}, found {', '.join(sorted(strangers))}"
        )
    tables = []
    for table in source.tables:
        given = keys.get(table.name)
        if given is not None:
            if len(given) != len(table.vectors):
                raise RequestError(
                    f"{table.name} of {source.title}: expected {len(table.vectors)} keys, found {len(given)}"
                )
            table = replace(table, keys=given, weights_digest=weights_digest(table.vectors, given))
        tables.append(table)
    return replace(source, tables=tuple(tables))
