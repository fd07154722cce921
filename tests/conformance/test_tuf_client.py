"""The command that drives our client for the public conformance suite, against a server that knows GET alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Snapshot, Targets, Timestamp

from edge_embed_export.publishing.signing import Keys, newest_root
from tests.fakes import bad_servers
from tests.fakes.bad_servers import RepositoryServer
from tests.repositories import A_DAY, Publisher, now

COMMAND = (sys.executable, str(Path(__file__).with_name("tuf-client")))


class Client:
    """A folder of metadata and one of targets, and the command that keeps them."""

    def __init__(self, place: Path, server: RepositoryServer) -> None:
        self.metadata, self.targets, self.server = place / "metadata", place / "targets", server
        self.metadata.mkdir()
        self.targets.mkdir()

    def init(self, root: Path) -> int:
        return self._run("init", str(root))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self.server.address}/metadata/", "refresh")

    def download(self, name: str) -> int:
        urls = ("--metadata-url", f"{self.server.address}/metadata/")
        place = ("--target-base-url", f"{self.server.address}/targets/", "--target-dir", str(self.targets))
        return self._run(*urls, "--target-name", name, *place, "download")

    def version(self, role: str) -> int:
        found = json.loads((self.metadata / f"{role}.json").read_bytes())
        return int(found["signed"]["version"])

    def _run(self, *words: str) -> int:
        done = subprocess.run(
            [*COMMAND, "--metadata-dir", str(self.metadata), *words], capture_output=True, text=True, check=False
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


def test_a_target_that_is_there_is_not_fetched_again(client: Client) -> None:
    assert client.download("channels/stable.json") == 0
    asked = len(client.server.asked)
    assert client.download("channels/stable.json") == 0
    assert not [each for each in client.server.asked[asked:] if each.path.startswith("targets")]


@pytest.mark.parametrize("name", ["?", "#", "../delegated"])
def test_a_delegated_role_of_any_name_is_asked_for_and_kept_under_a_safe_one(
    client: Client, publisher: Publisher, name: str
) -> None:
    keys = Keys([publisher.keys])
    root = newest_root([publisher.keys]).signed
    signer = CryptoSigner.generate_ed25519()
    delegated = Metadata[Targets](Targets(expires=now().replace(microsecond=0) + A_DAY))
    delegated.sign(signer)
    targets = Targets(2, delegations=Delegations({}, {}))
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    targets.delegations.roles[name] = DelegatedRole(name, [], 1, False, paths=["*"])
    targets.add_key(signer.public_key, name)
    files = {
        "2.targets": keys.sign(root, "targets", targets, now(), 9),
        f"1.{quote(name, safe='')}": delegated.to_bytes(),
        "2.snapshot": keys.sign(
            root, "snapshot", Snapshot(2, meta={"targets.json": MetaFile(2), f"{name}.json": MetaFile(1)}), now(), 9
        ),
        "timestamp": keys.sign(root, "timestamp", Timestamp(2, snapshot_meta=MetaFile(2)), now(), 9),
    }
    for place, data in files.items():
        assert data is not None
        (publisher.site / "metadata" / f"{place}.json").write_bytes(data)
    assert client.download("nonexistent target") == 1
    assert f"metadata/1.{quote(name, safe='')}.json" in [asked.path for asked in client.server.asked]
    assert len(list(client.metadata.glob("*.json"))) == 5
    assert not list(client.metadata.parent.glob("*.json"))


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
