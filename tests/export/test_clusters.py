"""Exporting a table in lists: what the command does, what is measured, and who gets none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import RequestError
from edge_embed.kernels.reference import decode_plane
from edge_embed.table import mapped
from edge_embed_export.clusters import FEWEST_ROWS
from edge_embed_export.preparing import Preparing, prepared
from tests.making import make_bundle, rows_in_topics, small_source, small_text_source, with_table


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a matrix just large enough for lists, with its keys beside it."""
    folder = tmp_path_factory.mktemp("saved")
    table = rows_in_topics(FEWEST_ROWS, 8).table
    np.save(folder / "rows.npy", table.vectors[:])
    (folder / "rows.keys.txt").write_bytes(b"\n".join(table.keys or ()))
    return folder / "rows.npy"


def test_the_command_writes_lists_and_says_how_many_are_searched(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bundle"
    asked = ["export", str(saved), "-o", str(target), "--order", "cluster", "--recall", "0.95", "--graphs", "none"]
    assert main([*asked, "--plane", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["notes"]
    model = json.loads((target / "manifest.json").read_bytes())["models"][0]
    assert model["row_order"] == "cluster"
    assert model["search"]["algorithm"] == "lists" and model["search"]["queries"] == 512
    assert 0.95 <= model["search"]["recall_at_10"] < 0.99 and model["search"]["shortlist"] >= 2
    capsys.readouterr()
    assert main(["inspect", str(target)]) == 0
    probes, lists = model["search"]["probes"], model["tensors"]["list_ends"]["shape"][0]
    assert f"{probes} of {lists} lists" in capsys.readouterr().out
    assert main(["verify", str(target)]) == 0


def test_a_plane_and_the_centroids_together_say_where_a_row_points(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    # Of lengths that differ: a direction is what is packed.
    source = rows_in_topics(600, 9)
    lengths = np.linspace(0, 5, 600, dtype=np.float32)[:, np.newaxis]
    make_bundle(
        target,
        source=with_table(source, vectors=source.table.vectors[:] * lengths),
        graphs=(),
        clustered=True,
        plane=True,
    )
    with edge_embed.open(target) as runtime:
        table = runtime.table()
        d, tensors = (
            table.model.dimensions,
            {name: mapped(runtime.bundle, tensor) for name, tensor in table.model.tensors.items()},
        )
        lists = len(tensors["list_ends"])
        centroids = decode_plane(tensors["centroids"], tensors["centroid_scales"], np.arange(lists), d)
        centroids /= tensors["centroid_norms"][:, np.newaxis]
        of_row = np.searchsorted(tensors["list_ends"], np.arange(600), side="right")
        found = centroids[of_row] + decode_plane(tensors["plane"], tensors["plane_scales"], np.arange(600), d)
        vectors = table.rows.decode(np.arange(600))
    meant = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    # Half a step of 4 bits, of what is left of a row.
    assert np.abs(found - meant).max() < 0.1
    assert (
        np.linalg.norm(found - meant, axis=1).mean()
        < 0.08 * np.linalg.norm(meant - centroids[of_row], axis=1).mean() + 0.02
    )


def test_few_rows_stay_in_their_order_and_the_user_is_told() -> None:
    source = prepared(small_source(), Preparing(order="cluster"))
    assert source.table.clusters is None and source.table.row_order == "source"
    assert f"fewer than {FEWEST_ROWS} rows needs no lists" in source.notes[-1]


@pytest.mark.parametrize("more", [[], ["--order", "cluster", "--keep", "500"]])
def test_a_plane_without_lists_to_stand_in_front_of_is_left_out_and_the_user_is_told(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    asked = ["export", str(saved), "--graphs", "none", *more, "-o"]
    assert main([*asked, str(tmp_path / "asked"), "--plane"]) == 0
    assert "note: --plane was left out: it stands in front of a table in lists" in capsys.readouterr().out
    assert main([*asked, str(tmp_path / "json"), "--plane", "--json"]) == 0
    assert "--plane was left out" in json.loads(capsys.readouterr().out)["notes"][-1]
    assert main([*asked, str(tmp_path / "unasked"), "--no-plane"]) == 0
    assert "--plane" not in capsys.readouterr().out


def test_rows_that_are_known_by_number_are_not_moved() -> None:
    with pytest.raises(RequestError, match="--order cluster"):
        prepared(small_text_source(), Preparing(order="cluster"))
    with pytest.raises(RequestError, match="--order cluster"):
        prepared(with_table(small_source(), keys=None, text=None), Preparing(order="cluster"))


@pytest.mark.parametrize("recall", [0, -0.5, 1.01, float("nan")])
def test_a_share_to_find_that_is_none_is_refused(tmp_path: Path, recall: float) -> None:
    with pytest.raises(RequestError, match="--recall: expected a share of more than 0 and at most 1"):
        make_bundle(tmp_path / "bundle", recall=recall)


def test_more_recall_takes_more_lists_and_all_of_it_an_exact_search(tmp_path: Path) -> None:
    source = rows_in_topics(1500, 16)
    probes = []
    for recall in (0.5, 0.9, 0.99):
        report = make_bundle(tmp_path / str(recall), source=source, graphs=(), clustered=True, recall=recall)
        recipe = report.manifest.tables[0].search
        assert recipe is not None
        assert recipe.recall_at_10 >= min(recall, 0.98)
        probes.append(recipe.probes)
    assert probes == sorted(probes) and probes[0] < probes[-1]
    # Noise has no lists: where half of them would have to be searched, all are.
    noise = np.random.default_rng(0).normal(size=(1500, 200)).astype(np.float32)
    keys = tuple(f"row {row}" for row in range(1500))
    source = with_table(small_source(keys=keys), vectors=noise)
    report = make_bundle(tmp_path / "noise", source=source, graphs=(), clustered=True)
    recipe = report.manifest.tables[0].search
    assert recipe is not None and recipe.probes == report.manifest.tables[0].tensors["list_ends"].shape[0]


def test_a_plane_is_added_where_the_rows_would_crowd_the_board(tmp_path: Path) -> None:
    source = rows_in_topics(600, 8)
    for plane, expected in ((None, False), (False, False), (True, True)):
        report = make_bundle(tmp_path / str(plane), source=source, graphs=(), clustered=True, plane=plane)
        model = report.manifest.tables[0]
        assert ("plane" in model.tensors) is expected
        assert model.search is not None and (model.search.shortlist is not None) is expected
    coarse = make_bundle(tmp_path / "pq", source=source, codec="pq:4", graphs=(), clustered=True, plane=True)
    assert "plane" not in coarse.manifest.tables[0].tensors


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "int4", "pq:4", "opq:4", "rq:2"])
def test_every_codec_is_searched_through_lists(tmp_path: Path, codec: str) -> None:
    report = make_bundle(
        tmp_path / "bundle", source=rows_in_topics(800, 16), codec=codec, graphs=(), clustered=True, recall=0.9
    )
    with edge_embed.open(report.path) as runtime:
        keys = [f"row {row}" for row in range(0, 800, 20)]
        pairs = zip(runtime.search(keys), runtime.search(keys, exact=True), strict=True)
        assert np.mean([len(set(a.keys) & set(b.keys)) / 10 for a, b in pairs]) > 0.8


def test_a_large_collection_is_put_in_lists(tmp_path: Path) -> None:
    lines = tuple(f"word{i % 60} word{i // 60 % 60} word{i // 3600}" for i in range(FEWEST_ROWS))
    report = make_bundle(tmp_path / "bundle", source=small_text_source(), graphs=(), collection=lines, recall=0.8)
    collection = report.manifest.tables[1]
    assert collection.row_order == "cluster" and collection.search is not None
    with edge_embed.open(report.path) as runtime:
        assert runtime.search(text=lines[77], k=1, exact=True).scores[0] == pytest.approx(1, abs=1e-3)
        found = runtime.search(text=list(lines[:40]), k=1)
        assert np.mean([each.scores[0] > 0.999 for each in found]) > 0.9
