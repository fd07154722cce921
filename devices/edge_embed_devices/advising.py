"""Budgets that a board is predicted to miss, with the figures and the nearest choices that hold them.

* A miss is certain where bytes at the speed of the board's memory alone, or products without a cycle that is wasted,
  take longer than the budget; what rests on a guess (see ``Prediction.guessed``) is only likely.
* A choice is as near as it can be: the most dimensions, the codec with the most bytes, the most probes that fit. A
  codec that is computed is one for a table that waits for flash alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from edge_embed_bundle.manifest import Manifest, TableModel
from edge_embed_devices.graph_work import Work
from edge_embed_devices.prediction import predict, scanned_rows
from edge_embed_devices.profiles import Board

# Bytes a number, the most first; product quantization with a code for eight numbers.
_CODECS = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.5625, "pq": 0.125}
# Those that a scan just reads. Others take fewer bytes and more instructions: 25,000 x 64 took 0.34 ms as int8, 0.58 as
# pq and 1.14 as int4 on a busy Xeon (2026-11-27).
_READ = ("float32", "float16", "int8")
_STEP = 8
# Below, a table has no lists.
_LISTS_FROM = 20_000


@dataclass(frozen=True)
class Miss:
    """A budget that is predicted to be missed."""

    board: str
    operation: str
    percentile: str
    budget_us: float
    predicted_us: float
    is_certain: bool
    #: What would fit, each as the exporter's option says it.
    fits: tuple[str, ...]

    def __str__(self) -> str:
        """Return the sentence that says so."""
        nothing = "; no dimensions, codec or recall would be within it" if self.operation == "search" else ""
        choices = f"; within it: {' or '.join(self.fits)}" if self.fits else nothing
        return (
            f"{self.operation} {self.percentile} on {self.board}: expected at most {self.budget_us:g} us, "
            f"predicted {self.predicted_us:g}{choices}"
        )


def misses(manifest: Manifest, board: Board, works: Mapping[str, Work] = MappingProxyType({})) -> list[Miss]:
    """Return the budgets of a manifest that a board is predicted to miss.

    Args:
        manifest: the bundle's.
        board: the profile.
        works: what the graph of each encoder takes, by the encoder's name.
    """
    likely = predict(manifest, board, works).operations
    certain = predict(manifest, board, works, least=True).operations
    found = []
    for operation, budget in manifest.budgets.operations.items():
        for percentile in ("p50", "p99"):
            bound = getattr(budget, f"{percentile}_us")
            value = getattr(likely.get(operation), f"{percentile}_us", None)
            if value is None or value <= bound:
                continue
            # How much slower the hundredth slowest is than the typical one is a guess; that it is no faster is none.
            least = certain[operation].p50_us
            fits = tuple(_choices(manifest, board, works, operation, percentile, bound))
            is_certain = least is not None and least > bound
            found.append(Miss(board.name, operation, percentile, bound, value, is_certain, fits))
    return found


def _choices(
    manifest: Manifest, board: Board, works: Mapping[str, Work], operation: str, percentile: str, bound: float
) -> Iterator[str]:
    if operation == "search":
        yield from _fitting(manifest, board, works, percentile, bound)
    # A search by text is one for its vector before.
    model = next((model for model in manifest.encoders if model.operation == "encode"), None)
    if operation not in ("encode", "search") or model is None or model.name not in works:
        return
    work, graph = works[model.name], model.graphs[0]

    def fits(format: str, changed: Work) -> bool:
        there = model._replace(graphs=(graph._replace(format=format),))
        models = tuple(there if each is model else each for each in manifest.models)
        latencies = predict(manifest._replace(models=models), board, {**works, model.name: changed}).operations
        value = getattr(latencies[operation], f"{percentile}_us")
        return value is not None and value <= bound

    for choice, format, is_coded in (
        ("--codec int8", graph.format, True),
        ("--graphs tflite", "tflite", work.is_coded),
        ("--codec int8 --graphs tflite", "tflite", True),
    ):
        if (format, is_coded) != (graph.format, work.is_coded) and fits(format, work._replace(is_coded=is_coded)):
            yield choice
            return
    # Without a graph finding the tokens is left.
    if fits(graph.format, Work(0, 0, is_coded=False)):
        yield "--distill of a transformer's folder, which makes it static"


def _fitting(
    manifest: Manifest, board: Board, works: Mapping[str, Work], percentile: str, bound: float
) -> Iterator[str]:
    """Yield the nearest choices with which a search fits, where each alone is enough."""
    searched = [model for model in manifest.tables if "norms" in model.tensors and model.classify is None]
    model = max(searched, key=lambda model: scanned_rows(model) * model.dimensions)

    def fits(changed: TableModel, times: float) -> bool:
        models = tuple(changed if each is model else each for each in manifest.models)
        blobs = {
            name: blob._replace(size_bytes=round(blob.size_bytes * times)) for name, blob in manifest.blobs.items()
        }
        there = predict(manifest._replace(models=models, blobs=blobs), board, works)
        value = getattr(there.operations["search"], f"{percentile}_us")
        return value is not None and value <= bound

    # An encoder's collection is as wide as its vectors, has a codec of its own, and lists by itself where it is large.
    if not manifest.encoders:
        now = predict(manifest, board, works)
        waits_for_flash = now.resident_bytes < now.flash_bytes
        yield from _of_table(model, tuple(_CODECS) if waits_for_flash else _READ, fits)
    if model.search is None:
        return
    for probes in range(model.search.probes - 1, 0, -1):
        if fits(model._replace(search=model.search._replace(probes=probes)), 1.0):
            yield f"a --recall that {probes} probes reach, instead of {model.search.probes}"
            return


def _of_table(model: TableModel, codecs: Sequence[str], fits: Callable[[TableModel, float], bool]) -> Iterator[str]:
    """Yield the nearest choices of who exports a table; ``fits`` judges it with so many times its bytes."""
    steps = range((model.dimensions - 1) // _STEP * _STEP, 0, -_STEP)
    dimensions = next(
        (d for d in steps if fits(_shaped(model, model.rows, d / model.dimensions), d / model.dimensions)), None
    )
    if dimensions is not None:
        yield f"--dimensions {dimensions}"
    now = _CODECS.get(model.codec, 0.0)
    smaller = ((codec, _CODECS[codec] / now) for codec in codecs if _CODECS[codec] < now)
    codec = next((codec for codec, times in smaller if fits(_shaped(model, model.rows, times), times)), None)
    if codec is not None:
        yield f"--codec {codec}"
    # How many lists are scanned is measured at export; here a tenth of the rows is supposed.
    if model.search is None and model.rows >= _LISTS_FROM and fits(_shaped(model, model.rows // 10, 1.0), 1.0):
        yield "--order cluster"


def _shaped(model: TableModel, row_count: int, times: float) -> TableModel:
    """Return the model as if it had so many rows, and each so many times its bytes."""
    rows = model.tensors["rows"]
    shaped = rows._replace(shape=(row_count, max(1, round(rows.shape[1] * times))))
    return model._replace(rows=row_count, tensors={**model.tensors, "rows": shaped})
