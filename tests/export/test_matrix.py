"""Spools, selections and packed keys answer as the arrays and lists do that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.errors import RequestError
from edge_embed_export.matrix import BLOCK_ROWS, Keys, Selection, Spool, blocks_of


@given(
    sizes=st.lists(st.integers(0, 5), max_size=4),
    width=st.sampled_from([(), (1,), (3,), (2, 2)]),
    dtype=st.sampled_from(["float32", "uint8", "float16"]),
    data=st.data(),
)
@settings(deadline=None)
def test_a_spool_gives_back_what_was_appended(
    sizes: list[int], width: tuple[int, ...], dtype: str, data: st.DataObject
) -> None:
    blocks = [np.random.default_rng(i).integers(0, 200, (size, *width)).astype(dtype) for i, size in enumerate(sizes)]
    array = np.concatenate([np.empty((0, *width), dtype), *blocks])
    spool = Spool.of(iter(blocks), dtype, width)
    assert (spool.shape, spool.dtype, spool.nbytes, len(spool)) == (array.shape, array.dtype, array.nbytes, len(array))
    assert spool[:].tobytes() == array.tobytes()
    some = data.draw(st.slices(len(array)))
    assert spool[some].tobytes() == array[some].tobytes()
    if len(array):
        ids = np.array(data.draw(st.lists(st.integers(0, len(array) - 1))), np.int64)
        assert spool[ids].tobytes() == array[ids].tobytes()
        order = Selection(spool, ids)
        assert order.shape == array[ids].shape and order.nbytes == array[ids].nbytes and len(order) == len(ids)
        assert order[:].tobytes() == array[ids].tobytes()


def test_a_spool_refuses_rows_that_it_does_not_have() -> None:
    spool = Spool.of(iter([np.zeros((2, 3), np.float32)]), np.float32, (3,))
    with pytest.raises(IndexError, match="expected rows from 0 to 1, found 0 to 2"):
        spool[np.array([0, 2])]
    with pytest.raises(ValueError, match="expected rows of shape"):
        spool.append(np.zeros((2, 4), np.float32))


def test_a_spool_without_room_says_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    with pytest.raises(RequestError, match=r"absent: expected room for a temporary file"):
        Spool(np.float32, (3,))


def test_a_spool_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    spool = Spool.of(iter([np.ones((2, 3), np.float32)]), np.float32, (3,))
    assert not list(tmp_path.iterdir()) and spool[:].all()
    del spool
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_blocks_are_all_rows_in_order_and_each_is_small() -> None:
    wide = np.zeros((3 * BLOCK_ROWS + 5, 1000), np.float32)
    blocks = list(blocks_of(wide))
    assert np.concatenate([np.arange(block.start, block.stop) for block in blocks]).tolist() == list(range(len(wide)))
    assert max(wide[block].nbytes for block in blocks) <= 8 * 2**20
    assert list(blocks_of(wide[:0])) == []


@given(st.lists(st.binary(max_size=6), max_size=30), st.data())
def test_packed_keys_are_the_keys(keys: list[bytes], data: st.DataObject) -> None:
    packed = Keys.of(iter([keys[:7], keys[7:]]))
    assert len(packed) == len(keys) and list(packed) == keys and packed == keys
    some = data.draw(st.slices(len(keys)))
    assert packed[some] == keys[some]
    if keys:
        row = data.draw(st.integers(-len(keys), len(keys) - 1))
        assert packed[row] == keys[row]
    with pytest.raises(IndexError):
        packed[len(keys)]
