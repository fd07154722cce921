"""A transformer's TFLite graph answers as the transformer is defined, for texts of any length, on both engines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.writer import BlobWriter
from edge_embed_export.graphs.tflite_text import POOLINGS, VARIANTS, TextGraph
from edge_embed_export.transformer import FAMILIES, read_transformer
from tests.contracts.test_legacy_engine import LEGACY_PYTHON, ROOT
from tests.small_transformers import POSITIONS, TOKENS, Arrays, by_definition, config, weights, write_transformer
from tests.tflite_running import answers

pytest.importorskip("ai_edge_litert")
pytest.importorskip("safetensors")


TEXTS = [
    [7],
    [1, 2, 3],
    list(range(20)),
    [49, 0, 49],
    [int(i) for i in np.random.default_rng(1).integers(0, TOKENS, 30)],
]


def _graph(folder: Path, variant: str = "float32", **options: Any) -> Path:
    path = folder / f"{variant}.tflite"
    path.unlink(missing_ok=True)
    options = {"pooling": "mean", "normalize": True, "longest": 32, **options}
    with OsFs().create(path) as file:
        TextGraph(read_transformer(folder), variant, **options).write(BlobWriter(path.name, file))
    return path


def _encoded(path: Path, texts: Sequence[Sequence[int]], **options: Any) -> NDArray[np.float32]:
    found = answers(str(path), [np.array([ids], np.int32) for ids in texts], **options)
    assert all(vectors.shape[0] == 1 and vectors.dtype == np.float32 for vectors in found)
    return np.concatenate(found)


def _defined(
    arrays: Arrays, configuration: Mapping[str, object], texts: Sequence[Sequence[int]], **options: Any
) -> Any:
    return np.stack([by_definition(arrays, configuration, ids, **options) for ids in texts])


def _cosines(ones: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((ones * others).sum(axis=1) / lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_it_is_defined(family: str, tmp_path: Path) -> None:
    arrays, configuration = weights(types=family != "distilbert"), config(family)
    folder = write_transformer(tmp_path, arrays, configuration, prefix="" if family == "bert" else f"{family}.")
    np.testing.assert_allclose(_encoded(_graph(folder), TEXTS), _defined(arrays, configuration, TEXTS), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_and_normalization_are_in_the_graph(pooling: str, normalize: bool, tmp_path: Path) -> None:
    arrays, configuration = weights(seed=1), config()
    folder = write_transformer(tmp_path, arrays, configuration)
    found = _encoded(_graph(folder, pooling=pooling, normalize=normalize), TEXTS)
    np.testing.assert_allclose(
        found, _defined(arrays, configuration, TEXTS, pooling=pooling, normalize=normalize), atol=1e-5
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations_are_those_of_the_configuration(activation: str, tmp_path: Path) -> None:
    arrays, configuration = weights(seed=2), config(hidden_act=activation)
    folder = write_transformer(tmp_path, arrays, configuration)
    np.testing.assert_allclose(_encoded(_graph(folder), TEXTS), _defined(arrays, configuration, TEXTS), atol=1e-6)


def test_int8_stays_near_at_a_quarter_of_the_size(tmp_path: Path) -> None:
    arrays, configuration = weights(seed=3), config()
    # A row of zeros has no scale that anything could be divided by.
    arrays["encoder.layer.0.intermediate.dense.weight"][3] = 0
    folder = write_transformer(tmp_path, arrays, configuration)
    assert _cosines(_encoded(_graph(folder, "int8"), TEXTS), _defined(arrays, configuration, TEXTS)).min() > 0.995


def test_threads_and_texts_beside_it_change_no_bit_of_an_answer(tmp_path: Path) -> None:
    path = _graph(write_transformer(tmp_path, weights(), config()), "int8")
    alone = np.concatenate([_encoded(path, [ids]) for ids in TEXTS])
    np.testing.assert_array_equal(_encoded(path, TEXTS, threads=2), alone)
    np.testing.assert_array_equal(_encoded(path, TEXTS[::-1])[::-1], alone)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_transformer(tmp_path, weights(), config())
    for variant in VARIANTS:
        assert _graph(folder, variant).read_bytes() == _graph(folder, variant).read_bytes()


def test_more_tokens_than_there_are_positions_are_an_error_of_the_engine(tmp_path: Path) -> None:
    path = _graph(write_transformer(tmp_path, weights(), config()), longest=8)
    with pytest.raises((RuntimeError, ValueError)):
        _encoded(path, [list(range(9))])


def test_the_legacy_engine_answers_alike(tmp_path: Path) -> None:
    if not LEGACY_PYTHON.exists():
        pytest.skip("there is no .venv/legacy with tflite-runtime 2.14; make test makes it where Python 3.11 is")
    arrays, configuration = weights(seed=4), config()
    folder = write_transformer(tmp_path, arrays, configuration)
    expected = _defined(arrays, configuration, TEXTS)
    for variant, near in (("float32", 1 - 1e-6), ("int8", 0.995)):
        found = _by_legacy(_graph(folder, variant), TEXTS, tmp_path)
        assert _cosines(found, expected).min() > near


ASK = """
import json, sys
import numpy as np
from edge_embed.engines.tflite import LiteRtEncoder
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput
graph = EncoderGraph(
    "tflite", "a.tflite", (), "int8", (GraphInput("ids", "ids", "int32"),), GraphOutput("vectors", "vectors"), 1, 0.0
)
engine = LiteRtEncoder(sys.argv[1], graph, 1, "tflite-runtime")
assert engine.version.startswith("tflite-runtime 2.14"), engine.version
texts = [np.array([ids], np.int32) for ids in json.loads(sys.argv[2])]
np.save(sys.argv[3], np.concatenate([engine.encode({"ids": ids}) for ids in texts]))
"""


def _by_legacy(graph: Path, texts: Sequence[Sequence[int]], folder: Path) -> NDArray[np.float32]:
    command = [str(LEGACY_PYTHON), "-c", ASK, str(graph), str([list(ids) for ids in texts]), str(folder / "found.npy")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    found: NDArray[np.float32] = np.load(folder / "found.npy")
    return found


def test_a_real_sentence_encoder_of_int8_points_where_the_original_does(real_model: Path, tmp_path: Path) -> None:
    import tokenizers
    from safetensors.numpy import load_file

    arrays, configuration = (
        load_file(real_model / "model.safetensors"),
        json.loads((real_model / "config.json").read_bytes()),
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(real_model / "tokenizer.json"))
    tokenizer.no_padding()
    texts = [
        tokenizer.encode(text).ids
        for text in (
            "a cat sits on a mat",
            "The board has 512 MB of memory, and no fan.",
            "Wie spät ist es?",
            "東京 is the capital of Japan. " * 6,
            "",
        )
    ]
    expected = _defined(arrays, configuration, texts)
    for variant, size_bytes in (("float32", 90_000_000), ("int8", 23_200_000)):
        path = tmp_path / f"{variant}.tflite"
        with OsFs().create(path) as file:
            graph = TextGraph(read_transformer(real_model), variant, pooling="mean", normalize=True, longest=256)
            graph.write(BlobWriter(path.name, file))
        assert path.stat().st_size < size_bytes
        found = _encoded(path, texts)
        if variant == "float32":
            np.testing.assert_allclose(found, expected, atol=1e-6)
        else:
            assert _cosines(found, expected).mean() > 0.997


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "another family": ({"model_type": "gpt2"}, "model_type: expected one of bert, .* found 'gpt2'"),
    "relative positions": (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type: expected absolute, found 'relative_key'",
    ),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers: expected a whole number from 1 to 256, found 0"),
    "layers that are not there": ({"num_hidden_layers": 3}, "expected a tensor encoder.layer.2.attention.self.query"),
    "a flag for a number": ({"hidden_size": True}, "hidden_size: expected a whole number"),
    "heads that do not divide": ({"num_attention_heads": 3}, "expected a divisor of the width 16, found 3"),
    "a gate": ({"hidden_act": "silu"}, "hidden_act: expected one of gelu, .* found 'silu'"),
    "another width": ({"hidden_size": 32}, r"word_embeddings.weight: expected the shape \(50, 32\), found \(50, 16\)"),
    "another inner width": ({"intermediate_size": 8}, r"expected the shape \(8, 16\), found \(24, 16\)"),
    "no epsilon": ({"layer_norm_eps": 0}, "layer_norm_eps: expected a number between 0 and 1, found 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_that_does_not_fit_is_refused_with_its_field(name: str, tmp_path: Path) -> None:
    changes, says = WRONG[name]
    folder = write_transformer(tmp_path, weights(), {**config(), **changes, "model_type": "bert"})
    (folder / "config.json").write_text(json.dumps({**config(), **changes}))
    with pytest.raises(RequestError, match=says):
        _graph(folder)


def test_weights_that_are_no_numbers_are_refused_with_their_name(tmp_path: Path) -> None:
    arrays = weights()
    arrays["encoder.layer.1.output.dense.weight"][0, 0] = np.nan
    with pytest.raises(RequestError, match=r"encoder\.layer\.1\.output\.dense: expected finite numbers"):
        _graph(write_transformer(tmp_path, arrays, config()))


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    write_transformer(tmp_path, weights(), config())
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match="expected a model's weights, found nothing there"):
        read_transformer(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2")
    with pytest.raises(RequestError, match="expected a model's settings in JSON, found"):
        read_transformer(tmp_path)


def test_a_graph_of_more_tokens_than_the_model_knows_is_not_drawn(tmp_path: Path) -> None:
    model = read_transformer(write_transformer(tmp_path, weights(), config()))
    with pytest.raises(ValueError, match="no graph of"):
        TextGraph(model, "int8", pooling="mean", normalize=True, longest=POSITIONS + 1)
