"""A transformer becomes a static encoder: every token through the model, and what that loses beside it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import RequestError
from edge_embed_export.distilling import distilled
from edge_embed_export.evaluation import read_evaluation
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from tests.making import vectors_of
from tests.small_encoders import SPECIAL, WORDS, write_encoder
from tests.small_transformers import TOKENS, WIDTH, by_definition, config, weights

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

#: What the same model's token table gives without a forward pass: .742.
SENTENCE_FLOOR = 0.75


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    lines = [f"{WORDS[i]} {WORDS[i + 1]},{WORDS[i + 2]} {WORDS[30 - i]},{(7 * i) % 11}.5" for i in range(20)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_each_token_is_what_the_model_says_of_it_alone(folder: Path) -> None:
    source = distilled(folder, WIDTH)
    arrays, configuration = weights(), config(pad_token_id=0)
    cls, sep = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
    tokens = range(len(SPECIAL), TOKENS)
    alone = np.stack([by_definition(arrays, configuration, [cls, token, sep], normalize=False) for token in tokens])
    centred = alone - alone.mean(axis=0)
    ranks = np.arange(1, len(tokens) + 1)
    rows = vectors_of(source)[len(SPECIAL) :] / np.log1p(ranks)[:, np.newaxis]
    # All principal components together turn the rows and change no product of two of them.
    np.testing.assert_allclose(rows @ rows.T, centred @ centred.T, atol=1e-3)
    assert np.square(rows).sum(axis=0).argsort().tolist() == list(range(WIDTH))[::-1]


def test_tokens_that_stand_in_no_text_are_zeros(folder: Path) -> None:
    vectors = vectors_of(distilled(folder, 4))
    assert vectors.shape == (TOKENS, 4)
    assert not vectors[: len(SPECIAL)].any() and vectors[len(SPECIAL) :].any(axis=1).all()


def test_its_loss_stands_beside_the_teachers_scores(folder: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    bundle = tmp_path / "static"
    words = ["export", str(folder), "-o", str(bundle), "--distill", "--dimensions", "8", "--eval", str(pairs)]
    assert main(words) == 0
    with edge_embed.open(bundle) as runtime:
        quality = runtime.manifest.quality["table"]
        (teacher,) = quality["teacher"]
        (own,) = quality["evaluations"]
        texts = runtime.encode(["word1 word2", "word3"])
        assert texts.shape == (2, 8)
    (score,), (packed,) = teacher["scores"], own["scores"]
    assert score["packed"] == packed["packed"]
    assert score["loss"] == round(score["float32"] - score["packed"], 4) != packed["loss"]
    expected = distilled(folder, 8).teacher
    assert expected is not None
    task = read_evaluation(str(pairs))
    assert teacher["sha256"] == task.sha256


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dimensions", "17"], "expected --dimensions of 1 to 16, found 17"),
        (["--format", "word2vec-text"], "--distill: expected a transformer's folder, found --format word2vec-text"),
        (["--keep", "5"], "--distill: expected no options that choose tables, keys, columns or rows"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(
    words: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(folder), "-o", str(tmp_path / "bundle"), "--distill", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_that_is_no_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected a model's settings, found"):
        distilled(tmp_path)


def test_a_real_transformer_distilled_ranks_sentence_pairs_better_than_its_token_table(
    shared_data: Path, real_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("scipy")
    file = shared_data / "stsb" / "stsb-en-dev.csv"
    with file.open(encoding="utf-8", newline="") as opened:
        assert sum(1 for _ in csv.reader(opened)) == 1500
    source = distilled(real_model)
    options = Options(tmp_path / "static", "static", graphs=(), evaluations=(read_evaluation(str(file)),))
    price = export(source, options).price
    (own,), (teacher,) = price.evaluations[0].scores, price.teacher[0].scores
    assert own.packed >= SENTENCE_FLOOR and abs(own.loss) < 0.005
    assert teacher.float32 > 0.85 and teacher.packed == own.packed
