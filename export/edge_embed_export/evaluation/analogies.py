"""Analogies: athens is to greece as baghdad is to ... (3CosAdd; Mikolov et al., "Linguistic Regularities in Continuous
Space Word Representations", NAACL 2013).

The answer is the row nearest to ``b - a + c`` by unit vectors, the three of the question left out. Rows beyond the
first 300,000 are neither asked nor answers, as in gensim: tables stand in the order of frequency as a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_export.evaluation.sides import Side
from edge_embed_export.evaluation.tasks import Answers, means
from edge_embed_export.exact import directions, exact_product

ROWS_CEILING = 300_000

_BLOCK_ROWS = 8192
_BLOCK_QUESTIONS = 1024


@dataclass(frozen=True)
class Analogies:
    """Questions of four words each."""

    questions: tuple[tuple[str, str, str, str], ...]

    kind = "analogies"
    reproducible = True

    def answers(self, side: Side) -> Answers:
        """Return whether each question was answered rightly, ``(n,)``."""
        rows = {word: side.find(word) for question in self.questions for word in question}
        asked = np.array([[rows[word] for word in question] for question in self.questions]).reshape(-1, 4)
        asked = asked[((asked >= 0) & (asked < ROWS_CEILING)).all(axis=1)]
        return Answers(_nearest(asked[:, :3], side) == asked[:, 3], len(self.questions))

    def scores(self, values: NDArray[Any], items: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the share of right answers of each sample."""
        return {"accuracy": means(values, items)}


def _nearest(asked: NDArray[np.int64], side: Side) -> NDArray[np.int64]:
    """Return the answers ``(q,)`` to ``(q, 3)``; of equal ones the first row.

    A question's scores are sums of its words' scores, and there are far fewer words than questions.
    """
    words, places = np.unique(asked, return_inverse=True)
    places = places.reshape(asked.shape)
    best = np.full(len(asked), -np.inf)
    found = np.full(len(asked), -1)
    if not len(asked):
        return found
    of_words = directions(side.decode(words))
    count = min(side.row_count, ROWS_CEILING)
    for start in range(0, count, _BLOCK_ROWS):
        ids = np.arange(start, min(start + _BLOCK_ROWS, count))
        scores = exact_product(of_words, directions(side.decode(ids)).T)
        for first in range(0, len(asked), _BLOCK_QUESTIONS):
            part = slice(first, first + _BLOCK_QUESTIONS)
            a, b, c = places[part].T
            sums = scores[b] - scores[a] + scores[c]
            question, column = np.nonzero((asked[part] >= start) & (asked[part] <= ids[-1]))
            sums[question, asked[part][question, column] - start] = -np.inf
            columns = sums.argmax(axis=1)
            highest = sums[np.arange(len(sums)), columns]
            better = highest > best[part]
            best[part][better] = highest[better]
            found[part][better] = ids[columns[better]]
    return found
