"""The walk over an ONNX file finds every file that it reads, wherever in it a tensor stands."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.engines.onnx_files import external_files

onnx = pytest.importorskip("onnx")


def _external(location: str) -> Any:
    tensor = onnx.TensorProto(name=location, data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=1)
    for key, value in (("location", location), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def test_tensors_of_graphs_attributes_branches_functions_and_sparse_ones_are_found() -> None:
    model = onnx.ModelProto(ir_version=8, producer_name="a name that is no location")
    model.graph.initializer.append(_external("initializer"))
    node = model.graph.node.add()
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(_external("attribute"))
    node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(_external("attributes"))
    branch = node.attribute.add(name="branch", type=onnx.AttributeProto.GRAPH).g
    branch.node.add().attribute.add(type=onnx.AttributeProto.GRAPHS).graphs.add().initializer.append(_external("deep"))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_external("sparse values"))
    sparse.indices.CopyFrom(_external("sparse indices"))
    function = model.functions.add()
    function.node.add().attribute.add(type=onnx.AttributeProto.TENSOR).t.CopyFrom(_external("function"))
    model.training_info.add().algorithm.initializer.append(_external("training"))
    names = {
        "initializer",
        "attribute",
        "attributes",
        "deep",
        "sparse values",
        "sparse indices",
        "function",
        "training",
    }
    assert external_files(memoryview(model.SerializeToString())) == names


def test_a_graph_without_external_data_reads_no_file() -> None:
    tensor = onnx.helper.make_tensor("location", onnx.TensorProto.FLOAT, [1], [1.0])
    graph = onnx.helper.make_graph([], "location", [], [], [tensor])
    assert external_files(memoryview(onnx.helper.make_model(graph).SerializeToString())) == set()
    assert external_files(memoryview(b"")) == set()


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_to_their_end_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(external_files(memoryview(data)), set)


def test_nesting_without_end_is_refused() -> None:
    data = b""
    for _ in range(100):  # AttributeProto.g, NodeProto.attribute, GraphProto.node, from the inside out
        for tag in (0x32, 0x2A, 0x0A):
            data = bytes([tag]) + _varint(len(data)) + data
    with pytest.raises(ValueError, match="levels of nesting"):
        external_files(memoryview(b"\x3a" + _varint(len(data)) + data))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
