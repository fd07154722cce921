"""One model of a bundle: vectors by key or id, alone or pooled in bags, and keys by likeness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.bags import Runs
from edge_embed.errors import RequestError, UnknownKeyError
from edge_embed.keys import Key, KeyNames, to_bytes
from edge_embed.residency import Pages
from edge_embed.search import Found, Searcher, probes_for
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import BagRecipe, HashRecipe, TableModel
from edge_embed_bundle.values import Tensor

if TYPE_CHECKING:
    from edge_embed.neighbours import Neighbours
    from edge_embed.subwords import Subwords

_MEAN = BagRecipe("mean")
# Between them nothing that is multiplied with them leaves float32.
_SMALL, _LARGE = 1e-15, 1e15
_NONE = np.full(1, -1, np.int64)

UNKNOWN_POLICIES = ("error", "zeros", "hash", "subwords")


class Table:
    """A mapped table and its keys."""

    def __init__(self, bundle: Bundle, model: TableModel, rows: kernels.Rows | None = None) -> None:
        """Map a model of a bundle; ``rows`` take the place of those that are stored in it."""
        self.model = model
        self.space = bundle.manifest.space_of(model)
        tensors = {name: mapped(bundle, tensor) for name, tensor in model.tensors.items()}
        self.rows: kernels.Rows = kernels.open_rows(model.codec, tensors, model.dimensions) if rows is None else rows
        self._index: kernels.KeyIndex | None = (
            None
            if model.key_index is None
            else kernels.Index(tensors["index_pilots"], tensors["index_slots"], model.key_index.seed, model.rows)
        )
        self.names = KeyNames(tensors["key_offsets"], tensors["key_bytes"].data) if "key_offsets" in tensors else None
        self.pages = Pages(bundle, model)
        self._searcher = Searcher(model, tensors, self.pages, bundle.folder) if "norms" in tensors else None
        self.bucket_ids: NDArray[np.uint32] | None = tensors.get("bucket_ids")
        self.tree: NDArray[np.uint32] | None = tensors.get("tree")
        #: How words are made of parts, where the model has a recipe for that.
        self.subwords: Subwords | None = None

    def find(self, key: Key) -> int:
        """Return the row of a key, or -1."""
        return self._keys().find(key)

    def shortcut(
        self, watched: tuple[tuple[kernels.Watched, bytes], ...] = (), noticed: Callable[[], bool] = bool
    ) -> kernels.Shortcut:
        """Return what answers plain lookups, and plain bags by the table's recipe, in one step, and the rest with None.

        While it lasts, the rows that it answers from are the table's; ``watched`` and ``noticed``: see
        :class:`edge_embed.kernels.pure.Shortcut`.
        """
        recipe = self.model.bag or _MEAN
        composes = self.subwords is not None and self.subwords.composes_known_words
        padding_row = -1 if recipe.padding_row is None else recipe.padding_row
        return kernels.Shortcut(
            None if composes else self._index, self.rows, recipe.mode, padding_row, watched, noticed
        )

    @property
    def policy_of_questions(self) -> str:
        """What an unknown key gets where zeros would be no answer: its subwords' vector, or an error."""
        return "subwords" if self.model.unknown == "subwords" else "error"

    def lookup(self, key: Key, unknown: str) -> NDArray[np.float32]:
        """Return the vector ``(d,)`` of a key; ``unknown`` says what an unknown one gets."""
        row = self.find(key) if self._index is not None or unknown != "hash" else -1
        if row >= 0 and self.subwords is not None and self.subwords.composes_known_words:
            return self.subwords.vector(to_bytes(key), row)
        if row < 0:
            alone: NDArray[np.float32] = self.lookup_all([key], unknown)[0]
            return alone
        vector: NDArray[np.float32] = self.rows.decode(np.array([row]))[0]
        return vector

    def lookup_all(self, keys: Sequence[Key], unknown: str) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of keys."""
        rows = self._rows_of_keys(keys, unknown)
        if self.subwords is not None and self.subwords.composes_known_words:
            return self._composed([to_bytes(key) for key in keys], rows, unknown)
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return self.rows.decode(rows)
        rows[missing] = 0
        vectors = (
            self.rows.decode(rows) if self.model.rows else np.zeros((len(keys), self.model.dimensions), np.float32)
        )
        vectors[missing] = 0
        if self.subwords is not None and unknown == "subwords":
            for place in missing.tolist():
                vectors[place] = self.subwords.vector(to_bytes(keys[place]), -1)
        return vectors

    def _composed(self, keys: Sequence[bytes], ids: NDArray[np.int64], unknown: str) -> NDArray[np.float32]:
        vectors = np.zeros((len(keys), self.model.dimensions), np.float32)
        for place, (key, row) in enumerate(zip(keys, ids.tolist(), strict=True)):
            if self.subwords is not None and (row >= 0 or unknown == "subwords"):
                vectors[place] = self.subwords.vector(key, row)
        return vectors

    def decode(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of row ids ``(n,)`` from outside, after checking that they are rows."""
        return self.rows.decode(self._rows_of_ids(ids, "error"))

    def mean(self, ids: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the mean ``(b, d)`` of each run of row ids ``(n,)`` from outside; of none it is zeros."""
        return self.rows.pool(self._rows_of_ids(ids, "error"), counts, None, "mean")

    def means(self) -> kernels.Shortcut:
        """Return what pools a list of row ids to their mean ``(d,)`` in one step."""
        return kernels.Shortcut(None, self.rows, "mean", -1, (), bool)

    def lookup_ids(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of ids ``(n,)``; where the table hashes, one outside it gets a row as well."""
        return self.rows.decode(self._rows_of_ids(ids, self.model.unknown))

    def bag(self, runs: Runs, mode: str, padding_row: int | None, unknown: str) -> NDArray[np.float32]:
        """Return the pooled vectors ``(b, d)`` of bags; see ``bags``."""
        if isinstance(runs.asked, np.ndarray):
            rows = self._rows_of_ids(runs.asked, unknown)
            left_out = None if padding_row is None else rows == padding_row
        else:
            # What a bag pools are rows, and a word made of subwords has none.
            rows = self._rows_of_keys(runs.asked, "error" if unknown == "subwords" else unknown)
            left_out = rows < 0 if padding_row is None else (rows < 0) | (rows == padding_row)
        counts, weights = runs.counts, runs.weights
        if left_out is not None and left_out.any():
            kept = ~left_out
            bag_of_each = np.repeat(np.arange(len(counts)), counts)
            counts = np.bincount(bag_of_each[kept], minlength=len(counts))
            rows = rows[kept]
            weights = None if weights is None else weights[kept]
        if not len(rows):
            return np.zeros((len(counts), self.model.dimensions), np.float32)
        return self.rows.pool(rows, counts, weights, mode)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        without: NDArray[np.int64] | None = None,
        *,
        exact: bool = False,
        deadline_ns: int = 0,
    ) -> list[Neighbours]:
        """Return for each query ``(q, d)`` the ``k`` rows whose cosine with it is highest, as :meth:`nearest` does."""
        if self.names is None:
            raise RequestError(
                f"{self.model.name}: expected a table that keeps its keys, found one without; export it with them"
            )
        # Imported here: who only looks up does not wait for a class that is made by dataclasses.
        from edge_embed.neighbours import Neighbours

        probes, shortlist = (self._lists(), 0) if exact else (None, None)
        found = self.nearest(queries, k, without, probes=probes, shortlist=shortlist, deadline_ns=deadline_ns)
        answers = []
        for rows, scores in zip(found.rows, found.scores, strict=True):
            if len(rows) and rows[-1] < 0:
                there = np.count_nonzero(rows >= 0)
                rows, scores = rows[:there], scores[:there]
            answers.append(Neighbours(tuple(self.names.of(rows)), scores, self.space.id, found.complete))
        return answers

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        without: NDArray[np.int64] | None = None,
        *,
        probes: int | None = None,
        shortlist: int | None = None,
        deadline_ns: int = 0,
    ) -> Found:
        """Return the ``k`` best rows of each query ``(q, d)``, finite, and their cosines.

        A row of zeros is like nothing and scores 0; so does every row if the query is zeros.

        Args:
            queries: ``(q, d)`` float32, finite.
            k: how many, at most the table's rows; but one where each query leaves one out.
            without: ``(q,)`` the row that is left out of each answer, -1 for none.
            probes: lists to scan; those of the manifest, and more for more than ten neighbours, if not given.
            shortlist: rows of the plane to compare for each neighbour, 0 for no plane; the manifest's if not given.
            deadline_ns: on ``time.monotonic_ns``'s clock; 0 for none.
        """
        if self._searcher is None:
            raise RequestError(f"{self.model.name}: expected a table made for search (with norms), found none")
        queries = _within_float32(queries)
        if without is None:
            without = _NONE if len(queries) == 1 else np.full(len(queries), -1, np.int64)
        each_leaves_one = without is not _NONE and len(without) > 0 and without.min() >= 0
        k = min(k, self.model.rows - int(each_leaves_one))
        probes = probes_for(self._searcher.probes, k) if probes is None else probes
        shortlist = self._searcher.shortlist if shortlist is None else shortlist
        return self._searcher.nearest(
            self.rows,
            np.ascontiguousarray(queries),
            k,
            without,
            probes=probes,
            shortlist=shortlist,
            deadline_ns=deadline_ns,
        )

    def _lists(self) -> int:
        return 0 if self._searcher is None else self._searcher.lists

    def _keys(self) -> kernels.KeyIndex:
        if self._index is None:
            raise RequestError(f"{self.model.name}: expected a table with a key index, found one of row ids alone")
        return self._index

    def _rows_of_keys(self, keys: Sequence[Key], unknown: str) -> NDArray[np.int64]:
        """Return the row ``(n,)`` of each key, -1 for an unknown one that gets zeros or the vector of its subwords."""
        if unknown == "subwords" and self.subwords is None:
            raise RequestError(f"{self.model.name}: expected a model with subwords for unknown keys, found one without")
        if self._index is None and unknown == "hash":
            # Nobody named the rows: every key is hashed to its own.
            rows = np.full(len(keys), -1, np.int64)
        else:
            rows = self._keys().find_all(keys)
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return rows
        if unknown == "hash":
            recipe = self._hashing()
            hashes = kernels.hash_keys([to_bytes(keys[i]) for i in missing.tolist()], recipe.seed)
            rows[missing] = recipe.first_row + (hashes % np.uint64(recipe.rows)).astype(np.int64)
        elif unknown == "error":
            shown = ", ".join(_shown(keys[i]) for i in missing[:3].tolist()) + (" ..." if len(missing) > 3 else "")
            raise UnknownKeyError(
                f"{self.model.name}: expected keys of the table, found {len(missing)} that it does not have: {shown}"
            )
        return rows

    def _rows_of_ids(self, ids: NDArray[Any], unknown: str) -> NDArray[np.int64]:
        """Return the row ``(n,)`` of each id; one outside the table has none, but where ids are hashed."""
        if not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < self.model.rows:
            return ids.astype(np.int64, copy=False)
        if unknown != "hash":
            raise RequestError(
                f"{self.model.name}: expected row ids from 0 to {self.model.rows - 1}, "
                f"found {int(ids.min())} to {int(ids.max())}"
            )
        recipe = self._hashing()
        outside = (ids < 0) | (ids >= self.model.rows)
        rows = np.where(outside, 0, ids).astype(np.int64)
        # The remainder of the floor, so it is never negative; in the ids' own type, which may be uint64.
        wide = ids[outside] if ids.dtype == np.uint64 else ids[outside].astype(np.int64)
        rows[outside] = recipe.first_row + (wide % wide.dtype.type(recipe.rows)).astype(np.int64)
        return rows

    def _hashing(self) -> HashRecipe:
        if self.model.hash is None:
            raise RequestError(
                f"{self.model.name}: expected a table that hashes what is unknown, found one that does not"
            )
        return self.model.hash


def mapped(bundle: Bundle, tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of a bundle as a mapped, read-only array."""
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(bundle.tensor(tensor), dtype).reshape(tensor.shape)


def _within_float32(queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return queries ``(q, d)`` of a length with which all products stay within float32; their cosines are the same."""
    if len(queries) == 1 and _SMALL <= np.abs(queries[0]).max() <= _LARGE:
        return queries
    largest = np.abs(queries).max(axis=1, keepdims=True, initial=0)
    outside = (largest > _LARGE) | ((largest < _SMALL) & (largest > 0))
    return queries / np.where(outside, largest, np.ones_like(largest)) if outside.any() else queries


def _shown(key: Key) -> str:
    text = repr(key if isinstance(key, bytes) else str(key))
    return text if len(text) <= 60 else f"{text[:57]}..."
