"""Searching a table in lists: as an exact search finds, nearly; alone and together; within a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed.errors import BundleError, RequestError
from edge_embed.kernels.reference import decode_plane
from edge_embed.search import Searcher
from edge_embed_export.preparing import in_lists
from tests.making import make_bundle, make_topics_in_lists, rows_in_topics, small_source

ROWS, DIMENSIONS = 5000, 24
_SEARCHED = {"norms", "list_ends", "centroids", "centroid_scales", "centroid_norms", "plane", "plane_scales"}


@pytest.fixture(scope="module", params=[None, True], ids=["lists", "plane"])
def listed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle whose table is searched through lists, and one that has a plane in front of its rows."""
    folder = tmp_path_factory.mktemp("listed")
    return make_topics_in_lists(folder / "bundle", ROWS, DIMENSIONS, plane=request.param)


def _cosines(runtime: edge_embed.Runtime, query: NDArray[np.float32]) -> NDArray[np.float64]:
    vectors = runtime.lookup_ids(range(ROWS)).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.asarray(vectors @ query / lengths, np.float64)


class _Watched:
    """Rows that note which runs they are asked for, and whether through a plane."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.runs: list[NDArray[np.int64]] = []
        self.planes: list[Any] = []

    def nearest(self, *asked: Any) -> Any:
        self.runs.append(asked[3])
        self.planes.append(asked[7])
        return self._rows.nearest(*asked)


class _SlowFlash:
    """Pages that the search before had to wait for, or had not."""

    def __init__(self, waited: bool) -> None:
        self.waited = waited
        self.asked: list[int] = []

    @contextmanager
    def compared(self) -> Iterator[None]:
        yield

    def ask(self, rows: NDArray[np.int64]) -> None:
        self.asked += rows.tolist()


def test_a_search_through_lists_finds_nearly_what_an_exact_one_finds(listed: Path) -> None:
    with edge_embed.open(listed) as runtime:
        recipe = runtime.manifest.tables[0].search
        assert recipe is not None and recipe.recall_at_10 >= 0.98 and recipe.queries
        assert recipe.probes < runtime.manifest.tables[0].tensors["list_ends"].shape[0] / 2
        keys = [f"row {i}" for i in range(0, ROWS, 10)]
        exact, found = runtime.search(keys, exact=True), runtime.search(keys)
        shared = [len(set(a.keys) & set(b.keys)) / 10 for a, b in zip(exact, found, strict=True)]
        assert np.mean(shared) >= 0.97
        # Whatever is found has the score that an exact search gives it.
        for a, b in zip(exact, found, strict=True):
            meant, given = (dict(zip(each.keys, each.scores.tolist(), strict=True)) for each in (a, b))
            assert all(meant[key] == given[key] for key in meant.keys() & given.keys())


def test_who_asks_for_one_neighbour_has_as_many_rows_of_the_plane_compared_as_for_ten(listed: Path) -> None:
    queries = np.random.default_rng(12).normal(size=(200, DIMENSIONS)).astype(np.float32)
    with edge_embed.open(listed) as runtime:
        table = runtime.table()
        # The shortest list there is: of the plane's ten best the first need not be the nearest.
        one, ten = table.nearest(queries, 1, shortlist=1), table.nearest(queries, 10, shortlist=1)
        np.testing.assert_array_equal(one.rows[:, 0], ten.rows[:, 0])
        np.testing.assert_array_equal(one.scores[:, 0], ten.scores[:, 0])


def test_an_exact_search_of_a_table_in_lists_is_that_of_all_its_rows(listed: Path) -> None:
    query = np.random.default_rng(5).normal(size=DIMENSIONS).astype(np.float32)
    with edge_embed.open(listed) as runtime:
        cosines = _cosines(runtime, query)
        found = runtime.search(vector=query, k=20, exact=True)
        np.testing.assert_allclose(found.scores, np.sort(cosines)[::-1][:20], atol=1e-4)


def test_many_questions_share_a_scan_and_are_answered_as_each_alone(listed: Path) -> None:
    queries = np.random.default_rng(6).normal(size=(9, DIMENSIONS)).astype(np.float32)
    queries[3] = 0
    with edge_embed.open(listed) as runtime:
        for exact in (False, True):
            together = runtime.search(vector=list(queries), k=5, exact=exact)
            alone = [runtime.search(vector=query, k=5, exact=exact) for query in queries]
            assert [each.keys for each in together] == [each.keys for each in alone]
            np.testing.assert_array_equal([each.scores for each in together], [each.scores for each in alone])
        nothing: list[str] = []
        assert not runtime.search(nothing)
        assert not runtime.search(vector=queries[:0])
        by_key = runtime.search(["row 1", "row 2"], k=3)
        assert "row 1" not in by_key[0].keys and "row 2" not in by_key[1].keys
        with pytest.raises(edge_embed.UnknownKeyError, match="stranger"):
            runtime.search(["row 1", "stranger"])


@pytest.mark.parametrize("k", [1, 11, 500, ROWS - 1, ROWS, ROWS + 5])
def test_as_many_neighbours_are_found_as_are_asked_for_and_there(listed: Path, k: int) -> None:
    with edge_embed.open(listed) as runtime:
        assert len(runtime.search("row 7", k=k)) == min(k, ROWS - 1)
        assert len(runtime.search(vector=np.ones(DIMENSIONS, np.float32), k=k)) == min(k, ROWS)


def test_a_query_that_leaves_out_no_row_finds_all_of_them_beside_one_that_does(listed: Path) -> None:
    with edge_embed.open(listed) as runtime:
        queries = np.random.default_rng(2).normal(size=(2, DIMENSIONS)).astype(np.float32)
        found = runtime.table().nearest(queries, ROWS, np.array([7, -1]), probes=len(_tensor(runtime, "list_ends")))
    assert sorted(found.rows[0].tolist()) == [-1, *(row for row in range(ROWS) if row != 7)]
    assert sorted(found.rows[1].tolist()) == list(range(ROWS))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12, 1e38])
def test_a_query_of_any_length_finds_the_same(listed: Path, size: float) -> None:
    query = np.random.default_rng(7).normal(size=DIMENSIONS).astype(np.float32)
    query /= np.abs(query).max()
    with edge_embed.open(listed) as runtime:
        meant, found = (runtime.search(vector=(query * np.float32(by)), k=5) for by in (1, size))
        assert meant.keys == found.keys
        np.testing.assert_allclose(meant.scores, found.scores, atol=1e-4)


def test_a_deadline_ends_a_search_and_the_answer_says_so(listed: Path) -> None:
    with edge_embed.open(listed) as runtime:
        assert runtime.search("row 7", deadline_ms=60_000).complete
        late = runtime.search("row 7", k=5, exact=True, deadline_ms=1e-6)
        assert not late.complete and len(late)
        for wrong in (0, -1, float("nan"), "soon", True):
            with pytest.raises(RequestError, match="deadline of more than 0 milliseconds"):
                runtime.search("row 7", deadline_ms=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 7])
def test_a_deadline_ends_a_search_through_lists_in_the_likeliest_ones(listed: Path, batch: int) -> None:
    with edge_embed.open(listed) as runtime:
        assert runtime.search("row 7", deadline_ms=60_000).complete
        late = runtime.search([f"row {row}" for row in range(batch)], deadline_ms=1e-6)
        assert all(len(each) and not each.complete for each in late)


def _tensor(runtime: edge_embed.Runtime, name: str) -> NDArray[Any]:
    tensor = runtime.manifest.tables[0].tensors[name]
    kind = {"uint8": np.uint8, "int8": np.int8, "float32": np.float32, "uint32": np.uint32}[tensor.dtype]
    return np.frombuffer(runtime.bundle.tensor(tensor), kind).reshape(tensor.shape)


def test_lists_are_scanned_likeliest_first_and_what_is_somebodys_first_before_what_is_everybodys_second(
    listed: Path,
) -> None:
    queries = np.random.default_rng(8).normal(size=(5, DIMENSIONS)).astype(np.float32)
    with edge_embed.open(listed) as runtime:
        table = runtime.table()
        scales = _tensor(runtime, "centroid_scales")
        centroids = decode_plane(_tensor(runtime, "centroids"), scales, np.arange(len(scales)), DIMENSIONS)
        levels = np.rint(queries / (np.abs(queries).max(axis=1, keepdims=True) / 127))
        cosines = levels @ centroids.T / _tensor(runtime, "centroid_norms")
        ends = _tensor(runtime, "list_ends").astype(np.int64)
        watched = _Watched(table.rows)
        table.rows = watched  # type: ignore[assignment]  # as an engine takes the place of rows
        for query, of_query in zip(queries, cosines, strict=True):
            table.nearest(query[np.newaxis], 10)
            assert watched.runs[-1][:, 1].tolist() == ends[np.argsort(-of_query)][: len(watched.runs[-1])].tolist()
        firsts = {int(runs[0, 1]) for runs in watched.runs}
        table.nearest(queries, 10)
        assert {int(end) for end in watched.runs[-1][: len(firsts), 1]} == firsts


def test_who_asks_for_more_neighbours_has_more_lists_scanned_and_all_rows_where_those_hold_too_few(
    listed: Path,
) -> None:
    query = np.random.default_rng(9).normal(size=(1, DIMENSIONS)).astype(np.float32)
    with edge_embed.open(listed) as runtime:
        table = runtime.table()
        watched = _Watched(table.rows)
        table.rows = watched  # type: ignore[assignment]  # as an engine takes the place of rows
        for k in (10, 11, 30):
            table.nearest(query, k)
        one, two, three = (len(runs) for runs in watched.runs)
        assert (two, three) == (2 * one, 3 * one)
        assert (table.nearest(query, 900, probes=1).rows >= 0).all()
        assert (watched.runs[-1] == [[0, ROWS]]).all()


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("deadline_ns", [0, 1])
def test_where_flash_is_slow_the_shortlist_is_asked_for_and_the_plane_is_scanned_once(
    tmp_path: Path, batch: int, deadline_ns: int
) -> None:
    path = make_topics_in_lists(tmp_path / "bundle", 600, DIMENSIONS, plane=True)
    queries = np.random.default_rng(10).normal(size=(batch, DIMENSIONS)).astype(np.float32)
    without = np.arange(batch)
    with edge_embed.open(path) as runtime:
        model = runtime.manifest.tables[0]
        tensors = {name: _tensor(runtime, name) for name in model.tensors if name in _SEARCHED}
        found = []
        for flash in (_SlowFlash(waited=False), _SlowFlash(waited=True)):
            rows = _Watched(runtime.table().rows)
            searcher = Searcher(model, tensors, flash, "here")  # type: ignore[arg-type]
            found.append(
                searcher.nearest(rows, queries, 5, without, probes=3, shortlist=4, deadline_ns=deadline_ns)  # type: ignore[arg-type]
            )
            assert all((plane is None) is flash.waited for plane in rows.planes)
            kept = set(found[-1].rows[found[-1].rows >= 0].tolist())
            assert kept <= set(flash.asked) if flash.waited else not flash.asked
        np.testing.assert_array_equal(found[1].rows, found[0].rows)
        np.testing.assert_array_equal(found[1].scores, found[0].scores)
        # What was scanned to its end is complete, whatever the clock says.
        assert found[1].complete == found[0].complete >= (not deadline_ns)


def test_the_command_searches_exactly_or_within_a_time(listed: Path) -> None:
    command = [sys.executable, "-m", "edge_embed", "search", str(listed), "--key", "row 7", "-k", "3", "--json"]
    asked = [[], ["--exact"], ["--exact", "--deadline-ms", "0.000001"]]
    answers = [json.loads(subprocess.run([*command, *more], check=True, capture_output=True).stdout) for more in asked]
    assert [answer["complete"] for answer in answers] == [True, True, False]
    assert len(answers[1]["neighbours"]) == 3


def _put_ends(bundle: Path, ends: Sequence[int]) -> None:
    """Write over where the first lists of a bundle end."""
    place = json.loads((bundle / "manifest.json").read_bytes())["models"][0]["tensors"]["list_ends"]
    blob = bundle / place["blob"]
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(place["offset_bytes"])
        file.write(np.array(ends, "<u4").tobytes())


def test_lists_that_do_not_end_one_after_the_other_are_refused(tmp_path: Path) -> None:
    source = rows_in_topics(600, 8)
    path = make_bundle(tmp_path / "bundle", source=source, graphs=(), clustered=True).path
    for ends in ((700,), (3, 2), (2**32 - 1,)):
        _put_ends(path, ends)
        with pytest.raises(BundleError, match="expected lists that end one after the other, the last at row 600"):
            edge_embed.open(path, verify=False)


def test_where_lists_have_no_rows_all_are_scanned(tmp_path: Path) -> None:
    source = rows_in_topics(600, 8)
    path = make_bundle(tmp_path / "bundle", source=source, graphs=(), clustered=True).path
    with edge_embed.open(path) as runtime:
        lists = runtime.manifest.tables[0].tensors["list_ends"].shape[0]
        exact = runtime.search("row 7", k=5, exact=True)
    _put_ends(path, [0] * (lists - 1) + [600])
    query = np.ones((1, 8), np.float32)
    with edge_embed.open(path, verify=False) as runtime:
        assert all((runtime.table().nearest(query, 3, probes=probes).rows >= 0).all() for probes in (1, 4, lists - 1))
        assert runtime.search("row 7", k=5, exact=True).keys == exact.keys


def test_a_table_without_lists_is_searched_exactly(tmp_path: Path) -> None:
    with edge_embed.open(make_bundle(tmp_path / "bundle", source=small_source()).path) as runtime:
        assert runtime.manifest.tables[0].search is None
        assert runtime.search("word1").keys == runtime.search("word1", exact=True).keys


def test_rows_in_lists_keep_their_keys_and_vectors() -> None:
    table = rows_in_topics(600, 8).table
    moved = in_lists(table)
    assert moved.keys is not None and table.keys is not None and moved.clusters is not None
    assert sorted(moved.keys) == sorted(table.keys) and list(moved.keys) != list(table.keys)
    place_of = {key: row for row, key in enumerate(table.keys)}
    np.testing.assert_array_equal(moved.vectors[:], table.vectors[:][[place_of[key] for key in moved.keys]])
    ends = moved.clusters.ends
    assert (np.diff(ends.astype(np.int64)) > 0).all() and ends[-1] == 600
    directions = moved.vectors[:] / np.linalg.norm(moved.vectors[:], axis=1, keepdims=True)
    nearest = (directions @ moved.clusters.centroids.T).argmax(axis=1)
    list_of_row = np.searchsorted(ends, np.arange(600), side="right")
    assert (nearest == list_of_row).mean() > 0.99
    assert len(np.unique(moved.clusters.held_out)) == 300
