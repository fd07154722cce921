"""``export`` and ``demo``: the workstation's commands."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from edge_embed.commands import Command
from edge_embed.errors import RequestError
from edge_embed.memory import format_size, parse_size
from edge_embed.named_files import read_named
from edge_embed.progress import SILENT, Progress
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import BAG_MODES, BagRecipe, LatencyBudget
from edge_embed_bundle.slots import is_store
from edge_embed_bundle.store import Store
from edge_embed_devices.advising import misses
from edge_embed_devices.calibrating import board_to_predict
from edge_embed_devices.graph_work import works_of
from edge_embed_devices.prediction import BATCH_KEYS, Prediction, predict
from edge_embed_export.choosing import AUTO, Trial, export_smallest, smallest
from edge_embed_export.codecs import ENCODERS
from edge_embed_export.continuing import continued
from edge_embed_export.demo import run_demo
from edge_embed_export.distilling import DIMENSIONS, distilled
from edge_embed_export.encoders import export_encoder
from edge_embed_export.evaluation import KINDS, Evaluation, read_evaluation
from edge_embed_export.exporter import Report, export
from edge_embed_export.image_encoders import export_image_encoder
from edge_embed_export.options import (
    ALL_TABLES,
    DEFAULT_BOARD,
    DEFAULT_RECALL,
    ENCODER_GRAPHS,
    GRAPH_FORMATS,
    Hashing,
    Options,
)
from edge_embed_export.page import Page, check_page, write_page
from edge_embed_export.parents import Parent
from edge_embed_export.preparing import ORDERS, REDUCTIONS, Preparing, prepared
from edge_embed_export.pricing import DEFAULT_MAX_LOSS, GraphPrice, LossError
from edge_embed_export.sources import (
    IMAGE,
    ONNX_TEXT,
    TEXT_GRAPH,
    Reading,
    Source,
    encoder_readers,
    encoder_shown,
    read_encoder,
    read_source,
    readers,
)
from edge_embed_export.sources.encoders import EncoderSource

_DIGITS = re.compile(r"[0-9]{1,10}")
_NO_PLANE = (
    "--plane was left out: it stands in front of a table in lists (--order cluster, of 20,000 rows or more) "
    "whose codec is float32, float16 or int8"
)

# What the extra brings: asked for by name, imported where it is wrapped.
_PACKAGES = ("onnx", "flatbuffers", "safetensors", "tokenizers")


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a model's file or folder")
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="the folder to write")
    parser.add_argument("--format", choices=(*readers(), *encoder_readers()), help="default: what the content shows")
    parser.add_argument(
        "--vocab", metavar="FILE", type=Path, help="words and their counts, a line each: orders the rows"
    )
    parser.add_argument(
        "--order",
        choices=ORDERS,
        help="of the rows: frequency by the counts of --vocab or of the source, or, without counts, as the source has "
        "them, most frequent first; cluster: those that are alike together, so that a search scans a few lists of a "
        "table of 20,000 rows or more; default: source, with --vocab frequency",
    )
    parser.add_argument(
        "--recall",
        metavar="SHARE",
        type=float,
        default=DEFAULT_RECALL,
        help=f"of the ten nearest rows, what a search through lists has to find ({DEFAULT_RECALL})",
    )
    parser.add_argument(
        "--plane",
        action=argparse.BooleanOptionalAction,
        help="add 4 bits of each number to a table in lists, which a search through them scans first: half the memory "
        "traffic for half the size of int8 more on flash; default: where the rows take more than half of the board's "
        "memory",
    )
    parser.add_argument("--keep", metavar="N", type=int, help="keep the first N rows of that order")
    parser.add_argument("--keep-words", metavar="FILE", type=Path, help="keep the rows of these keys, a key a line")
    parser.add_argument("--dimensions", metavar="D", type=int, help="keep D numbers of each vector, as --reduce says")
    parser.add_argument(
        "--reduce",
        choices=REDUCTIONS,
        help="pca: on the table's principal directions; leading: its first numbers, of a model trained for that (pca)",
    )
    parser.add_argument(
        "--distill",
        action="store_true",
        help="make a static encoder of a transformer's folder: every token through the model once, then --dimensions "
        f"principal components ({DIMENSIONS}); with --eval of texts, what that loses beside the transformer is told",
    )
    parser.add_argument("--key-column", metavar="NAME", help="the column, field or array of keys")
    parser.add_argument("--vector-column", metavar="NAME", help="the column, field or array of vectors")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="let gensim open its own files, which may run any program"
    )
    parser.add_argument(
        "--codec",
        action="append",
        default=[],
        metavar="[TABLE=]CODEC",
        help=f"how vectors are stored: {', '.join(ENCODERS)}; pq:50 and rq:20 with that many codes a row (int8); "
        "of an encoder, how its weights are: float32, int8, int8-blocks; "
        f"again with TABLE=CODEC for single tables; '{AUTO}' alone tries them and takes the smallest bundle within "
        "--max-loss",
    )
    parser.add_argument(
        "--eval",
        action="append",
        default=[],
        metavar="FILE",
        help="questions with known answers, asked of the float32 and of the packed vectors: word or sentence pairs "
        "with scores, analogies, odd-one-out, labels, or a folder of queries, documents and judgements; may be given "
        f"several times, and as KIND:FILE ({', '.join(KINDS)}) where the content does not show it",
    )
    parser.add_argument(
        "--max-loss",
        type=_loss,
        metavar="LOSS",
        help="write no bundle, with exit status 1, that loses more than this in any score of --eval or, without "
        "--eval, in the share of the ten nearest neighbours that change (1 - neighbour overlap@10; "
        f"int8 changes about .01 of them); default: no limit, with --codec {AUTO} {DEFAULT_MAX_LOSS:g}",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="write a page of HTML with tables and plots of what the codec cost"
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="PATTERN",
        help="the tensors of a file that are tables, as *.weight; may be given several times",
    )
    parser.add_argument(
        "--keys",
        action="append",
        default=[],
        metavar="[TABLE=]FILE",
        help="a key a line, of each row (default: X.keys.txt)",
    )
    parser.add_argument(
        "--bag",
        action="append",
        default=[],
        metavar="[TABLE=]MODE",
        help=f"tables that are asked for bags: {', '.join(BAG_MODES)}; mean:0 leaves out row 0, which pads",
    )
    parser.add_argument(
        "--hash",
        action="append",
        default=[],
        metavar="TABLE[=FIRST:ROWS]",
        help="unknown ids and keys get one of all rows of TABLE (or of ROWS from FIRST on) by their remainder; "
        f"TABLE {ALL_TABLES} for all",
    )
    parser.add_argument(
        "--graphs", help="comma-separated, or 'none' (of tables onnx,tflite; of an encoder onnx)", metavar="FORMATS"
    )
    parser.add_argument("--board", default=DEFAULT_BOARD, help=f"whose budgets to declare ({DEFAULT_BOARD})")
    parser.add_argument("--name", help="the bundle's name; default: the output folder's")
    parser.add_argument("--version", default="1.0.0", help="the bundle's version (1.0.0)")
    parser.add_argument(
        "--collection",
        metavar="FILE",
        type=Path,
        help="lines of text to encode and search in; for an image encoder, a folder of pictures",
    )
    parser.add_argument(
        "--image-recipe",
        metavar="FILE",
        type=Path,
        help="how pictures become an image encoder's pixels, in TOML or JSON, or a preprocessor_config.json; default: "
        "what lies beside its file (X.image.toml), its metadata, or pixels as they are where it takes whole numbers",
    )
    parser.add_argument(
        "--parent",
        metavar="BUNDLE",
        type=Path,
        help="the bundle that this one follows: rows keep their places, scales and codebooks stay where they still "
        "fit, and so does the space, where the vectors of the same keys stayed alike; a delta from it is small",
    )
    parser.add_argument(
        "--drift",
        type=_loss,
        default=0.0,
        metavar="COSINE",
        help="let rows keep codes of the parent as long as that costs them at most this in the cosine with their true "
        "vectors, beyond what the codec costs; .002 makes a delta about half as large (0)",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="memory=64MiB, or lookup=200/2000 for p50/p99 in microseconds; may be given several times",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the bundle at the output; for a moment nothing stands there, so let what serves read a store",
    )


def _export(arguments: argparse.Namespace) -> int:
    memory_bytes, latency = _budgets(arguments.budget)
    format = arguments.format or encoder_shown(arguments.source)
    is_encoder, is_image = format in encoder_readers() and not arguments.distill, format == IMAGE
    if arguments.distill and format not in (None, "transformer"):
        raise RequestError(f"--distill: expected a transformer's folder, found --format {format}")
    if arguments.image_recipe and not is_image:
        raise RequestError(
            "--image-recipe: expected an image encoder (--format image) to say it of, found another source"
        )
    codecs = _by_table(arguments.codec)
    options = Options(
        target=arguments.output,
        name=arguments.name or arguments.output.resolve().name,
        version=arguments.version,
        codec=codecs.pop(ALL_TABLES, "int8"),
        codecs=codecs,
        bags={table: _bag(text) for table, text in _by_table(arguments.bag).items()},
        hashes=dict(map(_hashing, arguments.hash)),
        graphs=_graphs(arguments.graphs, ENCODER_GRAPHS if is_encoder else GRAPH_FORMATS),
        board=arguments.board,
        memory_budget_bytes=memory_bytes,
        latency_budgets=latency,
        collection=read_lines(arguments.collection) if arguments.collection and not is_image else (),
        parent=_parent(arguments),
        replace=arguments.force,
        evaluations=tuple(read_evaluation(word) for word in arguments.eval),
        max_loss=arguments.max_loss,
        recall=arguments.recall,
        plane=arguments.plane,
    )
    progress = SILENT if arguments.json else Progress()
    if arguments.report:
        check_page(arguments.report, arguments.output)
    reading = Reading(
        keys={table: Path(file) for table, file in _by_table(arguments.keys).items()},
        key_column=arguments.key_column,
        vector_column=arguments.vector_column,
        trust_pickle=arguments.trust_pickle,
        tables=tuple(arguments.table),
        vocabulary=arguments.vocab,
    )
    preparing = Preparing(
        arguments.order,
        arguments.vocab,
        arguments.keep,
        arguments.keep_words,
        None if arguments.distill else arguments.dimensions,
        arguments.reduce,
    )
    trials: tuple[Trial, ...] = ()
    source: Source | EncoderSource
    if is_encoder and format is not None:
        source = _encoder_source(arguments.source, format, reading, preparing, arguments.image_recipe)
    elif arguments.distill:
        source = _distilled_source(arguments, reading, preparing, progress)
    else:
        source = prepared(read_source(arguments.source, arguments.format, reading, progress), preparing, progress)
    if options.parent is not None and isinstance(source, Source):
        source = continued(source, options.parent, keep_places=preparing.order != "cluster")
    try:
        if isinstance(source, EncoderSource) and is_image:
            options = _as_it_is(source, options, arguments)
            if options.evaluations or options.max_loss is not None:
                raise RequestError(
                    f"{source.title}: expected no --eval or --max-loss for images, which no question is of, found one"
                )
            report = export_image_encoder(source, options, arguments.collection, progress)
        else:
            if isinstance(source, EncoderSource) and format in (TEXT_GRAPH, ONNX_TEXT):
                options = _as_it_is(source, options, arguments)
            report, trials = _exported(source, options, progress)
    except LossError as error:
        if arguments.report and error.prices:
            write_page(arguments.report, Page(options.name, source.title, error.prices, None, str(error)))
        raise
    if arguments.report:
        prices = tuple(trial.price for trial in trials if trial.price is not None) or (report.price,)
        write_page(arguments.report, Page(options.name, source.title, prices, report.price.codec))
    notes = source.notes
    if arguments.plane and not any("plane" in model.tensors for model in report.manifest.tables):
        notes = (*notes, _NO_PLANE)
    board = board_to_predict(options.board, report.manifest)
    with Bundle.open(report.path) as bundle:
        works = works_of(bundle)
    prediction = predict(report.manifest, board, works)
    notes = (*notes, *map(str, misses(report.manifest, board, works)))
    if arguments.json:
        print(json.dumps({**_report_json(report, trials, notes), "predicted": asdict(prediction)}))
    else:
        noted = (f"  note: {note}" for note in notes)
        lines = (*trial_lines(trials, report.price.codec), *report_lines(report), *prediction_lines(prediction))
        for line in (*lines, *noted):
            print(line)
    return 0


def prediction_lines(prediction: Prediction) -> list[str]:
    """Return what a board is predicted to need for a bundle, and what of that is guessed."""
    lines = [
        f"  predicted on {prediction.board}: {format_size(prediction.memory_private_bytes)} private beside numpy, "
        f"{format_size(prediction.resident_bytes)} of {format_size(prediction.flash_bytes)} on flash stay in memory"
    ]
    for operation, latency in prediction.operations.items():
        name = f"batch of {BATCH_KEYS:,}" if operation == "batch" else operation
        if latency.p50_us is None or latency.p99_us is None:
            lines.append(f"    {name}: not known, it waits for flash")
        else:
            rough = "; rough, the graph is none of a transformer" if operation in prediction.rougher else ""
            lines.append(f"    {name}: p50 {_duration(latency.p50_us)}, p99 {_duration(latency.p99_us)}{rough}")
    if prediction.guessed:
        guessed = ", ".join(prediction.guessed)
        lines.append(f"    rougher, for the profile has no {guessed}; boards calibrate on the board finds it")
    return lines


def _duration(us: float) -> str:
    return f"{us / 1000:.4g} ms" if us >= 1000 else f"{us:.3g} us"


def _encoder_source(
    path: Path, format: str, reading: Reading, preparing: Preparing, image_recipe: Path | None
) -> EncoderSource:
    if reading != Reading() or preparing != Preparing():
        raise RequestError(
            f"--format {format}: expected no options that choose tables, keys, columns, rows or dimensions beside an "
            "encoder, found some"
        )
    return read_encoder(path, format, image_recipe)


def _distilled_source(
    arguments: argparse.Namespace, reading: Reading, preparing: Preparing, progress: Progress
) -> Source:
    if reading != Reading() or preparing != Preparing():
        raise RequestError(
            "--distill: expected no options that choose tables, keys, columns or rows beside a transformer, found some"
        )
    dimensions = DIMENSIONS if arguments.dimensions is None else arguments.dimensions
    return distilled(arguments.source, dimensions, progress)


def _as_it_is(source: EncoderSource, options: Options, arguments: argparse.Namespace) -> Options:
    """Return the options for a graph of another maker: what the user left open is what the file is."""
    if options.codec == AUTO:
        raise RequestError(f"{source.title}: expected no --codec {AUTO} for a graph that stays as it is, found it")
    format, variant = source.network.original
    return replace(
        options,
        codec=options.codec if _said(arguments.codec) else variant,
        graphs=options.graphs if arguments.graphs is not None else (format,),
    )


def _said(codecs: list[str]) -> bool:
    return ALL_TABLES in _by_table(codecs)


def _exported(source: Source | EncoderSource, options: Options, progress: Progress) -> tuple[Report, tuple[Trial, ...]]:
    if isinstance(source, EncoderSource):
        if options.codec == AUTO:
            return smallest(source.variants, options, partial(export_encoder, source, progress=progress))
        return export_encoder(source, options, progress), ()
    if options.codec == AUTO:
        return export_smallest(source, options, progress)
    return export(source, options, progress), ()


def _graphs(words: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    if words is None:
        return usual
    return () if words == "none" else tuple(dict.fromkeys(words.split(",")))


def _loss(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a loss from 0 to 1, found {word!r}")
    return value


def trial_lines(trials: tuple[Trial, ...], chosen: str) -> list[str]:
    """Return the table of what each tried codec cost."""
    if not trials:
        return []
    lines = [f"  {'codec':8} {'bundle':>10} {'overlap@10':>10} {'worst loss':>10}"]
    for trial in trials:
        if trial.price is None:
            lines.append(f"  {trial.codec:8} {'refused: ' + trial.refused}")
            continue
        price = trial.price
        what, loss = price.worst
        taken = "  taken" if trial.codec == chosen else "" if trial.within else "  loses too much"
        figures = f"{format_size(price.size_bytes):>10} {price.neighbour_overlap_at_10:10.4f} {loss:10.4f}"
        lines.append(f"  {trial.codec:8} {figures}{taken} ({what})")
    return lines


def _by_table(words: list[str]) -> dict[str, str]:
    """Return what ``TABLE=WORD`` says by its table; a word alone is for all."""
    split = [word.rpartition("=") for word in words]
    unnamed = next(
        (whole for whole, (table, equals, _) in zip(words, split, strict=True) if equals and not table), None
    )
    if unnamed is not None:
        raise RequestError(f"expected a table before the =, found {unnamed!r}")
    return {table if equals else ALL_TABLES: word for table, equals, word in split}


def _bag(text: str) -> BagRecipe:
    mode, colon, row = text.partition(":")
    if mode not in BAG_MODES or (colon and not _DIGITS.fullmatch(row)):
        raise RequestError(f"expected bags like mean, or mean:0 where row 0 pads, found {text!r}")
    return BagRecipe(mode, int(row) if colon else None)


def _hashing(text: str) -> tuple[str, Hashing]:
    table, equals, rows = text.partition("=")
    first, colon, count = rows.partition(":")
    if not equals:
        return table, Hashing()
    if not colon or not _DIGITS.fullmatch(first) or not _DIGITS.fullmatch(count):
        raise RequestError(f"expected hashing like user_id or user_id=1:1000 (rows 1 to 1000), found {text!r}")
    return table, Hashing(int(first), int(count))


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not blank.

    Raises:
        RequestError: the file is absent or not UTF-8, or a line stands twice.
    """
    try:
        lines = [line.strip() for line in read_named(path, "a file of text").decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: expected lines of UTF-8 text, found: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise RequestError(f"{path}: expected at least one line of text, found none")
    twice = next((line for line, count in Counter(lines).items() if count > 1), None)
    if twice is not None:
        raise RequestError(f"{path}: expected lines that differ, found twice: {twice[:60]!r}")
    return tuple(lines)


def report_lines(report: Report) -> list[str]:
    """Return what a person wants to know of an export."""
    manifest = report.manifest
    lines = [f"{report.path}: {manifest.name} {manifest.version}, {format_size(manifest.size_bytes)} on flash"]
    for name, price in report.quality.items():
        overlap = f"neighbour overlap@10 {price.neighbour_overlap_at_10:.4f}, " if price.queries else ""
        lines.append(
            f"  {name}: vectors {format_size(price.bytes_before)} -> {format_size(price.bytes_after)}, {overlap}"
            f"cosine mean {price.mean_cosine:.6f}, worst {price.worst_cosine:.6f}"
        )
    lines += evaluation_lines(report.price.evaluations)
    lines += map(_graph_line, report.price.graphs)
    lines += evaluation_lines(report.price.teacher, "teacher", "distilled")
    for model in manifest.models:
        for graph in model.graphs:
            proven = ", ".join(f"{engine.name} {engine.version}" for engine in graph.proven) or "no engine"
            lines.append(f"  {graph.operation} {graph.blob}: proven on {proven}")
    return lines


def _graph_line(graph: GraphPrice) -> str:
    said = [f"cosine mean {graph.quality.mean_cosine:.6f}, worst {graph.quality.worst_cosine:.6f}"]
    said += [
        f"{each.name} {score.measure} loss {score.loss:.4f}" for each in graph.evaluations for score in each.scores
    ]
    return f"  {graph.blob}: {', '.join(said)}"


def evaluation_lines(evaluations: tuple[Evaluation, ...], before: str = "float32", after: str = "packed") -> list[str]:
    """Return a line per score: both sides, the loss and its interval, and how many questions were known."""
    return [
        f"  {each.name} {score.measure}: {before} {score.float32:.4f}, {after} {score.packed:.4f}, "
        f"loss {score.loss:.4f} ({score.loss_interval}), {each.known} of {each.asked} questions known"
        for each in evaluations
        for score in each.scores
    ]


def _report_json(report: Report, trials: tuple[Trial, ...], notes: tuple[str, ...]) -> dict[str, object]:
    manifest = report.manifest
    return {
        "path": str(report.path),
        "name": manifest.name,
        "version": manifest.version,
        "space": manifest.space.id,
        "size_bytes": manifest.size_bytes,
        "codec": report.price.codec,
        "quality": {name: price.to_json() for name, price in report.quality.items()},
        "evaluations": [each.to_json() for each in report.price.evaluations],
        "tried": [trial.to_json() for trial in trials],
        "notes": list(notes),
    }


def _budgets(words: list[str]) -> tuple[int | None, dict[str, LatencyBudget]]:
    memory_bytes = None
    latency = {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "memory":
            memory_bytes = parse_size(value)
            continue
        try:
            p50, p99 = map(float, value.split("/"))
            if not 0 <= p50 <= p99 < math.inf:
                raise ValueError(value)
        except ValueError as error:
            raise RequestError(
                f"expected a budget like lookup=200/2000 (p50 at most p99) or memory=64MiB, found {word!r}"
            ) from error
        latency[name] = LatencyBudget(p50, p99)
    return memory_bytes, latency


def _parent(arguments: argparse.Namespace) -> Parent | None:
    path: Path | None = arguments.parent
    if path is None:
        if arguments.drift:
            raise RequestError("--drift: expected --parent beside it, whose codes rows may keep, found none")
        return None
    bundle = Bundle.open(Store(path).active() if is_store(path) else path)
    bundle.verify()
    return Parent(bundle, arguments.drift)


def _configure_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="work in this folder and leave everything there")


def _demo(arguments: argparse.Namespace) -> int:
    progress = SILENT if arguments.json else Progress()
    return run_demo(folder=arguments.keep, as_json=arguments.json, progress=progress)


EXPORT = Command(
    "export",
    "make a bundle of a trained model",
    "edge-embed export vectors.bin -o words-1.0.0 --name words --board pi-4",
    _configure_export,
    _export,
    extra="export",
    packages=_PACKAGES,
)
DEMO = Command(
    "demo", "the whole journey on a real model", "edge-embed demo", _configure_demo, _demo, "export", _PACKAGES
)
