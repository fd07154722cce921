"""``edge-embed update`` as a process: what it says, what it leaves, and what a process that serves never loads."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

import edge_embed
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.store import Store
from edge_embed_export.publishing.repository import RollOut
from tests.fakes.bad_servers import RepositoryServer
from tests.fakes.weak_flash import everything, replayed
from tests.repositories import Publisher

COMMAND = (sys.executable, "-W", "error", "-m", "edge_embed")


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def _json(*arguments: object, status: int = 0) -> dict[str, Any]:
    done = _run(*arguments, "--json")
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


@pytest.fixture
def publisher(bundle: Path, tmp_path: Path) -> Publisher:
    made = Publisher.make(tmp_path / "publisher")
    made.publish(bundle)
    return made


def test_a_board_updates_over_http_and_status_tells_it_all(
    publisher: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with RepositoryServer(publisher.site) as server:
        first = ("update", store, "--repository", server.address, "--root", publisher.keys / "1.root.json")
        found = _json(*first, "--device-id", "a board")
        assert (found["outcome"], found["id"], found["passed_over"]) == ("installed", _id(bundle), [])
        assert found["probe"]["golden"]
        again = ("update", store, "--repository", server.address, "--device-id", "a board")
        assert _json(*again)["outcome"] == "up to date"

        publisher.publish(newer_bundle, RollOut(new_space="another\x1b[2J seed"))
        kept = _run(*again)
        assert (kept.returncode, kept.stderr) == (0, "")
        assert kept.stdout.splitlines()[1].startswith("passed over: small 1.1.0")
        assert r"(another\x1b[2J seed)" in kept.stdout
        status = _json("status", store)
        assert status["active"] == _id(bundle)
        assert "another space for table" in status["updates"]["last"]["passed_over"][0]

        assert _json(*again, "--new-space", "allow")["id"] == _id(newer_bundle)
    status = _json("status", store)
    assert (status["active"], status["previous"]) == (_id(newer_bundle), _id(bundle))
    last = status["updates"]["last"]
    assert (last["outcome"], last["channel"], last["repository"]) == ("installed", "stable", server.address)
    assert status["updates"]["floor"].endswith("Z")
    assert "trust     its repository was signed at" in _run("status", store).stdout


def test_what_goes_wrong_is_one_sentence_and_a_status_and_what_served_serves(
    publisher: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    update = ("update", store, "--repository", publisher.site, "--device-id", "a board", "--new-space", "allow")
    assert _run(*update).stderr.count("\n") == 1
    assert "give --root" in _json(*update, status=2)["error"]
    assert _json(*update, "--root", publisher.keys / "1.root.json")["outcome"] == "installed"
    publisher.publish(newer_bundle)
    timestamp = publisher.site / "metadata" / "timestamp.json"
    timestamp.write_bytes(timestamp.read_bytes().replace(b'"version":2', b'"version":9'))
    done = _run(*update)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "timestamp was signed by 0/1 keys" in done.stderr
    assert _json("status", store)["updates"]["last"]["outcome"] == "failed"
    assert Store(store).active().name == _id(bundle)


def test_what_an_update_brought_and_its_operator_left_is_not_told_as_if_it_served(
    publisher: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    update = ("update", store, "--repository", publisher.site, "--device-id", "a board", "--new-space", "allow")
    _json(*update, "--root", publisher.keys / "1.root.json")
    publisher.publish(newer_bundle)
    _json(*update)
    assert _json("status", store)["updates"]["since"] == ""
    _run("rollback", store)
    said = f"since then small 1.0.0 ({_id(bundle)[:12]}) serves: its operator went back"
    status = _json("status", store)["updates"]
    assert (status["last"]["outcome"], status["since"]) == ("installed", said)
    assert f"          {said}\n" in _run("status", store).stdout
    # Here the channel has nothing that this board takes but what serves.
    assert _json(*update)["outcome"] == "up to date"
    assert _json("status", store)["updates"]["since"] == ""


def test_what_an_update_brought_and_rotted_or_was_replaced_is_not_told_as_if_it_served(
    publisher: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    _run("install", newer_bundle, "--store", store)
    update = ("update", store, "--repository", publisher.site, "--device-id", "a board", "--new-space", "allow")
    _json(*update, "--root", publisher.keys / "1.root.json")
    (Store(store).active() / "manifest.json").unlink()
    _run("scrub", store)
    said = f"since then small 1.1.0 ({_id(newer_bundle)[:12]}) serves"
    assert _json("status", store, status=1)["updates"]["since"] == f"{said}: the other one rotted"
    _json(*update, "--retry")
    _run("install", newer_bundle, "--store", store)
    assert _json("status", store)["updates"]["since"] == said


def test_without_its_extra_an_update_says_which_one_and_status_works(tmp_path: Path, bundle: Path) -> None:
    body = "import sys; sys.modules['tuf'] = None; from edge_embed.commands import main; sys.exit(main())"
    words = ["update", str(tmp_path / "store"), "--repository", "https://updates.example"]
    done = subprocess.run([sys.executable, "-c", body, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "edge-embed[update] brings it" in done.stderr


def test_a_process_that_serves_what_was_updated_loads_neither_tuf_nor_cryptography(
    publisher: Publisher, newer_bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    update = ("update", store, "--repository", publisher.site, "--device-id", "a board", "--new-space", "allow")
    _json(*update, "--root", publisher.keys / "1.root.json")
    body = """
import subprocess, sys
import edge_embed
with edge_embed.open(sys.argv[1]) as runtime:
    before = runtime.generation
    runtime.lookup("word1"); runtime.search("word1", k=3); runtime.encode("word1 word2")
    subprocess.run([sys.executable, "-m", "edge_embed", *sys.argv[2:]], check=True, capture_output=True)
    runtime.catch_up()
    runtime.lookup("word1")
    assert runtime.generation != before
loaded = {name.split(".")[0] for name in sys.modules}
updating = [name for name in sys.modules if name.startswith("edge_embed_bundle.updating")]
print(sorted(loaded & {"tuf", "cryptography", "securesystemslib", "urllib3"}), updating)
"""
    publisher.publish(newer_bundle)
    done = subprocess.run(
        [sys.executable, "-c", body, str(store), *map(str, update)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[] []\n", done.stderr


@pytest.mark.parametrize("way", ["full", "delta"])
def test_killed_at_any_moment_an_update_leaves_a_bundle_that_serves_and_the_next_one_ends(
    publisher: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path, way: str
) -> None:
    board = tmp_path / "before"
    asked = ("--repository", publisher.site, "--device-id", "a board")
    board.mkdir()
    started = time.monotonic()
    _json("update", board / "store", *asked, "--root", publisher.keys / "1.root.json")
    whole_seconds = time.monotonic() - started
    if way == "full":
        publisher.publish(bundle, RollOut(halted=True))
    assert bool(publisher.publish(newer_bundle).deltas) == (way == "delta")
    dice = random.Random(7)  # noqa: S311, a repeatable die, no secret
    old, new, killed = _id(bundle), _id(newer_bundle), 0
    store = replayed(board, (), 0, everything, tmp_path / "board") / "store"
    update = ("update", store, *asked, "--new-space", "allow")
    for _ in range(10):
        child = subprocess.Popen(
            [*COMMAND, *map(str, update), "--retry"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(dice.uniform(0.2, whole_seconds))
        os.killpg(child.pid, signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        with edge_embed.open(store, verify=True) as runtime:
            served = runtime.generation
            assert served in (old, new)
            assert runtime.lookup("word1").any()
        if served == new:
            # As it was before: what is in the store already is not fetched.
            shutil.rmtree(store.parent)
            replayed(board, (), 0, everything, store.parent)
    assert killed > 0
    found = _json(*update, "--retry")
    assert found["outcome"] in ("installed", "up to date")
    assert Store(store).active().name == new
    shutil.rmtree(store.parent)
    replayed(board, (), 0, everything, store.parent)
    assert _json(*update)["plan"] == way
