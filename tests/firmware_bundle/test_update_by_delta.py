"""A board updates by a delta: the same bundle from fewer bytes; by the files wherever that way is closed."""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from edge_embed.patching import Patch
from edge_embed_bundle import delta
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import FetchError, SpaceError, StoreError
from edge_embed_bundle.fsops import OsFs, WritableFile
from edge_embed_bundle.scrub import Scrub
from edge_embed_bundle.store import Store
from edge_embed_bundle.updating.planning import DELTA, FULL
from edge_embed_bundle.updating.records import Records
from edge_embed_bundle.updating.releases import FRAME_BYTES, Delta, Release
from edge_embed_bundle.updating.sites import WebSite
from edge_embed_bundle.updating.update import INSTALLED, UP_TO_DATE, Outcome
from edge_embed_export.publishing.repository import Repository
from edge_embed_export.publishing.signing import Keys
from tests import deltas
from tests.boards import Board
from tests.fakes.bad_servers import RepositoryServer, redirecting, resetting, saying, shortened, wrong, wrong_range
from tests.making import make_unmeasured_bundle, rows_in_topics, vectors_of, with_table
from tests.repositories import Publisher, now

ROWS = 50_000


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """Three versions of one model; from each to the next some rows became other ones."""
    place = tmp_path_factory.mktemp("bundles")
    source = rows_in_topics(ROWS, 32)
    found = []
    for i in range(3):
        vectors = vectors_of(source).copy()
        changed = slice(0, ROWS * 2 // 3) if i == 1 else slice(ROWS // 3, ROWS)
        vectors[changed] = np.random.default_rng(i).normal(size=vectors[changed].shape)
        source = with_table(source, vectors=vectors, weights_digest=str(i) * 64)
        found.append(make_unmeasured_bundle(place / f"v{i}", source, version=f"1.{i}.0", graphs=()))
    return found


@pytest.fixture(scope="module")
def _published(bundles: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Publisher, Board]:
    place = tmp_path_factory.mktemp("published")
    publisher = Publisher.make(place)
    publisher.publish(bundles[0])
    board = Board(place / "store", publisher.root)
    board.update(publisher.site)
    publisher.publish(bundles[1])
    return publisher, board


@pytest.fixture
def publisher(_published: tuple[Publisher, Board], tmp_path: Path) -> Publisher:
    """A publisher that offers 1.0.0 and 1.1.0, the latter by a delta from the former, too."""
    return _published[0].copy(tmp_path / "publisher")


@pytest.fixture
def board(_published: tuple[Publisher, Board], tmp_path: Path) -> Board:
    """A board that serves 1.0.0 and takes deltas."""
    copied = _copied(_published[1].store, tmp_path / "store")
    return Board(copied, _published[1].root, Patch)


def _copied(store: Path, target: Path) -> Path:
    """Return a copy of a store whose hard links are hard links, of files of its own."""
    shutil.copytree(store, target)
    for blob in (target / "blobs").iterdir():
        for generation in (target / "generations").iterdir():
            for name in generation.iterdir():
                if name.read_bytes() == blob.read_bytes():
                    name.unlink()
                    name.hardlink_to(blob)
    return target


def _newest(publisher: Publisher) -> Release:
    return Repository(publisher.site, Keys([publisher.keys])).channel("stable").releases[0]


def _the_delta(publisher: Publisher) -> Delta:
    (found,) = _newest(publisher).deltas
    return found


def _blobs(server: RepositoryServer) -> list[str]:
    return [asked.path.removeprefix("blobs/") for asked in server.asked if asked.path.startswith("blobs")]


def _is_new(board: Board, bundles: Sequence[Path], outcome: Outcome) -> bool:
    """Whether the board serves 1.1.0, byte for byte, and nothing is left of the way to it."""
    generation = Store(board.store).active()
    assert deltas.files(generation) == deltas.files(bundles[1])
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in generation.iterdir())
    assert not list(Records(board.store).incoming.iterdir())
    return outcome.kind == INSTALLED and board.serving == _id(bundles[1])


def _full_bytes(publisher: Publisher) -> int:
    return sum(file.size_bytes for file in _newest(publisher).files)


def test_a_board_that_has_the_parent_fetches_the_delta_alone(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    wanted = _the_delta(publisher).file
    with RepositoryServer(publisher.site) as server:
        outcome = board.update(WebSite(server.address))
        assert _blobs(server) == [wanted.sha256]
        assert server.body_bytes < 0.6 * _full_bytes(publisher)
    assert _is_new(board, bundles, outcome)
    assert (outcome.plan.kind, outcome.fetched_bytes) == (DELTA, wanted.size_bytes)
    assert outcome.said.endswith(f"; made by a delta from {_id(bundles[0])[:12]}")
    last = Records(board.store).last()
    assert last is not None
    assert last.said == outcome.said


def test_the_previous_generation_is_a_parent_as_well(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    board.update(publisher.site)
    Store(board.store).rollback()
    # From what serves the delta would be longer than from the one before.
    publisher.publish(bundles[2])
    repository = Repository(publisher.site, Keys([publisher.keys]))
    channel = repository.channel("stable")
    from_previous = channel.releases[0].deltas[0]
    assert from_previous.parent == _id(bundles[1])
    shorter = channel.releases[0]._replace(deltas=(from_previous,))
    repository.sign(channel._replace(releases=(shorter, *channel.releases[1:])), now())
    outcome = board.update(publisher.site)
    assert (outcome.plan.kind, outcome.plan.delta) == (DELTA, from_previous)
    assert deltas.files(Store(board.store).active()) == deltas.files(bundles[2])


def test_a_board_that_has_no_parent_fetches_the_files(
    publisher: Publisher, bundles: Sequence[Path], tmp_path: Path
) -> None:
    board = Board(tmp_path / "new", publisher.root, Patch)
    outcome = board.update(publisher.site)
    assert (outcome.plan.kind, outcome.fetched_bytes) == (FULL, _full_bytes(publisher))
    assert _is_new(board, bundles, outcome)


def test_what_was_fetched_of_the_files_already_may_make_them_the_shorter_way(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    table = next(file for file in _newest(publisher).files if file.name == "table.bin")
    with RepositoryServer(publisher.site) as server:
        server.fault = _once(server, resetting(f"blobs/{table.sha256}", table.size_bytes - 1000, 1))
        with pytest.raises(FetchError):
            replace(board, patch=None).update(WebSite(server.address))
    outcome = board.update(publisher.site)
    assert outcome.plan.kind == FULL
    assert outcome.fetched_bytes < _the_delta(publisher).file.size_bytes
    assert _is_new(board, bundles, outcome)


def _once(server: RepositoryServer, fault: Callable[..., bool]) -> Callable[..., bool]:
    """Let a fault happen, and then nothing but failures."""

    def both(request: object, path: str, data: bytes) -> bool:
        if fault(request, path, data):
            server.fault = saying("blobs", 500)
            return True
        return False

    return both


def test_a_delta_is_resumed_at_its_frames(publisher: Publisher, board: Board, bundles: Sequence[Path]) -> None:
    wanted = _the_delta(publisher).file
    assert len(wanted.frames) > 1
    with RepositoryServer(publisher.site) as server:
        server.fault = _once(server, resetting(f"blobs/{wanted.sha256}", FRAME_BYTES + 5, 1))
        with pytest.raises(FetchError):
            board.update(WebSite(server.address))
    with RepositoryServer(publisher.site) as server:
        outcome = board.update(WebSite(server.address))
        assert [(asked.path, asked.range) for asked in server.asked if asked.path.startswith("blobs")] == [
            (f"blobs/{wanted.sha256}", f"bytes={FRAME_BYTES}-")
        ]
    assert (outcome.plan.kind, outcome.fetched_bytes) == (DELTA, wanted.size_bytes - FRAME_BYTES)
    assert _is_new(board, bundles, outcome)


# Where it leads nowhere.


@pytest.mark.parametrize(
    "fault",
    [
        wrong,
        shortened,
        wrong_range,
        *(functools.partial(saying, status=status) for status in (404, 416, 500, 501, 503)),
        functools.partial(redirecting, target="https://elsewhere.example/delta"),
    ],
)
def test_a_delta_that_does_not_come_is_left_for_the_files_in_the_same_update(
    publisher: Publisher, board: Board, bundles: Sequence[Path], fault: Callable[..., Callable[..., bool]]
) -> None:
    wanted = _the_delta(publisher).file
    with RepositoryServer(publisher.site, fault(f"blobs/{wanted.sha256}")) as server:
        outcome = board.update(WebSite(server.address))
    assert _is_new(board, bundles, outcome)
    assert (outcome.plan.kind, outcome.plan.delta) == (FULL, None)
    assert f"a delta of small 1.1.0 ({_id(bundles[1])[:12]}): " in outcome.plan.passed_over[-1]
    last = Records(board.store).last()
    assert last is not None
    assert last.passed_over == outcome.plan.passed_over


def test_a_delta_that_breaks_off_at_every_attempt_is_taken_up_by_the_next_update(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    wanted = _the_delta(publisher).file
    with RepositoryServer(publisher.site, resetting(f"blobs/{wanted.sha256}", 1000, 99)) as server:
        with pytest.raises(FetchError):
            board.update(WebSite(server.address))
        assert set(_blobs(server)) == {wanted.sha256}
    assert board.update(publisher.site).plan.kind == DELTA


def _flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def _another_parent(data: bytes) -> bytes:
    magic, _, new, size = delta.HEAD.unpack_from(data)
    return delta.HEAD.pack(magic, bytes(32), new, size) + data[delta.HEAD.size :]


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (_flipped, "expected sha256"),
        (_another_parent, "expected a delta from"),
        (lambda data: data[: len(data) // 2], "an end at byte"),
        (lambda data: b"", "a head"),
        (lambda data: data + b"more", "behind the last frame"),
        (lambda data: bytes(len(data)), "EEDELTA1"),
    ],
)
def test_a_delta_that_was_rightly_signed_and_is_none_is_left_for_the_files(
    publisher: Publisher,
    board: Board,
    bundles: Sequence[Path],
    damaged: Callable[[bytes], bytes],
    reason: str,
) -> None:
    publisher.offer_delta(damaged((publisher.site / "blobs" / _the_delta(publisher).file.sha256).read_bytes()))
    outcome = board.update(publisher.site)
    assert _is_new(board, bundles, outcome)
    assert outcome.plan.kind == FULL
    assert reason in outcome.plan.passed_over[-1]


def test_a_delta_that_leads_to_another_bundle_is_left_for_the_files(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path
) -> None:
    deltas.made(bundles[0], bundles[2], tmp_path / "to another")
    publisher.offer_delta((tmp_path / "to another").read_bytes())
    outcome = board.update(publisher.site)
    assert _is_new(board, bundles, outcome)
    assert "expected it to lead to" in outcome.plan.passed_over[-1]


def test_a_delta_that_makes_other_bytes_by_its_own_rules_is_left_for_the_files(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    """Its frames have the digests of what they make, its manifest is the right one: a file of it is not."""
    blob = publisher.site / "blobs" / _the_delta(publisher).file.sha256
    data = blob.read_bytes()
    frames = deltas.frames_of(data)
    with deltas.patch(bundles[0], blob) as patch:
        sections = [section for name in patch.made for section in delta.sections_of(patch.manifest, name)]
    # Nothing is derived from the slots of keys.
    slots = next(i for i, section in enumerate(sections) if section.tensor == "index_slots")
    zeros = bytes(len(sections[slots].units_of(0)) * sections[slots].unit_bytes)
    place = 1 + sum(section.frames for section in sections[:slots])
    frames[place] = deltas.frame(delta.WAYS.index("bytes"), deltas.packed(delta.number(0) + zeros), zeros)
    publisher.offer_delta(data[: delta.HEAD.size] + b"".join(frames))
    outcome = board.update(publisher.site)
    assert _is_new(board, bundles, outcome)
    assert "table.bin: expected sha256" in outcome.plan.passed_over[-1]


def _rot(path: Path, at: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)


def test_over_a_damaged_parent_the_files_are_fetched_as_far_as_the_delta_did_not_make_them(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    # In the second frame of the rows.
    with Bundle.open(bundles[0]) as opened:
        rows = opened.manifest.tables[0].tensors["rows"]
    _rot(Store(board.store).active() / rows.blob, rows.offset_bytes + rows.size_bytes - 5)
    outcome = board.update(publisher.site)
    assert _is_new(board, bundles, outcome)
    assert "the parent is not as it was" in outcome.plan.passed_over[-1]
    assert outcome.fetched_bytes < _full_bytes(publisher) + _the_delta(publisher).file.size_bytes - FRAME_BYTES


def test_a_parent_that_is_known_to_be_rotten_is_none(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    _rot(Store(board.store).active() / "table.bin", 70_000)
    assert Scrub(Store(board.store), rate_bytes=2**40).run().rotten
    with RepositoryServer(publisher.site) as server:
        outcome = board.update(WebSite(server.address))
        assert _the_delta(publisher).file.sha256 not in _blobs(server)
    assert _is_new(board, bundles, outcome)
    assert not outcome.plan.passed_over


def test_a_delta_that_led_nowhere_is_not_fetched_again(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    wanted = _the_delta(publisher).file
    table = next(file for file in _newest(publisher).files if file.name == "table.bin")
    hidden = (publisher.site / "blobs" / table.sha256).rename(publisher.site / "hidden")
    with RepositoryServer(publisher.site, wrong(f"blobs/{wanted.sha256}")) as server, pytest.raises(FetchError):
        board.update(WebSite(server.address))
    hidden.rename(publisher.site / "blobs" / table.sha256)
    with RepositoryServer(publisher.site) as server:
        outcome = board.update(WebSite(server.address))
        assert wanted.sha256 not in _blobs(server)
    assert _is_new(board, bundles, outcome)


# The flash.


@dataclass
class _SmallFs(OsFs):
    """A flash that has room for so many bytes more."""

    left: int
    taken: dict[Path, int] = field(default_factory=dict)

    def reserve(self, path: Path, size_bytes: int) -> None:
        if size_bytes > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().reserve(path, size_bytes)
        self.taken[path] = size_bytes
        self.left -= size_bytes

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.left += self.taken.pop(path, 0)


def test_room_is_taken_for_the_delta_and_for_what_it_makes_before_a_byte_is_fetched(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    delta_bytes, full_bytes = _the_delta(publisher).file.size_bytes, _full_bytes(publisher)
    with RepositoryServer(publisher.site) as server:
        with pytest.raises(SpaceError, match="No space left"):
            board.update(WebSite(server.address), fs=_SmallFs(full_bytes - 1))
        assert not _blobs(server)
    assert board.update(publisher.site, fs=_SmallFs(delta_bytes + full_bytes)).plan.kind == DELTA


def test_where_there_is_room_for_the_files_and_not_for_a_delta_beside_them_the_files_are_fetched(
    publisher: Publisher, board: Board, bundles: Sequence[Path]
) -> None:
    outcome = board.update(publisher.site, fs=_SmallFs(_full_bytes(publisher)))
    assert _is_new(board, bundles, outcome)
    assert "No space left" in outcome.plan.passed_over[-1]


@dataclass
class _FailingFs(OsFs):
    """A flash that fails from some operation on."""

    left: int

    def _count(self, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

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

    def unlink(self, path: Path) -> None:
        self._count(path)
        super().unlink(path)


def test_a_flash_that_fails_at_any_operation_costs_a_sentence_and_nothing_that_serves(
    publisher: Publisher, board: Board, bundles: Sequence[Path], tmp_path: Path
) -> None:
    for left in range(100):
        copy = replace(board, store=_copied(board.store, tmp_path / "copy"))
        try:
            copy.update(publisher.site, fs=_FailingFs(left))
        except StoreError as error:
            assert os.strerror(errno.EIO) in str(error)
            with Bundle.open(Store(copy.store).active()) as bundle:
                bundle.verify()
        else:
            break
        assert copy.update(publisher.site).kind in (INSTALLED, UP_TO_DATE)
        assert copy.serving == _id(bundles[1])
        shutil.rmtree(copy.store)
    assert 20 < left < 99
