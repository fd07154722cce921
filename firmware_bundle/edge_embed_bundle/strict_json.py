"""The one way JSON enters the project.

``json.loads`` accepts duplicate keys (two readers, two meanings), NaN, lone surrogates and numbers without end.
A manifest decides what a board runs, so:

 * the size is checked before a byte is read, by the caller, against ``MANIFEST_CEILING_BYTES``;
 * the bytes are UTF-8 without a byte order mark, the top is one object, no key stands twice in an object;
 * numbers are finite, whole numbers fit into 64 bits; text holds no lone surrogate; nesting is bounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from edge_embed_bundle.errors import ManifestError

#: Manifests take some kilobytes. A hostile one of this size costs about 40 MiB before it is refused.
MANIFEST_CEILING_BYTES = 1024 * 1024

_DEPTH_CEILING = 32


def loads(data: bytes, *, source: str) -> dict[str, Any]:
    """Return the object that ``data`` spells.

    Args:
        data: the whole document.
        source: the file's name, for the error.

    Raises:
        ManifestError: the document breaks one of the rules above.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
        _check(value, depth=0)
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{source}: expected UTF-8, found byte {data[error.start]:#04x} at {error.start}"
        ) from error
    except RecursionError as error:
        raise ManifestError(f"{source}: expected at most {_DEPTH_CEILING} levels of nesting, found more") from error
    except ValueError as error:
        raise ManifestError(f"{source}: expected strict JSON, found: {error}") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{source}: expected one JSON object, found {type(value).__name__}")
    return value


def dumps(value: Mapping[str, Any]) -> bytes:
    """Return the one spelling of ``value`` that this project writes: sorted, indented, UTF-8, a final newline."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:20]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"number {digits[:20]}, which is not finite")
    return value


def _whole(digits: str) -> int:
    # 20 characters hold every 64-bit number; longer ones are refused before they are parsed.
    if len(digits) > 20 or abs(int(digits)) >= 2**63:
        raise ValueError(f"whole number {digits[:20]}..., which does not fit into 64 bits")
    return int(digits)


def _check(value: Any, depth: int) -> None:
    if depth > _DEPTH_CEILING:
        raise ValueError(f"more than {_DEPTH_CEILING} levels of nesting")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def _check_text(value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a lone surrogate in {value[:20]!r}") from error
