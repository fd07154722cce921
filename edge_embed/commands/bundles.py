"""``inspect`` and ``verify``: what is in a bundle, and whether it is all true."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edge_embed.commands import Command, printable
from edge_embed.encoding import open_graph_encoder
from edge_embed.engines import open_bag_graph, open_graph
from edge_embed.errors import BundleError, EdgeEmbedError, MissingExtraError
from edge_embed.golden import bag_difference, check_asked, encoder_outcomes
from edge_embed.memory import format_size
from edge_embed.progress import Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph, EncoderModel
from edge_embed_bundle.manifest import OPERATIONS, Graph, TableModel
from edge_embed_bundle.slots import is_store
from edge_embed_bundle.store import Store

_GRAPH_QUESTIONS = 64
_LONGER = {"truncate": "cut", "refuse": "refused"}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="BUNDLE", type=Path, help="folder of a bundle, or of a store")


def _folder(path: Path) -> Path:
    return Store(path).active() if is_store(path) else path


def _inspect(arguments: argparse.Namespace) -> int:
    with Bundle.open(_folder(arguments.path)) as bundle:
        manifest = bundle.manifest
        if arguments.json:
            print(json.dumps({"id": bundle.id, "manifest": json.loads(bundle.manifest_bytes)}))
            return 0
        print(f"{manifest.name} {manifest.version}   {bundle.id}")
        source = printable(manifest.space.source)
        print(f"space     {manifest.space.id[:12]}  {manifest.space.dimensions} dimensions, {source}")
        for model in manifest.models:
            if isinstance(model, TableModel):
                _print_table(model)
            else:
                _print_encoder(model)
        print(f"memory    {format_size(manifest.requirements.memory_private_bytes)} private beside numpy")
        budgets = manifest.budgets
        print(f"budgets   {budgets.board or 'any board'}: {format_size(budgets.memory_private_bytes)} private")
        for operation, budget in budgets.operations.items():
            print(f"          {operation:7} p50 {budget.p50_us:g} us, p99 {budget.p99_us:g} us")
        for name, quality in manifest.quality.items():
            # Lists of figures, of parts of a table or of evaluations, are for --json.
            figures = {key: value for key, value in sorted(quality.items()) if not isinstance(value, list | dict)}
            prices = ", ".join(f"{key} {value}" for key, value in figures.items())
            print(printable(f"quality   {name}: {prices}"))
            for line in _graph_prices(quality):
                print(printable(f"          {line}"))
        print(f"golden    {sum(len(golden.inputs) for golden in manifest.golden)} questions")
        for name, blob in manifest.blobs.items():
            print(f"blob      {name:16} {format_size(blob.size_bytes):>10}  {blob.sha256[:12]}")
    return 0


def _graph_prices(quality: Mapping[str, Any]) -> list[str]:
    """Return a line for each graph that was priced for itself, of whatever a writer put there."""
    lines = []
    for graph in _dicts(quality.get("graphs")):
        figures = {key: value for key, value in sorted(graph.items()) if not isinstance(value, list | dict)}
        blob = figures.pop("blob", "graph")
        said = [f"{key} {value}" for key, value in figures.items()]
        for each in _dicts(graph.get("evaluations")):
            said += [
                f"{each.get('file')} {score.get('measure')} loss {score.get('loss')}"
                for score in _dicts(each.get("scores"))
            ]
        lines.append(f"{blob}: {', '.join(said)}")
    return lines


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def _print_table(model: TableModel) -> None:
    pooled = [f"bag ({model.bag.mode})"] if model.bag is not None else []
    abilities = ["lookup"] + pooled + ["encode"] * (model.text is not None) + ["search"] * ("norms" in model.tensors)
    print(f"model     {model.name}: {model.rows} x {model.dimensions} {model.codec}, {', '.join(abilities)}")
    if model.search is not None:
        lists = model.tensors["list_ends"].shape[0]
        first = (
            "" if model.search.shortlist is None else f", 4 bits first, {model.search.shortlist} rows compared for each"
        )
        print(
            f"          search of {model.search.probes} of {lists} lists{first}: "
            f"recall@10 {model.search.recall_at_10} of {model.search.queries} queries"
        )
    if model.space is not None:
        print(printable(f"          space {model.space.id[:12]}, {model.space.source}"))
    for graph in model.graphs:
        print(printable(f"graph     {graph.operation} {graph.blob}: {_proven(graph)}"))


def _print_encoder(model: EncoderModel) -> None:
    print(
        f"model     {model.name}: encoder of {'texts' if model.image is None else 'images'}, {model.dimensions} numbers"
    )
    if model.text is not None:
        text = model.text
        print(f"          at most {text.max_tokens} tokens, a longer text is {_LONGER[text.too_long]}")
        for name, prompt in text.prompts.items():
            used = " (by default)" if name == text.default_prompt else ""
            print(printable(f"          prompt {name}{used}: {prompt}"))
    if model.image is not None:
        image = model.image
        height, width = image.size
        print(f"          {height} x {width} {image.channels}, {image.resize}, {image.resampling}")
    for graph in model.graphs:
        lengths = ", ".join(str(each.length) for each in graph.signatures)
        at = f" at {lengths} tokens" if lengths else ""
        print(printable(f"graph     {graph.operation} {graph.blob}: {graph.variant}{at}, {_proven(graph)}"))


def _proven(graph: Graph | EncoderGraph) -> str:
    proven = ", ".join(f"{engine.name} {engine.version}" for engine in graph.proven) or "no engine yet"
    return f"proven on {proven}"


def _verify(arguments: argparse.Namespace) -> int:
    """Check digests, then golden answers, then each graph on its engine; stop at the first layer that fails."""
    folder = _folder(arguments.path)
    if not folder.is_dir():
        raise BundleError(f"{folder}: expected a bundle folder, found none")
    checks: list[dict[str, object]] = []
    progress = Progress(shown=False) if arguments.json else Progress()
    try:
        with Bundle.open(folder) as bundle:
            with progress.task("verifying", bundle.manifest.size_bytes) as advance:
                bundle.verify(advance)
            checks.append({"check": f"digests of {len(bundle.manifest.blobs)} files", "passed": True})
        with Runtime(folder, verify=False) as runtime:
            check_asked(runtime.manifest)
            for operation in OPERATIONS:
                checks += _golden_checks(runtime, operation)
            for model in runtime.manifest.tables:
                for graph in model.graphs if model.rows else ():
                    ask = _graph_check if graph.operation == "lookup" else _bag_graph_check
                    checks.append(ask(runtime, model, graph))
            for encoder in runtime.manifest.encoders:
                checks += [_encoder_check(runtime, encoder, graph) for graph in encoder.graphs]
    except EdgeEmbedError as error:
        checks.append({"check": str(error), "passed": False})
    passed = all(check["passed"] is not False for check in checks)
    if arguments.json:
        print(json.dumps({"path": str(folder), "passed": passed, "checks": checks}))
    else:
        for check in checks:
            word = {True: "ok", False: "FAILED", None: "skipped"}[check["passed"]]  # type: ignore[index]
            print(f"{word:8} {check['check']}")
    return 0 if passed else 1


def _golden_checks(runtime: Runtime, operation: str) -> list[dict[str, object]]:
    try:
        outcomes = runtime.check_golden([operation])
    except MissingExtraError as error:
        return [{"check": str(error), "passed": None}]
    return [
        {
            "check": str(outcome),
            "passed": outcome.passed,
            **asdict(outcome),
            "worst_difference": _finite(outcome.worst_difference),
        }
        for outcome in outcomes
    ]


def _graph_check(runtime: Runtime, model: TableModel, graph: Graph) -> dict[str, object]:
    ids = np.unique(np.linspace(0, model.rows - 1, _GRAPH_QUESTIONS).astype(np.int64))
    expected = runtime.lookup_ids(ids, model=model.name)
    try:
        engine = open_graph(graph, runtime.bundle, runtime.table(model.name).rows, model.dimensions)
        same = np.array_equal(engine.decode(ids), expected)
    except MissingExtraError as error:
        return {"check": f"{graph.blob}: {error}", "passed": None}
    except EdgeEmbedError as error:
        return {"check": str(error), "passed": False}
    said = "the kernels' vectors, bit for bit" if same else "other vectors than the kernels"
    return {"check": f"{graph.blob} on {engine.name} {engine.version}: {said}", "passed": same}


def _bag_graph_check(runtime: Runtime, model: TableModel, graph: Graph) -> dict[str, object]:
    try:
        engine = open_bag_graph(graph, runtime.bundle)
        off, bound = bag_difference(runtime, model, engine)
    except MissingExtraError as error:
        return {"check": f"{graph.blob}: {error}", "passed": None}
    except EdgeEmbedError as error:
        return {"check": str(error), "passed": False}
    passed = off <= bound
    said = f"bags off by {off:.3g}, {'within' if passed else 'NOT within'} {bound:.3g}"
    return {"check": f"{graph.blob} on {engine.name} {engine.version}: {said}", "passed": passed}


def _encoder_check(runtime: Runtime, model: EncoderModel, graph: EncoderGraph) -> dict[str, object]:
    try:
        encoder = open_graph_encoder(runtime.bundle, model, graph)
        outcomes = encoder_outcomes(runtime.bundle, model, encoder)
    except MissingExtraError as error:
        return {"check": f"{graph.blob}: {error}", "passed": None}
    except EdgeEmbedError as error:
        return {"check": str(error), "passed": False}
    engine = encoder.forward.engine
    said = "; ".join(map(str, outcomes))
    passed = all(outcome.passed for outcome in outcomes)
    return {"check": f"{graph.blob} on {engine.name} {engine.version}: {said}", "passed": passed}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


INSPECT = Command("inspect", "what is in a bundle", "edge-embed inspect notes-1.0.0", _configure, _inspect)
VERIFY = Command(
    "verify", "digests, golden answers and graphs of a bundle", "edge-embed verify notes-1.0.0", _configure, _verify
)
