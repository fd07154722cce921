"""A source beside the bundle that it follows: its rows in the parent's places, and its space, if it stayed there.

* Rows keep the parent's order, new ones follow; where the user wants another order, that is what they get.
* A rotation keeps every cosine among the new vectors. Where training turned them as a whole it is turned back
  (orthogonal Procrustes: Schoenemann, Psychometrika 31, 1966); for a small gain it is not: rows that stood still would
  move.
* The space stays the parent's where the vectors of shared keys stayed alike in the mean, and the manifest says how
  much. It is measured from parent to child, and angles add up along a chain, so that many small steps end it, too.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_embed.table import Table
from edge_embed_bundle.manifest import TableModel
from edge_embed_bundle.values import Revision
from edge_embed_export.exact import directions, exact_product, fixed_point
from edge_embed_export.matrix import Spool, blocks_of
from edge_embed_export.parents import Parent
from edge_embed_export.preparing import selected
from edge_embed_export.sources import Source, SourceTable

#: What the mean cosine of shared keys has to be, along the whole chain, for vectors to stay comparable.
SAME_SPACE_COSINE = 0.9
#: What a rotation has to add to it to be worth that all rows move.
_WORTH_TURNING = 0.01
# LAPACKs differ in the last bits; on a grid of 2**-20 they do not.
_ROTATION_BITS = 20


def continued(source: Source, parent: Parent, *, keep_places: bool = True) -> Source:
    """Return a source whose tables follow those of a parent.

    Args:
        source: prepared as its user wants it.
        parent: the bundle before.
        keep_places: whether rows may be moved to where the parent has them.
    """
    tables, notes = [], []
    for table in source.tables:
        model = parent.model(table)
        if model is not None:
            if keep_places and len(source.tables) == 1:
                table = _in_places(table, parent, model)
            table, note = _in_space(table, parent, model, may_turn=len(source.tables) == 1)
            notes.append(note)
        tables.append(table)
    return replace(source, tables=tuple(tables), notes=(*source.notes, *notes))


def _in_places(table: SourceTable, parent: Parent, model: TableModel) -> SourceTable:
    """Return a table with shared rows in the parent's order and new ones behind them."""
    movable = table.keys is not None and not table.tensors and table.text_ids is None and table.clusters is None
    if not movable or model.key_index is None or model.row_order == "cluster":
        return table
    places = parent.places(table, model)
    # New rows come last, as they stand.
    order = np.argsort(np.where(places < 0, np.iinfo(np.int64).max, places), kind="stable")
    return replace(selected(table, order), row_order=model.row_order)


def _in_space(table: SourceTable, parent: Parent, model: TableModel, *, may_turn: bool) -> tuple[SourceTable, str]:
    """Return a table in its parent's space, if it stayed there, and what a person is told of it."""
    space = parent.bundle.manifest.space_of(model)
    if space.id == table.space_id:
        return table, f"{table.name}: the space of its parent, whose vectors these are"
    places = parent.places(table, model)
    shared = np.flatnonzero(places >= 0)
    moment, total = _compared(table, Table(parent.bundle, model), shared, places)
    cosine = total / max(1, len(shared))
    rotation = None
    if may_turn and len(shared) and not table.tensors and table.longer is None:
        left, gained, right = np.linalg.svd(moment)
        if float(gained.sum()) / len(shared) - cosine >= _WORTH_TURNING:
            rotation = fixed_point(left @ right, _ROTATION_BITS)
            cosine = float(gained.sum()) / len(shared)
    # To eight digits: what a sum of roundings has beyond that is another one on another machine.
    cosine = round(min(cosine, 1.0), 8)
    first = cosine if space.revision is None else space.revision.mean_cosine_to_first
    angle = 0.0 if space.revision is None else math.acos(min(1.0, first))
    to_first = round(math.cos(min(math.pi / 2, angle + math.acos(cosine if cosine > 0 else 0.0))), 8)
    said = f"{table.name}: mean cosine {cosine:.4f} with its parent, of {len(shared)} shared rows"
    if to_first < SAME_SPACE_COSINE or not _reads_as(table, parent, model):
        return table, f"{said}; a space of its own"
    revision = Revision(parent.id, cosine, len(shared), rotation is not None, to_first)
    table = table if rotation is None else _turned(table, rotation)
    return replace(table, space=space._replace(revision=revision)), f"{said}; its space"


def _compared(
    table: SourceTable, before: Table, shared: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Return the sum of products of new and old directions ``(d, d)``, and that of the cosines of shared rows."""
    dimensions = table.vectors.shape[1]
    moment, total = np.zeros((dimensions, dimensions)), 0.0
    for block in blocks_of(table.vectors):
        rows = shared[np.searchsorted(shared, block.start) : np.searchsorted(shared, block.stop)]
        if not len(rows):
            continue
        new = directions(table.vectors[block][rows - block.start])
        old = directions(before.decode(places[rows]))
        moment += exact_product(new.T, old)
        total += float((new * old).sum())
    return moment, total


def _turned(table: SourceTable, rotation: NDArray[np.float64]) -> SourceTable:
    vectors = table.vectors
    blocks = (exact_product(vectors[block], rotation).astype(np.float32) for block in blocks_of(vectors))
    spool = Spool.of(blocks, np.float32, vectors.shape[1:])
    digest = hashlib.sha256(rotation.tobytes()).hexdigest()
    clusters = table.clusters
    if clusters is not None:
        clusters = replace(clusters, centroids=exact_product(clusters.centroids, rotation).astype(np.float32))
    return replace(table, vectors=spool, clusters=clusters, recipe={**table.recipe, "turned": digest})


def _reads_as(table: SourceTable, parent: Parent, model: TableModel) -> bool:
    """Whether texts become vectors as they did: by the same tokenizer, with the same last step."""
    text, before = table.text, model.text
    if text is None or before is None:
        return (text is None) == (before is None)
    blob = before.tokenizer_blob
    known = None if blob is None else parent.bundle.manifest.blobs[blob].sha256
    ours = None if text.tokenizer is None else hashlib.sha256(text.tokenizer).hexdigest()
    return known == ours and (before.tokenizer == "fasttext" or before.normalize == text.normalize)
