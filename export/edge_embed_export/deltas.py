"""Making a delta: the new bundle, frame by frame, each told in the way and the packing that take the fewest bytes.

* Rows are found again by their keys (without keys, by their numbers), wherever they stand.
* Files that are no tensors (graphs, tokenizers, the manifest) are told as runs of the parent's bytes.
* What was made is applied once more before it is called a delta: the new bundle must come out of it, bit for bit.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.derived import Derived
from edge_embed.errors import BundleError
from edge_embed.patching import Patch
from edge_embed.progress import SILENT, Progress
from edge_embed.table import Table, mapped
from edge_embed_bundle import delta
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.delta import GOLDEN, DeltaFile, Section, Unpacked, sections_of, tensor_of
from edge_embed_bundle.manifest import MANIFEST_NAME, Golden, TableModel
from edge_embed_export.alike import Run, runs_alike
from edge_embed_export.parents import key_places

# Classes of rows by how much they changed: by powers of two around one.
_SIZES = 10


@dataclass(frozen=True)
class DeltaReport:
    """What a delta takes: all of it, and by the sections that it makes (``table.rows``)."""

    size_bytes: int
    full_bytes: int
    parts: Mapping[str, int]


def make_delta(old: Bundle, new: Bundle, target: Path, progress: Progress = SILENT) -> DeltaReport:
    """Write the delta from one verified bundle to another.

    Raises:
        BundleError: the target is taken, or the delta does not give the new bundle back.
    """
    known = {blob.sha256 for blob in old.manifest.blobs.values()}
    blobs = [name for name in sorted(new.manifest.blobs) if new.manifest.blobs[name].sha256 not in known]
    total = sum(new.manifest.blobs[name].size_bytes for name in blobs)
    frames = Frames(old, new)
    parts: dict[str, int] = {}
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    if target.exists():
        raise BundleError(f"{target}: expected a new file, found one; remove it first")
    try:
        with (
            partial.open("xb") as file,
            progress.task(f"from {old.manifest.version} to {new.manifest.version}", 2 * total) as advance,
        ):
            manifest = new.manifest_bytes
            file.write(delta.HEAD.pack(delta.MAGIC, bytes.fromhex(old.id), bytes.fromhex(new.id), len(manifest)))
            parts[MANIFEST_NAME] = file.write(_manifest_frame(old.manifest_bytes, manifest))
            for name in blobs:
                for section in sections_of(new.manifest, name):
                    part = f"{section.model}.{section.tensor}" if section.tensor else name
                    for number in range(section.frames):
                        units = section.units_of(number)
                        parts[part] = parts.get(part, 0) + file.write(frames.of(section, units))
                        advance(len(units) * section.unit_bytes)
            file.flush()
            os.fsync(file.fileno())
        _prove(old, new, partial, advance)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return DeltaReport(target.stat().st_size, new.manifest.size_bytes + len(new.manifest_bytes), parts)


def _prove(old: Bundle, new: Bundle, path: Path, advance: Any) -> None:
    with path.open("rb") as file:
        patch = Patch(old, DeltaFile(file.fileno(), source=str(path)))
        for name in patch.made:
            digest = hashlib.sha256()
            for chunk in patch.chunks(name):
                digest.update(chunk)
                advance(chunk.nbytes)
            if digest.hexdigest() != new.manifest.blobs[name].sha256:
                raise BundleError(f"{new.folder}/{name}: expected zeros between its sections, found other bytes")


def _manifest_frame(old: bytes, new: bytes) -> bytes:
    before, after = (np.frombuffer(data, np.uint8) for data in (old, new))
    return _frame("bytes", [_as_bytes(after, runs_alike(before, after), 0)], after)


class Frames:
    """The frames of a new bundle beside an old one."""

    def __init__(self, old: Bundle, new: Bundle) -> None:
        self._old = old
        self._new = new
        self._places: dict[str, NDArray[np.int64]] = {}
        self._derived = Derived(new.manifest, self._tensor)

    def of(self, section: Section, units: range) -> bytes:
        """Return the frame that makes some units."""
        made = self._units(section, units)
        if not section.tensor:
            return _frame(
                "bytes", [_as_bytes(made[:, 0], self._runs_of_bytes(section, units, made[:, 0]), units.start)], made
            )
        guessed = self._guessed(section, units, made)
        if guessed is not None:
            return guessed
        before = self._before(section)
        if section.tensor == "key_bytes":
            runs = list(_runs(self._places_of_key_bytes(section, units), units.start))
            return _frame("bytes", [_as_bytes(made[:, 0], runs, units.start)], made)
        places = self._places_of(section, units, len(before))
        return _frame(
            "rows",
            [_as_rows(section, made, before, each, units.start) for each in (places, np.full_like(places, -1))],
            made,
        )

    def _units(self, section: Section, units: range) -> NDArray[np.uint8]:
        start = section.offset_bytes + units.start * section.unit_bytes
        data = self._new.map(section.blob)[start : start + len(units) * section.unit_bytes]
        return np.frombuffer(data, np.uint8).reshape(len(units), section.unit_bytes)

    def _tensor(self, model: str, name: str, start: int, stop: int) -> NDArray[Any]:
        tensor = tensor_of(self._new.manifest, model, name)
        if tensor is None:
            raise ValueError(f"{model} without {name}")
        return mapped(self._new, tensor)[start:stop]

    def _before(self, section: Section) -> NDArray[np.uint8]:
        """Return the parent's units ``(n, unit_bytes)`` of a tensor; none, where it has none of that shape."""
        tensor = tensor_of(self._old.manifest, section.model, section.tensor)
        if tensor is None or tensor.dtype != section.dtype or not tensor.size_bytes:
            return np.empty((0, section.unit_bytes), np.uint8)
        if tensor.size_bytes // tensor.shape[0] != section.unit_bytes:
            return np.empty((0, section.unit_bytes), np.uint8)
        return np.frombuffer(self._old.tensor(tensor), np.uint8).reshape(tensor.shape[0], -1)

    def _guessed(self, section: Section, units: range, made: NDArray[np.uint8]) -> bytes | None:
        """Return the frame that says what is wrong with a guess; None, where there is none, or it is bad."""
        for way, said in self._guesses(section, units):
            try:
                guess = self._derived.guess(section, way, units, Unpacked(said))
            except ValueError:
                continue
            guess_bytes = np.ascontiguousarray(guess).view(np.uint8).reshape(made.shape)
            wrong = (guess_bytes != made).any(axis=1).mean()
            if wrong < 0.5 or section.model == GOLDEN:
                return _frame(way, [said + _corrections(section, made, guess_bytes)], made)
        return None

    def _guesses(self, section: Section, units: range) -> Iterator[tuple[str, bytes]]:
        if section.tensor == "norms":
            yield "norms", b""
        if section.tensor == "index_slots":
            yield "slots", b""
        if section.model == GOLDEN:
            golden = self._new.manifest.golden[int(section.tensor)]
            rows = self._rows_of_answers(golden)
            if rows is not None:
                said = [delta.number(len(each)) + b"".join(map(delta.number, each)) for each in rows]
                text = _text_of(self._new, golden)
                yield "directions" if text else "means", b"".join(said[units.start : units.stop])

    def _rows_of_answers(self, golden: Golden) -> list[list[int]] | None:
        """Return the rows whose mean each answer is, where that is known without a tokenizer's package."""
        model = self._new.manifest.table(golden.model)
        if model is None or model.subwords is not None or golden.expected.shape[1] != model.dimensions:
            return None
        if golden.operation == "lookup" and golden.by == "row":
            return [[int(row)] for row in golden.inputs]
        if model.key_index is None:
            return None
        table = Table(self._new, model)
        if golden.operation == "lookup" and golden.by == "key":
            found = [[table.find(key)] for key in golden.inputs]
        elif golden.operation == "encode" and model.text is not None and model.text.tokenizer == "whitespace":
            words = [text.split()[: model.text.max_tokens] for text in golden.inputs]
            pairs = [[(table.find(word), table.find(word.lower())) for word in text] for text in words]
            found = [[row if row >= 0 else lower for row, lower in text if max(row, lower) >= 0] for text in pairs]
        else:
            return None
        return found if all(row >= 0 for rows in found for row in rows) else None

    # Which unit of the parent each unit was; -1 for new ones.

    def _places_of(self, section: Section, units: range, there: int) -> NDArray[np.int64]:
        model = self._new.manifest.table(section.model)
        rows = np.arange(units.start, units.stop)
        if (
            model is None
            or section.units not in (model.rows, model.rows + 1)
            or self._old.manifest.table(model.name) is None
        ):
            places = rows
        else:
            places = self._places_of_rows(model)
            if section.units == model.rows + 1:
                # Offsets: the end of the last row is that of the parent's last one, or as good as any.
                places = np.append(places, there - 1)
            places = places[units.start : units.stop]
        return np.where(places < there, places, -1)

    def _places_of_rows(self, model: TableModel) -> NDArray[np.int64]:
        if model.name not in self._places:
            before = self._old.manifest.table(model.name)
            names = Table(self._new, model).names
            keys = None if names is None else [name.encode("utf-8", "surrogateescape") for name in names]
            self._places[model.name] = (
                np.full(model.rows, -1) if before is None else key_places(self._old, before, keys, model.rows)
            )
        return self._places[model.name]

    def _places_of_key_bytes(self, section: Section, units: range) -> NDArray[np.int64]:
        """Return the parent's place of each byte of some keys."""
        model = self._new.manifest.table(section.model)
        before = self._old.manifest.table(section.model)
        if model is None or before is None or "key_offsets" not in before.tensors or "key_offsets" not in model.tensors:
            return np.full(len(units), -1)
        places = self._places_of_rows(model)
        starts = mapped(self._new, model.tensors["key_offsets"]).astype(np.int64)
        old_starts = mapped(self._old, before.tensors["key_offsets"]).astype(np.int64)
        at = np.arange(units.start, units.stop)
        rows = np.searchsorted(starts, at, side="right") - 1
        old_rows = places[rows]
        return np.where(old_rows >= 0, old_starts[old_rows] + at - starts[rows], -1)

    def _runs_of_bytes(self, section: Section, units: range, made: NDArray[np.uint8]) -> list[Run]:
        if section.blob not in self._old.manifest.blobs:
            return []
        before = np.frombuffer(self._old.map(section.blob), np.uint8)
        return [(new + units.start, old, count) for new, old, count in runs_alike(before, made, units.start)]


def _text_of(bundle: Bundle, golden: Golden) -> bool:
    """Whether an answer is made a direction of."""
    model = bundle.manifest.table(golden.model)
    return golden.operation == "encode" and model is not None and model.text is not None and model.text.normalize


def _runs(places: NDArray[np.int64], first: int) -> Iterator[Run]:
    """Yield runs of units that stand one after the other in the parent, too: the new unit, the old one, the number."""
    there = np.flatnonzero(places >= 0)
    if not len(there):
        return
    breaks = np.flatnonzero((np.diff(there) != 1) | (np.diff(places[there]) != 1)) + 1
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(there)], strict=True):
        yield int(there[start]) + first, int(places[there[start]]), stop - start


def _spelled(runs: list[Run], first: int) -> bytes:
    spelled = [delta.number(len(runs))]
    new_at, old_at = first, first
    for new, old, count in runs:
        spelled += [delta.number(new - new_at), delta.shift(old - old_at), delta.number(count)]
        new_at, old_at = new + count, old + count
    return b"".join(spelled)


def _as_bytes(made: NDArray[np.uint8], runs: list[Run], first: int) -> bytes:
    """Return what a frame of bytes holds."""
    runs = runs if len(runs) <= delta.RUNS_CEILING else []
    is_new = np.ones(len(made), bool)
    for new, _, count in runs:
        is_new[new - first : new - first + count] = False
    return _spelled(runs, first) + made[is_new].tobytes()


def _as_rows(
    section: Section, made: NDArray[np.uint8], before: NDArray[np.uint8], places: NDArray[np.int64], first: int
) -> bytes:
    """Return what a frame of rows holds."""
    runs = list(_runs(places, first))
    if len(runs) > delta.RUNS_CEILING:
        runs, places = [], np.full_like(places, -1)
    known = np.flatnonzero(places >= 0)
    corrections = _corrections(section, made[known], before[places[known]])
    return _spelled(runs, first) + corrections + _planes(section, made[places < 0])


def _corrections(section: Section, made: NDArray[np.uint8], guess: NDArray[np.uint8]) -> bytes:
    """Return the class of each unit, and what to add to those that are no longer as they were."""
    width = delta.item_bytes(section)
    added = np.ascontiguousarray(made).view(f"<u{width}") - np.ascontiguousarray(guess).view(f"<u{width}")
    classes = np.zeros(len(made), np.uint8)
    changed = np.flatnonzero(added.any(axis=1))
    signed = added[changed].view(f"<i{width}").astype(np.int64)
    # Twice as large numbers, or multiples of another step, are another class: each gets a code of its own in packing.
    sizes = np.clip(np.floor(np.log2(np.abs(signed).mean(axis=1))) + _SIZES // 2, 1, _SIZES - 1).astype(np.uint8)
    steps = np.minimum(np.gcd.reduce(signed, axis=1), 255 // _SIZES - 1).astype(np.uint8)
    classes[changed] = _SIZES * steps + sizes
    order = changed[np.argsort(classes[changed], kind="stable")]
    return classes.tobytes() + _planes(section, added[order].view(np.uint8))


def _planes(section: Section, units: NDArray[np.uint8]) -> bytes:
    """Return the low bytes of all numbers, then the next ones."""
    return np.ascontiguousarray(units.reshape(-1, delta.item_bytes(section)).T).tobytes()


def _frame(way: str, held: list[bytes], made: NDArray[np.uint8]) -> bytes:
    """Return a frame, packed as is smallest, of the shortest of some spellings of what it holds."""
    packed = [
        (packing, data)
        for each in held
        if len(each) <= delta.UNPACKED_CEILING_BYTES
        for packing, data in _packings(each)
    ]
    packing, data = min(packed, key=lambda each: len(each[1]))
    digest = hashlib.sha256(np.ascontiguousarray(made).data).digest()
    head = delta.FRAME_HEAD.pack(delta.WAYS.index(way), delta.PACKINGS.index(packing), len(data), digest)
    return head + data


def _packings(held: bytes) -> Iterator[tuple[str, bytes]]:
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        yield "zlib", packing.compress(held) + packing.flush()
    yield "lzma", lzma.compress(held, lzma.FORMAT_RAW, filters=list(delta.LZMA_FILTERS))
