"""The bars of deltas: a continued word2vec model as its differences from the one that a board has.

    exact                                     at least 5 times smaller than the full bundle, compressed
    at most .04 fewer neighbours (--drift)    9
    pq with the parent's codebooks            7
    new words only                            80

* The reference: gensim trains word2vec (100 dimensions, its own defaults otherwise) on a folder of texts without a
  twentieth of them, and goes on with that twentieth and the most frequent of its new words, 1 % of the table.
* The full bundle is compressed by xz, all of its files as one. What a delta is beside it is one figure a row.
* Neighbours are those by the true new vectors, as every bundle states them; fewer than a plain export keeps are lost.
* The peers get the same two bundles, file by file, so they gain as much from what the exporter keeps: zstd with the old
  file as its prefix (--patch-from), bsdiff4, and content-defined chunks that only travel if the old bundle lacks them.
* The limit: the entropy of what is added to rows, each class of rows by itself, plus new rows by theirs: what a packing
  that knows nothing but single numbers cannot go below.
* Exit status 0: all bars are met; 1: one is missed.

    python benchmarks/delta.py TEXTS [--write]
"""

from __future__ import annotations

import argparse
import lzma
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import this_machine, today, write_section
from benchmarks.texts import texts as texts_of
from edge_embed.table import mapped
from edge_embed_bundle.bundle import Bundle
from edge_embed_export.continuing import continued
from edge_embed_export.deltas import make_delta
from edge_embed_export.exporter import Report, export
from edge_embed_export.options import Options
from edge_embed_export.parents import Parent, key_places
from edge_embed_export.sources import read_source

TITLE = "Deltas"
SEED = 1
MIN_COUNT = 2
SENTENCE = 50
NEW_TEXT, NEW_WORDS = 0.05, 0.01
LOSS = 0.04
# The coarsest that stays well within the bar.
DRIFT = 0.001

APPLY = """
import sys, time
from pathlib import Path
import hashlib, lzma, zlib, numpy.linalg, edge_embed.kernels
from edge_embed import memory
from edge_embed.patching import Patch, apply_delta
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.delta import DeltaFile
before, start = memory.current().private_bytes, time.perf_counter()
with memory.Peak() as peak, Bundle.open(sys.argv[1]) as parent, open(sys.argv[2], "rb") as file:
    apply_delta(Patch(parent, DeltaFile(file.fileno(), source=sys.argv[2])), Path(sys.argv[3]))
print(peak.private_bytes - before, time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Case:
    """A row of the table: what is exported how, and the bar."""

    name: str
    codec: str
    model: str
    drift: float
    bar: float


@dataclass(frozen=True)
class Found:
    """What came of it: bytes, neighbours kept, and what applying took."""

    case: Case
    full_bytes: int
    delta_bytes: int
    limit_bytes: float
    overlap: float
    plain_overlap: float
    peers: dict[str, int | str]
    peak_bytes: int
    seconds: float

    @property
    def times(self) -> float:
        """How many times smaller than the full bundle."""
        return self.full_bytes / self.delta_bytes

    @property
    def met(self) -> bool:
        """Whether the bar is kept, in bytes and in neighbours."""
        return self.times >= self.case.bar and self.plain_overlap - self.overlap <= LOSS


CASES = (
    Case("exact", "int8", "continued", 0.0, 5),
    Case(f"drift of {DRIFT:g}", "int8", "continued", DRIFT, 9),
    Case("pq, its codebooks kept", "pq", "continued", 0.0, 7),
    Case("new words only", "int8", "words", 0.0, 80),
)


def documents(folder: Path) -> Iterator[list[str]]:
    """Yield the words of each text under a folder, in lower case."""
    return map(_words, texts_of(folder))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub(r"<[^>]*>", " ", text.lower()))


def train(texts: Path, folder: Path) -> str:
    """Write the models ``old``, ``continued`` and ``words`` (the old vectors and the new words); say what they are."""
    from gensim.models import Word2Vec
    from gensim.models.keyedvectors import KeyedVectors

    files = [words for words in documents(texts) if words]
    order = np.random.default_rng(SEED).permutation(len(files))
    sizes = np.cumsum([len(files[i]) for i in order])
    newer = set(order[: 1 + int(np.searchsorted(sizes, NEW_TEXT * sizes[-1]))].tolist())
    old, new = ([each for i, each in enumerate(files) if (i in newer) == wanted] for wanted in (False, True))
    model = Word2Vec(vector_size=100, sg=1, min_count=MIN_COUNT, workers=1, seed=SEED)
    sentences = list(_sentences(old))
    model.build_vocab(sentences)
    model.train(sentences, total_examples=len(sentences), epochs=model.epochs)
    model.wv.save_word2vec_format(str(folder / "old.bin"), binary=True)
    keys, vectors = list(model.wv.index_to_key), model.wv.vectors.copy()
    counts = Counter(word for words in new for word in words)
    fresh = [word for word, _ in counts.most_common() if word not in model.wv.key_to_index]
    known = {*keys, *fresh[: round(NEW_WORDS * len(keys))]}
    more = [[word for word in sentence if word in known] for sentence in _sentences(new)]
    model.min_count = 1
    model.build_vocab(more, update=True)
    model.train(more, total_examples=len(more), epochs=model.epochs)
    model.wv.save_word2vec_format(str(folder / "continued.bin"), binary=True)
    met = len(set(counts) & set(keys))
    words = KeyedVectors(100)
    added = [key for key in model.wv.index_to_key if key not in set(keys)]
    words.add_vectors([*keys, *added], np.concatenate([vectors, model.wv[added]]))
    words.save_word2vec_format(str(folder / "words.bin"), binary=True)
    share = sum(map(len, new)) / sum(map(len, files))
    return f"{len(keys):,} words, {share:.1%} new text in which {met:,} of them stand, {len(added):,} new words"


def _sentences(texts: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    for words in texts:
        for start in range(0, len(words), SENTENCE):
            yield words[start : start + SENTENCE]


def measure(case: Case, folder: Path) -> Found:
    """Export, make the delta, apply it, and ask the peers."""
    old_folder, plain_folder = (folder / f"{case.codec}-{name}" for name in ("old", f"{case.name}-plain"))
    if not old_folder.exists():
        _export(folder / "old.bin", old_folder, case.codec)
    plain = _export(folder / f"{case.model}.bin", plain_folder, case.codec)
    target = folder / case.name
    with Bundle.open(old_folder) as old:
        parent = Parent(old, case.drift)
        made = _export(folder / f"{case.model}.bin", target, case.codec, parent)
        with Bundle.open(target) as new:
            delta = make_delta(old, new, folder / f"{case.name}.delta")
            limit = entropy_bytes(old, new)
    again = folder / f"{case.name} again"
    words = [sys.executable, "-c", APPLY, str(old_folder), str(folder / f"{case.name}.delta"), str(again)]
    peak, seconds = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    for path in target.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    kept, plain_kept = (each.quality["table"].neighbour_overlap_at_10 for each in (made, plain))
    peers = {name: _asked(peer, old_folder, target) for name, peer in PEERS.items()}
    full = len(lzma.compress(b"".join(path.read_bytes() for path in sorted(target.iterdir())), preset=9))
    return Found(case, full, delta.size_bytes, limit, kept, plain_kept, peers, int(peak), float(seconds))


def _export(source: Path, target: Path, codec: str, parent: Parent | None = None) -> Report:
    read = read_source(source)
    if parent is not None:
        read = continued(read, parent)
    if target.exists():
        raise AssertionError("each bundle has a name of its own")
    return export(read, Options(target, name="words", codec=codec, parent=parent))


def entropy_bytes(old: Bundle, new: Bundle) -> float:
    """Return what single numbers of changed and of new rows take at least, rows of one size of change by themselves."""
    model, before = new.manifest.tables[0], old.manifest.tables[0]
    rows, old_rows = mapped(new, model.tensors["rows"]), mapped(old, before.tensors["rows"])
    offsets, data = (mapped(new, model.tensors[name]) for name in ("key_offsets", "key_bytes"))
    keys = [data[a:b].tobytes() for a, b in pairwise(offsets.tolist())]
    places = key_places(old, before, keys, len(rows))
    known = np.flatnonzero(places >= 0)
    added = (rows[known].astype(np.int16) - old_rows[places[known]]) % 256
    added = added[added.any(axis=1)]
    signed = (added + 128) % 256 - 128
    sizes = np.floor(np.log2(np.abs(signed).mean(axis=1))).astype(int)
    steps = np.gcd.reduce(signed, axis=1)
    kinds = np.unique(np.stack([sizes, steps], axis=1), axis=0)
    changed = sum(_entropy(added[(sizes == size) & (steps == step)]) for size, step in kinds.tolist())
    return changed + _entropy(rows[places < 0])


def _entropy(numbers: NDArray[np.generic]) -> float:
    _, counts = np.unique(numbers, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8) if numbers.size else 0.0


Peer = Callable[[dict[str, bytes], dict[str, bytes]], int]


def _asked(peer: Peer, old: Path, new: Path) -> int | str:
    files = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in (old, new)]
    try:
        return peer(*files)
    except ImportError as error:
        return f"absent: {error}"


def zstd_patch(old: dict[str, bytes], new: dict[str, bytes]) -> int:
    """Return the bytes of ``zstd -19 --patch-from``."""
    import zstandard

    total = 0
    for name, data in new.items():
        prefix = old.get(name, b"")
        size = max(len(data) + len(prefix), 1)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            19, source_size=len(data), window_log=max(10, size.bit_length()), enable_ldm=True
        )
        prefixed = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
        compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefixed)
        total += len(compressor.compress(data))
    return total


def bsdiff(old: dict[str, bytes], new: dict[str, bytes]) -> int:
    """Return the bytes of bsdiff's patches."""
    import bsdiff4

    return sum(len(bsdiff4.diff(old.get(name, b""), data)) for name, data in new.items())


def chunks(old: dict[str, bytes], new: dict[str, bytes]) -> int:
    """Return the bytes of those chunks, compressed, that the old bundle has not (FastCDC, 4 KiB on average)."""
    import hashlib

    from fastcdc import fastcdc

    def cut(files: dict[str, bytes]) -> dict[bytes, bytes]:
        pieces = (bytes(each.data) for data in files.values() for each in fastcdc(data, 1024, 4096, 16384, fat=True))
        return {hashlib.sha256(piece).digest(): piece for piece in pieces}

    known = cut(old)
    missing = [piece for digest, piece in cut(new).items() if digest not in known]
    return len(lzma.compress(b"".join(missing), preset=9)) + 32 * len(cut(new))


PEERS: dict[str, Peer] = {"zstd --patch-from": zstd_patch, "bsdiff4": bsdiff, "chunks": chunks}


def report(found: Sequence[Found], said: str) -> str:
    """Return the section."""
    lines = [
        f"{today()}, word2vec 100-d: {said}; full bundles compressed by xz.",
        f"{this_machine()}",
        "",
        "In brackets: how many times smaller than the full bundle, compressed.",
        "",
        f"| delta | full (KiB) | edge-embed (KiB) | {' | '.join(f'{name} (KiB)' for name in PEERS)} "
        "| neighbour overlap@10, plain export | with this one | applied: peak (MiB) | ms | at least | |",
        f"|---|---:|---:|{'---:|' * len(PEERS)}---:|---:|---:|---:|---:|---|",
    ]
    for each in found:
        peers = [
            size if isinstance(size, str) else f"{size / 1024:.0f} ({each.full_bytes / size:.1f}x)"
            for size in each.peers.values()
        ]
        lines.append(
            f"| {each.case.name} | {each.full_bytes / 1024:.0f} | {each.delta_bytes / 1024:.1f} ({each.times:.2f}x) | "
            f"{' | '.join(peers)} | {each.plain_overlap:.4f} | {each.overlap:.4f} | {each.peak_bytes / 2**20:.1f} | "
            f"{1000 * each.seconds:.0f} | {each.case.bar:g}x | {'met' if each.met else 'missed'} |"
        )
    limits = "; ".join(f"{each.case.name} {each.limit_bytes / 1024:.0f} KiB" for each in found)
    return "\n".join([*lines, "", f"* **The limit.** The entropy of the rows' numbers alone: {limits}."])


def main() -> int:
    """Train, measure, print the section, write it where that is asked for, and return whether a bar was missed."""
    parser = argparse.ArgumentParser(description="a continued model as its differences from the installed one")
    parser.add_argument("texts", type=Path, help="a folder of .txt, .json and .zip files")
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as folder:
        said = train(arguments.texts, Path(folder))
        found = []
        for case in CASES:
            found.append(measure(case, Path(folder)))
            print(f"{time.monotonic() - start:4.0f} s  {case.name}: {found[-1].times:.2f}", file=sys.stderr)
    section = report(found, said)
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if all(each.met for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
