"""From a source to a bundle: encode, write, draw the graphs, ask the golden questions, measure, sign off.

The order is the argument of the bundle's truth:

 1. the tables, the tokenizer and the graphs are written;
 2. the partial bundle is opened by the runtime that boards run, and every graph by its engine: a graph that answers
    unlike the kernels ends the export;
 3. what it decodes is compared with the source, and it is measured how many lists a search has to scan;
 4. what the runtime then answers becomes the golden answers;
 5. only then the manifest is written, and the bundle gets its name.

Nothing in a bundle depends on the time or on the machine: the same source, options and packages give the same bytes,
whatever its CPU and however many of its cores take part (``exact``). The exception are codebooks: faiss trains them by
distances that carry a CPU's rounding, so they are the same again on the same machine alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_embed.progress import SILENT, Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import Golden, Manifest
from edge_embed_bundle.values import Blob
from edge_embed_bundle.writer import BundleWriter
from edge_embed_export.drafting import check_prediction, draft_manifest
from edge_embed_export.evaluation import Evaluation
from edge_embed_export.options import Options, check_options, codec_said
from edge_embed_export.parts import TOKENIZER_BLOB, check_tables, parts_of, tokenizer_of
from edge_embed_export.pricing import Price, beside_teacher, check_loss, evaluated, manifest_quality
from edge_embed_export.proving import measured, prove
from edge_embed_export.quality import Quality
from edge_embed_export.sources import Source
from edge_embed_export.tuning import tuned
from edge_embed_export.writing import write_bytes, write_golden, write_model


@dataclass(frozen=True)
class Report:
    """What came out: the manifest, and what the codec cost."""

    path: Path
    manifest: Manifest
    price: Price

    @property
    def quality(self) -> Mapping[str, Quality]:
        """The price of each table."""
        return self.price.quality


def export(source: Source, options: Options, progress: Progress = SILENT) -> Report:
    """Write the bundle of a source.

    Raises:
        RequestError: an option is impossible for this source.
        LossError: the codec loses more than ``options.max_loss``.
        BundleError: the target is taken, or a graph does not answer as the kernels do.
        MissingExtraError: a package of the ``export`` extra is not installed.
    """
    check_options(options)
    check_tables(source, options)
    with BundleWriter(options.target, replace=options.replace) as writer:
        parts = parts_of(source, options, progress)
        models = tuple(write_model(writer, part, progress) for part in parts)
        tokenizer = tokenizer_of(source)
        if tokenizer is not None:
            writer.blob(TOKENIZER_BLOB, partial(write_bytes, tokenizer))
        draft = partial(draft_manifest, source, options, models)
        with Runtime(writer.preview(draft), verify=False) as runtime:
            proven = tuple(prove(model, runtime, runtime.bundle) for model in models)
            quality = measured(parts, models, runtime, progress)
            made = tuple(
                tuned(part, model, runtime, options.recall, progress) for part, model in zip(parts, proven, strict=True)
            )
        draft = partial(draft_manifest, source, options, made)
        with Runtime(writer.preview(draft), verify=False) as runtime:
            evaluations = evaluated(source, options.evaluations, runtime.bundle)
            teacher = beside_teacher(source, options.evaluations, runtime.bundle)
            golden = write_golden(writer, runtime)
        prices: list[Price] = []
        codec = codec_said(options, [table.name for table in source.tables if not table.is_helper])

        def sign(blobs: Mapping[str, Blob]) -> Manifest:
            signed = _signed_off(draft_manifest(source, options, made, blobs), golden, quality, evaluations, teacher)
            check_prediction(signed, options)
            prices.append(Price(codec, signed.size_bytes, quality, evaluations, teacher))
            check_loss(prices[0], options.max_loss)
            return signed

        manifest = writer.finish(sign)
    return Report(options.target, manifest, prices[0])


def _signed_off(
    draft: Manifest,
    golden: tuple[Golden, ...],
    quality: Mapping[str, Quality],
    evaluations: tuple[Evaluation, ...],
    teacher: tuple[Evaluation, ...],
) -> Manifest:
    """Return the manifest with what the bundle answered; a budget that no question measures is no promise."""
    asked = {question.operation for question in golden if question.inputs}
    operations = {name: budget for name, budget in draft.budgets.operations.items() if name in asked}
    return draft._replace(
        golden=golden,
        quality=manifest_quality(quality, evaluations, draft.models[0].name, teacher),
        budgets=draft.budgets._replace(operations=operations),
    )
