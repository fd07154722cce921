"""Both spellings of the kernels: what one passes, the other has to pass."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from edge_embed.kernels import pure, reference

NAMES = ("numpy", "native")


def spelling(name: str) -> Any:
    """Return a spelling's objects and functions under the names of ``edge_embed.kernels``."""
    if name == "numpy":
        shared = {function: getattr(reference, function) for function in ("hash_key", "hash_keys", "pool")}
        return SimpleNamespace(Index=pure.Index, open_rows=pure.open_rows, Shortcut=pure.Shortcut, **shared)
    if importlib.util.find_spec("edge_embed.kernels._native") is None:
        pytest.skip("the native kernels were not built here (no C compiler, or EDGE_EMBED_PURE=1)")
    from edge_embed.kernels import _native

    found = {function: getattr(_native, function) for function in ("Index", "open_rows", "Shortcut")}
    shared = {function: getattr(_native, function) for function in ("hash_key", "hash_keys", "pool")}
    return SimpleNamespace(**found, **shared)
