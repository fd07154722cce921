"""A ``.tflite`` file in whichever of its two engines is installed, asked without any code of ours."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def answers(path: str, inputs: list[NDArray[Any]], *, threads: int = 1) -> list[NDArray[Any]]:
    """Return the answer of a file's only input and output to each of some inputs, of any lengths, in turn."""
    try:
        package = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError:
        package = importlib.import_module("tflite_runtime.interpreter")
    interpreter = package.Interpreter(model_path=path, num_threads=threads)
    (asked,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for given in inputs:
        interpreter.resize_tensor_input(asked["index"], given.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(asked["index"], given)
        interpreter.invoke()
        found.append(np.array(interpreter.get_tensor(answer["index"])))
    return found
