"""A bundle that loses more than its owner allows is not written; the smallest that does not is found."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.errors import RequestError
from edge_embed_bundle import strict_json
from edge_embed_bundle.bundle import Bundle
from edge_embed_export.choosing import candidates, export_smallest
from edge_embed_export.evaluation import Interval, Task, read_evaluation
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.preparing import Preparing, prepared
from edge_embed_export.pricing import LossError
from edge_embed_export.sources import Source, read_source
from tests.fasttext_files import LABELS, Model
from tests.floret_files import floret_file
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


TEXTS = "the board is warm\tboards are warmer\t4\nüber the board\t東京 stranger\t2\nboard board\tboards boards\t5\n"
TEXTS += "word1 stranger word2\tword2\t3\nword4 nobody\tword5 word4\t1\nword7 word8\tword9\t2\n"


def _fasttext(folder: Path, model: Model) -> Source:
    (folder / "model.bin").write_bytes(model.to_bytes())
    return read_source(folder / "model.bin")


def _skipping(folder: Path) -> Source:
    source = small_text_source()
    text = source.table.text
    assert text is not None
    return replace(source, tables=(replace(source.table, text=replace(text, skipped_token=0, max_letters=12)),))


@pytest.mark.parametrize(
    "source_in",
    [
        lambda folder: _fasttext(folder, Model()),
        lambda folder: _fasttext(folder, Model(labels=LABELS, model=3, loss=3, word_ngrams=2)),
        lambda folder: read_source(floret_file(folder)),
        _skipping,
    ],
    ids=["fastText", "fastText, supervised", "floret", "an encoder that skips unknown tokens"],
)
@pytest.mark.parametrize("questions", [TEXTS, TEXTS.replace("the board is ", "").replace("are ", "")])
def test_what_is_stored_as_float32_loses_nothing_on_any_question(
    tmp_path: Path, source_in: Callable[[Path], Source], questions: str
) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "texts.tsv").write_text(questions, encoding="utf-8")
    task = read_evaluation(f"text-similarity:{tmp_path / 'texts.tsv'}")
    report = export(source_in(tmp_path), _options(tmp_path / "bundle", codec="float32", evaluations=(task,)))
    (score,) = report.price.evaluations[0].scores
    assert (score.float32, score.loss) == (score.packed, 0)
    assert score.loss_interval == Interval(0, 0)


def test_words_that_a_model_makes_of_their_parts_are_known(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("board\tboarding\t4\nwarm\tcold\t1\nWARM\tübermäßig\t2\n", encoding="utf-8")
    task = read_evaluation(f"similarity:{tmp_path / 'pairs.tsv'}")
    report = export(_fasttext(tmp_path, Model()), _options(tmp_path / "bundle", codec="int4", evaluations=(task,)))
    (found,) = report.price.evaluations
    assert (found.asked, found.known) == (3, 3)


def test_numbers_that_were_cut_off_are_part_of_the_price(tmp_path: Path) -> None:
    short = prepared(small_source(), Preparing(dimensions=4, reduce="leading"))
    report = export(short, _options(tmp_path / "bundle", codec="float32", evaluations=(_pairs(tmp_path),)))
    quality = report.quality["table"]
    assert quality.bytes_before == 4 * quality.bytes_after
    assert quality.neighbour_overlap_at_10 < 0.6
    whole = export(small_source(), _options(tmp_path / "whole", codec="float32", evaluations=(_pairs(tmp_path),)))
    (score,), (untouched,) = (each.price.evaluations[0].scores for each in (report, whole))
    assert score.float32 == untouched.float32
    assert score.packed < score.float32
    with pytest.raises(LossError, match="neighbour overlap"):
        export(short, _options(tmp_path / "refused", codec="float32", max_loss=0.01))


def test_a_table_that_only_another_one_reads_is_priced_by_its_cosines(tmp_path: Path) -> None:
    report = export(_fasttext(tmp_path, Model()), _options(tmp_path / "bundle", codec="int4"))
    assert set(report.price.losses) == {"table 1 - neighbour overlap@10", "subwords 1 - mean cosine"}
    assert 0 < report.price.losses["subwords 1 - mean cosine"] < 0.01


def test_tables_of_different_codecs_are_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(LossError, match=r"^a=int8, b=int4: expected to lose"):
        export(_two_tables(), _options(tmp_path / "bundle", codecs={"b": "int4"}, max_loss=0.01))
    with pytest.raises(RequestError, match="--codec auto: expected no other codec beside it, found one for b"):
        export_smallest(_two_tables(), _options(tmp_path / "bundle", codec="auto", codecs={"b": "pq:1"}))


def _two_tables() -> Source:
    tables = tuple(replace(small_source(seed=seed).table, name=name) for seed, name in enumerate("ab"))
    return Source("two", tables)


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


@pytest.mark.parametrize("option", ["--keys", "--vocab", "--keep-words", "--eval", "--collection", "--report"])
def test_a_pipe_or_a_device_is_no_file_beside_a_source(tmp_path: Path, option: str) -> None:
    source, pipe = _source_file(tmp_path), tmp_path / "pipe"
    os.mkfifo(pipe)
    array = tmp_path / "v.npy"
    np.save(array, np.eye(20, dtype=np.float32))
    given = str(array if option == "--keys" else source)
    for name in (str(pipe), "/dev/zero"):
        found = _run(given, "-o", str(tmp_path / "bundle"), "--graphs", "none", option, name)
        assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
        assert name in found.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_report_never_takes_the_place_of_anything_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source = _source_file(tmp_path)
    before = source.read_bytes()
    words = (str(source), "-o", str(tmp_path / "bundle"), "--graphs", "none", "--report")
    found = _run(*words, str(source))
    assert (found.returncode, source.read_bytes()) == (2, before)
    assert "expected a new file or a report to replace" in found.stderr
    for _ in range(2):
        assert _run(*words, str(tmp_path / "report.html"), "--force").returncode == 0


def test_an_export_that_the_system_stops_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "v.npy"
    np.save(source, np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32))
    command = [sys.executable, "-m", "edge_embed", "export", str(source), "-o", str(tmp_path / "b"), "--codec", "rq:64"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".b.partial-*")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


@pytest.mark.parametrize("loss", ["-1", "2", "nan", "much"])
def test_a_loss_is_a_share(tmp_path: Path, loss: str) -> None:
    found = _run("absent", "-o", str(tmp_path / "bundle"), f"--max-loss={loss}")
    assert found.returncode == 2
    assert "expected a loss from 0 to 1" in found.stderr
