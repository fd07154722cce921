"""What every executor of a table's rows promises, whoever runs them: numpy, ONNX Runtime over ``table.onnx``, LiteRT
over ``table.tflite``. ``PROMISES`` holds the checks; each takes an executor and the vectors of the whole table by the
codec's formula.

An executor is asked through a runtime, as users ask it: what reaches an engine has passed the runtime's gate.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.engines import FORMATS
from edge_embed.errors import RequestError
from edge_embed.runtime import Runtime

#: Of the two engines of ``.tflite`` the second is asked where it is installed, see ``test_legacy_engine``.
EXECUTORS = ("kernels", *(name for name in FORMATS if name != "tflite-runtime"))

Vectors = NDArray[np.float32]


def formula(codec: str, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> Vectors:
    """Return what a codec's tensors mean, ``(n, d)``, a number at a time as the format's page says it."""
    rows = tensors["rows"]
    if codec == "int8":
        return np.asarray(rows.astype(np.float32) * tensors["scales"][:, np.newaxis], np.float32)
    if codec == "int4":
        scales = tensors["scales"].astype(np.float32)
        halves = [(rows[:, j // 2] >> (4 * (j % 2))) & 15 for j in range(dimensions)]
        columns = [(half.astype(np.float32) - 8) * scales[:, j // 32] for j, half in enumerate(halves)]
        return np.stack(columns, axis=1).astype(np.float32)
    if codec in ("pq", "opq", "rq"):
        found = [book[column] for book, column in zip(tensors["codebooks"], rows.T, strict=True)]
        lengths = tensors["length_levels"][tensors["length_codes"]][:, np.newaxis]
        if codec == "pq":
            return np.asarray(np.concatenate(found, axis=1)[:, :dimensions] * lengths, np.float32)
        if codec == "opq":
            # In float64: what the format promises to be exact in float32 is so here, too.
            parts = np.concatenate(found, axis=1).astype(np.float64)
            return np.asarray((parts @ tensors["rotation"].T.astype(np.float64)).astype(np.float32) * lengths)
        total = found[0]
        for part in found[1:]:
            total = total + part
        return np.asarray(total * lengths, np.float32)
    return np.asarray(rows, np.float32)


def every_row_alone_is_that_of_the_formula(executor: Runtime, expected: Vectors) -> None:
    for row in _sample(len(expected)):
        _assert_rows(executor, [row], expected)


def a_batch_may_repeat_ids_in_any_order(executor: Runtime, expected: Vectors) -> None:
    rows = len(expected)
    random = np.random.default_rng(0)
    forward = list(range(rows))
    shuffled: list[int] = random.integers(0, rows, 3 * rows).tolist()
    for ids in ([0] * 9, forward, forward[::-1], shuffled):
        _assert_rows(executor, ids, expected)
    strided = np.arange(2 * rows, dtype=np.int32)[::-2] // 2
    _assert_rows(executor, strided.tolist(), expected)
    np.testing.assert_array_equal(executor.lookup_ids(strided), expected[strided])


def batch_sizes_may_change_from_call_to_call(executor: Runtime, expected: Vectors) -> None:
    random = np.random.default_rng(1)
    for size in (1, 7, 7, 2, 64, 1, 300, 3):
        _assert_rows(executor, random.integers(0, len(expected), size).tolist(), expected)


def an_empty_batch_gets_no_rows(executor: Runtime, expected: Vectors) -> None:
    nothing: tuple[list[int] | NDArray[np.int64], ...] = ([], np.empty(0, np.int64))
    for ids in nothing:
        found = executor.lookup_ids(ids)
        assert found.shape == (0, expected.shape[1]) and found.dtype == np.float32
    _assert_rows(executor, [0], expected)


def ids_outside_the_table_are_refused_before_the_engine_sees_them(executor: Runtime, expected: Vectors) -> None:
    rows = len(expected)
    for ids in ([-1], [rows], [0, -rows], [0, 2**31], [0, 2**32], [0, 2**64 - 1], [2**70], [0.0], [[0]]):
        with pytest.raises(RequestError, match="expected row ids"):
            executor.lookup_ids(ids)  # type: ignore[arg-type]
    _assert_rows(executor, [rows - 1], expected)


def an_answer_belongs_to_its_caller(executor: Runtime, expected: Vectors) -> None:
    first = executor.lookup_ids([0])
    executor.lookup_ids([len(expected) - 1])
    np.testing.assert_array_equal(first, expected[:1])
    first[:] = 99
    _assert_rows(executor, [0], expected)


def threads_that_share_it_get_their_own_rows(executor: Runtime, expected: Vectors) -> None:
    wrong: list[str] = []
    started = threading.Barrier(2)

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        started.wait()
        for _ in range(100):
            ids = random.integers(0, len(expected), int(random.integers(1, 20)))
            try:
                if not np.array_equal(executor.lookup_ids(ids), expected[ids]):
                    wrong.append(f"thread {seed} got other rows for {ids.tolist()}")
            except Exception as error:  # an exception in a thread is lost unless it is kept
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PROMISES = (
    every_row_alone_is_that_of_the_formula,
    a_batch_may_repeat_ids_in_any_order,
    batch_sizes_may_change_from_call_to_call,
    an_empty_batch_gets_no_rows,
    ids_outside_the_table_are_refused_before_the_engine_sees_them,
    an_answer_belongs_to_its_caller,
    threads_that_share_it_get_their_own_rows,
)


def _assert_rows(executor: Runtime, ids: Sequence[int], expected: Vectors) -> None:
    found = executor.lookup_ids(ids)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[ids])


def _sample(rows: int) -> list[int]:
    found: list[int] = np.unique(np.linspace(0, rows - 1, 20).astype(np.int64)).tolist()
    return found
