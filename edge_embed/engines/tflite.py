"""LiteRT, and tflite-runtime, its forerunner: either runs ``.tflite`` graphs, opened by path to be mapped.

Both bring the same ``Interpreter``, so one class for each kind of graph serves both, told which by its name. The second
is for boards that the first has no wheel for, and answers some files wrongly: no graph is believed unasked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import BundleError, MissingExtraError
from edge_embed_bundle.encoders import EncoderGraph

#: The module and the distribution of each engine.
_PACKAGES = {
    "litert": ("ai_edge_litert.interpreter", "ai-edge-litert"),
    "tflite-runtime": ("tflite_runtime.interpreter", "tflite-runtime"),
}


class LiteRt:
    """The graphs of a file in one interpreter, one thread. The interpreter is no place for two callers at once."""

    def __init__(self, path: str, name: str) -> None:
        interpreter, self.version = _interpreter(name)
        self.name = name
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
        except (ValueError, RuntimeError, ImportError) as error:  # of numpy 2 tflite-runtime says it here
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


class LiteRtEncoder:
    """A graph that encodes in one interpreter, which is no place for two callers at once.

    With named signatures, each is a way in of its own; without, the inputs are resized to what is given.
    """

    def __init__(self, path: str, graph: EncoderGraph, threads: int, name: str) -> None:
        interpreter, self.version = _interpreter(name)
        self.name = name
        self._path = path
        self._output = graph.output.name
        self._names = {each.role: each.name for each in graph.inputs}
        self._signatures = {each.length: each.name for each in graph.signatures if each.name is not None}
        self._runners: dict[int, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._running = threading.Lock()
        try:
            self._interpreter: Any = interpreter.Interpreter(model_path=path, num_threads=threads)
            known = self._interpreter.get_signature_list()
            inputs = {each["name"]: each["index"] for each in self._interpreter.get_input_details()}
            outputs = {each["name"]: each["index"] for each in self._interpreter.get_output_details()}
        except (ValueError, RuntimeError, ImportError) as error:  # of numpy 2 tflite-runtime says it here
            raise BundleError(f"{path}: expected a graph that {self.version} loads, found: {error}") from error
        if self._signatures:
            for name in self._signatures.values():
                signature = known.get(name, {"inputs": [], "outputs": []})
                self._check(sorted(signature["inputs"]), signature["outputs"], f" in the signature {name}")
        else:
            self._check(sorted(inputs), list(outputs), "")
            self._inputs = {role: inputs[name] for role, name in self._names.items()}
            self._place = outputs[self._output]

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """See :meth:`edge_embed.engines.EncoderEngine.encode`."""
        with self._running:
            try:
                return self._by_signature(inputs) if self._signatures else self._resized(inputs)
            except (ValueError, RuntimeError, KeyError) as error:
                self._shapes = {}
                raise BundleError(f"{self._path}: expected vectors from {self.version}, found: {error}") from error

    def _by_signature(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        length = next(iter(inputs.values())).shape[1]
        if length not in self._runners:
            self._runners[length] = self._interpreter.get_signature_runner(self._signatures[length])
        given = {self._names[role]: values for role, values in inputs.items()}
        found: NDArray[Any] = self._runners[length](**given)[self._output]
        return found

    def _resized(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        shapes = {role: values.shape for role, values in inputs.items()}
        if shapes != self._shapes:
            for role, shape in shapes.items():
                self._interpreter.resize_tensor_input(self._inputs[role], shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for role, values in inputs.items():
            self._interpreter.set_tensor(self._inputs[role], values)
        self._interpreter.invoke()
        found: NDArray[Any] = self._interpreter.get_tensor(self._place)
        return found

    def _check(self, inputs: list[str], outputs: list[str], where: str) -> None:
        expected = sorted(self._names.values())
        if inputs != expected or self._output not in outputs:
            raise BundleError(
                f"{self._path}: expected a graph from {expected} to {self._output}{where}, found {inputs} to {outputs}"
            )


def _interpreter(name: str) -> tuple[Any, str]:
    module, distribution = _PACKAGES[name]
    try:
        return importlib.import_module(module), f"{distribution} {importlib.metadata.version(distribution)}"
    except ImportError as error:
        # On boards of 32 bits the extra brings the forerunner.
        has_first = name == "litert" or os.uname().machine == "armv7l"
        raise MissingExtraError.of(
            distribution, "tflite" if has_first else "legacy", f"running a TFLite graph by {name}"
        ) from error
