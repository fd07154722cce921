"""An image encoder and a folder of pictures become a bundle that finds pictures by pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.commands import main
from edge_embed.images import ImageReader
from edge_embed_export.image_encoders import drawn_pictures, pictures_in
from tests.small_images import SIDE, by_definition, write_onnx, write_tflite

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")
pillow = pytest.importorskip("PIL.Image")

COLOURS = {"red": (255, 20, 20), "green": (20, 250, 30), "blue": (10, 20, 255), "deep/black": (3, 2, 1)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    for name, colour in COLOURS.items():
        pillow.new("RGB", (20, 10), colour).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def _source(folder: Path, format: str) -> Path:
    path = write_onnx(folder / "colour.onnx") if format == "onnx" else write_tflite(folder / "colour.tflite")
    path.with_suffix(".image.toml").write_text("mean = 0.5\nstd = 0.5\n")
    return path


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_pictures_are_found_by_pictures(format: str, tmp_path: Path, pictures: Path) -> None:
    bundle = tmp_path / "colours"
    words = ["export", str(_source(tmp_path, format)), "-o", str(bundle), "--collection", str(pictures)]
    assert main(words) == 0
    assert main(["verify", str(bundle)]) == 0
    picture = np.full((30, 30, 3), (240, 40, 30), np.uint8)
    with edge_embed.open(bundle) as runtime:
        (encoder,) = runtime.manifest.encoders
        assert encoder.image is not None
        pixels = ImageReader(encoder.image).pixels(picture)
        expected = by_definition((pixels.transpose(1, 2, 0) if format == "onnx" else pixels)[np.newaxis])
        np.testing.assert_allclose(runtime.encode_image(picture), expected[0], atol=1e-5)
        found = runtime.search(image=picture, k=2)
        assert found.keys[0] == "red.png"
        with pytest.raises(edge_embed.RequestError):
            runtime.encode("a text")


def test_the_same_source_gives_the_same_bundle(tmp_path: Path, pictures: Path) -> None:
    source = _source(tmp_path, "tflite")
    identities = []
    for name in ("one", "other"):
        words = ["export", str(source), "-o", str(tmp_path / name), "--name", "colours", "--collection", str(pictures)]
        assert main(words) == 0
        with edge_embed.open(tmp_path / name) as runtime:
            identities.append(runtime.generation)
    assert identities[0] == identities[1]


def test_another_graph_than_the_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _source(tmp_path, "tflite")
    for words, says in (
        (["--graphs", "onnx"], "expected float32 in tflite, which is all that there is, found float32 in onnx"),
        (["--codec", "int8"], "expected a codec of float32 for an encoder, found 'int8'"),
        (["--max-loss", "0.1"], "expected no --eval or --max-loss for images"),
        (["--codec", "auto"], "expected no --codec auto for a graph that stays as it is"),
        (["--collection", str(source)], "expected a folder of pictures, found no folder"),
    ):
        assert main(["export", str(source), "-o", str(tmp_path / "bundle"), *words]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "bundle").exists()


def test_a_recipe_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_onnx(tmp_path / "colour.onnx")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"resize": "cover", "resize_to": SIDE + 1}))
    words = ["export", str(source), "-o", str(tmp_path / "bundle")]
    assert main(words) == 2
    assert "--image-recipe" in capsys.readouterr().err
    assert main([*words, "--image-recipe", str(recipe)]) == 0
    with edge_embed.open(tmp_path / "bundle") as runtime:
        image = runtime.manifest.encoders[0].image
        assert image is not None and image.resize_to == SIDE + 1


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(edge_embed.RequestError, match=r"expected pictures .* found none"):
        pictures_in(tmp_path)


def test_golden_pictures_are_what_pillow_reads() -> None:
    import io

    sizes = {pillow.open(io.BytesIO(data)).size for data in drawn_pictures()}
    assert sizes == {(80, 60)} and len(set(drawn_pictures())) == 3


def test_a_real_mobilenet_finds_pictures_of_the_same_kind(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "image" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    cifar = shared_data / "image" / "cifar10"
    bundle = tmp_path / "mobilenet"
    assert main(["export", str(source), "-o", str(bundle), "--collection", str(cifar), "--board", "pi-4"]) == 0
    names = pictures_in(cifar)
    with edge_embed.open(bundle) as runtime:
        alike = [
            neighbours.keys[0].split("/")[1] == name.split("/")[1]
            for name, neighbours in zip(names, runtime.search(names, model="collection", k=1), strict=True)
        ]
        # One in ten by chance; 200 thumbnails of 32 x 32 were .36 here.
        assert np.mean(alike) > 0.3
        np.testing.assert_allclose(
            runtime.encode_image([cifar / name for name in names[:3]]), runtime.lookup(names[:3]), atol=0.05
        )
