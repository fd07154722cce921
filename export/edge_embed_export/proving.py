"""What a bundle answers beside what it should: its graphs beside the kernels, its vectors beside the source's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_embed.engines import open_bag_graph, open_graph
from edge_embed.errors import BundleError, MissingExtraError
from edge_embed.golden import bag_difference
from edge_embed.progress import Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Graph, TableModel
from edge_embed_bundle.values import Engine
from edge_embed_export.graphs.onnx import check_onnx
from edge_embed_export.matrix import Places
from edge_embed_export.parts import Part
from edge_embed_export.quality import Quality, measure_quality
from edge_embed_export.questions import spread_rows

_PROOF_ROWS = 16


def prove(model: TableModel, runtime: Runtime, bundle: Bundle) -> TableModel:
    """Run every graph beside the kernels; note the engine and its version where they agree to the last bit.

    A graph whose engine is not installed here stays unproven, and says so by an empty list.
    """
    ids = spread_rows(model.rows, _PROOF_ROWS)
    expected = runtime.lookup_ids(ids, model=model.name)
    graphs = []
    for graph in model.graphs:
        path = bundle.path / graph.blob
        if graph.format == "onnx":
            check_onnx(path)
        if graph.operation == "bag":
            graphs.append(_proven_bag(model, graph, runtime, bundle))
            continue
        try:
            engine = open_graph(graph, bundle, runtime.table(model.name).rows, model.dimensions)
        except MissingExtraError:
            graphs.append(graph)
            continue
        if not np.array_equal(engine.decode(ids), expected):
            raise BundleError(
                f"{path.name}: expected the kernels' vectors from {engine.name} {engine.version}, found others; "
                "the bundle was not written"
            )
        graphs.append(graph._replace(proven=(Engine(engine.name, engine.version),)))
    return model._replace(graphs=tuple(graphs))


def _proven_bag(model: TableModel, graph: Graph, runtime: Runtime, bundle: Bundle) -> Graph:
    """Run a graph of bags beside the kernels, which may add in another order: within ``error_bound``."""
    try:
        engine = open_bag_graph(graph, bundle)
    except MissingExtraError:
        return graph
    off, bound = bag_difference(runtime, model, engine) if model.rows else (0.0, 0.0)
    if off > bound:
        raise BundleError(
            f"{graph.blob}: expected the kernels' bags from {engine.name} {engine.version} within {bound:.3g}, "
            f"found them off by {off:.3g}; the bundle was not written"
        )
    return graph._replace(proven=(Engine(engine.name, engine.version),))


def measured(
    parts: Sequence[Part], models: tuple[TableModel, ...], runtime: Runtime, progress: Progress
) -> dict[str, Quality]:
    """Return what each part's codec cost: the source's vectors beside those that the runtime answers."""
    prices = {}
    for part, model in zip(parts, models, strict=True):
        decoded = Decoded(runtime, model)
        bytes_after = sum(model.tensors[name].size_bytes for name in part.codes)
        if model.rows:
            prices[model.name] = measure_quality(
                part.vectors, decoded, bytes_after, progress, whole=part.whole, neighbours=not part.is_helper
            )
    return prices


class Decoded:
    """A model's vectors as a matrix: what the runtime answers for its rows."""

    dtype = np.dtype(np.float32)

    def __init__(self, runtime: Runtime, model: TableModel) -> None:
        self._runtime = runtime
        self._name = model.name
        self.shape = (model.rows, model.dimensions)
        self.nbytes = 4 * model.rows * model.dimensions

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some rows, by a slice or by their ids ``(m,)``."""
        ids = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return self._runtime.lookup_ids(ids, model=self._name)
