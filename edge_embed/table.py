"""One model of a bundle: vectors by key, keys by likeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.codecs import CODECS, Rows, mapped
from edge_embed.errors import RequestError, UnknownKeyError
from edge_embed.keys import Key, KeyIndex, KeyNames, to_bytes
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Model

UNKNOWN_POLICIES = ("error", "zeros")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The answer of a search, best first: keys, cosine scores ``(k,)`` float32, and the space they hold in."""

    keys: tuple[str, ...]
    scores: NDArray[np.float32]
    space: str

    def __len__(self) -> int:
        """Return how many were found."""
        return len(self.keys)


class Table:
    """A mapped table and its keys."""

    def __init__(self, bundle: Bundle, model: Model) -> None:
        self.model = model
        self._space = bundle.manifest.space.id
        tensors = {name: mapped(bundle, tensor) for name, tensor in model.tensors.items()}
        self.rows: Rows = CODECS[model.codec](tensors, model.dimensions)
        self._index = (
            None
            if model.key_index is None
            else KeyIndex(tensors["index_pilots"], tensors["index_slots"], model.key_index.seed, model.rows)
        )
        self.names = KeyNames(tensors["key_offsets"], tensors["key_bytes"].data) if "key_offsets" in tensors else None
        self._norms = tensors.get("norms")

    def find(self, key: Key) -> int:
        """Return the row of a key, or -1."""
        return self._keys().find(to_bytes(key))

    def lookup(self, key: Key, unknown: str) -> NDArray[np.float32]:
        """Return the vector ``(d,)`` of a key; ``unknown`` says what an unknown one gets."""
        row = self.find(key)
        if row < 0:
            self._check_unknown([key], unknown)
            return np.zeros(self.model.dimensions, np.float32)
        vector: NDArray[np.float32] = self.rows.decode(np.array([row]))[0]
        return vector

    def lookup_all(self, keys: Sequence[Key], unknown: str) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of keys."""
        ids = self._keys().find_all([to_bytes(key) for key in keys])
        missing = np.flatnonzero(ids < 0)
        if not len(missing):
            return self.rows.decode(ids)
        self._check_unknown([keys[i] for i in missing.tolist()], unknown)
        ids[missing] = 0
        vectors = self.rows.decode(ids) if self.model.rows else np.zeros((len(keys), self.model.dimensions), np.float32)
        vectors[missing] = 0
        return vectors

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of row ids ``(n,)`` from outside, after checking them."""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.model.rows:
            raise RequestError(
                f"{self.model.name}: expected row ids from 0 to {self.model.rows - 1}, "
                f"found {int(ids.min())} to {int(ids.max())}"
            )
        return self.rows.decode(ids)

    def search(self, query: NDArray[np.float32], k: int, without_row: int = -1) -> Neighbours:
        """Return the ``k`` rows whose cosine with ``query`` ``(d,)`` is highest: an exact scan of all rows.

        A row of zeros is like nothing and scores 0; so does every row if the query is zeros.
        """
        if self.names is None:
            raise RequestError(
                f"{self.model.name}: expected a table that keeps its keys, found one without; export it with them"
            )
        if self._norms is None:
            raise RequestError(f"{self.model.name}: expected a table made for search (with norms), found none")
        # A cosine does not depend on the query's length, so squares of any finite numbers stay within float32.
        query = query / max(np.abs(query).max(initial=0), np.finfo(np.float32).tiny)
        norms = self._norms * np.linalg.norm(query)
        scores = self.rows.scores(query)
        scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
        if without_row >= 0:
            scores[without_row] = -np.inf
            k = min(k, len(scores) - 1)
        best = kernels.top_k(scores, k)
        return Neighbours(tuple(self.names[row] for row in best.tolist()), scores[best], self._space)

    def _keys(self) -> KeyIndex:
        if self._index is None:
            raise RequestError(f"{self.model.name}: expected a table with a key index, found one of row ids alone")
        return self._index

    def _check_unknown(self, keys: Sequence[Key], unknown: str) -> None:
        if unknown == "error":
            shown = ", ".join(_shown(key) for key in keys[:3]) + (" ..." if len(keys) > 3 else "")
            raise UnknownKeyError(
                f"{self.model.name}: expected keys of the table, found {len(keys)} that it does not have: {shown}"
            )


def _shown(key: Key) -> str:
    text = repr(key if isinstance(key, bytes) else str(key))
    return text if len(text) <= 60 else f"{text[:57]}..."
