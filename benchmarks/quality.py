"""What each codec costs on real tables, beside what this project promised; writes ``docs/quality.md``.

    python benchmarks/quality.py DATA [--write]

DATA holds ``embeddings/`` (a word2vec table, DeepWalk tables of CiteSeer and of PPI), ``wordsim-en/``, ``analogy-en/``
and ``graphs/``. Every figure goes the way of a user: export, then ask the bundle's runtime. Exit status 1: a target is
missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import today
from edge_embed.progress import SILENT
from edge_embed.runtime import Runtime
from edge_embed_export.evaluation import Task, read_evaluation
from edge_embed_export.exporter import Report, export
from edge_embed_export.matrix import Matrix
from edge_embed_export.options import Options
from edge_embed_export.proving import Decoded
from edge_embed_export.quality import SAMPLE_QUERIES, neighbour_overlaps
from edge_embed_export.sources import read_source

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"

WORDS = "embeddings/w2v_sgns_d100_top20k.bin"
MEN = "EN-MEN-TR-3k.txt"
WORDSIM = "EN-WS-353-ALL.txt"
ANALOGIES = "questions-words.txt"
WORD_FILES = (f"wordsim-en/{MEN}", f"wordsim-en/{WORDSIM}", f"analogy-en/{ANALOGIES}")
WORD_CODECS = ("float32", "float16", "int8", "int4", "pq:50", "pq:39", "pq:25", "opq:25", "pq:20", "rq:20")
NODES = {
    "CiteSeer": ("embeddings/deepwalk_citeseer_d128.bin", "graphs/citeseer/labels.txt"),
    "PPI": ("embeddings/deepwalk_ppi_d128.bin", "graphs/node2vec_PPI/node2vec_PPI_labels.txt"),
}
NODE_CODECS = ("float32", "float16", "int8", "int4", "pq:64")

#: What a plain script with faiss reached: codec -> bytes a row, neighbour overlap@10, MEN.
TO_MATCH = {
    "float32": (400, 1.0, 0.656),
    "int8": (104, 0.990, 0.656),
    "pq:50": (51, 0.890, 0.654),
    "int4": (58, 0.862, 0.654),
    "pq:25": (26, 0.671, 0.628),
    "rq:20": (21, 0.731, 0.640),
    "pq:20": (21, 0.578, 0.619),
}


@dataclass(frozen=True)
class Row:
    """One codec of one table."""

    codec: str
    bytes_a_row: float
    bytes_in_all: int
    overlap: float
    scores: Mapping[str, tuple[float, float, str]]  # score, loss, its interval; by file and measure


@dataclass(frozen=True)
class Target:
    """One promise: how it reads, what was found, whether it holds."""

    text: str
    found: str
    reached: bool


def measure(source: Path, codecs: Sequence[str], tasks: Sequence[Task]) -> Iterator[Row]:
    """Export a source by each codec and ask its bundles."""
    read = read_source(source)
    for codec in codecs:
        with tempfile.TemporaryDirectory() as folder:
            options = Options(Path(folder) / "bundle", "quality", codec=codec, graphs=(), evaluations=tuple(tasks))
            print(f"{source.name} {codec}", file=sys.stderr, flush=True)
            report = export(read, options)
            with Runtime(options.target) as runtime:
                overlap = overlap_of_all(read.tables[0].vectors, runtime)
            yield _row(codec, report, overlap)


def overlap_of_all(source: Matrix, runtime: Runtime) -> float:
    """Return the mean neighbour overlap@10 over every row that is not zeros; an export samples 1,000 of them."""
    queries = np.flatnonzero(source[:].any(axis=1))
    decoded = Decoded(runtime, runtime.manifest.tables[0])
    some = range(0, len(queries), SAMPLE_QUERIES)
    shares = [neighbour_overlaps(source, decoded, queries[i : i + SAMPLE_QUERIES], SILENT) for i in some]
    return float(np.concatenate(shares).mean())


def _row(codec: str, report: Report, overlap: float) -> Row:
    model = report.manifest.tables[0]
    parts = ("rows", "scales", "length_codes")
    row_bytes = sum(model.tensors[name].size_bytes for name in parts if name in model.tensors)
    quality = report.quality[model.name]
    scores = {
        f"{each.name} {score.measure}": (score.packed, score.loss, str(score.loss_interval))
        for each in report.price.evaluations
        for score in each.scores
    }
    return Row(codec, row_bytes / model.rows, quality.bytes_after, overlap, scores)


def targets(words: Mapping[str, Row], nodes: Mapping[str, Mapping[str, Row]]) -> list[Target]:
    """Return every promise beside what was found."""
    found = []
    for name, measured in ((WORDSIM, "spearman"), (MEN, "spearman"), (ANALOGIES, "accuracy")):
        found.append(_loss(words["int8"], f"{name} {measured}", 0.002))
    for dataset, rows in nodes.items():
        found.append(_loss(rows["int8"], f"{Path(NODES[dataset][1]).name} micro-F1", 0.005, f"{dataset}: "))
    found.append(_loss(words["int4"], f"{MEN} spearman", 0.01))
    tenth = [row for row in words.values() if row.codec.startswith("pq") and row.bytes_a_row <= 40]
    found.append(_loss(max(tenth, key=lambda row: row.bytes_a_row), f"{MEN} spearman", 0.015, "a tenth of float32: "))
    for codec, (row_bytes, overlap, men) in TO_MATCH.items():
        row = words[codec]
        score = row.scores[f"{MEN} spearman"][0]
        # The targets have three digits.
        held = row.bytes_a_row <= row_bytes + 0.5 and round(row.overlap, 3) >= overlap and round(score, 3) >= men
        found.append(
            Target(
                f"{codec}: at most {row_bytes} bytes a row, overlap@10 at least {overlap:.3f}, MEN at least {men:.3f}",
                f"{row.bytes_a_row:.0f}, {row.overlap:.4f}, {score:.4f}",
                held,
            )
        )
    return found


def _loss(row: Row, score: str, ceiling: float, of: str = "") -> Target:
    _, loss, interval = row.scores[score]
    text = f"{of}{row.codec} loses at most {ceiling:g} on {score}"
    return Target(text, f"{loss:.4f} ({interval})", loss <= ceiling)


def word_table(rows: Mapping[str, Row]) -> list[str]:
    """Return the lines of the table of codecs."""
    lines = [
        "| codec | bytes a row | with codebooks (KiB) | neighbour overlap@10 | MEN | WordSim-353 | Google analogies |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.values():
        scores = (row.scores[f"{name} {measured}"] for name, measured in _WORD_SCORES)
        cells = " | ".join(f"{score:.4f} ({_signed(-loss)})" for score, loss, _ in scores)
        lines.append(
            f"| `{row.codec}` | {row.bytes_a_row:.0f} | {row.bytes_in_all / 1024:.0f} | {row.overlap:.4f} | {cells} |"
        )
    return lines


_WORD_SCORES = ((MEN, "spearman"), (WORDSIM, "spearman"), (ANALOGIES, "accuracy"))


def node_table(nodes: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Return the lines of the table of graphs."""
    lines = [
        "| graph | codec | bytes a row | micro-F1 | macro-F1 | loss in micro-F1, 95 % |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for dataset, rows in nodes.items():
        file = Path(NODES[dataset][1]).name
        for row in rows.values():
            micro, loss, interval = row.scores[f"{file} micro-F1"]
            macro = row.scores[f"{file} macro-F1"][0]
            cells = f"{micro:.4f} | {macro:.4f} | {_signed(loss)} ({interval})"
            lines.append(f"| {dataset} | `{row.codec}` | {row.bytes_a_row:.0f} | {cells} |")
    return lines


def _signed(value: float) -> str:
    return f"{value + 0.0:+.4f}" if value else "0"


def page(words: Mapping[str, Row], nodes: Mapping[str, Mapping[str, Row]]) -> str:
    """Return the page."""
    promised = targets(words, nodes)
    reached = sum(target.reached for target in promised)
    packages = ("numpy", "faiss-cpu", "scikit-learn", "scipy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return "\n".join(
        [
            "# What the codecs cost",
            "",
            "Written by `python benchmarks/quality.py DATA --write`; its figures are never typed. "
            f"{today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
            "",
            "## Words",
            "",
            "word2vec (skip-gram, gensim), 20,000 words x 100 dimensions. In brackets: less or more than float32.",
            "Bytes a row are codes, scales and lengths; codebooks stand in the next column with everything else.",
            "",
            *word_table(words),
            "",
            "## Nodes",
            "",
            "DeepWalk, 128 dimensions; one logistic regression a label, half of the nodes train it, five fixed splits;",
            "a node gets as many labels as it has.",
            "",
            *node_table(nodes),
            "",
            f"## Targets: {reached} of {len(promised)} reached",
            "",
            "| target | found | |",
            "|---|---|---|",
            *(f"| {one.text} | {one.found} | {'reached' if one.reached else '**not reached**'} |" for one in promised),
            "",
            "Bytes, overlap and MEN of the last seven are what a plain script with faiss reached on the same table.",
            "",
            "## How to read the figures",
            "",
            "* *Neighbour overlap@10*: of a row's ten nearest by float32, the share that are among the ten nearest by",
            "  the packed vectors, over all rows (an export samples 1,000 of them). The strictest figure: most of what",
            "  it loses are neighbours that were almost as near.",
            "* A word is looked up as it stands, else in lower case. Questions with an unknown word are left out.",
            "* Losses are float32 less packed; the interval is the bootstrap's 95 % over the questions, the same ones",
            "  drawn for both sides. Where it reaches over 0 the questions cannot tell the two apart.",
            "* pq cuts a row into equal parts, so `pq:39` of 100 dimensions are 34 parts of 3.",
            "* faiss trains the codebooks of pq and rq; another CPU may make others, and move the last digits.",
            "",
        ]
    )


def main() -> int:
    """Measure, print or write the page, and say whether every target is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[1])}")
    arguments = parser.parse_args()
    data: Path = arguments.data
    tasks = [read_evaluation(str(data / name)) for name in WORD_FILES]
    words = {row.codec: row for row in measure(data / WORDS, WORD_CODECS, tasks)}
    nodes = {
        name: {row.codec: row for row in measure(data / table, NODE_CODECS, [read_evaluation(str(data / labels))])}
        for name, (table, labels) in NODES.items()
    }
    text = page(words, nodes)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0 if all(target.reached for target in targets(words, nodes)) else 1


if __name__ == "__main__":
    sys.exit(main())
