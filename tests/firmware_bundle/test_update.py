"""A board updates from a repository: the whole way, with real metadata, real files and a probe that is a fake."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import (
    BusyError,
    DigestError,
    ExpiredError,
    FetchError,
    RefusedError,
    SpaceError,
    StateError,
    StoreError,
    TrustError,
)
from edge_embed_bundle.fsops import OsFs, WritableFile
from edge_embed_bundle.store import Store
from edge_embed_bundle.updating.planning import REFUSE
from edge_embed_bundle.updating.records import Records
from edge_embed_bundle.updating.sites import WebSite
from edge_embed_bundle.updating.update import INSTALLED, UP_TO_DATE
from edge_embed_export.publishing.repository import Repository, RollOut
from edge_embed_export.publishing.signing import Keys, newest_root
from tests.boards import Board
from tests.fakes.bad_servers import RepositoryServer
from tests.fakes.probes import CRASH, NO, YES, FakeProbe, PowerCutError
from tests.making import make_bundle, small_source
from tests.repositories import A_DAY, Publisher, now


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    place = tmp_path_factory.mktemp("bundles")
    return [
        make_bundle(place / f"v{i}", version=f"1.{i}.0", source=small_source(seed=i, dimensions=4), graphs=()).path
        for i in range(3)
    ]


@pytest.fixture(scope="module")
def _first(bundles: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher.make(tmp_path_factory.mktemp("first"))
    made.publish(bundles[0])
    return made


@pytest.fixture
def publisher(_first: Publisher, tmp_path: Path) -> Publisher:
    """A publisher that offers version 1.0.0."""
    return _first.copy(tmp_path / "publisher")


@pytest.fixture
def board(publisher: Publisher, tmp_path: Path) -> Board:
    """A board that serves version 1.0.0."""
    board = Board(tmp_path / "store", publisher.root)
    board.update(publisher.site)
    return board


def test_a_new_board_takes_what_the_channel_offers(
    publisher: Publisher, bundles: Sequence[Path], tmp_path: Path
) -> None:
    board = Board(tmp_path / "store", publisher.root)
    outcome = board.update(publisher.site)
    assert (outcome.kind, outcome.plan.kind) == (INSTALLED, "full")
    assert board.serving == _id(bundles[0])
    with Bundle.open(Store(board.store).active()) as bundle:
        bundle.verify()
        assert outcome.fetched_bytes == bundle.manifest.size_bytes + len(bundle.manifest_bytes)
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in Store(board.store).active().iterdir())


def test_a_board_is_given_its_root_of_trust_once(publisher: Publisher, board: Board, tmp_path: Path) -> None:
    stranger = Publisher.make(tmp_path / "stranger")
    assert Board(board.store, stranger.root).update(publisher.site).kind == UP_TO_DATE


def test_without_a_root_of_trust_nothing_is_asked(publisher: Publisher, tmp_path: Path) -> None:
    with RepositoryServer(publisher.site) as server:
        with pytest.raises(TrustError, match="expected a root of trust at the first update, found none; give --root"):
            Board(tmp_path / "new", None).update(WebSite(server.address))
        assert not server.asked


def test_a_poll_that_finds_nothing_new_costs_the_timestamp_alone(publisher: Publisher, board: Board) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in board.store.rglob("*") if path.is_file()}

    before = written()
    with RepositoryServer(publisher.site) as server:
        assert board.update(WebSite(server.address)).kind == UP_TO_DATE
        assert [(asked.method, asked.path) for asked in server.asked] == [
            ("HEAD", "metadata/2.root.json"),
            ("GET", "metadata/timestamp.json"),
        ]
        assert server.body_bytes <= 500
        # Nothing is written for it, but the outcome when it differs from the last one.
        after = written()
        assert {path.name for path in after if after[path] != before.get(path)} == {"last.json"}
        board.update(WebSite(server.address))
        assert written() == after


def test_an_update_brings_the_new_release_and_keeps_the_one_before(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    with RepositoryServer(publisher.site) as server:
        probe = FakeProbe()
        assert board.update(WebSite(server.address), probe=probe).kind == INSTALLED
    assert probe.asked == [_id(bundles[1])]
    state = Store(board.store).state()
    assert (state.active, state.previous) == (_id(bundles[1]), _id(bundles[0]))
    assert not list(Records(board.store).incoming.iterdir())


def test_a_file_that_the_store_has_is_not_fetched(publisher: Publisher, board: Board, bundles: Sequence[Path]) -> None:
    publisher.publish(bundles[1])
    publisher.publish(bundles[1], RollOut(halted=True))
    board.update(publisher.site)
    publisher.publish(bundles[1], RollOut())
    board.update(publisher.site)
    publisher.publish(bundles[1], RollOut(halted=True))
    with RepositoryServer(publisher.site) as server:
        outcome = board.update(WebSite(server.address))
        blobs = [asked.path for asked in server.asked if asked.path.startswith("blobs")]
    assert (outcome.kind, board.serving) == (INSTALLED, _id(bundles[0]))
    # The release before stands in the store.
    assert not blobs


def test_a_probe_that_says_no_is_final(publisher: Publisher, board: Board, bundles: Sequence[Path]) -> None:
    publisher.publish(bundles[1])
    with pytest.raises(RefusedError, match=r"small 1\.1\.0 .*golden answers.*serves on"):
        board.update(publisher.site, probe=FakeProbe([NO]))
    assert board.serving == _id(bundles[0])
    probe = FakeProbe()
    outcome = board.update(publisher.site, probe=probe)
    assert (outcome.kind, outcome.plan.release and outcome.plan.release.version) == (UP_TO_DATE, "1.0.0")
    assert "refused by this board before" in outcome.plan.passed_over[0]
    assert not probe.asked
    assert board.update(publisher.site, retry=True).kind == INSTALLED


def test_a_release_that_kills_every_probe_is_left_after_three_tries(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    probe = FakeProbe([CRASH])
    with pytest.raises(RefusedError, match="status -9"):
        board.update(publisher.site, probe=probe)
    assert len(probe.asked) == 3
    assert board.update(publisher.site).kind == UP_TO_DATE


def test_a_release_that_kills_the_board_is_left_after_three_tries(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    probe = FakeProbe(dies=True)
    for _ in range(3):
        with pytest.raises(PowerCutError):
            board.update(publisher.site, probe=probe)
    assert board.update(publisher.site, probe=probe).kind == UP_TO_DATE
    assert len(probe.asked) == 3
    assert board.serving == _id(bundles[0])


def test_a_trial_that_was_cut_off_is_finished_even_when_the_repository_is_gone(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path
) -> None:
    publisher.publish(bundles[1])
    with pytest.raises(PowerCutError):
        board.update(publisher.site, probe=FakeProbe(dies=True))
    with pytest.raises(FetchError):
        board.update(tmp_path / "no stick", probe=FakeProbe([YES]))
    assert board.serving == _id(bundles[1])


def test_why_a_trial_that_was_cut_off_is_refused_afterwards_is_told(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    with pytest.raises(PowerCutError):
        board.update(publisher.site, probe=FakeProbe(dies=True))
    outcome = board.update(publisher.site, probe=FakeProbe([NO]))
    assert (outcome.kind, board.serving) == (UP_TO_DATE, _id(bundles[0]))
    told, before = outcome.plan.passed_over
    assert told == f"{_id(bundles[1])[:12]}: its trial was cut off, and then refused: {NO.reason}"
    assert "refused by this board before" in before
    last = Records(board.store).last()
    assert last is not None
    assert last.passed_over == outcome.plan.passed_over


def test_why_a_trial_is_refused_afterwards_is_kept_though_the_repository_is_gone(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path
) -> None:
    publisher.publish(bundles[1])
    with pytest.raises(PowerCutError):
        board.update(publisher.site, probe=FakeProbe(dies=True))
    with pytest.raises(FetchError):
        board.update(tmp_path / "no stick", probe=FakeProbe([NO]))
    last = Records(board.store).last()
    assert last is not None
    assert (last.outcome, NO.reason in last.passed_over[0]) == ("failed", True)


def test_an_interrupted_fetch_is_taken_up_by_the_next_update(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    with Bundle.open(bundles[1]) as opened:
        largest = max(opened.manifest.blobs.values(), key=lambda blob: blob.size_bytes)
    place = publisher.site / "blobs" / largest.sha256
    data = place.read_bytes()
    place.unlink()
    with pytest.raises(FetchError, match=largest.sha256):
        board.update(publisher.site)
    place.write_bytes(data)
    fetched = board.update(publisher.site).fetched_bytes
    assert fetched < sum(file.stat().st_size for file in bundles[1].iterdir())
    assert board.serving == _id(bundles[1])


def test_what_was_fetched_of_a_release_goes_when_the_channel_offers_another_one(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    hidden = publisher.site / "hidden"
    with Bundle.open(bundles[1]) as opened:
        blob = publisher.site / "blobs" / opened.manifest.blobs["table.bin"].sha256
    blob.rename(hidden)
    with pytest.raises(FetchError):
        board.update(publisher.site)
    assert [path.name for path in Records(board.store).incoming.iterdir()] == [_id(bundles[1])]
    publisher.publish(bundles[2])
    board.update(publisher.site)
    assert board.serving == _id(bundles[2])
    assert not list(Records(board.store).incoming.iterdir())


# Roll-out.


def test_a_board_outside_the_share_waits_and_one_inside_takes_it(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path
) -> None:
    release = publisher.publish(bundles[1], RollOut(percent=50, new_space="another seed"))
    inside, outside = (next(f"b{i}" for i in range(99) if release.takes(f"b{i}") is takes) for takes in (True, False))
    waits = board.update(publisher.site, device_id=outside)
    assert waits.kind == UP_TO_DATE
    assert "50 percent" in waits.plan.passed_over[0]
    assert board.update(publisher.site, device_id=inside).kind == INSTALLED


def test_another_space_is_refused_unless_its_owner_allows_it(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1], RollOut(new_space="another corpus"))
    outcome = board.update(publisher.site, new_space=REFUSE)
    assert outcome.kind == UP_TO_DATE
    assert "another space for table (another corpus)" in outcome.plan.passed_over[0]
    assert board.serving == _id(bundles[0])


def test_a_release_that_this_board_has_no_memory_for_waits(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    repository = Repository(publisher.site, Keys([publisher.keys]))
    channel = repository.channel("stable")
    with Bundle.open(bundles[1]) as opened:
        assert channel.releases[0].memory_private_bytes == opened.manifest.requirements.memory_private_bytes > 0
    larger = channel.releases[0]._replace(memory_private_bytes=2**45)
    repository.sign(channel._replace(releases=(larger, *channel.releases[1:])), now())
    outcome = board.update(publisher.site)
    assert outcome.kind == UP_TO_DATE
    assert "bytes of memory for its trial" in outcome.plan.passed_over[0]


def test_a_channel_that_is_not_there_is_named(publisher: Publisher, tmp_path: Path, bundles: Sequence[Path]) -> None:
    other = Publisher.make(tmp_path / "other")
    other.publish(bundles[0], RollOut("testing"))
    with pytest.raises(TrustError, match=r"no target channels/stable\.json"):
        Board(tmp_path / "store", other.root).update(other.site)


# Trust and time.


def test_a_board_walks_along_the_chain_of_roots(publisher: Publisher, board: Board, bundles: Sequence[Path]) -> None:
    for role in ("root", "targets", "snapshot", "timestamp", "root"):
        root = newest_root([publisher.keys]).signed
        Keys([publisher.keys]).replace({role: [root.roles[role].keyids[0]]}, now())
    publisher.publish(bundles[1])
    assert board.update(publisher.site).kind == INSTALLED
    trusted = Records(board.store).trusted()
    assert trusted is not None
    assert json.loads(trusted.metadata["root"])["signed"]["version"] == 6


def test_a_revocation_counts_at_once_though_the_rest_of_the_repository_is_broken(
    publisher: Publisher, board: Board
) -> None:
    revoked = newest_root([publisher.keys]).signed.roles["targets"].keyids
    Keys([publisher.keys]).replace({"targets": revoked}, now())
    publisher.sign()
    (publisher.site / "metadata" / "timestamp.json").unlink()
    with pytest.raises(FetchError):
        board.update(publisher.site)
    trusted = Records(board.store).trusted()
    assert trusted is not None
    assert json.loads(trusted.metadata["root"])["signed"]["version"] == 2


def test_expired_metadata_stops_installs_and_not_serving(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1], at=now() - 30 * A_DAY)
    with pytest.raises(ExpiredError, match=r"timestamp\.json is expired; nothing is installed"):
        board.update(publisher.site)
    assert board.serving == _id(bundles[0])
    publisher.sign()
    assert board.update(publisher.site).kind == INSTALLED


def test_a_board_without_a_clock_knows_what_has_passed(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    long_ago = datetime(1970, 1, 1, tzinfo=UTC)
    publisher.publish(bundles[1], at=now() + 100 * A_DAY)
    assert board.update(publisher.site, clock=long_ago).kind == INSTALLED
    # Newer by its version, and dead by what this board has seen of time.
    publisher.publish(bundles[2], at=now() + A_DAY)
    with pytest.raises(ExpiredError, match="expired at"):
        board.update(publisher.site, clock=long_ago)
    assert board.serving == _id(bundles[1])


def test_a_clock_that_runs_ahead_stops_installs_until_it_is_right_again(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    with pytest.raises(ExpiredError):
        board.update(publisher.site, clock=now() + 20 * 365 * A_DAY)
    assert board.update(publisher.site).kind == INSTALLED


def test_a_floor_of_time_that_a_thief_of_the_timestamp_key_raised_falls_with_the_key(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.sign(at=now() + 3 * A_DAY, days=2000)
    publisher.sign(at=now() + 1000 * A_DAY, days=2000)
    with pytest.raises(ExpiredError):
        board.update(publisher.site)
    # Its owner revokes the key and goes on by the right time.
    keys = Keys([publisher.keys])
    root = newest_root([publisher.keys]).signed
    keys.replace({role: root.roles[role].keyids for role in ("timestamp", "snapshot")}, now())
    publisher.publish(bundles[1])
    assert board.update(publisher.site).kind == INSTALLED


def test_trust_that_was_damaged_is_no_reason_to_trust_anybody(publisher: Publisher, board: Board) -> None:
    path = Records(board.store).folder / "trust.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StateError, match=r"trust\.json.*give --root"):
        board.update(publisher.site)


def test_metadata_is_remembered_before_the_release_is_tried(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path
) -> None:
    old = shutil.copytree(publisher.site, tmp_path / "old site")
    publisher.publish(bundles[1])
    with pytest.raises(PowerCutError):
        board.update(publisher.site, probe=FakeProbe(dies=True))
    with pytest.raises(TrustError, match="New timestamp version 1 must be >= 2"):
        board.update(old)
    # The trial that was cut off is over, and the old metadata leads nobody back.
    assert board.serving == _id(bundles[1])


# The store.


def test_two_updates_at_once_are_one_and_a_sentence(publisher: Publisher, board: Board) -> None:
    with (Records(board.store).folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process is updating this store"):
            board.update(publisher.site)


def test_an_operator_rolls_back_while_bytes_arrive(publisher: Publisher, board: Board, bundles: Sequence[Path]) -> None:
    publisher.publish(bundles[1])
    board.update(publisher.site)
    with (Records(board.store).folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Store(board.store).rollback()
    assert board.serving == _id(bundles[0])


@dataclass
class _FailingFs(OsFs):
    """A flash that fails from some operation on, each in turn."""

    code: int
    left: int

    def _count(self, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        self._count(path)
        return super().create(path, mode=mode)

    def overwrite(self, path: Path, *, offset: int = 0) -> WritableFile:
        self._count(path)
        return super().overwrite(path, offset=offset)

    def reserve(self, path: Path, size_bytes: int) -> None:
        self._count(path)
        super().reserve(path, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        self._count(target)
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._count(target)
        super().link(source, target)

    def make_folder(self, path: Path) -> None:
        self._count(path)
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._count(path)
        super().sync_folder(path)


class _FullFs(OsFs):
    """A flash without room: it refuses to reserve."""

    def reserve(self, path: Path, size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_flash_is_found_out_before_a_byte_is_fetched(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    with RepositoryServer(publisher.site) as server:
        with pytest.raises(SpaceError, match=r"expected room on the flash, found: .*No space left"):
            board.update(WebSite(server.address), fs=_FullFs())
        assert not [asked for asked in server.asked if asked.path.startswith("blobs")]
    assert board.serving == _id(bundles[0])
    assert board.update(publisher.site).kind == INSTALLED


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_flash_that_fails_at_any_operation_costs_a_sentence_and_nothing_that_serves(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path, code: int
) -> None:
    publisher.publish(bundles[1])
    for left in range(100):
        copy = Board(shutil.copytree(board.store, tmp_path / f"copy-{left}"), board.root)
        try:
            copy.update(publisher.site, fs=_FailingFs(code, left))
        except StoreError as error:
            assert os.strerror(code) in str(error)
            with Bundle.open(Store(copy.store).active()) as bundle:
                bundle.verify()
        else:
            break
        assert copy.update(publisher.site).kind in (INSTALLED, UP_TO_DATE)
        assert copy.serving == _id(bundles[1])
    assert 20 < left < 99


def test_what_rotted_after_it_was_fetched_is_found_dropped_and_fetched_again(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    publisher.publish(bundles[1])
    with Bundle.open(bundles[1]) as opened:
        blob = publisher.site / "blobs" / opened.manifest.blobs["table.bin"].sha256
    hidden = blob.rename(publisher.site / "hidden")
    with pytest.raises(FetchError):
        board.update(publisher.site)
    golden = Records(board.store).incoming / _id(bundles[1]) / "golden.bin"
    golden.chmod(0o644)
    golden.write_bytes(bytes(golden.stat().st_size))
    hidden.rename(blob)
    with pytest.raises(DigestError, match=r"golden\.bin: expected sha256"):
        board.update(publisher.site)
    assert board.serving == _id(bundles[0])
    assert board.update(publisher.site).kind == INSTALLED


def test_the_last_outcome_is_remembered(publisher: Publisher, board: Board, bundles: Sequence[Path]) -> None:
    last = Records(board.store).last()
    assert last is not None
    assert (last.outcome, last.channel, last.repository) == (INSTALLED, "stable", str(publisher.site))
    publisher.publish(bundles[1])
    with pytest.raises(RefusedError):
        board.update(publisher.site, probe=FakeProbe([NO]))
    last = Records(board.store).last()
    assert last is not None
    assert last.outcome == "refused"
    assert "golden answers" in last.said
    board.update(publisher.site)
    last = Records(board.store).last()
    assert last is not None
    assert last.outcome == UP_TO_DATE
    assert "refused by this board before" in last.passed_over[0]
