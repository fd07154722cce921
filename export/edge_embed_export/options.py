"""What the user decides about an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_embed.errors import RequestError
from edge_embed_bundle.manifest import VERSION, BagRecipe, LatencyBudget
from edge_embed_bundle.values import NAME
from edge_embed_devices.profiles import board_named
from edge_embed_export.codecs import encoder
from edge_embed_export.evaluation import Task
from edge_embed_export.parents import Parent

GRAPH_FORMATS = ("onnx", "tflite")
#: Where the user names none: a second graph of an encoder would take as much flash again.
ENCODER_GRAPHS = ("onnx",)
DEFAULT_BOARD = "pi-zero-2w"
COLLECTION = "collection"
DEFAULT_RECALL = 0.99
ALL_TABLES = "*"

_SHOWN_TABLES = 4


@dataclass(frozen=True)
class Hashing:
    """That unknown ids and keys of a table get one of its rows: all of them, or some from ``first_row`` on."""

    first_row: int = 0
    rows: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Options:
    """What the user decided about an export."""

    target: Path
    name: str
    version: str = "1.0.0"
    codec: str = "int8"
    #: Of single tables, by their names; ``ALL_TABLES`` in ``bags`` and ``hashes`` stands for those that have none.
    codecs: Mapping[str, str] = field(default_factory=dict)
    bags: Mapping[str, BagRecipe] = field(default_factory=dict)
    hashes: Mapping[str, Hashing] = field(default_factory=dict)
    graphs: tuple[str, ...] = GRAPH_FORMATS
    board: str = DEFAULT_BOARD
    memory_budget_bytes: int | None = None
    latency_budgets: Mapping[str, LatencyBudget] = field(default_factory=dict)
    collection: tuple[str, ...] = ()
    parent: Parent | None = None
    replace: bool = False
    evaluations: tuple[Task, ...] = ()
    max_loss: float | None = None
    #: The share of the ten nearest rows that a search through lists has to find.
    recall: float = DEFAULT_RECALL
    #: Whether such a table has a plane of 4-bit codes; None: where its rows would crowd the board's memory.
    plane: bool | None = None


def codec_said(options: Options, tables: Sequence[str]) -> str:
    """Return the codec of all tables, or that of each where they differ: ``user=pq:4, item=int8``."""
    codecs = {table: options.codecs.get(table, options.codec) for table in tables}
    if len(set(codecs.values())) < 2:
        return next(iter(codecs.values()), options.codec)
    shown = [f"{table}={codec}" for table, codec in codecs.items()]
    more = f" and {len(shown) - _SHOWN_TABLES} more" if len(shown) > _SHOWN_TABLES else ""
    return ", ".join(shown[:_SHOWN_TABLES]) + more


def check_options(options: Options) -> None:
    """Refuse what no table could make possible.

    Raises:
        RequestError: a codec, graph format or board is unknown, or a name or version is none.
    """
    encoder(options.codec)
    check_naming(options)


def check_naming(options: Options) -> None:
    """Refuse what no source could make possible.

    Raises:
        RequestError: a table's codec, a graph format or a board is unknown, or a name or version is none.
    """
    for codec in options.codecs.values():
        encoder(codec)
    if not NAME.fullmatch(options.name):
        raise RequestError(
            f"name: expected letters, digits, dots, dashes, underscores, found {options.name!r}; pass --name"
        )
    if not VERSION.fullmatch(options.version):
        raise RequestError(f"version: expected something like 1.2.0 or 1.2.0-rc1, found {options.version!r}")
    unknown = set(options.graphs) - set(GRAPH_FORMATS)
    if unknown:
        raise RequestError(f"expected graphs of {', '.join(GRAPH_FORMATS)}, found {', '.join(sorted(unknown))}")
    if not 0 < options.recall <= 1:
        raise RequestError(f"--recall: expected a share of more than 0 and at most 1, found {options.recall:g}")
    board_named(options.board)
