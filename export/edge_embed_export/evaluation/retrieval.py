"""Retrieval: queries find documents by cosine; judged by ir-measures, which asks TREC's own trec_eval.

ranx computes the same and brings 37 packages, numba, pandas and matplotlib among them; ir-measures brings two.
Queries without a relevant document are left out, as trec_eval does, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError
from edge_embed_export.evaluation.sides import Side
from edge_embed_export.evaluation.tasks import Answers, means
from edge_embed_export.exact import directions, exact_product

#: What is measured, with ir-measures' name of each.
MEASURES = {"Recall@10": "R@10", "Recall@100": "R@100", "Precision@10": "P@10", "MRR": "RR", "nDCG@10": "nDCG@10"}
DEPTH = 100

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Retrieval:
    """Queries and documents by id, and how relevant (1 or more) a document is to a query."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]

    kind = "retrieval"
    reproducible = True

    def answers(self, side: Side) -> Answers:
        """Return the measures of each query that has a relevant document, ``(n, 5)``."""
        judged = [
            name
            for name in self.queries
            if any(grade > 0 and document in self.documents for document, grade in self.relevance.get(name, {}).items())
        ]
        names = list(self.documents)
        found = _nearest(side.texts([self.queries[name] for name in judged]), side.texts(list(self.documents.values())))
        run = {name: [names[row] for row in rows] for name, rows in zip(judged, found.tolist(), strict=True)}
        return Answers(_measured(run, {name: self.relevance[name] for name in judged}), len(self.queries))

    def scores(self, values: NDArray[Any], items: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the mean of each measure over each sample's queries."""
        return {name: means(values[:, place], items) for place, name in enumerate(MEASURES)}


def _nearest(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the documents ``(q, k)`` nearest to each query, best first; of equal ones the first."""
    k = min(DEPTH, len(documents))
    asked = directions(queries)
    scores = np.empty((len(queries), 0))
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(documents), _BLOCK_ROWS):
        block = directions(documents[start : start + _BLOCK_ROWS])
        ids = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        # Those of earlier blocks stand first, and the sort is stable.
        scores = np.concatenate([scores, exact_product(asked, block.T)], axis=1)
        rows = np.concatenate([rows, ids], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return rows


def _measured(run: Mapping[str, list[str]], relevance: Mapping[str, Mapping[str, int]]) -> NDArray[np.float64]:
    """Return the measures ``(n, 5)`` of ranked documents."""
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError.of("ir-measures", "evaluate", "judging retrieval") from error
    # trec_eval breaks ties by its own rule and reads float32: places are scores without ties.
    scored = {query: {name: float(-place) for place, name in enumerate(names)} for query, names in run.items()}
    measures = {ir_measures.parse_measure(name): place for place, name in enumerate(MEASURES.values())}
    rows = {query: row for row, query in enumerate(run)}
    values = np.zeros((len(run), len(MEASURES)))
    if not run:
        return values
    judged = {query: dict(grades) for query, grades in relevance.items()}
    for metric in ir_measures.iter_calc(list(measures), judged, scored):
        values[rows[metric.query_id], measures[metric.measure]] = metric.value
    return values
