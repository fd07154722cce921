"""A small convolutional network, trained here on scikit-learn's digits, as ONNX of int8 and as TFLite of whole numbers.

Trained with numpy alone (Adam: Kingma and Ba, 2015), in a few seconds. Its vector is what stands before the labels.
Both files are calibrated: the range of each map is that of some training pictures. Whole numbers in TFLite follow
https://ai.google.dev/edge/litert/models/quantization_spec; those in ONNX are onnxruntime's static quantization.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE, DIMENSIONS = 8, 32
_MAPS = (1, 12, 24)
_FLAT = (SIDE // 4) ** 2 * _MAPS[2]
_EPOCHS, _BATCH, _STEP = 12, 64, 0.003


class Digits(NamedTuple):
    """Pictures ``(n, 8, 8)`` uint8, from 0 to 255, and what they show ``(n,)``."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def part(self, rows: slice) -> Digits:
        return Digits(self.pictures[rows], self.labels[rows])


def load_digits() -> Digits:
    """Return the 1,797 digits that come with scikit-learn, in its order."""
    from sklearn.datasets import load_digits as load

    found = load()
    return Digits((found.images * 255 / 16).round().astype(np.uint8), found.target.astype(np.int64))


def trained(digits: Digits) -> dict[str, Floats]:
    """Return the weights: two convolutions of 3 x 3, each pooled by its largest of 2 x 2, and two dense steps."""
    random = np.random.default_rng(0)
    shapes = {
        "conv1": (_MAPS[1], 3, 3, _MAPS[0]),
        "conv2": (_MAPS[2], 3, 3, _MAPS[1]),
        "vector": (DIMENSIONS, _FLAT),
        "label": (10, DIMENSIONS),
    }
    weights = {
        name: (random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    means, squares = ({name: np.zeros_like(each) for name, each in weights.items()} for _ in range(2))
    step = 0
    for _ in range(_EPOCHS):
        order = random.permutation(len(digits.labels))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            step += 1
            for name, slope in _slopes(weights, pixels_of(digits.pictures[batch]), digits.labels[batch]).items():
                means[name] += 0.1 * (slope - means[name])
                squares[name] += 0.001 * (slope**2 - squares[name])
                rate = _STEP * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                weights[name] -= (rate * means[name] / (np.sqrt(squares[name]) + 1e-8)).astype(np.float32)
    return weights


def pixels_of(pictures: NDArray[np.uint8]) -> Floats:
    """Return what the network is given: ``(n, 8, 8, 1)`` from 0 to 1."""
    return (pictures[..., np.newaxis] / 255).astype(np.float32)


def maps_of(weights: Mapping[str, Floats], pixels: Floats) -> dict[str, Floats]:
    """Return every map of some pictures, by its name; the last one is ``vector`` ``(n, 32)``."""
    found = {"pixels": pixels}
    x = pixels
    for name in ("conv1", "conv2"):
        x = np.maximum(_windows(x) @ weights[name].reshape(len(weights[name]), -1).T + weights[f"{name}.bias"], 0)
        found[name] = x
        x = _cells(x).max(axis=3)
        found[f"{name}.pooled"] = x
    found["vector"] = x.reshape(len(x), -1) @ weights["vector"].T + weights["vector.bias"]
    return found


def _slopes(weights: Mapping[str, Floats], pixels: Floats, labels: NDArray[np.int64]) -> dict[str, Floats]:
    """Return the slope of the mean cross-entropy by each weight."""
    maps = maps_of(weights, pixels)
    bent = np.maximum(maps["vector"], 0)
    scores = bent @ weights["label"].T + weights["label.bias"]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    slope = shares / len(labels)
    slopes = {"label": slope.T @ bent, "label.bias": slope.sum(axis=0)}
    slope = slope @ weights["label"] * (maps["vector"] > 0)
    flat = maps["conv2.pooled"].reshape(len(pixels), -1)
    slopes |= {"vector": slope.T @ flat, "vector.bias": slope.sum(axis=0)}
    slope = (slope @ weights["vector"]).reshape(maps["conv2.pooled"].shape)
    for name, before in (("conv2", "conv1.pooled"), ("conv1", "pixels")):
        cells = _cells(maps[name])
        largest = cells == cells.max(axis=3, keepdims=True)
        spread = (largest * slope[:, :, :, np.newaxis]).astype(np.float32)
        slope = _uncelled(spread) * (maps[name] > 0)
        windows = _windows(maps[before])
        slopes[name] = np.tensordot(slope, windows, ((0, 1, 2), (0, 1, 2))).reshape(weights[name].shape)
        slopes[f"{name}.bias"] = slope.sum(axis=(0, 1, 2))
        # Back through the convolution: with its kernel turned around.
        turned = weights[name][:, ::-1, ::-1].transpose(3, 1, 2, 0)
        slope = _windows(slope) @ turned.reshape(len(turned), -1).T
    return slopes


def _windows(maps: Floats) -> Floats:
    """Return the 3 x 3 around each place, zeros beyond the border, ``(n, h, w, 9 c)``."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.ascontiguousarray(found.transpose(0, 1, 2, 4, 5, 3)).reshape(*maps.shape[:3], -1)


def _cells(maps: Floats) -> Floats:
    """Return the 2 x 2 that are pooled, ``(n, h / 2, w / 2, 4, c)``."""
    n, h, w, c = maps.shape
    return maps.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4, c)


def _uncelled(cells: Floats) -> Floats:
    n, h, w, _, c = cells.shape
    return cells.reshape(n, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c)


def write_onnx(path: Path, weights: Mapping[str, Floats]) -> Path:
    """Write the network of float32 for pixels ``(n, 1, 8, 8)``."""
    from onnx import TensorProto, helper, numpy_helper

    arrays = {f"{name}.bias": weights[f"{name}.bias"] for name in ("conv1", "conv2", "vector")}
    arrays |= {name: weights[name].transpose(0, 3, 1, 2) for name in ("conv1", "conv2")}
    # The flat map has its channels first here.
    side = SIDE // 4
    dense = weights["vector"].reshape(DIMENSIONS, side, side, -1).transpose(0, 3, 1, 2).reshape(DIMENSIONS, -1)
    arrays["vector"] = dense
    nodes, x = [], "pixels"
    for name in ("conv1", "conv2"):
        nodes += [
            helper.make_node("Conv", [x, name, f"{name}.bias"], [f"{name}.sum"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{name}.sum"], [f"{name}.map"]),
            helper.make_node("MaxPool", [f"{name}.map"], [f"{name}.pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        x = f"{name}.pooled"
    nodes += [
        helper.make_node("Flatten", [x], ["flat"]),
        helper.make_node("Gemm", ["flat", "vector", "vector.bias"], ["digit"], transB=1),
    ]
    stored = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])
    digit = helper.make_tensor_value_info("digit", TensorProto.FLOAT, ["n", DIMENSIONS])
    graph = helper.make_graph(nodes, "digits", [pixels], [digit], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def write_onnx_int8(path: Path, source: Path, calibration: Digits) -> Path:
    """Write the network of int8, by onnxruntime's static quantization of the one in ``source``."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[NDArray[np.uint8]] = iter(calibration.pictures)

        def get_next(self) -> dict[str, Floats] | None:
            picture = next(self._left, None)
            return None if picture is None else {"pixels": pixels_of(picture[np.newaxis]).transpose(0, 3, 1, 2)}

    quantization.quantize_static(str(source), str(path), Reader(), per_channel=True)
    return path


class _Map(NamedTuple):
    """A map of whole numbers: its place among the tensors, and what they mean."""

    place: int
    scale: float
    zero_point: int


class _Writer:
    """A graph of whole numbers in the making, by the schema's own classes."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.buffers: list[Any] = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(
        self, name: str, kind: str, shape: Sequence[int], scales: Sequence[float], zero: int = 0, axis: int = 0
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
        tensor.type = getattr(self.schema.TensorType, kind)
        if len(scales):
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.array(scales, np.float32)
            tensor.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
            tensor.quantization.quantizedDimension = axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, name: str, values: NDArray[Any], scales: Sequence[float] = ()) -> int:
        place = self.tensor(name, values.dtype.name.upper(), values.shape, scales)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.buffers.append(buffer)
        self.tensors[place].buffer = len(self.buffers) - 1
        return place

    def operator(self, name: str, version: int, inputs: list[int], output: int, **options: Any) -> None:
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, name)
        code.version = version
        self.codes.append(code)
        kind = {"CONV_2D": "Conv2DOptions", "MAX_POOL_2D": "Pool2DOptions", "RESHAPE": "ReshapeOptions"}.get(
            name, "FullyConnectedOptions"
        )
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes) - 1, inputs, [output]
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(self.schema, f"{kind}T")()
        for field, value in options.items():
            setattr(operator.builtinOptions, field, value)
        self.operators.append(operator)

    def packed(self, first: int, last: int) -> bytes:
        import flatbuffers

        graph, model = self.schema.SubGraphT(), self.schema.ModelT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, [first], [last]
        model.version, model.buffers, model.operatorCodes = 3, self.buffers, self.codes
        model.subgraphs, model.description = [graph], "digits"
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def write_tflite_int8(path: Path, weights: Mapping[str, Floats], calibration: Digits) -> Path:
    """Write the network of whole numbers alone: pixels int8 ``(1, 8, 8, 1)``, vectors int8 ``(1, 32)``."""
    maps = maps_of(weights, pixels_of(calibration.pictures))
    writer = _Writer()
    first = x = _Map(writer.tensor("pixels", "INT8", (1, SIDE, SIDE, 1), [1 / 255], -128), 1 / 255, -128)
    side = SIDE
    for name in ("conv1", "conv2"):
        channels = len(weights[name])
        x = _weighted(writer, name, weights, x, (1, side, side, channels), maps[name], "CONV_2D", 3, fused=1)
        side //= 2
        pooled = writer.tensor(f"{name}.pooled", "INT8", (1, side, side, channels), [x.scale], x.zero_point)
        sizes = {"strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2, "padding": 1}
        writer.operator("MAX_POOL_2D", 2, [x.place], pooled, **sizes)
        x = x._replace(place=pooled)
    flat = writer.tensor("flat", "INT8", (1, _FLAT), [x.scale], x.zero_point)
    shape = writer.constant("flat_shape", np.array([1, _FLAT], np.int32))
    writer.operator("RESHAPE", 1, [x.place, shape], flat)
    x = x._replace(place=flat)
    last = _weighted(writer, "vector", weights, x, (1, DIMENSIONS), maps["vector"], "FULLY_CONNECTED", 4, fused=0)
    path.write_bytes(writer.packed(first.place, last.place))
    return path


def _weighted(
    writer: _Writer,
    name: str,
    weights: Mapping[str, Floats],
    x: _Map,
    shape: Sequence[int],
    seen: Floats,
    operator: str,
    version: int,
    *,
    fused: int,
) -> _Map:
    """Add an operator with weights: codes by channel (one scale for dense ones), a bias of int32, a calibrated map."""
    rows = weights[name].reshape(len(weights[name]), -1)
    scales = np.abs(rows).max(axis=1) / 127 if operator == "CONV_2D" else np.full(1, np.abs(rows).max() / 127)
    codes = np.rint(rows / scales[:, np.newaxis]).astype(np.int8).reshape(weights[name].shape)
    bias = np.rint(weights[f"{name}.bias"] / (scales * x.scale)).astype(np.int32)
    low, high = min(0.0, float(seen.min())), float(seen.max())
    scale = (high - low) / 255
    zero_point = int(np.rint(-128 - low / scale))
    place = writer.tensor(name, "INT8", shape, [scale], zero_point)
    inputs = [
        x.place,
        writer.constant(f"{name}.weights", codes, scales.tolist()),
        writer.constant(f"{name}.bias", bias, (scales * x.scale).tolist()),
    ]
    strides = {"strideW": 1, "strideH": 1} if operator == "CONV_2D" else {}
    writer.operator(operator, version, inputs, place, fusedActivationFunction=fused, **strides)
    return _Map(place, scale, zero_point)
