"""Texts become tokens, tokens rows, rows one vector: tokenizers and the encoder on their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed import kernels
from edge_embed.errors import BundleError
from edge_embed.runtime import Runtime
from edge_embed.text import BATCH_TEXTS, BATCH_TOKENS, HuggingFaceTokenizer, TextEncoder, WhitespaceTokenizer
from tests.making import WORDS, make_bundle, small_source, small_text_source

VECTORS = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


class CountingTokenizer:
    """A tokenizer of our protocol: a text ``3 1 4`` is the rows 3, 1 and 4."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        self.batches.append(len(texts))
        return [[int(number) for number in text.split()] for text in texts]


class CountingRows:
    """Pools like a table and remembers how much it was asked for at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def mean(self, ids: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float32]:
        self.asked.append(len(ids))
        pooled: NDArray[np.float32] = kernels.pool(VECTORS[ids], counts, "mean")
        return pooled


def _encoder(*, normalize: bool) -> tuple[TextEncoder, CountingTokenizer, CountingRows]:
    tokenizer, rows = CountingTokenizer(), CountingRows()
    return TextEncoder(tokenizer, rows.mean, dimensions=4, normalize=normalize), tokenizer, rows


def _definition() -> bytes:
    text = small_text_source().table.text
    assert text is not None and text.tokenizer is not None
    return text.tokenizer


def _tokenizer(max_tokens: int = 512) -> HuggingFaceTokenizer:
    pytest.importorskip("tokenizers")
    return HuggingFaceTokenizer(_definition(), max_tokens, "tokenizer.json")


def test_a_text_is_cut_by_letters_then_by_tokens_and_a_skipped_token_is_left_out_after_the_cut() -> None:
    pytest.importorskip("tokenizers")
    words = HuggingFaceTokenizer(_definition(), 3, "tokenizer.json", max_letters=18, skipped=0)
    assert words.ids(["word1 word2", "", "stranger", "stranger word1 word2 word3"]) == [[2, 3], [], [], [2]]
    assert words.ids(["word1 word1 word10"]) == [[2, 2, 11]]
    assert words.ids(["naïve naïve word10 word3"]) == [[61, 61, 11]]
    assert HuggingFaceTokenizer(_definition(), 3, "tokenizer.json").ids(["stranger word1"]) == [[0, 2]]


@given(texts=st.lists(st.lists(st.integers(0, 49), max_size=9), max_size=6), normalize=st.booleans())
@settings(deadline=None)
def test_a_text_is_the_mean_of_its_rows_or_the_direction_of_it(texts: list[list[int]], normalize: bool) -> None:
    encoder, _, _ = _encoder(normalize=normalize)
    found = encoder.encode([" ".join(map(str, rows)) for rows in texts])
    assert found.shape == (len(texts), 4) and found.dtype == np.float32
    for rows, vector in zip(texts, found, strict=True):
        expected = VECTORS[rows].astype(np.float64).mean(axis=0) if rows else np.zeros(4)
        if normalize and rows:
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_long_list_is_encoded_in_portions_that_bound_the_memory() -> None:
    encoder, tokenizer, rows = _encoder(normalize=True)
    random = np.random.default_rng(0)
    texts = [" ".join(map(str, random.integers(0, 50, random.integers(0, 90)))) for _ in range(1000)]
    together = encoder.encode(texts)
    assert max(tokenizer.batches) == BATCH_TEXTS
    assert max(rows.asked) <= BATCH_TOKENS
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode([text]) for text in texts]))


def test_one_text_of_more_tokens_than_a_portion_is_a_portion_of_its_own() -> None:
    encoder, _, rows = _encoder(normalize=False)
    long = " ".join(["7"] * (BATCH_TOKENS + 1))
    found = encoder.encode(["1", long, "", "2"])
    np.testing.assert_allclose(found[1], VECTORS[7], rtol=1e-4)
    np.testing.assert_array_equal(found[[0, 3]], VECTORS[[1, 2]])
    assert rows.asked == [1, BATCH_TOKENS + 1, 1]


@pytest.fixture
def words(bundle_of_words: Runtime) -> WhitespaceTokenizer:
    return WhitespaceTokenizer(bundle_of_words.table(), max_tokens=5)


@pytest.fixture(scope="module")
def bundle_of_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    source = small_source(keys=("us", "US", "the", "東京", "two words"))
    with edge_embed.open(make_bundle(tmp_path_factory.mktemp("words") / "bundle", source=source).path) as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        (" \t\n", []),
        ("us US", [0, 1]),
        ("The THE the", [2, 2, 2]),
        ("nowhere the  nowhere\tthe", [2, 2]),
        ("\u3000東京\u3000the", [3, 2]),
        ("two words", []),
        ("us us us us us us us", [0, 0, 0, 0, 0]),
        ("x x x x x us", []),
    ],
)
def test_words_are_split_at_white_space_and_known_as_they_stand_or_in_lower_case(
    words: WhitespaceTokenizer, text: str, rows: list[int]
) -> None:
    assert words.ids([text, "the"]) == [rows, [2]]


def test_a_definition_gives_the_same_tokens_alone_and_among_others() -> None:
    tokenizer = _tokenizer()
    texts = ["", "word1", "word1 nowhere word2", "naïve 東京", " ".join(["word3"] * 300)]
    together = tokenizer.ids(texts)
    assert together == [tokenizer.ids([text])[0] for text in texts]
    known = {word: row for row, word in enumerate(("[UNK]", *(word for word in WORDS if " " not in word)))}
    assert together[:4] == [[], [known["word1"]], [known["word1"], 0, known["word2"]], [known["naïve"], known["東京"]]]
    assert len(together[4]) == 300


def test_a_definition_is_cut_at_the_tokens_of_the_recipe_and_never_padded() -> None:
    # The definition asks for padding to 128.
    assert [len(ids) for ids in _tokenizer(3).ids(["word1 " * 9, "word1", ""])] == [3, 1, 0]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", _definition()[:-20], json.dumps({"model": 3}).encode()])
def test_a_damaged_definition_is_an_error_that_names_its_file(damage: bytes) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(BundleError, match=r"notes/tokenizer\.json: expected a tokenizer definition"):
        HuggingFaceTokenizer(damage, 512, "notes/tokenizer.json")
