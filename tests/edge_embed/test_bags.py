"""Bags are those of ``nn.EmbeddingBag``: by golden values computed by hand, and beside torch where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed.bags import error_bound
from edge_embed.errors import RequestError, SpaceMismatchError, UnknownKeyError
from edge_embed.kernels import hash_key, pool
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import BagRecipe
from edge_embed_export.options import Hashing
from tests.making import make_bundle, small_source, tables_source, vectors_of, with_table

ROWS = np.array([[1, -2], [3, 4], [-5, 0.5], [0, 0], [10, 20]], np.float32)
IDS = [1, 2, 4, 0, 2, 2]
OFFSETS = [0, 3, 3, 5]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Five rows of two numbers as ``five``; its twin that pads and hashes; and a wider table of ids."""
    source = tables_source({"five": ROWS.shape, "hashed": ROWS.shape, "wide": (50, 7)})
    for table in source.tables[:2]:
        np.asarray(table.vectors)[:] = ROWS
    bags = {"five": BagRecipe("mean"), "hashed": BagRecipe("sum", 0), "wide": BagRecipe("max")}
    made = make_bundle(
        tmp_path_factory.mktemp("bags") / "bundle",
        source=source,
        codec="float32",
        graphs=(),
        bags=bags,
        hashes={"hashed": Hashing(first_row=1)},
    )
    with edge_embed.open(made.path) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A table with keys whose unknown ones are hashed."""
    source = with_table(small_source(dimensions=3), text=None)
    path = tmp_path_factory.mktemp("words") / "bundle"
    made = make_bundle(path, source=source, codec="float32", graphs=(), hashes={"table": Hashing(4, 10, 7)})
    with edge_embed.open(made.path) as runtime:
        yield runtime


#: Bags of IDS by OFFSETS: rows (1, 2, 4), none, (0, 2), (2,).
BY_HAND: dict[str, list[list[float]]] = {
    "sum": [[8, 24.5], [0, 0], [-4, -1.5], [-5, 0.5]],
    "mean": [[8 / 3, 24.5 / 3], [0, 0], [-2, -0.75], [-5, 0.5]],
    "max": [[10, 20], [0, 0], [1, 0.5], [-5, 0.5]],
}


@pytest.mark.parametrize("mode", BY_HAND)
def test_a_bag_is_the_sum_the_mean_or_the_largest_of_its_rows_and_an_empty_one_is_zeros(
    tables: Runtime, mode: str
) -> None:
    expected = np.array(BY_HAND[mode], np.float32)
    found = tables.bag(IDS, OFFSETS, mode=mode)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(tables.bag([[1, 2, 4], [], [0, 2], [2]], mode=mode), found)
    np.testing.assert_array_equal(tables.bag(IDS, [*OFFSETS, 6], include_last_offset=True, mode=mode), found)
    np.testing.assert_array_equal(tables.bag([1, 2, 4], mode=mode), found[0])
    np.testing.assert_array_equal(tables.bag(np.array([[0, 2], [2, 2]]), mode=mode)[0], found[2])
    assert tables.bag([], mode=mode).tolist() == [0, 0]
    assert tables.bag(np.empty((0, 3), np.int64), mode=mode).shape == (0, 2)
    assert tables.bag([], [], mode=mode).shape == (0, 2)
    assert tables.bag([[], []], mode=mode).tolist() == [[0, 0], [0, 0]]


def test_weights_multiply_rows_before_they_are_added(tables: Runtime) -> None:
    weights = [0.5, -1, 2, 1, 0, 3]
    expected: list[list[float]] = [[26.5, 41.5], [0, 0], [1, -2], [-15, 1.5]]
    found = tables.bag(IDS, OFFSETS, mode="sum", weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    ragged = tables.bag([[1, 2, 4], [], [0, 2], [2]], mode="sum", weights=[[0.5, -1, 2], [], [1, 0], [3]])
    np.testing.assert_array_equal(ragged, found)
    square = tables.bag(np.array([[0, 2]]), mode="sum", weights=np.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(square, found[2:3])


def test_the_row_that_pads_is_left_out_and_not_counted(tables: Runtime) -> None:
    for mode, expected in {"sum": [-5, 0.5], "mean": [-5, 0.5], "max": [-5, 0.5]}.items():
        assert tables.bag([0, 2, 0], mode=mode, padding_row=0).tolist() == expected
        assert tables.bag([0, 0], mode=mode, padding_row=0).tolist() == [0, 0]
    assert tables.bag([0, 2], mode="sum", padding_row=0, weights=[7, 2]).tolist() == [-10, 1]
    # The manifest's word holds where the caller gives none, and -1 takes it back.
    assert tables.bag([0, 2], model="hashed").tolist() == [-5, 0.5]
    assert tables.bag([0, 2], model="hashed", padding_row=-1).tolist() == [-4, -1.5]
    # Alone, the row that pads is a row as others are.
    assert tables.lookup_ids([0], model="hashed").tolist() == [[1, -2]]


def test_unknown_ids_are_hashed_by_the_remainder_of_the_floor(tables: Runtime) -> None:
    # Rows 1 to 4 are theirs, so none becomes the row that pads.
    for unknown, row in {5: 2, 8: 1, 11: 4, -1: 4, -4: 1, 2**62: 1, 2**64 - 1: 4}.items():
        assert tables.bag([unknown], model="hashed").tolist() == ROWS[row].tolist(), unknown
        assert tables.lookup_ids([unknown], model="hashed").tolist() == [ROWS[row].tolist()]
    assert tables.bag([5, 1], model="hashed").tolist() == (ROWS[2] + ROWS[1]).tolist()
    with pytest.raises(RequestError, match="expected row ids from 0 to 4, found 5 to 5"):
        tables.bag([5], model="hashed", unknown="error")
    with pytest.raises(RequestError, match="expected a table that hashes what is unknown"):
        tables.bag([5], unknown="hash")


def test_unknown_keys_are_hashed_left_out_or_refused(words: Runtime) -> None:
    known = words.lookup("word1", unknown="error")
    row = 4 + hash_key(b"stranger", 7) % 10
    stranger = words.lookup_ids([row])[0]
    np.testing.assert_array_equal(words.lookup("stranger"), stranger)
    np.testing.assert_array_equal(words.lookup(["word1", "stranger"]), [known, stranger])
    np.testing.assert_array_equal(words.bag(["word1", b"stranger"], mode="sum"), known + stranger)
    np.testing.assert_array_equal(words.bag([["word1", "stranger"], []], unknown="zeros"), [known, np.zeros(3)])
    with pytest.raises(UnknownKeyError, match="stranger"):
        words.bag(["stranger"], unknown="error")


def test_keys_of_a_table_without_any_are_all_hashed_or_refused(tables: Runtime) -> None:
    rows = [1 + hash_key(key.encode(), 0) % 4 for key in ("a", "word")]
    np.testing.assert_array_equal(tables.bag(["a", "word"], model="hashed"), ROWS[rows[0]] + ROWS[rows[1]])
    np.testing.assert_array_equal(tables.lookup("a", model="hashed"), ROWS[rows[0]])
    with pytest.raises(RequestError, match="expected a table with a key index, found one of row ids alone"):
        tables.bag(["a"])


def test_one_call_answers_all_tables_by_their_own_recipes(tables: Runtime) -> None:
    asked: dict[str, Any] = {
        "wide": [[3, 4], [49]],
        "hashed": edge_embed.Bag(IDS, OFFSETS, weights=[1, 2, 3, 4, 5, 6]),
        "five": [1, 2],
    }
    found = tables.bags(asked)
    assert list(found) == ["wide", "hashed", "five"]
    np.testing.assert_array_equal(found["wide"], tables.bag([[3, 4], [49]], model="wide", mode="max"))
    np.testing.assert_array_equal(
        found["hashed"], tables.bag(IDS, OFFSETS, model="hashed", mode="sum", padding_row=0, weights=[1, 2, 3, 4, 5, 6])
    )
    assert found["five"].tolist() == [-1, 2.25]
    with pytest.raises(RequestError, match="expected one of the tables five, hashed, wide, found 'other'"):
        tables.bags({"other": [1]})


def test_ids_and_weights_are_taken_however_they_lie_in_memory(tables: Runtime) -> None:
    table = np.array([[1, 7], [4, 7], [2, 7]])
    ids, weights = table[:, 0], np.arange(6, dtype=np.float32)[::2]
    unaligned = np.frombuffer(b"\0" + ids.tobytes(), np.int64, offset=1)
    for same in (ids, ids[::-1].copy()[::-1], unaligned, ids.astype(np.longlong), ids.astype(np.uint16), ids.tolist()):
        np.testing.assert_array_equal(tables.lookup_ids(same), ROWS[[1, 4, 2]])
        np.testing.assert_array_equal(tables.table("five").decode(np.asarray(same)), ROWS[[1, 4, 2]])
        pooled = tables.bag(same, mode="sum", weights=weights)
        np.testing.assert_array_equal(pooled, tables.bag([1, 4, 2], mode="sum", weights=[0, 2, 4]))
        weighted = tables.bags({"hashed": edge_embed.Bag(same, weights=weights)})["hashed"]
        np.testing.assert_array_equal(weighted, pooled)
    np.testing.assert_array_equal(tables.bag(np.broadcast_to(np.int64(4), (2, 3)), mode="mean"), ROWS[[4, 4]])


def test_each_table_has_its_own_space_and_vectors_of_another_are_refused(tables: Runtime) -> None:
    spaces = {tables.table(name).space.id for name in ("five", "wide")}
    assert len(spaces) == 2 and tables.space.id == tables.table("five").space.id
    assert tables.table("wide").space.dimensions == 7
    with pytest.raises(RequestError, match="expected a table that keeps its keys"):
        tables.search(vector=np.zeros(7, np.float32), model="wide")
    with pytest.raises(SpaceMismatchError):
        tables.search(vector=edge_embed.Stamped(np.zeros(7, np.float32), "0" * 64), model="wide")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key alone": ({"ids": "a"}, "expected a list of keys or row ids, found the key 'a' alone"),
    "keys beside ids": ({"ids": ["a", 1]}, "expected keys alone or row ids alone"),
    "ids beside keys": ({"ids": [1, "a"]}, "expected keys alone or row ids alone"),
    "ids beside keys in a list of bags": ({"ids": [(2, "a")]}, "expected keys alone or row ids alone"),
    "keys and ids in two bags": ({"ids": [["a"], [1]]}, "expected keys alone or row ids alone"),
    "numbers that are not whole": ({"ids": [0.5]}, "expected row ids as a list of whole numbers, found float64"),
    "whole numbers beyond 64 bits": ({"ids": [2**70]}, "expected row ids as a list of whole numbers"),
    "lists beside ids": ({"ids": [1, [2]]}, "expected lists of row ids, or one list of them, found both"),
    "three axes": ({"ids": np.zeros((1, 1, 1), int)}, r"expected row ids as a list of whole numbers, found int64"),
    "an id outside": ({"ids": [[0], [5]]}, "expected row ids from 0 to 4, found 0 to 5"),
    "offsets that begin late": ({"ids": [1, 2], "offsets": [1]}, r"expected offsets that rise from 0 to the 2 ids"),
    "offsets that fall": ({"ids": [1, 2], "offsets": [0, 2, 1]}, r"found \[0, 2, 1\]"),
    "offsets beyond the ids": ({"ids": [1, 2], "offsets": [0, 3]}, "expected offsets that rise"),
    "no offsets for ids": ({"ids": [1], "offsets": []}, "expected offsets that rise"),
    "offsets of floats": ({"ids": [1], "offsets": [0.0]}, "expected offsets as a list of whole numbers"),
    "an end without offsets": ({"ids": [1], "include_last_offset": True}, "expected offsets beside"),
    "an end that is none": ({"ids": [1], "offsets": [0], "include_last_offset": True}, "expected offsets that rise"),
    "another mode": ({"ids": [1], "mode": "min"}, "expected a mode of sum, mean, max, found 'min'"),
    "weights of a mean": ({"ids": [1], "weights": [1.0]}, "expected weights with the mode sum alone"),
    "too few weights": ({"ids": [1, 2], "weights": [1.0], "mode": "sum"}, "expected 2 finite weights"),
    "weights in other bags": ({"ids": [[1], [2]], "weights": [[1, 2], []], "mode": "sum"}, "expected a weight for"),
    "weights of another shape": ({"ids": np.zeros((1, 2), int), "weights": [1, 2], "mode": "sum"}, "weights of shape"),
    "a weight that is no number": ({"ids": [1], "weights": ["x"], "mode": "sum"}, "expected weights as a list"),
    "a weight without an end": ({"ids": [1], "weights": [np.inf], "mode": "sum"}, "expected 1 finite weights"),
    "a padding row outside": ({"ids": [1], "padding_row": 5}, "expected a padding row below 5"),
    "another policy": ({"ids": [1], "unknown": "guess"}, "expected unknown to be one of error, zeros, hash"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_bag_is_refused_with_what_was_expected(tables: Runtime, case: str) -> None:
    given_, says = WRONG[case]
    with pytest.raises(RequestError, match=says):
        tables.bag(**given_)


def _one_by_one(vectors: NDArray[np.float32], counts: list[int], mode: str) -> NDArray[np.float32]:
    """Return pooled runs, added a row at a time."""
    pooled = np.zeros((len(counts), vectors.shape[1]), np.float32)
    at = 0
    for bag, count in enumerate(counts):
        for place in range(count):
            row = vectors[at + place]
            if place == 0:
                pooled[bag] = row
            else:
                pooled[bag] = np.maximum(pooled[bag], row) if mode == "max" else pooled[bag] + row
        if mode == "mean" and count:
            pooled[bag] /= np.float32(count)
        at += count
    return pooled


@pytest.mark.parametrize("mode", BY_HAND)
@given(counts=st.lists(st.integers(0, 40), max_size=12), width=st.integers(1, 9), seed=st.integers(0, 9))
@settings(deadline=None)
def test_rows_are_added_in_float32_one_after_the_other(mode: str, counts: list[int], width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(sum(counts), width)).astype(np.float32)
    found = pool(vectors, np.array(counts, np.int64), mode)
    np.testing.assert_array_equal(found, _one_by_one(vectors, counts, mode))


@pytest.mark.parametrize("counts", [[1000], [1000, 3], [0, 5000, 700, 2]])
@pytest.mark.parametrize("width", [1, 2, 64])
def test_long_bags_are_added_in_the_same_order(counts: list[int], width: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(sum(counts), width)).astype(np.float32)
    np.testing.assert_array_equal(pool(vectors, np.array(counts), "sum"), _one_by_one(vectors, counts, "sum"))


@given(seed=st.integers(0, 99), count=st.integers(1, 64))
@settings(deadline=None)
def test_another_order_of_additions_stays_within_the_bound(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    there, back = (pool(each, np.array([count]), "sum") for each in (vectors, vectors[::-1].copy()))
    assert np.abs(there - back).max() <= error_bound(vectors, count)


@pytest.mark.parametrize("mode", BY_HAND)
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("last", [False, True])
@given(bags=st.lists(st.lists(st.integers(0, 49), max_size=9), min_size=1, max_size=8), weighted=st.booleans())
@settings(deadline=None, max_examples=40)
def test_bags_equal_those_of_torch(
    tables: Runtime, mode: str, padding: int | None, last: bool, bags: list[list[int]], weighted: bool
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'edge-embed[torch]')")
    rows = tables.lookup_ids(range(50), model="wide")
    flat = [row for bag in bags for row in bag]
    ends = np.cumsum([0, *map(len, bags)]).tolist()
    offsets = ends if last else ends[:-1]
    weights = np.linspace(-2, 2, len(flat)).astype(np.float32) if weighted and mode == "sum" else None
    module = torch.nn.EmbeddingBag.from_pretrained(
        torch.from_numpy(rows), mode=mode, padding_idx=padding, include_last_offset=last
    )
    expected = module(
        torch.tensor(flat, dtype=torch.int64),
        torch.tensor(offsets, dtype=torch.int64),
        per_sample_weights=None if weights is None else torch.from_numpy(weights),
    )
    found = tables.bag(
        flat,
        offsets,
        model="wide",
        mode=mode,
        weights=weights,
        include_last_offset=last,
        padding_row=-1 if padding is None else padding,
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6, rtol=1e-6)


def test_a_table_with_keys_pools_them(tmp_path: Path) -> None:
    source = with_table(small_source(dimensions=4), text=None)
    made = make_bundle(tmp_path / "bundle", source=source, codec="float32", graphs=(), bags={"*": BagRecipe("mean")})
    rows = vectors_of(source)
    with edge_embed.open(made.path) as runtime:
        found = runtime.bag([["word1", "word3"], [b"word2"]])
        np.testing.assert_allclose(found, [rows[[1, 3]].mean(axis=0), rows[2]], rtol=1e-6)
        np.testing.assert_array_equal(runtime.bag([[1, 3], [2]]), found)
        assert all(outcome.passed for outcome in runtime.check_golden(["bag"]))
