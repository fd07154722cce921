"""The command that drives our client for the public conformance suite, against a server that knows GET alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from edge_embed_export.publishing.signing import Keys, newest_root
from tests.fakes import bad_servers
from tests.fakes.bad_servers import RepositoryServer
from tests.repositories import A_DAY, Publisher, now

COMMAND = (sys.executable, str(Path(__file__).with_name("tuf-client")))


class Client:
    """A folder of metadata and one of targets, and the command that keeps them."""

    def __init__(self, place: Path, server: RepositoryServer) -> None:
        self._metadata, self.targets, self._server = place / "metadata", place / "targets", server
        self._metadata.mkdir()
        self.targets.mkdir()

    def init(self, root: Path) -> int:
        return self._run("init", str(root))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self._server.address}/metadata/", "refresh")

    def download(self, name: str) -> int:
        urls = ("--metadata-url", f"{self._server.address}/metadata/")
        place = ("--target-base-url", f"{self._server.address}/targets/", "--target-dir", str(self.targets))
        return self._run(*urls, "--target-name", name, *place, "download")

    def version(self, role: str) -> int:
        found = json.loads((self._metadata / f"{role}.json").read_bytes())
        return int(found["signed"]["version"])

    def _run(self, *words: str) -> int:
        done = subprocess.run(
            [*COMMAND, "--metadata-dir", str(self._metadata), *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == (done.stderr == ""), done.stderr
        assert "Traceback" not in done.stderr
        return done.returncode


@pytest.fixture
def publisher(bundle: Path, tmp_path: Path) -> Publisher:
    made = Publisher.make(tmp_path / "publisher")
    made.publish(bundle)
    return made


@pytest.fixture
def client(publisher: Publisher, tmp_path: Path) -> Iterator[Client]:
    with RepositoryServer(publisher.site, bad_servers.without_head) as server:
        client = Client(tmp_path, server)
        assert client.init(publisher.keys / "1.root.json") == 0
        yield client


def test_what_is_valid_is_taken(client: Client) -> None:
    assert client.refresh() == 0
    assert [client.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1, 1, 1, 1]
    assert client.download("channels/stable.json") == 0
    (found,) = client.targets.iterdir()
    assert json.loads(found.read_bytes())["name"] == "stable"


def test_a_target_that_nobody_signed_is_not_taken(client: Client) -> None:
    assert client.download("channels/other.json") == 1
    assert not list(client.targets.iterdir())


def test_a_newer_root_is_kept_though_it_has_expired_and_nothing_behind_it_is(
    client: Client, publisher: Publisher
) -> None:
    assert client.refresh() == 0
    keys = Keys([publisher.keys])
    keys.replace({"root": newest_root([publisher.keys]).signed.roles["root"].keyids[:1]}, now() - 400 * A_DAY)
    publisher.sign()
    assert client.refresh() == 1
    assert (client.version("root"), client.version("timestamp")) == (2, 1)


def test_an_older_timestamp_is_not_taken(client: Client, publisher: Publisher) -> None:
    old = (publisher.site / "metadata" / "timestamp.json").read_bytes()
    publisher.sign()
    assert client.refresh() == 0
    (publisher.site / "metadata" / "timestamp.json").write_bytes(old)
    assert client.refresh() == 1
    assert client.version("timestamp") == 2


def test_a_snapshot_that_is_missing_leaves_the_timestamp_that_was_verified(
    client: Client, publisher: Publisher, newer_bundle: Path
) -> None:
    assert client.refresh() == 0
    publisher.publish(newer_bundle)
    snapshot = publisher.site / "metadata" / "2.snapshot.json"
    hidden = shutil.move(snapshot, publisher.site / "hidden")
    assert client.refresh() == 1
    assert (client.version("timestamp"), client.version("snapshot")) == (2, 1)
    shutil.move(hidden, snapshot)
    assert client.refresh() == 0
    assert client.version("targets") == 2
