"""LiteRT, or tflite-runtime where LiteRT has no wheel: runs ``.tflite`` graphs, opened by path to be mapped."""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import BundleError, MissingExtraError

# Either brings the same Interpreter; the second is the last release of its forerunner, for boards without the first.
_PACKAGES = (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime"))


class LiteRt:
    """The graphs of a file in one interpreter, one thread. The interpreter is no place for two callers at once."""

    name = "litert"

    def __init__(self, path: str) -> None:
        interpreter, self.version = _interpreter()
        self._path = path
        try:
            self._interpreter: Any = interpreter.Interpreter(
                model_path=path,
                num_threads=1,
                # The default delegate packs constants into memory of its own and has no kernel for these operations.
                experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            self._input = self._interpreter.get_input_details()
            self._output = self._interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{path}: expected a graph that {self.version} loads, found: {error}") from error
        names = [detail["name"] for detail in (*self._input, *self._output)]
        if names != ["ids", "vectors"]:
            raise BundleError(f"{path}: expected a graph from ids to vectors, found {names}")
        self._count = -1
        self._bag: Any = None
        self._running = threading.Lock()

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`edge_embed.engines.LookupEngine.lookup`."""
        with self._running:
            try:
                return self._run(ids)
            except (ValueError, RuntimeError) as error:
                self._count = -1
                raise BundleError(f"{self._path}: expected vectors from {self.version}, found: {error}") from error

    def bag(
        self, ids: NDArray[np.int64], offsets: NDArray[np.int64], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """See :meth:`edge_embed.engines.BagEngine.bag`."""
        given: dict[str, Any] = {"ids": ids.astype(np.int32), "offsets": offsets.astype(np.int32)}
        if weights is not None:
            given["weights"] = weights
        with self._running:
            try:
                if self._bag is None:
                    self._bag = self._interpreter.get_signature_runner("bag")
                pooled: NDArray[np.float32] = self._bag(**given)["pooled"]
            except (ValueError, RuntimeError, KeyError) as error:
                raise BundleError(f"{self._path}: expected bags from {self.version}, found: {error}") from error
        return pooled

    def _run(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        if len(ids) != self._count:
            self._interpreter.resize_tensor_input(self._input[0]["index"], [len(ids)])
            self._interpreter.allocate_tensors()
            self._count = len(ids)
        self._interpreter.set_tensor(self._input[0]["index"], ids.astype(np.int32))
        self._interpreter.invoke()
        vectors: NDArray[np.float32] = self._interpreter.get_tensor(self._output[0]["index"])
        return vectors


def _interpreter() -> tuple[Any, str]:
    for module, distribution in _PACKAGES:
        try:
            return importlib.import_module(module), f"{distribution} {importlib.metadata.version(distribution)}"
        except ImportError:
            continue
    raise MissingExtraError.of("ai-edge-litert", "tflite", "running a TFLite graph")
