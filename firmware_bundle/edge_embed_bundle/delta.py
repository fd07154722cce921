"""A delta: one bundle told as its differences from another, in frames that are judged one by one.

This is the gate, by SPEC.md (*A delta*): it knows where each frame stands, what it makes, and how large it may become.

 * What a frame makes follows from the two manifests alone. A delta names no place of the new bundle, so its frames
   cannot overlap, leave a hole or write elsewhere; one that stands in another's stead has the wrong digest.
 * A frame makes 1 MiB at most, and is unpacked no further than that can need: a bomb ends there.
 * Where a frame points into the parent, that is checked as it is read.

How frames become numbers again is ``edge_embed.patching``.
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, NoReturn

from edge_embed_bundle.errors import DeltaError
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.strict_json import MANIFEST_CEILING_BYTES
from edge_embed_bundle.values import ITEM_BYTES, SECTION_BYTES, Tensor

MAGIC = b"EEDELTA1"
#: Magic, parent's identity, new identity, bytes of the new manifest.
HEAD = struct.Struct("<8s32s32sI")
#: Way, packing, bytes that follow, sha256 of what the frame makes.
FRAME_HEAD = struct.Struct("<BBI32s")

#: What a frame makes at most, in bytes and in units (rows; bytes where there are no rows).
FRAME_BYTES = 2**20
FRAME_UNITS = 2**16
#: What a frame unpacks to at most: what it makes, a byte a unit, and runs of units.
UNPACKED_CEILING_BYTES = FRAME_BYTES + 2**19

#: Runs of units that a frame takes from the parent, at most.
RUNS_CEILING = 2**14

#: How a frame tells what it makes.
WAYS = ("bytes", "rows", "norms", "slots", "means", "directions")
PACKINGS = ("zlib", "lzma")
#: Raw streams hold no sizes of their own that one would have to believe.
LZMA_FILTERS = ({"id": lzma.FILTER_LZMA1, "dict_size": FRAME_BYTES, "lc": 3, "lp": 0, "pb": 0},)


class Section(NamedTuple):
    """A run of a blob that frames make: ``units`` of ``unit_bytes``, from ``offset_bytes`` on.

    Of a tensor that is a model's or golden question's, ``model`` and ``tensor`` (``golden`` and a number) say which;
    without a tensor it is bytes that nothing is known of.
    """

    blob: str
    offset_bytes: int
    units: int
    unit_bytes: int = 1
    model: str = ""
    tensor: str = ""
    dtype: str = "uint8"

    @property
    def end_bytes(self) -> int:
        """Where it ends in its blob."""
        return self.offset_bytes + self.units * self.unit_bytes

    @property
    def frame_units(self) -> int:
        """The units of each frame but the last."""
        if not self.tensor:
            return FRAME_BYTES
        return max(1, min(FRAME_BYTES // self.unit_bytes, FRAME_UNITS))

    @property
    def frames(self) -> int:
        """The number of frames."""
        return -(-self.units // self.frame_units)

    def units_of(self, frame: int) -> range:
        """Return the units that a frame makes."""
        return range(frame * self.frame_units, min(self.units, (frame + 1) * self.frame_units))


class Frame(NamedTuple):
    """One frame where it stands in a delta."""

    way: str
    packing: str
    at_bytes: int
    size_bytes: int
    sha256: bytes


GOLDEN = "golden"


def sections_of(manifest: Manifest, blob: str) -> tuple[Section, ...]:
    """Return what frames make of a blob: its tensors, and the bytes before the first and behind the last of them.

    Gaps between tensors are zeros (SPEC.md) and make no frames. A blob whose tensors overlap, stand a section's
    boundary apart, or have rows of more than a frame is bytes throughout.
    """
    size_bytes = manifest.blobs[blob].size_bytes
    # Of two names of one place the first says what stands there.
    places = {
        (tensor.offset_bytes, tensor.size_bytes): _section(model, name, tensor)
        for model, name, tensor in reversed(tuple(_tensors(manifest)))
        if tensor.blob == blob and tensor.size_bytes
    }
    tensors = [places[place] for place in sorted(places)]
    # Long gaps would be zeros without end on a stranger's word.
    gaps = [second.offset_bytes - first.end_bytes for first, second in pairwise(tensors)]
    if any(not 0 <= gap < SECTION_BYTES for gap in gaps) or any(each.unit_bytes > FRAME_BYTES for each in tensors):
        tensors = []
    start, end = (tensors[0].offset_bytes, tensors[-1].end_bytes) if tensors else (size_bytes, size_bytes)
    around = Section(blob, 0, start), Section(blob, end, size_bytes - end)
    return tuple(section for section in (around[0], *tensors, around[1]) if section.units)


def _tensors(manifest: Manifest) -> Iterator[tuple[str, str, Tensor]]:
    for model in manifest.tables:
        for name, tensor in model.tensors.items():
            yield model.name, name, tensor
    for i, golden in enumerate(manifest.golden):
        yield GOLDEN, str(i), golden.expected


def _section(model: str, name: str, tensor: Tensor) -> Section:
    unit_bytes = tensor.size_bytes // tensor.shape[0]
    return Section(tensor.blob, tensor.offset_bytes, tensor.shape[0], unit_bytes, model, name, tensor.dtype)


def tensor_of(manifest: Manifest, model: str, name: str) -> Tensor | None:
    """Return a tensor by the names of its section."""
    return next((tensor for owner, its, tensor in _tensors(manifest) if (owner, its) == (model, name)), None)


class DeltaFile:
    """An open delta. Its head is read at once, its frames when they are asked for."""

    def __init__(self, descriptor: int, *, source: str) -> None:
        self.source = source
        self._descriptor = descriptor
        self._size_bytes = os.fstat(descriptor).st_size
        head = self._read(0, HEAD.size, "a head")
        magic, parent, new, self.manifest_bytes = HEAD.unpack(head)
        if magic != MAGIC:
            self.fail("the head", f"a delta that begins with {MAGIC!r}", repr(magic))
        if not 0 < self.manifest_bytes <= MANIFEST_CEILING_BYTES:
            self.fail("the head", f"a manifest of 1 to {MANIFEST_CEILING_BYTES} bytes", str(self.manifest_bytes))
        #: The identities of the bundle that it starts from, and of the one that it makes.
        self.parent: str = parent.hex()
        self.id: str = new.hex()
        self.manifest_section = Section(MANIFEST_NAME, 0, self.manifest_bytes)
        self._manifest_frame = self.frame(HEAD.size, "the manifest's frame")

    @property
    def manifest_frame(self) -> Frame:
        """The frame that makes the new manifest."""
        return self._manifest_frame

    def places(self, sections: tuple[Section, ...]) -> Iterator[tuple[Section, array[int]]]:
        """Yield where the frames of some sections stand, in order, from behind the manifest's to the end of the file.

        Raises:
            DeltaError: there are fewer or more, or one is none.
        """
        at = self._manifest_frame.at_bytes + self._manifest_frame.size_bytes
        for section in sections:
            places = array("Q")
            for number in range(section.frames):
                frame = self.frame(at, f"frame {number} of {section.blob}")
                places.append(at)
                at = frame.at_bytes + frame.size_bytes
            yield section, places
        if at != self._size_bytes:
            self.fail("behind the last frame", f"an end at byte {at}", f"one at {self._size_bytes}")

    def frame(self, at: int, where: str) -> Frame:
        """Return the frame whose head stands at a byte.

        Raises:
            DeltaError: none stands there.
        """
        way, packing, size_bytes, digest = FRAME_HEAD.unpack(self._read(at, FRAME_HEAD.size, where))
        if way >= len(WAYS) or packing >= len(PACKINGS):
            self.fail(where, f"a way below {len(WAYS)} and a packing below {len(PACKINGS)}", f"{way} and {packing}")
        start = at + FRAME_HEAD.size
        if start + size_bytes > self._size_bytes:
            self.fail(where, f"{size_bytes} bytes from {start} on", f"an end at byte {self._size_bytes}")
        return Frame(WAYS[way], PACKINGS[packing], start, size_bytes, digest)

    def unpacked(self, frame: Frame, where: str) -> bytes:
        """Return what a frame holds, unpacked.

        Raises:
            DeltaError: it is no stream of its packing, or one of more than a frame can need.
        """
        if frame.size_bytes > UNPACKED_CEILING_BYTES:
            self.fail(where, f"at most {UNPACKED_CEILING_BYTES} packed bytes", str(frame.size_bytes))
        packed = self._read(frame.at_bytes, frame.size_bytes, where)
        try:
            return _unpacked(frame.packing, packed)
        except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            self.fail(where, f"a whole {frame.packing} stream of at most {UNPACKED_CEILING_BYTES} bytes", str(error))

    def _read(self, at: int, size_bytes: int, where: str) -> bytes:
        if at + size_bytes > self._size_bytes:
            self.fail(where, f"{size_bytes} bytes from {at} on", f"an end at byte {self._size_bytes}")
        data = os.pread(self._descriptor, size_bytes, at)
        if len(data) != size_bytes:
            self.fail(where, f"{size_bytes} bytes to read", str(len(data)))
        return data

    def fail(self, where: str, expected: str, found: str) -> NoReturn:
        """Raise the one error of a delta: file, place, expected, found."""
        raise DeltaError(f"{self.source}: {where}: expected {expected}, found {found:.120}")


def _unpacked(packing: str, packed: bytes) -> bytes:
    """Return a stream's bytes; one more than the ceiling is never made."""
    if packing == "zlib":
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflating.decompress(packed, UNPACKED_CEILING_BYTES)
        whole, left = inflating.eof, inflating.unused_data
    else:
        unpacking = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
        data = unpacking.decompress(packed, UNPACKED_CEILING_BYTES)
        whole, left = unpacking.eof, unpacking.unused_data
    if not whole or left:
        raise ValueError("one that goes on" if not left else "bytes behind its end")
    return data


class Unpacked:
    """What a frame holds, read from its start: numbers of seven bits a byte, then bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def count(self) -> int:
        """Return the next whole number (LEB128, up to 2**63).

        Raises:
            ValueError: none stands there.
        """
        value = 0
        for shift in range(0, 63, 7):
            if self._at >= len(self._data):
                raise ValueError("an end within a number")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than nine bytes")

    def shift(self) -> int:
        """Return the next whole number of either sign (zigzag)."""
        value = self.count()
        return value >> 1 if not value & 1 else -(value + 1 >> 1)

    def take(self, size_bytes: int) -> memoryview:
        """Return the next bytes.

        Raises:
            ValueError: there are fewer.
        """
        if size_bytes > len(self._data) - self._at:
            raise ValueError(f"{len(self._data) - self._at} bytes where {size_bytes} are wanted")
        self._at += size_bytes
        return self._data[self._at - size_bytes : self._at]

    def end(self) -> None:
        """Refuse bytes behind what was read.

        Raises:
            ValueError: there are some.
        """
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes behind the end")

    def runs(self, first: int, stop: int, there: int) -> Iterator[tuple[int, int, int]]:
        """Yield runs of units that the parent has: the first new unit, the parent's, their number.

        Args:
            first: the first unit that the frame makes; the first run is expected at the same unit of the parent.
            stop: the unit behind the last one.
            there: units of the parent.

        Raises:
            ValueError: a run leaves the frame or the parent.
        """
        new, old = first, first
        runs = self.count()
        if runs > RUNS_CEILING:
            raise ValueError(f"{runs} runs, of {RUNS_CEILING} at most")
        for _ in range(runs):
            new += self.count()
            old += self.shift()
            count = self.count()
            if not count or new + count > stop or old < 0 or old + count > there:
                raise ValueError(f"a run of {count} from {old} to {new}, of {there} units and before {stop}")
            yield new, old, count
            new, old = new + count, old + count


def number(value: int) -> bytes:
    """Return the spelling of a whole number that ``Unpacked.count`` reads."""
    spelled = bytearray()
    while value > 127:
        spelled.append(value & 127 | 128)
        value >>= 7
    spelled.append(value)
    return bytes(spelled)


def shift(value: int) -> bytes:
    """Return the spelling of a number of either sign that ``Unpacked.shift`` reads."""
    return number(2 * value if value >= 0 else -2 * value - 1)


def item_bytes(section: Section) -> int:
    """Return the bytes of each number of a section."""
    return ITEM_BYTES[section.dtype]
