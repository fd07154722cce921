"""The gate that an ONNX file passes before an engine opens it, at export and on a board, without the package ``onnx``.

* Weights beside the file lie in files that the manifest names, and inside of them.
* Operators are those of the standard and of ONNX Runtime itself; a graph brings none of its own, neither as a library
  nor as functions, and trains nothing.
* A graph has an order: what a node takes was there before it. So it ends, whatever it says.
* Sizes are sizes: none is negative, and a tensor's numbers fit into what the file, or the blob, has for them.
* Time grows with the file's bytes and no faster. A walk over fields jumps over what lies inside of them, so each is
  read a few times, however deep it lies; a branch looks names up in the at most ``_DEPTH_CEILING`` graphs around it
  and copies none; sizes are multiplied only if there are at most ``_AXES_CEILING`` of them. And it has an end: fields
  are counted, those of both walks together (``FIELDS_CEILING``).

What engines refuse by themselves with an error is theirs to refuse. Fields are those of onnx.proto (IR version 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from math import prod

from edge_embed.engines.onnx_files import Walk, external_files, varint
from edge_embed.errors import BundleError

_DOMAINS = frozenset({b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft"})
_DEPTH_CEILING = 16
_NUMBERS_CEILING = 2**40
_AXES_CEILING = 32
_EXTERNAL = 1
# Bits of a number by TensorProto.DataType; texts (8) and what is newer have no width that could be held against them.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}


def check_graph_file(path: str, data: memoryview, files: Mapping[str, int]) -> None:
    """Refuse an ONNX file that no engine should see.

    Args:
        path: where it lies, for errors.
        data: its bytes.
        files: the files that its weights may lie in, with their sizes in bytes.

    Raises:
        BundleError: it reads another file, or is no graph, or a hostile one.
    """
    walk = Walk()
    try:
        strangers = external_files(data, walk) - set(files)
        if strangers:
            raise BundleError(f"{path}: expected weights in files of the bundle, found {sorted(strangers)[0][:60]!r}")
        _Gate(files, walk).check_model(data)
    except ValueError as error:
        raise BundleError(f"{path}: expected an ONNX graph, found: {error}") from error


class _Gate:
    """The gate of one file; every method raises ``ValueError`` with what it found."""

    def __init__(self, files: Mapping[str, int], walk: Walk) -> None:
        self._files = files
        self._walk = walk

    def check_model(self, data: memoryview) -> None:
        for number, value in self._walk.messages(data):
            if number == 20:
                raise ValueError("steps of a training")
            if number == 25:
                raise ValueError("functions of its own")
            if number == 8:
                _check_domain(self._last(value, 1))
            if number == 7:
                self._check_graph(value, (), 0)

    def _check_graph(self, data: memoryview, outer: Sequence[Set[bytes]], depth: int) -> None:
        """Check a graph, or a branch of one that sees the names in ``outer``."""
        if depth > _DEPTH_CEILING:
            raise ValueError(f"branches {depth} levels deep")
        parts = list(self._walk.messages(data))
        given = {self._last(value, 1) for number, value in parts if number == 11}
        for number, value in parts:
            if number == 5:
                given.add(self._check_tensor(value))
            elif number == 15:
                given.add(self._check_sparse(value))
        made: set[bytes] = set()
        scopes = (*outer, given, made)  # Branches look into the same sets, which hold what was made before their node.
        for value in (value for number, value in parts if number == 1):
            node = _Node(self._walk.messages(value))
            for name in node.takes:
                if name and not _is_known(name, scopes):
                    raise ValueError(
                        f"a node that takes {_shown(name)}, which nothing before it makes: a cycle, or a gap"
                    )
            _check_domain(node.domain)
            for attribute in node.attributes:
                self._check_attribute(attribute, scopes, depth)
            for name in node.makes:
                if name and (name in made or name in given):
                    raise ValueError(f"two nodes that make {_shown(name)}")
                made.add(name)
        for name in (self._last(value, 1) for number, value in parts if number == 12):
            if not _is_known(name, scopes):
                raise ValueError(f"an output {_shown(name)} that nothing makes")

    def _check_attribute(self, data: memoryview, scopes: Sequence[Set[bytes]], depth: int) -> None:
        for number, value in self._walk.messages(data):
            if number in (5, 10):
                self._check_tensor(value)
            elif number in (22, 23):
                self._check_sparse(value)
            elif number in (6, 11):
                self._check_graph(value, scopes, depth + 1)

    def _check_sparse(self, data: memoryview) -> bytes:
        """Check both tensors of a sparse one and return its name: that of its values."""
        names = [self._check_tensor(value) for number, value in self._walk.messages(data) if number in (1, 2)]
        return names[0] if names else b""

    def _check_tensor(self, data: memoryview) -> bytes:
        """Check a tensor's sizes and its place, and return its name."""
        dims: list[int] = []
        kind = place = 0
        name = b""
        raw_bytes: int | None = None
        entries: dict[bytes, bytes] = {}
        for number, value in self._walk.fields(data):
            if number == 1:
                dims += islice(_numbers(value), _AXES_CEILING + 1 - len(dims))
                if len(dims) > _AXES_CEILING:
                    raise ValueError(f"a tensor {_shown(name)} of more than {_AXES_CEILING} axes")
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 14 and isinstance(value, int):
                place = value
            elif isinstance(value, memoryview):
                if number == 8:
                    name = bytes(value)
                elif number == 9:
                    raw_bytes = len(value)
                elif number == 13:
                    entries[self._last(value, 1)] = self._last(value, 2)
        numbers = prod(dims)  # Of few numbers, each of at most 70 bits.
        if any(size >= 2**63 for size in dims) or numbers > _NUMBERS_CEILING:
            raise ValueError(f"a tensor {_shown(name)} of a size that is none")
        size_bytes = -(-numbers * _BITS.get(kind, 0) // 8)
        if place == _EXTERNAL or entries:
            _check_place(name, size_bytes, entries, self._files)
        elif raw_bytes is not None and raw_bytes != size_bytes and kind in _BITS:
            raise ValueError(f"a tensor {_shown(name)} of {size_bytes} bytes with {raw_bytes} in the file")
        return name

    def _last(self, data: memoryview, wanted: int) -> bytes:
        """Return a text. Of several, the last is what every reader of protobuf goes by."""
        found = data[:0]
        for number, value in self._walk.messages(data):
            if number == wanted:
                found = value
        return bytes(found)


class _Node:
    """The parts of a node that are judged, by one walk over its fields."""

    def __init__(self, fields: Iterator[tuple[int, memoryview]]) -> None:
        self.takes: list[bytes] = []
        self.makes: list[bytes] = []
        self.attributes: list[memoryview] = []
        self.domain = b""
        for number, value in fields:
            if number == 1:
                self.takes.append(bytes(value))
            elif number == 2:
                self.makes.append(bytes(value))
            elif number == 5:
                self.attributes.append(value)
            elif number == 7:
                self.domain = bytes(value)


def _is_known(name: bytes, scopes: Sequence[Set[bytes]]) -> bool:
    return any(name in scope for scope in reversed(scopes))


def _check_place(name: bytes, size_bytes: int, entries: Mapping[bytes, bytes], files: Mapping[str, int]) -> None:
    location = entries.get(b"location", b"").decode("utf-8", "backslashreplace")
    if location not in files:
        raise ValueError(f"a tensor {_shown(name)} beside the file, but in none")
    offset, length = (_count(entries.get(key), default) for key, default in ((b"offset", 0), (b"length", size_bytes)))
    if length != size_bytes or offset + length > files[location]:
        raise ValueError(
            f"a tensor {_shown(name)} of {size_bytes} bytes at {offset} of {location}, which has {files[location]}"
        )


def _count(text: bytes | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdigit() or len(text) > 18:
        raise ValueError(f"a place of {_shown(text)} bytes")
    return int(text)


def _check_domain(domain: bytes) -> None:
    if domain not in _DOMAINS:
        raise ValueError(f"operators of {_shown(domain)}, which no engine here brings")


def _numbers(value: memoryview | int) -> Iterator[int]:
    """Yield the numbers of a repeated field, alone or packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = varint(value, at)
        yield number


def _shown(name: bytes) -> str:
    return ascii(name[:240].decode("utf-8", "backslashreplace")[:60])
