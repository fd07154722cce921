"""Attacks on updates: whoever stands between a board and its publisher, or took the server, or one of the keys.

The attacks of the TUF specification (section 1.5.2) and what the Internet does by itself. Each of them ends the same
way: the old bundle serves, nothing is trusted but what its publisher signed, and one sentence says what was found.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import EdgeEmbedError, ExpiredError, FetchError, ManifestError, TrustError, UpdateError
from edge_embed_bundle.store import Store
from edge_embed_bundle.updating import trust
from edge_embed_bundle.updating.records import Records
from edge_embed_bundle.updating.releases import Channel, channel_path
from edge_embed_bundle.updating.sites import WebSite
from edge_embed_bundle.updating.update import INSTALLED, UP_TO_DATE
from edge_embed_export.publishing.repository import Repository, RollOut
from edge_embed_export.publishing.signing import Keys, SignedRepository, newest_root
from tests.boards import Board
from tests.fakes import bad_servers
from tests.fakes.bad_servers import Fault, RepositoryServer
from tests.making import make_bundle, small_source
from tests.repositories import A_DAY, Publisher, now

MIB = 1024 * 1024


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


@dataclass(frozen=True)
class World:
    """One publisher's keys, and its site as it was after each release."""

    bundles: Sequence[Path]
    keys: Path
    stages: Sequence[Path]
    root: bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("world")
    bundles = [
        make_bundle(place / f"v{i}", version=f"1.{i}.0", source=small_source(seed=i, dimensions=4), graphs=()).path
        for i in range(3)
    ]
    publisher = Publisher.make(place / "publisher")
    stages = []
    for i, bundle in enumerate(bundles):
        publisher.publish(bundle)
        stages.append(shutil.copytree(publisher.site, place / f"stage-{i}"))
    return World(bundles, publisher.keys, stages, publisher.root)


@pytest.fixture
def board(world: World, tmp_path: Path) -> Board:
    """A board that serves version 1.1.0 and has 1.0.0 behind it; the publisher is one release further."""
    board = Board(tmp_path / "store", world.root)
    board.update(world.stages[0])
    board.update(world.stages[1])
    return board


@pytest.fixture
def site(world: World, tmp_path: Path) -> Path:
    """The newest site, to be tampered with."""
    return shutil.copytree(world.stages[2], tmp_path / "tampered")


def _refused(board: Board, site: Path, match: str, fault: Fault | None = None) -> None:
    """See that an update from a site ends in one sentence, and everything is as it was."""
    serving, state = board.serving, Store(board.store).state()
    with RepositoryServer(site, fault) as server, pytest.raises(UpdateError, match=match) as caught:
        board.update(WebSite(server.address, silence_seconds=0.5))
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    assert (board.serving, Store(board.store).state()) == (serving, state)
    trusted, last = Records(board.store).trusted(), Records(board.store).last()
    assert trusted is not None
    assert last is not None
    root = Metadata[Root].from_bytes(trusted.metadata["root"]).signed
    for role in ("timestamp", "snapshot", "targets"):
        # Whatever is remembered counts by the root that is remembered.
        metadata = Metadata[Timestamp].from_bytes(trusted.metadata[role])
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    assert (last.outcome, last.said) == ("failed", said)
    with Bundle.open(Store(board.store).active()) as bundle:
        bundle.verify()


def _edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change signed metadata as somebody without keys can."""
    found = json.loads(path.read_bytes())
    change(found["signed"])
    path.write_bytes(json.dumps(found, separators=(",", ":"), sort_keys=True).encode())


# Rollback, freeze, mix and match.


def test_a_server_that_goes_back_in_time_is_refused(world: World, board: Board) -> None:
    _refused(board, world.stages[0], r"New timestamp version 1 must be >= 2")


def test_an_old_snapshot_under_a_new_timestamp_is_refused(world: World, board: Board, site: Path) -> None:
    shutil.copy(site / "metadata" / "1.snapshot.json", site / "metadata" / "3.snapshot.json")
    _refused(board, site, r"expected metadata as it was signed, found: .*(length|version)")


def test_old_targets_under_a_new_snapshot_are_refused(world: World, board: Board, site: Path) -> None:
    shutil.copy(site / "metadata" / "2.targets.json", site / "metadata" / "3.targets.json")
    _refused(board, site, r"expected metadata as it was signed, found: .*(length|hash)")


def test_an_old_channel_under_new_targets_is_refused(world: World, board: Board, site: Path) -> None:
    channels = {path.name: path for path in (site / "targets" / "channels").iterdir()}
    old = {path.name for path in (world.stages[1] / "targets" / "channels").iterdir()}
    (new,) = set(channels) - old
    shutil.copy(channels[sorted(old)[0]], channels[new])
    _refused(board, site, r"(expected metadata as it was signed|bytes exceeding)")


def test_a_server_that_shows_the_same_forever_is_found_out_when_its_time_is_over(world: World, board: Board) -> None:
    with RepositoryServer(world.stages[1]) as server:
        frozen = WebSite(server.address)
        assert board.update(frozen).kind == UP_TO_DATE
        with pytest.raises(ExpiredError, match="expected metadata that is valid at"):
            board.update(frozen, clock=now() + 8 * A_DAY)
    assert board.serving == _id(world.bundles[1])


def test_blobs_of_another_release_under_the_digests_of_this_one_are_refused(
    world: World, board: Board, site: Path
) -> None:
    with Bundle.open(world.bundles[2]) as new, Bundle.open(world.bundles[0]) as old:
        new_blob, old_blob = new.manifest.blobs["table.bin"], old.manifest.blobs["table.bin"]
    shutil.copy(site / "blobs" / old_blob.sha256, site / "blobs" / new_blob.sha256)
    _refused(board, site, r"blobs/.*\(table\.bin\): frame 0: expected sha256")


def test_a_stranger_who_signs_everything_with_keys_of_his_own_is_refused(
    world: World, board: Board, tmp_path: Path
) -> None:
    stranger = Publisher.make(tmp_path / "stranger")
    for bundle in world.bundles:
        stranger.publish(bundle)
    _refused(board, stranger.site, "timestamp was signed by 0/1 keys")


def test_a_root_that_strangers_signed_is_refused(world: World, board: Board, site: Path, tmp_path: Path) -> None:
    stranger = Publisher.make(tmp_path / "stranger")
    keys = Keys([stranger.keys])
    keys.replace({"root": [keys.listed()[0].id]}, now())
    shutil.copy(stranger.keys / "2.root.json", site / "metadata" / "2.root.json")
    _refused(board, site, "root was signed by 0/2 keys")


def test_a_thief_of_one_root_key_does_not_move_the_root(world: World, board: Board, site: Path) -> None:
    root = json.loads((site / "metadata" / "1.root.json").read_bytes())
    root["signed"]["version"] = 2
    root["signatures"] = root["signatures"][:1]
    (site / "metadata" / "2.root.json").write_text(json.dumps(root))
    _refused(board, site, r"root was signed by [01]/2 keys")


def test_a_thief_of_the_online_keys_installs_nothing(world: World, board: Board, site: Path, tmp_path: Path) -> None:
    """He can say what is newest; what that is says the targets key."""
    keys = shutil.copytree(world.keys, tmp_path / "stolen")
    for offline in (*keys.glob("root-*"), *keys.glob("targets-*")):
        offline.unlink()
    targets = site / "metadata" / "3.targets.json"
    _edit(targets, lambda signed: signed["targets"].clear())  # type: ignore[attr-defined]
    repository = Repository(site, Keys([keys]))
    with pytest.raises(EdgeEmbedError, match="expected the key of targets"):
        repository.sign(None, now())
    # By hand, then: a snapshot and a timestamp that vouch for targets he made up.
    thief = Keys([keys])
    root = newest_root([world.keys]).signed
    snapshot = thief.sign(
        root,
        "snapshot",
        Snapshot(9, meta={"targets.json": MetaFile.from_data(3, targets.read_bytes(), ["sha256"])}),
        now(),
        30,
    )
    assert snapshot is not None
    timestamp = thief.sign(root, "timestamp", Timestamp(9, snapshot_meta=MetaFile(9, len(snapshot))), now(), 7)
    assert timestamp is not None
    (site / "metadata" / "9.snapshot.json").write_bytes(snapshot)
    (site / "metadata" / "timestamp.json").write_bytes(timestamp)
    _refused(board, site, "targets was signed by 0/1 keys")


def test_versions_that_a_thief_of_the_online_keys_ran_up_fall_with_the_keys(
    world: World, board: Board, tmp_path: Path
) -> None:
    """Fast-forward: what the owner signs next is older than what the board has seen, until the keys are revoked."""
    publisher = Publisher(
        shutil.copytree(world.keys, tmp_path / "keys"), shutil.copytree(world.stages[1], tmp_path / "site")
    )
    site, keys = shutil.copytree(publisher.site, tmp_path / "his site"), Keys([publisher.keys])
    root, far = newest_root([publisher.keys]).signed, 2**31
    targets = (site / "metadata" / "2.targets.json").read_bytes()
    meta = {"targets.json": MetaFile.from_data(2, targets, ["sha256"])}
    snapshot = keys.sign(root, "snapshot", Snapshot(far, meta=meta), now(), 30)
    timestamp = keys.sign(root, "timestamp", Timestamp(far, snapshot_meta=MetaFile(far)), now(), 7)
    assert snapshot is not None and timestamp is not None
    (site / "metadata" / f"{far}.snapshot.json").write_bytes(snapshot)
    (site / "metadata" / "timestamp.json").write_bytes(timestamp)
    assert board.update(site).kind == UP_TO_DATE
    publisher.publish(world.bundles[2])
    _refused(board, publisher.site, rf"New timestamp version 3 must be >= {far}")
    keys.replace({role: root.roles[role].keyids for role in ("timestamp", "snapshot")}, now())
    publisher.sign()
    assert board.update(publisher.site).kind == INSTALLED
    assert board.serving == _id(world.bundles[2])


def test_a_revoked_key_signs_nothing_any_more(world: World, board: Board, tmp_path: Path) -> None:
    keys = shutil.copytree(world.keys, tmp_path / "keys")
    stolen = shutil.copytree(world.keys, tmp_path / "stolen")
    publisher = Publisher(keys, shutil.copytree(world.stages[1], tmp_path / "site"))
    Keys([keys]).replace(Keys([keys]).named(Keys([keys]).listed()[2].id), now())
    publisher.sign()
    assert board.update(publisher.site).kind == UP_TO_DATE
    # The thief publishes with the key that he has, over the chain of roots that everybody has.
    thief = Publisher(stolen, shutil.copytree(world.stages[1], tmp_path / "his site"))
    # Often enough for his versions to be the higher ones.
    for percent in (98, 99, 100):
        thief.publish(world.bundles[2], RollOut(percent=percent, new_space="his own"))
    for path in publisher.site.glob("metadata/*.root.json"):
        shutil.copy(path, thief.site / "metadata" / path.name)
    _refused(board, thief.site, "targets was signed by 0/1 keys")


# What a server may send.


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "3.targets.json"])
def test_metadata_without_end_is_left_at_its_ceiling(board: Board, site: Path, name: str) -> None:
    with RepositoryServer(site, bad_servers.endless(f"metadata/{name}")) as server:
        with pytest.raises(FetchError, match="exceeding the maximum allowed length"):
            board.update(WebSite(server.address))
        assert server.body_bytes < 16 * MIB
    assert board.serving


def test_a_root_without_end_is_left_at_its_ceiling(board: Board, site: Path) -> None:
    (site / "metadata" / "2.root.json").write_bytes(b" " * 4 * MIB)
    _refused(board, site, "exceeding the maximum allowed length of 65536")


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (bad_servers.silent("metadata/timestamp", 1.5), "expected (an answer|bytes within)"),
        (bad_servers.truncated("metadata/timestamp"), "found the answer at its end"),
        (bad_servers.shortened("metadata/timestamp"), "expected metadata as it was signed, found"),
        (bad_servers.wrong("metadata/timestamp", 40), "expected metadata"),
        (bad_servers.replacing("metadata/timestamp", b"<html>please log in</html>"), "expected metadata"),
        (bad_servers.replacing("metadata/timestamp", b"{}"), "expected metadata"),
        (bad_servers.replacing("metadata/timestamp", b"[" * 4000), "expected metadata"),
        (bad_servers.replacing("metadata/timestamp", b'{"signed":{"_type":"root"},"signatures":[]}'), "expected met"),
        (bad_servers.garbage("metadata/timestamp"), "expected an answer, found"),
        (bad_servers.redirecting("metadata/timestamp", "http://127.0.0.1:1/"), "found status 302 to"),
        (bad_servers.saying("metadata/timestamp", 503), "found status 503"),
        (bad_servers.saying("metadata/timestamp", 404), "there is|expected a file, found status 404"),
        (bad_servers.wrong("metadata/3.snapshot"), "expected metadata"),
        (bad_servers.wrong("metadata/3.targets"), "expected metadata as it was signed, found"),
        (bad_servers.wrong("targets/channels"), "expected metadata as it was signed, found"),
        (bad_servers.truncated("targets/channels"), "found the answer at its end"),
        (bad_servers.endless("targets/channels"), "exceeding the maximum allowed length"),
        (bad_servers.wrong("blobs"), "frame 0: expected sha256"),
        (bad_servers.shortened("blobs"), "found the end after"),
        (bad_servers.silent("blobs", 1.5), "expected (an answer|bytes within)"),
        (bad_servers.saying("blobs", 404), "found status 404"),
        (bad_servers.redirecting("blobs", "file:///etc/passwd"), "found status 302 to 'file:///etc/passwd'"),
    ],
)
def test_what_a_bad_server_sends_changes_nothing(board: Board, site: Path, fault: Fault, match: str) -> None:
    _refused(board, site, match, fault)
    # And nothing of it is left that a good server could not mend.
    assert board.update(site).kind == INSTALLED


def test_a_server_that_drips_metadata_is_left(board: Board, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "METADATA_SECONDS", 0.3)
    _refused(board, site, r"expected it within 0\.3 s", bad_servers.dripping("metadata/timestamp", 0.01))


def test_a_server_that_cannot_do_ranges_or_heads_serves_all_the_same(board: Board, site: Path, world: World) -> None:
    for fault in (bad_servers.without_head, bad_servers.without_ranges("blobs"), bad_servers.endless("blobs")):
        with RepositoryServer(site, fault) as server:
            assert board.update(WebSite(server.address)).kind in (INSTALLED, UP_TO_DATE)
        assert board.serving == _id(world.bundles[2])
        Store(board.store).rollback()
        board.update(site, retry=True)


def test_a_manifest_that_says_other_than_its_channel_is_refused_before_the_large_files(
    world: World, board: Board, site: Path, tmp_path: Path
) -> None:
    """A publisher's mistake, or a thief of the targets key who wants to fill a flash."""
    keys = Keys([world.keys])
    repository = Repository(site, keys)
    channel = repository.channel("stable")
    newest = channel.releases[0]
    fewer = newest._replace(files=newest.files[:-1])
    repository.sign(channel._replace(releases=(fewer,)), now())
    _refused(board, site, "expected the files and spaces that the channel names")
    other = newest._replace(spaces={"table": "0" * 64})
    repository.sign(channel._replace(releases=(other,)), now())
    _refused(board, site, "expected the files and spaces that the channel names")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[]", b'{"format": 2}', b'{"name": "a", "name": "b"}', b"{" * 4000])
def test_a_channel_that_is_rightly_signed_and_no_channel_is_refused(
    world: World, board: Board, site: Path, data: bytes
) -> None:
    repository = SignedRepository(site)
    repository.sign(Keys([world.keys]), {channel_path("stable"): data}, now())
    with pytest.raises(ManifestError, match=r"channels/stable\.json: .*expected"):
        board.update(site)
    assert board.serving == _id(world.bundles[1])
    repository.sign(Keys([world.keys]), {channel_path("stable"): Channel("stable").to_bytes()}, now())
    assert board.update(site).kind == UP_TO_DATE


def test_every_byte_of_a_repository_counts(world: World, board: Board, site: Path) -> None:
    """One bit is flipped in each of many places of every file that an update reads."""
    dice = random.Random(3)  # noqa: S311, a repeatable die, no secret
    with RepositoryServer(site) as server:
        copy = shutil.copytree(board.store, board.store.with_name("copy"), symlinks=True)
        Board(copy, world.root).update(WebSite(server.address))
        # In the order of their reading: what was verified once is remembered, and not asked for again.
        read = list(dict.fromkeys(asked.path for asked in server.asked if asked.method == "GET"))
    assert len(read) >= 6
    tried = 0
    for path in read:
        data = (site / path).read_bytes()
        # Of metadata every seventh byte, of channels and blobs some.
        places = range(0, len(data), 7) if path.startswith("metadata") else dice.sample(range(len(data)), 15)
        for place in places:
            changed = bytearray(data)
            # Two bits may change nothing that was signed: small hex digits of a signature become large ones, and the
            # zero of a day becomes the blank that is read like it.
            changed[place] ^= 1 << dice.choice((0, 1, 2, 3, 6))
            (site / path).write_bytes(changed)
            try:
                board.update(site)
            except UpdateError as error:
                assert "\n" not in str(error)
            except EdgeEmbedError as error:
                raise AssertionError(f"{path} at {place}: {type(error).__name__} {error}") from error
            else:
                raise AssertionError(f"{path}: byte {place} was changed and nobody saw it")
            assert board.serving == _id(world.bundles[1])
            tried += 1
        (site / path).write_bytes(data)
    assert tried > 250
    assert board.update(site).kind == INSTALLED


def test_metadata_of_any_shape_brings_out_this_projects_errors_alone(world: World, board: Board, site: Path) -> None:
    """Fuzzed: values of every kind in the place of every value of signed metadata, and of a channel."""
    strange: list[object] = [None, True, -1, 2**70, 1e308, "", "\x00", "9" * 5000, [], {}, [[[[]]]], {"": {}}]
    dice = random.Random(5)  # noqa: S311, a repeatable die, no secret
    for name in ("timestamp.json", "3.snapshot.json", "3.targets.json", "1.root.json"):
        path = site / "metadata" / name
        target = site / "metadata" / "2.root.json" if name == "1.root.json" else path
        data = path.read_bytes()
        for _ in range(60):
            found = json.loads(data)
            parent: object = found
            while True:
                assert isinstance(parent, dict | list)
                keys: list[object] = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
                key = dice.choice(keys) if keys else None
                value = parent[key] if key is not None else None  # type: ignore[call-overload]
                if not isinstance(value, dict | list) or not value or dice.random() < 0.3:
                    break
                parent = value
            if key is not None:
                parent[key] = dice.choice(strange)  # type: ignore[call-overload]
            target.write_text(json.dumps(found))
            try:
                board.update(site)
            except EdgeEmbedError as error:
                assert "\n" not in str(error)
        if target != path:
            target.unlink()
        path.write_bytes(data)
        assert board.serving in (_id(world.bundles[1]), _id(world.bundles[2]))


def test_refusing_costs_little_memory(world: World, board: Board, site: Path) -> None:
    board.update(world.stages[1])
    for fault in (bad_servers.endless("metadata/timestamp"), bad_servers.endless("blobs"), bad_servers.wrong("blobs")):
        tracemalloc.start()
        with RepositoryServer(site, fault) as server, contextlib.suppress(EdgeEmbedError):
            board.update(WebSite(server.address))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * MIB


def test_a_stick_full_of_links_and_pipes_is_refused(world: World, board: Board, site: Path) -> None:
    timestamp = site / "metadata" / "timestamp.json"
    timestamp.rename(site / "elsewhere")
    timestamp.symlink_to(site / "elsewhere")
    with pytest.raises(FetchError, match="expected a plain file"):
        board.update(site)
    assert board.serving == _id(world.bundles[1])


def test_a_directory_that_is_no_repository_is_named(board: Board, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FetchError, match=r"timestamp\.json"):
        board.update(tmp_path / "empty")


def test_a_sentence_of_a_stranger_stays_one_line(board: Board, site: Path) -> None:
    _edit(site / "metadata" / "timestamp.json", lambda signed: signed.update(_type="\x1b[2J\n" * 90))
    with pytest.raises(TrustError) as caught:
        board.update(site)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
