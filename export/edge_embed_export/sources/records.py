"""JSON lines of vectors, as they are stored from an embeddings API.

A line is a record with a key (``id``, ``input``, ``text``, ...) and an ``embedding``: a list of numbers, or the base64
of little-endian float32. A whole answer of the API is read, too, a line each or spread over lines: its vectors stand in
``data`` (a batch's in ``response.body.data``), and have no key but the batch's ``custom_id``; ``--keys`` names them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.sources import Reading, Source
from edge_embed_export.sources.tables import NO_KEYS, Rows, as_float32, key_of, keys_beside, one_table

KEY_FIELDS = ("id", "key", "custom_id", "input", "text", "word", "token", "name", "title")
VECTOR_FIELDS = ("embedding", "vector", "embeddings", "values", "dense_vector")

_LINE_CEILING_BYTES = 64 * 2**20
_DOCUMENT_CEILING_BYTES = 512 * 2**20

_Fault = Callable[[str], RequestError]


def read_jsonl(path: Path, progress: Progress = SILENT, *, reading: Reading = Reading()) -> Source:  # noqa: B008, frozen
    """Read records; see :func:`edge_embed_export.sources.read_source`."""
    rows = Rows(path)
    fields: tuple[str | None, str] | None = None
    with progress.task(f"reading {path.name}", path.stat().st_size) as advance:
        for place, value, size in _values(path):
            advance(size)

            def fault(fact: str, place: str = place) -> RequestError:
                return RequestError(f"{path}: {place}: {fact}")

            for record in _records(value, fault):
                fields = fields or _fields(record, reading, fault)
                key_field, vector_field = fields
                key = None if key_field is None else key_of(_field(record, key_field, fault), fault)
                rows.add(key, _vector(_field(record, vector_field, fault), fault))
    keys, vectors = rows.done()
    named = keys_beside(path, reading) if keys is None or reading.key_file is not None else keys
    return one_table(path, named, vectors, notes=() if named is not None else (NO_KEYS,), digest=rows.digest)


def _values(path: Path) -> Iterator[tuple[str, Any, int]]:
    """Yield where a JSON value stands, the value, and its bytes."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LINE_CEILING_BYTES + 1):
            number += 1
            if len(line) > _LINE_CEILING_BYTES:
                raise RequestError(f"{path}: line {number}: expected at most {_LINE_CEILING_BYTES} bytes, found more")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                value = _json(line)
            except ValueError as error:
                if number > 1 or not isinstance(error, json.JSONDecodeError):
                    raise RequestError(f"{path}: line {number}: expected a JSON record, found: {error}") from error
                # One answer that is spread over lines.
                yield "the document", _document(path), path.stat().st_size
                return
            yield f"line {number}", value, len(line)


def _document(path: Path) -> Any:
    size_bytes = path.stat().st_size
    if size_bytes > _DOCUMENT_CEILING_BYTES:
        raise RequestError(
            f"{path}: expected a JSON record a line, or one document of at most {_DOCUMENT_CEILING_BYTES} bytes, "
            f"found a document of {size_bytes}"
        )
    try:
        return _json(path.read_bytes())
    except ValueError as error:
        raise RequestError(f"{path}: expected a JSON record a line, found: {error}") from error


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("brackets in brackets without end") from error
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:
        # Python refuses whole numbers of more digits, and tells programmers how to have them.
        raise ValueError("a number of thousands of digits") from error


def _records(value: Any, fault: _Fault) -> Iterator[Mapping[str, Any]]:
    """Yield the records of a value: itself, those of a list, or those of an API's answer."""
    if isinstance(value, list):
        for entry in value:
            yield from _records(_object(entry, fault), fault)
        return
    record = _object(value, fault)
    response = record.get("response")
    if isinstance(response, dict):
        body = response.get("body")
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            raise fault(f"expected an answer with data in response.body, found {str(response)[:60]}")
        entries = body["data"]
        for i, entry in enumerate(entries):
            name = record.get("custom_id")
            key = name if len(entries) == 1 else f"{name}#{i}"
            yield {"custom_id": key, **_without_key(_object(entry, fault))}
    elif isinstance(record.get("data"), list) and not any(field in record for field in VECTOR_FIELDS):
        for i, entry in enumerate(record["data"]):
            if _object(entry, fault).get("index", i) != i:
                raise fault(f"expected the answer's vectors in the order of their index, found {entry['index']} at {i}")
            yield entry
    else:
        yield record


def _without_key(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {field: value for field, value in record.items() if field in VECTOR_FIELDS}


def _object(value: Any, fault: _Fault) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise fault(f"expected a JSON object, found {type(value).__name__}")
    return value


def _fields(record: Mapping[str, Any], reading: Reading, fault: _Fault) -> tuple[str | None, str]:
    """Return the names of the key's and of the vector's field, by the first record."""
    vector = reading.vector_column or first_of(VECTOR_FIELDS, tuple(record))
    if vector is None:
        raise fault(
            f"expected a field {', '.join(VECTOR_FIELDS)}, or its name by --vector-column, "
            f"found {', '.join(map(str, record))[:200] or 'none'}"
        )
    return reading.key_column or first_of(KEY_FIELDS, tuple(record)), vector


def first_of(wanted: Sequence[str], found: Sequence[str]) -> str | None:
    """Return the first wanted name that is found."""
    return next((name for name in wanted if name in found), None)


def _field(record: Mapping[str, Any], name: str, fault: _Fault) -> Any:
    if name not in record:
        raise fault(f"expected a field {name!r}, found {', '.join(map(str, record))[:200] or 'none'}")
    return record[name]


def _vector(value: Any, fault: _Fault) -> NDArray[np.float32]:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except ValueError as error:
            raise fault(f"expected numbers, or the base64 of float32, found {value[:40]!r}") from error
        if not data or len(data) % 4:
            raise fault(f"expected base64 of whole float32, 4 bytes each, found {len(data)} bytes")
        return np.frombuffer(data, "<f4").astype(np.float32)
    if not isinstance(value, list) or not value:
        raise fault(f"expected a list of numbers, found {str(value)[:40]!r}")
    if not set(map(type, value)) <= {int, float}:
        strange = next(number for number in value if type(number) not in (int, float))
        raise fault(f"expected numbers, found {str(strange)[:40]!r}")
    try:
        vector = as_float32(np.array(value, np.float64))
    except OverflowError:
        raise fault("expected numbers that float32 can hold, found one of too many digits") from None
    if not math.isfinite(float(vector.sum(dtype=np.float64))):
        raise fault("expected finite numbers, found NaN or infinity")
    return vector
