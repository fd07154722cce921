"""A delta gives the new bundle back, bit for bit, from any parent that it was made for and from no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError, DeltaError, DigestError
from edge_embed_export.sources import Source
from tests import deltas
from tests.making import (
    WORDS,
    make_bundle,
    make_unmeasured_bundle,
    rows_in_topics,
    small_source,
    tables_source,
    vectors_of,
    with_table,
)

MEMORY = """
import sys
from edge_embed import memory
from edge_embed.patching import Patch, apply_delta
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.delta import DeltaFile
from pathlib import Path
import edge_embed.kernels, hashlib, lzma, zlib
import numpy.linalg

before = memory.current().private_bytes
with memory.Peak() as peak, Bundle.open(sys.argv[1]) as parent, open(sys.argv[2], "rb") as file:
    apply_delta(Patch(parent, DeltaFile(file.fileno(), source=sys.argv[2])), Path(sys.argv[3]))
print(peak.private_bytes - before)
"""


def _moved(source: Source, *, seed: int = 1, share: float = 0.3) -> Source:
    """Return a source of which a share of the rows moved a little."""
    random = np.random.default_rng(seed)
    vectors = vectors_of(source).copy()
    rows = random.random(len(vectors)) < share
    vectors[rows] += 0.1 * random.normal(size=vectors[rows].shape).astype(np.float32)
    return with_table(source, vectors=vectors)


def _some_rows(source: Source, rows: list[int]) -> Source:
    keys = source.table.keys
    assert keys is not None
    return with_table(source, keys=tuple(keys[row] for row in rows), vectors=vectors_of(source)[rows])


CHANGES: dict[str, Callable[[Source], Source]] = {
    "rows that moved": _moved,
    "new words behind": lambda source: small_source(keys=(*WORDS, "one more", "and another")),
    "words that went": lambda source: _some_rows(source, [*range(3, 30), *range(33, 64)]),
    "another order": lambda source: _some_rows(source, list(np.random.default_rng(3).permutation(64))),
    "no word in common": lambda source: small_source(seed=5, keys=tuple(f"other {i}" for i in range(40))),
    "other dimensions": lambda source: small_source(dimensions=24),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("codec", ["int8", "float32", "int4", "pq"])
def test_a_delta_gives_the_new_bundle_back(codec: str, change: str, tmp_path: Path) -> None:
    source = small_source()
    old = make_bundle(tmp_path / "old", source=source, codec=codec).path
    new = make_bundle(tmp_path / "new", source=CHANGES[change](source), codec=codec, version="1.1.0").path
    deltas.made(old, new, tmp_path / "delta")
    assert deltas.files(deltas.applied(old, tmp_path / "delta", tmp_path / "again")) == deltas.files(new)


def test_a_delta_leads_from_any_kind_of_bundle_to_any_other(
    bundle: Path, text_bundle: Path, encoder_bundle: Path, tmp_path: Path
) -> None:
    tables = make_bundle(
        tmp_path / "tables", source=tables_source({"user": (50, 16), "item": (9, 16), "b": (7, 8)})
    ).path
    lists = make_bundle(tmp_path / "lists", source=rows_in_topics(150, 16), clustered=True, plane=True).path
    kinds = [bundle, text_bundle, encoder_bundle, tables, lists]
    for i, new in enumerate(kinds):
        for old in kinds[:i]:
            file = tmp_path / f"{old.name}-{new.name}"
            deltas.made(old, new, file)
            assert deltas.files(deltas.applied(old, file, tmp_path / f"{file.name}-again")) == deltas.files(new)


def test_what_follows_from_the_rest_is_not_sent(tmp_path: Path) -> None:
    source = rows_in_topics(3000, 16)
    old = make_bundle(tmp_path / "old", source=source, graphs=()).path
    new = make_bundle(tmp_path / "new", source=_moved(source), graphs=(), version="1.1.0").path
    parts = deltas.made(old, new, tmp_path / "delta").parts
    assert parts["table.norms"] < 100  # of 12,000 bytes
    assert parts["golden.0"] < 150  # of 1,024
    assert "table.index_slots" not in parts or parts["table.index_slots"] < 100


def test_slots_of_new_keys_follow_from_keys_and_pilots(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", source=rows_in_topics(3000, 16), graphs=()).path
    more = rows_in_topics(3100, 16)
    new = make_bundle(tmp_path / "new", source=more, graphs=(), version="1.1.0").path
    report = deltas.made(old, new, tmp_path / "delta")
    assert report.parts["table.index_slots"] < 100  # of 25,000 bytes
    with deltas.patch(old, tmp_path / "delta") as patch, Bundle.open(new) as bundle:
        for name in bundle.manifest.blobs:
            assert b"".join(patch.chunks(name)) == bytes(bundle.map(name))


def test_a_delta_from_another_bundle_is_refused(
    bundle: Path, newer_bundle: Path, text_bundle: Path, tmp_path: Path
) -> None:
    deltas.made(bundle, newer_bundle, tmp_path / "delta")
    with pytest.raises(DeltaError, match=r"expected a delta from .*, the bundle at hand, found"):
        deltas.applied(text_bundle, tmp_path / "delta", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_parent_that_rotted_is_found_out_and_nothing_stays(damageable: Path, tmp_path: Path) -> None:
    new = make_bundle(tmp_path / "new", source=_moved(small_source(), share=0.1), version="1.1.0").path
    deltas.made(damageable, new, tmp_path / "delta")
    table = damageable / "table.tflite"
    data = bytearray(table.read_bytes())
    data[-1] ^= 1
    table.write_bytes(data)
    with pytest.raises((DigestError, DeltaError)):
        deltas.applied(damageable, tmp_path / "delta", tmp_path / "again")
    assert [path.name for path in tmp_path.glob("*again*")] == []


def test_a_delta_is_never_written_over_something_else(bundle: Path, newer_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "delta").write_text("mine")
    with pytest.raises(BundleError, match="expected a new file, found one"):
        deltas.made(bundle, newer_bundle, tmp_path / "delta")
    assert (tmp_path / "delta").read_text() == "mine"


@pytest.mark.parametrize(("codec", "rows"), [("int8", 20_000), ("int8", 200_000), ("float32", 30_000)])
def test_memory_does_not_grow_with_the_table(codec: str, rows: int, tmp_path: Path) -> None:
    source = rows_in_topics(rows, 64)
    old = make_unmeasured_bundle(tmp_path / "old", source, codec=codec, graphs=())
    keys = source.table.keys
    assert keys is not None
    # A new word changes every slot of the index.
    vectors = np.concatenate([vectors_of(_moved(source, share=0.02)), np.ones((1, 64), np.float32)])
    source = with_table(source, keys=(*keys, b"one more"), vectors=vectors)
    new = make_unmeasured_bundle(tmp_path / "new", source, codec=codec, graphs=(), version="1.1.0")
    deltas.made(old, new, tmp_path / "delta")
    words = [sys.executable, "-c", MEMORY, str(old), str(tmp_path / "delta"), str(tmp_path / "again")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 * 2**20
