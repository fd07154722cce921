"""A bundle that loses more than its owner allows is not written; the smallest that does not is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edge_embed
from edge_embed.errors import RequestError
from edge_embed_bundle import strict_json
from edge_embed_bundle.bundle import Bundle
from edge_embed_export.choosing import candidates, export_smallest
from edge_embed_export.evaluation import Task, read_evaluation
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.pricing import LossError
from tests.making import WORDS, small_source, small_text_source

pytest.importorskip("onnx")
pytest.importorskip("scipy")


def _pairs(folder: Path) -> Task:
    """Pairs of words of the small source; what people said is the first dimension's product."""
    rows = small_source().table.vectors[0:60]
    lines = [f"{WORDS[i]}\t{WORDS[i + 1]}\t{float(rows[i] @ rows[i + 1]):.3f}" for i in range(0, 58)]
    path = folder / "pairs.tsv"
    path.write_text("\n".join([*lines, "WORD1\tnowhere\t1"]), encoding="utf-8")
    return read_evaluation(str(path))


def _options(target: Path, **more: object) -> Options:
    return Options(target=target, name="small", **{"graphs": (), **more})  # type: ignore[arg-type]


def test_evaluations_stand_in_the_manifest_and_survive_a_round_trip(tmp_path: Path) -> None:
    report = export(small_source(), _options(tmp_path / "bundle", evaluations=(_pairs(tmp_path),)))
    with Bundle.open(report.path) as bundle:
        assert bundle.manifest.to_bytes() == bundle.manifest_bytes
        (found,) = bundle.manifest.quality["table"]["evaluations"]
    assert (found["file"], found["kind"], found["asked"], found["known"]) == ("pairs.tsv", "similarity", 59, 58)
    (score,) = found["scores"]
    assert score["measure"] == "spearman"
    assert score["float32"] - score["packed"] == pytest.approx(score["loss"], abs=1e-9)
    low, high = score["loss_interval"]
    assert low <= score["loss"] <= high


def test_both_exports_of_a_source_with_questions_are_the_same_bundle(tmp_path: Path) -> None:
    questions = (_pairs(tmp_path),)
    one, other = (export(small_source(), _options(tmp_path / name, evaluations=questions)) for name in ("a", "b"))
    assert one.manifest.to_bytes() == other.manifest.to_bytes()


def test_scores_of_a_classifier_are_reported_and_not_signed_off(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"word{i} {i % 3}\n" for i in range(60)))
    report = export(small_source(), _options(tmp_path / "bundle", evaluations=(read_evaluation(str(path)),)))
    assert [score.measure for score in report.price.evaluations[0].scores] == ["micro-F1", "macro-F1"]
    assert "evaluations" not in report.manifest.quality["table"]


def test_sentences_are_asked_of_the_source_and_of_the_runtime(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "pairs.csv"
    path.write_text("word1 word2,word1 word3,4\nword4 word5,word6 word7,2\nword8 word9,word8 word9,5\n")
    report = export(small_text_source(), _options(tmp_path / "bundle", evaluations=(read_evaluation(str(path)),)))
    (found,) = report.price.evaluations
    assert found.kind == "text-similarity"
    assert found.scores[0].packed == found.scores[0].float32
    with edge_embed.open(report.path) as runtime:
        assert runtime.encode("word1 word2").shape == (16,)


def test_a_loss_above_the_limit_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    options = _options(tmp_path / "bundle", codec="pq:2", max_loss=0.01)
    with pytest.raises(LossError, match=r"pq:2: expected to lose at most 0.01, found 0\.\d+ in table 1 - neighbour"):
        export(small_source(keys=tuple(f"w{i}" for i in range(400))), options)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_at_the_limit_is_within_it(tmp_path: Path) -> None:
    loss = export(small_source(), _options(tmp_path / "free", codec="int4")).price.worst[1]
    assert loss > 0
    export(small_source(), _options(tmp_path / "at", codec="int4", max_loss=loss))
    with pytest.raises(LossError):
        export(small_source(), _options(tmp_path / "under", codec="int4", max_loss=loss - 0.0001))


def test_with_questions_their_losses_count_and_neighbours_do_not(tmp_path: Path) -> None:
    report = export(small_source(), _options(tmp_path / "bundle", codec="int4", evaluations=(_pairs(tmp_path),)))
    assert list(report.price.losses) == ["pairs.tsv spearman"]


def test_the_smallest_bundle_within_the_loss_is_made_and_every_try_is_told(tmp_path: Path) -> None:
    report, trials = export_smallest(small_source(), _options(tmp_path / "bundle", max_loss=0.2))
    assert [trial.codec for trial in trials] == list(candidates(16))
    prices = [trial.price for trial in trials if trial.price is not None]
    allowed = [price for price in prices if price.worst[1] <= 0.2]
    assert report.price == min(allowed, key=lambda price: price.size_bytes)
    assert report.price in prices  # the bundle is the one that was tried
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_no_loss_at_all_leaves_float32_or_what_equals_it(tmp_path: Path) -> None:
    report, trials = export_smallest(small_source(), _options(tmp_path / "bundle", max_loss=0.0))
    assert report.price.worst[1] == 0
    assert any(not trial.within for trial in trials)


def test_a_codec_that_cannot_hold_the_numbers_is_refused_and_the_others_are_tried(tmp_path: Path) -> None:
    source = small_source()
    table = source.table.vectors[0:64].copy()
    table[0, 0] = 1e6
    large = type(source)(source.title, (type(source.table)(**{**vars(source.table), "vectors": table}),))
    report, trials = export_smallest(large, _options(tmp_path / "bundle", max_loss=0.5))
    refused = {trial.codec: trial.refused for trial in trials if trial.price is None}
    assert "float16" in refused
    assert "1e+06" in refused["float16"]
    assert report.path.is_dir()


def test_a_table_of_row_ids_alone_answers_no_words(tmp_path: Path) -> None:
    source = small_source()
    bare = type(source)(source.title, (type(source.table)(**{**vars(source.table), "keys": None, "text": None}),))
    with pytest.raises(RequestError, match="found a table of row ids alone"):
        export(bare, _options(tmp_path / "bundle", evaluations=(_pairs(tmp_path),)))


def _source_file(folder: Path) -> Path:
    path = folder / "words.txt"
    table = small_source().table.vectors[0:60]
    rows = [f"word{i} " + " ".join(f"{x:.6f}" for x in row) for i, row in enumerate(table)]
    path.write_text("\n".join([f"{len(rows)} 16", *rows]) + "\n")
    return path


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_embed", "export", *words], capture_output=True, text=True, timeout=300
    )


def test_the_command_answers_no_with_status_1_and_writes_the_report_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source, target, page = _source_file(tmp_path), tmp_path / "bundle", tmp_path / "report.html"
    words = ("--codec", "int4", "--max-loss", "0", "--report", str(page), "--json")
    found = _run(str(source), "-o", str(target), *words)
    assert found.returncode == 1
    assert "expected to lose at most 0, found" in json.loads(found.stdout)["error"]
    assert not target.exists()
    assert "No bundle was written" in page.read_text(encoding="utf-8")


def test_the_command_shows_what_each_codec_cost(tmp_path: Path) -> None:
    source, questions = _source_file(tmp_path), tmp_path / "pairs.tsv"
    _pairs(tmp_path)
    words = ("--codec", "auto", "--max-loss", "0.5", "--graphs", "none", "--eval", f"similarity:{questions}")
    told = _run(str(source), "-o", str(tmp_path / "one"), *words)
    assert told.returncode == 0, told.stderr
    assert re.search(r"int8 +\d+\.\d [KM]iB +[01]\.\d{4}", told.stdout)
    assert re.search(r"pairs\.tsv spearman: float32 [\d.]+, packed", told.stdout)
    found = _run(str(source), "-o", str(tmp_path / "two"), *words, "--json")
    answer = strict_json.loads(found.stdout.encode(), source="stdout")
    assert isinstance(answer, dict)
    assert [trial["codec"] for trial in answer["tried"]] == list(candidates(16))
    assert answer["codec"] in {trial["codec"] for trial in answer["tried"] if trial["within"]}
    assert answer["evaluations"][0]["file"] == "pairs.tsv"


@pytest.mark.parametrize("loss", ["-1", "2", "nan", "much"])
def test_a_loss_is_a_share(tmp_path: Path, loss: str) -> None:
    found = _run("absent", "-o", str(tmp_path / "bundle"), f"--max-loss={loss}")
    assert found.returncode == 2
    assert "expected a loss from 0 to 1" in found.stderr
