"""What this project promised of its codecs on real tables.

Codebooks train for a minute or more each: ``benchmarks/quality.py`` asks all of them, these tests a few.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_embed_export.evaluation import read_evaluation
from edge_embed_export.exporter import Report, export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source

pytest.importorskip("onnx")
pytest.importorskip("faiss")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")

MEN, WORDSIM, ANALOGIES = "EN-MEN-TR-3k.txt", "EN-WS-353-ALL.txt", "questions-words.txt"
#: Bytes a row, neighbour overlap@10 and MEN that a plain script with faiss reached.
TO_MATCH = {
    "int8": (104, 0.990, 0.656),
    "int4": (58, 0.862, 0.654),
    "pq:25": (26, 0.671, 0.628),
}
# Both overlaps are means over a sample of rows, of different ones: 1,000 rows have a standard error of about this.
OVERLAP_ERROR = 0.005
# Parts of 3 numbers: 35 bytes of 400.
TENTH = "pq:39"


@pytest.fixture(scope="module")
def words(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    """20,000 English word vectors of word2vec by codec; int8 is asked all three files, the others MEN."""
    source = read_source(shared_data / "embeddings" / "w2v_sgns_d100_top20k.bin")
    files = (f"wordsim-en/{MEN}", f"wordsim-en/{WORDSIM}", f"analogy-en/{ANALOGIES}")
    tasks = tuple(read_evaluation(str(shared_data / name)) for name in files)
    folder = tmp_path_factory.mktemp("words")

    def exported(codec: str) -> Report:
        asked = tasks if codec == "int8" else tasks[:1]
        options = Options(folder / codec.replace(":", "-"), "words", codec=codec, graphs=(), evaluations=asked)
        return export(source, options)

    return {codec: exported(codec) for codec in (*TO_MATCH, TENTH)}


def _loss(report: Report, name: str) -> float:
    losses = report.price.losses
    (found,) = (loss for what, loss in losses.items() if what.startswith(name))
    return found


def _bytes_a_row(report: Report) -> float:
    model = report.manifest.tables[0]
    sizes = [model.tensors[name].size_bytes for name in ("rows", "scales", "length_codes") if name in model.tensors]
    return sum(sizes) / model.rows


@pytest.mark.parametrize("name", [MEN, WORDSIM, ANALOGIES])
def test_int8_loses_at_most_two_thousandths_on_words(words: Mapping[str, Report], name: str) -> None:
    assert _loss(words["int8"], name) <= 0.002


def test_int4_loses_at_most_a_hundredth_on_men(words: Mapping[str, Report]) -> None:
    assert _loss(words["int4"], MEN) <= 0.01


def test_pq_at_a_tenth_of_float32_loses_at_most_fifteen_thousandths_on_men(words: Mapping[str, Report]) -> None:
    assert _bytes_a_row(words[TENTH]) <= 40
    assert _loss(words[TENTH], MEN) <= 0.015


@pytest.mark.parametrize("codec", TO_MATCH)
def test_each_codec_is_at_least_what_a_plain_script_reached(words: Mapping[str, Report], codec: str) -> None:
    row_bytes, overlap, men = TO_MATCH[codec]
    report = words[codec]
    assert _bytes_a_row(report) <= row_bytes + 0.5
    assert round(report.quality["table"].neighbour_overlap_at_10, 3) >= overlap - OVERLAP_ERROR
    scores = {each.name: each.scores[0].packed for each in report.price.evaluations}
    assert round(scores[MEN], 3) >= men


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("deepwalk_citeseer_d128.bin", "citeseer/labels.txt"),
        ("deepwalk_ppi_d128.bin", "node2vec_PPI/node2vec_PPI_labels.txt"),
    ],
)
def test_int8_loses_at_most_five_thousandths_micro_f1_on_nodes(
    shared_data: Path, tmp_path: Path, table: str, labels: str
) -> None:
    source = read_source(shared_data / "embeddings" / table)
    tasks = (read_evaluation(str(shared_data / "graphs" / labels)),)
    report = export(source, Options(tmp_path / "nodes", "nodes", graphs=(), evaluations=tasks))
    assert report.price.evaluations[0].known > 0.98 * report.price.evaluations[0].asked
    assert _loss(report, f"{Path(labels).name} micro-F1") <= 0.005


#: Each file of the shared data as it is, and the kind that is seen in it.
KINDS = {
    "wordsim-en/EN-MC-30.txt": "similarity",
    "wordsim-en/EN-MTurk-287.txt": "similarity",
    "wordsim-en/EN-RG-65.txt": "similarity",
    "zh/240.txt": "similarity",
    "analogy-en/questions-words.txt": "analogies",
    "zh/analogy.txt": "analogies",
    "odd-one-out/odd_en.txt": "odd-one-out",
    "graphs/citeseer/labels.txt": "labels",
    "graphs/node2vec_PPI/node2vec_PPI_labels.txt": "labels",
    "sentclass/TREC.train.all": "text-labels",
    "sentclass/TREC.test.all": "text-labels",
    "sentclass/stsa.binary.dev": "text-labels",
    "stsb/stsb-en-dev.csv": "text-similarity",
    "stsb/stsb-zh-dev.csv": "text-similarity",
    "sick/SICK_trial.txt": "text-similarity",
    "zh/lcqmc/dev.txt": "text-similarity",
    "cranfield": "retrieval",
}


@pytest.mark.parametrize("name", KINDS)
def test_public_sets_are_understood_as_they_are(shared_data: Path, name: str) -> None:
    assert read_evaluation(str(shared_data / name)).questions.kind == KINDS[name]
