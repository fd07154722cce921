"""What a board is asked, run on the board itself: ``on_board.py TASK,TASK PATH...`` prints one
JSON object.

It sees what is installed there and nothing of the tests. Arrays are written in hex, so that bits are compared as bits.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edge_embed
from edge_embed import kernels
from edge_embed.commands import main
from edge_embed.engines import FORMATS
from edge_embed.errors import MissingExtraError
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import OPERATIONS

MODES = ("sum", "mean", "max")
K = 3
KEYS = ("word1", "word59")
TEXTS = ("word1 word2", "naïve 東京", "warm", "")


def asked(folder: Path) -> dict[str, Any]:
    """Return what every bundle in a folder answers: vectors, bags, texts, neighbours, and whether that is golden."""
    found = {}
    for bundle in sorted(folder.iterdir()):
        with edge_embed.open(bundle) as runtime:
            found[bundle.name] = {"golden": _golden(runtime), "answers": _answers(runtime)}
    return found


def _golden(runtime: Runtime) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for operation in OPERATIONS:
        with contextlib.suppress(MissingExtraError):
            found |= {str(outcome): outcome.passed for outcome in runtime.check_golden([operation])}
    return found


def _answers(runtime: Runtime) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for table in runtime.manifest.tables:
        if not table.rows:
            continue
        ids = np.arange(table.rows)
        found[f"{table.codec}: lookup in {table.name}"] = _spelled(runtime.lookup_ids(ids, model=table.name))
        for mode in MODES:
            bags = runtime.bag(ids, ids[::3], model=table.name, mode=mode)
            found[f"{table.codec}: {mode} of bags in {table.name}"] = _spelled(bags)
        if "norms" in table.tensors:
            vectors = runtime.lookup_ids(ids[:8], model=table.name)
            # Many queries take other ways than one, which golden questions ask.
            neighbours: Any = runtime.search(vector=vectors, k=K, model=table.name)
            found[f"{table.codec}: neighbours in {table.name}"] = [each.keys for each in neighbours]
            found[f"{table.codec}: scores in {table.name}"] = _spelled(np.stack([each.scores for each in neighbours]))
        if table.text is not None:
            with contextlib.suppress(MissingExtraError):
                found[f"{table.codec}: encode by {table.name}"] = _spelled(runtime.encode(TEXTS))
    return found


def _spelled(array: Any) -> dict[str, Any]:
    return {"shape": array.shape, "float32": np.ascontiguousarray(array, "<f4").tobytes().hex()}


def run(*words: str) -> Any:
    """Return what a command says as JSON, and its status."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main([*words, "--json"])
    return {**json.loads(said.getvalue()), "status": status}


def verified(folder: Path) -> dict[str, Any]:
    """Return what ``edge-embed verify`` says of every bundle in a folder: golden answers, and graphs on engines."""
    return {bundle.name: run("verify", str(bundle)) for bundle in sorted(folder.iterdir())}


def decoded(folder: Path) -> dict[str, Any]:
    """Return the vectors of every table by every engine that is installed here, as far as it runs a graph of theirs."""
    found: dict[str, Any] = {}
    for engine, form in FORMATS.items():
        for bundle in sorted(folder.iterdir()):
            with edge_embed.open(bundle) as runtime:
                table = next(iter(runtime.manifest.tables))
                drawn = any((graph.operation, graph.format) == ("lookup", form) for graph in table.graphs)
            if not drawn:
                continue
            with contextlib.suppress(MissingExtraError), edge_embed.open(bundle, engine=engine) as runtime:
                found.setdefault(engine, {})[bundle.name] = _spelled(runtime.lookup_ids(np.arange(table.rows)))
    return found


def swapped(store: Path, bundle: Path, repository: Path, root: Path) -> list[Any]:
    """Install a bundle, update to what a repository has, roll back; return what each command says, and a lookup."""
    steps: list[Any] = [run("install", str(bundle), "--store", str(store))]
    trusted = ("--repository", str(repository), "--root", str(root))
    steps.append(run("update", str(store), *trusted, "--new-space", "allow"))
    steps += [run("status", str(store)), run("rollback", str(store)), run("lookup", str(store), "word1")]
    return steps


def served(store: Path) -> dict[str, Any]:
    """Return what a store says of itself, whether what it serves is whole and golden, and some of its vectors."""
    path = str(store)
    return {"status": run("status", path), "verify": run("verify", path), "lookup": run("lookup", path, *KEYS)}


TASKS: dict[str, Callable[..., Any]] = {
    "asked": asked,
    "verified": verified,
    "decoded": decoded,
    "swapped": swapped,
    "served": served,
}

if __name__ == "__main__":
    tasks, *words = sys.argv[1:]
    paths = [Path(word) for word in words]
    found = {task: TASKS[task](*paths) for task in tasks.split(",")}
    print(json.dumps({"variant": kernels.VARIANT, **found}))
