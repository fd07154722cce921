"""An encoder's folder becomes a bundle that needs no outside knowledge, with its price; what cannot is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import BundleError, RequestError
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.room import PROCESS_BYTES
from edge_embed_export.encoders import export_encoder
from edge_embed_export.evaluation import read_evaluation
from edge_embed_export.options import Options
from edge_embed_export.pricing import LossError, check_loss
from edge_embed_export.sources import read_encoder
from tests.small_encoders import LONGEST, SENTENCES, make_encoder_bundle, tokenizer, write_encoder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

ONNX: tuple[str, ...] = ("onnx",)


@pytest.fixture
def folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small encoder's folder that a test may damage."""
    shutil.copytree(encoder_folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pairs of texts with people's scores."""
    lines = [f"word{i} word{i + 1}\tword{i} word{2 * i % 40}\t{i % 6}" for i in range(40)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    return tmp_path / "pairs.tsv"


def test_the_manifest_says_all_that_a_reader_needs(encoder_bundle: Path) -> None:
    with Bundle.open(encoder_bundle) as bundle:
        manifest = bundle.manifest
    encoder, collection = manifest.models
    assert manifest.encoders == (encoder,) and manifest.tables == (collection,)
    text = manifest.encoders[0].text
    assert text is not None
    assert (text.max_tokens, text.pooling, text.special_tokens) == (LONGEST, "mean", True)
    assert (text.too_long, dict(text.prompts), text.default_prompt) == ("truncate", {"query": "word1 word2"}, None)
    assert set(manifest.requirements.features) == {"codec-int8", "encoder-text-1", "key-index-1"}
    onnx, tflite = manifest.encoders[0].graphs
    assert (onnx.blobs, tflite.blobs) == (("encoder.onnx", "encoder.bin"), ("encoder.tflite",))
    assert [graph.proven[0].name for graph in (onnx, tflite)] == ["onnxruntime", "litert"]
    assert all(0 < graph.tolerance <= 0.05 for graph in (onnx, tflite))
    assert {question.operation for question in manifest.golden} == {"encode", "lookup", "search"}
    assert set(manifest.budgets.operations) == {"encode", "lookup", "search"}
    price = manifest.quality["encoder"]
    assert price["mean_cosine"] > 0.999 and price["worst_cosine"] > 0.99


def test_export_says_what_a_board_is_predicted_to_take_and_refuses_a_budget_that_no_such_board_keeps(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(encoder_folder), "--format", "transformer", "--board", "pi-zero-2w", "--graphs", "onnx"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert "predicted on pi-zero-2w: " in said and "    encode: p50 " in said
    assert "rougher, for the profile has no python_call_ns, onnx_int8_products_g_per_s" in said
    assert main([*words, "-o", str(tmp_path / "two"), "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    assert 0 < predicted["operations"]["encode"]["p50_us"] <= predicted["operations"]["encode"]["p99_us"]
    assert main([*words, "-o", str(tmp_path / "three"), "--budget", "encode=0.001/1000"]) == 2
    assert "encode p50 on pi-zero-2w: expected at most 0.001 us, predicted" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_every_board_command_works_on_it(
    encoder_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    said: list[str] = []
    for words in (
        ["inspect", str(encoder_bundle)],
        ["verify", str(encoder_bundle)],
        ["check", str(encoder_bundle)],
        ["install", str(encoder_bundle), "--store", store],
        ["encode", store, "word1 word2", "--engine", "litert"],
        ["search", store, "--text", SENTENCES[0], "-k", "2"],
        ["check", store, "--board", "pi-4"],
        ["status", store],
    ):
        # What this machine takes while others work on it may be too long for a slower board.
        assert main(words) in ((0, 1) if "--board" in words else (0,)), words
        said.append(capsys.readouterr().out)
    assert "latency on pi-4 is predicted" in said[6]
    assert "encoder of texts, 16 numbers" in said[0] and "at most 32 tokens, a longer text is cut" in said[0]
    assert "encoder.onnx on onnxruntime" in said[1] and "encoder.tflite on litert" in said[1]
    assert said[5].splitlines()[0].endswith(SENTENCES[0])


def test_a_follower_moves_from_a_table_to_an_encoder_and_back(
    bundle: Path, encoder_bundle: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    assert main(["install", str(bundle), "--store", store]) == 0
    with edge_embed.open(store) as runtime:
        assert runtime.lookup("word1").shape == (16,)
        assert main(["install", str(encoder_bundle), "--store", store]) == 0
        assert runtime.encode("word1").shape == (16,) and runtime.problem is None
        assert main(["rollback", store]) == 0
        assert runtime.lookup("word1").shape == (16,)


def test_the_same_source_gives_the_same_bytes(encoder_folder: Path, tmp_path: Path) -> None:
    made = [make_encoder_bundle(tmp_path / name, encoder_folder).path for name in ("one", "two")]
    files = [{path.name: path.read_bytes() for path in each.iterdir()} for each in made]
    assert files[0] == files[1]


def test_codecs_of_one_source_share_a_space_and_other_weights_have_another(
    encoder_folder: Path, tmp_path: Path
) -> None:
    def space(folder: Path, codec: str) -> str:
        made = make_encoder_bundle(tmp_path / f"{folder.name}-{codec}", folder, codec=codec, graphs=ONNX)
        return made.manifest.space.id

    ours = {space(encoder_folder, codec) for codec in ("float32", "int8", "int8-blocks")}
    assert len(ours) == 1
    assert space(write_encoder(tmp_path / "other", seed=1), "int8") not in ours
    assert space(write_encoder(tmp_path / "pooled", pooling="max"), "int8") not in ours


def test_the_users_questions_price_the_packed_encoder(encoder_folder: Path, pairs: Path, tmp_path: Path) -> None:
    task = read_evaluation(str(pairs))
    made = make_encoder_bundle(tmp_path / "bundle", encoder_folder, graphs=ONNX, evaluations=(task,))
    (evaluation,) = made.price.evaluations
    (score,) = evaluation.scores
    assert score.measure == "spearman" and evaluation.known == 40
    assert abs(score.loss) < 0.05 and score.float32 != 0
    assert made.manifest.quality["encoder"]["evaluations"][0]["file"] == "pairs.tsv"


def test_a_bundle_that_would_lose_too_much_is_not_written(encoder_folder: Path, tmp_path: Path) -> None:
    fussy = tmp_path / "fussy.tsv"
    with edge_embed.open(make_encoder_bundle(tmp_path / "exact", encoder_folder, codec="float32").path) as runtime:
        vectors = runtime.encode([f"word{i} word{i + 3}" for i in range(40)]).astype(np.float64)
    scores = [float(a @ b) for a, b in pairwise(vectors)]
    lines = [f"word{i} word{i + 3}\tword{i + 1} word{i + 4}\t{score!r}" for i, score in enumerate(scores)]
    fussy.write_text("\n".join(lines))
    how: dict[str, Any] = {"graphs": ONNX, "evaluations": (read_evaluation(f"text-similarity:{fussy}"),), "max_loss": 0}
    with pytest.raises(LossError, match=r"int8: expected to lose at most 0, found .* in fussy.tsv spearman"):
        make_encoder_bundle(tmp_path / "bundle", encoder_folder, **how)
    assert not (tmp_path / "bundle").exists()
    make_encoder_bundle(tmp_path / "bundle", encoder_folder, codec="float32", **how)


def test_auto_takes_the_smallest_variant_within_the_loss(
    encoder_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bundle"
    words = ["export", str(encoder_folder), "--format", "transformer", "-o", str(target), "--codec", "auto"]
    words += ["--eval", str(pairs), "--max-loss", "0.2", "--report", str(tmp_path / "report.html"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [trial["codec"] for trial in found["tried"]] == ["float32", "int8", "int8-blocks"]
    sizes = {trial["codec"]: trial["size_bytes"] for trial in found["tried"]}
    assert sizes[found["codec"]] == min(sizes.values())
    assert "int8-blocks" in (tmp_path / "report.html").read_text()
    with edge_embed.open(target) as runtime:
        assert runtime.encode("word1").shape == (16,)


def test_every_graph_has_a_price_of_its_own(
    encoder_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = tmp_path / "bundle", tmp_path / "report.html"
    words = ["export", str(encoder_folder), "--format", "transformer", "-o", str(target), "--graphs", "onnx,tflite"]
    assert main([*words, "--eval", str(pairs), "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert main(["inspect", str(target)]) == 0
    shown = capsys.readouterr().out
    with Bundle.open(target) as bundle:
        quality = bundle.manifest.quality["encoder"]
    onnx, tflite = quality["graphs"]
    assert [onnx["blob"], tflite["blob"]] == ["encoder.onnx", "encoder.tflite"]
    assert onnx["mean_cosine"] == quality["mean_cosine"] and onnx["evaluations"] == quality["evaluations"]
    assert tflite["mean_cosine"] != onnx["mean_cosine"]
    for graph in (onnx, tflite):
        loss = graph["evaluations"][0]["scores"][0]["loss"]
        assert f"{graph['blob']}: cosine mean {graph['mean_cosine']:.6f}" in said
        assert f"pairs.tsv spearman loss {loss:.4f}" in said
        assert f"{graph['blob']}: mean_cosine {graph['mean_cosine']}" in shown
        assert f"pairs.tsv spearman loss {loss}" in shown
        assert f"pairs.tsv by {graph['blob']}" in report.read_text()


def test_a_graph_that_loses_too_much_is_refused_whichever_it_is(encoder_folder: Path, tmp_path: Path) -> None:
    price = make_encoder_bundle(tmp_path / "bundle", encoder_folder).price
    check_loss(price, 0.4)
    first, second = price.graphs
    worse = replace(second, quality=replace(second.quality, neighbour_overlap_at_10=0.5))
    with pytest.raises(LossError, match=r"found 0.5000 in 1 - neighbour overlap@10 by encoder.tflite; the bundle was"):
        check_loss(replace(price, graphs=(first, worse)), 0.4)


def test_an_export_from_the_shell_says_what_it_made(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES))
    words = ["export", str(encoder_folder), "--format", "transformer", "-o", str(tmp_path / "bundle")]
    assert main([*words, "--collection", str(tmp_path / "lines.txt"), "--codec", "collection=float32"]) == 0
    out = capsys.readouterr().out
    assert "encode encoder.onnx: proven on onnxruntime" in out and "cosine mean 0.999" in out
    with edge_embed.open(tmp_path / "bundle") as runtime:
        assert runtime.manifest.tables[0].codec == "float32"
        assert [graph.format for graph in runtime.manifest.encoders[0].graphs] == ["onnx"]


def _edit(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / file
        value = json.loads(path.read_text())
        found = change(value)
        path.write_text(json.dumps(value if found is None else found))

    return make


def _bytes(file: str, data: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return make


def _half_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


def _module(kind: str, path: str) -> Callable[[Path], None]:
    return _edit("modules.json", lambda modules: modules.append({"type": f"x.{kind}", "path": path}))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config.json: expected a model's"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors: expected a model's weights"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer.json: expected a tokenizer's definition"),
    "another family": (
        _edit("config.json", lambda c: c.update(model_type="gpt2")),
        r"model_type: expected one of bert",
    ),
    "half the weights": (_half_the_weights, r"model.safetensors: expected"),
    "modules that are none": (_bytes("modules.json", b"{}"), r"modules.json: expected a list of modules, found dict"),
    "modules that are no JSON": (_bytes("modules.json", b"[" * 10_000), r"modules.json: expected a model's settings"),
    "a dense step": (
        _module("Dense", "2_Dense"),
        r"expected modules of Transformer, Pooling, Normalize, .*Dense",
    ),
    "a module above the folder": (
        _edit("modules.json", lambda m: m[1].update(path="../elsewhere")),
        r"expected modules of .* in folders of this one",
    ),
    "a normalization first": (_edit("modules.json", lambda m: m.reverse()), r"modules.json: expected"),
    "two poolings at once": (
        _edit("1_Pooling/config.json", lambda c: c.update(pooling_mode_max_tokens=True)),
        r"1_Pooling/config.json: expected one mode of pooling of mean, cls, max, found mean, max",
    ),
    "a pooling by length": (
        _edit(
            "1_Pooling/config.json", lambda c: c.update(pooling_mode_mean_tokens=False, pooling_mode_weightedmean=True)
        ),
        r"expected one mode of pooling of mean, cls, max, found pooling_mode_weightedmean",
    ),
    "a pooling that leaves the prompt out": (
        _edit("1_Pooling/config.json", lambda c: c.update(include_prompt=False)),
        r"include_prompt: expected true, found False",
    ),
    "prompts that are none": (
        _edit("config_sentence_transformers.json", lambda c: c.update(prompts={"query": 3})),
        r"prompts: expected names and texts",
    ),
    "a tokenizer of another model": (
        _edit("tokenizer.json", lambda t: t["model"]["vocab"].update(more=50)),
        r"tokenizer.json: expected ids from 0 to 49, which the model in model has rows for, found 0 to 50",
    ),
    "a tokenizer that is a list": (_bytes("tokenizer.json", b"[]"), r"expected a tokenizer with a vocabulary of ids"),
    "a tokenizer that is no JSON": (_bytes("tokenizer.json", b"\xff"), r"expected a tokenizer with a vocabulary"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_no_encoder_is_refused_by_the_file(name: str, folder: Path) -> None:
    change, says = BROKEN[name]
    change(folder)
    with pytest.raises(RequestError, match=says) as caught:
        read_encoder(folder, "transformer")
    assert str(folder) in str(caught.value) and "found" in str(caught.value)


@pytest.mark.parametrize("name", ["truncation", "padding"])
def test_what_was_cut_or_padded_on_the_left_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    definition = tokenizer()
    definition[name]["direction"] = "Left"
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(RequestError, match=f"tokenizer.json: {name}: expected the right side, found 'Left'"):
        read_encoder(folder, "transformer")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({f"{name}_side": "left"}))
    with pytest.raises(RequestError, match=f"tokenizer_config.json: {name}_side: expected the right side, found 'lef"):
        read_encoder(folder, "transformer")


def test_a_tokenizer_that_the_package_does_not_take_writes_no_bundle(folder: Path, tmp_path: Path) -> None:
    definition = tokenizer(pre_tokenizer={"type": "Nothing"})
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(BundleError, match=r"tokenizer.json: expected a tokenizer definition, found"):
        make_encoder_bundle(tmp_path / "bundle", folder, graphs=ONNX)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"codec": "pq"}, "expected a codec of float32, int8, int8-blocks for an encoder, found 'pq'"),
        ({"graphs": ()}, "expected --graphs of one format or more, which are the encoder, found none"),
        ({"graphs": ("torch",)}, "expected graphs of onnx, tflite, found torch"),
        (
            {"codec": "int8-blocks", "graphs": ("tflite",)},
            "expected a graph of float32, int8 in tflite",
        ),
        ({"codecs": {"encoder": "int8"}}, "expected options for the collection alone, found encoder"),
        ({"codecs": {"collection": "int9"}}, "expected a codec"),
        ({"memory_budget_bytes": 2**20}, "expected a memory budget of .* or more, of which the bundle adds"),
        ({"name": "a b"}, "name: expected letters, digits"),
        ({"board": "pi-9"}, "pi-9"),
    ],
)
def test_an_option_that_no_encoder_has_is_refused(
    options: dict[str, Any], says: str, encoder_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(edge_embed.EdgeEmbedError, match=says):
        make_encoder_bundle(tmp_path / "bundle", encoder_folder, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_memory_budget_that_float32_alone_breaks_names_int8(encoder_folder: Path, tmp_path: Path) -> None:
    report = make_encoder_bundle(tmp_path / "bundle", encoder_folder, codec="float32")
    needed_bytes = report.manifest.requirements.memory_private_bytes + PROCESS_BYTES
    with pytest.raises(edge_embed.EdgeEmbedError, match="within it: --codec int8; or pass --budget memory"):
        make_encoder_bundle(tmp_path / "large", encoder_folder, codec="float32", memory_budget_bytes=needed_bytes - 1)
    make_encoder_bundle(tmp_path / "small", encoder_folder, codec="int8", memory_budget_bytes=needed_bytes - 1)


def test_options_of_tables_are_refused_beside_an_encoder(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(encoder_folder), "--format", "transformer", "-o", str(tmp_path / "bundle")]
    for more in (["--keep", "3"], ["--dimensions", "8"], ["--key-column", "word"], ["--table", "*"]):
        assert main([*words, *more]) == 2
        assert "expected no options that choose tables, keys" in capsys.readouterr().err


def test_an_encoder_without_modules_is_pooled_by_the_mean_and_says_so(folder: Path, tmp_path: Path) -> None:
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    source = read_encoder(folder, "transformer")
    assert source.text is not None and (source.text.pooling, source.normalize) == ("mean", False)
    assert source.text.max_tokens == 40 and "no modules.json" in source.notes[0]
    made = export_encoder(source, Options(target=tmp_path / "bundle", name="plain", graphs=ONNX))
    with edge_embed.open(made.path) as runtime:
        assert not np.allclose(np.linalg.norm(runtime.encode("word1")), 1)


def test_a_graph_that_does_not_answer_as_the_original_ends_the_export(encoder_folder: Path, tmp_path: Path) -> None:
    from edge_embed_export.sources.encoders import EncoderSource

    source = read_encoder(encoder_folder, "transformer")

    class Swapped:
        """A network whose packed graphs are those of another model."""

        variants, original = source.network.variants, source.network.original
        size_bytes, products_per_token = source.network.size_bytes, source.network.products_per_token
        run_bytes = source.network.run_bytes

        def write(self, writer: Any, name: str, format: str, variant: str) -> Any:
            network = source.network if variant == "float32" else other.network
            return network.write(writer, name, format, variant)

    other = read_encoder(write_encoder(tmp_path / "other", seed=7), "transformer")
    fields = {name: getattr(source, name) for name in EncoderSource.__dataclass_fields__}
    wrong = EncoderSource(**{**fields, "network": Swapped()})
    with pytest.raises(BundleError, match=r"expected vectors like the original's from onnxruntime"):
        export_encoder(wrong, Options(target=tmp_path / "bundle", name="wrong", graphs=ONNX))
    assert not (tmp_path / "bundle").exists()
