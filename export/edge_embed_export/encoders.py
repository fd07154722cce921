"""From an encoder to a bundle: write its graphs, compare each with the original, and sign what they are off by.

 1. the original, in float32, is written beside the bundle and run: what it says of some texts are the golden answers;
 2. each graph that was asked for is written and run by its engine: how far its answers are off becomes its tolerance,
    and one that answers something else ends the export;
 3. a collection is encoded by the original, so its rows are off by their codec alone;
 4. what each graph costs is measured: cosines, neighbours, the user's own questions;
 5. only then the manifest is written, and the bundle gets its name.

Codes hang on last bits, so the same source gives the same bytes again on the same machine, and on another one nearly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.encoding import GraphImageEncoder, GraphTextEncoder, open_graph_encoder
from edge_embed.errors import BundleError, RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph, EncoderModel
from edge_embed_bundle.manifest import Golden, Manifest, Model, TableModel
from edge_embed_bundle.values import Blob, Engine
from edge_embed_bundle.writer import BundleWriter
from edge_embed_devices.graph_work import works_of
from edge_embed_export.drafting import check_prediction
from edge_embed_export.encoder_drafting import draft_encoder
from edge_embed_export.evaluation import Evaluation, Side, evaluate
from edge_embed_export.exporter import Report
from edge_embed_export.matrix import spool_folder
from edge_embed_export.options import COLLECTION, Options, check_naming
from edge_embed_export.parts import collection_of, collection_part
from edge_embed_export.pricing import GraphPrice, Price, check_loss, manifest_quality
from edge_embed_export.proving import measured
from edge_embed_export.quality import Quality, measure_quality
from edge_embed_export.questions import SCORE_TOLERANCE, Question, exact_scores, lookup_question, spread_rows
from edge_embed_export.sources import SourceTable
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.sources.transformers import TOKENIZER_BLOB
from edge_embed_export.tuning import tuned
from edge_embed_export.writing import write_bytes, write_model, write_questions

#: The name of an encoder's model.
ENCODER = "encoder"

# What float32 graphs of one model may differ by, of numbers around 1, whoever runs them.
_FLOAT_TOLERANCE = 1e-5
# Roundings of other processors move codes by one, and with them as much as the codes themselves were off.
_TOLERANCE_FACTOR = 2.0
_SHARE_OFF = 0.2
# An engine that runs a graph wrongly answers what has nothing to do with the original (tflite-runtime 2.14: .05).
_LOWEST_COSINE = 0.9
# Golden numbers are those of the original but for its last bits, which are its machine's.
_GOLDEN_DIGITS = 6
_SAMPLE_TEXTS = 512
_GOLDEN_TEXTS = 12
_NEIGHBOURS = 5
_LONG_LETTERS = 2000
_STRANGE_TEXTS = ("", "a", "naïve 東京 🙂")

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
Draft = Callable[[tuple[Model, ...], Mapping[str, Blob]], Manifest]


def export_encoder(source: EncoderSource, options: Options, progress: Progress = SILENT) -> Report:
    """Write the bundle of an encoder of texts.

    Raises:
        RequestError: an option is impossible for this source.
        LossError: the variant loses more than ``options.max_loss``.
        BundleError: the target is taken, or a graph does not answer as the original does.
        MissingExtraError: a package of the ``export`` extra is not installed.
    """
    check_encoder(source, options)
    folder = spool_folder()
    with (
        BundleWriter(options.target, replace=options.replace) as writer,
        tempfile.TemporaryDirectory(prefix="edge-embed-", dir=folder) as beside,
        _original(source, options, Path(beside)) as original,
    ):
        texts = list(options.collection[:_SAMPLE_TEXTS]) or _notes()
        golden_texts = _golden_texts(texts)
        with progress.task("asking the original", len(texts)) as advance:
            before = _in_steps(original.encode, texts, advance)
        expected = np.round(original.encode(golden_texts), _GOLDEN_DIGITS)
        graphs = tuple(_write(source, writer, format, options.codec) for format in options.graphs)
        if source.tokenizer is not None:
            writer.blob(TOKENIZER_BLOB, partial(write_bytes, source.tokenizer))
        model = EncoderModel(ENCODER, source.dimensions, source.normalize, graphs, source.text, source.image)
        draft = partial(draft_encoder, source, options)
        proven: list[EncoderGraph] = []
        packed: list[GraphTextEncoder] = []
        with Bundle.open(writer.preview(lambda blobs: draft((model,), blobs))) as bundle:
            for graph in graphs:
                encoder = _text_encoder(bundle, model, graph)
                proven.append(proven_graph(encoder, expected, encoder.encode(golden_texts)))
                packed.append(encoder)
            model = model._replace(graphs=tuple(proven))
            priced = []
            asked = _remembering(original.encode)
            for graph, encoder in zip(model.graphs, packed, strict=True):
                with progress.task(f"asking {graph.blob}", len(texts)) as advance:
                    after = _in_steps(encoder.encode, texts, advance)
                cost = _quality(source, bundle, graph, before, after, progress)
                priced.append(GraphPrice(graph.blob, cost, _evaluated(options, asked, encoder.encode)))
            # The first graph serves where nobody names another, and stands for the encoder.
            quality, evaluations = {ENCODER: priced[0].quality}, priced[0].evaluations
            by_graph = tuple(priced) if len(priced) > 1 else ()
            works = works_of(bundle)
        questions = [Question("encode", ENCODER, "text", golden_texts, expected, _largest(model.graphs))]
        models: tuple[EncoderModel | TableModel, ...] = (model,)
        if options.collection:
            rows = collection_of(options.collection, original.encode, source.weights_digest, progress)
            search = partial(_search, texts=golden_texts, vectors=expected, model=model)
            table, its_cost, its_own = write_collection(writer, rows, model, draft, source, options, search, progress)
            models, quality = (model, table), {**quality, **its_cost}
            questions += its_own
        golden = write_questions(writer, questions)
        prices: list[Price] = []

        def sign(blobs: Mapping[str, Blob]) -> Manifest:
            signed = signed_off(draft(models, blobs), golden, quality, evaluations, by_graph)
            check_prediction(signed, options, works)
            prices.append(Price(options.codec, signed.size_bytes, quality, evaluations, graphs=by_graph))
            check_loss(prices[0], options.max_loss)
            return signed

        manifest = writer.finish(sign)
    return Report(options.target, manifest, prices[0])


def check_encoder(source: EncoderSource, options: Options) -> None:
    check_naming(options)
    if options.codec not in source.variants:
        raise RequestError(
            f"{source.title}: expected a codec of {', '.join(source.variants)} for an encoder, found {options.codec!r}"
        )
    strangers = set(options.codecs) - {COLLECTION}
    if strangers or options.bags or options.hashes:
        found = ", ".join(sorted({*strangers, *options.bags, *options.hashes}))
        raise RequestError(f"{source.title}: expected options for the {COLLECTION} alone, found {found}")
    if not options.graphs:
        raise RequestError(
            f"{source.title}: expected --graphs of one format or more, which are the encoder, found none"
        )


class _original:  # noqa: N801, a verb in its use
    """The float32 original of a source as a bundle in a temporary folder; a context manager that gives its encoder."""

    def __init__(self, source: EncoderSource, options: Options, folder: Path) -> None:
        self._source = source
        self._options = options
        self._folder = folder

    def __enter__(self) -> GraphTextEncoder:
        source = self._source
        with BundleWriter(self._folder / "original") as writer:
            format, variant = source.network.original
            graph = source.network.write(writer, ENCODER, format, variant)
            if source.tokenizer is not None:
                writer.blob(TOKENIZER_BLOB, partial(write_bytes, source.tokenizer))
            model = EncoderModel(ENCODER, source.dimensions, source.normalize, (graph,), source.text, source.image)
            options = replace(self._options, codec=variant, memory_budget_bytes=None, latency_budgets={})
            writer.finish(lambda blobs: draft_encoder(source, options, (model,), blobs, checked=False))
        self._bundle = Bundle.open(self._folder / "original")
        return _text_encoder(self._bundle, model, graph)

    def __exit__(self, *_: object) -> None:
        self._bundle.close()


def _text_encoder(bundle: Bundle, model: EncoderModel, graph: EncoderGraph) -> GraphTextEncoder:
    encoder = open_graph_encoder(bundle, model, graph)
    if not isinstance(encoder, GraphTextEncoder):
        raise AssertionError("a model with a text recipe encodes texts")
    return encoder


def _write(source: EncoderSource, writer: BundleWriter, format: str, variant: str) -> EncoderGraph:
    try:
        return source.network.write(writer, ENCODER, format, variant)
    except RequestError as error:
        raise RequestError(f"{source.title}: {error}; pass --graphs or --codec") from error


def proven_graph(
    encoder: GraphTextEncoder | GraphImageEncoder, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> EncoderGraph:
    """Return a graph with its engine and how far its golden answers may be off.

    Raises:
        BundleError: they are further off than roundings explain.
    """
    graph, engine = encoder.forward.graph, encoder.forward.engine
    off = float(np.abs(found - expected).max(initial=0))
    if graph.variant == "float32":
        tolerance = _FLOAT_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0)))
        if off > tolerance:
            raise BundleError(
                f"{graph.blob}: expected the original's vectors from {engine.name} {engine.version} within "
                f"{tolerance:.2g}, found them off by {off:.3g}; the bundle was not written"
            )
    else:
        tolerance = rounded_up(_TOLERANCE_FACTOR * off)
        if off < 10**-_GOLDEN_DIGITS:
            # Its own original, whose codes nobody can compare with anything: as far as codes move on other machines.
            tolerance = rounded_up(_SHARE_OFF * float(np.abs(expected).max(initial=0)))
        cosine = float(_cosines(expected, found).mean())
        if not cosine >= _LOWEST_COSINE:
            raise BundleError(
                f"{graph.blob}: expected vectors like the original's from {engine.name} {engine.version}, found a mean "
                f"cosine of {cosine:.3f}; the bundle was not written"
            )
    return graph._replace(tolerance=tolerance, proven=(Engine(engine.name, engine.version),))


def _cosines(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = ones.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots: NDArray[np.float64] = np.divide((a * b).sum(axis=1), lengths, out=np.ones(len(a)), where=lengths > 0)
    return dots


def rounded_up(value: float) -> float:
    """Return the next of a few steps a decade: another machine's last bits give the same, as a rule."""
    steps = sorted(step * 10.0**power for power in range(-5, 3) for step in (1, 1.5, 2, 3, 5, 7))
    return next((round(step, 6) for step in steps if step >= value), value)


def _largest(graphs: Sequence[EncoderGraph]) -> float:
    return max(graph.tolerance for graph in graphs)


def _notes() -> list[str]:
    """Return the lines that an encoder is asked where its user brings none."""
    data = resources.files("edge_embed_export").joinpath("data/notes.txt").read_text(encoding="utf-8")
    return data.splitlines()


def _golden_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts from all over a list, strange ones, and one that is longer than a model takes, as a rule."""
    some = [texts[place] for place in spread_rows(len(texts), _GOLDEN_TEXTS).tolist()]
    return (*dict.fromkeys((*some, *_STRANGE_TEXTS, " ".join(texts)[:_LONG_LETTERS])),)


def _in_steps(encode: Encode, texts: Sequence[str], advance: Callable[[int], None]) -> NDArray[np.float32]:
    step = 16
    blocks = []
    for start in range(0, len(texts), step):
        blocks.append(encode(texts[start : start + step]))
        advance(len(blocks[-1]))
    return np.concatenate(blocks)


def _quality(
    source: EncoderSource,
    bundle: Bundle,
    graph: EncoderGraph,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    progress: Progress,
) -> Quality:
    size = sum(bundle.manifest.blobs[name].size_bytes for name in graph.blobs)
    return replace(measure_quality(before, after, size, progress), bytes_before=source.network.size_bytes)


def _remembering(encode: Encode) -> Encode:
    """Return an encoder that is asked for a text once: every graph is held against the same answers."""
    known: dict[str, NDArray[np.float32]] = {}

    def asked(texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, encode(new), strict=True))
        return np.stack([known[text] for text in texts])

    return asked


def _evaluated(options: Options, before: Encode, after: Encode) -> tuple[Evaluation, ...]:
    sides = [Side(0, lambda _: -1, lambda rows: np.empty((len(rows), 0), np.float32), each) for each in (before, after)]
    return tuple(evaluate(task, *sides) for task in options.evaluations)


def write_collection(
    writer: BundleWriter,
    rows: SourceTable,
    encoder: EncoderModel,
    draft: Draft,
    source: EncoderSource,
    options: Options,
    search: Callable[[Runtime], Question],
    progress: Progress,
) -> tuple[TableModel, Mapping[str, Quality], list[Question]]:
    """Write what an encoder's vectors are searched in.

    Args:
        writer: of the bundle.
        rows: the vectors, by their keys.
        encoder: the model that made them.
        draft: makes the manifest of some models.
        source: where the encoder comes from.
        options: what the user decided.
        search: makes a golden question that the table is searched for.
        progress: told what is done.

    Returns:
        The table's model, what its codec cost, and its golden questions.
    """
    codec = options.codecs.get(COLLECTION, "int8")
    part = collection_part(rows, source.title, codec, options, progress)
    table = write_model(writer, part, progress)
    with Runtime(writer.preview(lambda blobs: draft((encoder, table), blobs)), verify=False) as runtime:
        quality = measured([part], (table,), runtime, progress)
        table = tuned(part, table, runtime, options.recall, progress)
    with Runtime(writer.preview(lambda blobs: draft((encoder, table), blobs)), verify=False) as runtime:
        return table, quality, [lookup_question(runtime, table.name), search(runtime)]


def _search(runtime: Runtime, *, texts: tuple[str, ...], vectors: NDArray[np.float32], model: EncoderModel) -> Question:
    """Ask for the neighbours of texts: their scores by the original's vectors, which each graph's may be off from."""
    table = runtime.table(COLLECTION)
    k = min(_NEIGHBOURS, table.model.rows)
    asked: NDArray[np.bool_] = np.any(vectors, axis=1)
    texts, vectors = tuple(text for text, kept in zip(texts, asked.tolist(), strict=True) if kept), vectors[asked]
    scores = exact_scores(table, vectors, k)
    found = np.stack([each.scores for each in runtime.search(text=texts, model=COLLECTION, k=k, exact=True)])
    off = float(np.abs(found - scores).max(initial=0))
    # A sum of products of unit vectors moves by no more than a vector does; of other graphs, as by this one.
    share = _largest(model.graphs) / model.graphs[0].tolerance
    tolerance = max(SCORE_TOLERANCE, rounded_up(_TOLERANCE_FACTOR * share * off))
    return Question("search", COLLECTION, "text", texts, scores, tolerance)


def signed_off(
    draft: Manifest,
    golden: tuple[Golden, ...],
    quality: Mapping[str, Quality],
    evaluations: tuple[Evaluation, ...],
    graphs: tuple[GraphPrice, ...] = (),
) -> Manifest:
    return draft._replace(golden=golden, quality=manifest_quality(quality, evaluations, ENCODER, graphs=graphs))
