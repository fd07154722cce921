"""Image encoders come in as they are: their own numbers, a recipe for pictures, and no hostile file past the gate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.errors import RequestError
from edge_embed.images import ImageReader
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput, Quantization
from edge_embed_export.graphs.files import GraphFile, Port, describe, try_out
from edge_embed_export.sources.image_encoders import read_image_encoder
from edge_embed_export.sources.image_recipes import recipe_of
from tests.small_images import SIDE, by_definition, write_onnx, write_tflite

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")
pytest.importorskip("PIL")

PLAIN = "mean = 0\nstd = 1\n"


def _graph(name: str, format: str) -> EncoderGraph:
    pixels, vectors = GraphInput("pixels", "pixels", "float32"), GraphOutput("vectors", "vectors")
    return EncoderGraph(format, name, (), "float32", (pixels,), vectors, 1, 0.0)


def test_a_file_says_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    onnx, tflite = describe(write_onnx(tmp_path / "a.onnx")), describe(write_tflite(tmp_path / "a.tflite"))
    assert onnx.inputs == {"pixels": Port("pixels", "float32", (-1, 3, SIDE, SIDE))}
    assert tflite.inputs == {"pixels": Port("pixels", "float32", (1, SIDE, SIDE, 3))}
    assert onnx.outputs["vectors"].shape == (-1, 5) and tflite.outputs["vectors"].shape == (1, 5)


def test_an_engine_runs_a_strangers_file_in_a_child_process(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((1, SIDE, SIDE, 3), np.float32)
    for path, given in (
        (write_tflite(tmp_path / "a.tflite"), pixels),
        (write_onnx(tmp_path / "a.onnx"), pixels.transpose(0, 3, 1, 2)),
        (write_onnx(tmp_path / "b.onnx", external="b.bin"), pixels.transpose(0, 3, 1, 2)),
    ):
        found = try_out(_graph(path.name, path.suffix[1:]), path, {"pixels": given})
        np.testing.assert_allclose(found, by_definition(pixels), atol=1e-6)


def test_what_ends_the_child_is_an_error_here(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "a.tflite")
    with pytest.raises(RequestError, match=r"a\.tflite: expected a graph that its engine runs, found"):
        try_out(_graph("a.tflite", "tflite"), path, {"pixels": np.zeros((1, 2, 3), np.float32)})


def test_a_graph_that_never_ends_is_ended(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    more, kept = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("more", "kept"))
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    shape = [1, 3, SIDE, SIDE]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["kept"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [count, more, x],
        [kept, y],
    )
    times = helper.make_tensor("times", TensorProto.INT64, [], [2**62])
    nodes = [
        helper.make_node("Loop", ["times", "", "pixels"], ["turned"], body=body),
        helper.make_node("GlobalAveragePool", ["turned"], ["means"]),
        helper.make_node("Flatten", ["means"], ["vectors"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    vectors = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "endless", [pixels], [vectors], [times])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "endless.onnx"
    path.write_bytes(model.SerializeToString())
    given = np.zeros(shape, np.float32)
    with pytest.raises(
        RequestError, match=r"endless\.onnx: expected an answer within 3 s of processor time, found none"
    ):
        try_out(_graph(path.name, "onnx"), path, {"pixels": given}, seconds=3)


def test_weights_outside_the_files_folder_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "b.bin").write_bytes(bytes(60))
    with pytest.raises(RequestError, match=r"expected weights in files beside it, found '\.\./b\.bin'"):
        describe(write_onnx(inside / "b.onnx", external="../b.bin"))
    path = write_onnx(inside / "c.onnx", external="c.bin")
    (inside / "c.bin").unlink()
    (inside / "c.bin").symlink_to(tmp_path / "b.bin")
    with pytest.raises(RequestError, match=r"expected weights in files beside it, found 'c\.bin'"):
        describe(path)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x08\x08" * 50, b"\x20\x00\x00\x00TFL3" + b"\xff" * 100, bytes(1000)]
)
def test_what_is_no_graph_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(RequestError, match=r"a\.onnx: expected a"):
        describe(tmp_path / "a.onnx")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    for write, name in ((write_tflite, "a.tflite"), (write_onnx, "a.onnx")):
        good = write(tmp_path / name).read_bytes()
        for cut in range(8, len(good), 37):
            (tmp_path / f"cut{name}").write_bytes(good[:cut])
            with pytest.raises(RequestError):
                describe(tmp_path / f"cut{name}")


def test_a_recipe_beside_the_file_is_taken(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "colour.onnx")
    (tmp_path / "colour.image.toml").write_text(
        'resize = "cover"\nresize_to = 10\nresampling = "bicubic"\n'
        "mean = [0.1, 0.2, 0.3]\nstd = 0.5\nnormalize = true\n"
    )
    recipe = recipe_of(describe(path))
    assert recipe.image.size == (SIDE, SIDE) and recipe.image.layout == "nchw" and recipe.image.channels == "rgb"
    assert (recipe.image.resize, recipe.image.resize_to, recipe.image.resampling) == ("cover", 10, "bicubic")
    assert recipe.image.mean == (0.1, 0.2, 0.3) and recipe.image.std == (0.5,) * 3 and recipe.normalize


def test_a_hugging_face_recipe_is_read(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    config: dict[str, Any] = {
        "do_resize": True,
        "size": {"shortest_edge": 10},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    image = recipe_of(describe(path)).image
    assert (image.resize, image.resize_to, image.resampling, image.size) == ("cover", 10, "bicubic", (SIDE, SIDE))
    np.testing.assert_allclose(image.mean, config["image_mean"])
    # Numbers from -1 to 1 without a normalization: p * 2/255.
    config |= {"do_normalize": False, "rescale_factor": 2 / 255, "do_center_crop": False, "size": SIDE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    image = recipe_of(describe(path)).image
    assert image.resize == "stretch"
    np.testing.assert_allclose(image.std, [0.5] * 3)


def test_a_hugging_face_recipe_that_cuts_by_a_share_is_read(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    config = {"size": {"shortest_edge": SIDE}, "crop_pct": 0.5, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    image = recipe_of(describe(path)).image
    assert (image.resize, image.resize_to, image.size) == ("cover", 2 * SIDE, (SIDE, SIDE))


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}},
        {"size": {"shortest_edge": SIDE}},
        {"size": {"longest_edge": SIDE}},
        {"size": SIDE, "do_pad": True},
        {"do_resize": False, "do_center_crop": True, "crop_size": SIDE},
    ],
)
def test_a_hugging_face_recipe_that_ours_cannot_say_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"resized by their shorter side and cut, or stretched, found size"):
        recipe_of(describe(path))


@pytest.mark.parametrize(
    "config", [{"image_mean": "half"}, {"rescale_factor": 0}, {"image_std": [0]}, {"image_mean": {}}, {"size": 9}]
)
def test_a_hugging_face_recipe_that_is_none_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": SIDE, **config}))
    with pytest.raises(RequestError, match=r"expected"):
        recipe_of(describe(path))


@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 128), ("int8", -128), ("int8", 3)])
def test_an_input_of_whole_numbers_takes_pixels_as_they_are(dtype: str, zero_point: int) -> None:
    port = Port("pixels", dtype, (1, 16, 16, 3), Quantization(1 / 128, zero_point))
    out = Port("vectors", "float32", (1, 5))
    image = recipe_of(GraphFile(Path("a.tflite"), "tflite", {"pixels": port}, {"vectors": out})).image
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    numbers = ImageReader(image).pixels(picture)[:, :, 0].ravel()
    codes = np.rint(numbers / np.float32(1 / 128)) + zero_point
    np.testing.assert_array_equal(codes, np.arange(256) - (0 if dtype == "uint8" else 128))


WRONG = {
    "nothing": (None, "expected a recipe for pictures beside it"),
    "no TOML": ("mean = ", "a.image.toml: expected a recipe in TOML or JSON"),
    "a word for a number": ('mean = "half"', "image.mean: expected a list of numbers"),
    "an unknown field": ("means = [0.5]", "expected fields of a recipe, found means"),
    "an object for a number": ("[mean]\na = 1", "image.mean: expected a list of numbers"),
    "another size": ("size = [9, 9]", r"expected a recipe for pixels \(3, 8, 8\), found one for \(3, 9, 9\)"),
    "another output": ('output = "logits"', "expected output in .* to be one of vectors, found 'logits'"),
    "a normalization that is none": ('normalize = "yes"', "normalize: expected true or false, found 'yes'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_recipe_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    text, says = WRONG[name]
    path = write_onnx(tmp_path / "a.onnx")
    if text is not None:
        (tmp_path / "a.image.toml").write_text(text)
    with pytest.raises(RequestError, match=says):
        recipe_of(describe(path))


def test_an_encoder_is_its_file_and_its_recipe(tmp_path: Path) -> None:
    for path in (write_tflite(tmp_path / "colour.tflite"), write_onnx(tmp_path / "colour.onnx")):
        path.with_suffix(".image.toml").write_text(PLAIN)
        source = read_image_encoder(path)
        assert source.dimensions == 5 and source.image is not None and source.image.size == (SIDE, SIDE)
        assert source.network.original == (path.suffix[1:], "float32")


def test_a_map_is_no_vector(tmp_path: Path) -> None:
    from edge_embed_export.graphs.flatbuffer import Drawing

    drawing = Drawing()
    pixels = drawing.free("pixels", "float32", (1, SIDE, SIDE, 3))
    drawing.finish("encode", [pixels], drawing.add(pixels, pixels, drawing.free("map", "float32", (1, SIDE, SIDE, 3))))
    path = tmp_path / "map.tflite"
    path.write_bytes(drawing.packed("a test"))
    path.with_suffix(".image.toml").write_text(PLAIN)
    with pytest.raises(RequestError, match=r"expected one vector from map, found a map \(1, 8, 8, 3\)"):
        read_image_encoder(path)


def test_the_real_mobilenet_keeps_its_own_numbers(shared_data: Path) -> None:
    path = shared_data / "image" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    source = read_image_encoder(path)
    assert source.dimensions == 1024 and source.image is not None and source.image.size == (224, 224)
    assert source.network.original == ("tflite", "uint8")
    assert math.isclose(source.image.mean[0], 128 / 255)
