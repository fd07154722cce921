"""How pictures become an encoder's pixels, as whoever trained it said: in a file of ours, in a Hugging Face
``preprocessor_config.json``, or in the TFLite file's own metadata.

A recipe of ours is TOML or JSON with the fields of an ``image`` in a manifest; those that the graph says itself (size,
channels, layout) may be left out, and so may ``resize`` (stretch), ``resampling`` (bilinear), ``mean`` (0) and ``std``
(1). Beside these: ``normalize``, ``input`` and ``output``, the names of tensors where the graph has several.

An input of whole numbers takes pixels as they are where nobody says anything else: what TFLite's own library does.
"""

from __future__ import annotations

import json
import struct
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edge_embed.engines.tflite_files import Table
from edge_embed.errors import RequestError
from edge_embed.images import PIXELS_CEILING
from edge_embed.named_files import read_named
from edge_embed_bundle.encoders import CHANNELS, ImageInput
from edge_embed_bundle.errors import ManifestError
from edge_embed_bundle.fields import Fields
from edge_embed_export.graphs.files import GraphFile, Port

#: Looked for beside ``model.tflite``, in this order: ``model.image.toml``, ``model.image.json``, the folder's own.
SUFFIXES = (".image.toml", ".image.json")
HUGGING_FACE = "preprocessor_config.json"

_METADATA = "TFLITE_METADATA"
# Unions of metadata_schema.fbs: NormalizationOptions of ProcessUnitOptions, ImageProperties of ContentProperties.
_NORMALIZATION, _IMAGE = 1, 2
_GRAYSCALE = 2
# Pillow's numbers of filters, as Hugging Face stores them.
#: From this size on ConvNeXT's pictures are stretched.
_NOT_CUT = 384
_SIDES = {"height", "width"}
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class Recipe(NamedTuple):
    """What a picture goes through, which ends of the graph are meant, and where all that was said."""

    image: ImageInput
    pixels: Port
    output: Port
    normalize: bool
    said_by: str


def recipe_of(graph: GraphFile, file: Path | None = None) -> Recipe:
    """Return the recipe for a graph, from a file that the user names or from what is beside and inside the graph's.

    Raises:
        RequestError: nobody says how pictures become this graph's pixels, or what is said does not fit the graph.
    """
    file = _beside(graph.path) if file is None else file
    by = "the file's metadata" if file is None else str(file)
    said = _said(graph, file)
    pixels = _chosen(graph, graph.inputs, said.pop("input", None), "input", by)
    output = _chosen(graph, graph.outputs, said.pop("output", None), "output", by)
    if file is None and pixels.quantization is not None:
        # Metadata speak of the network before it was quantized; TFLite's own library gives codes pixels as they are.
        said = {name: value for name, value in said.items() if name not in ("mean", "std")}
    normalize = said.pop("normalize", False)
    if type(normalize) is not bool:
        raise RequestError(f"{by}: normalize: expected true or false, found {normalize!r:.60}")
    _check_ends(graph, pixels, output)
    if not said and pixels.quantization is None:
        raise RequestError(
            f"{graph.path}: expected a recipe for pictures beside it ({', '.join(SUFFIXES)}, {HUGGING_FACE}), in its "
            "metadata or by --image-recipe, found none"
        )
    stated = {**_defaults(pixels), **said}
    channels = CHANNELS.get(str(stated["channels"]), 0)
    for name in ("mean", "std"):
        stated[name] = _of_each(stated[name], channels)
    try:
        image = ImageInput.read(Fields(stated, source=by if file is not None else str(graph.path), where="image"))
    except ManifestError as error:
        raise RequestError(str(error)) from error
    if image.extra:
        raise RequestError(f"{by}: expected fields of a recipe, found {', '.join(sorted(image.extra))[:100]}")
    _check_fits(graph, image, pixels)
    return Recipe(image, pixels, output, normalize, by if said else "the graph's own input")


def _said(graph: GraphFile, file: Path | None) -> dict[str, Any]:
    """Return what a file, or else the graph's metadata, say in our fields."""
    if file is None:
        return _from_metadata(graph)
    found = _parsed(file)
    if file.name != HUGGING_FACE:
        return found
    try:
        return _from_hugging_face(found, file)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise RequestError(f"{file}: expected the settings of an image processor, found: {error!r:.100}") from error


def _of_each(said: object, channels: int) -> object:
    """Return a number, or a list of one, as a list with one for each channel; what is neither is judged later."""
    alone = said[0] if isinstance(said, list) and len(said) == 1 else said
    return [alone] * channels if isinstance(alone, int | float) else said


def _beside(path: Path) -> Path | None:
    names = [path.with_name(path.stem + suffix) for suffix in SUFFIXES]
    return next((each for each in (*names, path.with_name(HUGGING_FACE)) if each.exists()), None)


def _parsed(file: Path) -> dict[str, Any]:
    data = read_named(file, "a recipe for pictures")
    try:
        found = tomllib.loads(data.decode("utf-8")) if file.suffix == ".toml" else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file}: expected a recipe in TOML or JSON, found: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{file}: expected an object of fields, found {type(found).__name__}")
    return found


def _from_hugging_face(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return our fields for those of an image processor (transformers, ``image_processing_utils``).

    Raises:
        RequestError: pictures are brought to their size in a way that no recipe of ours has.
    """
    said: dict[str, Any] = {}
    size, crop = config.get("size"), config.get("crop_size")
    crops = config.get("do_center_crop", False) is True
    shorter = size if isinstance(size, int) else size.get("shortest_edge") if isinstance(size, dict) else None
    resizes = config.get("do_resize", True) is not False
    share = config.get("crop_pct")
    if isinstance(share, int | float) and isinstance(shorter, int) and not crops and resizes and share > 0:
        # As ConvNeXT's: pictures below 384 are cut out of a larger one.
        size = shorter
        if shorter < _NOT_CUT:
            said |= {"resize": "cover", "resize_to": int(shorter / share)}
    elif crops and resizes and shorter is not None:
        said |= {"resize": "cover", "resize_to": shorter}
    elif crops or config.get("do_pad") is True or (resizes and isinstance(size, dict) and not set(size) >= _SIDES):
        raise RequestError(
            f"{file}: expected pictures resized by their shorter side and cut, or stretched, found size {size!r} and "
            f"crop_size {crop!r}; write a recipe of the fields of SPEC.md beside the graph"
        )
    final = crop if crops else size
    if isinstance(final, int):
        said["size"] = [final, final]
    elif isinstance(final, dict) and set(final) >= _SIDES:
        said["size"] = [final["height"], final["width"]]
    if isinstance(resample := config.get("resample"), int) and resample in _FILTERS:
        said["resampling"] = _FILTERS[resample]
    # What is multiplied by 1/255 first is what our means and deviations are of.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    for name, nothing in (("mean", 0.0), ("std", 1.0)):
        stated = config.get(f"image_{name}", nothing) if config.get("do_normalize", True) else nothing
        said[name] = [value / (255 * factor) for value in (stated if isinstance(stated, list) else [stated])]
    return said


def _from_metadata(graph: GraphFile) -> dict[str, Any]:
    """Return what a TFLite file's metadata say of its first input (metadata_schema.fbs, tflite-support)."""
    if graph.tflite is None or _METADATA not in graph.tflite.metadata:
        return {}
    data = graph.tflite.metadata[_METADATA]
    said: dict[str, Any] = {}
    try:
        model = Table(data, struct.unpack_from("<I", data)[0])
        for subgraph in model.tables(10):
            for tensor in subgraph.tables(8):
                said |= _of_tensor(tensor)
                return said
    except (ValueError, struct.error) as error:
        raise RequestError(f"{graph.path}: expected metadata that can be read, found: {error}") from error
    return said


def _of_tensor(tensor: Table) -> dict[str, Any]:
    said: dict[str, Any] = {}
    content = tensor.table(10)
    if content is not None and content.number(4, "B") == _IMAGE:
        properties = content.table(6)
        if properties is not None and properties.number(4, "b") == _GRAYSCALE:
            said["channels"] = "gray"
    for unit in tensor.tables(12):
        options = unit.table(6)
        if unit.number(4, "B") == _NORMALIZATION and options is not None:
            for name, slot in (("mean", 4), ("std", 6)):
                values = options.vector(slot, 4)
                said[name] = [number / 255 for number in struct.unpack(f"<{len(values) // 4}f", values)]
    return said


def _chosen(graph: GraphFile, ends: Mapping[str, Port], name: object, which: str, by: str) -> Port:
    if name is None and len(ends) == 1:
        return next(iter(ends.values()))
    if not isinstance(name, str) or name not in ends:
        names = ", ".join(ends)
        raise RequestError(f"{graph.path}: expected {which} in {by} to be one of {names[:300]}, found {name!r:.60}")
    return ends[name]


def _check_ends(graph: GraphFile, pixels: Port, output: Port) -> None:
    if len(graph.inputs) != 1:
        raise RequestError(
            f"{graph.path}: expected a graph of one input, pixels, found {', '.join(graph.inputs)[:200]}"
        )
    if len(pixels.shape) != 4 or pixels.shape[0] not in (1, -1):
        raise RequestError(
            f"{graph.path}: expected pixels (1, height, width, channels) or (1, channels, height, width), "
            f"found {pixels.name!r} {pixels.shape}"
        )
    for port in (pixels, output):
        whole = port.dtype in ("uint8", "int8")
        if not whole and port.dtype != "float32":
            raise RequestError(f"{graph.path}: {port.name}: expected float32, uint8 or int8, found {port.dtype}")
        if whole != (port.quantization is not None):
            raise RequestError(
                f"{graph.path}: {port.name}: expected a scale and a zero point for {port.dtype}, and only there"
            )


def _defaults(pixels: Port) -> dict[str, Any]:
    """Return what the graph's own input says, and what a recipe may leave out."""
    axes = pixels.shape[1:]
    layout = "nchw" if axes[0] in (1, 3) and axes[2] not in (1, 3) else "nhwc"
    height, width = axes[1:] if layout == "nchw" else axes[:2]
    mean, std = 0.0, 1.0
    if pixels.quantization is not None:
        # (p / 255 - mean) / std, divided by the scale, plus the zero point, is p (p - 128 for int8).
        lowest = 0 if pixels.dtype == "uint8" else -128
        mean = (pixels.quantization.zero_point - lowest) / 255
        std = 1 / (255 * pixels.quantization.scale)
    return {
        "size": [height, width],
        "channels": "gray" if axes[0 if layout == "nchw" else 2] == 1 else "rgb",
        "layout": layout,
        "resize": "stretch",
        "resampling": "bilinear",
        "mean": [mean],
        "std": [std],
        "max_pixels": PIXELS_CEILING,
    }


def _check_fits(graph: GraphFile, image: ImageInput, pixels: Port) -> None:
    channels = CHANNELS[image.channels]
    made = (*image.size, channels) if image.layout == "nhwc" else (channels, *image.size)
    if any(have not in (want, -1) for have, want in zip(pixels.shape[1:], made, strict=True)):
        raise RequestError(f"{graph.path}: expected a recipe for pixels {pixels.shape[1:]}, found one for {made}")
