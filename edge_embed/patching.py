"""A new bundle read through a delta and the bundle that it starts from, without being written.

``Patch`` is what an update needs: the new manifest, which blobs are made, and their bytes from the first to the last.
Whoever writes them compares each blob with the manifest's digest, as of any other copy.

 * Memory does not grow with a table: a frame is made at a time, the parent is read where it is needed, and what
   is derived is derived in blocks.
 * What is derived is only a guess: a frame tells what to add to it, and its digest says whether the sum is right.
 * Each frame's digest is compared before its bytes leave this module.

The ways are those of SPEC.md, *A delta*.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.derived import Derived
from edge_embed_bundle import delta
from edge_embed_bundle.bundle import Bundle, Progress, chunks_of
from edge_embed_bundle.delta import DeltaFile, Frame, Section, Unpacked, sections_of, tensor_of
from edge_embed_bundle.digests import small_sha256
from edge_embed_bundle.errors import BundleError, DigestError, SpaceError
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.writer import BlobWriter, BundleWriter


class Patch:
    """A delta over an open parent bundle. It reads both where it is asked for bytes, and writes nothing."""

    def __init__(self, parent: Bundle, file: DeltaFile) -> None:
        """Open a delta.

        Raises:
            DeltaError: it is malformed, or starts from another bundle.
        """
        self._file = file
        self._parent = parent
        self.source = file.source
        if file.parent != parent.id:
            file.fail("the head", f"a delta from {parent.id}, the bundle at hand", file.parent)
        #: The new manifest, byte for byte, and read.
        self.manifest_bytes = self._manifest()
        self.id = file.id
        self.manifest = Manifest.parse(self.manifest_bytes, source=f"{file.source}: {MANIFEST_NAME}")
        known = {blob.sha256: name for name, blob in parent.manifest.blobs.items()}
        blobs = self.manifest.blobs.items()
        #: The new bundle's blobs that the parent has, and by which names it has them; all others are made.
        self.kept: Mapping[str, str] = {name: known[blob.sha256] for name, blob in blobs if blob.sha256 in known}
        self.made = tuple(name for name in sorted(self.manifest.blobs) if name not in self.kept)
        sections = tuple(section for name in self.made for section in sections_of(self.manifest, name))
        self._places = dict(file.places(sections))
        self._last: dict[Section, tuple[int, NDArray[np.uint8]]] = {}
        self._derived = Derived(self.manifest, self.tensor)

    def chunks(self, blob: str) -> Iterator[memoryview]:
        """Yield the bytes of a blob of the new bundle; each chunk is valid until the next one is asked for.

        Raises:
            DeltaError: a frame is malformed.
            DigestError: a frame makes other bytes than it should.
        """
        if blob in self.kept:
            yield from chunks_of(self._parent.descriptor(self.kept[blob]))
            return
        at = 0
        for section in sections_of(self.manifest, blob):
            if at < section.offset_bytes:
                yield memoryview(bytes(section.offset_bytes - at))
            for number in range(section.frames):
                yield self._made(section, number).data
            at = section.end_bytes
            # What other sections were derived from goes, too: memory does not grow with the number of tables.
            self._last.clear()
            self._derived.forget()

    def units(self, section: Section, start: int, stop: int) -> NDArray[np.uint8]:
        """Return some units ``(stop - start, unit_bytes)`` of the new bundle; the frame of the last one is kept."""
        found = np.empty((stop - start, section.unit_bytes), np.uint8)
        at = start
        while at < stop:
            number = at // section.frame_units
            units = section.units_of(number)
            end = min(stop, units.stop)
            found[at - start : end - start] = self._made(section, number)[at - units.start : end - units.start]
            at = end
        return found

    def tensor(self, model: str, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return some rows of a tensor of the new bundle."""
        tensor = tensor_of(self.manifest, model, name)
        if tensor is None:
            raise ValueError(f"{model} without {name}")
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        row_bytes = tensor.size_bytes // max(1, tensor.shape[0])
        if tensor.blob in self.kept:
            data = np.empty((stop - start) * row_bytes, np.uint8)
            self._read(self.kept[tensor.blob], tensor.offset_bytes + start * row_bytes, data)
        else:
            section = self._section(model, name)
            data = self.units(section, start, stop).reshape(-1)
        return data.view(dtype).reshape(stop - start, *tensor.shape[1:])

    def _section(self, model: str, name: str) -> Section:
        for section in self._places:
            if (section.model, section.tensor) == (model, name):
                return section
        raise ValueError(f"{name} of {model} as a section of its own, which it is not")

    def _manifest(self) -> bytes:
        section, frame = self._file.manifest_section, self._file.manifest_frame
        if frame.way != "bytes":
            self._file.fail(MANIFEST_NAME, "a frame of bytes", frame.way)
        old = np.frombuffer(self._parent.manifest_bytes, np.uint8)

        def read(at: int, into: NDArray[np.uint8]) -> None:
            into.reshape(-1)[:] = old[at : at + len(into)]

        with_place = f"the frame of {MANIFEST_NAME}"
        try:
            made = _from_bytes(
                Unpacked(self._file.unpacked(frame, with_place)), section, section.units_of(0), len(old), read
            )
        except ValueError as error:
            self._file.fail(with_place, "a frame of its way", str(error))
        data = made.tobytes()
        if small_sha256(data).hex() != self._file.id:
            raise DigestError(f"{self._file.source}: {MANIFEST_NAME}: expected sha256 {self._file.id}, found another")
        return data

    def _made(self, section: Section, number: int) -> NDArray[np.uint8]:
        """Return the units ``(n, unit_bytes)`` that a frame makes."""
        kept = self._last.get(section)
        if kept is not None and kept[0] == number:
            return kept[1]
        # Let go first: two frames of a section are never in memory.
        self._last.pop(section, None)
        where = f"frame {number} of {section.tensor or 'bytes'} in {section.blob}"
        frame = self._file.frame(self._places[section][number], where)
        try:
            units = self._unchecked(section, frame, section.units_of(number), where)
        except ValueError as error:
            self._file.fail(where, "a frame of its way", str(error))
        if _sha256(units.data) != frame.sha256:
            raise DigestError(
                f"{self._file.source}: {where}: expected sha256 {frame.sha256.hex()}, found another; the parent is not "
                "as it was, or the delta is damaged"
            )
        self._last[section] = (number, units)
        return units

    def _unchecked(self, section: Section, frame: Frame, units: range, where: str) -> NDArray[np.uint8]:
        held = Unpacked(self._file.unpacked(frame, where))
        blob, at, there = self._before(section)

        def read(unit: int, into: NDArray[np.uint8]) -> None:
            self._read(blob, at + unit * section.unit_bytes, into)

        if frame.way == "bytes":
            return _from_bytes(held, section, units, there, read)
        if frame.way == "rows":
            return _from_rows(held, section, units, there, read)
        guess = self._derived.guess(section, frame.way, units, held)
        made = guess.view(np.uint8).reshape(len(units), section.unit_bytes)
        _correct(held, section, made, np.ones(len(units), bool))
        held.end()
        return made

    def _before(self, section: Section) -> tuple[str, int, int]:
        """Return where the parent has what a section is like: its blob, the offset, and how many units."""
        manifest = self._parent.manifest
        if section.tensor:
            tensor = tensor_of(manifest, section.model, section.tensor)
            if tensor is None or tensor.dtype != section.dtype or not tensor.size_bytes:
                return "", 0, 0
            same = tensor.size_bytes // tensor.shape[0] == section.unit_bytes
            return tensor.blob, tensor.offset_bytes, tensor.shape[0] if same else 0
        if section.blob not in manifest.blobs:
            return "", 0, 0
        return section.blob, 0, manifest.blobs[section.blob].size_bytes

    def _read(self, blob: str, at: int, into: NDArray[np.uint8]) -> None:
        """Read bytes of the parent: by calls, not through a map, whose pages would count as the process's own."""
        left = into.reshape(-1).data
        while left:
            count = os.preadv(self._parent.descriptor(blob), [left], at)
            if not count:
                raise BundleError(f"{self._parent.folder}/{blob}: expected more bytes at {at}, found the end")
            left, at = left[count:], at + count


_Read = Callable[[int, NDArray[np.uint8]], None]


def _from_bytes(held: Unpacked, section: Section, units: range, there: int, read: _Read) -> NDArray[np.uint8]:
    """Make units out of runs of the parent's, and what stands between them."""
    made = np.empty((len(units), section.unit_bytes), np.uint8)
    for gap in _with_runs(held, units, there, read, made):
        size = made[gap].size
        made[gap].reshape(-1)[:] = np.frombuffer(held.take(size), np.uint8)
    held.end()
    return made


def _from_rows(held: Unpacked, section: Section, units: range, there: int, read: _Read) -> NDArray[np.uint8]:
    """Make rows out of the parent's, what is added to them, and new ones."""
    made = np.zeros((len(units), section.unit_bytes), np.uint8)
    is_new = np.zeros(len(units), bool)
    for gap in _with_runs(held, units, there, read, made):
        is_new[gap] = True
    _correct(held, section, made, ~is_new)
    made[is_new] = _in_planes(held, section, int(is_new.sum())).view(np.uint8)
    held.end()
    return made


def _with_runs(held: Unpacked, units: range, there: int, read: _Read, made: NDArray[np.uint8]) -> list[slice]:
    """Fill in the runs that the parent has; return the gaps between them."""
    gaps, at = [], units.start
    for new, old, count in held.runs(units.start, units.stop, there):
        if at < new:
            gaps.append(slice(at - units.start, new - units.start))
        at = new + count
        read(old, made[new - units.start : at - units.start])
    if at < units.stop:
        gaps.append(slice(at - units.start, len(units)))
    return gaps


def _correct(held: Unpacked, section: Section, made: NDArray[np.uint8], guessed: NDArray[np.bool_]) -> None:
    """Add to guessed rows what the frame says. Rows of one class stand together: their numbers are alike."""
    rows = np.flatnonzero(guessed)
    classes = np.frombuffer(held.take(len(rows)), np.uint8)
    changed = np.flatnonzero(classes)
    rows = rows[changed[np.argsort(classes[changed], kind="stable")]]
    added = _in_planes(held, section, len(rows))
    numbers = made[rows].view(added.dtype)
    numbers += added
    made[rows] = numbers.view(np.uint8)


def _in_planes(held: Unpacked, section: Section, rows: int) -> NDArray[Any]:
    """Take whole numbers ``(rows, n)`` of a section's width: the low bytes of all of them, then the next ones."""
    width = delta.item_bytes(section)
    numbers = section.unit_bytes // width
    planes = np.frombuffer(held.take(rows * section.unit_bytes), np.uint8).reshape(width, rows * numbers)
    return np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(rows, numbers)


def _sha256(data: memoryview) -> bytes:
    # Imported here: it loads OpenSSL, which only who verifies needs.
    import hashlib

    return hashlib.sha256(data).digest()


def apply_delta(patch: Patch, target: Path, *, replace: bool = False, progress: Progress | None = None) -> None:
    """Write the bundle that a delta makes of its parent; a folder of that name is a whole bundle, or not there.

    Args:
        patch: the delta over its parent.
        target: the folder to write.
        replace: whether a bundle may stand there already.
        progress: told the bytes written.

    Raises:
        DeltaError: the delta is malformed.
        DigestError: the parent or the delta is damaged.
        SpaceError: the file system has no room for the new bundle.
        BundleError: the target is taken.
    """
    with BundleWriter(target, replace=replace) as writer:
        _check_space(patch, target)
        for name, blob in patch.manifest.blobs.items():

            def write(out: BlobWriter, name: str = name) -> None:
                for chunk in patch.chunks(name):
                    out.write(chunk)
                    if progress is not None:
                        progress(chunk.nbytes)

            found = writer.blob(name, write)
            if found.sha256 != blob.sha256:
                raise DigestError(f"{patch.source}: {name}: expected sha256 {blob.sha256}, found {found.sha256}")
        writer.finish_as(patch.manifest_bytes)


def _check_space(patch: Patch, target: Path) -> None:
    status = os.statvfs(target.absolute().parent)
    free_bytes = status.f_bavail * status.f_frsize
    if patch.manifest.size_bytes > free_bytes:
        raise SpaceError(
            f"{target}: expected {patch.manifest.size_bytes} free bytes for the new bundle, found {free_bytes}; "
            "nothing was written"
        )
