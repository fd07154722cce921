"""Words out of their parts, against a plain spelling of the original's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_embed
from edge_embed.subwords import hash_bytes, ngram_buckets, word_ngram_buckets
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source
from tests.attacks.hostile import sign
from tests.attacks.makers import read_manifest
from tests.fasttext_files import LABELS, Model


def test_the_hash_takes_bytes_beyond_ascii_for_negative_numbers() -> None:
    # By the original's Dictionary::hash.
    assert hash_bytes(b"") == 2166136261
    assert hash_bytes(b"a") == 0xE40C292C
    assert (
        hash_bytes("ü".encode()) == ((((2166136261 ^ 0xFFFFFFC3) * 16777619) % 2**32 ^ 0xFFFFFFBC) * 16777619) % 2**32
    )


@given(st.text(max_size=12), st.integers(1, 4), st.integers(0, 3), st.integers(1, 10**6))
def test_ngrams_are_those_of_letters_from_each_in_turn(word: str, minn: int, more: int, buckets: int) -> None:
    letters = f"<{word}>"
    expected = [
        hash_bytes(letters[start : start + n].encode()) % buckets
        for start in range(len(letters))
        for n in range(minn, minn + more + 1)
        if start + n <= len(letters) and not (n == 1 and start in (0, len(letters) - 1))
    ]
    assert ngram_buckets(word.encode(), minn, minn + more, buckets) == ([] if word == "</s>" else expected)


@given(st.binary(max_size=20))
def test_bytes_that_are_no_letters_have_ngrams_all_the_same(word: bytes) -> None:
    assert all(0 <= bucket < 7 for bucket in ngram_buckets(word, 1, 3, 7))


def test_runs_of_words_are_hashed_from_signed_numbers() -> None:
    minus_one = 2**32 - 1
    assert word_ngram_buckets([minus_one, 5, 7], 3, 1000) == [
        (-116049371 + 5) % 2**64 % 1000,
        ((-116049371 + 5) * 116049371 + 7) % 2**64 % 1000,
        (5 * 116049371 + 7) % 1000,
    ]
    assert word_ngram_buckets([1, 2, 3], 1, 1000) == []


def test_an_endless_word_is_taken_in_batches(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(Model().to_bytes())
    export(read_source(tmp_path / "model.bin"), Options(target=tmp_path / "bundle", name="words", graphs=()))
    with edge_embed.open(tmp_path / "bundle") as runtime:
        vector = runtime.lookup("ab" * 20_000)
        assert vector.any() and np.isfinite(vector).all()


@pytest.mark.parametrize("child", [3, 4, 0])
def test_labels_in_a_loop_are_refused(tmp_path: Path, child: int) -> None:
    (tmp_path / "model.bin").write_bytes(Model(labels=LABELS, model=3, loss=1).to_bytes())
    export(read_source(tmp_path / "model.bin"), Options(target=tmp_path / "bundle", name="topics", graphs=()))
    folder = tmp_path / "bundle"
    place = read_manifest(folder)["models"][2]["tensors"]["tree"]
    for path in folder.iterdir():
        path.chmod(0o644)
    data = bytearray((folder / place["blob"]).read_bytes())
    tree = np.frombuffer(data, "<u4", 4, place["offset_bytes"])
    # A node that is its own child, one that is above itself, one that is reached twice.
    tree[0 if child != 0 else 2] = child
    if child == 0:
        tree[3] = 0
    (folder / place["blob"]).write_bytes(data)
    sign(folder)
    with edge_embed.open(folder) as runtime, pytest.raises(edge_embed.BundleError, match="found one with loops"):
        runtime.classify("board")
