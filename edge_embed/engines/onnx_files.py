"""Which files an ONNX graph reads beside itself, found without the ``onnx`` package, which no board has.

A graph's weights may be external data: a file name, relative to the graph's folder. Nobody hashed a file that the
manifest does not name, so a graph that names one is refused before an engine opens it. This is a walk over the wire
format of protobuf along the fields of onnx.proto that lead to a tensor; everything else is passed over. What is read
has an end: a file may hold millions of empty fields, which is seconds of a board's time for every megabyte.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx/onnx.proto (IR version 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

#: For each message, the fields that lead to tensors, by number. The walk ends at ``entry``: a key and a value.
_WAYS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "model": {7: "graph", 20: "training", 25: "function"},
        "training": {1: "graph", 2: "graph"},
        "function": {7: "node", 11: "attribute"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {13: "entry"},
    }
)

_DEPTH_CEILING = 64
#: How many fields of a file are read: seventy times those of all-MiniLM-L6-v2, in both walks.
FIELDS_CEILING = 500_000


class Walk:
    """The fields of one file's messages, counted down wherever they lie."""

    def __init__(self) -> None:
        self._left = FIELDS_CEILING

    def messages(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield number and bytes of every length-delimited field of a message."""
        return ((number, value) for number, value in self.fields(data) if isinstance(value, memoryview))

    def fields(self, data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """Yield number and value of every field of a message: bytes, or a number.

        Raises:
            ValueError: the bytes are no protobuf message, or the file has too many fields.
        """
        for field in _fields_of(data):
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {FIELDS_CEILING} fields")
            yield field


def external_files(data: memoryview, walk: Walk | None = None) -> set[str]:
    """Return the names that the external data of an ONNX file's tensors have.

    Raises:
        ValueError: the bytes are no protobuf message, or one of too many fields.
    """
    found = _locations(data, "model", 0, walk or Walk())
    return {location.decode("utf-8", "backslashreplace") for location in found}


def _locations(data: memoryview, message: str, depth: int, walk: Walk) -> Iterator[bytes]:
    if depth > _DEPTH_CEILING:
        raise ValueError(f"more than {_DEPTH_CEILING} levels of nesting")
    for number, value in walk.messages(data):
        inner = _WAYS[message].get(number)
        if inner == "entry":
            entry = dict(walk.messages(value))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b""))
        elif inner is not None:
            yield from _locations(value, inner, depth + 1, walk)


def _fields_of(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield number and value of every field; those of fixed width, which nobody asks for, as field 0."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 2:
            length, at = varint(data, at)
            if at + length > len(data):
                raise ValueError(f"a field of {length} bytes at {at}, {len(data) - at} are left")
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            value, at = varint(data, at)
            yield tag >> 3, value
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield 0, 0
        else:
            raise ValueError(f"a field of the unknown wire type {kind} at {at}")


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number without an end at {at}")
