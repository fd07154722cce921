"""Search: the rows whose cosine with a query is highest, among all rows or among those of the likeliest lists.

* A table in the order of its clusters has lists: runs of rows that are like one centroid. A search compares the query
  with the centroids and scans the lists of the nearest ones, ``probes`` of them: the inverted file of Sivic and
  Zisserman, "Video Google", ICCV 2003, over rows that stay where a lookup finds them.
* Scanning all rows is the exact search; one table serves both. A table without lists is always searched so.
* A plane of 4-bit codes halves the bytes of a scan: it says what a row's direction has beyond its list's centroid, and
  makes a shortlist, whose rows are then compared as they are. An exact search leaves it out.
* Several queries share one scan: a row comes from memory once, for all that want it.
* A deadline ends a scan between two blocks of rows. The lists are scanned likeliest first, so what was found by then is
  the best guess; one block is always scanned, and of several queries none goes without an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.errors import BundleError
from edge_embed.residency import Pages
from edge_embed_bundle.manifest import TableModel

#: The number of neighbours that the probes and the shortlist of a bundle were chosen for. Who asks for more gets more
#: of both. Who asks for one has as many rows compared: the best of four by a plane were not the nearest in 2.5 % of
#: searches (30,000 x 128, 2026-11).
MEASURED_NEIGHBOURS = 10


class Found(NamedTuple):
    """The best rows ``(q, k)`` int64 of each query, best first, -1 where there were fewer; cosines ``(q, k)`` float32.

    ``complete``: whether everything that should be scanned was, before the deadline.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    complete: bool


class Wanted(NamedTuple):
    """The lists that a search scans: their runs ``(r, 2)``, likeliest first.

    Which query wants which of them ``(q, r)``, None where all want all; and each query's cosine with each list's
    centroid ``(q, r)``.
    """

    runs: NDArray[np.int64]
    by_query: NDArray[np.bool_] | None
    cosines: NDArray[np.float32]


class Searcher:
    """What a search needs of a table beside its rows: their lengths, and its lists where it has some."""

    def __init__(self, model: TableModel, tensors: Mapping[str, NDArray[Any]], pages: Pages, place: str) -> None:
        self._pages = pages
        self._norms: NDArray[np.float32] = tensors["norms"]
        self._all_rows = np.array([[0, model.rows]], np.int64)
        self.probes = self.lists = self.shortlist = 0
        self._plane: kernels.Rows | None = None
        #: Whether the plane holds what rows have beyond their centroids, or rows themselves.
        self._is_beyond = model.centroids_are_plane
        if model.search is not None:
            self.probes = model.search.probes
            self._lists = _runs(tensors["list_ends"], model.rows, f"{place}: {model.name}")
            self.lists = len(self._lists)
            self._all_lists = np.array([[0, self.lists]], np.int64)
            self._sizes = self._lists[:, 1] - self._lists[:, 0]
            self._smallest = int(self._sizes.min())
            centroids = {"rows": tensors["centroids"], "scales": tensors["centroid_scales"]}
            codec = "plane" if model.centroids_are_plane else "int8"
            self._centroids = kernels.open_rows(codec, centroids, model.dimensions)
            self._centroid_norms: NDArray[np.float32] = tensors["centroid_norms"]
            if model.search.shortlist is not None:
                self.shortlist = model.search.shortlist
                plane = {"rows": tensors["plane"], "scales": tensors["plane_scales"]}
                self._plane = kernels.open_rows("plane", plane, model.dimensions)

    def nearest(
        self,
        rows: kernels.Rows,
        queries: NDArray[np.float32],
        k: int,
        without: NDArray[np.int64],
        *,
        probes: int,
        shortlist: int,
        deadline_ns: int = 0,
    ) -> Found:
        """Return the ``k`` best rows of each query.

        Args:
            rows: the table's.
            queries: ``(q, d)`` float32, finite.
            k: at most the table's rows.
            without: ``(q,)`` the row that is left out of each query's answer, -1 for none.
            probes: lists to scan for each query; as many as there are, or more, scan all rows.
            shortlist: rows for each neighbour, of ten at least, that are compared after a scan of the plane; 0 leaves
                the plane out.
            deadline_ns: on ``time.monotonic_ns``'s clock; 0 for none.
        """
        if probes < self.lists or shortlist:
            none = without if len(queries) == 1 and without[0] < 0 else np.full(len(queries), -1, np.int64)
            probes = min(probes, self.lists)
            likeliest, cosines, _ = self._centroids.nearest(
                queries, self._centroid_norms, probes, self._all_lists, None, none, 0, None, 0, None
            )
            # One row more than is asked for: one may be left out.
            if probes * self._smallest > k or int(self._sizes[likeliest].sum(axis=1).min(initial=k + 1)) > k:
                wanted = self._wanted(likeliest, cosines)
                if shortlist and self._plane is not None:
                    return self._by_plane(rows, self._plane, queries, k, wanted, without, shortlist, deadline_ns)
                return Found(
                    *rows.nearest(
                        queries, self._norms, k, wanted.runs, wanted.by_query, without, deadline_ns, None, 0, None
                    )
                )
        with self._pages.scanned():
            return Found(
                *rows.nearest(queries, self._norms, k, self._all_rows, None, without, deadline_ns, None, 0, None)
            )

    def _by_plane(
        self,
        rows: kernels.Rows,
        plane: kernels.Rows,
        queries: NDArray[np.float32],
        k: int,
        wanted: Wanted,
        without: NDArray[np.int64],
        shortlist: int,
        deadline_ns: int,
    ) -> Found:
        """Compare the best rows of the plane as they are; where flash is slow, ask for all of them first."""
        length = min(shortlist * max(k, MEASURED_NEIGHBOURS), len(self._norms))
        asked = (wanted.runs, wanted.by_query, without, deadline_ns)
        bases = wanted.cosines if self._is_beyond else None
        if not self._pages.waited:
            with self._pages.compared():
                return Found(*rows.nearest(queries, self._norms, k, *asked, plane, length, bases))
        listed, _, complete = plane.nearest(queries, self._norms, length, *asked, None, 0, bases)
        self._pages.ask(np.unique(listed[listed >= 0]))
        best, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        with self._pages.compared():
            for i, shortlisted in enumerate(listed):
                # Query by query: which of many wants which row would be a large table.
                one, lie = slice(i, i + 1), np.sort(shortlisted[shortlisted >= 0])
                alone = np.stack([lie, lie + 1], axis=1)
                best[one], scores[one], _ = rows.nearest(
                    queries[one], self._norms, k, alone, None, without[one], 0, None, 0, None
                )
        return Found(best, scores, complete)

    def _wanted(self, likeliest: NDArray[np.int64], cosines: NDArray[np.float32]) -> Wanted:
        """Return what is scanned of lists ``(q, p)`` whose centroids have those cosines with the queries."""
        if len(likeliest) == 1:
            return Wanted(self._lists[likeliest[0]], None, cosines)
        # What is somebody's first comes before what is everybody's second.
        by_rank = likeliest.T.reshape(-1)
        lists, first_places = np.unique(by_rank, return_index=True)
        order = np.argsort(first_places)
        place_of_list = np.empty(len(lists), np.int64)
        place_of_list[order] = np.arange(len(lists))
        places = place_of_list[np.searchsorted(lists, likeliest)]
        by_query = np.zeros((len(likeliest), len(lists)), bool)
        of_lists = np.zeros(by_query.shape, np.float32)
        of_queries = np.arange(len(likeliest))[:, np.newaxis]
        by_query[of_queries, places] = True
        of_lists[of_queries, places] = cosines
        return Wanted(self._lists[lists[order]], by_query, of_lists)


def probes_for(probes: int, k: int) -> int:
    """Return how many lists a search for ``k`` neighbours scans where ``probes`` were measured for ten."""
    return probes * -(-k // MEASURED_NEIGHBOURS)


def _runs(ends: NDArray[np.uint32], row_count: int, place: str) -> NDArray[np.int64]:
    """Return the first row of each list and the one after its last, ``(c, 2)``."""
    runs = np.zeros((len(ends), 2), np.int64)
    runs[:, 1] = ends
    runs[1:, 0] = ends[:-1]
    if (runs[:, 1] < runs[:, 0]).any() or int(runs[-1, 1]) != row_count:
        raise BundleError(f"{place}: expected lists that end one after the other, the last at row {row_count}")
    return runs
