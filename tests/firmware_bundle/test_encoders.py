"""Encoders at the manifest's gate: what a graph is given is what the recipe makes, and every file is named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from edge_embed_bundle import strict_json
from edge_embed_bundle.encoders import EncoderModel, GraphInput, Signature
from edge_embed_bundle.errors import ManifestError, UnsupportedFormatError
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from tests.attacks.makers import ABSENT, Place, set_at


def manifest_of_encoders() -> dict[str, Any]:
    """Return a good manifest of a text and an image encoder in one space, as plain JSON."""
    text = {
        "name": "text",
        "kind": "encoder",
        "dimensions": 8,
        "normalize": True,
        "text": {
            "tokenizer": "huggingface",
            "tokenizer_blob": "tokenizer.json",
            "special_tokens": True,
            "max_tokens": 64,
            "max_letters": 4096,
            "too_long": "truncate",
            "pad_token": 0,
            "pooling": "mean",
            "prompts": {"query": "query: "},
            "default_prompt": "query",
        },
        "graphs": [
            {
                "format": "onnx",
                "operation": "encode",
                "blob": "text.onnx",
                "weights": ["text.bin"],
                "variant": "int8",
                "inputs": [
                    {"name": "input_ids", "role": "ids", "dtype": "int64"},
                    {"name": "attention_mask", "role": "mask", "dtype": "int64"},
                ],
                "output": {"name": "vectors", "holds": "vectors", "dtype": "float32"},
                "max_batch": 1,
                "tolerance": 0.01,
                "proven": [{"name": "onnxruntime", "version": "1.32.0"}],
            },
            {
                "format": "tflite",
                "operation": "encode",
                "blob": "text.tflite",
                "weights": [],
                "variant": "int8",
                "inputs": [{"name": "args_0", "role": "ids", "dtype": "int32"}],
                "output": {
                    "name": "output_0",
                    "holds": "tokens",
                    "dtype": "int8",
                    "quantization": {"scale": 0.01, "zero_point": -3},
                },
                "max_batch": 1,
                "tolerance": 0.02,
                "signatures": [{"name": "encode_16", "length": 16}, {"length": 64}],
                "proven": [],
            },
        ],
    }
    image = {
        "name": "image",
        "kind": "encoder",
        "dimensions": 8,
        "normalize": False,
        "image": {
            "size": [224, 224],
            "channels": "rgb",
            "layout": "nhwc",
            "resize": "cover",
            "resize_to": 256,
            "resampling": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "max_pixels": 20_000_000,
        },
        "graphs": [
            {
                "format": "tflite",
                "operation": "encode",
                "blob": "image.tflite",
                "weights": [],
                "variant": "uint8",
                "inputs": [
                    {
                        "name": "images",
                        "role": "pixels",
                        "dtype": "uint8",
                        "quantization": {"scale": 0.0078125, "zero_point": 128},
                    }
                ],
                "output": {"name": "features", "holds": "vectors", "dtype": "float32"},
                "max_batch": 1,
                "tolerance": 0.01,
                "proven": [],
            }
        ],
    }
    blobs = ("text.onnx", "text.bin", "text.tflite", "image.tflite", "tokenizer.json", "golden.bin", "cat.png")
    expected = {"blob": "golden.bin", "offset_bytes": 0, "dtype": "float32", "shape": [1, 8]}
    return {
        "format": 1,
        "name": "both",
        "version": "1.0.0",
        "space": {"id": "0" * 64, "dimensions": 8, "similarity": "cosine", "source": "a model of both"},
        "models": [text, image],
        "blobs": {name: {"size_bytes": 100_000, "sha256": "0" * 64} for name in blobs},
        "requirements": {"features": ["encoder-image-1", "encoder-text-1"], "memory_private_bytes": 2**20},
        "budgets": {"memory_private_bytes": 2**26, "operations": {"encode_image": {"p50_us": 1, "p99_us": 2}}},
        "quality": {},
        "golden": [
            {
                "operation": "encode",
                "model": "text",
                "by": "text",
                "inputs": ["a small board"],
                "expected": expected,
                "tolerance": 0.02,
            },
            {
                "operation": "encode_image",
                "model": "image",
                "by": "image",
                "inputs": ["cat.png"],
                "expected": expected,
                "tolerance": 0.01,
            },
        ],
    }


def _parse(value: Any) -> Manifest:
    return Manifest.parse(strict_json.dumps(value), source=MANIFEST_NAME)


def test_encoders_are_written_as_they_were_read() -> None:
    value = manifest_of_encoders()
    manifest = _parse(value)
    assert json.loads(manifest.to_bytes()) == value
    assert manifest.tables == () and [model.name for model in manifest.encoders] == ["text", "image"]
    text, image = manifest.encoders
    assert text.graphs[1].signatures == (Signature(16, "encode_16"), Signature(64))
    assert text.graphs[0].input("mask") == GraphInput("attention_mask", "mask", "int64")
    assert text.graphs[0].input("types") is None
    assert (text.operation, image.operation) == ("encode", "encode_image")


def test_unknown_fields_of_every_part_of_an_encoder_survive() -> None:
    value = manifest_of_encoders()
    text, image = value["models"]
    quantization = image["graphs"][0]["inputs"][0]["quantization"]
    for part in (text, text["text"], image["image"], quantization):
        part["novel"] = {"said": [1, "by a newer writer"]}
    for part in (*text["graphs"], text["graphs"][0]["inputs"][0], text["graphs"][0]["output"]):
        part["novel"] = 1
    text["graphs"][1]["signatures"][0]["novel"] = True
    assert json.loads(_parse(value).to_bytes()) == value


def test_a_reader_of_an_older_day_refuses_an_encoder_by_its_feature() -> None:
    value = manifest_of_encoders()
    value["requirements"]["features"].append("encoder-text-2")
    with pytest.raises(UnsupportedFormatError, match="found 'encoder-text-2'"):
        _parse(value)


TEXT: Place = ("models", 0, "text")
ONNX: Place = ("models", 0, "graphs", 0)
TFLITE: Place = ("models", 0, "graphs", 1)
IMAGE: Place = ("models", 1, "image")
PIXELS: Place = ("models", 1, "graphs", 0, "inputs", 0)
IDS = {"name": "input_ids", "role": "ids", "dtype": "int64"}

BROKEN: dict[str, tuple[Place, Any, str]] = {
    "a kind that nobody knows": (("models", 0, "kind"), "program", "models[0].kind: expected one of table, encoder"),
    "no recipe": (TEXT, ABSENT, "models[0].text: expected a recipe for texts, or one for images, found nothing"),
    "both recipes": (("models", 1, "text"), manifest_of_encoders()["models"][0]["text"], "found 'both'"),
    "no dimensions": (("models", 0, "dimensions"), 0, "models[0].dimensions: expected a whole number from 1"),
    "dimensions of another space": (("models", 0, "dimensions"), 9, "models.text: expected the 8 dimensions"),
    "no graphs": (("models", 0, "graphs"), [], "models[0].graphs: expected one graph or more"),
    "another operation": ((*ONNX, "operation"), "lookup", "graphs[0].operation: expected one of encode"),
    "another format": ((*ONNX, "format"), "torch", "graphs[0].format: expected one of onnx, tflite"),
    "weights above the folder": ((*ONNX, "weights"), ["../text.bin"], "graphs[0].weights: expected names like"),
    "weights that are no blob": ((*ONNX, "weights"), ["other.bin"], "models.text: expected a file of this bundle"),
    "weights that are one text": ((*ONNX, "weights"), "text.bin", "graphs[0].weights: expected a list of texts"),
    "a graph that is no blob": ((*ONNX, "blob"), "other.onnx", "models.text: expected a file of this bundle"),
    "a tokenizer that is no blob": ((*TEXT, "tokenizer_blob"), "t.json", "models.text: expected a file of this"),
    "a tokenizer that is a program": ((*TEXT, "tokenizer"), "python", "text.tokenizer: expected one of huggingface"),
    "a length that is none": ((*TEXT, "max_tokens"), 0, "text.max_tokens: expected a whole number from 1"),
    "letters without end": ((*TEXT, "max_letters"), 2**33, "text.max_letters: expected a whole number from 1"),
    "silence about long texts": ((*TEXT, "too_long"), "ignore", "text.too_long: expected one of truncate, refuse"),
    "a pad token below 0": ((*TEXT, "pad_token"), -1, "text.pad_token: expected a whole number from 0"),
    "a pooling that nobody knows": ((*TEXT, "pooling"), "median", "text.pooling: expected one of mean, cls, max"),
    "a prompt that is a number": ((*TEXT, "prompts"), {"query": 1}, "text.prompts: expected an object of texts"),
    "a prompt without a name": ((*TEXT, "prompts"), {"": "query: "}, "text.prompts: expected names like"),
    "a default prompt that is none": ((*TEXT, "default_prompt"), "passage", "expected the name of a prompt"),
    "no ids": ((*ONNX, "inputs", 0, "role"), "types", "graphs[0].inputs: expected ids and, once each, others of"),
    "ids twice": ((*ONNX, "inputs", 1, "role"), "ids", "graphs[0].inputs: expected ids and, once each"),
    "one name twice": ((*ONNX, "inputs", 1, "name"), "input_ids", "graphs[0].inputs: expected names that differ"),
    "pixels of a text": (
        (*ONNX, "inputs", 1),
        {"name": "pixels", "role": "pixels", "dtype": "float32"},
        "graphs[0].inputs: expected ids and, once each",
    ),
    "ids of an image": (PIXELS, IDS, "graphs[0].inputs: expected pixels and, once each"),
    "a role that nobody knows": ((*ONNX, "inputs", 1, "role"), "soul", "inputs[1].role: expected one of ids"),
    "ids that are float": ((*ONNX, "inputs", 0, "dtype"), "float32", "inputs[0].dtype: expected one of int32, int64"),
    "a name that steers a terminal": ((*ONNX, "inputs", 0, "name"), "\x1b[2J", "inputs[0].name: expected text like"),
    "tokens that nobody pools": ((*TEXT, "pooling"), ABSENT, "graphs[1].output.holds: expected tokens where"),
    "vectors that nobody normalizes": ((*ONNX, "output", "holds"), "sentences", "output.holds: expected one of"),
    "pooled where nothing is normalized": (
        ("models", 1, "graphs", 0, "output", "holds"),
        "pooled",
        "graphs[0].output.holds: expected vectors where nothing is normalized",
    ),
    "whole numbers without a scale": ((*TFLITE, "output", "quantization"), ABSENT, "quantization: expected a value"),
    "a scale of 0": ((*TFLITE, "output", "quantization", "scale"), 0, "scale: expected a number of more than 0"),
    "a zero point past a byte": ((*PIXELS, "quantization", "zero_point"), 256, "zero_point: expected a whole number"),
    "a batch of none": ((*ONNX, "max_batch"), 0, "graphs[0].max_batch: expected a whole number from 1"),
    "a tolerance below 0": ((*ONNX, "tolerance"), -1, "graphs[0].tolerance: expected a number"),
    "lengths that fall": ((*TFLITE, "signatures", 1, "length"), 8, "graphs[1].signatures: expected lengths that rise"),
    "no length for the longest text": ((*TEXT, "max_tokens"), 65, "graphs[1].signatures: expected a length for the"),
    "a picture without height": ((*IMAGE, "size"), [0, 224], "image.size: expected height and width from 1"),
    "a picture of one side": ((*IMAGE, "size"), [224], "image.size: expected height and width from 1"),
    "colours that nobody sees": ((*IMAGE, "channels"), "xyz", "image.channels: expected one of rgb, bgr, gray"),
    "a layout that nobody knows": ((*IMAGE, "layout"), "whcn", "image.layout: expected one of nhwc, nchw"),
    "a resize that nobody knows": ((*IMAGE, "resize"), "fold", "image.resize: expected one of stretch, cover, contain"),
    "a cover smaller than what is cut out": ((*IMAGE, "resize_to"), 223, "image.resize_to: expected a whole number"),
    "containing without a fill": ((*IMAGE, "resize"), "contain", "image.fill: expected a value, found nothing"),
    "no fraction of its middle": ((*IMAGE, "resize"), "central", "image.fraction: expected a value, found nothing"),
    "a resampling that nobody knows": ((*IMAGE, "resampling"), "magic", "image.resampling: expected one of nearest"),
    "a mean for two of three channels": ((*IMAGE, "mean"), [0.5, 0.5], "image.mean: expected a number for each of 3"),
    "a mean of words": ((*IMAGE, "mean"), ["0.5"] * 3, "image.mean: expected a list of numbers"),
    "a division by 0": ((*IMAGE, "std"), [0.5, 0.0, 0.5], "image.std: expected numbers of more than 0"),
    "pictures of any size": ((*IMAGE, "max_pixels"), 2**31, "image.max_pixels: expected a whole number from 1"),
    "a golden picture that is no blob": (("golden", 1, "inputs"), ["dog.png"], "golden[1].inputs: expected files of"),
    "a golden picture for texts": (("golden", 1, "model"), "text", "golden[1].operation: expected encode for an"),
    "a golden picture by text": (("golden", 1, "by"), "text", "golden[1].by: expected image, for images"),
    "a golden text by image": (("golden", 0, "by"), "image", "golden[0].by: expected key, text or row"),
    "a golden lookup in an encoder": (
        ("golden", 0),
        {**manifest_of_encoders()["golden"][0], "operation": "lookup", "tolerance": 0},
        "golden[0].operation: expected encode for an encoder",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_encoder_that_cannot_be_followed_is_refused_by_its_place(name: str) -> None:
    place, broken, says = BROKEN[name]
    value = copy.deepcopy(manifest_of_encoders())
    set_at(value, place, broken)
    with pytest.raises(ManifestError) as caught:
        _parse(value)
    said = str(caught.value)
    assert said.startswith(f"{MANIFEST_NAME}: ") and says in said and "expected" in said and "found" in said
    assert said.isprintable() and len(said) < 500


WRONG: tuple[object, ...] = (True, -1, 1.5, "", "\0", [], [[]], {}, {"": {}})


@pytest.mark.parametrize("wrong", WRONG, ids=map(ascii, WRONG))
def test_a_value_of_the_wrong_type_in_an_encoder_is_refused_by_its_place(wrong: Any) -> None:
    for place, old in _places(manifest_of_encoders()["models"], ("models",)):
        if type(wrong) is type(old) and wrong != -1:
            continue
        if (place[-1] in ("scale", "tolerance") and isinstance(wrong, float)) or "mean" in place[-2:-1]:
            continue
        if wrong == -1 and place[-1] == "zero_point":
            continue
        value = manifest_of_encoders()
        set_at(value, place, wrong)
        with pytest.raises(ManifestError, match=r"models[\[.]"):
            _parse(value)


def _places(value: Any, place: Place) -> list[tuple[Place, Any]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for step, item in steps:
        found += [((*place, step), item), *_places(item, (*place, step))]
    return found


def test_a_table_and_its_encoder_are_told_apart_by_their_kind() -> None:
    manifest = _parse(manifest_of_encoders())
    assert all(isinstance(model, EncoderModel) for model in manifest.models)
    assert manifest.model("text") == manifest.encoders[0] and manifest.table("text") is None
