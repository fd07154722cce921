"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The answer of a search, best first: keys, cosine scores ``(k,)`` float32, and the space they hold in.

    ``complete`` is false where a deadline ended the search first: these are the best of what was looked at.
    """

    keys: tuple[str, ...]
    scores: NDArray[np.float32]
    space: str
    complete: bool = True

    def __len__(self) -> int:
        """Return how many were found."""
        return len(self.keys)
