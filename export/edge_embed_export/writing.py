"""A part's blobs: the sections of its arrays, its graphs over them, and the golden questions' answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from edge_embed.progress import Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import Golden, Graph, TableModel
from edge_embed_bundle.values import Tensor
from edge_embed_bundle.writer import BlobWriter, BundleWriter
from edge_embed_export.codecs import Encoded
from edge_embed_export.graphs.onnx import onnx_bag, onnx_lookup
from edge_embed_export.graphs.tflite import Pooling, tflite_header
from edge_embed_export.matrix import Matrix, blocks_of
from edge_embed_export.parts import Part
from edge_embed_export.questions import Question, answered

GOLDEN_BLOB = "golden.bin"


def write_model(writer: BundleWriter, part: Part, progress: Progress) -> TableModel:
    """Write a table's blobs and graphs and return its model; what its graphs are proven on is still open."""
    tensors: dict[str, Tensor] = {}
    rows, dimensions = part.vectors.shape
    total = sum(array.nbytes for array in (*part.codes.values(), *part.shared.values()))
    with progress.task(f"writing {part.name}", total) as advance:
        if "tflite" in part.graphs:
            # The one copy of the table stands behind the TFLite graph; runtime and ONNX graph point into it.
            writer.blob(f"{part.name}.tflite", partial(_write_tflite, part, tensors, advance))
            if part.shared:
                writer.blob(f"{part.name}.bin", partial(_write_sections, part.shared, tensors, advance))
        else:
            writer.blob(f"{part.name}.bin", partial(_write_sections, {**part.codes, **part.shared}, tensors, advance))
    if "onnx" in part.graphs:
        graph = onnx_lookup(part.codec, tensors, dimensions)
        writer.blob(f"{part.name}.onnx", partial(write_bytes, graph))
    graphs = [Graph(name, "lookup", f"{part.name}.{name}") for name in part.graphs]
    if part.bag is not None:
        # A TFLite file holds both graphs, since its table lies in it; of ONNX each is a file over one table.
        blobs = {"onnx": f"{part.name}.bag.onnx", "tflite": f"{part.name}.tflite"}
        graphs += [Graph(name, "bag", blobs[name]) for name in part.graphs]
    model = TableModel(
        name=part.name,
        codec=part.codec,
        rows=rows,
        dimensions=dimensions,
        tensors=tensors,
        row_order=part.row_order,
        key_index=part.index,
        text=part.text,
        unknown=_policy(part),
        graphs=tuple(graphs),
        space=part.space,
        bag=part.bag,
        hash=part.hash,
        subwords=part.subwords,
        classify=part.classify,
        search=part.search,
    )
    if part.bag is not None and "onnx" in part.graphs:
        writer.blob(f"{part.name}.bag.onnx", partial(write_bytes, onnx_bag(model, tensors)))
    return model


def _policy(part: Part) -> str:
    """Return what an unknown key gets."""
    if part.hash is not None:
        return "hash"
    return "error" if part.subwords is None else "subwords"


def write_bytes(data: bytes, blob: BlobWriter) -> None:
    """Write a blob that is made already."""
    blob.write(data)


def _write_sections(
    arrays: Encoded, tensors: dict[str, Tensor], advance: Callable[[int], None], blob: BlobWriter
) -> None:
    """Write arrays as sections and note their places in ``tensors``."""
    for name, array in arrays.items():
        tensors[name] = blob.section(_chunks(array, advance), dtype=array.dtype.name, shape=array.shape)


def _chunks(array: Matrix, advance: Callable[[int], None]) -> Iterator[memoryview]:
    """Yield the little-endian bytes of an array."""
    for block in blocks_of(array):
        little = np.ascontiguousarray(array[block], array.dtype.newbyteorder("<"))
        if little.size:
            yield little.data
        advance(little.nbytes)


def _write_tflite(part: Part, tensors: dict[str, Tensor], advance: Callable[[int], None], blob: BlobWriter) -> None:
    """Write the graph and, behind it, the table where the graph's offsets say."""
    weights = {name: (array.dtype.name, array.shape) for name, array in part.codes.items()}
    rows, dimensions = part.vectors.shape
    pooling = None if part.bag is None else Pooling(part.bag, part.hash, rows)
    header, places = tflite_header(part.codec, weights, dimensions, blob.name, pooling)
    blob.write(header)
    _write_sections(part.codes, tensors, advance, blob)
    if any(tensors[name] != place for name, place in places.items()):
        raise AssertionError("the sections lie where the graph says")


def write_golden(writer: BundleWriter, runtime: Runtime) -> tuple[Golden, ...]:
    """Ask the golden questions, write their answers and return the questions with their places."""
    return write_questions(writer, answered(runtime))


def write_questions(writer: BundleWriter, questions: Sequence[Question]) -> tuple[Golden, ...]:
    """Write the answers of golden questions and return the questions with their places."""
    tensors: dict[str, Tensor] = {}
    answers = {str(i): question.answer for i, question in enumerate(questions)}
    writer.blob(GOLDEN_BLOB, partial(_write_sections, answers, tensors, lambda _: None))
    return tuple(
        Golden(question.operation, question.model, question.by, question.inputs, tensors[str(i)], question.tolerance)
        for i, question in enumerate(questions)
    )
