"""How many lists a search has to scan: measured on the bundle that was written, by rows that no list was trained on.

* The truth are the ten rows nearest by the source's vectors, in float32, of all rows but the asked one.
* The fewest probes are taken that find the stated share of them. A codec may lose more than that all by itself: then
  those that find nearly what an exact scan of its rows finds.
* Where there is a plane, the shortest list is taken that finds, in all rows, nearly what an exact scan finds.
* Where half of the lists would have to be scanned, all are: a scan in one run is faster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_embed.progress import Progress
from edge_embed.runtime import Runtime
from edge_embed.search import MEASURED_NEIGHBOURS
from edge_embed_bundle.manifest import TableModel
from edge_embed_export.parts import Part
from edge_embed_export.quality import nearest_rows

# What may be lost of the codec's own ceiling, where that is below what was asked for.
_OF_CEILING = 0.999
_SHORTLISTS = (2, 4, 8, 16, 32, 64)
_QUERIES_AT_A_TIME = 64


def tuned(part: Part, model: TableModel, runtime: Runtime, target: float, progress: Progress) -> TableModel:
    """Return a model with the number of probes that finds ``target`` of the ten nearest rows, and what it found."""
    if part.clusters is None or model.search is None:
        return model
    asked = part.clusters.held_out
    k = min(MEASURED_NEIGHBOURS, model.rows - 1)
    with progress.task("choosing how many lists to search", model.rows) as advance:
        truth = nearest_rows(part.whole, asked, k, advance)
    table = runtime.table(model.name)
    queries = part.vectors[asked]
    lists = len(part.clusters.ends)

    def recall(probes: int, shortlist: int) -> float:
        shares = []
        for start in range(0, len(asked), _QUERIES_AT_A_TIME):
            some = slice(start, start + _QUERIES_AT_A_TIME)
            found = table.nearest(queries[some], k, asked[some], probes=probes, shortlist=shortlist).rows
            shares.append(_shares(found, truth[some]))
        return float(np.concatenate(shares).mean())

    ceiling = recall(lists, 0)
    shortlist = 0
    if model.search.shortlist is not None:
        nearly = ceiling - (1 - _OF_CEILING) / 2
        shortlist = next((each for each in _SHORTLISTS if recall(lists, each) >= nearly), _SHORTLISTS[-1])
    enough = min(target, _OF_CEILING * ceiling)
    low, high = 0, lists  # too few, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle, shortlist) >= enough else (middle, high)
    probes = high if 2 * high <= lists else lists
    recipe = model.search._replace(
        probes=probes,
        recall_at_10=round(recall(probes, shortlist), 4),
        queries=len(asked),
        shortlist=shortlist or None,
    )
    return model._replace(search=recipe)


def _shares(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return which share of each row of ``truth`` ``(q, k)`` was found."""
    shares: NDArray[np.float64] = (truth[:, :, np.newaxis] == found[:, np.newaxis]).any(axis=2).mean(axis=1)
    return shares
