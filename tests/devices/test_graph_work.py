"""What a graph multiplies is counted out of its file, and is what its maker would count."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph, EncoderModel
from edge_embed_devices.graph_work import Work, counted, work_of, works_of
from tests import small_digits
from tests.small_transformers import INNER, LAYERS, WIDTH

DENSE = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * INNER)


def _graphs(bundle: Bundle) -> list[tuple[EncoderModel, EncoderGraph]]:
    return [(model, graph) for model in bundle.manifest.encoders for graph in model.graphs]


def test_a_transformer_takes_its_dense_weights_for_each_token_in_both_formats(encoder_bundle: Path) -> None:
    with Bundle.open(encoder_bundle) as bundle:
        assert works_of(bundle) == {"encoder": Work(DENSE, DENSE, is_coded=True)}
        assert [work_of(bundle, *each) for each in _graphs(bundle)] == 2 * [Work(DENSE, DENSE, is_coded=True)]


def test_a_bundle_without_encoders_has_no_graphs_that_encode(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        assert works_of(opened) == {}


def test_a_file_without_a_graph_multiplies_nothing_and_one_that_is_none_is_refused() -> None:
    assert counted(memoryview(b""), "onnx") == Work(0, 0, is_coded=False)
    # A node (field 1 of the graph, 7 of the model) with an attribute (5) whose packed numbers (8) do not end.
    endless = b"\x42\x01\xff"
    node = b"\x2a" + bytes([len(endless)]) + endless
    graph = b"\x0a" + bytes([len(node)]) + node
    with pytest.raises(ValueError, match="a number without an end"):
        counted(memoryview(b"\x3a" + bytes([len(graph)]) + graph), "onnx")


@pytest.fixture(scope="module", name="digits")
def _digits() -> small_digits.Digits:
    pytest.importorskip("sklearn")
    return small_digits.load_digits().part(slice(200))


def test_a_convolution_takes_its_weights_for_each_point_of_what_it_makes(
    digits: small_digits.Digits, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    weights = small_digits.trained(digits)
    first, second, dense = (weights[name].size for name in ("conv1", "conv2", "vector"))
    side = small_digits.SIDE
    products = first * side**2 + second * (side // 2) ** 2 + dense
    plain, coded, whole = tmp_path / "plain.onnx", tmp_path / "coded.onnx", tmp_path / "whole.tflite"
    small_digits.write_onnx(plain, weights)
    small_digits.write_onnx_int8(coded, plain, digits)
    small_digits.write_tflite_int8(whole, weights, digits)
    found = [counted(memoryview(path.read_bytes()), path.suffix[1:], side) for path in (plain, coded, whole)]
    assert found == [Work(products, first + second + dense, is_coded) for is_coded in (False, True, True)]


def test_a_mobilenet_takes_what_its_paper_says(shared_data: Path) -> None:
    path = shared_data / "image" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    work = counted(memoryview(path.read_bytes()), "tflite", 224)
    # 569 million multiplications and additions (Howard et al., 2017), a million of which are the labels'.
    assert work.products == pytest.approx(568e6, rel=0.001)
    assert work.is_coded
