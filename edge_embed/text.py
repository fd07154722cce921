"""From a text to the rows of its tokens: the tokenizers that a bundle may ask for."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.errors import BundleError, MissingExtraError, RequestError
from edge_embed.keys import to_bytes
from edge_embed.table import Table
from edge_embed.words import KnownWords
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import TextRecipe

#: Texts that are tokenized together, and tokens whose vectors are decoded together: these bound the private memory
#: of a long list, 1,024 dimensions of float32 at 4 MiB.
BATCH_TEXTS = 64
BATCH_TOKENS = 1024


class Tokenizer(Protocol):
    """From texts to the row ids of their tokens."""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the row ids of each text's tokens, at most the recipe's ``max_tokens`` of them."""


class Encoder(Protocol):
    """From texts to vectors."""

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, normalize: bool | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts.

        Args:
            texts: what to encode.
            prompt: the name of a text that is put before each of them; the model's own default if not given.
            normalize: whether vectors are divided by their lengths; as the model says if not given.

        Raises:
            RequestError: a text is no ``str``, or holds a lone surrogate; the model has no such prompt.
        """


class HuggingFaceTokenizer:
    """A ``tokenizer.json``, run by the package ``tokenizers``; token ids are row ids.

    A text is cut after ``max_letters`` and its tokens after ``max_tokens``; the token ``skipped`` is then left out.
    ``special_tokens`` are those of the definition's own template; they count. All happens on the right: a definition
    that cuts on the left is refused, and where a graph takes the tokens (``for_graph``) so is one that pads there: its
    model was given other positions.
    """

    def __init__(
        self,
        definition: bytes,
        max_tokens: int | None,
        source: str,
        *,
        max_letters: int | None = None,
        skipped: int | None = None,
        special_tokens: bool = False,
        for_graph: bool = False,
    ) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingExtraError.of("tokenizers", "text", "encoding text") from error
        self._source = source
        self._max_tokens = max_tokens
        self._max_letters = max_letters
        self._skipped = skipped
        self._special_tokens = special_tokens
        with self._faults_are_the_bundles("a tokenizer definition"):
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
            cuts, pads = self._tokenizer.truncation, self._tokenizer.padding if for_graph else None
            # Definitions carry the padding and truncation of their training (all-MiniLM pads to 128).
            self._tokenizer.no_padding()
            if max_tokens is None:
                self._tokenizer.no_truncation()
            else:
                self._tokenizer.enable_truncation(max_tokens)
        for does, how in (("cuts", cuts), ("pads", pads)):
            if how is not None and how["direction"] != "right":
                raise BundleError(
                    f"{source}: expected a tokenizer that {does} on the right, found one that {does} on the left"
                )
        self._words = KnownWords.of(definition, self._tokenizer.token_to_id)
        #: The special tokens before and behind those of a text's words.
        self._before, self._behind = self._template() if self._words is not None and special_tokens else ([], [])
        self._room = sys.maxsize if max_tokens is None else max_tokens - len(self._before) - len(self._behind)

    @classmethod
    def shared(cls, bundle: Bundle, blob: str, max_tokens: int | None, **recipe: Any) -> HuggingFaceTokenizer:
        """Return the tokenizer of a bundle; one that is in use, where it was made of the same file in the same way.

        Two generations of a store have one file for what did not change. Reading a definition takes a tenth of a
        second, for which the first answer of a new generation would wait.
        """
        # Time and size, too: a runtime that was closed during a call may let a number go before the tokenizer.
        file = os.fstat(bundle.descriptor(blob))
        made_of = (file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size, max_tokens, *sorted(recipe.items()))
        found = _IN_USE.get(made_of)
        if found is None:
            found = cls(bytes(bundle.map(blob)), max_tokens, f"{bundle.folder}/{blob}", **recipe)
            _IN_USE[made_of] = found
        return found

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """See :meth:`Tokenizer.ids`."""
        found = self._found([text[: self._max_letters] for text in texts])
        return found if self._skipped is None else [[i for i in ids if i != self._skipped] for ids in found]

    def _found(self, texts: Sequence[str]) -> list[list[int]]:
        if self._words is None:
            return self._encoded(texts)
        found = [self._of_words(self._words, text) for text in texts]
        strange = [place for place, ids in enumerate(found) if ids is None]
        if strange:
            for place, ids in zip(strange, self._encoded([texts[place] for place in strange]), strict=True):
                found[place] = ids
        return found  # type: ignore[return-value]  # nothing is None any more

    def _of_words(self, words: KnownWords, text: str) -> list[int] | None:
        """Return the tokens of a text by its words, as the package would; or None where that is not sure."""
        ids = words.ids(text)
        if ids is None:
            return None
        del ids[self._room :]
        return [*self._before, *ids, *self._behind] if self._before or self._behind else ids

    def _template(self) -> tuple[list[int], list[int]]:
        """Return what the template puts before a text and behind it; where that is not plain, words are not used."""
        with self._faults_are_the_bundles("a tokenizer that encodes"):
            (word, whole), empty = (
                [self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True)],
                self._tokenizer.encode("", add_special_tokens=True).ids,
            )
        count = len(word)
        places = [at for at in range(len(whole) - count + 1) if whole[at : at + count] == word]
        fit = [(whole[:at], whole[at + count :]) for at in places if whole[:at] + whole[at + count :] == empty]
        # Two ways: the word is unknown, say, and so is what the template begins with.
        if len(fit) == 1 and (self._max_tokens is None or len(empty) < self._max_tokens):
            return fit[0]
        self._words = None
        return [], []

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        with self._faults_are_the_bundles("a tokenizer that encodes"):
            if len(texts) == 1:
                return [self._tokenizer.encode(texts[0], add_special_tokens=self._special_tokens).ids]
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=self._special_tokens)
            return [encoding.ids for encoding in encodings]

    @contextlib.contextmanager
    def _faults_are_the_bundles(self, expected: str) -> Iterator[None]:
        """Turn what the package raises, bare Exception and Rust's panics (a BaseException), into an error of ours."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            raise BundleError(f"{self._source}: expected {expected}, found: {error}") from error


_IN_USE: weakref.WeakValueDictionary[tuple[object, ...], HuggingFaceTokenizer] = weakref.WeakValueDictionary()


class WhitespaceTokenizer:
    """The words of a text that the table knows, split at white space; a word may also be known in lower case."""

    def __init__(self, table: Table, max_tokens: int) -> None:
        self._table = table
        self._max_tokens = max_tokens

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """See :meth:`Tokenizer.ids`."""
        return [[row for row in map(self._row, text.split()[: self._max_tokens]) if row >= 0] for text in texts]

    def _row(self, word: str) -> int:
        row = self._table.find(to_bytes(word))
        return row if row >= 0 else self._table.find(to_bytes(word.lower()))


class TextEncoder:
    """A static text encoder: the mean of the rows of a text's tokens, as its direction where the recipe says so.

    ``pool`` takes row ids ``(n,)`` and how many of them each text has ``(b,)`` to means ``(b, d)``; ``means`` takes the
    ids of one text to its mean ``(d,)``, the same to the last bit, or to None where that is not plain.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pool: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]],
        *,
        dimensions: int,
        normalize: bool,
        means: kernels.Shortcut | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._pool = pool
        self._means = means
        self._dimensions = dimensions
        self._normalize = normalize

    @classmethod
    def of(cls, bundle: Bundle, recipe: TextRecipe, table: Table) -> Self:
        """Return the encoder that a bundle's recipe describes."""
        tokenizer = _tokenizer(bundle, recipe, table)
        return cls(
            tokenizer,
            table.mean,
            dimensions=table.model.dimensions,
            normalize=recipe.normalize,
            means=table.means(),
        )

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, normalize: bool | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts; a text without a known token gets zeros.

        A text's vector does not depend on the texts beside it.

        Raises:
            RequestError: a text is no ``str``, or holds a lone surrogate; a prompt is asked for.
        """
        check_no_prompt(prompt)
        normalizes = self._normalize if normalize is None else normalize
        check_texts(texts)
        if len(texts) == 1 and self._means is not None:
            mean = self._means.bag(self._tokenizer.ids(texts)[0], None)
            if mean is not None:
                return directed(mean[np.newaxis]) if normalizes else mean[np.newaxis]
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = texts[start : start + BATCH_TEXTS]
            vectors[start : start + len(batch)] = self._encode_batch(batch, normalizes)
        return vectors

    def _encode_batch(self, texts: Sequence[str], normalizes: bool) -> NDArray[np.float32]:
        ids = self._tokenizer.ids(texts)
        vectors = np.concatenate([self._pooled(ids[run]) for run in _runs([len(rows) for rows in ids])])
        return directed(vectors) if normalizes else vectors

    def _pooled(self, ids: Sequence[list[int]]) -> NDArray[np.float32]:
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(counts.sum()))
        return self._pool(flat, counts)


def _runs(counts: Sequence[int]) -> Iterator[slice]:
    """Yield runs of texts whose tokens together stay under ``BATCH_TOKENS``, one text at least."""
    start = total = 0
    for i, count in enumerate(counts):
        if i > start and total + count > BATCH_TOKENS:
            yield slice(start, i)
            start, total = i, 0
        total += count
    yield slice(start, len(counts))


def _tokenizer(bundle: Bundle, recipe: TextRecipe, table: Table) -> Tokenizer:
    if recipe.tokenizer_blob is None:
        return WhitespaceTokenizer(table, recipe.max_tokens)
    return HuggingFaceTokenizer.shared(
        bundle,
        recipe.tokenizer_blob,
        recipe.max_tokens,
        max_letters=recipe.max_letters,
        skipped=recipe.skipped_token,
    )


def directed(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide vectors ``(n, d)`` by their lengths, in place; zeros stay zeros."""
    # What np.linalg.norm does, without its ways of asking: a third of the time of one vector.
    norms = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
    np.divide(vectors, norms, out=vectors, where=norms > 0)
    return vectors


def check_no_prompt(prompt: str | None) -> None:
    """Refuse a prompt where a model knows none.

    Raises:
        RequestError: one is asked for.
    """
    if prompt is not None:
        raise RequestError(f"expected no prompt, which static encoders do not have, found {prompt!r}")


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no text of Unicode.

    Raises:
        RequestError: one of them is no ``str``, or holds a lone surrogate.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.isascii():
            check_text(text, i)


def check_text(text: str, place: int) -> None:
    """Refuse what is no text of Unicode.

    Raises:
        RequestError: the text at that place is no ``str``, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise RequestError(f"text {place}: expected str, found {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"text {place}: expected Unicode text, found a lone surrogate at {error.start}") from error
