"""What follows from the rest of a bundle: lengths of rows, slots of keys, answers to golden questions.

A delta leaves it out and sends what was wrong with the guess, as a rule nothing. Maker and reader guess by this module,
each from the new bundle's tensors as it has them: lengths in float64, rounded once, answers in float32, as encoders do.

 * Nothing is held but blocks: of 2 MiB, however many rows and keys there are.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.kernels.reference import buckets_of, slots_of
from edge_embed.text import directed
from edge_embed_bundle.delta import FRAME_BYTES, GOLDEN, Section, Unpacked
from edge_embed_bundle.manifest import CODEC_TENSORS, Manifest, TableModel

#: What is read whole (codebooks and a rotation to decode rows by, pilots) may take so many bytes.
WHOLE_CEILING_BYTES = 2 * 2**20
# Slots that one pass over the keys fills, and keys of a block.
_SLOTS = 2**18
_KEYS = 4096
# Numbers that are decoded at a time.
_NUMBERS = 2**17
_ANSWERED_ROWS = 4096

#: Returns some rows of a tensor, by the names of its model and its own, from the first to before the last.
Reader = Callable[[str, str, int, int], NDArray[Any]]


class Derived:
    """Guesses from a bundle whose manifest is known and whose tensors can be read."""

    def __init__(self, manifest: Manifest, tensor: Reader) -> None:
        self._manifest = manifest
        self._tensor = tensor
        self._slots: dict[str, tuple[int, NDArray[np.uint32]]] = {}

    def guess(self, section: Section, way: str, units: range, held: Unpacked) -> NDArray[Any]:
        """Return what some units are by a way, little-endian.

        Raises:
            ValueError: the way does not lead there.
        """
        # A stranger's numbers may be none; the digest will say so.
        with np.errstate(all="ignore"):
            return self._guess(section, way, units, held)

    def _guess(self, section: Section, way: str, units: range, held: Unpacked) -> NDArray[Any]:
        model = self._manifest.table(section.model)
        if way == "norms" and model is not None and section.tensor == "norms":
            return self._norms(model, units)
        if way == "slots" and model is not None and section.tensor == "index_slots":
            return self._index_slots(model, units)
        if way in ("means", "directions") and section.model == GOLDEN:
            return self._answers(section, held, units, normalize=way == "directions")
        raise ValueError(f"the way {way} for {section.tensor or 'bytes'}")

    def forget(self) -> None:
        """Let go of the slots that were filled last."""
        self._slots.clear()

    def _norms(self, model: TableModel, units: range) -> NDArray[np.float32]:
        norms = np.empty(len(units), "<f4")
        step = max(1, _NUMBERS // model.dimensions)
        for start in range(units.start, units.stop, step):
            stop = min(start + step, units.stop)
            norms[start - units.start : stop - units.start] = norms_of(self._decoded(model, start, stop))
        return norms

    def _decoded(self, model: TableModel, start: int, stop: int) -> NDArray[np.float32]:
        tensors = {}
        for name, (_, axes) in CODEC_TENSORS[model.codec].items():
            if axes[0] == "n":
                tensors[name] = self._tensor(model.name, name, start, stop)
            else:
                tensors[name] = self._whole(model, name)
        native = {name: np.ascontiguousarray(each, each.dtype.newbyteorder("=")) for name, each in tensors.items()}
        return kernels.open_rows(model.codec, native, model.dimensions).decode(np.arange(stop - start))

    def _whole(self, model: TableModel, name: str) -> NDArray[Any]:
        tensor = model.tensors[name]
        if tensor.size_bytes > WHOLE_CEILING_BYTES:
            raise ValueError(f"{name} of {tensor.size_bytes} bytes, which are read whole, of {WHOLE_CEILING_BYTES}")
        return self._tensor(model.name, name, 0, tensor.shape[0])

    def _index_slots(self, model: TableModel, units: range) -> NDArray[np.uint32]:
        window = units.start // _SLOTS
        kept = self._slots.get(model.name)
        if kept is None or kept[0] != window:
            self._slots.pop(model.name, None)
            self._slots[model.name] = kept = (window, self._window(model, window))
        first = window * _SLOTS
        return np.ascontiguousarray(kept[1][units.start - first : units.stop - first])

    def _window(self, model: TableModel, window: int) -> NDArray[np.uint32]:
        """Return a run of slots ``(n, 2)``: every key says where it belongs."""
        if model.key_index is None or "key_offsets" not in model.tensors:
            raise ValueError("slots of a model without keys")
        slot_count = model.tensors["index_slots"].shape[0]
        pilots = self._whole(model, "index_pilots").astype(np.uint64)
        first, stop = window * _SLOTS, min(slot_count, (window + 1) * _SLOTS)
        slots = np.zeros((stop - first, 2), "<u4")
        slots[:, 1] = kernels.EMPTY_ROW
        for start in range(0, model.rows, _KEYS):
            keys = self._keys(model, start, min(start + _KEYS, model.rows))
            hashes = kernels.hash_keys(keys, model.key_index.seed)
            places = slots_of(hashes, pilots[buckets_of(hashes, len(pilots))], slot_count) - first
            here = np.flatnonzero((places >= 0) & (places < len(slots)))
            slots[places[here], 0] = (hashes[here] >> np.uint64(32)).astype(np.uint32)
            slots[places[here], 1] = start + here
        return slots

    def _keys(self, model: TableModel, start: int, stop: int) -> list[bytes]:
        offsets = self._tensor(model.name, "key_offsets", start, stop + 1)[:].astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        if (np.diff(offsets) < 0).any() or last > model.tensors["key_bytes"].shape[0] or last - first > FRAME_BYTES:
            raise ValueError(f"keys of rows {start} to {stop} from byte {first} to {last}")
        data = self._tensor(model.name, "key_bytes", first, last).tobytes()
        ends = (offsets - first).tolist()
        return [data[a:b] for a, b in pairwise(ends)]

    def _answers(self, section: Section, held: Unpacked, units: range, *, normalize: bool) -> NDArray[np.float32]:
        """Return the mean of the rows that each answer names, as lookups and encodings have it."""
        golden = self._manifest.golden[int(section.tensor)]
        model = self._manifest.table(golden.model)
        if model is None or section.unit_bytes != 4 * model.dimensions:
            raise ValueError("answers that are no vectors of a table")
        answers = np.zeros((len(units), model.dimensions), "<f4")
        left = _ANSWERED_ROWS
        for answer in answers:
            total = np.zeros(model.dimensions, np.float32)
            count = held.count()
            left -= count
            if left < 0:
                raise ValueError(f"answers of more than {_ANSWERED_ROWS} rows")
            for _ in range(count):
                row = held.count()
                if row >= model.rows:
                    raise ValueError(f"row {row} of {model.rows}")
                total += self._decoded(model, row, row + 1)[0]
            answer[:] = answer_of(total, count, normalize=normalize)
        return answers


def norms_of(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length ``(n,)`` of decoded rows as an exporter stores it.

    In float64: the squares of a row of tiny numbers are zeros in float32.
    """
    norms: NDArray[np.float32] = np.linalg.norm(decoded.astype(np.float64), axis=1).astype(np.float32)
    return norms


def answer_of(total: NDArray[np.float32], count: int, *, normalize: bool) -> NDArray[np.float32]:
    """Return what the sum of some rows ``(d,)`` gives as a mean, or as that mean's direction, as an encoder has it."""
    mean: NDArray[np.float32] = total / np.float32(max(count, 1))
    return directed(mean[np.newaxis]).reshape(-1) if normalize else mean
