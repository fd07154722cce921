"""Runs of bytes that two files share."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed_export.alike import runs_alike


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def test_a_line_that_was_put_in_is_all_that_is_new() -> None:
    lines = [f"line {i} of a page of text\n".encode() for i in range(200)]
    before, made = b"".join(lines), b"".join([*lines[:90], b"a new one\n", *lines[90:]])
    runs = runs_alike(_bytes(before), _bytes(made))
    assert sum(count for _, _, count in runs) >= len(before) - 30
    assert len(runs) == 2


def test_a_number_that_changed_leaves_the_rest_where_it_was() -> None:
    before = bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8))
    made = bytearray(before)
    made[1000:1004] = b"abcd"
    assert runs_alike(_bytes(before), _bytes(bytes(made))) == [(0, 0, 1000), (1004, 1004, 3996)]


@given(
    st.lists(st.sampled_from([b"first piece ", b"another one of them ", b"\0" * 40, b"x", b"12345678"]), max_size=12)
)
def test_runs_are_apart_ascending_and_true(pieces: list[bytes]) -> None:
    before, made = b"".join(sorted(pieces)), b"".join(pieces)
    at = 0
    for new, old, count in runs_alike(_bytes(before), _bytes(made)):
        assert at <= new and count > 0
        assert made[new : new + count] == before[old : old + count]
        at = new + count
    assert at <= len(made)
