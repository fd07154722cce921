"""Keys find rows and rows find keys, whatever bytes a key is made of; a damaged index is an error, not a wild read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.errors import BundleError, RequestError
from edge_embed.kernels import KeyIndex
from edge_embed.keys import KeyNames, to_bytes
from edge_embed_export.key_index import build_index


def _index(kernels: Any, keys: list[bytes], row_count: int | None = None) -> KeyIndex:
    built = build_index(keys)
    index: KeyIndex = kernels.Index(
        built.pilots, built.slots, built.seed, len(keys) if row_count is None else row_count
    )
    return index


def _names(keys: list[bytes]) -> KeyNames:
    offsets = np.concatenate([[0], np.cumsum([len(key) for key in keys])]).astype(np.uint32)
    return KeyNames(offsets, memoryview(b"".join(keys)))


@given(st.lists(st.binary(max_size=40), unique=True, max_size=30))
@settings(deadline=None)
def test_a_key_of_any_bytes_travels_through_text_and_back(kernels: Any, keys: list[bytes]) -> None:
    names = _names(keys)
    assert len(names) == len(keys)
    assert [to_bytes(name) for name in names] == keys
    index = _index(kernels, keys)
    assert index.find_all([to_bytes(name) for name in names]).tolist() == list(range(len(keys)))


@pytest.mark.parametrize("key", ["", "plain", "東京", "two words", "null\0byte", "line\nend", "🙂"])
def test_text_is_utf_8(key: str) -> None:
    assert to_bytes(key) == to_bytes(key.encode()) == key.encode()
    assert _names([b"before", key.encode(), b"after"])[1] == key


def test_a_lone_surrogate_that_stands_for_no_byte_is_refused() -> None:
    assert to_bytes("\udcff") == b"\xff"
    with pytest.raises(RequestError, match=r"lone surrogate in 'a\\ud800'"):
        to_bytes("a\ud800")


def test_what_is_neither_text_nor_bytes_is_no_key() -> None:
    with pytest.raises(TypeError, match="expected a key as str or bytes, found int"):
        to_bytes(7)  # type: ignore[arg-type]


def test_unknown_keys_are_told_apart_from_known_ones_one_by_one_and_together(kernels: Any) -> None:
    index = _index(kernels, [b"king", b"queen", b""])
    asked = [b"queen", b"kin", b"", b"kings", b"king", b"king "]
    expected = [1, -1, 2, -1, 0, -1]
    assert [index.find(key) for key in asked] == expected
    assert index.find_all(asked).tolist() == expected
    assert index.find_all([]).tolist() == []


def test_an_index_without_slots_knows_no_key(kernels: Any) -> None:
    index = kernels.Index(np.zeros(1, np.uint16), np.zeros((0, 2), np.uint32), 0, 5)
    assert index.find(b"king") == -1
    assert index.find_all([b"king", b""]).tolist() == [-1, -1]


def test_a_row_past_the_table_is_the_fault_of_the_bundle(kernels: Any) -> None:
    index = _index(kernels, [b"king", b"queen"], row_count=1)
    assert index.find(b"king") == 0
    with pytest.raises(BundleError, match="expected rows below 1, found 1"):
        index.find(b"queen")
    with pytest.raises(BundleError, match="expected rows below 1, found 1"):
        index.find_all([b"king", b"queen"])
