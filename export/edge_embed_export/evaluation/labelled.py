"""Labelled words, nodes or texts: what a logistic regression on their vectors finds (scikit-learn).

The protocol of DeepWalk (Perozzi, Al-Rfou and Skiena, KDD 2014): half of the items train one classifier per label,
the other half is asked, and an item gets as many labels as it really has, those of the highest scores. Over five fixed
splits true and false positives are added up. Items are drawn again for the intervals with all their splits.

A solver's last bits depend on the BLAS, so a prediction on the very border may differ between machines: these scores
stand in the report and in ``--json``, never in a manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError
from edge_embed_export.evaluation.sides import Side
from edge_embed_export.evaluation.tasks import Answers

SPLITS = 5
_ITERATIONS = 1000


@dataclass(frozen=True)
class Labelled:
    """Keys, or texts where ``texts`` is set, and the labels of each."""

    items: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    texts: bool = False

    reproducible = False

    @property
    def kind(self) -> str:
        """``labels`` or ``text-labels``."""
        return "text-labels" if self.texts else "labels"

    @cached_property
    def _truth(self) -> NDArray[np.bool_]:
        """Whether an item has a label, ``(n, c)``."""
        names = {label: place for place, label in enumerate(sorted({one for own in self.labels for one in own}))}
        truth = np.zeros((len(self.items), len(names)), np.bool_)
        for row, own in enumerate(self.labels):
            truth[row, [names[label] for label in own]] = True
        return truth

    def answers(self, side: Side) -> Answers:
        """Return each item's true positives, false positives and false negatives by label, ``(n, 3, c)``."""
        if self.texts:
            return Answers(_counts(side.texts(self.items), self._truth), len(self.items))
        known, vectors = side.words(self.items)
        return Answers(_counts(vectors[known], self._truth[known]), len(self.items))

    def scores(self, values: NDArray[Any], items: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
        """Return micro- and macro-F1 of each sample; a label that no item has or was given does not count."""
        times = np.stack([np.bincount(sample, minlength=len(values)) for sample in items]).astype(np.float64)
        flat = values.reshape(len(values), -1).astype(np.float64)
        # Sums of whole numbers: exact in any order.
        hits, strangers, missed = np.moveaxis((times @ flat).reshape(len(items), *values.shape[1:]), 1, 0)
        all_hits = 2 * hits.sum(axis=1)
        micro = all_hits / np.maximum(all_hits + (strangers + missed).sum(axis=1), 1)
        weights = 2 * hits + strangers + missed
        present = weights > 0
        of_labels = np.divide(2 * hits, weights, out=np.zeros_like(hits), where=present)
        macro = of_labels.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
        return {"micro-F1": micro, "macro-F1": macro}


def splits(count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the items that train and those that are asked, for each of the fixed splits."""
    random = np.random.default_rng(0)
    orders = [random.permutation(count) for _ in range(SPLITS)]
    return [(order[: count // 2], order[count // 2 :]) for order in orders]


def _counts(vectors: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts = np.zeros((len(truth), 3, truth.shape[1]), np.int64)
    if len(truth) < 2:
        return counts
    wide = vectors.astype(np.float64)
    for train, asked in splits(len(truth)):
        expected = truth[asked]
        given = _highest(_decided(wide[train], truth[train], wide[asked]), expected.sum(axis=1))
        counts[asked, 0] += expected & given
        counts[asked, 1] += ~expected & given
        counts[asked, 2] += expected & ~given
    return counts


def _decided(train: NDArray[np.float64], labels: NDArray[np.bool_], asked: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one classifier's score per asked item and label, ``(q, c)``."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError.of("scikit-learn", "evaluate", "scoring labels") from error
    decided = np.empty((len(asked), labels.shape[1]))
    for place, label in enumerate(labels.T):
        if label.all() or not label.any():
            # Nothing to learn from: every item of this half has the label, or none.
            decided[:, place] = np.inf if label.all() else -np.inf
            continue
        model = LogisticRegression(max_iter=_ITERATIONS).fit(train, label)
        decided[:, place] = model.decision_function(asked)
    return decided


def _highest(decided: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which labels are among the ``counts`` highest of each row; of equal ones the first."""
    ranks = np.empty(decided.shape, np.int64)
    order = np.argsort(-decided, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.arange(decided.shape[1])[np.newaxis], axis=1)
    return ranks < counts[:, np.newaxis]
