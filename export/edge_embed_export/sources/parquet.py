"""Parquet: a column of keys and a column of lists of numbers, read batch by batch through pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_embed.errors import MissingExtraError, RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.sources import Reading, Source
from edge_embed_export.sources.records import KEY_FIELDS, VECTOR_FIELDS, first_of
from edge_embed_export.sources.tables import NO_KEYS, WORDS, Rows, as_float32, key_of, keys_beside, one_table

MAGIC = b"PAR1"

_BATCH_ROWS = 1024


def read_parquet(path: Path, progress: Progress = SILENT, *, reading: Reading = Reading()) -> Source:  # noqa: B008, frozen
    """Read a table; see :func:`edge_embed_export.sources.read_source`.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError.of("pyarrow", "parquet", "reading parquet") from error
    rows = Rows(path)
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            schema = file.schema_arrow
            vector_column = _vector_column(path, pyarrow.types, schema, reading)
            key_column = None if reading.key_file is not None else _key_column(path, pyarrow.types, schema, reading)
            columns = [vector_column] if key_column is None else [key_column, vector_column]
            with progress.task(f"reading {path.name}", file.metadata.num_rows) as advance:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                    _add(rows, path, batch, key_column, vector_column)
                    advance(len(batch))
    # Damage shows as an ArrowException, an OSError, or what Thrift's words become on their way through C++.
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise RequestError(f"{path}: expected a whole parquet file, found: {str(error)[:300]}") from error
    keys, vectors = rows.done()
    named = keys_beside(path, reading) if keys is None else keys
    return one_table(
        path,
        named,
        vectors,
        text=None if named is None else WORDS,
        notes=() if named is not None else (NO_KEYS,),
        progress=progress,
    )


def _is_vector(types: Any, kind: Any) -> bool:
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(listed and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))


def _is_key(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_large_string,
            types.is_binary,
            types.is_large_binary,
            types.is_integer,
        )
    )


def _vector_column(path: Path, types: Any, schema: Any, reading: Reading) -> str:
    fitting = [field.name for field in schema if _is_vector(types, field.type)]
    return _column(path, schema, fitting, reading.vector_column, VECTOR_FIELDS, "lists of numbers", "--vector-column")


def _key_column(path: Path, types: Any, schema: Any, reading: Reading) -> str | None:
    fitting = [field.name for field in schema if _is_key(types, field.type)]
    if not fitting and reading.key_column is None:
        return None
    return _column(path, schema, fitting, reading.key_column, KEY_FIELDS, "text or whole numbers", "--key-column")


def _column(
    path: Path, schema: Any, fitting: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, option: str
) -> str:
    name = wanted or first_of(usual, fitting)
    if name is None and len(fitting) == 1:
        name = fitting[0]
    if name is None or fitting.count(name) != 1:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)[:300]
        raise RequestError(f"{path}: expected one column of {what}, or its name by {option}, found {found or 'none'}")
    return name


def _add(rows: Rows, path: Path, batch: Any, key_column: str | None, vector_column: str) -> None:
    lists = batch.column(vector_column)
    keys = [None] * len(batch) if key_column is None else batch.column(key_column).to_pylist()
    if lists.null_count or lists.flatten().null_count:
        raise RequestError(f"{path}: {vector_column}: rows from {rows.count}: expected numbers, found null")
    numbers = as_float32(lists.flatten().to_numpy(zero_copy_only=False))
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))

    def fault(fact: str) -> RequestError:
        return RequestError(f"{path}: {key_column}: row {rows.count}: {fact}")

    for key, vector in zip(keys, np.split(numbers, ends[:-1]), strict=True):
        rows.add(None if key_column is None else key_of(key, fault), vector)
