"""A folder whose network is an ONNX file of another maker becomes a bundle, the file as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import RequestError
from edge_embed_export.encoders import export_encoder
from edge_embed_export.options import Options
from edge_embed_export.sources import read_encoder
from tests.small_encoders import SENTENCES, SPECIAL, WORDS, write_encoder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")
helper = onnx.helper

TOKENS = (*SPECIAL, *WORDS)
ROWS = np.random.default_rng(3).normal(size=(len(TOKENS), 12)).astype(np.float32)


def mean_of(text: str) -> NDArray[np.float32]:
    """Return the direction of the mean of the rows of a text's tokens."""
    rows = ROWS[[2, *(TOKENS.index(word) for word in text.split()), 3]].mean(axis=0)
    return np.asarray(rows / np.linalg.norm(rows), np.float32)


def write_graph(
    path: Path,
    *,
    pooled: bool = False,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"),
    beside: bool = False,
    change: Callable[[Any], None] | None = None,
) -> None:
    """Write a graph as exporters do: a row for each token, or their masked mean as ``sentence_embedding``."""
    nodes = [helper.make_node("Gather", ["rows", inputs[0]], ["last_hidden_state"])]
    outputs = [helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["n", "l", 12])]
    weights = [onnx.numpy_helper.from_array(ROWS, "rows")]
    if pooled:
        weights += [onnx.numpy_helper.from_array(np.array([axis]), f"axis{axis}") for axis in (1, 2)]
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "axis2"], ["column"]),
            helper.make_node("Mul", ["last_hidden_state", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis1"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "axis1"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["sentence_embedding"]),
        ]
        outputs.append(helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, ["n", 12]))
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n", "l"]) for name in inputs]
    graph = helper.make_graph(nodes, "encoder", given, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if change is not None:
        change(model)
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, str(path), save_as_external_data=beside, location="model.onnx_data", size_threshold=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sentence-transformers folder without weights of its own."""
    made = write_encoder(tmp_path / "model", prompts={"query": "word1 "})
    (made / "model.safetensors").unlink()
    return made


def _made(folder: Path, target: Path, **options: Any) -> Path:
    options = {"codec": "float32", "graphs": ("onnx",), "collection": SENTENCES, "name": "small", **options}
    return export_encoder(read_encoder(folder, "onnx-text"), Options(target=target, **options)).path


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_vectors_and_tokens_become_the_same_answers(place: str, pooled: bool, folder: Path, tmp_path: Path) -> None:
    write_graph(folder / place, pooled=pooled)
    path = _made(folder, tmp_path / "bundle")
    with edge_embed.open(path) as runtime:
        (graph,) = runtime.manifest.encoders[0].graphs
        assert (graph.output.name, graph.output.holds) == (
            ("sentence_embedding", "pooled") if pooled else ("last_hidden_state", "tokens")
        )
        assert {each.role for each in graph.inputs} == {"ids", "mask", "types"} and graph.max_batch == 1
        texts = [*SENTENCES, "word7", "word1 word2"]
        np.testing.assert_allclose(runtime.encode(texts), [mean_of(text) for text in texts], atol=1e-6)
        np.testing.assert_allclose(runtime.encode("word3", prompt="query"), mean_of("word1 word3"), atol=1e-6)
        assert runtime.search(text=SENTENCES[2], k=1).keys == (SENTENCES[2],)
    assert main(["verify", str(path)]) == 0


def test_weights_beside_the_file_travel_with_it(folder: Path, tmp_path: Path) -> None:
    write_graph(folder / "onnx" / "model.onnx", beside=True, inputs=("input_ids", "attention_mask"))
    path = _made(folder, tmp_path / "bundle")
    assert (path / "encoder.onnx").read_bytes() == (folder / "onnx" / "model.onnx").read_bytes()
    assert (path / "model.onnx_data").read_bytes() == (folder / "onnx" / "model.onnx_data").read_bytes()
    with edge_embed.open(path) as runtime:
        np.testing.assert_allclose(runtime.encode("word7 word8"), mean_of("word7 word8"), atol=1e-6)


def test_the_shell_takes_the_graph_as_it_is(folder: Path, tmp_path: Path) -> None:
    write_graph(folder / "model.onnx", pooled=True)
    words = ["export", str(folder), "--format", "onnx-text", "-o", str(tmp_path / "bundle")]
    assert main(words) == 0
    assert main(["encode", str(tmp_path / "bundle"), "word1 word2"]) == 0
    shutil.rmtree(tmp_path / "bundle")
    assert main([*words, "--codec", "int8"]) == 2
    assert main([*words, "--codec", "auto"]) == 2


def _named(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node[0].domain = name

    return change


def _garbage(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"x" * 100)


def _climbing(folder: Path) -> None:
    write_graph(folder / "model.onnx", beside=True)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    (folder / "model.onnx_data").rename(folder.parent / "model.onnx_data")
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            entry.value = "../model.onnx_data" if entry.key == "location" else entry.value
    (folder / "model.onnx").write_bytes(model.SerializeToString())


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no graph": (lambda folder: None, "expected model.onnx or onnx/model.onnx in the folder, found neither"),
    "a graph that is none": (_garbage, r"model.onnx: expected .* graph, found"),
    "other inputs": (
        lambda f: write_graph(f / "model.onnx", inputs=("tokens",)),
        "expected a graph of input_ids, found tokens",
    ),
    "an input more": (
        lambda f: write_graph(f / "model.onnx", inputs=("input_ids", "position_ids")),
        "expected inputs .* called input_ids, attention_mask, token_type_ids, found 'position_ids'",
    ),
    "an operator of its own": (
        lambda f: write_graph(f / "model.onnx", change=_named("com.stranger")),
        "operators of 'com.stranger', which no engine here brings",
    ),
    "weights above the folder": (_climbing, "expected weights in files beside it, found '../model.onnx_data'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_whose_graph_is_no_encoder_is_refused(name: str, folder: Path) -> None:
    make, says = BROKEN[name]
    make(folder)
    with pytest.raises(RequestError, match=says):
        read_encoder(folder, "onnx-text")


@pytest.mark.filterwarnings("ignore")  # torch and transformers deprecate one another
def test_the_real_model_exported_by_torch_answers_as_ours(tmp_path: Path, real_model: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shutil.copytree(real_model, tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(real_model, attn_implementation="eager").eval().requires_grad_(False)

    class Named(torch.nn.Module):  # type: ignore[name-defined,misc,unused-ignore]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    texts = ["a small board", "", "the memory card is worn out", "東京 naïve", "word " * 400]
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_model)
    asked = [tokenizer(text, return_tensors="pt", truncation=True, max_length=256) for text in texts]
    with torch.inference_mode():
        means = torch.cat([model(**each).last_hidden_state.mean(dim=1) for each in asked])
        expected = torch.nn.functional.normalize(means).numpy()
        example = (asked[0]["input_ids"], asked[0]["attention_mask"], asked[0]["token_type_ids"])
        names = ["input_ids", "attention_mask", "token_type_ids"]
        torch.onnx.export(
            Named().eval(),
            example,
            str(tmp_path / "model" / "model.onnx"),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "n", 1: "l"} for name in (*names, "last_hidden_state")},
            dynamo=False,
        )
    exact = {"codec": "float32", "graphs": ("onnx",), "name": "minilm", "board": "pi-5"}
    theirs = export_encoder(read_encoder(tmp_path / "model", "onnx-text"), Options(tmp_path / "theirs", **exact))  # type: ignore[arg-type]
    ours = export_encoder(read_encoder(real_model, "transformer"), Options(tmp_path / "ours", **exact))  # type: ignore[arg-type]
    for made in (theirs, ours):
        with edge_embed.open(made.path) as runtime:
            np.testing.assert_allclose(runtime.encode(texts), expected, atol=1e-5)
