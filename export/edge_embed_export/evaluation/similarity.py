"""Pairs that people scored: how well the cosines rank them (Spearman, through scipy).

Words are looked up, texts are encoded. Scores may be any numbers, 0 and 1 among them: ties share their mean rank.
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
from edge_embed_export.exact import directions


@dataclass(frozen=True)
class Similarity:
    """Pairs of words, or of texts where ``texts`` is set, and people's score of each."""

    ones: tuple[str, ...]
    others: tuple[str, ...]
    expected: tuple[float, ...]
    texts: bool = False

    reproducible = True

    @property
    def kind(self) -> str:
        """``similarity`` or ``text-similarity``."""
        return "text-similarity" if self.texts else "similarity"

    @cached_property
    def _expected(self) -> NDArray[np.float64]:
        return np.array(self.expected, np.float64)

    def answers(self, side: Side) -> Answers:
        """Return cosines and people's scores ``(n, 2)``."""
        if self.texts:
            cosines = _cosines(side.texts(self.ones), side.texts(self.others))
            return Answers(np.stack([cosines, self._expected], axis=1), len(self.ones))
        known_ones, ones = side.words(self.ones)
        known_others, others = side.words(self.others)
        known = known_ones & known_others
        cosines = _cosines(ones[known], others[known])
        return Answers(np.stack([cosines, self._expected[known]], axis=1), len(self.ones))

    def scores(self, values: NDArray[Any], items: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the rank correlation of each sample."""
        return {"spearman": spearman(values[:, 0][items], values[:, 1][items])}


def spearman(found: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank correlation of each row of ``(r, n)`` with the other's; 0 where one of them is constant."""
    try:
        from scipy.stats import rankdata
    except ImportError as error:
        raise MissingExtraError.of("scipy", "evaluate", "ranking scores") from error
    # Means of ranks are (n + 1) / 2, so twice the differences are whole numbers: their sums are exact in any order.
    a, b = (2 * rankdata(each, axis=1) - (each.shape[1] + 1) for each in (found, expected))
    spread = np.sqrt(np.square(a).sum(axis=1)) * np.sqrt(np.square(b).sum(axis=1))
    shared = (a * b).sum(axis=1)
    correlation: NDArray[np.float64] = np.divide(shared, spread, out=np.zeros_like(shared), where=spread > 0)
    return correlation


def _cosines(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    cosines: NDArray[np.float64] = (directions(ones) * directions(others)).sum(axis=1)
    return cosines
