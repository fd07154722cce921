"""Numbers of a delta, and how a blob is cut into what frames make."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.delta import FRAME_BYTES, Section, Unpacked, number, sections_of, shift
from edge_embed_bundle.values import SECTION_BYTES


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_read_as_it_was_spelled(value: int) -> None:
    held = Unpacked(number(value))
    assert held.count() == value
    held.end()


@given(st.integers(-(2**62), 2**62 - 1))
def test_a_shift_is_read_as_it_was_spelled(value: int) -> None:
    assert Unpacked(shift(value)).shift() == value


def test_small_shifts_take_one_byte() -> None:
    assert [shift(value) for value in (0, -1, 1, -2, 2)] == [b"\0", b"\1", b"\2", b"\3", b"\4"]


@given(st.binary(max_size=40))
def test_whatever_stands_there_a_number_ends(data: bytes) -> None:
    held = Unpacked(data)
    try:
        while True:
            assert 0 <= held.count() < 2**63
    except ValueError as error:
        assert "number" in str(error)


@pytest.mark.parametrize("kind", ["bundle", "text_bundle", "encoder_bundle"])
def test_sections_and_zeros_between_them_are_all_of_a_blob(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    with Bundle.open(folder) as bundle:
        for name, blob in bundle.manifest.blobs.items():
            sections = sections_of(bundle.manifest, name)
            assert sections[0].offset_bytes == 0
            assert sections[-1].end_bytes == blob.size_bytes
            for first, second in pairwise(sections):
                assert 0 <= second.offset_bytes - first.end_bytes < SECTION_BYTES
                assert not any(bundle.map(name)[first.end_bytes : second.offset_bytes])


def test_tensors_that_overlap_or_lie_far_apart_are_bytes(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    table = manifest.tables[0]
    scales = table.tensors["scales"]

    def moved(offset_bytes: int) -> tuple[Section, ...]:
        tensors = {**table.tensors, "scales": scales._replace(offset_bytes=offset_bytes)}
        size_bytes = offset_bytes + scales.size_bytes
        blob = manifest.blobs[scales.blob]._replace(size_bytes=max(manifest.blobs[scales.blob].size_bytes, size_bytes))
        other = manifest._replace(
            models=(table._replace(tensors=tensors),), blobs={**manifest.blobs, scales.blob: blob}
        )
        return sections_of(other, scales.blob)

    assert [section.tensor for section in moved(scales.offset_bytes)] == ["", "rows", "scales"]
    assert [section.tensor for section in moved(table.tensors["rows"].offset_bytes)] == [""]
    assert [section.tensor for section in moved(scales.offset_bytes + 4 * SECTION_BYTES)] == [""]


@given(st.integers(1, 10_000_000), st.integers(1, 2**20))
def test_frames_cut_a_section_without_a_rest(units: int, unit_bytes: int) -> None:
    section = Section("blob", 0, units, unit_bytes, "table", "rows")
    assert section.frame_units * unit_bytes <= FRAME_BYTES
    first, last = section.units_of(0), section.units_of(section.frames - 1)
    assert first.start == 0
    assert last.stop == units
    assert len(last) > 0
