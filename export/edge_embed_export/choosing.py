"""``--codec auto``: every codec is tried by a whole export, and the smallest bundle within the loss is made.

Each trial goes into a temporary folder and is gone with it, so its size and its losses are those of the real bundle;
the chosen codec is then exported to the target, to the same bytes. What is tried depends on the dimensions alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edge_embed.errors import BundleError, EdgeEmbedError, MissingExtraError, RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.exporter import Report, export
from edge_embed_export.matrix import spool_folder
from edge_embed_export.options import Options
from edge_embed_export.pricing import DEFAULT_MAX_LOSS, LossError, Price
from edge_embed_export.sources import Source

AUTO = "auto"


@dataclass(frozen=True)
class Trial:
    """A codec that was tried: its price, or why there is none; and whether the price is within the loss."""

    codec: str
    price: Price | None
    refused: str = ""
    within: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the trial as ``--json`` has it."""
        if self.price is None:
            return {"codec": self.codec, "refused": self.refused}
        return {**self.price.to_json(), "within": self.within}


def candidates(dimensions: int) -> tuple[str, ...]:
    """Return the codecs that are tried for rows of some length, from the most bytes a row to the fewest."""
    half = (f"pq:{dimensions // 2}", f"opq:{dimensions // 2}") if dimensions >= 8 else ()
    return ("float32", "float16", "int8", "int4", *half, "pq", "opq", "rq")


def export_smallest(source: Source, options: Options, progress: Progress = SILENT) -> tuple[Report, tuple[Trial, ...]]:
    """Write the smallest bundle whose losses stay within ``options.max_loss``, .01 if not given.

    Raises:
        LossError: none does.
        RequestError: as :func:`export`.
    """
    if options.codecs:
        raise RequestError(
            f"--codec {AUTO}: expected no other codec beside it, found one for {', '.join(options.codecs)}"
        )
    names = candidates(source.table.vectors.shape[1])
    return smallest(names, options, partial(export, source, progress=progress))


def smallest(
    names: Sequence[str], options: Options, write: Callable[[Options], Report]
) -> tuple[Report, tuple[Trial, ...]]:
    """Let ``write`` make a bundle of each codec, and the smallest one that stays within the loss again, to its place.

    Raises:
        LossError: none does.
    """
    limit = DEFAULT_MAX_LOSS if options.max_loss is None else options.max_loss
    trials = tuple(_tried(write, replace(options, codec=name), limit) for name in names)
    within = [(trial.price, trial.codec) for trial in trials if trial.price is not None and trial.within]
    if not within:
        raise _none_within(trials, limit)
    _, chosen = min(within, key=lambda tried: tried[0].size_bytes)
    return write(replace(options, codec=chosen, max_loss=limit)), trials


def _tried(write: Callable[[Options], Report], options: Options, limit: float) -> Trial:
    with tempfile.TemporaryDirectory(prefix="edge-embed-", dir=spool_folder()) as folder:
        try:
            report = write(replace(options, target=Path(folder) / "trial", replace=False, max_loss=None))
        except MissingExtraError:
            raise
        except (RequestError, BundleError) as error:
            # A number that float16 cannot hold, a codec whose decoding is beyond the memory budget.
            return Trial(options.codec, None, str(error))
        return Trial(options.codec, report.price, within=report.price.worst[1] <= limit)


def _none_within(trials: tuple[Trial, ...], limit: float) -> EdgeEmbedError:
    prices = tuple(trial.price for trial in trials if trial.price is not None)
    if not prices:
        return RequestError(f"expected a codec that can store this source, found none: {trials[0].refused}")
    best = min(prices, key=lambda price: price.worst[1])
    return LossError(
        f"expected a codec that loses at most {limit:g}, found {best.worst[1]:.4f} in {best.worst[0]} "
        f"by the best of them, {best.codec}; the bundle was not written",
        prices,
    )
