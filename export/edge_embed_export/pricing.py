"""What one codec cost a bundle, and whether that is more than its owner allows.

The losses that count are those of every score of every ``--eval`` file. Without such a file nobody said what the
vectors are for, and what counts is the share of the ten nearest neighbours that changed, of the table where it is most:
the strictest of the figures that every export measures. Intervals do not count: the limit is held by the scores
themselves, so a file of few questions decides by chance, which its interval shows. Of a table that only another one
reads nobody asks for neighbours: there the mean cosine counts.

The float32 side of a file's questions is the bundle's own machinery, its keys, tokenizer and subwords, over the vectors
as their trainer left them, before they were made shorter or packed: what differs between the sides is the price alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.kernels.pure import Pooling
from edge_embed.kernels.reference import scores_by_decoding
from edge_embed.keys import to_bytes
from edge_embed.serving import Serving
from edge_embed.table import Table
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import TableModel
from edge_embed_export.evaluation import TEXT_KINDS, Evaluation, Side, Task, evaluate
from edge_embed_export.matrix import Matrix
from edge_embed_export.quality import Quality
from edge_embed_export.sources import Source, SourceTable

DEFAULT_MAX_LOSS = 0.01


@dataclass(frozen=True)
class GraphPrice:
    """What one graph of an encoder costs beside the original."""

    blob: str
    quality: Quality
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def losses(self) -> Mapping[str, float]:
        """What counts against a limit, as :attr:`Price.losses`."""
        found = _losses(self.evaluations) or dict([_unasked_loss("", self.quality)])
        return {f"{what} by {self.blob}".lstrip(): loss for what, loss in found.items()}

    def to_json(self) -> dict[str, object]:
        """Return the block that goes into the manifest: figures that every machine finds alike."""
        kept = [each.to_json() for each in self.evaluations if each.reproducible]
        return {
            "blob": self.blob,
            "mean_cosine": self.quality.mean_cosine,
            "worst_cosine": self.quality.worst_cosine,
            "neighbour_overlap_at_10": self.quality.neighbour_overlap_at_10,
            **({"evaluations": kept} if kept else {}),
        }


@dataclass(frozen=True)
class Price:
    """What a codec gave and took: the bundle's bytes, each table's quality and what the user's questions showed."""

    codec: str
    size_bytes: int
    quality: Mapping[str, Quality]
    evaluations: tuple[Evaluation, ...] = ()
    #: The same questions asked of the model that was distilled, in the place of float32; no limit counts them.
    teacher: tuple[Evaluation, ...] = ()
    #: Of an encoder with several graphs each one's; the other figures are those of the first.
    graphs: tuple[GraphPrice, ...] = ()

    @property
    def losses(self) -> Mapping[str, float]:
        """What counts against a limit: words for people -> loss."""
        found = _losses(self.evaluations) or dict(
            _unasked_loss(name, quality) for name, quality in self.quality.items()
        )
        for graph in self.graphs[1:]:
            found |= graph.losses
        return found

    @property
    def worst(self) -> tuple[str, float]:
        """The largest loss and what it is of."""
        return max(self.losses.items(), key=lambda loss: loss[1], default=("nothing", 0.0))

    @property
    def neighbour_overlap_at_10(self) -> float:
        """That of the table where it is least."""
        return min((quality.neighbour_overlap_at_10 for quality in self.quality.values()), default=1.0)

    def to_json(self) -> dict[str, object]:
        """Return the price as ``--json`` has it."""
        return {
            "codec": self.codec,
            "size_bytes": self.size_bytes,
            "quality": {name: quality.to_json() for name, quality in self.quality.items()},
            "evaluations": [each.to_json() for each in self.evaluations],
            **({"teacher": [each.to_json() for each in self.teacher]} if self.teacher else {}),
            **({"graphs": [each.to_json() for each in self.graphs]} if self.graphs else {}),
            "losses": dict(self.losses),
        }


def _losses(evaluations: tuple[Evaluation, ...]) -> dict[str, float]:
    return {f"{each.name} {score.measure}": score.loss for each in evaluations for score in each.scores}


def _unasked_loss(name: str, quality: Quality) -> tuple[str, float]:
    """Return what counts of a table that no question was asked of."""
    if quality.queries:
        return f"{name} 1 - neighbour overlap@10", round(1 - quality.neighbour_overlap_at_10, 4)
    return f"{name} 1 - mean cosine", round(1 - quality.mean_cosine, 4)


class LossError(RequestError):
    """A bundle would lose more than was allowed; it was not written."""

    exit_status = 1

    def __init__(self, message: str, prices: tuple[Price, ...] = ()) -> None:
        super().__init__(message)
        self.prices = prices


def check_loss(price: Price, max_loss: float | None) -> None:
    """Refuse a price above the limit; None is no limit.

    Raises:
        LossError: a loss is larger.
    """
    if max_loss is None:
        return
    above = {what: loss for what, loss in price.losses.items() if loss > max_loss}
    if above:
        listed = ", ".join(f"{loss:.4f} in {what}" for what, loss in above.items())
        raise LossError(
            f"{price.codec}: expected to lose at most {max_loss:g}, found {listed}; the bundle was not written",
            (price,),
        )


def evaluated(source: Source, tasks: tuple[Task, ...], bundle: Bundle) -> tuple[Evaluation, ...]:
    """Return what each file's questions show of the first table: as it was trained, and as the bundle has it.

    Raises:
        RequestError: the table has no keys, knows too few of the words, or encodes no text where that is asked for.
        MissingExtraError: a package of the extra ``evaluate`` is not installed.
    """
    if not tasks:
        return ()
    if source.table.keys is None:
        raise RequestError(f"{source.title}: expected keys for --eval to ask for, found a table of row ids alone")
    tables = {table.name: table for table in source.tables}
    before = _side(Serving(bundle, open_table=partial(_as_trained, tables)))
    after = _side(Serving(bundle))
    return tuple(evaluate(task, before, after) for task in tasks)


def beside_teacher(source: Source, tasks: tuple[Task, ...], bundle: Bundle) -> tuple[Evaluation, ...]:
    """Return what texts' questions show of the model that a source was distilled from, and of the bundle.

    Raises:
        MissingExtraError: a package of the extra ``evaluate`` is not installed.
    """
    if source.teacher is None:
        return ()
    teacher = Side(0, lambda _: -1, lambda rows: np.empty((len(rows), 0), np.float32), source.teacher.encode)
    after = _side(Serving(bundle))
    return tuple(evaluate(task, teacher, after) for task in tasks if task.questions.kind in TEXT_KINDS)


class _TrainedRows(Pooling):
    """A source's vectors in the place of a bundle's rows."""

    def __init__(self, vectors: Matrix) -> None:
        self._vectors = vectors

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Rows.decode`."""
        return np.asarray(self._vectors[ids], np.float32)

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Rows.scores`."""
        return scores_by_decoding(self.decode, len(self._vectors), query)

    def run(self, first: int, stop: int) -> _TrainedRows:
        """See :meth:`Pooling.run`."""
        return _TrainedRows(self._vectors[first:stop])


def _as_trained(tables: Mapping[str, SourceTable], bundle: Bundle, model: TableModel) -> Table:
    """Return a model's table over its source's vectors; a collection is of no source, and stays as it is stored."""
    table = tables.get(model.name)
    if table is None:
        return Table(bundle, model)
    return Table(bundle, model._replace(dimensions=table.whole.shape[1]), _TrainedRows(table.whole))


def _side(serving: Serving) -> Side:
    table = serving.table()
    return Side(
        table.model.rows,
        lambda key: table.find(to_bytes(key)),
        table.rows.decode,
        None if table.model.text is None else lambda texts: serving.text_encoder().encode(texts),
        None
        if table.subwords is None
        else lambda words: table.lookup_all([to_bytes(word) for word in words], "subwords"),
    )


def manifest_quality(
    quality: Mapping[str, Quality],
    evaluations: tuple[Evaluation, ...],
    model: str,
    teacher: tuple[Evaluation, ...] = (),
    graphs: tuple[GraphPrice, ...] = (),
) -> dict[str, dict[str, object]]:
    """Return the manifest's quality block; evaluations, and what its graphs cost, stand with the model that was asked.

    Only figures that every machine finds alike go into it.
    """
    block: dict[str, dict[str, object]] = {name: dict(price.to_json()) for name, price in quality.items()}
    for name, asked in (("evaluations", evaluations), ("teacher", teacher)):
        kept = [each.to_json() for each in asked if each.reproducible]
        if kept:
            block.setdefault(model, {})[name] = kept
    if graphs:
        block.setdefault(model, {})["graphs"] = [each.to_json() for each in graphs]
    return block
