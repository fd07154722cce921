"""What one codec cost a bundle, and whether that is more than its owner allows.

The losses that count are those of every score of every ``--eval`` file. Without such a file nobody said what the
vectors are for, and what counts is the share of the ten nearest neighbours that changed, of the table where it is most:
the strictest of the figures that every export measures. Intervals do not count: the limit is held by the scores
themselves, so a file of few questions decides by chance, which its interval shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.keys import to_bytes
from edge_embed.runtime import Runtime
from edge_embed.text import HuggingFaceTokenizer, TextEncoder, Tokenizer, WhitespaceTokenizer
from edge_embed_export.evaluation import Evaluation, Side, Task, evaluate
from edge_embed_export.quality import Quality
from edge_embed_export.sources import Source

DEFAULT_MAX_LOSS = 0.01


@dataclass(frozen=True)
class Price:
    """What a codec gave and took: the bundle's bytes, each table's quality and what the user's questions showed."""

    codec: str
    size_bytes: int
    quality: Mapping[str, Quality]
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def losses(self) -> Mapping[str, float]:
        """What counts against a limit: words for people -> loss."""
        if self.evaluations:
            return {f"{each.name} {score.measure}": score.loss for each in self.evaluations for score in each.scores}
        return {
            f"{name} 1 - neighbour overlap@10": round(1 - quality.neighbour_overlap_at_10, 4)
            for name, quality in self.quality.items()
        }

    @property
    def worst(self) -> tuple[str, float]:
        """The largest loss and what it is of."""
        return max(self.losses.items(), key=lambda loss: loss[1])

    def to_json(self) -> dict[str, object]:
        """Return the price as ``--json`` has it."""
        return {
            "codec": self.codec,
            "size_bytes": self.size_bytes,
            "quality": {name: quality.to_json() for name, quality in self.quality.items()},
            "evaluations": [each.to_json() for each in self.evaluations],
            "losses": dict(self.losses),
        }


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


def evaluated(source: Source, tasks: tuple[Task, ...], runtime: Runtime) -> tuple[Evaluation, ...]:
    """Return what each file's questions show of the first table: the source's vectors, and the runtime's.

    Raises:
        RequestError: the table has no keys, knows too few of the words, or encodes no text where that is asked for.
        MissingExtraError: a package of the extra ``evaluate`` is not installed.
    """
    if not tasks:
        return ()
    table, packed = source.table, runtime.table()
    if table.keys is None:
        raise RequestError(f"{source.title}: expected keys for --eval to ask for, found a table of row ids alone")

    def row(key: str) -> int:
        return packed.find(to_bytes(key))

    def decode(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return table.vectors[ids]

    before = Side(len(table.vectors), row, decode)
    after = Side(packed.model.rows, row, packed.decode)
    if table.text is not None:
        tokenizer: Tokenizer = (
            WhitespaceTokenizer(packed, table.text.max_tokens)
            if table.text.tokenizer is None
            else HuggingFaceTokenizer(table.text.tokenizer, table.text.max_tokens, source.title)
        )
        encoder = TextEncoder(tokenizer, decode, dimensions=table.vectors.shape[1], normalize=table.text.normalize)
        before, after = replace(before, encode=encoder.encode), replace(after, encode=runtime.encode)
    return tuple(evaluate(task, before, after) for task in tasks)


def manifest_quality(
    quality: Mapping[str, Quality], evaluations: tuple[Evaluation, ...], model: str
) -> dict[str, dict[str, object]]:
    """Return the manifest's quality block; evaluations stand with the model that was asked.

    Only figures that every machine finds alike go into it.
    """
    block: dict[str, dict[str, object]] = {name: dict(price.to_json()) for name, price in quality.items()}
    kept = [each.to_json() for each in evaluations if each.reproducible]
    if kept:
        block[model]["evaluations"] = kept
    return block
