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
    those of texts, or it is None where the source encodes none; ``compose`` those of any words, known or not, where
    the source makes words of their parts.
    """

    row_count: int
    row: Callable[[str], int]
    decode: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    encode: Callable[[Sequence[str]], NDArray[np.float32]] | None = None
    compose: Callable[[Sequence[str]], NDArray[np.float32]] | None = None

    def find(self, word: str) -> int:
        """Return the row of a word as it stands, else that of its lower-case form, else -1."""
        row = self.row(word)
        return row if row >= 0 else self.row(word.lower())

    def find_all(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows ``(n,)`` of words, -1 where one is unknown."""
        return np.fromiter(map(self.find, words), np.int64, len(words))

    def words(self, words: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return which words ``(n,)`` have a vector, and the vectors ``(n, d)``: zeros where there is none."""
        rows = self.find_all(words)
        if self.compose is not None:
            # A word that is known in lower case alone is that word; one that is not known at all stays as it stands.
            spelled = [w if row < 0 or self.row(w) >= 0 else w.lower() for w, row in zip(words, rows, strict=True)]
            return np.ones(len(words), np.bool_), self.compose(spelled)
        known = rows >= 0
        vectors = self.decode(np.where(known, rows, 0))
        vectors[~known] = 0
        return known, vectors

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts.

        Raises:
            RequestError: the source encodes no text.
        """
        if self.encode is None:
            raise RequestError("expected a source that encodes text, found a table of keys alone")
        return self.encode(texts)
