"""A TFLite text encoder with a tokenizer in its metadata answers as TFLite's own library would ask it."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.commands import main
from edge_embed_export.sources.text_graphs import names_a_tokenizer, read_text_graph
from tests.small_images import write_tflite
from tests.tflite_running import answers

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tokenizers")

TEXTS = (
    "a wonderful movie, it's the best!",
    "",
    " ... ",
    "THE the The",
    "naïve café <START> the",
    "under_score 42 東京 tedious\n\tdull",
    "the " * 400,
)


@pytest.fixture(scope="module")
def file(shared_data: Path) -> Path:
    return shared_data / "text-tflite" / "regex_one_embedding_with_metadata.tflite"


def _ids(file: Path, text: str) -> list[int]:
    """Return what tflite-support's ``RegexTokenizer`` and ``TextPreprocessor`` make of a text."""
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as packed:
        lines = packed.read("vocab.txt").decode().splitlines()
    vocabulary = {word: int(number) for word, number in (line.split(" ") for line in lines)}
    words = [word for word in re.split(r"[^\w\']+", text, flags=re.ASCII) if word]
    ids = [vocabulary["<START>"], *(vocabulary.get(word, vocabulary["<UNKNOWN>"]) for word in words)][:256]
    return ids + [vocabulary["<PAD>"]] * (256 - len(ids))


def test_a_text_is_cut_as_the_files_metadata_say(file: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "regex"
    assert main(["export", str(file), "-o", str(bundle)]) == 0
    expected = np.concatenate(answers(str(file), [np.array([_ids(file, text)], np.int32) for text in TEXTS]))
    with edge_embed.open(bundle) as runtime:
        np.testing.assert_allclose(runtime.encode(TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(runtime.encode(TEXTS[0]), expected[0], atol=1e-6)


def test_another_pattern_is_refused_by_its_name(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    (tmp_path / "other.tflite").write_bytes(data.replace(rb"[^\w\']+", rb"[^\w\-]+"))
    with pytest.raises(
        edge_embed.RequestError, match=r"expected a tokenizer that cuts at .*, found the pattern '.*-\]\+'"
    ):
        read_text_graph(tmp_path / "other.tflite")


def test_a_vocabulary_that_is_not_there_is_refused(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: data.rindex(b"PK\x01\x02")])
    with pytest.raises(edge_embed.RequestError, match=r"expected a vocabulary 'vocab\.txt' packed behind it, found"):
        read_text_graph(tmp_path / "cut.tflite")


def test_a_graph_without_a_tokenizer_is_another_readers(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "colour.tflite")
    assert not names_a_tokenizer(path)
    with pytest.raises(edge_embed.RequestError, match="expected metadata that name a tokenizer, found none"):
        read_text_graph(path)
