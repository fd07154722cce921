"""Graph files of other makers: what goes into them and what comes out, read before an engine runs them.

Both formats pass the gates that a board has, an ``.onnx`` then ``onnx.checker``; at last, in a child process, an engine
runs it once: whatever a hostile file does to an engine, it does it there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.engines.onnx_files import external_files
from edge_embed.engines.onnx_gate import check_graph_file
from edge_embed.engines.tflite_files import Detail, TfliteFile, examine
from edge_embed.errors import BundleError, MissingExtraError, RequestError
from edge_embed.named_files import read_named
from edge_embed_bundle.encoders import EncoderGraph, Quantization
from edge_embed_bundle.fields import Fields

_CEILING_BYTES = 2**31
_CHILD_BYTES = 8 * 2**30
_CHILD_SECONDS = 120


class Port(NamedTuple):
    """An input or output of a graph: its name, type, shape (-1 for a free axis), and what its whole numbers mean."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quantization: Quantization | None = None


class GraphFile(NamedTuple):
    """A graph's file: its format, its inputs and outputs by name, the files that it reads beside itself."""

    path: Path
    format: str
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    beside: tuple[Path, ...] = ()
    tflite: TfliteFile | None = None


def describe(path: Path) -> GraphFile:
    """Return what a graph's file says of itself.

    Raises:
        RequestError: the file is absent, damaged or hostile, or of neither format.
        MissingExtraError: the package ``onnx`` is not installed.
    """
    data = read_named(path, "a graph in ONNX or TFLite")
    if not 8 <= len(data) <= _CEILING_BYTES:
        raise RequestError(f"{path}: expected a graph of 8 to {_CEILING_BYTES} bytes, found {len(data)}")
    if data[4:8] == b"TFL3":
        return _describe_tflite(path, data)
    return _describe_onnx(path, data)


def try_out(
    graph: EncoderGraph, path: Path, inputs: Mapping[str, NDArray[Any]], *, seconds: int = _CHILD_SECONDS
) -> NDArray[Any]:
    """Return what an engine answers in a child process, which ends with the answer, or by the file.

    Args:
        graph: how the file is asked; its engine is that of its format.
        path: the file.
        inputs: by their roles, in the types that the graph asks for.
        seconds: of processor time that it may take, and about as many on the clock.

    Raises:
        RequestError: the engine refuses the file, dies of it, or takes too much memory or time.
    """
    with tempfile.TemporaryDirectory(prefix="edge-embed-") as folder:
        given, found = Path(folder) / "inputs.npz", Path(folder) / "output.npy"
        np.savez(given, **inputs)  # type: ignore[arg-type]  # roles are no arguments of savez
        words = [str(path), json.dumps(graph.to_json()), str(given), str(found), str(seconds)]
        command = [sys.executable, "-m", __name__, *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=2 * seconds + 30, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"{path}: expected an answer within {seconds} s, found none") from error
        if done.returncode == -signal.SIGXCPU:
            raise RequestError(f"{path}: expected an answer within {seconds} s of processor time, found none")
        if done.returncode < 0:
            raise RequestError(
                f"{path}: expected a graph that its engine runs, found one that ended it ({done.returncode})"
            )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise RequestError(f"{path}: expected a graph that its engine runs, found: {said[:300]}")
        answer: NDArray[Any] = np.load(found, allow_pickle=False)
        return answer


def _describe_tflite(path: Path, data: bytes) -> GraphFile:
    try:
        found = examine(memoryview(data))
    except ValueError as error:
        raise RequestError(f"{path}: expected a TFLite graph, found: {error}") from error
    return GraphFile(path, "tflite", _ports(found.plain.inputs), _ports(found.plain.outputs), tflite=found)


def _ports(details: Mapping[str, Detail]) -> Mapping[str, Port]:
    ports = {}
    for name, each in details.items():
        quantization = None if each.scale is None else Quantization(each.scale, each.zero_point)
        ports[name] = Port(name, each.dtype, each.shape, quantization)
    return MappingProxyType(ports)


def _describe_onnx(path: Path, data: bytes) -> GraphFile:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError.of("onnx", "export", "reading an ONNX graph") from error
    try:
        names = sorted(external_files(memoryview(data)))
    except ValueError as error:
        raise RequestError(f"{path}: expected a graph in ONNX or TFLite, found: {error}") from error
    beside = []
    for name in names:
        file = path.parent / name
        if Path(name).name != name or file.is_symlink() or not file.is_file():
            raise RequestError(f"{path}: expected weights in files beside it, found {name!r:.80}")
        beside.append(file)
    try:
        check_graph_file(str(path), memoryview(data), {file.name: file.stat().st_size for file in beside})
    except BundleError as error:
        raise RequestError(str(error)) from error
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the package raises its own, protobuf's, RuntimeError and ValueError
        said = " ".join(str(error).split())
        raise RequestError(f"{path}: expected an ONNX graph, found: {said[:200]}") from error
    stored = {weight.name for weight in model.graph.initializer}
    inputs = [_onnx_port(onnx, value) for value in model.graph.input if value.name not in stored]
    outputs = [_onnx_port(onnx, value) for value in model.graph.output]
    by_name = [MappingProxyType({each.name: each for each in side}) for side in (inputs, outputs)]
    return GraphFile(path, "onnx", by_name[0], by_name[1], tuple(beside))


def _onnx_port(onnx: Any, value: Any) -> Port:
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(int(axis.dim_value) or -1 for axis in tensor.shape.dim)
    return Port(value.name, {"float": "float32"}.get(dtype, dtype), shape)


def _run_in_child(path: str, graph_json: str, given: str, found: str, seconds: str) -> None:
    """Run a graph once, in the process that may die of it."""
    from edge_embed.engines import EncoderEngine, engines_of, first_here
    from edge_embed.engines.onnx import OnnxEncoder
    from edge_embed.engines.tflite import LiteRtEncoder
    from edge_embed.errors import EdgeEmbedError

    resource.setrlimit(resource.RLIMIT_AS, (_CHILD_BYTES, _CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    graph = EncoderGraph.read(Fields(json.loads(graph_json), source=path))
    with np.load(given, allow_pickle=False) as stored:
        inputs = dict(stored)
    try:
        engine: EncoderEngine = (
            OnnxEncoder(path, graph, 1)
            if graph.format == "onnx"
            else first_here(engines_of(graph), lambda name: LiteRtEncoder(path, graph, 1, name))
        )
        np.save(found, engine.encode(inputs))
    except EdgeEmbedError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        # Without the farewells of an engine that has met a stranger's file.
        sys.stderr.flush()
        os._exit(2)


if __name__ == "__main__":
    _run_in_child(*sys.argv[1:])
