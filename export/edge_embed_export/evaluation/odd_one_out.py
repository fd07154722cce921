"""Odd one out: of a few words the one that is least like the others, by the mean cosine with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed_export.evaluation.sides import Side
from edge_embed_export.evaluation.tasks import Answers, means
from edge_embed_export.exact import directions


@dataclass(frozen=True)
class OddOneOut:
    """Groups of three or more words; the last of each is the odd one."""

    groups: tuple[tuple[str, ...], ...]

    kind = "odd-one-out"
    reproducible = True

    def answers(self, side: Side) -> Answers:
        """Return whether each group's odd one was found, ``(n,)``."""
        found = []
        for group in self.groups:
            known, vectors = side.words(group)
            if known.all():
                found.append(_odd(vectors) == len(group) - 1)
        return Answers(np.array(found, np.bool_), len(self.groups))

    def scores(self, values: NDArray[Any], items: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the share of odd ones that were found in each sample."""
        return {"accuracy": means(values, items)}


def _odd(vectors: NDArray[np.float32]) -> int:
    """Return the place of the odd one among ``(n, d)``; of equal ones the first."""
    unit = directions(vectors)
    cosines = (unit[:, np.newaxis] * unit[np.newaxis]).sum(axis=2)
    np.fill_diagonal(cosines, 0)
    return int(cosines.sum(axis=1).argmin())
