"""A delta that was published gives the same bundle for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_embed_bundle import delta
from tests import deltas

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = sorted((GOLDEN / "delta-1").glob("*.delta"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_published_delta_gives_its_bundle(file: Path, tmp_path: Path) -> None:
    old, new = (GOLDEN / "format-1" / name for name in file.stem.split("-to-"))
    assert deltas.files(deltas.applied(old, file, tmp_path / "again")) == deltas.files(new)


def test_published_deltas_know_every_way_and_every_packing() -> None:
    frames = [frame for file in PUBLISHED for frame in deltas.frames_of(file.read_bytes())]
    assert {frame[0] for frame in frames} == set(range(len(delta.WAYS)))
    assert {frame[1] for frame in frames} == set(range(len(delta.PACKINGS)))
