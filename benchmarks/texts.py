"""The texts that the scripts train models on: whatever a folder holds, in the order of its names."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path


def texts(folder: Path) -> Iterator[str]:
    """Yield the text of each file under a folder: plain text, JSON, zip files of texts."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    yield archive.read(name).decode("utf-8", "ignore")
        elif path.suffix == ".json":
            yield " ".join(_strings(json.loads(path.read_text(encoding="utf-8"))))
        elif path.suffix == ".txt":
            yield path.read_text(encoding="utf-8", errors="ignore")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
