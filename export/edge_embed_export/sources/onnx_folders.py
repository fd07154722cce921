"""A sentence-transformers or Hugging Face folder whose network is an ONNX file, of another maker: the file as it is.

* ``model.onnx`` stands in the folder or in its ``onnx``; everything else is read as of a transformer's folder.
* Its inputs are known by the names that exporters give them. Of its outputs ``sentence_embedding`` is the vector; else
  the first one, as vectors ``(n, d)`` or as a vector for each token, which the board pools as the folder says.
* Texts go in one at a time: whether such a graph keeps those of a batch apart, nobody knows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_embed.errors import RequestError
from edge_embed.named_files import read_named
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput
from edge_embed_bundle.values import FILE_NAME
from edge_embed_export.graphs.files import GraphFile, Port, describe, try_out
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.sources.graph_network import GraphNetwork, digest_of
from edge_embed_export.sources.transformers import Settings

#: What exporters call the inputs of a transformer.
_ROLES = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}
_VECTOR = "sentence_embedding"
_TRIED_TOKENS = 4
_PLACES = ("model.onnx", "onnx/model.onnx")
#: Operators of weights or activations in codes: such a graph rounds, and differs from machine to machine.
_OF_CODES = (b"MatMulInteger", b"DynamicQuantize", b"DequantizeLinear", b"QLinear", b"MatMulNBits", b"QAttention")


def read_onnx_folder(path: Path) -> EncoderSource:
    """Read an encoder's folder, and run its graph once.

    Raises:
        RequestError: a file is absent, damaged or hostile, the graph is no such encoder, or its engine refuses it.
    """
    settings = Settings.read(path)
    place = next((path / name for name in _PLACES if (path / name).is_file()), None)
    if place is None:
        raise RequestError(f"{path}: expected {' or '.join(_PLACES)} in the folder, found neither")
    file = describe(place)
    strange = [each.name for each in file.beside if not FILE_NAME.fullmatch(each.name)]
    if strange:
        raise RequestError(f"{place}: expected weights in files of plain names, found {strange[0]!r:.80}")
    output = _output(file)
    graph = EncoderGraph(
        format="onnx",
        blob="model.onnx",
        weights=tuple(each.name for each in file.beside),
        variant="int8" if any(word in read_named(place, "a graph") for word in _OF_CODES) else "float32",
        inputs=tuple(_input(file, port) for port in file.inputs.values()),
        output=GraphOutput(output.name, _holds(output, settings.normalize)),
        max_batch=1,
        tolerance=0.0,
    )
    ids = np.arange(_TRIED_TOKENS)[np.newaxis]
    given = {"ids": ids, "mask": ids * 0 + 1, "types": ids * 0}
    found = try_out(graph, place, {each.role: given[each.role].astype(each.dtype) for each in graph.inputs})
    expected = 3 if graph.output.holds == "tokens" else 2
    if found.dtype != np.float32 or found.ndim != expected or len(found) != 1:
        raise RequestError(
            f"{place}: expected float32 of {expected} axes from {output.name}, found {found.dtype} {found.shape}"
        )
    rows = settings.config.get("vocab_size")
    positions = settings.config.get("max_position_embeddings")
    return EncoderSource(
        title=settings.title,
        dimensions=found.shape[-1],
        normalize=settings.normalize,
        network=GraphNetwork(file, graph),
        weights_digest=digest_of(file),
        text=settings.text(
            positions if isinstance(positions, int) and positions > 0 else None,
            rows=rows if isinstance(rows, int) and rows > 0 else 2**31,
        ),
        tokenizer=settings.tokenizer,
        recipe={"network": "graph", "output": output.name},
        notes=settings.notes,
    )


def _input(file: GraphFile, port: Port) -> GraphInput:
    role = _ROLES.get(port.name)
    if role is None or port.dtype not in ("int32", "int64") or len(port.shape) != 2:
        raise RequestError(
            f"{file.path}: expected inputs (n, length) of whole numbers called {', '.join(_ROLES)}, "
            f"found {port.name!r:.60} of {port.dtype} {port.shape}"
        )
    return GraphInput(port.name, role, port.dtype)


def _output(file: GraphFile) -> Port:
    if _ROLES.keys().isdisjoint(file.inputs) or not file.outputs:
        raise RequestError(f"{file.path}: expected a graph of input_ids, found {', '.join(file.inputs)[:100]}")
    return file.outputs.get(_VECTOR) or next(iter(file.outputs.values()))


def _holds(output: Port, normalize: bool) -> str:
    if len(output.shape) == 3:
        return "tokens"
    # Normalizing what is normalized changes nothing.
    return "pooled" if normalize else "vectors"
