"""edge-embed: any embedding model, small, proven and served on an ARM board.

import edge_embed

with edge_embed.open("words", memory_budget="64MiB") as runtime:   # a bundle folder or a store
    runtime.lookup("king")                 # (d,) float32
    runtime.lookup(["king", "queen"])      # (n, d) float32
    runtime.encode("a small board")        # text -> (d,) float32
    runtime.encode_image("board.jpg")      # picture -> (d,) float32, of an image encoder
    runtime.classify("a small board", k=3)  # Classification(labels, probabilities), of a classifier
    runtime.search("king", k=10)           # Neighbours(keys, scores, space, complete)
    runtime.bag([3, 17, 4], model="genre")  # several rows, one vector (d,) float32, as nn.EmbeddingBag
    runtime.bags({"genre": [3, 17], "user_id": [5]})  # one call for many tables
    runtime.space                          # what these vectors may be compared with
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_embed.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from edge_embed.bags import Bag
    from edge_embed.classifier import Classification
    from edge_embed.errors import (
        BudgetError,
        BundleError,
        DeadlineError,
        EdgeEmbedError,
        MissingExtraError,
        RequestError,
        SpaceMismatchError,
        StoreError,
        UnknownKeyError,
    )
    from edge_embed.neighbours import Neighbours
    from edge_embed.runtime import Runtime
    from edge_embed.space import Stamped

__all__ = [
    "Bag",
    "BudgetError",
    "BundleError",
    "Classification",
    "DeadlineError",
    "EdgeEmbedError",
    "MissingExtraError",
    "Neighbours",
    "RequestError",
    "Runtime",
    "SpaceMismatchError",
    "Stamped",
    "StoreError",
    "UnknownKeyError",
    "__version__",
    "open",
]


def open(  # the verb that users expect of a file-like thing; this module does not use the builtin
    path: Path | str,
    *,
    memory_budget: str | int | None = None,
    engine: str = "kernels",
    threads: int = 1,
    verify: bool | None = None,
    follow: bool = True,
) -> Runtime:
    """Open a bundle folder or a store.

    Args:
        path: the folder of a bundle, or of a store, which is followed from generation to generation.
        memory_budget: private memory that this process may use in all, as bytes or as ``64MiB``; what cannot fit is
            refused here. Half of what is left pins the pages that are asked for most, as far as the system lets it.
        engine: who decodes lookups: ``kernels``, ``onnxruntime``, ``litert`` or ``tflite-runtime``; or, in a bundle of
            an encoder, who runs it: if not given, the first one that the bundle has a graph for and this machine has.
            An engine that a graph was not proven on must give the bundle's golden answers first.
        threads: how many the engine of an encoder may use; they change no number of its answers.
        verify: read and compare every byte first. If not given, a bare bundle folder is verified and a store's
            generation, which was verified when it was installed, is not.
        follow: move with a store from generation to generation; if not, stay with the one that serves now.

    Raises:
        BundleError: the bundle is damaged, or made for a newer runtime.
        StoreError: nothing is installed in the store.
        BudgetError: the bundle cannot fit into ``memory_budget``.
    """
    from edge_embed.runtime import Runtime

    return Runtime(path, memory_budget=memory_budget, engine=engine, threads=threads, verify=verify, follow=follow)


def __getattr__(name: str) -> object:
    """Import a public name at its first use: the command line starts without paying for what it does not use."""
    from importlib import import_module

    places = {
        "Bag": "bags",
        "Runtime": "runtime",
        "Classification": "classifier",
        "Stamped": "space",
        "Neighbours": "neighbours",
    }
    if name not in __all__:
        raise AttributeError(f"module 'edge_embed' has no attribute {name!r}")
    return getattr(import_module(f"edge_embed.{places.get(name, 'errors')}"), name)
