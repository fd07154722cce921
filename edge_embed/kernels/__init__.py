"""The one seam between the runtime and its hot loops: callers import from here and never ask who answers.

``reference`` (numpy) is the meaning of every kernel and ``pure`` makes objects of them; ``_native`` (C, see
``native/``) is a faster spelling of both, chosen where it was built. ``EDGE_EMBED_PURE=1`` chooses numpy. A native
module that is there but cannot be loaded is an error, not a reason to be slow in silence.

What only numpy spells is imported when it is first asked for: a board that looks up by native kernels pays nothing
for it, neither in its start nor in its memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_embed.kernels.pure import KeyIndex, Pooling, Rows, Watched
    from edge_embed.kernels.reference import EMPTY_ROW, add_in_order, pool_mean, top_k

_wanted = os.environ.get("EDGE_EMBED_PURE", "0") in ("", "0")

try:
    if not _wanted:
        raise ModuleNotFoundError(name="edge_embed.kernels._native")
    from edge_embed.kernels._native import VARIANT, Index, Shortcut, hash_key, hash_keys, open_rows, pool
except ModuleNotFoundError as _absent:
    if _absent.name != "edge_embed.kernels._native":
        raise
    from edge_embed.kernels.pure import Index, Shortcut, open_rows  # type: ignore[assignment]
    from edge_embed.kernels.reference import hash_key, hash_keys, pool

    VARIANT = "numpy"

_IN_NUMPY = {
    **dict.fromkeys(("KeyIndex", "Pooling", "Rows", "Watched"), "pure"),
    **dict.fromkeys(("EMPTY_ROW", "add_in_order", "pool_mean", "top_k"), "reference"),
}

__all__ = [
    "EMPTY_ROW",
    "VARIANT",
    "Index",
    "KeyIndex",
    "Pooling",
    "Rows",
    "Shortcut",
    "Watched",
    "add_in_order",
    "hash_key",
    "hash_keys",
    "open_rows",
    "pool",
    "pool_mean",
    "top_k",
]


def __getattr__(name: str) -> Any:
    """Return what only numpy spells, from its module."""
    if name not in _IN_NUMPY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_IN_NUMPY[name]}"), name)
