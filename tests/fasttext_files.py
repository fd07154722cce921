"""fastText's files written by a few lines of our own: every version and flavour, with numbers of our choice.

The layout is that of the original's ``saveModel``; ``tests/export/test_fasttext.py`` compares with files that the
original wrote, where its package is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAGIC = 793712314
WORDS = ("</s>", "board", "warm", "über", "東京", "boards")
LABELS = ("__label__hot", "__label__cold", "__label__wet")


@dataclass(frozen=True)
class Quantized:
    """Codes ``(n, m)``, the centroids of the parts, and where there are norms their codes and levels."""

    codes: NDArray[np.uint8]
    centroids: NDArray[np.float32]
    width: int
    norms: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Model:
    """What is in a file; fields may be spoilt by a test."""

    words: Sequence[str] = WORDS
    labels: Sequence[str] = ()
    dim: int = 4
    bucket: int = 50
    minn: int = 2
    maxn: int = 3
    word_ngrams: int = 1
    loss: int = 2
    model: int = 2
    version: int | None = 12
    kept: Sequence[tuple[int, int]] | None = None
    quantized: Quantized | None = None
    head: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The rows of the input matrix."""
        return len(self.words) + (self.bucket if self.kept is None else len(self.kept))

    def input(self) -> NDArray[np.float32]:
        """Return the input matrix."""
        return np.random.default_rng(1).normal(size=(self.rows, self.dim)).astype(np.float32)

    def output(self) -> NDArray[np.float32]:
        """Return the output matrix."""
        rows = len(self.labels) if self.model == 3 else len(self.words)
        return np.random.default_rng(2).normal(size=(rows, self.dim)).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Return the file."""
        is_old = self.version is None
        parts = [] if is_old else [struct.pack("<2i", MAGIC, self.version)]
        names = (
            "dim",
            "ws",
            "epoch",
            "min_count",
            "neg",
            "word_ngrams",
            "loss",
            "model",
            "bucket",
            "minn",
            "maxn",
            "lr",
        )
        values = (self.dim, 5, 5, 1, 5, self.word_ngrams, self.loss, self.model, self.bucket, self.minn, self.maxn, 100)
        parts.append(struct.pack("<12id", *(self.head.get(n, v) for n, v in zip(names, values, strict=True)), 1e-4))
        count = len(self.words) + len(self.labels)
        parts.append(struct.pack("<3iq", count, len(self.words), len(self.labels), 1000))
        if not is_old:
            parts.append(struct.pack("<q", -1 if self.kept is None else len(self.kept)))
        for i, name in enumerate((*self.words, *self.labels)):
            parts.append(name.encode() + struct.pack("<xqb", max(1, 100 - i), i >= len(self.words)))
        for pair in self.kept or ():
            parts.append(struct.pack("<2i", *pair))
        if self.quantized is not None:
            parts += [b"\1", _quantized(self.quantized, self.dim), b"\0", _dense(self.output())]
        else:
            flag = b"" if is_old else b"\0"
            parts += [flag, _dense(self.input()), flag, _dense(self.output())]
        return b"".join(parts)


def _dense(matrix: NDArray[np.float32]) -> bytes:
    return struct.pack("<2q", *matrix.shape) + matrix.astype("<f4").tobytes()


def _quantized(matrix: Quantized, dim: int) -> bytes:
    rows, m = matrix.codes.shape
    last = dim - (m - 1) * matrix.width
    parts = [
        struct.pack("<?2qi", matrix.norms is not None, rows, dim, rows * m),
        matrix.codes.tobytes(),
        struct.pack("<4i", dim, m, matrix.width, last),
        matrix.centroids.astype("<f4").tobytes(),
    ]
    if matrix.norms is not None:
        codes, levels = matrix.norms
        parts += [codes.tobytes(), struct.pack("<4i", 1, 1, 1, 1), levels.astype("<f4").tobytes()]
    return b"".join(parts)


def quantized(rows: int, dim: int, width: int, *, norms: bool) -> Quantized:
    """Return a quantized matrix of random codes."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (rows, -(-dim // width)), np.uint8)
    levels = (rng.integers(0, 256, rows, np.uint8), rng.random(256, np.float32)) if norms else None
    return Quantized(codes, rng.normal(size=256 * dim).astype(np.float32), width, levels)
