"""What rotted in a store comes again from a repository: the frames that did, and nothing that is not the blob."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_embed.commands import main
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import DigestError, FetchError, StoreError
from edge_embed_bundle.scrub import Scrub
from edge_embed_bundle.store import FRAME_BYTES, Rotten, Store
from edge_embed_bundle.updating.mending import mend
from edge_embed_bundle.updating.sites import FolderSite, WebSite
from tests.fakes.bad_servers import Fault, RepositoryServer, dripping, saying, without_ranges, wrong
from tests.fakes.probes import FakeProbe
from tests.fakes.rot import rot
from tests.making import make_unmeasured_bundle, rows_in_topics

RATE = 2**40
TABLE = "table.bin"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    place = tmp_path_factory.mktemp("bundles")
    return [
        make_unmeasured_bundle(place / f"v{i}", rows_in_topics(40_000, 32, seed=i), version=f"1.{i}.0", graphs=())
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def site(bundles: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blobs of a repository; metadata are not asked for."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "blobs").mkdir()
    for bundle in bundles:
        with Bundle.open(bundle) as opened:
            for name, blob in opened.manifest.blobs.items():
                (folder / "blobs" / blob.sha256).write_bytes((bundle / name).read_bytes())
    return folder


@pytest.fixture
def store(bundles: Sequence[Path], tmp_path: Path) -> Store:
    """A store that was scrubbed once, when it was sound; the table of each generation has three frames."""
    store = Store(tmp_path / "store")
    for bundle in bundles:
        store.install(bundle, FakeProbe())
    assert Scrub(store, rate_bytes=RATE).run().is_whole
    return store


def _rotten(store: Store) -> Rotten:
    (found,) = Scrub(store, rate_bytes=RATE).run().rotten
    return found


def _scrub(store: Store, *words: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    assert main(["scrub", str(store.path), "--rate", "1000GB", "--json", *words]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_fetches_the_rotten_frame_alone_and_lifts_the_quarantine(
    store: Store, bundles: Sequence[Path], site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rotten = store.active()
    rot(rotten, FRAME_BYTES + 5)
    with RepositoryServer(site) as server:
        found = _scrub(store, "--repository", server.address, capsys=capsys)
        assert server.body_bytes == FRAME_BYTES
        assert [asked.range for asked in server.asked] == [f"bytes={FRAME_BYTES}-{2 * FRAME_BYTES - 1}"]
    assert found["mended"] == [each["sha256"] for each in found["rotten"]]
    assert (found["quarantined"], found["refused"], found["problems"]) == ([rotten.name], [], [])
    assert (rotten / TABLE).read_bytes() == (bundles[1] / TABLE).read_bytes()
    assert main(["status", str(store.path)]) == 0
    # Which of them serves is for an update, or for who runs the board.
    assert store.rollback().active == rotten.name
    assert Scrub(store, rate_bytes=RATE).run().is_whole


def test_what_its_operator_left_stays_left_though_its_rot_is_mended(
    store: Store, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = store.active()
    store.rollback()
    rot(left, 5)
    assert _scrub(store, capsys=capsys, status=1)["quarantined"] == [left.name]
    found = _scrub(store, "--repository", str(site), capsys=capsys)
    assert (len(found["mended"]), found["refused"]) == (1, [left.name])


def test_what_serves_though_it_is_rotten_is_mended_where_it_serves(
    bundles: Sequence[Path], site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "alone")
    store.install(bundles[0], FakeProbe())
    rot(store.active(), 5)
    assert "goes on" in _scrub(store, capsys=capsys, status=1)["problems"][0]
    # Nothing was noted while it was sound, so all of the blob comes.
    with RepositoryServer(site) as server:
        assert _scrub(store, "--repository", server.address, capsys=capsys)["problems"] == []
        assert server.body_bytes == (bundles[0] / TABLE).stat().st_size
    with Bundle.open(store.active()) as bundle:
        bundle.verify()


def test_a_stick_mends_as_a_server_does_and_says_so(
    store: Store, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rot(store.active(), 5)
    assert main(["scrub", str(store.path), "--rate", "1000GB", "--repository", str(site)]) == 0
    said = capsys.readouterr().out
    assert "serves; it is whole again" in said and "1 blobs rotten, 1 mended" in said


def test_frames_that_stand_side_by_side_are_one_request(store: Store, site: Path) -> None:
    size = (store.active() / TABLE).stat().st_size
    rot(store.active(), 5, size - 1)
    with RepositoryServer(site) as server:
        mend(store, _rotten(store), WebSite(server.address))
        last = size // FRAME_BYTES * FRAME_BYTES
        assert [asked.range for asked in server.asked] == [f"bytes=0-{FRAME_BYTES - 1}", f"bytes={last}-{size - 1}"]
    rot(store.active(), 5, FRAME_BYTES)
    with RepositoryServer(site) as server:
        mend(store, _rotten(store), WebSite(server.address))
        assert [asked.range for asked in server.asked] == [f"bytes=0-{2 * FRAME_BYTES - 1}"]
    assert Scrub(store, rate_bytes=RATE).run().is_whole


def test_of_a_file_that_is_cut_short_what_is_missing_is_fetched(
    store: Store, bundles: Sequence[Path], site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, size = store.active(), (store.active() / TABLE).stat().st_size
    os.truncate(cut / TABLE, FRAME_BYTES + 1000)
    with RepositoryServer(site) as server:
        found = _scrub(store, "--repository", server.address, capsys=capsys)
        assert server.body_bytes == size - FRAME_BYTES
    assert (found["quarantined"], found["refused"], found["problems"]) == ([cut.name], [], [])
    assert (cut / TABLE).read_bytes() == (bundles[1] / TABLE).read_bytes()
    assert Scrub(store, rate_bytes=RATE).run().is_whole


@pytest.mark.parametrize("also", [False, True])
def test_a_file_that_is_gone_is_fetched(
    store: Store, bundles: Sequence[Path], site: Path, capsys: pytest.CaptureFixture[str], also: bool
) -> None:
    gone, size = store.active(), (store.active() / TABLE).stat().st_size
    (gone / TABLE).unlink()
    if also:
        with Bundle.open(bundles[1]) as bundle:
            (store.path / "blobs" / bundle.manifest.blobs[TABLE].sha256).unlink()
    with RepositoryServer(site) as server:
        assert _scrub(store, "--repository", server.address, capsys=capsys)["refused"] == []
        assert server.body_bytes == size
    assert store.rollback().active == gone.name
    with Bundle.open(gone) as bundle:
        bundle.verify()


def test_a_file_that_both_generations_lack_is_fetched_once(bundles: Sequence[Path], site: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    again = make_unmeasured_bundle(tmp_path / "again", rows_in_topics(40_000, 32), version="1.0.1", graphs=())
    for bundle in (bundles[0], again):
        store.install(bundle, FakeProbe())
    kept = [store.generation(str(name)) for name in (store.state().active, store.state().previous)]
    assert (kept[0] / TABLE).samefile(kept[1] / TABLE)
    for generation in kept:
        (generation / TABLE).unlink()
    scrub = Scrub(store, rate_bytes=RATE)
    assert len(scrub.run().rotten) == 1
    assert scrub.mend(lambda rotten: mend(store, rotten, FolderSite(site))).is_whole
    assert (kept[0] / TABLE).samefile(kept[1] / TABLE)


def test_room_is_taken_before_a_byte_is_asked_for(store: Store, site: Path) -> None:
    (store.active() / TABLE).unlink()
    rotten, (soft, hard) = _rotten(store), resource.getrlimit(resource.RLIMIT_FSIZE)
    with RepositoryServer(site) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (rotten.size_bytes - 1, hard))
        try:
            with pytest.raises(StoreError, match="expected room"):
                mend(store, rotten, WebSite(server.address))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not server.asked


def test_a_server_that_knows_no_ranges_mends_all_the_same(store: Store, site: Path) -> None:
    rot(store.active(), FRAME_BYTES)
    with RepositoryServer(site, without_ranges("blobs")) as server:
        mend(store, _rotten(store), WebSite(server.address))
    assert Scrub(store, rate_bytes=RATE).run().is_whole


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (wrong("blobs", FRAME_BYTES + 7), DigestError),
        (saying("blobs", 404), FetchError),
        (dripping("blobs", 0.01), FetchError),
    ],
)
def test_what_does_not_mend_a_blob_changes_nothing(
    store: Store, site: Path, fault: Fault, error: type[Exception]
) -> None:
    rot(store.active(), FRAME_BYTES)
    rotten = _rotten(store)
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    with RepositoryServer(site, fault) as server, pytest.raises(error, match=rotten.sha256):
        mend(store, rotten, WebSite(server.address, silence_seconds=1.0), frame_seconds=0.3)
    assert {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()} == before


def test_what_no_repository_has_stays_rotten_and_the_rest_is_mended(
    store: Store, bundles: Sequence[Path], site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, previous = store.active(), store.generation(str(store.state().previous))
    for generation in (newest, previous):
        rot(generation, 5)
    with Bundle.open(bundles[0]) as opened:
        absent = opened.manifest.blobs[TABLE].sha256
    with RepositoryServer(site, saying(f"blobs/{absent}", 404)) as server:
        found = _scrub(store, "--repository", server.address, capsys=capsys, status=1)
    assert absent not in found["mended"]
    assert len(found["mended"]) == 1
    assert any("was not mended" in problem for problem in found["problems"])
    assert (newest / TABLE).read_bytes() == (bundles[1] / TABLE).read_bytes()
    assert found["active"] == newest.name


def test_the_store_is_free_while_frames_arrive(store: Store, bundles: Sequence[Path], site: Path) -> None:
    sound = store.state().previous
    rot(store.active(), 5)
    found, said = _rotten(store), []

    def operator(request: object, path: str, data: bytes) -> bool:
        said.append(store.install(bundles[0], FakeProbe()).reason)
        return False

    with RepositoryServer(site, operator) as server:
        mend(store, found, WebSite(server.address))
    assert (said, store.state().active) == (["serves already"], sound)
    assert Scrub(store, rate_bytes=RATE).run().is_whole
