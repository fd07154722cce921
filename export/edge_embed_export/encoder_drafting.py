"""The manifest of an encoder that is written: what it requires, what it adds to a process, what it promises."""

from __future__ import annotations

from collections.abc import Mapping

from edge_embed.encoding import RUN_TOKENS
from edge_embed.errors import RequestError
from edge_embed.memory import format_size
from edge_embed_bundle.encoders import EncoderModel
from edge_embed_bundle.manifest import Budgets, Manifest, Model, Requirements, TableModel
from edge_embed_bundle.room import PROCESS_BYTES
from edge_embed_bundle.values import Blob
from edge_embed_devices.budgets import default_budgets
from edge_embed_devices.graph_work import Work
from edge_embed_devices.prediction import run, scanned_rows
from edge_embed_devices.profiles import Board, board_named
from edge_embed_export.drafting import (
    RUNTIME_BYTES,
    TABLE_BYTES,
    check_memory,
    features_of,
    scan_bytes,
    tokenizer_bytes,
)
from edge_embed_export.options import Options
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.sources.graph_network import GraphNetwork

# Private memory beyond numpy, measured on x86-64 with CPython 3.11 and rounded up. ONNX Runtime 1.32: its library and
# a session; LiteRT takes less. Weights that are multiplied are packed into memory of the engine's own.
_ENGINE_BYTES = 28 * 2**20
_PACKED = {"float32": 4.0, "int8": 1.3}
_PACKED_OTHERWISE = 1.5
# What a process with numpy holds before it opens a bundle, and what the sum of budgets is rounded up to.
_PROCESS_BYTES = 32 * 2**20
_STEP_BYTES = 16 * 2**20

# Of the text that the budgets are made for.
_TOKENS = 64


def draft_encoder(
    source: EncoderSource,
    options: Options,
    models: tuple[Model, ...],
    blobs: Mapping[str, Blob],
    *,
    checked: bool = True,
) -> Manifest:
    """Return the manifest without what is only known when the bundle has answered.

    Raises:
        RequestError: the memory budget cannot hold it, or the board has too little (where ``checked``).
    """
    needed = _private_bytes(source, models, options.codec)
    return Manifest(
        name=options.name,
        version=options.version,
        space=source.space,
        models=models,
        blobs=blobs,
        requirements=Requirements(features_of(models), needed),
        budgets=_budgets(source, options, models, needed, checked=checked),
        quality={},
        golden=(),
        parent=None if options.parent is None else options.parent.id,
    )


def _private_bytes(source: EncoderSource, models: tuple[Model, ...], variant: str) -> int:
    """Predict what a runtime adds to a process that has numpy: its engine, packed weights, a call's numbers, a scan."""
    tables = [model for model in models if isinstance(model, TableModel)]
    # Of an image network every weight is used many times, and packed once.
    weights = source.network.products_per_token if source.image is None else source.network.size_bytes // 4
    packed = int(_PACKED.get(variant, _PACKED_OTHERWISE) * weights)
    scan = max((scan_bytes(model) for model in tables), default=0)
    run = source.network.run_bytes(1 if source.text is None else max(RUN_TOKENS, source.text.max_tokens))
    tokenizer = 0 if source.tokenizer is None else tokenizer_bytes(source.tokenizer)
    return RUNTIME_BYTES + TABLE_BYTES * len(tables) + tokenizer + _ENGINE_BYTES + packed + run + scan


def _budgets(
    source: EncoderSource, options: Options, models: tuple[Model, ...], needed_bytes: int, *, checked: bool
) -> Budgets:
    board = board_named(options.board)
    tables = [model for model in models if isinstance(model, TableModel)]
    encoders = [model for model in models if isinstance(model, EncoderModel)]
    operations = tuple(dict.fromkeys(model.operation for model in encoders))
    operations += ("lookup", "search") if tables else ()
    scanned = max((scanned_rows(model) * model.dimensions for model in tables), default=0)
    encoding_us = _encoding_us(source, options, board)
    budgets = default_budgets(board, operations, scanned, encoding_us)
    strangers = set(options.latency_budgets) - set(operations)
    if strangers:
        raise RequestError(f"expected budgets for {', '.join(operations)}, found {', '.join(sorted(strangers))}")
    whole_bytes = needed_bytes + _PROCESS_BYTES
    budget_bytes = max(budgets.memory_private_bytes, -(-whole_bytes // _STEP_BYTES) * _STEP_BYTES)
    if options.memory_budget_bytes is not None:
        budget_bytes = options.memory_budget_bytes
    if checked:
        coded_bytes = _private_bytes(source, models, "int8") + PROCESS_BYTES
        # A graph of another maker stays as it is.
        may_change = options.codec != "int8" and not isinstance(source.network, GraphNetwork)
        fits = ["--codec int8"] if may_change and coded_bytes <= budget_bytes else []
        check_memory(source.title, needed_bytes, budget_bytes, fits)
    if checked and budget_bytes > board.ram_bytes:
        raise RequestError(
            f"{source.title}: expected a board with {format_size(budget_bytes)} of memory for this encoder, found "
            f"{board.name} with {format_size(board.ram_bytes)}; pass --board, or --codec int8"
        )
    return budgets._replace(
        memory_private_bytes=budget_bytes, operations={**budgets.operations, **options.latency_budgets}
    )


def _encoding_us(source: EncoderSource, options: Options, board: Board) -> float:
    """Predict how long a board takes for a text of some tokens, or for an image."""
    products = source.network.products_per_token
    weights = products if source.image is None else source.network.size_bytes // 4
    work = Work(products, weights, options.codec not in ("float32", "int8-blocks"))
    latency = run(work, options.graphs[0], board, _TOKENS if source.image is None else None)
    return latency.p50_us or 0.0
