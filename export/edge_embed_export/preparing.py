"""What is done to a table between its reader and its codec: rows left out, put into another order, made shorter.

* A key that stands twice keeps its first row: that is the one that every tool answers with.
* Rows by frequency: those that are asked for most stand together, so a board reads few pages. Counts come from the
  source or from a vocabulary file; a trainer that gave none has as a rule written the most frequent words first.
* Rows by cluster: those that are alike stand together, so a search scans a few lists of them (``clusters``).
* A shorter vector is the vector's share on the table's principal directions, or its first numbers, where a model was
  trained for that (Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022). It has a space of its own.

Nothing of a table is in memory as a whole but its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.clusters import FEWEST_ROWS, clustered
from edge_embed_export.exact import exact_product, principal_components
from edge_embed_export.key_index import hashes_of, repeated_rows
from edge_embed_export.matrix import BLOCK_ROWS, Keys, Selection, Spool, blocks_of
from edge_embed_export.sources import Source, SourceTable
from edge_embed_export.sources.binary_vectors import read_counts
from edge_embed_export.sources.tables import read_keys

ORDERS = ("source", "frequency", "cluster")
REDUCTIONS = ("pca", "leading")

_SHOWN_KEYS = 3


@dataclass(frozen=True)
class Preparing:
    """What the user wants done: an order, a vocabulary with counts, the rows to keep, the numbers to keep of each."""

    order: str | None = None
    vocabulary: Path | None = None
    keep: int | None = None
    keep_words: Path | None = None
    dimensions: int | None = None
    reduce: str | None = None


def prepared(source: Source, preparing: Preparing, progress: Progress = SILENT) -> Source:
    """Return a source as its user wants it.

    Raises:
        RequestError: the source cannot be prepared so, or a file that says how is none.
    """
    source = without_repeats(source)
    if preparing.order == "frequency" or preparing.vocabulary is not None:
        counts = None if preparing.vocabulary is None else _counts(preparing.vocabulary)
        source = by_frequency(source, counts) if preparing.order != "source" else source
    if preparing.keep_words is not None:
        source = with_words(source, set(read_keys(preparing.keep_words)))
    if preparing.keep is not None:
        source = with_first(source, preparing.keep)
    if preparing.dimensions is not None:
        source = shortened(source, preparing.dimensions, preparing.reduce or REDUCTIONS[0])
    elif preparing.reduce is not None:
        raise RequestError(f"--reduce {preparing.reduce}: expected --dimensions beside it, found none")
    return by_cluster(source, progress) if preparing.order == "cluster" else source


def without_repeats(source: Source) -> Source:
    """Return a source in whose tables each key stands once, with its first row."""
    tables, notes = [], []
    for table in source.tables:
        if table.keys is not None and not table.is_helper and not table.tensors and table.text_ids is None:
            repeated = repeated_rows(table.keys, hashes_of(table.keys, 0))
            if len(repeated):
                shown = ", ".join(repr(table.keys[row]) for row in repeated[:_SHOWN_KEYS].tolist())
                notes.append(
                    f"{table.name}: {len(repeated)} rows left out whose key stands before, the first of {shown}"
                )
                table = selected(table, np.delete(np.arange(len(table.keys)), repeated))
        tables.append(table)
    return replace(source, tables=tuple(tables), notes=(*source.notes, *notes))


def by_frequency(source: Source, counts: Mapping[bytes, int] | None = None) -> Source:
    """Return a source whose rows stand in the order of their counts; of equal ones as they stood.

    Args:
        source: of one table.
        counts: of keys; the source's own if not given. Without any, the source's order is taken for that.

    Raises:
        RequestError: its rows cannot be moved.
    """
    table, keys = _movable(source, "--order")
    known = table.counts
    if counts is not None:
        known = np.fromiter((counts.get(key, 0) for key in keys), np.int64, len(keys))
        if not known.any():
            raise RequestError(
                f"{source.title}: expected a vocabulary that counts some of its {len(keys)} keys, "
                f"found {len(counts)} words and none of them"
            )
    if known is not None:
        table = selected(replace(table, counts=known), np.argsort(-known, kind="stable"))
    return replace(source, tables=(replace(table, row_order="frequency"),))


def by_cluster(source: Source, progress: Progress) -> Source:
    """Return a source whose rows stand in lists for search; as they stood, where they are too few for that.

    Raises:
        RequestError: its rows cannot be moved.
        MissingExtraError: faiss, which trains the centroids, is not installed.
    """
    table, keys = _movable(source, "--order cluster")
    if table.subwords is not None and table.subwords.rows == "parts":
        raise RequestError(
            f"{source.title}: expected a table whose rows are searched for --order cluster, found parts of words"
        )
    if len(keys) < FEWEST_ROWS:
        note = f"{table.name}: left in its order: an exact search of fewer than {FEWEST_ROWS} rows needs no lists"
        return replace(source, notes=(*source.notes, note))
    return replace(source, tables=(in_lists(table, progress),))


def in_lists(table: SourceTable, progress: Progress = SILENT) -> SourceTable:
    """Return a table with its rows in lists.

    Raises:
        MissingExtraError: faiss, which trains the centroids, is not installed.
    """
    order, clusters = clustered(table.vectors, progress)
    longer = None if table.longer is None else Selection(table.longer, order)
    return replace(selected(table, order), longer=longer, row_order="cluster", clusters=clusters)


def with_words(source: Source, words: set[bytes]) -> Source:
    """Return a source of those rows whose key is among some words.

    Raises:
        RequestError: there is none, or its rows cannot be left out.
    """
    table, keys = _movable(source, "--keep-words")
    kept = np.flatnonzero(np.fromiter((key in words for key in keys), bool, len(keys)))
    if not len(kept):
        raise RequestError(f"{source.title}: expected some of the {len(words)} words to keep, found none")
    note = f"{table.name}: {len(kept)} of {len(keys)} rows kept, of {len(words)} words"
    return replace(source, tables=(selected(table, kept),), notes=(*source.notes, note))


def with_first(source: Source, rows: int) -> Source:
    """Return a source of its first rows.

    Raises:
        RequestError: its rows cannot be left out.
    """
    table, keys = _movable(source, "--keep")
    if rows < 1:
        raise RequestError(f"--keep: expected at least 1 row, found {rows}")
    if rows >= len(keys):
        return source
    note = f"{table.name}: the first {rows} of {len(keys)} rows kept"
    return replace(source, tables=(selected(table, np.arange(rows)),), notes=(*source.notes, note))


def shortened(source: Source, dimensions: int, how: str) -> Source:
    """Return a source of shorter vectors.

    Args:
        source: of one table.
        dimensions: fewer than it has.
        how: ``pca``: on the principal directions of the table's second moment, not centred, so that all of them
            together would be a rotation and keep every cosine; ``leading``: the first numbers.

    Raises:
        RequestError: it has no more dimensions, or other tables depend on it.
    """
    if len(source.tables) > 1 or source.table.tensors:
        raise RequestError(
            f"{source.title}: expected a source of one table for --dimensions, found more parts than that"
        )
    table = source.table
    width = table.vectors.shape[1]
    if not 1 <= dimensions < width:
        raise RequestError(f"{source.title}: expected 1 to {width - 1} dimensions to keep, found {dimensions}")
    short = _leading(dimensions) if how == "leading" else _principal(table, dimensions)
    vectors = Spool.of((short(table.vectors[block]) for block in blocks_of(table.vectors)), np.float32, (dimensions,))
    recipe = {**table.recipe, "dimensions": dimensions, "reduced": how}
    return replace(source, tables=(replace(table, vectors=vectors, recipe=recipe, longer=table.vectors),))


def _leading(dimensions: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda block: block[:, :dimensions]


def _principal(table: SourceTable, dimensions: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    width = table.vectors.shape[1]
    moment = np.zeros((width, width))
    for rows in blocks_of(table.vectors):
        block = table.vectors[rows]
        moment += exact_product(block.T, block)
    components = principal_components(moment, dimensions)
    return lambda block: exact_product(block, components).astype(np.float32)


def _movable(source: Source, option: str) -> tuple[SourceTable, Sequence[bytes]]:
    """Return the table and the keys of a source whose rows may be moved and left out.

    Raises:
        RequestError: something else knows its rows by number.
    """
    table = source.table
    if len(source.tables) > 1 or table.tensors or table.keys is None or table.text_ids is not None:
        raise RequestError(
            f"{source.title}: expected one table whose rows are known by key alone for {option}, "
            "found one whose rows are known by number"
        )
    return table, table.keys


def selected(table: SourceTable, rows: NDArray[np.int64]) -> SourceTable:
    """Return a table of some rows, in their order; it has keys."""
    keys = table.keys
    if keys is None:
        raise AssertionError("a table whose rows are chosen by key has keys")
    blocks: Iterator[list[bytes]] = (
        [keys[row] for row in rows[start : start + BLOCK_ROWS].tolist()] for start in range(0, len(rows), BLOCK_ROWS)
    )
    counts = None if table.counts is None else table.counts[rows]
    return replace(table, keys=Keys.of(blocks), vectors=Selection(table.vectors, rows), counts=counts)


def _counts(path: Path) -> dict[bytes, int]:
    words, counts = read_counts(path)
    return dict(zip(reversed(words), reversed(counts), strict=True))
