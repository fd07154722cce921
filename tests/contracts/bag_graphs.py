"""What a graph of bags promises, whichever engine runs it: the kernels' bags within ``error_bound``, for any number of
ids and of bags, with what the recipe leaves out and hashes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import edge_embed
from edge_embed.bags import error_bound
from edge_embed.engines import open_bag_graph
from edge_embed.errors import MissingExtraError
from edge_embed.golden import bag_difference
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import TableModel

#: Bags by their numbers of ids: one, several, long ones, empty ones at the begin, between and at the end.
COUNTS = ([1], [3], [2, 0, 5], [0, 0, 4, 0], [1] * 40, [100, 1], [7, 7], [0, 2])


def keep(runtime: Runtime, model: TableModel, formats: tuple[str, ...]) -> list[str]:
    """Run every graph of bags of a model on its engine; return the engines that kept the promise."""
    kept = []
    for graph in model.graphs:
        if graph.operation != "bag" or graph.format not in formats:
            continue
        engine = open_bag_graph(graph, runtime.bundle)
        off, bound = bag_difference(runtime, model, engine)
        assert off <= bound, (graph.blob, off, bound)
        random = np.random.default_rng(0)
        for counts in COUNTS:
            n = sum(counts)
            low, high = (-3 * model.rows, 3 * model.rows) if model.hash is not None else (0, model.rows)
            ids = random.integers(low, high, n)
            weighted = model.bag is not None and model.bag.mode == "sum"
            weights = random.uniform(-1, 1, n).astype(np.float32) if weighted else None
            offsets = (np.cumsum(counts) - counts).astype(np.int64)
            found = engine.bag(ids, offsets, weights)
            expected = runtime.bag(ids, offsets, model=model.name, weights=weights)
            assert found.shape == expected.shape and found.dtype == np.float32, counts
            vectors = runtime.lookup_ids(ids, model=model.name)
            assert np.abs(found - expected).max() <= error_bound(vectors, max(counts)), (graph.blob, counts)
        kept.append(f"{engine.name} {engine.version}")
    return kept


def main(bundle: str, formats: str) -> None:
    """Check all models of a bundle and print the engines."""
    with edge_embed.open(Path(bundle)) as runtime:
        for model in runtime.manifest.tables:
            try:
                print(model.name, *keep(runtime, model, tuple(formats.split(","))))
            except MissingExtraError as error:
                sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
