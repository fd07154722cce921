"""What every kind of questions has in common, so that one way of scoring serves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_embed_export.evaluation.sides import Side


@dataclass(frozen=True, eq=False)
class Answers:
    """What one side answered.

    ``values`` ``(n, ...)`` has what a score needs of each of the ``n`` questions whose words are known; ``asked`` is
    how many there were.
    """

    values: NDArray[Any]
    asked: int


class Questions(Protocol):
    """The questions of one file."""

    @property
    def kind(self) -> str:
        """The kind's name, as ``kind:FILE`` has it."""

    @property
    def reproducible(self) -> bool:
        """Whether every machine finds the same scores to the last bit: only those may go into a manifest."""

    def answers(self, side: Side) -> Answers:
        """Ask a side."""

    def scores(self, values: NDArray[Any], items: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
        """Return the scores of samples.

        Args:
            values: those of :class:`Answers`.
            items: ``(r, n)``, the questions of each of ``r`` samples.

        Returns:
            Measure -> ``(r,)``, higher is better.
        """


@dataclass(frozen=True)
class Task:
    """The questions of a file, with the file's name and digest."""

    name: str
    sha256: str
    questions: Questions


def means(values: NDArray[Any], items: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of ``values`` ``(n,)`` over each of ``(r, n)`` samples."""
    found: NDArray[np.float64] = values[items].mean(axis=1, dtype=np.float64)
    return found
