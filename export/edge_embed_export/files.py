"""The JSON files of a model that a user names: its settings, its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_embed.errors import RequestError
from edge_embed.named_files import read_named

# A tokenizer of 250,000 tokens takes 17 MB.
_JSON_CEILING_BYTES = 256 * 2**20


def read_json(path: Path) -> Any:
    """Return what a JSON file of a model holds.

    Raises:
        RequestError: as :func:`open_named`; or it is too large, or no JSON.
    """
    data = read_named(path, "a model's settings", _JSON_CEILING_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected a model's settings in JSON, found: {str(error)[:100]}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file of a model holds, say its ``config.json``.

    Raises:
        RequestError: as :func:`read_json`; or it holds another kind of value.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise RequestError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
