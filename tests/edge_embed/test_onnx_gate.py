"""The gate before an ONNX engine: what is hostile is refused with its reason, what is whole passes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.engines.onnx_gate import check_graph_file
from edge_embed.errors import BundleError

onnx = pytest.importorskip("onnx")
helper = onnx.helper

FILES = {"graph.bin": 4096}


def good() -> Any:
    """Return a whole graph: a product with weights beside the file, a branch that sees an outer name, a constant."""
    floats = onnx.TensorProto.FLOAT
    then = helper.make_graph([helper.make_node("Neg", ["sums"], ["a"])], "then", [], [_value("a")])
    other = helper.make_graph([helper.make_node("Add", ["sums", "bias"], ["b"])], "else", [], [_value("b")])
    nodes = [
        helper.make_node("Gather", ["weights", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows"], ["sums"], keepdims=1),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["yes"], ["vectors"], then_branch=then, else_branch=other),
    ]
    weights = onnx.TensorProto(name="weights", data_type=floats, dims=[16, 8], data_location=1)
    for key, value in (("location", "graph.bin"), ("offset", "1024"), ("length", "512")):
        weights.external_data.add(key=key, value=value)
    bias = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "bias")
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "good", [ids], [_value("vectors")], [weights, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str) -> Any:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


def _check(model: Any) -> None:
    check_graph_file("graph.onnx", memoryview(model.SerializeToString()), FILES)


def test_a_whole_graph_passes() -> None:
    _check(good())


def _entry(key: str, value: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (entry,) = (each for each in model.graph.initializer[0].external_data if each.key == key)
        entry.value = value

    return change


def _node(*inputs: str, outputs: tuple[str, ...] = ("more",), domain: str = "") -> Callable[[Any], None]:
    return lambda model: model.graph.node.insert(0, helper.make_node("Add", inputs, outputs, domain=domain))


def _circle(model: Any) -> None:
    _node("b1", "bias", outputs=("b2",))(model)
    _node("b2", "bias", outputs=("b1",))(model)


def _in_branch(model: Any) -> None:
    branch = model.graph.node[3].attribute[0].g
    branch.node[0].input[0] = "later"


def _deep(model: Any) -> None:
    branch = helper.make_graph([], "deep", [], [_value("sums")])
    for _ in range(20):
        node = helper.make_node("If", ["yes"], ["sums_again"], then_branch=branch, else_branch=branch)
        branch = helper.make_graph([node], "deep", [], [_value("sums_again")])
        del branch.node[0].attribute[1:]
    model.graph.node[3].attribute[0].g.CopyFrom(branch)


def _dims(*dims: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "weights above the folder": (_entry("location", "../graph.bin"), "weights in files of the bundle, found '../graph"),
    "weights at an absolute path": (_entry("location", "/etc/passwd"), "weights in files of the bundle, found '/etc"),
    "weights in a file that nobody named": (_entry("location", "other.bin"), "weights in files of the bundle"),
    "weights in no file": (lambda m: m.graph.initializer[0].external_data.pop(0), "beside the file, but in none"),
    "weights past the end": (_entry("offset", "3585"), "of 512 bytes at 3585 of graph.bin, which has 4096"),
    "weights before the start": (_entry("offset", "-1"), "a place of '-1' bytes"),
    "weights of another length": (_entry("length", "511"), "of 512 bytes at 1024 of graph.bin"),
    "weights larger than they are": (_dims(16, 1024), "of 65536 bytes at 1024 of graph.bin"),
    "weights of a negative size": (_dims(-16, -8), "a size that is none"),
    "weights without end": (_dims(2**40, 2**20), "a size that is none"),
    "weights of too many axes": (_dims(*[1] * 33), "of more than 32 axes"),
    "weights at a long path": (_entry("location", "x" * 1000), "weights in files of the bundle, found 'xxx"),
    "a constant shorter than it says": (lambda m: m.graph.initializer[1].dims.append(9), "of 36 bytes with 4 in"),
    "a node that takes its own result": (_node("more", "bias"), "takes 'more', which nothing before it makes"),
    "nodes in a circle": (
        _circle,
        "which nothing before it makes: a cycle, or a gap",
    ),
    "a node that takes nothing there is": (_node("nowhere", "bias"), "takes 'nowhere'"),
    "a branch that sees what comes later": (_in_branch, "takes 'later'"),
    "two nodes that make one value": (_node("bias", "bias", outputs=("rows",)), "two nodes that make 'rows'"),
    "a node that makes an input": (_node("bias", "bias", outputs=("ids",)), "two nodes that make 'ids'"),
    "an output that nothing makes": (lambda m: m.graph.output.append(_value("gold")), "an output 'gold' that nothing"),
    "an operator of its own": (_node("bias", "bias", domain="com.evil"), "operators of 'com.evil', which no engine"),
    "operators of its own": (
        lambda m: m.opset_import.append(helper.make_opsetid("ai.evil", 1)),
        "operators of 'ai.evil', which no engine",
    ),
    "functions": (lambda m: m.functions.add(name="f"), "functions of its own"),
    "training": (lambda m: m.training_info.add(), "steps of a training"),
    "branches without end": (_deep, "levels deep"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_with_its_reason(name: str) -> None:
    change, says = HOSTILE[name]
    model = good()
    change(model)
    with pytest.raises(BundleError) as caught:
        _check(model)
    said = str(caught.value)
    assert said.startswith("graph.onnx: expected ") and says in said and "found" in said
    assert said.isprintable() and len(said) < 300


def _many_axes(model: Any) -> None:
    _dims(*[2**62] * 60_000)(model)


def _many_branches(model: Any) -> None:
    model.graph.node.add(op_type="Split", input=["bias"], output=[f"{place}" for place in range(60_000)])
    for _ in range(10_000):
        node = onnx.NodeProto(op_type="If", input=["yes"])
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.name = "then"
        model.graph.node.append(node)


def _many_inputs(model: Any) -> None:
    model.graph.node[0].input.extend([""] * 300_000)


def _many_texts(model: Any) -> None:
    model.graph.initializer.add(name="words", data_type=8, dims=[300_000]).string_data.extend([b""] * 300_000)


@pytest.mark.parametrize("change", [_many_axes, _many_branches, _many_inputs, _many_texts])
def test_a_small_graph_is_judged_in_time(change: Callable[[Any], None]) -> None:
    # Products of all sizes took 13 seconds, copies of all names 90 and more, 2026-11; now it is less than two.
    model = good()
    change(model)
    data = memoryview(model.SerializeToString())
    assert len(data) < 2**20
    start = time.process_time()
    with contextlib.suppress(BundleError):
        check_graph_file("graph.onnx", data, FILES)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "megabyte",
    [b"\x08\x00", b"\x4a\x00", b"\x0d\x00\x00\x00\x00", b"\x3a\x06" + b"\x0a\x04\x0a\x00\x0a\x00"],
    ids=["numbers", "messages", "of fixed width", "nodes of empty names"],
)
def test_a_file_of_empty_fields_has_an_end(megabyte: bytes) -> None:
    data = memoryview(megabyte * (8 * 2**20 // len(megabyte)))
    start = time.process_time()
    with pytest.raises(BundleError, match="expected an ONNX graph, found: more than 500000 fields"):
        check_graph_file("graph.onnx", data, FILES)
    assert time.process_time() - start < 4


def test_of_a_text_that_is_there_twice_the_last_counts_as_it_does_for_engines() -> None:
    model = good()
    plain = model.SerializeToString()
    # Fields that follow each other are merged: 0x42 is opset_import, 0x0A its domain.
    twice = plain + b"\x42\x0f" + b"\x0a\x00" + b"\x0a\x07ai.evil" + b"\x10\x01" + b"\x10\x01"
    assert onnx.load_model_from_string(twice).opset_import[-1].domain == "ai.evil"
    with pytest.raises(BundleError, match=r"operators of 'ai\.evil'"):
        check_graph_file("graph.onnx", memoryview(twice), FILES)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_graph_is_refused_or_passes_and_nothing_else_happens(data: st.DataObject) -> None:
    whole = bytearray(good().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        check_graph_file("graph.onnx", memoryview(bytes(whole)), FILES)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_pass_and_nothing_else_happens(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        check_graph_file("graph.onnx", memoryview(data), FILES)
