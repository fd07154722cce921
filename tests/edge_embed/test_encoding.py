"""A runtime encodes by a bundle's graph: as the model is defined, whatever stands beside a text, or with the reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed.encoding import open_graph_encoder
from edge_embed.errors import BudgetError, BundleError, DeadlineError, MissingExtraError, RequestError
from edge_embed_bundle.bundle import Bundle
from tests.attacks.hostile import sign
from tests.attacks.makers import put, read_manifest, write_manifest
from tests.small_encoders import LONGEST, SENTENCES, SPECIAL, WORDS, make_encoder_bundle, write_encoder
from tests.small_transformers import by_definition, config, weights

TOKENS = (*SPECIAL, *WORDS)
TEXTS = ("", "word1", "word1 word2 word3 word4", "東京 naïve word9", "stranger", " \t\n ", "word7 " * 50)
ENGINES = ("onnxruntime", "litert")


def ids_of(text: str, longest: int = LONGEST) -> list[int]:
    """Return a text's token ids by the definition of the small tokenizer."""
    words = [TOKENS.index(word) if word in TOKENS else 1 for word in text.split()]
    return [2, *words[: longest - 2], 3]


def defined(texts: tuple[str, ...] | list[str], **how: Any) -> NDArray[np.float64]:
    """Return the vectors of texts by the definition of the small transformer."""
    configuration = config(pad_token_id=0)
    return np.stack([by_definition(weights(), configuration, ids_of(text), **how) for text in texts])


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, encoder_bundle: Path) -> Path:
    """The small encoder in float32."""
    return make_encoder_bundle(tmp_path_factory.mktemp("exact") / "bundle", encoder_folder, codec="float32").path


@pytest.fixture
def copied(encoder_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copied"
    shutil.copytree(encoder_bundle, copy)
    for path in copy.iterdir():
        path.chmod(0o644)
    return copy


@pytest.fixture
def runtime(encoder_bundle: Path) -> Iterator[edge_embed.Runtime]:
    with edge_embed.open(encoder_bundle) as opened:
        yield opened


def test_float32_is_the_definition_on_every_engine(exact: Path, engine: str) -> None:
    with edge_embed.open(exact, engine=engine) as runtime:
        found = runtime.encode(TEXTS)
        assert found.dtype == np.float32 and found.shape == (len(TEXTS), 16)
        np.testing.assert_allclose(found, defined(TEXTS), atol=1e-5)


def test_int8_is_near_to_the_definition_on_every_engine(encoder_bundle: Path, engine: str) -> None:
    with edge_embed.open(encoder_bundle, engine=engine) as runtime:
        tolerances = {graph.format: graph.tolerance for graph in runtime.manifest.encoders[0].graphs}
        assert max(tolerances.values()) <= 0.05
        found = runtime.encode(TEXTS)
    np.testing.assert_allclose(found, defined(TEXTS), atol=3 * max(tolerances.values()))


def test_a_text_has_the_same_bits_alone_in_any_company_and_by_any_batch_size(encoder_bundle: Path, engine: str) -> None:
    texts = [*TEXTS, *SENTENCES, *(f"word{i} word{i + 1}" for i in range(30))]
    with edge_embed.open(encoder_bundle, engine=engine) as runtime:
        alone = np.stack([runtime.encode(text) for text in texts])
        np.testing.assert_array_equal(runtime.encode(texts), alone)
        np.testing.assert_array_equal(runtime.encode(texts[::-1])[::-1], alone)
        for size in (1, 3, 100):
            np.testing.assert_array_equal(runtime.encode(texts, batch_size=size), alone)
    with edge_embed.open(encoder_bundle, engine=engine, threads=2) as runtime:
        np.testing.assert_array_equal(runtime.encode(texts), alone)


def test_another_process_and_the_command_line_give_the_same_bits(encoder_bundle: Path, engine: str) -> None:
    with edge_embed.open(encoder_bundle, engine=engine) as runtime:
        expected = runtime.encode(list(SENTENCES))
    command = [sys.executable, "-m", "edge_embed", "encode", str(encoder_bundle), *SENTENCES]
    found = subprocess.run(
        [*command, "--engine", engine, "--json", "--threads", "2"], capture_output=True, timeout=60, check=True
    )
    answers = json.loads(found.stdout)["answers"]
    assert [answer["input"] for answer in answers] == list(SENTENCES)
    np.testing.assert_array_equal(np.array([answer["vector"] for answer in answers], np.float32), expected)


def test_the_collection_is_searched_by_texts(runtime: edge_embed.Runtime) -> None:
    for sentence in SENTENCES:
        found = runtime.search(text=sentence, k=2)
        assert found.keys[0] == sentence and found.scores[0] > 0.99
    assert runtime.search(SENTENCES[0], k=1).keys != (SENTENCES[0],)
    stamped = runtime.stamped(text=SENTENCES[1])
    assert stamped.space == runtime.space.id
    assert runtime.search(vector=stamped, k=1).keys == (SENTENCES[1],)


def test_what_the_model_was_not_made_for_is_refused_by_name(runtime: edge_embed.Runtime, bundle: Path) -> None:
    for text, says in (
        (3, "text 0: expected str, found int"),
        ("a\ud800b", "text 0: expected Unicode text, found a lone surrogate at 1"),
    ):
        with pytest.raises(RequestError, match=says):
            runtime.encode([text])  # type: ignore[list-item]
    for nothing in (None, 3, {"word1": 1}, {"word1"}, np.array("word1")):
        with pytest.raises(RequestError, match=f"expected one or several texts, found {type(nothing).__name__}"):
            runtime.encode(nothing)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expected a bundle that encodes images, found none that does"):
        runtime.encode_image(b"")
    # The time of a call begins with it, so its deadline is looked at first.
    with pytest.raises(RequestError, match="expected a deadline"):
        runtime.encode_image(b"", deadline_ms=0)
    with pytest.raises(RequestError, match=r"expected one of the tables collection, found 'encoder'"):
        runtime.lookup("word1", model="encoder")
    with edge_embed.open(bundle) as table, pytest.raises(RequestError, match="expected a bundle that encodes images"):
        table.encode_image(b"")


def test_nulls_unknown_scripts_and_ten_megabytes_are_texts(runtime: edge_embed.Runtime) -> None:
    longest = runtime.encode("word7 " * 50)
    np.testing.assert_array_equal(runtime.encode("word7 " * 2_000_000), longest)
    unknown = runtime.encode("stranger")
    for text in ("𓀀", "ﷺ", "\u200b", "\0"):
        np.testing.assert_array_equal(runtime.encode(text), unknown)
    np.testing.assert_array_equal(runtime.encode("word1\0word2"), runtime.encode("word1 stranger word2"))
    np.testing.assert_array_equal(runtime.encode("\n"), runtime.encode(""))


def test_a_prompt_stands_before_each_text(runtime: edge_embed.Runtime) -> None:
    prompted = runtime.encode(["word3", " word4"], prompt="query")
    np.testing.assert_array_equal(prompted, runtime.encode(["word1 word2word3", "word1 word2 word4"]))
    with pytest.raises(RequestError, match=r"expected a prompt of this model \(query\), found 'passage'"):
        runtime.encode("word3", prompt="passage")


def test_a_default_prompt_is_used_where_none_is_named(tmp_path: Path) -> None:
    prompts = {"query": "word1 ", "passage": "word2 "}
    folder = write_encoder(tmp_path / "model", prompts=prompts, default_prompt="passage")
    made = make_encoder_bundle(tmp_path / "bundle", folder, codec="float32", graphs=("onnx",), collection=())
    with edge_embed.open(made.path) as runtime:
        np.testing.assert_allclose(runtime.encode("word5"), defined(["word2 word5"])[0], atol=1e-5)
        np.testing.assert_allclose(runtime.encode("word5", prompt="query"), defined(["word1 word5"])[0], atol=1e-5)


def test_a_longer_text_is_refused_where_the_manifest_says_so(copied: Path) -> None:
    put("refuse", "models", 0, "text", "too_long")(copied)
    with edge_embed.open(copied) as runtime:
        np.testing.assert_array_equal(runtime.encode("word7 " * 30).shape, (16,))
        with pytest.raises(RequestError, match=rf"text 1: expected at most {LONGEST} tokens, found 33; this model"):
            runtime.encode(["word1", "word7 " * 31])
        with pytest.raises(RequestError, match=r"text 0: expected at most 2048 letters, found 6000000"):
            runtime.encode("word7 " * 1_000_000)


def test_normalization_can_be_asked_for_but_not_undone(runtime: edge_embed.Runtime, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected normalized vectors, which are all that encoder.onnx gives"):
        runtime.encode("word1", normalize=False)
    np.testing.assert_array_equal(runtime.encode("word1", normalize=True), runtime.encode("word1"))
    folder = write_encoder(tmp_path / "model", normalize=False, pooling="cls")
    made = make_encoder_bundle(tmp_path / "bundle", folder, codec="float32", collection=())
    with edge_embed.open(made.path) as plain:
        found = plain.encode(TEXTS)
        np.testing.assert_allclose(found, defined(TEXTS, pooling="cls", normalize=False), atol=1e-5)
        np.testing.assert_allclose(
            plain.encode(TEXTS, normalize=True), found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-6
        )


def test_a_deadline_that_is_over_is_an_error_and_no_shorter_list(runtime: edge_embed.Runtime) -> None:
    with pytest.raises(DeadlineError, match=r"expected 100000 texts to be encoded before the deadline, found \d+ done"):
        runtime.encode(["word1"] * 100_000, deadline_ms=20)
    assert runtime.encode(["word1"] * 3, deadline_ms=60_000).shape == (3, 16)
    for wrong in (0, -1, "soon"):
        with pytest.raises(RequestError, match="expected a deadline"):
            runtime.encode("word1", deadline_ms=wrong)  # type: ignore[arg-type]
    for size in (0, -1, 1.5, True):
        with pytest.raises(RequestError, match="expected a batch size of at least 1"):
            runtime.encode(["word1"], batch_size=size)  # type: ignore[arg-type]


def test_static_encoders_take_the_same_options(text_bundle: Path) -> None:
    with edge_embed.open(text_bundle) as runtime:
        usual = runtime.encode(["word1 word2", "word3"])
        np.testing.assert_array_equal(runtime.encode(["word1 word2", "word3"], batch_size=1), usual)
        longer = runtime.encode(["word1 word2", "word3"], normalize=False)
        np.testing.assert_allclose(longer / np.linalg.norm(longer, axis=1, keepdims=True), usual, atol=1e-6)
        assert not np.allclose(longer, usual)
        with pytest.raises(RequestError, match="expected no prompt, which static encoders do not have, found 'query'"):
            runtime.encode("word1", prompt="query")


def test_the_first_call_does_not_wait_for_the_engine(encoder_bundle: Path) -> None:
    with edge_embed.open(encoder_bundle) as runtime:
        assert "encoder" in runtime._current()._encoders


def test_an_engine_that_no_graph_is_for_or_nobody_knows_is_one_error(encoder_folder: Path, tmp_path: Path) -> None:
    made = make_encoder_bundle(tmp_path / "bundle", encoder_folder, graphs=("onnx",), collection=())
    for name in ("litert", "tflite-runtime", "torch"):
        with pytest.raises(RequestError, match=rf"expected an engine of onnxruntime for encoder, found '{name}'"):
            edge_embed.open(made.path, engine=name)


def test_without_an_engine_all_else_is_answered_and_the_extra_is_named(encoder_bundle: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('onnxruntime', 'ai_edge_litert', 'ai_edge_litert.interpreter', "
        "'tflite_runtime', 'tflite_runtime.interpreter'))\n"
        "import edge_embed\n"
        f"with edge_embed.open({str(encoder_bundle)!r}) as runtime:\n"
        f"    print(runtime.search({SENTENCES[0]!r}, k=1).keys)\n"
        "    try:\n"
        "        runtime.encode('word1')\n"
        "    except edge_embed.MissingExtraError as error:\n"
        "        print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    keys, said = found.stdout.splitlines()
    assert keys.startswith("('")
    assert said == (
        "running an ONNX graph needs the package onnxruntime, which is not installed; "
        "the extra edge-embed[onnx] brings it"
    )


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("litert", "ai-edge-litert", "tflite"),
        ("tflite-runtime", "tflite-runtime", "legacy"),
    ],
)
def test_an_engine_that_is_named_and_missing_is_one_error_and_no_other_takes_its_place(
    encoder_bundle: Path, bundle: Path, name: str, package: str, extra: str
) -> None:
    if os.uname().machine == "armv7l":
        pytest.skip("there the extra tflite brings tflite-runtime")
    program = (
        "import sys\n"
        "name, module, *bundles = sys.argv[1:]\n"
        "sys.modules |= dict.fromkeys((module, f'{module}.interpreter'))\n"
        "import edge_embed\n"
        "for bundle in bundles:\n"
        "    try:\n"
        "        with edge_embed.open(bundle, engine=name) as runtime:\n"
        "            runtime.encode('word1')\n"
        "    except edge_embed.MissingExtraError as error:\n"
        "        print(error)\n"
    )
    module = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}.get(name, name)
    command = [sys.executable, "-c", program, name, module, str(encoder_bundle), str(bundle)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said = f"needs the package {package}, which is not installed; the extra edge-embed[{extra}] brings it"
    assert [line.partition(" needs ")[2] for line in found.stdout.splitlines()] == [said.removeprefix("needs ")] * 2


def test_an_engine_that_is_not_proven_is_asked_first_and_a_wrong_one_never_serves(copied: Path) -> None:
    manifest = read_manifest(copied)
    for graph in manifest["models"][0]["graphs"]:
        graph["proven"] = []
    write_manifest(copied, manifest)
    with edge_embed.open(copied) as runtime:
        runtime.encode("word1")
    # The same engine, asked for other answers: as a version that computes something else would give.
    with Bundle.open(copied) as bundle:
        (golden,) = (each for each in bundle.manifest.golden if each.operation == "encode")
        data = bytearray((copied / golden.expected.blob).read_bytes())
        place = slice(golden.expected.offset_bytes, golden.expected.offset_bytes + golden.expected.size_bytes)
    data[place] = np.roll(np.frombuffer(data[place], np.float32), 1).tobytes()
    (copied / golden.expected.blob).write_bytes(data)
    sign(copied)
    with pytest.raises(BundleError, match=r"expected the golden answers from onnxruntime .*, found encode of .* NOT w"):
        edge_embed.open(copied)


def test_an_engine_that_fails_lets_another_one_serve(copied: Path) -> None:
    manifest = read_manifest(copied)
    onnx = manifest["models"][0]["graphs"][0]
    onnx["proven"], onnx["tolerance"] = [], 1e-9
    write_manifest(copied, manifest)
    with edge_embed.open(copied) as runtime, edge_embed.open(copied, engine="litert") as litert:
        np.testing.assert_array_equal(runtime.encode("word1"), litert.encode("word1"))
    with pytest.raises(BundleError, match="expected the golden answers from onnxruntime"):
        edge_embed.open(copied, engine="onnxruntime")


def test_memory_that_an_encoder_took_is_measured_and_refused(encoder_bundle: Path) -> None:
    program = "import edge_embed, sys\nedge_embed.open(sys.argv[1], memory_budget=int(sys.argv[2])).close()\n"

    def opened(budget: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(encoder_bundle), str(budget)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert opened(256 * 2**20).returncode == 0
    assert "BudgetError" in opened(20 * 2**20).stderr
    assert issubclass(BudgetError, RequestError) and issubclass(MissingExtraError, RequestError)


def test_a_graph_of_other_inputs_is_refused_by_what_it_has(copied: Path) -> None:
    put("input_ids", "models", 0, "graphs", 0, "inputs", 0, "name")(copied)
    with pytest.raises(BundleError, match=r"expected a graph from \[\('input_ids', .*\)\] to vectors, found \[\('ids'"):
        edge_embed.open(copied, engine="onnxruntime")
    with Bundle.open(copied) as bundle, pytest.raises(BundleError, match="expected a graph from"):
        open_graph_encoder(bundle, bundle.manifest.encoders[0], bundle.manifest.encoders[0].graphs[0])


def test_a_tokenizer_that_does_not_match_is_an_error_and_the_process_lives(copied: Path) -> None:
    definition = json.loads((copied / "tokenizer.json").read_bytes())
    definition["model"]["vocab"]["word1"] = 5_000
    (copied / "tokenizer.json").write_text(json.dumps(definition))
    sign(copied)
    with edge_embed.open(copied, engine="onnxruntime") as runtime:
        with pytest.raises(BundleError, match=r"expected vectors from ONNX Runtime .*, found"):
            runtime.encode("word1")
        assert runtime.encode("word2").shape == (16,)


@pytest.mark.parametrize(("name", "does"), [("truncation", "cuts"), ("padding", "pads")])
def test_a_tokenizer_that_works_from_the_left_is_refused_at_open(copied: Path, name: str, does: str) -> None:
    definition = json.loads((copied / "tokenizer.json").read_bytes())
    definition[name]["direction"] = "Left"
    (copied / "tokenizer.json").write_text(json.dumps(definition))
    sign(copied)
    with pytest.raises(BundleError, match=f"expected a tokenizer that {does} on the right, found one that {does} on t"):
        edge_embed.open(copied)


def test_a_bundle_of_an_encoder_alone_has_no_table_to_ask(encoder_folder: Path, tmp_path: Path) -> None:
    made = make_encoder_bundle(tmp_path / "bundle", encoder_folder, graphs=("onnx",), collection=())
    with edge_embed.open(made.path) as runtime:
        assert runtime.encode("word1").shape == (16,)
        for ask in (lambda: runtime.lookup("word1"), lambda: runtime.search(text="word1")):
            with pytest.raises(RequestError, match="expected a bundle with a table, found encoders alone"):
                ask()
