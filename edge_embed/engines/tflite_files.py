"""What is in a ``.tflite`` file, judged before an engine sees it, without a package that no board has.

An engine trusts the file: it follows offsets, indexes and sizes where they lead. So all are followed here first:

* every table, vector and string of the flatbuffer lies inside the file, and at most ``_TABLES_CEILING`` tables are met;
* at most ``_BYTES_READ_CEILING`` bytes of numbers, strings and fields are read out of it, and what is named twice is
  counted twice: so the time that a judgement takes has an end that no file can move;
* every index of an operator, a tensor, a signature names something there is; a constant has the bytes of its shape;
* an operator reads what came before it, nothing is written twice, a subgraph runs only later ones: nothing goes round;
* what would need another file, or code that is not the engine's own, is refused by its name: external buffers, custom
  operators, delegates, sparse and block-wise quantized weights.

Whether an operator's options make sense is for the engine to say: a stranger's file runs in a child process first.

Sources: https://flatbuffers.dev/internals and schema.fbs (version 3) of
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

#: Names of ``TensorType``, by number, and the bits of a number; strings and resources have none.
TYPES: Mapping[int, tuple[str, int]] = MappingProxyType(
    {
        0: ("float32", 32),
        1: ("float16", 16),
        2: ("int32", 32),
        3: ("uint8", 8),
        4: ("int64", 64),
        5: ("string", 0),
        6: ("bool", 8),
        7: ("int16", 16),
        9: ("int8", 8),
        10: ("float64", 64),
        12: ("uint64", 64),
        13: ("resource", 0),
        15: ("uint32", 32),
        16: ("uint16", 16),
        17: ("int4", 4),
        18: ("bfloat16", 16),
    }
)

_MAGIC = b"TFL3"
_TABLES_CEILING = 100_000
# Shapes, scales, names and the tensors of operators; weights are not read. A mobilenet has 15 KB of them, MiniLM
# by five converters 14 KB to 2.4 MB, and 250,000 words with a scale and a zero point each would have 3 MB.
_BYTES_READ_CEILING = 2**24
_BYTES_OF_A_TENSOR = 2**31
_AXES_CEILING = 8

# Builtin operators by number that are no arithmetic: a program of the engine's host, an engine inside the engine.
_CUSTOM, _DELEGATE = 32, 51
# Union types of options, by number: those that run subgraphs, with the slots of the numbers of these.
_RUNS_SUBGRAPHS = {16: (4,), 92: (4, 6), 93: (4, 6), 103: (4,)}
# Of the second union alone: a composite, whose other fields are a name, attributes and a version.
_COMPOSITE = 21
# Those that hold more than numbers: slot and width of the entries of a vector, slots of strings.
_VECTORS_IN_OPTIONS = {3: ((6, 4), (8, 4)), 8: ((14, 4),), 17: ((4, 4),), 30: ((4, 4),), 115: ((4, 4),)}
_STRINGS_IN_OPTIONS = {111: (4, 6)}


class Detail(NamedTuple):
    """An input or output: its name, type and shape (-1 for a free axis), and what its whole numbers mean."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int


class Entry(NamedTuple):
    """A way into the file: the signature's name (None for a graph that has none), its inputs and outputs by name."""

    signature: str | None
    inputs: Mapping[str, Detail]
    outputs: Mapping[str, Detail]


class TfliteFile(NamedTuple):
    """What a sound file offers: the way into its first subgraph, its signatures, the blocks of its metadata by name."""

    plain: Entry
    signatures: tuple[Entry, ...]
    metadata: Mapping[str, memoryview]


def examine(data: memoryview) -> TfliteFile:
    """Return what a TFLite file holds.

    Raises:
        ValueError: the file is damaged, leads out of itself, goes round, or needs what no engine here has.
    """
    try:
        return _Examination(data).file()
    except struct.error as error:
        raise ValueError(f"an offset outside its {len(data)} bytes") from error


class _Budget:
    """What may still be read out of one file. Vectors may share their bytes, so a file's size alone is no limit."""

    def __init__(self) -> None:
        self._left = _BYTES_READ_CEILING

    def spend(self, size_bytes: int) -> None:
        """Take bytes that are about to be read."""
        self._left -= size_bytes
        if self._left < 0:
            raise ValueError(f"more than {_BYTES_READ_CEILING} bytes of numbers and names, repeated ones counted again")


class Table:
    """One table of a flatbuffer: where it begins, and where its fields are by their slots (4 for the first field).

    Whatever a method follows lies inside the data, or it is a ValueError or a struct.error. A table shares the budget
    of the one that led to it.
    """

    def __init__(self, data: memoryview, at: int, budget: _Budget | None = None) -> None:
        self._data = data
        self._at = at
        self._budget = budget or _Budget()
        (back,) = struct.unpack_from("<i", data, at) if at >= 0 else (0,)
        self._fields_at = at - back
        if at < 0 or self._fields_at < 0:
            raise ValueError(f"a table without fields at byte {at}")
        self._fields_end, size = struct.unpack_from("<HH", data, self._fields_at)
        if self._fields_at + self._fields_end > len(data) or at + size > len(data):
            raise ValueError(f"a table that ends outside the file at byte {at}")

    def at(self, slot: int) -> int:
        """Return where a field lies, 0 where it has its default."""
        if slot + 2 > self._fields_end:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._fields_at + slot)
        return self._at + int(offset) if offset else 0

    def number(self, slot: int, kind: str = "i", default: int = 0) -> int:
        """Return a number."""
        at = self.at(slot)
        return int(struct.unpack_from(f"<{kind}", self._data, at)[0]) if at else default

    def slots(self) -> range:
        """Return the slots of all fields that there may be."""
        self._budget.spend(4 * self._fields_end)  # Each takes the time of a number of eight bytes.
        return range(4, self._fields_end - 1, 2)

    def table(self, slot: int) -> Table | None:
        """Return a table that a field leads to."""
        at = self.at(slot)
        return Table(self._data, self._target(at), self._budget) if at else None

    def vector(self, slot: int, width: int) -> memoryview:
        """Return the bytes of a vector of entries that are ``width`` bytes wide."""
        at = self.at(slot)
        if not at:
            return self._data[:0]
        start = self._target(at)
        (count,) = struct.unpack_from("<I", self._data, start)
        end = start + 4 + count * width
        if end > len(self._data):
            raise ValueError(f"{count} entries of {width} bytes at byte {start} of {len(self._data)}")
        return self._data[start + 4 : end]

    def numbers(self, slot: int, kind: str = "i") -> tuple[int, ...]:
        """Return a vector of whole numbers."""
        return self._unpacked(slot, kind)

    def floats(self, slot: int) -> tuple[float, ...]:
        """Return a vector of floats."""
        return self._unpacked(slot, "f")

    def text(self, slot: int) -> str:
        """Return a string, which is followed by a zero."""
        at = self.at(slot)
        if not at:
            return ""
        data = self.vector(slot, 1)
        self._budget.spend(len(data))
        (zero,) = struct.unpack_from("<B", self._data, self._target(at) + 4 + len(data))
        if zero:
            raise ValueError(f"a string without its end at byte {self._target(at)}")
        return bytes(data).decode("utf-8", "backslashreplace")

    def tables(self, slot: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        at = self.at(slot)
        if at:
            entries = self._target(at) + 4
            for i in range(len(self.vector(slot, 4)) // 4):
                yield Table(self._data, self._target(entries + 4 * i), self._budget)

    def _unpacked(self, slot: int, kind: str) -> tuple[Any, ...]:
        width = struct.calcsize(kind)
        data = self.vector(slot, width)
        self._budget.spend(len(data))
        return struct.unpack(f"<{len(data) // width}{kind}", data)

    def _target(self, at: int) -> int:
        (offset,) = struct.unpack_from("<I", self._data, at)
        return at + int(offset)


class _Tensor(NamedTuple):
    detail: Detail
    buffer: int
    is_variable: bool


class _Graph(NamedTuple):
    """A subgraph's tensors, and which are its ends, in their order: a signature looks for its own among them."""

    tensors: Sequence[_Tensor]
    inputs: Mapping[int, None]
    outputs: Mapping[int, None]


class _Examination:
    """One file under examination."""

    def __init__(self, data: memoryview) -> None:
        if len(data) < 8 or bytes(data[4:8]) != _MAGIC:
            raise ValueError(f"no {_MAGIC.decode()} at byte 4")
        self._data = data
        self._model = Table(data, struct.unpack_from("<I", data)[0])
        self._met = 0

    def file(self) -> TfliteFile:
        model = self._model
        if model.at(20) or model.at(22):
            raise ValueError("buffers in other files")
        codes = [self._code(table) for table in self._each(model.tables(6))]
        buffers = [self._buffer(table) for table in self._each(model.tables(12))]
        subgraphs = list(self._each(model.tables(8)))
        if not subgraphs or not buffers:
            raise ValueError("no subgraph or no buffers")
        graphs = [self._subgraph(i, len(subgraphs), table, codes, buffers) for i, table in enumerate(subgraphs)]
        model.text(10)
        for place in model.numbers(14):
            _inside(place, len(buffers), "a buffer of metadata")
        metadata = {}
        for table in self._each(model.tables(16)):
            metadata[table.text(4)] = buffers[_inside(table.number(6, "I"), len(buffers), "a buffer of metadata")]
        entries = [self._entry(table, graphs) for table in self._each(model.tables(18))]
        tensors, inputs, outputs = graphs[0]
        plain = Entry(None, _by_name(tensors[i] for i in inputs), _by_name(tensors[i] for i in outputs))
        return TfliteFile(plain, tuple(entries), MappingProxyType(metadata))

    def _each(self, tables: Iterator[Table]) -> Iterator[Table]:
        for table in tables:
            self._met += 1
            if self._met > _TABLES_CEILING:
                raise ValueError(f"more than {_TABLES_CEILING} tables")
            yield table

    def _code(self, table: Table) -> int:
        code = max(table.number(4, "b"), table.number(10))
        custom = table.text(6)
        if code == _CUSTOM:
            raise ValueError(f"the custom operator {custom[:60]!r}, which engines know only from whoever wrote it")
        if code == _DELEGATE or code < 0:
            raise ValueError(f"the operator {code}, which is none of a model")
        table.number(8)
        return code

    def _buffer(self, table: Table) -> memoryview:
        offset, size = table.number(6, "Q"), table.number(8, "Q")
        if offset <= 1:
            return table.vector(4, 1)
        if offset + size > len(self._data):
            raise ValueError(f"a buffer of {size} bytes at byte {offset} of {len(self._data)}")
        return self._data[offset : offset + size]

    def _subgraph(
        self, place: int, count: int, table: Table, codes: Sequence[int], buffers: Sequence[memoryview]
    ) -> _Graph:
        tensors = [self._tensor(each, buffers) for each in self._each(table.tables(4))]
        inputs, outputs = table.numbers(6), table.numbers(8)
        table.text(12)
        for i in (*inputs, *outputs):
            _inside(i, len(tensors), "a tensor")
        constant = {i for i, each in enumerate(tensors) if len(buffers[each.buffer]) or each.is_variable}
        there = constant | set(inputs)
        for operator in self._each(table.tables(10)):
            _inside(operator.number(4, "I"), len(codes), "an operator's code")
            self._check_options(operator, place, count)
            for i in operator.numbers(6):
                if i != -1 and _inside(i, len(tensors), "a tensor") not in there:
                    raise ValueError(f"an operator that reads {tensors[i].detail.name[:60]!r} before it is written")
            for i in operator.numbers(18, "B"):
                if i > 1:
                    raise ValueError("a flag that is none")
            for i in operator.numbers(20):
                _inside(i, len(tensors), "a tensor")
            for i in operator.numbers(8):
                if _inside(i, len(tensors), "a tensor") in there:
                    raise ValueError(f"a second writer of {tensors[i].detail.name[:60]!r}")
                there.add(i)
        for i in outputs:
            if i not in there:
                raise ValueError(f"an output {tensors[i].detail.name[:60]!r} that nothing writes")
        return _Graph(tensors, dict.fromkeys(inputs), dict.fromkeys(outputs))

    def _check_options(self, operator: Table, place: int, count: int) -> None:
        """Follow an operator's options, and see that it runs only later subgraphs."""
        operator.vector(14, 1)
        if operator.number(22, "Q") or operator.number(24, "Q"):
            raise ValueError("options behind the flatbuffer, which only custom operators have")
        runs: list[int] = []
        options, kind = operator.table(12), operator.number(10, "B")
        if options is not None:
            self._check_numbers(options)
            for slot, width in _VECTORS_IN_OPTIONS.get(kind, ()):
                options.vector(slot, width)
            for slot in _STRINGS_IN_OPTIONS.get(kind, ()):
                options.text(slot)
            runs = [options.number(slot) for slot in _RUNS_SUBGRAPHS.get(kind, ())]
        newer, kind = operator.table(28), operator.number(26, "B")
        if newer is not None:
            if kind != _COMPOSITE:
                raise ValueError(f"an operator of StableHLO (options {kind}), which is no part of TFLite's own")
            newer.text(4)
            newer.vector(8, 1)
            runs = [newer.number(6)]
        for each in runs:
            if not place < each < count:
                raise ValueError(f"subgraph {place} that runs subgraph {each} of {count}")

    def _check_numbers(self, options: Table) -> None:
        """See that an engine that reads any number of the options stays in the file, however wide it is."""
        for slot in options.slots():
            at = options.at(slot)
            if at and at + 8 > len(self._data):
                raise ValueError(f"a number that ends outside the file at byte {at}")

    def _tensor(self, table: Table, buffers: Sequence[memoryview]) -> _Tensor:
        name, shape, free = table.text(10), table.numbers(4), table.numbers(18)
        kind = table.number(6, "b")
        if kind not in TYPES:
            raise ValueError(f"a tensor {name[:60]!r} of the unknown type {kind}")
        dtype, bits = TYPES[kind]
        if len(shape) > _AXES_CEILING or min(shape, default=0) < 0 or bits * prod(shape) > 8 * _BYTES_OF_A_TENSOR:
            raise ValueError(f"a tensor {name[:60]!r} of the shape {str(shape)[:60]}")
        if free and (len(free) != len(shape) or min(free) < -1):
            raise ValueError(f"a tensor {name[:60]!r} of the shape {str(shape)[:60]}, or {str(free)[:60]}")
        if table.at(16) or table.at(22) or table.number(24, "I"):
            raise ValueError(f"a tensor {name[:60]!r} that is sparse, a variant or in another file")
        buffer = _inside(table.number(8, "I"), len(buffers), "a buffer")
        stored, needed = len(buffers[buffer]), -(-bits * prod(shape) // 8)
        if buffer and bits and stored and stored != needed:
            raise ValueError(f"{stored} bytes for {name[:60]!r}, which is {dtype} {shape} and takes {needed}")
        scale, zero_point = _quantization(table.table(12), name, shape)
        detail = Detail(name, dtype, free or shape, scale, zero_point)
        return _Tensor(detail, buffer, table.number(14, "B") != 0)

    def _entry(self, table: Table, graphs: Sequence[_Graph]) -> Entry:
        tensors, inputs, outputs = graphs[_inside(table.number(12, "I"), len(graphs), "a subgraph")]
        sides = []
        for slot, ends in ((4, inputs), (6, outputs)):
            named = {}
            for each in self._each(table.tables(slot)):
                place = each.number(6, "I")
                if place not in ends:
                    raise ValueError(f"a signature of the tensor {place}, which is no end of its subgraph")
                named[each.text(4)] = tensors[place].detail
            sides.append(MappingProxyType(named))
        return Entry(table.text(8), *sides)


def _quantization(table: Table | None, name: str, shape: Sequence[int]) -> tuple[float | None, int]:
    """Return the only scale and zero point of a tensor; None where it has none, or one a channel."""
    if table is None:
        return None, 0
    if table.number(12, "B") or table.at(14):
        raise ValueError(f"a tensor {name[:60]!r} that is quantized by blocks or by a custom rule")
    table.vector(4, 4), table.vector(6, 4)
    scales, zeros = table.floats(8), table.numbers(10, "q")
    axis = table.number(16)
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise ValueError(f"{len(scales)} scales for axis {axis} of {name[:60]!r}, which has the shape {shape}")
    if scales and len(zeros) not in (1, len(scales)):
        raise ValueError(f"{len(scales)} scales and {len(zeros)} zero points of {name[:60]!r}")
    return (float(scales[0]), int(zeros[0])) if len(scales) == 1 else (None, 0)


def _inside(place: int, count: int, what: str) -> int:
    if not 0 <= place < count:
        raise ValueError(f"{what} {place} of {count}")
    return place


def _by_name(tensors: Iterator[_Tensor]) -> Mapping[str, Detail]:
    return MappingProxyType({each.detail.name: each.detail for each in tensors})
