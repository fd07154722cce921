"""The whole way by the commands that people type: keys, two versions of a model, a board that follows by a delta."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

import edge_embed
from edge_embed.commands import main
from tests.fakes.bad_servers import RepositoryServer

ROWS, DIMENSIONS = 4000, 64


def _written(path: Path, words: Sequence[str], vectors: NDArray[np.float32]) -> Path:
    """Write vectors as word2vec's text."""
    rows = (f"{word} {' '.join(f'{number:.5f}' for number in row)}" for word, row in zip(words, vectors, strict=True))
    path.write_text(f"{len(words)} {vectors.shape[1]}\n" + "\n".join(rows) + "\n")
    return path


def _models(place: Path) -> tuple[Path, Path]:
    """Return a model, and what training on a little more made of it: some rows moved, some words are new."""
    random = np.random.default_rng(3)
    words = [f"word{i}" for i in range(ROWS)]
    vectors = random.normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    old = _written(place / "old.vec", words, vectors)
    moved = random.random(ROWS) < 0.1
    vectors[moved] += 0.05 * random.normal(size=(moved.sum(), DIMENSIONS)).astype(np.float32)
    more = random.normal(size=(40, DIMENSIONS)).astype(np.float32)
    new = _written(place / "new.vec", [*words, *(f"new{i}" for i in range(40))], np.vstack([vectors, more]))
    return old, new


def test_a_board_follows_a_model_from_its_first_export_by_a_delta(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: object) -> dict[str, Any]:
        assert main([*map(str, words), "--json"]) == 0, capsys.readouterr()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    old, new = _models(tmp_path)
    keys, site, store = tmp_path / "keys", tmp_path / "site", tmp_path / "store"
    publish = ("--repository", site, "--keys", keys)
    say("keys", "create", keys)
    say("export", old, "-o", tmp_path / "v1", "--name", "words", "--version", "1.0.0")
    first = say("publish", tmp_path / "v1", *publish)
    assert first["deltas"] == []

    with RepositoryServer(site) as server:
        update = ("update", store, "--repository", server.address, "--device-id", "a board")
        assert say(*update, "--root", keys / "1.root.json")["plan"] == "full"
        assert server.body_bytes > first["download_bytes"]

    say("export", new, "-o", tmp_path / "v2", "--name", "words", "--version", "1.1.0", "--parent", tmp_path / "v1")
    second = say("publish", tmp_path / "v2", *publish)
    (delta,) = second["deltas"]
    assert delta["parent"] == first["id"]
    with RepositoryServer(site) as server:
        update = ("update", store, "--repository", server.address, "--device-id", "a board")
        found = say(*update)
        # What the wire carried, metadata and all.
        assert server.body_bytes < second["download_bytes"] / 8
    assert (found["outcome"], found["plan"], found["id"]) == ("installed", "delta", second["id"])
    assert found["fetched_bytes"] == delta["size_bytes"]
    status = say("status", store)
    assert (status["active"], status["previous"]) == (second["id"], first["id"])
    assert "made by a delta from" in status["updates"]["last"]["said"]
    with edge_embed.open(store, verify=True) as served, edge_embed.open(tmp_path / "v2") as exported:
        assert np.array_equal(served.lookup(["new7", "word11"]), exported.lookup(["new7", "word11"]))

    assert say("rollback", store)["version"] == "1.0.0"
    with RepositoryServer(site) as server:
        update = ("update", store, "--repository", server.address, "--device-id", "a board")
        assert say(*update)["outcome"] == "up to date"
        # Its operator left it, and takes it again; all of it is here.
        found = say(*update, "--retry")
        assert (found["outcome"], found["fetched_bytes"]) == ("installed", 0)
        assert not [asked for asked in server.asked if asked.path.startswith("blobs")]
    assert say("status", store)["active"] == second["id"]
