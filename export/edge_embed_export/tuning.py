"""How many lists a search has to scan: measured on the bundle that was written, by rows that no list was trained on.

* The truth are the ten rows nearest by the source's vectors, in float32, of all rows but the asked one.
* The fewest probes are taken that find the stated share of them. A codec may lose more than that all by itself: then
  those that find nearly what an exact scan of its rows finds.
* Where there is a plane, its list is as short as costs least: a longer one is compared in more rows, each a page of its
  own, and a shorter one wants more lists scanned. None is taken that finds, in all rows, too little.
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
_SHORTLISTS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# What comparing one row of a shortlist costs beside its own bytes: it stands in a page of its own.
_PAGE_BYTES = 4096
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

    def fewest_probes(shortlist: int, most: int) -> int:
        low, high = 0, most  # too few, and enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if recall(middle, shortlist) >= enough else (middle, high)
        return high

    def cost(way: tuple[int, int]) -> float:
        probes, shortlist = way
        scanned = probes / lists * model.rows * _bytes_of_row(model, "plane")
        return scanned + shortlist * k * (_bytes_of_row(model, "rows") + _PAGE_BYTES)

    enough = min(target, _OF_CEILING * recall(lists, 0))
    if model.search.shortlist is None:
        probes, shortlist = fewest_probes(0, lists), 0
    else:
        ways, most = [], lists
        for each in _SHORTLISTS:
            if recall(most, each) >= enough or each == _SHORTLISTS[-1]:
                most = fewest_probes(each, most)
                ways.append((most, each))
        probes, shortlist = min(ways, key=cost)
    probes = probes if 2 * probes <= lists else lists
    recipe = model.search._replace(
        probes=probes,
        recall_at_10=round(recall(probes, shortlist), 4),
        queries=len(asked),
        shortlist=shortlist or None,
    )
    return model._replace(search=recipe)


def _bytes_of_row(model: TableModel, tensor: str) -> float:
    return model.tensors[tensor].size_bytes / model.rows


def _shares(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return which share of each row of ``truth`` ``(q, k)`` was found."""
    shares: NDArray[np.float64] = (truth[:, :, np.newaxis] == found[:, np.newaxis]).any(axis=2).mean(axis=1)
    return shares
