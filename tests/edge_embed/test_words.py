"""A text's tokens by its words are those that the package finds, to the last one; what is not sure is the package's."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.text import HuggingFaceTokenizer
from edge_embed.words import KnownWords

tokenizers = pytest.importorskip("tokenizers")

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-_$", "board", "##s", "##ing")


def definition(*, lowercase: bool = True, **changes: Any) -> bytes:
    """Return a small ``tokenizer.json`` of BERT's kind."""
    added = [
        {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i, piece in enumerate(PIECES[:4])
    ]
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    model: dict[str, Any] = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": {piece: i for i, piece in enumerate(PIECES)}}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {**normalizer, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return json.dumps({**made, **changes}).encode()


class Real:
    """The definition that the real model came with, and what the package alone makes of texts."""

    def __init__(self, data: bytes, max_tokens: int = 64, *, special: bool = False) -> None:
        self.ours = HuggingFaceTokenizer(data, max_tokens, "tokenizer.json", special_tokens=special)
        self._special = special
        self._theirs = tokenizers.Tokenizer.from_buffer(data)
        self._theirs.no_padding()
        self._theirs.enable_truncation(max_tokens)

    def theirs(self, text: str) -> list[int]:
        ids: list[int] = self._theirs.encode(text, add_special_tokens=self._special).ids
        return ids


@pytest.fixture(scope="module", params=["small", "cased", "real", "real between special tokens"])
def tokenizer(request: pytest.FixtureRequest) -> Real:
    if not request.param.startswith("real"):
        return Real(definition(lowercase=request.param == "small"))
    real_model: Path = request.getfixturevalue("real_model")
    return Real((real_model / "tokenizer.json").read_bytes(), special=request.param != "real")


STRANGE = (
    *("", " ", "\t", "\n", "\0", "a\0b", "\x7f", "a\x1fb", "naïve", "東京", "🙂", "[CLS]", "[ CLS ]", "x[SEP]y"),
    *("don't", "a-b", "$5.00", "Boards, BOARDING!", "board" * 40, "b" * 101, "a " * 500, "_x_", "`~^|<>={}@#%&*()"),
)


def test_strange_texts_have_the_packages_tokens(tokenizer: Real) -> None:
    for text in STRANGE:
        for _ in range(2):
            assert tokenizer.ours.ids([text]) == [tokenizer.theirs(text)], text
    assert tokenizer.ours.ids(STRANGE) == [tokenizer.theirs(text) for text in STRANGE]


@settings(max_examples=400, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=80))
def test_any_ascii_text_has_the_packages_tokens(tokenizer: Real, text: str) -> None:
    assert tokenizer.ours.ids([text]) == [tokenizer.theirs(text)]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_has_the_packages_tokens(tokenizer: Real, text: str) -> None:
    assert tokenizer.ours.ids([text]) == [tokenizer.theirs(text)]


def test_a_template_that_is_not_plain_is_left_to_the_package() -> None:
    special = {"[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}
    twice = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}] * 2
    pair = [*twice, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": twice, "pair": pair, "special_tokens": special}
    tokenizer = Real(definition(post_processor=template), special=True)
    assert tokenizer.ours._words is None
    assert tokenizer.ours.ids(["a b"]) == [tokenizer.theirs("a b")]


def test_a_template_that_begins_with_what_an_unknown_word_is_is_left_to_the_package() -> None:
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in ((1, "[UNK]"), (3, "[SEP]"))}
    first, text, last = (
        {"SpecialToken": {"id": "[UNK]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    )
    pair = [first, text, {"Sequence": {"id": "B", "type_id": 1}}, last]
    template = {"type": "TemplateProcessing", "single": [first, text, last], "pair": pair, "special_tokens": special}
    vocabulary = {piece: i for i, piece in enumerate(PIECES) if piece != "a"}
    model = {**json.loads(definition())["model"], "vocab": vocabulary}
    tokenizer = Real(definition(post_processor=template, model=model), special=True)
    assert tokenizer.theirs("b b")[:1] == [1]
    assert tokenizer.ours.ids(["b b"]) == [tokenizer.theirs("b b")]


@pytest.mark.parametrize("content", [" board", "\tboard"])
def test_a_text_has_the_same_tokens_whatever_was_asked_before(content: str) -> None:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    added = {"id": len(PIECES), "content": content, "normalized": content[0] == "\t", **plain}
    tokenizer = Real(definition(added_tokens=[*json.loads(definition())["added_tokens"], added]))
    assert len(PIECES) in tokenizer.theirs("a board")
    for text in ("a", "board", "a board"):
        assert tokenizer.ours.ids([text]) == [tokenizer.theirs(text)], text


def _length(token: str) -> int:
    return len(token)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{" * 1000,
        definition(normalizer=None),
        definition(pre_tokenizer={"type": "Whitespace"}),
        definition(model={"type": "Unigram", "vocab": []}),
        definition(added_tokens=[{"content": "board"}]),
        definition(added_tokens=[{"content": "##s"}]),
        definition(added_tokens=[{"content": " board"}]),
        definition(added_tokens=[{"content": "\tboard"}]),
        definition(added_tokens=[{"content": "東"}]),
        definition(added_tokens=[{"content": ""}]),
        definition(normalizer={"type": "BertNormalizer"}),
    ],
)
def test_a_definition_of_another_kind_is_left_to_the_package(data: bytes) -> None:
    assert KnownWords.of(data, _length) is None


def test_what_is_not_sure_is_left_to_the_package() -> None:
    words = KnownWords.of(definition(), _length)
    assert words is not None
    for text in ("naïve", "a\tb", "a\0b", "[", "x]y[z"):
        assert words.ids(text) is None
    assert words.ids("x]y") == [1, 1, 1]


def test_a_definition_without_its_unknown_token_is_left_to_the_package() -> None:
    assert KnownWords.of(definition(), {"[CLS]": 2}.get) is None


def test_a_new_word_is_cut_as_the_package_cuts_it(tokenizer: Real) -> None:
    parts = ("board", "s", "ing", "un", "believ", "able", "b" * 98, "zz", "9", "Q")
    for count in (1, 2, 3):
        for word in map("".join, product(parts, repeat=count)):
            assert tokenizer.ours.ids([word]) == [tokenizer.theirs(word)], word


def test_what_is_remembered_is_bounded() -> None:
    asked: list[str] = []

    def id_of(token: str) -> int:
        asked.append(token)
        return 0

    words = KnownWords.of(definition(), id_of)
    assert words is not None
    for i in range(40_000):
        words.ids(f"w{i}")
    assert len(words._known) <= 16_384
    words.ids("w" * 33)
    words.ids("w" * 33)
    assert asked.count("w" * 33) == 2
    assert sys.getsizeof(words._known) < 2**20


def test_a_piece_is_cut_once_punctuation_and_all() -> None:
    asked: list[str] = []

    def id_of(token: str) -> int:
        asked.append(token)
        return len(token)

    words = KnownWords.of(definition(), id_of)
    assert words is not None
    assert words.ids("Boards, boards!  (boards)") == words.ids("Boards, boards!  (boards)") == [6, 1, 6, 1, 1, 6, 1]
    assert asked == ["[UNK]", "boards", ",", "!", "(", ")"]
    # What was learnt of a sure text says nothing of one that is not.
    assert words.ids("Boards, naïve") is None
