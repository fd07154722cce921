"""The two sides of a comparison: the vectors as their trainer left them, and as a board answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError


@dataclass(frozen=True, eq=False)
class Side:
    """What questions are asked of.

    ``row`` gives the row id of a key or -1; ``decode`` the vectors ``(n, d)`` float32 of row ids ``(n,)``; ``encode``
    those of texts, or it is None where the source encodes none.
    """

    row_count: int
    row: Callable[[str], int]
    decode: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    encode: Callable[[Sequence[str]], NDArray[np.float32]] | None = None

    def find(self, word: str) -> int:
        """Return the row of a word as it stands, else that of its lower-case form, else -1."""
        row = self.row(word)
        return row if row >= 0 else self.row(word.lower())

    def find_all(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows ``(n,)`` of words, -1 where one is unknown."""
        return np.fromiter(map(self.find, words), np.int64, len(words))

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts.

        Raises:
            RequestError: the source encodes no text.
        """
        if self.encode is None:
            raise RequestError("expected a source that encodes text, found a table of keys alone")
        return self.encode(texts)
