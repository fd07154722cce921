"""Every codec, from the exporter that stores to the runtime that decodes: what is lost, and that nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.kernels.pure import CODECS, Rows
from edge_embed.kernels.reference import QUERY_LEVELS, decode_rq
from edge_embed_bundle.manifest import CODEC_TENSORS
from edge_embed_export.codebooks import Fit, RqBook
from edge_embed_export.codecs import ENCODERS, encoder
from edge_embed_export.exact import directions
from tests.contracts.executors import Vectors, formula

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.float32(1e38))

#: What each codec can hold: float16 numbers and scales end early.
LARGEST_OF = {"float16": 65504.0, "int4": 6e4} | dict.fromkeys(("float32", "int8", "pq", "opq", "rq"), LARGEST)

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


def _encoded(codec: str, vectors: Vectors) -> dict[str, NDArray[Any]]:
    return {name: tensor[:] for name, tensor in encoder(codec)[1](vectors).items()}


def _decoder(kernels: Any, codec: str, tensors: Mapping[str, NDArray[Any]], dimensions: int) -> Rows:
    """Return what a board makes of tensors: mapped ones cannot be written to."""
    for tensor in tensors.values():
        tensor.flags.writeable = False
    rows: Rows = kernels.open_rows(codec, tensors, dimensions)
    return rows


def test_a_codec_that_one_side_knows_the_other_side_and_the_format_know_too() -> None:
    assert set(ENCODERS) == set(CODEC_TENSORS) == set(CODECS) - {"plane"}


@pytest.mark.parametrize("codec", ENCODERS)
@given(vectors=_tables())
@settings(deadline=None)
def test_a_codec_stores_the_tensors_of_the_format_and_decodes_them_by_its_formula(
    kernels: Any, codec: str, vectors: Vectors
) -> None:
    vectors = np.clip(vectors, -LARGEST_OF[codec], LARGEST_OF[codec])
    before = vectors.copy()
    tensors = _encoded(codec, vectors)
    n, d = vectors.shape
    m, *_, last = tensors["codebooks"].shape if "codebooks" in tensors else (0, 0)
    axes = {"n": n, "d": d, "h": -(-d // 2), "g": -(-d // 32), "256": 256, "m": m, "s": last, "w": m * last}
    described = {name: (dtype, tuple(axes[axis] for axis in shape)) for name, (dtype, shape) in _format(codec).items()}
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == described
    decoder = _decoder(kernels, codec, tensors, vectors.shape[1])
    ids = np.array([*range(len(vectors)), 0, len(vectors) - 1])
    decoded = decoder.decode(ids)
    assert decoded.dtype == np.float32 and decoded.flags.writeable
    assert decoded.tobytes() == formula(codec, tensors, vectors.shape[1])[ids].tobytes()
    assert decoder.decode(ids[:0]).shape == (0, vectors.shape[1])
    np.testing.assert_array_equal(vectors, before)


def _format(codec: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return dict(CODEC_TENSORS[codec])


@given(vectors=_tables())
@settings(deadline=None)
def test_float32_loses_nothing(kernels: Any, vectors: Vectors) -> None:
    decoded = _decoder(kernels, "float32", _encoded("float32", vectors), vectors.shape[1]).decode(
        np.arange(len(vectors))
    )
    assert decoded.tobytes() == vectors.tobytes()


@given(vectors=_tables())
@settings(deadline=None, max_examples=300)
def test_int8_is_off_by_half_a_step_of_the_stored_scale_at_most(vectors: Vectors) -> None:
    tensors = _encoded("int8", vectors)
    scales = tensors["scales"].astype(np.float64)[:, np.newaxis]
    codes = tensors["rows"].astype(np.float64)
    assert np.abs(codes).max(initial=0) <= 127
    stored = tensors["scales"] > 0
    errors = np.abs(codes * scales - vectors.astype(np.float64))
    assert (errors[stored] <= HALF_A_STEP * scales[stored]).all()
    # The whole range of codes is used, whatever the row's size: this is what keeps recall.
    assert (np.abs(codes[stored]).max(axis=1, initial=0) >= 120).all()


def test_int8_takes_the_scale_that_leaves_a_row_the_least_error() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    tensors = _encoded("int8", vectors)
    errors = np.square(tensors["rows"] * tensors["scales"][:, np.newaxis] - vectors).sum(axis=1)
    plain = np.abs(vectors).max(axis=1, keepdims=True) / 127
    whole_range = np.square(np.rint(vectors / plain) * plain - vectors).sum(axis=1)
    assert (errors <= whole_range * 1.0001).all()
    assert errors.sum() < 0.95 * whole_range.sum()


@given(vectors=_tables())
@settings(deadline=None)
def test_int8_stores_a_scale_of_zero_for_rows_that_are_zeros_or_too_small_to_divide(vectors: Vectors) -> None:
    tensors = _encoded("int8", vectors)
    largest = np.abs(vectors).max(axis=1).astype(np.float64)
    gone = tensors["scales"] == 0
    assert (largest[gone] < 127 * TINY * (1 + 1e-6)).all()
    assert (largest[~gone] >= 127 * TINY * (1 - 1e-6)).all()
    assert not tensors["rows"][gone].any()
    assert np.isfinite(tensors["scales"]).all() and (tensors["scales"] >= 0).all()


def test_rq_of_more_bytes_than_float32_is_refused() -> None:
    with pytest.raises(RequestError, match="expected at most 16 codes for a row, which is float32's size, found rq:17"):
        _encoded("rq:17", np.ones((3, 4), np.float32))


def test_int8_divides_by_the_scale_that_is_stored_not_by_a_finer_one() -> None:
    # 1/127 is no float32: with the unrounded scale a value at the border of two codes falls to the wrong side.
    vectors = np.linspace(-1, 1, 4001, dtype=np.float32)[np.newaxis]
    tensors = _encoded("int8", vectors)
    expected = np.rint(vectors / tensors["scales"])
    np.testing.assert_array_equal(tensors["rows"], expected)
    np.testing.assert_array_equal(_encoded("int8", -vectors)["rows"], -tensors["rows"])


@given(
    codes=arrays.arrays(np.int8, (5, 4)),
    scales=arrays.arrays(np.float32, 5, elements=st.floats(0, 2.0**100, width=32)),
    ids=st.lists(st.integers(0, 4), max_size=9),
)
@settings(deadline=None)
def test_decoding_int8_only_multiplies_a_code_by_the_scale_of_its_row(
    kernels: Any, codes: NDArray[np.int8], scales: Vectors, ids: list[int]
) -> None:
    decoded = kernels.open_rows("int8", {"rows": codes, "scales": scales}, 4).decode(np.array(ids, np.int64))
    by_hand = [[np.float32(code) * scales[row] for code in codes[row]] for row in ids]
    assert decoded.tobytes() == np.array(by_hand, np.float32).reshape(len(ids), 4).tobytes()


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("rows", [1, 3, 4096, 5000])
def test_scores_are_the_dot_products_of_the_decoded_rows(kernels: Any, codec: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    vectors = random.normal(size=(rows, 24)).astype(np.float32)
    vectors[rows // 2] = 0
    query = random.normal(size=24).astype(np.float32)
    decoder = _decoder(kernels, codec, _encoded(codec, vectors), vectors.shape[1])
    decoded = decoder.decode(np.arange(rows)).astype(np.float64)
    exact = decoded @ query.astype(np.float64)
    found = decoder.scores(query)
    assert found.shape == (rows,) and found.dtype == np.float32
    # A query of int8 rows is rounded to 16 bits.
    rounded = np.abs(decoded).sum(axis=1) * np.abs(query).max() / (2 * QUERY_LEVELS) if codec == "int8" else 0
    assert (np.abs(found - exact) <= 1e-5 + 1e-5 * np.abs(exact) + rounded).all()


@given(vectors=_tables())
@settings(deadline=None, max_examples=300)
def test_int4_is_off_by_half_a_step_or_by_what_was_cut_from_the_largest(kernels: Any, vectors: Vectors) -> None:
    vectors = np.clip(vectors, -LARGEST_OF["int4"], LARGEST_OF["int4"])
    tensors = _encoded("int4", vectors)
    decoded = _decoder(kernels, "int4", tensors, vectors.shape[1]).decode(np.arange(len(vectors)))
    errors = np.abs(decoded.astype(np.float64) - vectors)
    # The scale with the least error is never worse than one that keeps the largest number whole.
    largest = np.abs(vectors).max(axis=1)
    usable = largest >= 7 * float(np.finfo(np.float16).tiny)
    steps = largest.astype(np.float64) / 7
    bound = np.sqrt(vectors.shape[1]) * steps * 0.501 + largest * 2.0**-10 * np.sqrt(vectors.shape[1])
    assert (np.sqrt(np.square(errors).sum(axis=1))[usable] <= bound[usable]).all()


@pytest.mark.parametrize("codec", ["float16", "int4"])
def test_numbers_that_a_half_cannot_hold_are_refused(codec: str) -> None:
    with pytest.raises(RequestError, match=r"expected numbers that .* can hold, up to 65504, found 1e\+06"):
        ENCODERS[codec](np.array([[1.0, 1e6]], np.float32))


@pytest.mark.parametrize("codec", ["pq", "opq", "rq"])
@pytest.mark.parametrize("rows", [1, 256])
def test_a_table_of_no_more_rows_than_centroids_keeps_their_directions(kernels: Any, codec: str, rows: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(rows, 10)).astype(np.float32)
    decoded = _decoder(kernels, codec, _encoded(codec, vectors), 10).decode(np.arange(rows))
    np.testing.assert_allclose(directions(decoded), directions(vectors), atol=1e-3 if codec == "opq" else 1e-6)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), np.linalg.norm(vectors, axis=1), rtol=0.01)


@pytest.mark.parametrize("codec", ["pq:8", "opq:8", "rq:4"])
def test_codes_keep_the_length_of_every_row_and_most_of_its_direction(kernels: Any, codec: str) -> None:
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(2000, 4)) @ random.normal(size=(4, 16))).astype(np.float32)
    vectors *= np.logspace(-2, 2, 2000, dtype=np.float32)[:, np.newaxis]
    vectors[7] = 0
    name, _ = encoder(codec)
    tensors = _encoded(codec, vectors)
    assert tensors["rows"].shape == (2000, int(codec.partition(":")[2]))
    decoded = _decoder(kernels, name, tensors, 16).decode(np.arange(2000))
    assert not decoded[7].any()
    rest = np.arange(2000) != 7
    before, after = (np.linalg.norm(each.astype(np.float64), axis=1)[rest] for each in (vectors, decoded))
    # 255 levels over a range of 10,000 or more (the shortest decoded rows count, too): half a level is a few percent.
    np.testing.assert_allclose(after, before, rtol=0.04)
    assert (directions(vectors) * directions(decoded)).sum(axis=1)[rest].mean() > 0.97


def test_fitting_all_codebooks_together_comes_nearer_than_one_after_the_other() -> None:
    faiss = pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    vectors = random.normal(size=(600, 6)).astype(np.float32)
    book = RqBook.trained(vectors, 2)
    codes = book.codes(vectors)
    fit = Fit(2, 6)
    for block in (slice(0, 250), slice(250, 600)):
        fit.add(vectors[block], codes[block])
    alone = faiss.ResidualQuantizer(6, 2, 8)
    alone.cp.min_points_per_centroid = 1
    alone.train(vectors)
    before = alone.decode(alone.compute_codes(vectors))
    ones, ids = np.ones(len(codes), np.float32), np.arange(len(codes))
    assert np.square(decode_rq(codes, fit.codebooks(), ones, ids) - vectors).sum() < np.square(before - vectors).sum()


@pytest.mark.parametrize(
    ("text", "name", "codes"),
    [
        ("int8", "int8", None),
        ("pq", "pq", 6),
        ("pq:5", "pq", 4),
        ("pq:99", "pq", 16),
        ("rq:7", "rq", 7),
        ("rq", "rq", 3),
    ],
)
def test_a_codec_is_named_with_its_codes_a_row(text: str, name: str, codes: int | None) -> None:
    found, encode = encoder(text)
    assert found == name
    tensors = encode(np.ones((3, 16), np.float32))
    assert codes is None or tensors["rows"].shape[1] == codes


@pytest.mark.parametrize("text", ["", "int3", "int8:4", "pq:", "pq:0", "pq:x", "rq:-1", "rq:10000", "float32:1", "PQ"])
def test_what_is_no_codec_is_refused_with_examples_of_one(text: str) -> None:
    with pytest.raises(RequestError, match="expected a codec"):
        encoder(text)
