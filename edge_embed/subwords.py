"""Words out of their parts, as fastText makes them: a word's own row, and those of its n-grams by their hash.

Bojanowski, Grave, Joulin and Mikolov, "Enriching Word Vectors with Subword Information", TACL 5, 2017. The rules are
those of the original (``dictionary.cc``, ``fasttext.cc`` of version 0.9.2), to the order of every addition in float32,
so rows that are stored as float32 answer with its bits:

 * a word is ``<word>``; its n-grams have ``minn`` to ``maxn`` letters, a letter being a run of UTF-8; ``<`` and ``>``
   alone are none; ``</s>``, the end of a line, has no n-grams;
 * a bucket is the 32-bit FNV-1a hash, for which a byte from 128 on counts as a negative number, modulo ``buckets``;
   a pruned table keeps some buckets, the n-grams of the others are left out;
 * a vector is the sum of its parts times the rounded inverse of their number.

floret (https://github.com/explosion/floret) keeps no words: a word and each of its n-grams is found in one table of
buckets by up to four hashes, and the word's vector is the mean of all those rows.

A model says by ``rows`` which of two things its rows are. ``words``: a row is a word's whole vector, and parts are
added up for unknown words alone. ``parts``: a row is one part, and every word is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_embed.kernels import add_in_order
from edge_embed_bundle.manifest import BloomRecipe, SubwordRecipe

#: The end of a line, and what the name of a label begins with.
END = b"</s>"
LABEL = b"__label__"

#: Parts that are decoded together: they bound the private memory of an endless word.
_BATCH_PARTS = 1024

_FNV_OFFSET, _FNV_PRIME, _MASK = 2166136261, 16777619, 0xFFFFFFFF
#: A byte as the original's ``int8_t`` becomes a ``uint32_t``.
_EXTENDED = tuple(byte if byte < 128 else byte | 0xFFFFFF00 for byte in range(256))
_WORD_NGRAM_FACTOR = 116049371

_MASK64 = (1 << 64) - 1
_MURMUR_1, _MURMUR_2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

Vector = NDArray[np.float32]
Decode = Callable[[NDArray[np.int64]], Vector]


def hash_bytes(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash of bytes, each of them sign-extended."""
    found = _FNV_OFFSET
    for byte in data:
        found = ((found ^ _EXTENDED[byte]) * _FNV_PRIME) & _MASK
    return found


def ngram_buckets(word: bytes, minn: int, maxn: int, buckets: int) -> list[int]:
    """Return the bucket of each n-gram of a word, in the original's order: by first letter, then by length."""
    if word == END or maxn < 1 or not buckets:
        return []
    data = b"<%s>" % word
    # Where letters begin: not at the bytes that continue one.
    starts = [i for i, byte in enumerate(data) if byte & 0xC0 != 0x80]
    ends = [*starts[1:], len(data)]
    found = []
    for first, start in enumerate(starts):
        hashed, at = _FNV_OFFSET, start
        for n, end in enumerate(ends[first : first + maxn], 1):
            for byte in data[at:end]:
                hashed = ((hashed ^ _EXTENDED[byte]) * _FNV_PRIME) & _MASK
            at = end
            if n >= minn and not (n == 1 and (start == 0 or end == len(data))):
                found.append(hashed % buckets)
    return found


def word_ngram_buckets(hashes: Sequence[int], length: int, buckets: int) -> list[int]:
    """Return the bucket of each run of 2 to ``length`` words, from the words' hashes."""
    signed = [value - (1 << 32) if value >> 31 else value for value in hashes]
    found = []
    for first in range(len(signed)):
        run = signed[first] & 0xFFFFFFFFFFFFFFFF
        for value in signed[first + 1 : first + length]:
            run = (run * _WORD_NGRAM_FACTOR + value) & 0xFFFFFFFFFFFFFFFF
            found.append(run % buckets)
    return found


def murmur3(data: bytes, seed: int) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of MurmurHash3 (x64, 128 bits; Austin Appleby, public domain) of bytes."""
    low = high = seed
    whole = len(data) - len(data) % 16
    for at in range(0, whole, 16):
        low ^= _scrambled(int.from_bytes(data[at : at + 8], "little"), _MURMUR_1, 31, _MURMUR_2)
        low = ((_turned(low, 27) + high) * 5 + 0x52DCE729) & _MASK64
        high ^= _scrambled(int.from_bytes(data[at + 8 : at + 16], "little"), _MURMUR_2, 33, _MURMUR_1)
        high = ((_turned(high, 31) + low) * 5 + 0x38495AB5) & _MASK64
    high ^= _scrambled(int.from_bytes(data[whole + 8 :], "little"), _MURMUR_2, 33, _MURMUR_1)
    low ^= _scrambled(int.from_bytes(data[whole : whole + 8], "little"), _MURMUR_1, 31, _MURMUR_2)
    low = ((low ^ len(data)) + (high ^ len(data))) & _MASK64
    high = ((high ^ len(data)) + low) & _MASK64
    low, high = _finished(low), _finished(high)
    low = (low + high) & _MASK64
    high = (high + low) & _MASK64
    return low & _MASK, low >> 32, high & _MASK, high >> 32


def _scrambled(word: int, first: int, by: int, second: int) -> int:
    return (_turned(word * first & _MASK64, by) * second) & _MASK64


def _turned(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & _MASK64


def _finished(value: int) -> int:
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & _MASK64
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK64
    return value ^ (value >> 33)


def bloom_rows(word: bytes, minn: int, maxn: int, buckets: int, bloom: BloomRecipe) -> list[int]:
    """Return the rows of a word as floret finds them: for the whole word and each n-gram, one by each hash.

    The n-grams are fastText's, of the word between its own marks; a hash is a word of one MurmurHash3.
    """
    if word == END:
        return []
    marked = bloom.begin.encode() + word + bloom.end.encode()
    parts = [marked, *_ngrams(marked, minn, maxn)]
    return [value % buckets for part in parts for value in murmur3(part, bloom.seed)[: bloom.hashes]]


def _ngrams(data: bytes, minn: int, maxn: int) -> Iterator[bytes]:
    starts = [i for i, byte in enumerate(data) if byte & 0xC0 != 0x80]
    ends = [*starts[1:], len(data)]
    for first, start in enumerate(starts):
        for n, end in enumerate(ends[first : first + maxn], 1):
            if n >= minn and not (n == 1 and (start == 0 or end == len(data))):
                yield data[start:end]


class Subwords:
    """The parts of words: rows of a model's own table and of the one that holds its buckets.

    Args:
        recipe: the manifest's.
        decode_word: decodes rows of the model's own table.
        decode_bucket: decodes rows of the buckets' table, if there is one.
        bucket_ids: ``(n,)`` which bucket each of those rows is, ascending; None where they are all there.
        dimensions: of a vector.
    """

    def __init__(
        self,
        recipe: SubwordRecipe,
        decode_word: Decode,
        decode_bucket: Decode | None,
        bucket_ids: NDArray[np.uint32] | None,
        dimensions: int,
    ) -> None:
        self.recipe = recipe
        self._decode_word = decode_word
        self._decode_bucket = decode_bucket
        self._bucket_ids = bucket_ids
        self._dimensions = dimensions

    @property
    def composes_known_words(self) -> bool:
        """Whether a known word's vector has more parts than its row."""
        return self.recipe.rows == "parts" and self.recipe.maxn > 0

    def vector(self, word: bytes, row: int) -> Vector:
        """Return the vector ``(d,)`` of a word; its row is -1 where the table does not know it. No parts make zeros."""
        if row >= 0 and not self.composes_known_words:
            vector: Vector = self._decode_word(np.array([row]))[0]
            return vector
        return self.mean([self.parts(word, row)])

    def parts(self, word: bytes, row: int) -> tuple[int, list[int]]:
        """Return a word's row and the rows of its n-grams."""
        recipe = self.recipe
        if recipe.bloom is not None:
            return row, bloom_rows(word, recipe.minn, recipe.maxn, recipe.buckets, recipe.bloom)
        return row, self._rows_of(ngram_buckets(word, recipe.minn, recipe.maxn, self._buckets))

    def runs(self, hashes: Sequence[int]) -> list[int]:
        """Return the rows of the runs of words."""
        if self.recipe.word_ngrams < 2 or not self._buckets:
            return []
        return self._rows_of(word_ngram_buckets(hashes, self.recipe.word_ngrams, self._buckets))

    def mean(self, parts: Iterable[tuple[int, list[int]]]) -> Vector:
        """Return the mean ``(d,)`` of parts, added up in their order; zeros where there are none."""
        total = np.zeros(self._dimensions, np.float32)
        count = 0
        for row, buckets in parts:
            if row >= 0:
                add_in_order(total, self._decode_word(np.array([row])))
                count += 1
            for start in range(0, len(buckets), _BATCH_PARTS):
                rows = np.array(buckets[start : start + _BATCH_PARTS], np.int64)
                add_in_order(total, self._bucket(rows))
            count += len(buckets)
        # As the original: a quotient in float64, rounded, then a product.
        return total * np.float32(1 / count) if count else total

    @property
    def _buckets(self) -> int:
        return 0 if self._decode_bucket is None else self.recipe.buckets

    def _bucket(self, rows: NDArray[np.int64]) -> Vector:
        if self._decode_bucket is None:
            raise AssertionError("rows of buckets are found where there is a table of them")
        return self._decode_bucket(rows)

    def _rows_of(self, buckets: list[int]) -> list[int]:
        kept = self._bucket_ids
        if kept is None or not buckets:
            return buckets
        asked = np.array(buckets, np.uint32)
        places = np.searchsorted(kept, asked)
        # A bucket after all that were kept is not one of them.
        there = places < len(kept)
        there[there] = kept[places[there]] == asked[there]
        found: list[int] = places[there].tolist()
        return found
