"""Texts to vectors as fastText does it (``getSentenceVector``, ``getLine``): words at white space, then their mean.

 * Where a model's rows are words (unsupervised), a text is the mean of the directions of its words' vectors; a word
   without a vector does not count.
 * Where they are parts (supervised), a text is the mean of all parts of all its words, of the runs of up to
   ``word_ngrams`` words, and of the end of the line. A label among the words is left out.

A text is one line: a newline in it is white space as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_embed.subwords import END, LABEL, Subwords, hash_bytes
from edge_embed.table import Table
from edge_embed.text import check_no_prompt, check_text, directed

Parts = tuple[int, list[int]]


class SentenceEncoder:
    """The text encoder of a model with subwords."""

    def __init__(self, table: Table, labels: Table | None, max_tokens: int) -> None:
        if table.subwords is None:
            raise AssertionError("the manifest's gate lets no such model pass without subwords")
        self._table = table
        self._labels = labels
        self._max_tokens = max_tokens
        self._subwords: Subwords = table.subwords

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, normalize: bool | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts; a text without parts gets zeros.

        Raises:
            RequestError: a text is no ``str``, or holds a lone surrogate; a prompt is asked for.
        """
        check_no_prompt(prompt)
        vectors = np.zeros((len(texts), self._table.model.dimensions), np.float32)
        for place, text in enumerate(texts):
            found = self.vector(text, place)
            if found is not None:
                vectors[place] = found
        return directed(vectors) if normalize else vectors

    def vector(self, text: str, place: int = 0) -> NDArray[np.float32] | None:
        """Return the vector ``(d,)`` of a text, or None where it has no parts."""
        check_text(text, place)
        line = text.encode("utf-8")
        if self._subwords.recipe.rows == "words":
            return self._mean_of_directions(line.split()[: self._max_tokens])
        # Here the original ends a word at a NUL, too.
        parts = list(self._parts(line.replace(b"\0", b" ").split()[: self._max_tokens]))
        return self._subwords.mean(parts) if any(row >= 0 or buckets for row, buckets in parts) else None

    def _mean_of_directions(self, words: Sequence[bytes]) -> NDArray[np.float32] | None:
        total = np.zeros(self._table.model.dimensions, np.float32)
        count = 0
        for word in words:
            vector = self._subwords.vector(word, self._table.find(word))
            # In the order of the numbers, as the original adds: another order has other last bits.
            length = np.sqrt(np.add.accumulate(vector * vector)[-1]) if len(vector) else 0
            if length > 0:
                total += vector * np.float32(1 / float(length))
                count += 1
        return total * np.float32(1 / count) if count else None

    def _parts(self, words: Sequence[bytes]) -> Iterator[Parts]:
        hashes = []
        for word in [*words, END]:
            row = self._table.find(word)
            if row >= 0 or not self._is_label(word):
                yield self._subwords.parts(word, row)
                hashes.append(hash_bytes(word))
            if word == END:
                break
        yield -1, self._subwords.runs(hashes)

    def _is_label(self, word: bytes) -> bool:
        return word.startswith(LABEL) or (self._labels is not None and self._labels.find(word) >= 0)
