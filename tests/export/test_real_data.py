"""What int8 costs on real models, by the benchmarks that their users would run.

Floors and losses are those that this project promises. What stood behind them on x86-64 with numpy 2.4: overlap@10 of
.9898; WordSim-353 .582 by float32 and .583 by int8, MEN .656 by both; the development part of the STS benchmark .742
by both.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed_export.encoders import export_encoder
from edge_embed_export.exporter import Report, export
from edge_embed_export.options import Options
from edge_embed_export.sources import Source, read_encoder, read_source
from tests.making import vectors_of

OVERLAP_FLOOR = 0.98
WORD_LOSS_CEILING = 0.002
SENTENCE_FLOOR = 0.70
SENTENCE_LOSS_CEILING = 0.005
TRANSFORMER_FLOOR = 0.85
TRANSFORMER_LOSS_CEILING = 0.01

WORD_SETS = ("EN-WS-353-ALL.txt", "EN-MEN-TR-3k.txt")

CODECS = ("float32", "int8")


def _spearman(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the rank correlation; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(found), _ranks(expected))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def test_spearman_is_what_the_textbooks_say() -> None:
    assert _spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert _spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # https://en.wikipedia.org/wiki/Spearman%27s_rank_correlation_coefficient, IQ and hours of television
    iq = (106, 100, 86, 101, 99, 103, 97, 113, 112, 110)
    hours = (7, 27, 2, 50, 28, 29, 20, 12, 6, 17)
    assert _spearman(iq, hours) == pytest.approx(-29 / 165)
    assert _ranks([1, 1, 5]).tolist() == [1.5, 1.5, 3]


def _exported(source: Source, folder: Path) -> Mapping[str, Report]:
    return {
        codec: export(source, Options(folder / codec, "real", codec=codec, graphs=("onnx", "tflite")))
        for codec in CODECS
    }


@pytest.fixture(scope="module")
def words(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    """20,000 English word vectors of word2vec, 100 dimensions, by codec."""
    source = read_source(shared_data / "embeddings" / "w2v_sgns_d100_top20k.bin")
    assert vectors_of(source).shape == (20_000, 100)
    return _exported(source, tmp_path_factory.mktemp("words"))


def test_word_vectors_of_int8_keep_their_neighbours_at_a_quarter_of_the_size(words: Mapping[str, Report]) -> None:
    price = words["int8"].quality["table"]
    assert price.neighbour_overlap_at_10 >= OVERLAP_FLOOR
    assert price.bytes_after < 0.27 * price.bytes_before
    assert words["float32"].quality["table"].neighbour_overlap_at_10 == 1


@pytest.mark.parametrize("name", WORD_SETS)
def test_word_vectors_of_int8_rank_word_pairs_like_those_of_float32(
    words: Mapping[str, Report], shared_data: Path, name: str
) -> None:
    lines = (shared_data / "wordsim-en" / name).read_text(encoding="utf-8").splitlines()
    pairs = [(one, other, float(score)) for one, other, score in (line.split("\t") for line in lines)]
    found = {codec: _word_score(report.path, pairs) for codec, report in words.items()}
    assert found["float32"] > 0.3
    assert found["float32"] - found["int8"] <= WORD_LOSS_CEILING


def _word_score(bundle: Path, pairs: Sequence[tuple[str, str, float]]) -> float:
    """Return the rank correlation of cosines with people's scores, over the pairs that the table knows."""
    with edge_embed.open(bundle) as runtime:
        table = runtime.table()
        known = [pair for pair in pairs if table.find(pair[0]) >= 0 and table.find(pair[1]) >= 0]
        assert len(known) > 0.4 * len(pairs)
        ones, others = runtime.lookup([one for one, _, _ in known]), runtime.lookup([other for _, other, _ in known])
    return _spearman(_cosines(ones, others), [score for _, _, score in known])


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Mapping[str, Report]:
    """The token table of all-MiniLM-L6-v2 as a static text encoder, by codec."""
    source = read_source(real_model)
    return _exported(source, tmp_path_factory.mktemp("sentences"))


def test_a_static_encoder_of_a_transformers_tokens_ranks_sentence_pairs_and_int8_does_not_harm_it(
    sentences: Mapping[str, Report], shared_data: Path
) -> None:
    with (shared_data / "stsb" / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(one, other, float(score)) for one, other, score in csv.reader(file)]
    assert len(pairs) == 1500
    found = {codec: _sentence_score(report.path, pairs) for codec, report in sentences.items()}
    assert found["int8"] >= SENTENCE_FLOOR
    assert abs(found["float32"] - found["int8"]) <= SENTENCE_LOSS_CEILING


def test_a_transformer_ranks_sentence_pairs_better_and_int8_loses_next_to_nothing(
    tmp_path: Path, shared_data: Path, real_model: Path
) -> None:
    with (shared_data / "stsb" / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        # One in three of them: the rank correlation of all 1,500 is .867.
        pairs = [(one, other, float(score)) for one, other, score in csv.reader(file)][::3]
    found = {}
    for codec in ("float32", "int8"):
        options = Options(tmp_path / codec, codec=codec, graphs=("onnx",), name="minilm", board="pi-5")
        found[codec] = _sentence_score(export_encoder(read_encoder(real_model, "transformer"), options).path, pairs)
    assert found["float32"] > TRANSFORMER_FLOOR
    assert found["float32"] - found["int8"] <= TRANSFORMER_LOSS_CEILING


def _sentence_score(bundle: Path, pairs: Sequence[tuple[str, str, float]]) -> float:
    with edge_embed.open(bundle) as runtime:
        ones, others = runtime.encode([one for one, _, _ in pairs]), runtime.encode([other for _, other, _ in pairs])
    return _spearman(_cosines(ones, others), [score for _, _, score in pairs])


def _cosines(ones: NDArray[np.float32], others: NDArray[np.float32]) -> list[float]:
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    cosines: list[float] = ((ones * others).sum(axis=1) / lengths).tolist()
    return cosines


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_real_word_vectors_are_the_same_from_every_engine(words: Mapping[str, Report], engine: str) -> None:
    ids = np.random.default_rng(0).integers(0, 20_000, 500)
    for report in words.values():
        with edge_embed.open(report.path) as kernels, edge_embed.open(report.path, engine=engine) as runtime:
            np.testing.assert_array_equal(runtime.lookup_ids(ids), kernels.lookup_ids(ids))
