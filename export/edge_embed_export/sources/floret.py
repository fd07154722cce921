"""floret's ``.vec``: one table of buckets, in which every word is found by the hashes of its parts.

A header of eight fields (buckets, dimensions, shortest and longest n-gram, hashes, their seed, what a word begins and
ends with), then a line a bucket: its number and its vector, in order (``saveFloretVectors`` of
https://github.com/explosion/floret). The file names no word, so the table of words is empty and each is made of its
parts.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NoReturn

import numpy as np

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_bundle.manifest import BloomRecipe, SubwordRecipe
from edge_embed_export.sources import TABLE, Source, SourceTable, SourceText
from edge_embed_export.sources.text_vectors import numbered_rows

#: The table that holds the buckets, beside the one that words are asked of.
BUCKETS = "subwords"

_MAX_TOKENS = 1_000_000
_LETTERS_CEILING = 1_000
_HEADER_CEILING_BYTES = 200
_HEADER = re.compile(rb"%b (\S{1,40}) (\S{1,40})[ \r]*" % b" ".join([rb"([0-9]{1,10})"] * 6))


def looks_like_floret(line: bytes) -> bool:
    """Tell whether a file's first line is floret's header."""
    return _HEADER.fullmatch(line) is not None


def read_floret(path: Path, progress: Progress = SILENT) -> Source:
    """Read a table of buckets; see ``sources.read_source``."""
    with path.open("rb") as file:
        line = file.readline(_HEADER_CEILING_BYTES)
        match = _HEADER.fullmatch(line.removesuffix(b"\n"))
        if match is None:
            _fail(path, "floret's header of eight fields", repr(line[:60]))
        buckets, dimensions, minn, maxn, hashes, seed = map(int, match.groups()[:6])
        size = path.stat().st_size
        # A number and the space before it are two bytes at least, of every one.
        if not buckets or not dimensions or 2 * buckets * dimensions > size:
            _fail(path, f"buckets and dimensions that a file of {size} bytes can hold", f"{buckets} x {dimensions}")
        if not (minn <= maxn <= _LETTERS_CEILING and 1 <= hashes <= 4 and seed < 2**32):
            _fail(
                path, "n-grams from short to long, 1 to 4 hashes, a seed of 32 bits", f"{minn} {maxn} {hashes} {seed}"
            )
        try:
            begin, end = match[7].decode(), match[8].decode()
        except UnicodeDecodeError:
            _fail(path, "marks of words in UTF-8", f"{match[7]!r} and {match[8]!r}")
        vectors, weights = numbered_rows(path, file, dimensions, buckets, progress)
    bloom = BloomRecipe(hashes, seed, begin, end)
    recipe = SubwordRecipe("floret", "words", BUCKETS, buckets, minn, maxn, 1, bloom)
    described = {"subwords": recipe.to_json()}
    digest = hashlib.sha256(weights.encode()).hexdigest()
    words = SourceTable(
        name=TABLE,
        keys=(),
        vectors=np.zeros((0, dimensions), np.float32),
        weights_digest=digest,
        recipe=described,
        text=SourceText(tokenizer=None, normalize=False, max_tokens=_MAX_TOKENS),
        subwords=recipe,
    )
    table = SourceTable(BUCKETS, None, vectors, digest, described, is_helper=True)
    return Source(path.name, (words, table))


def _fail(path: Path, expected: str, found: str) -> NoReturn:
    raise RequestError(f"{path}: expected {expected}, found {found}")
