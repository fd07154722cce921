"""The bundle that an export follows: which of its rows a table has again, and how it had stored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.table import Table, mapped
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import CODEC_TENSORS, TableModel

if TYPE_CHECKING:
    from edge_embed_export.sources import SourceTable

_KEYS_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class Before:
    """A table as its parent stored it: codec, tensors, and the parent's row of each row ``(n,)``, -1 for new ones."""

    codec: str
    tensors: Mapping[str, NDArray[Any]]
    places: NDArray[np.int64]
    #: What a row may lose in cosine beyond what the codec costs, so that it stays as it was.
    drift: float = 0.0


class Parent:
    """An open and verified bundle that a new one follows."""

    def __init__(self, bundle: Bundle, drift: float = 0.0) -> None:
        self.bundle = bundle
        self.id = bundle.id
        self.drift = drift

    def model(self, table: SourceTable) -> TableModel | None:
        """Return the parent's table of that name, if its vectors are as wide and rows are found in it.

        A helper's rows are known by other numbers than keys; it starts anew.
        """
        model = self.bundle.manifest.table(table.name)
        if model is None or table.is_helper or model.dimensions != table.vectors.shape[1]:
            return None
        return model

    def places(self, table: SourceTable, model: TableModel) -> NDArray[np.int64]:
        """Return the parent's row ``(n,)`` of each row of a table, -1 for new ones."""
        return key_places(self.bundle, model, table.keys, len(table.vectors))

    def before(self, table: SourceTable, codec: str) -> Before | None:
        """Return how the parent stored a table, if it has it in that codec."""
        model = self.model(table)
        if model is None or model.codec != codec:
            return None
        tensors = {name: mapped(self.bundle, model.tensors[name]) for name in CODEC_TENSORS[codec]}
        return Before(codec, tensors, self.places(table, model), self.drift)


def key_places(bundle: Bundle, model: TableModel, keys: Sequence[bytes] | None, rows: int) -> NDArray[np.int64]:
    """Return the row ``(rows,)`` of a bundle's table by each key, -1 where it has none.

    Where either side has no keys, a row is known by its number.
    """
    if keys is None or model.key_index is None:
        numbers = np.arange(rows)
        return np.where(numbers < model.rows, numbers, -1)
    table = Table(bundle, model)
    places = np.empty(rows, np.int64)
    for start in range(0, rows, _KEYS_AT_A_TIME):
        some = keys[start : start + _KEYS_AT_A_TIME]
        places[start : start + len(some)] = [table.find(key) for key in some]
    return places
