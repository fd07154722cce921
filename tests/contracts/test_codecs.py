"""Every codec, from the exporter that stores to the runtime that decodes: what is lost, and that nothing else is."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed.codecs import CODECS, Rows
from edge_embed_bundle.manifest import CODEC_TENSORS
from edge_embed_export.codecs import ENCODERS, Encoded, encode_int8
from tests.contracts.executors import Vectors, formula

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.float32(1e38))

#: Rounding a quotient to float32 moves a code by 127 * 2**-24 of a step at most.
HALF_A_STEP = 0.5001


def _rows(dimensions: int) -> st.SearchStrategy[list[float]]:
    """Return rows as trainers leave them, and as they do not: zeros, constants, extremes."""
    numbers = st.floats(-LARGEST, LARGEST, width=32)
    constant = st.sampled_from([0.0, -0.0, 1.0, -3.5, 1e38, -1e38, TINY, 127 * TINY, 126.9 * TINY, 1e-40, -1e-45])
    return st.one_of(
        constant.map(lambda number: [number] * dimensions),
        st.lists(numbers, min_size=dimensions, max_size=dimensions),
        st.lists(st.floats(-1, 1, width=32), min_size=dimensions, max_size=dimensions),
    )


def _tables() -> st.SearchStrategy[Vectors]:
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 9))
    return shapes.flatmap(
        lambda shape: st.lists(_rows(shape[1]), min_size=shape[0], max_size=shape[0]).map(
            lambda rows: np.array(rows, np.float32)
        )
    )


def _decoder(codec: str, tensors: Encoded) -> Rows:
    """Return what a board makes of tensors: mapped ones cannot be written to."""
    for tensor in tensors.values():
        tensor.flags.writeable = False
    return CODECS[codec](tensors)


def test_a_codec_that_one_side_knows_the_other_side_and_the_format_know_too() -> None:
    assert set(ENCODERS) == set(CODECS) == set(CODEC_TENSORS)


@pytest.mark.parametrize("codec", ENCODERS)
@given(vectors=_tables())
@settings(deadline=None)
def test_a_codec_stores_the_tensors_of_the_format_and_decodes_them_by_its_formula(codec: str, vectors: Vectors) -> None:
    before = vectors.copy()
    tensors = ENCODERS[codec](vectors)
    axes = {"n": vectors.shape[0], "d": vectors.shape[1]}
    described = {name: (dtype, tuple(axes[axis] for axis in shape)) for name, (dtype, shape) in _format(codec).items()}
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == described
    decoder = _decoder(codec, tensors)
    ids = np.array([*range(len(vectors)), 0, len(vectors) - 1])
    decoded = decoder.decode(ids)
    assert decoded.dtype == np.float32 and decoded.flags.writeable
    assert decoded.tobytes() == formula(codec, vectors)[ids].tobytes()
    assert decoder.decode(ids[:0]).shape == (0, vectors.shape[1])
    np.testing.assert_array_equal(vectors, before)


def _format(codec: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return dict(CODEC_TENSORS[codec])


@given(vectors=_tables())
@settings(deadline=None)
def test_float32_loses_nothing(vectors: Vectors) -> None:
    decoded = _decoder("float32", ENCODERS["float32"](vectors)).decode(np.arange(len(vectors)))
    assert decoded.tobytes() == vectors.tobytes()


@given(vectors=_tables())
@settings(deadline=None, max_examples=300)
def test_int8_is_off_by_half_a_step_of_the_stored_scale_at_most(vectors: Vectors) -> None:
    tensors = encode_int8(vectors)
    scales = tensors["scales"].astype(np.float64)[:, np.newaxis]
    codes = tensors["rows"].astype(np.float64)
    assert np.abs(codes).max(initial=0) <= 127
    stored = tensors["scales"] > 0
    errors = np.abs(codes * scales - vectors.astype(np.float64))
    assert (errors[stored] <= HALF_A_STEP * scales[stored]).all()
    # The whole range of codes is used, whatever the row's size: this is what keeps recall.
    assert (np.abs(codes[stored]).max(axis=1, initial=0) == 127).all()


@given(vectors=_tables())
@settings(deadline=None)
def test_int8_stores_a_scale_of_zero_for_rows_that_are_zeros_or_too_small_to_divide(vectors: Vectors) -> None:
    tensors = encode_int8(vectors)
    largest = np.abs(vectors).max(axis=1).astype(np.float64)
    gone = tensors["scales"] == 0
    assert (largest[gone] < 127 * TINY * (1 + 1e-6)).all()
    assert (largest[~gone] >= 127 * TINY * (1 - 1e-6)).all()
    assert not tensors["rows"][gone].any()
    assert np.isfinite(tensors["scales"]).all() and (tensors["scales"] >= 0).all()


def test_int8_divides_by_the_scale_that_is_stored_not_by_a_finer_one() -> None:
    # 1/127 is no float32: with the unrounded scale a value at the border of two codes falls to the wrong side.
    vectors = np.linspace(-1, 1, 4001, dtype=np.float32)[np.newaxis]
    tensors = encode_int8(vectors)
    expected = np.rint(vectors / tensors["scales"])
    np.testing.assert_array_equal(tensors["rows"], expected)
    np.testing.assert_array_equal(encode_int8(-vectors)["rows"], -tensors["rows"])


@given(
    codes=arrays.arrays(np.int8, (5, 4)),
    scales=arrays.arrays(np.float32, 5, elements=st.floats(0, 2.0**100, width=32)),
    ids=st.lists(st.integers(0, 4), max_size=9),
)
@settings(deadline=None)
def test_decoding_int8_only_multiplies_a_code_by_the_scale_of_its_row(
    codes: NDArray[np.int8], scales: Vectors, ids: list[int]
) -> None:
    decoded = CODECS["int8"]({"rows": codes, "scales": scales}).decode(np.array(ids, np.int64))
    by_hand = [[np.float32(code) * scales[row] for code in codes[row]] for row in ids]
    assert decoded.tobytes() == np.array(by_hand, np.float32).reshape(len(ids), 4).tobytes()


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("rows", [1, 3, 4096, 5000])
def test_scores_are_the_dot_products_of_the_decoded_rows(codec: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    vectors = random.normal(size=(rows, 24)).astype(np.float32)
    vectors[rows // 2] = 0
    query = random.normal(size=24).astype(np.float32)
    decoder = _decoder(codec, ENCODERS[codec](vectors))
    exact = decoder.decode(np.arange(rows)).astype(np.float64) @ query.astype(np.float64)
    found = decoder.scores(query)
    assert found.shape == (rows,) and found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
