"""ONNX Runtime: runs ``.onnx`` graphs whose table is external data, mapped from the bundle."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import BundleError, MissingExtraError


class OnnxRuntime:
    """A graph of lookups or of bags in one ONNX Runtime session, one thread, no arena."""

    name = "onnxruntime"

    def __init__(self, path: str, *, bags: bool = False) -> None:
        # Releases from 2026 on report to their maker from Linux, too, and write an identifier to disk, unless this is
        # set before the import (https://github.com/microsoft/onnxruntime/pull/27379). A board talks to nobody unasked.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError.of("onnxruntime", "onnx", "running an ONNX graph") from error
        self.version: str = onnxruntime.__version__
        self._path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; nothing else belongs on stderr
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        # Constant folding would copy the table out of its map.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise BundleError(
                f"{path}: expected a graph that ONNX Runtime {self.version} loads, found: {error}"
            ) from error
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
