"""Files of words and numbers as their tools write them, on their way to a board; real ones where they are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed_bundle.store import Store
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source
from tests.fakes.probes import FakeProbe
from tests.making import keys_of, vectors_of

WORDS = ("</s>", "the", "東京", "new_york", "naïve", "1900")
VECTORS = np.random.default_rng(5).normal(size=(6, 12)).astype(np.float32)

Numbers = NDArray[np.float32]


def _lines(
    header: str, number: Callable[[float], str] = repr, end: str = "\n", words: tuple[str, ...] = WORDS
) -> bytes:
    rows = (
        " ".join([word, *map(number, row)]) for word, row in zip(words, VECTORS.astype(float).tolist(), strict=True)
    )
    return (header + "".join(row + end for row in rows)).encode()


def _binary(newline: bytes) -> bytes:
    rows = (word.encode() + b" " + row.tobytes() + newline for word, row in zip(WORDS, VECTORS, strict=True))
    return b"6 12\n" + b"".join(rows)


def _glove_binary() -> bytes:
    halves = np.hstack([VECTORS.astype(np.float64) / 2, np.zeros((6, 1))])
    return np.concatenate([halves, halves]).tobytes()


#: What each tool writes: the format it is found to be, the bytes, and how far its numbers are from the trained ones.
TOOLS: Mapping[str, tuple[str | None, Callable[[], bytes], float]] = {
    "word2vec -binary 1": (None, lambda: _binary(b"\n"), 0),
    "gensim, save_word2vec_format(binary=True)": (None, lambda: _binary(b""), 0),
    "word2vec -binary 0": (None, lambda: _lines("6 12\n", "{:f} ".format, " \n"), 1e-6),
    "gensim, save_word2vec_format": (None, lambda: _lines("6 12\n"), 0),
    "GloVe": (None, lambda: _lines("", "{:f}".format), 1e-6),
    "GloVe -write-header 1": (None, lambda: _lines("6 12\n", "{:f}".format), 1e-6),
    "GloVe -binary 1": ("glove-binary", _glove_binary, 0),
    "fastText .vec": (None, lambda: _lines("6 12\n", "{:.5g}".format, " \n"), 1e-4),
    "LINE, text": (None, lambda: _lines("6 12\n", "{:f}".format, " \n"), 1e-6),
    "LINE -binary 1": (None, lambda: _binary(b"\n"), 0),
    "node2vec .emb": (None, lambda: _lines("6 12\n", "{:.9g}".format), 1e-7),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_what_a_tool_wrote_is_served_by_a_board(tmp_path: Path, tool: str, codec: str) -> None:
    format, write, off = TOOLS[tool]
    path = tmp_path / "vectors"
    path.write_bytes(write())
    (tmp_path / "vocab.txt").write_text("".join(f"{word} {99 - i}\n" for i, word in enumerate(WORDS)), encoding="utf-8")
    source = read_source(path, format)
    report = export(source, Options(tmp_path / "bundle", "words", codec=codec, graphs=()))
    Store(tmp_path / "store").install(report.path, FakeProbe())
    with edge_embed.open(tmp_path / "store") as runtime:
        found = runtime.lookup(list(WORDS))
        assert runtime.search("the", k=2).keys == _nearest(1, 2)
    step = np.abs(VECTORS).max(axis=1, keepdims=True) / 120 if codec == "int8" else 0
    assert (np.abs(found - VECTORS) <= off + 0.51 * step + 1e-7).all()


def _nearest(row: int, k: int) -> tuple[str, ...]:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    scores = unit @ unit[row]
    scores[row] = -np.inf
    return tuple(WORDS[i] for i in np.argsort(-scores)[:k])


#: Real files: rows, dimensions and a key that each of them has.
REAL = {
    "vectors/crime-and-punishment.vec": (291, 5, "и"),
    "vectors/test_glove.txt": (76, 50, "the"),
    "vectors/lee_fasttext.vec": (1762, 10, "the"),
    "vectors/emoji2vec.bin": (1661, 300, "🐍"),
    "vectors/euclidean_vectors.bin": (2747, 10, "the"),
    "embeddings/deepwalk_citeseer_d128.bin": (3279, 128, "1"),
    "embeddings/zh_sgns_d100_top10k.bin": (10_000, 100, "中国"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_read_whole(shared_data: Path, name: str) -> None:
    rows, dimensions, key = REAL[name]
    source = read_source(shared_data / name)
    assert vectors_of(source).shape == (rows, dimensions)
    assert key.encode() in keys_of(source)
