"""The key index that an exporter builds is the one that a board asks: every key finds its row, strangers find none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_embed.errors import RequestError
from edge_embed.kernels import EMPTY_ROW, Index, KeyIndex
from edge_embed_export.key_index import BuiltIndex, build_index


def _opened(built: BuiltIndex, rows: int) -> KeyIndex:
    return Index(built.pilots, built.slots, built.seed, rows)


def _digests(start: int, end: int) -> list[bytes]:
    """Return keys of many lengths that look like nothing."""
    return [hashlib.sha512(b"%d" % i).digest()[: 3 + i % 60] + b"%d" % i for i in range(start, end)]


@given(keys=st.lists(st.binary(max_size=80), unique=True, max_size=60), strangers=st.lists(st.binary(max_size=80)))
@example(keys=[], strangers=[b"", b"a"])
@example(keys=[b""], strangers=[b"\0", b"a"])
@example(keys=[b"", b"\0"], strangers=[b"\0\0"])
@example(keys=[b"a" * length for length in range(200)], strangers=[b"b", b"a" * 200])
@example(keys=[b"x" * 10_000, b"x" * 10_001], strangers=[b"x" * 9_999])
@settings(deadline=None)
def test_any_set_of_keys_is_found_again_and_nothing_else_is(keys: list[bytes], strangers: list[bytes]) -> None:
    index = _opened(build_index(keys), len(keys))
    assert index.find_all(keys).tolist() == list(range(len(keys)))
    assert [index.find(key) for key in keys] == list(range(len(keys)))
    unknown = [key for key in strangers if key not in set(keys)]
    assert index.find_all(unknown).tolist() == [-1] * len(unknown)


def test_twenty_thousand_keys_take_at_most_twelve_bytes_each() -> None:
    keys = _digests(0, 20_000)
    built = build_index(keys)
    index = _opened(built, len(keys))
    np.testing.assert_array_equal(index.find_all(keys), np.arange(len(keys)))
    assert (index.find_all(_digests(20_000, 40_000)) == -1).all()
    assert built.pilots.nbytes + built.slots.nbytes <= 12 * len(keys)
    assert built.pilots.dtype == np.uint16 and built.slots.dtype == np.uint32


def test_every_row_has_one_slot_and_a_slot_left_empty_has_no_row() -> None:
    rows = build_index(_digests(0, 500)).slots[:, 1]
    assert sorted(rows[rows != EMPTY_ROW].tolist()) == list(range(500))


def test_the_same_keys_make_the_same_index() -> None:
    keys = _digests(0, 3000)
    one, other = build_index(keys), build_index(keys)
    assert one.seed == other.seed
    np.testing.assert_array_equal(one.pilots, other.pilots)
    np.testing.assert_array_equal(one.slots, other.slots)


@pytest.mark.parametrize("twice", [b"king", b"", b"\xff\xfe"])
def test_a_key_that_stands_twice_is_an_error_that_names_it(twice: bytes) -> None:
    with pytest.raises(RequestError) as error:
        build_index([b"first", twice, b"middle", twice, b"last", b"first"])
    assert str(error.value) == f"expected keys that differ, found {twice!r} twice"
