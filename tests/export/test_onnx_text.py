"""A transformer's ONNX graph answers as the transformer is defined, whatever goes beside a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.engines.onnx import OnnxEncoder
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.writer import BlobWriter
from edge_embed_export.graphs.onnx import check_onnx
from edge_embed_export.graphs.onnx_text import POOLINGS, VARIANTS, draw_text
from edge_embed_export.transformer import FAMILIES, read_transformer
from tests.small_transformers import TOKENS, by_definition, config, weights, write_transformer

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = [[7], [1, 2, 3], list(range(20)), [49, 0, 49], np.random.default_rng(1).integers(0, TOKENS, 30).tolist()]

#: What a variant may be off, of numbers around 1.
OFF = {"float32": 1e-5, "int8": 0.05, "int8-blocks": 0.05}


def encoder(folder: Path, variant: str = "float32", *, threads: int = 1, **options: Any) -> OnnxEncoder:
    """Return the graph of the transformer in a folder, in its engine."""
    options = {"pooling": "mean", "normalize": True, "longest": 32, **options}
    path, weights = folder / f"{variant}.onnx", folder / f"{variant}.bin"
    weights.unlink(missing_ok=True)
    with OsFs().create(weights) as file:
        path.write_bytes(
            draw_text(read_transformer(folder), variant, weights=BlobWriter(weights.name, file), **options)
        )
    check_onnx(path)
    inputs, output = (GraphInput("ids", "ids", "int64"),), GraphOutput("vectors", "vectors")
    graph = EncoderGraph("onnx", path.name, (weights.name,), variant, inputs, output, 64, 0.1)
    return OnnxEncoder(str(path), graph, threads)


def encoded(engine: OnnxEncoder, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the vectors of texts, each alone."""
    return np.concatenate([engine.encode({"ids": np.array([ids], np.int64)}) for ids in texts])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_it_is_defined(family: str, tmp_path: Path) -> None:
    arrays, configuration = weights(types=family != "distilbert"), config(family)
    folder = write_transformer(tmp_path / "model", arrays, configuration)
    expected = np.stack([by_definition(arrays, configuration, ids) for ids in TEXTS])
    np.testing.assert_allclose(encoded(encoder(folder), TEXTS), expected, atol=OFF["float32"])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_and_normalization_are_in_the_graph(pooling: str, normalize: bool, tmp_path: Path) -> None:
    arrays, configuration = weights(), config()
    folder = write_transformer(tmp_path / "model", arrays, configuration)
    how: dict[str, Any] = {"pooling": pooling, "normalize": normalize}
    expected = np.stack([by_definition(arrays, configuration, ids, **how) for ids in TEXTS])
    np.testing.assert_allclose(encoded(encoder(folder, **how), TEXTS), expected, atol=OFF["float32"])


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations_are_those_of_the_configuration(activation: str, tmp_path: Path) -> None:
    arrays, configuration = weights(), config(hidden_act=activation)
    folder = write_transformer(tmp_path / "model", arrays, configuration)
    expected = np.stack([by_definition(arrays, configuration, ids) for ids in TEXTS])
    np.testing.assert_allclose(encoded(encoder(folder), TEXTS), expected, atol=OFF["float32"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_near_to_the_definition(variant: str, tmp_path: Path) -> None:
    arrays, configuration = weights(), config()
    folder = write_transformer(tmp_path / "model", arrays, configuration)
    expected = np.stack([by_definition(arrays, configuration, ids) for ids in TEXTS])
    np.testing.assert_allclose(encoded(encoder(folder, variant), TEXTS), expected, atol=OFF[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_has_the_same_bits_alone_beside_others_and_on_any_number_of_threads(
    variant: str, tmp_path: Path
) -> None:
    folder = write_transformer(tmp_path / "model", weights(), config())
    one, two = encoder(folder, variant), encoder(folder, variant, threads=2)
    for length in (1, 2, 7, 16, 31, 32):
        ids = np.random.default_rng(length).integers(0, TOKENS, (9, length))
        alone = encoded(one, ids.tolist())
        np.testing.assert_array_equal(one.encode({"ids": ids}), alone)
        np.testing.assert_array_equal(encoded(two, ids.tolist()), alone)


def test_the_real_model_has_the_same_bits_alone_and_beside_others(real_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(real_model / name)
    engine = encoder(tmp_path, "int8", longest=256)
    for length in (3, 17, 64):
        ids = np.random.default_rng(length).integers(1000, 30_000, (5, length))
        np.testing.assert_array_equal(engine.encode({"ids": ids}), encoded(engine, ids.tolist()))
