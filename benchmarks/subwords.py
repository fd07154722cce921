"""The bar for fastText: an unsupervised model in a tenth of its bytes, still with vectors for words that it never saw.

    the whole bundle is at most 1/10 of the .bin, and the mean cosine of unknown words with the original is .95 or more

* fastText itself is trained on a folder of texts (plain text, JSON and zip files of them), 100 dimensions and 200,000
  buckets, words from five occurrences on. Unknown words are those that stand in the texts more rarely: real words.
* The bundle's answers are compared with ``get_word_vector`` of the package fasttext, on the same file.
* ``drop`` is what a smaller table would cost: buckets that no known word uses are zeros. They were never trained, but
  the original adds their noise and divides by their number; what leaving them out costs is measured.
* Exit status 0: met by a codec at least; 1: missed.

    python benchmarks/subwords.py TEXTS [--codecs pq:25,pq:34] [--write]
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fasttext
import numpy as np
from numpy.typing import NDArray

import edge_embed
from benchmarks.common import this_machine, today, write_section
from benchmarks.texts import texts
from edge_embed.subwords import ngram_buckets
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source

TITLE = "fastText's unknown words"
DIMENSIONS, BUCKETS, MIN_COUNT = 100, 200_000, 5
CODECS = ("float32", "int8", "pq:20", "pq:25", "pq:34")
SMALLER, COSINE = 10, 0.95
_UNKNOWN_WORDS = 5_000


@dataclass(frozen=True)
class Found:
    """What a codec made of the model: bytes of the bundle, and cosines of unknown and of known words."""

    codec: str
    size_bytes: int
    unknown: NDArray[np.float64]
    known: NDArray[np.float64]

    def met(self, original_bytes: int) -> bool:
        """Whether the codec keeps both parts of the bar."""
        return self.size_bytes * SMALLER <= original_bytes and float(self.unknown.mean()) >= COSINE


def words_of(folder: Path) -> list[str]:
    """Return the words of all texts: runs of letters, in lower case."""
    return [word for text in texts(folder) for word in re.findall(r"[^\W\d_]+", text.lower())]


def cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return found


def measure(
    path: Path, codec: str, unknown: Sequence[str], known: Sequence[str], original: fasttext.FastText._FastText
) -> Found:
    """Export the model with a codec and compare its answers."""
    bundle = path.with_name(codec.replace(":", "-"))
    export(read_source(path), Options(target=bundle, name="subwords", codec=codec, graphs=()))
    with edge_embed.open(bundle) as runtime:
        found = [
            cosines(runtime.lookup(words), np.stack([original.get_word_vector(word) for word in words]))
            for words in (unknown, known)
        ]
    return Found(codec, sum(file.stat().st_size for file in bundle.iterdir()), found[0], found[1])


def without_unused(
    path: Path, unknown: Sequence[str], known: Sequence[str], original: fasttext.FastText._FastText
) -> str:
    """Return the sentence about leaving out buckets that no known word uses."""
    table, buckets = read_source(path).tables
    recipe = table.subwords
    if recipe is None:
        raise AssertionError("an unsupervised model with buckets has subwords")
    used = np.zeros(recipe.buckets, bool)
    for word in known:
        used[ngram_buckets(word.encode(), recipe.minn, recipe.maxn, recipe.buckets)] = True
    rows = buckets.vectors[:]
    rows[~used] = 0
    parts = [ngram_buckets(word.encode(), recipe.minn, recipe.maxn, recipe.buckets) for word in unknown]
    ours = np.stack([rows[of].sum(axis=0) if of else np.zeros(DIMENSIONS, np.float32) for of in parts])
    found = cosines(ours, np.stack([original.get_word_vector(word) for word in unknown]))
    return (
        f"`drop`: no known word uses {1 - used.mean():.0%} of the buckets; without them an unknown word's cosine "
        f"is {found.mean():.4f} in the mean, {np.percentile(found, 1):.4f} at the first percentile."
    )


def report(path: Path, found: Sequence[Found], words: int, known: int, unknown: int, dropped: str) -> str:
    """Return the section."""
    size = path.stat().st_size
    lines = [
        f"{today()}, fastText skip-gram on {words:,} words of text, {known:,} known words, {BUCKETS:,} buckets, "
        f"{DIMENSIONS} dimensions: a .bin of {size / 2**20:.1f} MiB. {unknown:,} unknown words.",
        f"{this_machine()}.",
        "",
        "| codec | bundle (MiB) | smaller | unknown words: mean cosine | 1st percentile | worst "
        "| known words: mean | bar |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for each in found:
        unknown_words = (each.unknown.mean(), np.percentile(each.unknown, 1), each.unknown.min())
        lines.append(
            f"| `{each.codec}` | {each.size_bytes / 2**20:.1f} | {size / each.size_bytes:.1f}x "
            + "".join(f"| {cosine:.4f} " for cosine in (*unknown_words, each.known.mean()))
            + f"| {'met' if each.met(size) else 'missed'} |"
        )
    return "\n".join([*lines, "", f"* {dropped}"])


def main() -> int:
    """Train, measure, print the section, write it where that is asked for, and return whether the bar was missed."""
    parser = argparse.ArgumentParser(description="unknown words of a fastText model in a tenth of its bytes")
    parser.add_argument("texts", type=Path, help="a folder of .txt, .json and .zip files")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as folder:
        words = words_of(arguments.texts)
        corpus, path = Path(folder) / "corpus.txt", Path(folder) / "model.bin"
        corpus.write_text("\n".join(" ".join(words[i : i + 50]) for i in range(0, len(words), 50)), encoding="utf-8")
        fasttext.train_unsupervised(
            str(corpus), dim=DIMENSIONS, bucket=BUCKETS, minCount=MIN_COUNT, epoch=2, thread=2, verbose=0
        ).save_model(str(path))
        original = fasttext.load_model(str(path))
        known = [word for word in original.words if word != "</s>"]
        rare = sorted(word for word, count in Counter(words).items() if count < MIN_COUNT and len(word) >= 3)
        unknown = [rare[i] for i in np.linspace(0, len(rare) - 1, min(len(rare), _UNKNOWN_WORDS)).astype(int).tolist()]
        found = [measure(path, codec, unknown, known, original) for codec in arguments.codecs.split(",")]
        dropped = without_unused(path, unknown, known, original)
        met = any(each.met(path.stat().st_size) for each in found)
        section = report(path, found, len(words), len(known), len(unknown), dropped)
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
