"""An image encoder in ONNX or TFLite as it is: its file, its own numbers, and a recipe for pictures.

The file goes into the bundle byte for byte. Whether it holds a network that maps pictures to vectors is seen by running
it once, in a child process (``graphs.files``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_embed.errors import RequestError
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput
from edge_embed_bundle.values import DIMENSIONS_CEILING, FILE_NAME
from edge_embed_export.graphs.files import GraphFile, describe, try_out
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.sources.graph_network import GraphNetwork, digest_of
from edge_embed_export.sources.image_recipes import Recipe, recipe_of


def is_graph_file(head: bytes, path: Path) -> bool:
    """Tell whether a file is a graph in TFLite, or by its name one in ONNX, which has no mark of its own."""
    return head[4:8] == b"TFL3" or path.suffix == ".onnx"


def read_image_encoder(path: Path, recipe: Path | None = None) -> EncoderSource:
    """Read an encoder's file and its recipe, and run it once.

    Raises:
        RequestError: the file is no such encoder, nobody says how pictures become its pixels, or its engine refuses it.
    """
    file = describe(path)
    said = recipe_of(file, recipe)
    graph = _graph(file, said)
    dimensions = _dimensions(file, graph, said)
    notes = [] if said.said_by != str(path) else [f"{path.name}: nobody says what happens to pictures: {said.said_by}"]
    return EncoderSource(
        title=path.resolve().name,
        dimensions=dimensions,
        normalize=said.normalize,
        network=GraphNetwork(file, graph, said.image.size[0] * said.image.size[1]),
        weights_digest=digest_of(file),
        image=said.image,
        recipe={"network": "graph", "output": said.output.name},
        notes=tuple(notes),
    )


def _graph(file: GraphFile, said: Recipe) -> EncoderGraph:
    strange = [path.name for path in file.beside if not FILE_NAME.fullmatch(path.name)]
    if strange:
        raise RequestError(f"{file.path}: expected weights in files of plain names, found {strange[0]!r:.80}")
    pixels, output = said.pixels, said.output
    return EncoderGraph(
        format=file.format,
        blob=f"image.{file.format}",
        weights=tuple(path.name for path in file.beside),
        variant=pixels.dtype if pixels.dtype != "float32" else _stored_as(file),
        inputs=(GraphInput(pixels.name, "pixels", pixels.dtype, pixels.quantization),),
        output=GraphOutput(output.name, "vectors", output.dtype, output.quantization),
        max_batch=1,
        tolerance=0.0,
    )


def _stored_as(file: GraphFile) -> str:
    """Return what a graph of float32 pixels computes in, as far as its ends show it."""
    return "int8" if any(each.dtype in ("uint8", "int8") for each in file.outputs.values()) else "float32"


def _dimensions(file: GraphFile, graph: EncoderGraph, said: Recipe) -> int:
    """Run the file on a grey picture, and return how many numbers it answers."""
    channels = len(said.image.mean)
    shape = (1, *said.image.size, channels) if said.image.layout == "nhwc" else (1, channels, *said.image.size)
    grey = (
        np.zeros(shape, np.float32) if graph.inputs[0].dtype == "float32" else np.full(shape, 64, graph.inputs[0].dtype)
    )
    found = try_out(graph, file.path, {"pixels": grey})
    if found.dtype.name != graph.output.dtype or found.ndim < 2 or found.shape[0] != 1:
        raise RequestError(
            f"{file.path}: expected {graph.output.dtype} (1, d) from {graph.output.name}, "
            f"found {found.dtype} {found.shape}"
        )
    if found.size != found.shape[-1] and found.size != found.shape[1]:
        raise RequestError(
            f"{file.path}: expected one vector from {graph.output.name}, found a map {found.shape}; name the output "
            "behind its pooling in the recipe"
        )
    if not 1 <= found.size <= DIMENSIONS_CEILING:
        raise RequestError(f"{file.path}: expected 1 to {DIMENSIONS_CEILING} dimensions, found {found.size}")
    return int(found.size)
