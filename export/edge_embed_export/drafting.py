"""The manifest of models that are written: what it requires, what it adds to a process, what it promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from edge_embed.errors import RequestError
from edge_embed.kernels.reference import SCAN_ROWS
from edge_embed.memory import format_size
from edge_embed.text import BATCH_TOKENS
from edge_embed_bundle.encoders import EncoderModel
from edge_embed_bundle.manifest import Budgets, Manifest, Model, Requirements, TableModel
from edge_embed_bundle.room import PROCESS_BYTES
from edge_embed_bundle.values import Blob
from edge_embed_devices.advising import misses
from edge_embed_devices.budgets import default_budgets
from edge_embed_devices.calibrating import board_to_predict
from edge_embed_devices.graph_work import Work
from edge_embed_devices.prediction import scanned_rows
from edge_embed_devices.profiles import board_named
from edge_embed_export.options import Options
from edge_embed_export.parts import space_of, tokenizer_of
from edge_embed_export.questions import searchable
from edge_embed_export.sources import Source

# Private memory of a runtime beyond numpy, measured on x86-64 with CPython 3.11 and rounded up: its modules and maps;
# the tokenizers package with its threads; what a tokenizer takes per byte of its definition.
RUNTIME_BYTES = 4 * 2**20
# Each further table: its maps, its arrays and its part of the manifest.
TABLE_BYTES = 48 * 2**10
_TOKENIZERS_BYTES = 6 * 2**20
_TOKENIZER_FACTOR = 24
# What a number takes while it is decoded, the result included, and while it is scanned: codes are scanned by tables of
# products and never decoded.
_DECODE_BYTES = {"float32": 5, "float16": 7, "int8": 5, "int4": 14, "pq": 17, "opq": 21, "rq": 13}
_PLANE_BYTES = 6
_SCAN_BYTES = {"float32": 4, "float16": 6, "int8": 4, "int4": 14, "pq": 0, "opq": 0, "rq": 0}


def draft_manifest(
    source: Source, options: Options, models: tuple[TableModel, ...], blobs: Mapping[str, Blob]
) -> Manifest:
    """Return the manifest without what is only known when the bundle has answered."""
    return Manifest(
        name=options.name,
        version=options.version,
        space=space_of(source.table, source.title),
        models=models,
        blobs=blobs,
        requirements=Requirements(features_of(models), _private_bytes(source, models)),
        budgets=_budgets(source, options, models),
        quality={},
        golden=(),
        parent=None if options.parent is None else options.parent.id,
    )


def features_of(models: Sequence[Model]) -> tuple[str, ...]:
    """Return what a reader must know to answer rightly from these models."""
    features = {"model-space" for model in models if model.space is not None}
    for model in models:
        if isinstance(model, EncoderModel):
            features.update(model.features)
            continue
        features.add(f"codec-{model.codec}")
        features |= set() if model.text is None else set(model.text.features)
        features |= set() if model.subwords is None else {f"subwords-{model.subwords.algorithm}"}
        there = {
            "classify-fasttext": model.classify,
            "key-index-1": model.key_index,
            "bag-1": model.bag,
            "unknown-hash": model.hash,
        }
        features |= {"lists-4-bit"} if model.centroids_are_plane else set()
        features |= {name for name, recipe in there.items() if recipe is not None}
    return tuple(sorted(features))


def tokenizer_bytes(definition: bytes) -> int:
    """Predict the private memory of a tokenizer and its package."""
    return _TOKENIZERS_BYTES + _TOKENIZER_FACTOR * len(definition)


def _private_bytes(source: Source, models: tuple[TableModel, ...]) -> int:
    """Predict what a runtime adds to a process that has numpy: its objects, a tokenizer, the buffers of a call."""
    definition = tokenizer_of(source)
    tokenizer = 0 if definition is None else tokenizer_bytes(definition)
    # Of parts of words, a call reads a few rows.
    scan = max(
        (scan_bytes(model) for model in models if model.key_index is not None and model.subwords is None), default=0
    )
    batch = max(
        _DECODE_BYTES[model.codec] * BATCH_TOKENS * model.dimensions if model.text is not None else 0
        for model in models
    )
    return RUNTIME_BYTES + TABLE_BYTES * (len(models) - 1) + tokenizer + scan + batch


def scan_bytes(model: TableModel) -> int:
    """Predict what a scan holds: a block of rows as float32, and scores with their quotients and order."""
    block = min(SCAN_ROWS, model.rows)
    # Labels are scored all at once; of rows that are searched, the best of a block are kept.
    scored = block if "norms" in model.tensors else model.rows
    per_number = _SCAN_BYTES[model.codec]
    if model.search is not None and model.search.shortlist is not None:
        per_number = max(per_number, _PLANE_BYTES)
    return per_number * model.dimensions * block + 32 * scored


def check_memory(title: str, needed_bytes: int, budget_bytes: int, fits: Sequence[str] = ()) -> None:
    """Refuse a memory budget that a process with numpy and the bundle cannot keep: it is of the whole process.

    Args:
        title: the source's.
        needed_bytes: what the bundle adds to a process.
        budget_bytes: what the process may hold.
        fits: the choices with which it would fit.

    Raises:
        RequestError: the budget is too small; the message has the figures and what would fit.
    """
    if needed_bytes + PROCESS_BYTES > budget_bytes:
        choices = f"; within it: {' or '.join(fits)}" if fits else ""
        raise RequestError(
            f"{title}: expected a memory budget of {format_size(needed_bytes + PROCESS_BYTES)} or more, of which the "
            f"bundle adds {format_size(needed_bytes)} to a process with numpy, found "
            f"{format_size(budget_bytes)}{choices}; or pass --budget memory=..."
        )


def memory_choices(
    models: tuple[TableModel, ...], private_bytes: Callable[[tuple[TableModel, ...]], int], budget_bytes: int
) -> list[str]:
    """Return the nearest choices with which tables fit into a memory budget, where each alone is enough."""

    def fits(**changed: Any) -> bool:
        return private_bytes(tuple(model._replace(**changed) for model in models)) + PROCESS_BYTES <= budget_bytes

    codec = next((f"--codec {codec}" for codec in _SCAN_BYTES if fits(codec=codec)), None)
    most = min(model.dimensions for model in models)
    dimensions = next((f"--dimensions {d}" for d in range((most - 1) // 8 * 8, 0, -8) if fits(dimensions=d)), None)
    return [choice for choice in (dimensions, codec) if choice is not None]


def check_prediction(manifest: Manifest, options: Options, works: Mapping[str, Work] = MappingProxyType({})) -> None:
    """Refuse budgets that the user named and that the board's memory and cores cannot keep.

    Raises:
        RequestError: a budget is certain to be missed; the message has the figures and what would fit.
    """
    for miss in misses(manifest, board_to_predict(options.board, manifest), works):
        if miss.is_certain and miss.operation in options.latency_budgets:
            raise RequestError(f"{miss}; or pass --budget {miss.operation}=...")


def _budgets(source: Source, options: Options, models: tuple[TableModel, ...]) -> Budgets:
    there = {
        "lookup": True,
        "encode": models[0].text is not None,
        "classify": models[0].classify is not None,
        "search": any(map(searchable, models)),
        "bag": any(model.bag is not None for model in models),
    }
    operations = tuple(name for name, answered in there.items() if answered)
    scanned = max((scanned_rows(model) * model.dimensions for model in models if searchable(model)), default=0)
    budgets = default_budgets(board_named(options.board), operations, scanned)
    strangers = set(options.latency_budgets) - set(operations)
    if strangers:
        raise RequestError(f"expected budgets for {', '.join(operations)}, found {', '.join(sorted(strangers))}")
    budget_bytes = budgets.memory_private_bytes
    if options.memory_budget_bytes is not None:
        budget_bytes = options.memory_budget_bytes
    fits = memory_choices(models, lambda changed: _private_bytes(source, changed), budget_bytes)
    check_memory(source.title, _private_bytes(source, models), budget_bytes, fits)
    return budgets._replace(
        memory_private_bytes=budget_bytes, operations={**budgets.operations, **options.latency_budgets}
    )
