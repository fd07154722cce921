"""ONNX Runtime: runs ``.onnx`` graphs whose weights are external data, mapped from the bundle.

* Over a table: one thread, no arena, no rewriting: constant folding would copy the table out of its map.
* Encoders: as many threads as the caller says, which do not spin while they wait: on a board they would take the time
  of others. Lengths change from call to call, so no pattern of memory is planned; an arena keeps what a call needed,
  which takes less than the system's allocator leaves in pieces (MiniLM int8, 256 tokens: 26 MB against 32).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import BundleError, MissingExtraError
from edge_embed_bundle.encoders import EncoderGraph

_TYPES = {"int64": "tensor(int64)", "int32": "tensor(int32)", "float32": "tensor(float)"}
_TYPES |= {"uint8": "tensor(uint8)", "int8": "tensor(int8)"}


def _onnxruntime() -> Any:
    # Releases from 2026 on report to their maker from Linux, too, and write an identifier to disk, unless this is
    # set before the import (https://github.com/microsoft/onnxruntime/pull/27379). A board talks to nobody unasked.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", "onnx", "running an ONNX graph") from error
    return onnxruntime


def _session(package: Any, path: str, options: Any) -> Any:
    options.log_severity_level = 4  # what goes wrong is raised; nothing else belongs on stderr
    options.inter_op_num_threads = 1
    try:
        return package.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise BundleError(
            f"{path}: expected a graph that ONNX Runtime {package.__version__} loads, found: {error}"
        ) from error


class OnnxRuntime:
    """A graph of lookups or of bags in one ONNX Runtime session, one thread, no arena."""

    name = "onnxruntime"

    def __init__(self, path: str, *, bags: bool = False) -> None:
        package = _onnxruntime()
        self.version: str = package.__version__
        self._path = path
        options = package.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        # Constant folding would copy the table out of its map.
        options.graph_optimization_level = package.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = _session(package, path, options)
        inputs = [(value.name, value.type) for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        ids, offsets = ("ids", "tensor(int64)"), ("offsets", "tensor(int64)")
        expected = [[ids, offsets], [ids, offsets, ("weights", "tensor(float)")]] if bags else [[ids]]
        if inputs not in expected or outputs != ["pooled" if bags else "vectors"]:
            what = "int64 ids and offsets to pooled" if bags else "int64 ids to vectors"
            raise BundleError(f"{path}: expected a graph from {what}, found {inputs} to {outputs}")

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`edge_embed.engines.LookupEngine.lookup`."""
        return self._run({"ids": ids})

    def bag(
        self, ids: NDArray[np.int64], offsets: NDArray[np.int64], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """See :meth:`edge_embed.engines.BagEngine.bag`."""
        given = {"ids": ids, "offsets": offsets}
        return self._run(given if weights is None else {**given, "weights": weights})

    def _run(self, given: dict[str, Any]) -> NDArray[np.float32]:
        try:
            vectors: NDArray[np.float32] = self._session.run(None, given)[0]
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise BundleError(
                f"{self._path}: expected vectors from ONNX Runtime {self.version}, found: {error}"
            ) from error
        return vectors


class OnnxEncoder:
    """A graph that encodes in one ONNX Runtime session."""

    name = "onnxruntime"

    def __init__(self, path: str, graph: EncoderGraph, threads: int) -> None:
        package = _onnxruntime()
        self.version: str = package.__version__
        self._path = path
        self._names = {each.role: each.name for each in graph.inputs}
        self._output = graph.output.name
        options = package.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _session(package, path, options)
        inputs = {(value.name, value.type) for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        expected = {(each.name, _TYPES[each.dtype]) for each in graph.inputs}
        if inputs != expected or graph.output.name not in outputs:
            raise BundleError(
                f"{path}: expected a graph from {sorted(expected)} to {graph.output.name}, "
                f"found {sorted(inputs)} to {outputs}"
            )

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """See :meth:`edge_embed.engines.EncoderEngine.encode`."""
        given = {self._names[role]: values for role, values in inputs.items()}
        try:
            found: NDArray[Any] = self._session.run([self._output], given)[0]
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise BundleError(
                f"{self._path}: expected vectors from ONNX Runtime {self.version}, found: {error}"
            ) from error
        return found
