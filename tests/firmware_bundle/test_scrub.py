"""A scrub finds what rotted, names it to the frame, puts it away, and reads no faster than it may."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from edge_embed.commands import main
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import DigestError, RefusedError
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.scrub import Scrub, Scrubbed
from edge_embed_bundle.store import FRAME_BYTES, Store
from tests.fakes.probes import FakeProbe
from tests.fakes.rot import rot
from tests.fakes.weak_flash import RecordingFs, dice, everything, nothing, replayed
from tests.making import make_bundle, make_unmeasured_bundle, rows_in_topics, small_source

RATE = 2**40
TABLE = "table.bin"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("bundles")
    sources = [rows_in_topics(40_000, 32, seed=seed) for seed in range(2)]
    old, new = (
        make_unmeasured_bundle(place / f"v{i}", source, version=f"1.{i}.0", graphs=())
        for i, source in enumerate(sources)
    )
    return old, new


@pytest.fixture
def store(bundles: tuple[Path, Path], tmp_path: Path) -> Store:
    """A store with a previous and an active generation; the table of each has three frames."""
    store = Store(tmp_path / "store")
    for bundle in bundles:
        store.install(bundle, FakeProbe())
    return store


def _scrub(store: Store) -> Scrubbed:
    return Scrub(store, rate_bytes=RATE).run()


def _previous(store: Store) -> str:
    previous = store.state().previous
    assert previous is not None
    return previous


def _size_bytes(folder: Path) -> int:
    with Bundle.open(folder) as bundle:
        return bundle.manifest.size_bytes


def test_a_store_that_is_sound_is_read_whole_and_left_as_it_is(store: Store) -> None:
    before = store.state()
    found = _scrub(store)
    assert (found.rotten, found.quarantined, found.problems) == ((), (), ())
    # What both generations share is read once.
    assert 0 < found.read_bytes <= 2 * _size_bytes(store.active())
    assert store.state() == before
    assert _scrub(store) == found


def test_rot_in_what_serves_is_named_by_its_frames_and_the_other_generation_serves(store: Store) -> None:
    _scrub(store)
    rotten, sound = store.state().active, _previous(store)
    size_bytes = (store.active() / TABLE).stat().st_size
    rot(store.active(), 5, FRAME_BYTES - 1, size_bytes - 1)
    found = _scrub(store)
    last = size_bytes // FRAME_BYTES
    assert [(each.name, each.frames) for each in found.rotten] == [(TABLE, (0, last))]
    assert found.rotten[0].ranges[1] == (last * FRAME_BYTES, size_bytes - last * FRAME_BYTES)
    assert found.quarantined == (rotten,)
    state = store.state()
    assert (state.active, state.previous) == (sound, rotten)
    assert rotten in state.refused


def test_rot_that_was_there_before_the_first_scrub_is_the_whole_blob(store: Store) -> None:
    rot(store.active(), 5)
    frames = -(-(store.active() / TABLE).stat().st_size // FRAME_BYTES)
    assert _scrub(store).rotten[0].frames == tuple(range(frames))


def test_rot_in_the_previous_generation_refuses_it_once_and_nothing_else_changes(store: Store) -> None:
    _scrub(store)
    active, rotten = store.state().active, _previous(store)
    rot(store.generation(rotten), FRAME_BYTES)
    assert _scrub(store).quarantined == (rotten,)
    state = store.state()
    assert (state.active, state.previous, rotten in state.refused) == (active, rotten, True)
    assert _scrub(store).rotten[0].frames == (1,)
    assert store.state() == state


def test_where_nothing_else_is_whole_what_serves_goes_on_and_it_is_said(store: Store) -> None:
    active = store.state().active
    rot(store.active(), 5)
    rot(store.generation(_previous(store)), 5)
    found = _scrub(store)
    assert store.state().active == active
    assert len(found.rotten) == 2
    assert any("is rotten and goes on" in problem for problem in found.problems)


def test_the_only_generation_goes_on(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.install(bundles[0], FakeProbe())
    before = store.state()
    rot(store.active(), 5)
    assert "expected a previous generation to go back to" in _scrub(store).problems[0]
    assert store.state() == before


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_manifest_that_is_damaged_puts_its_generation_away(store: Store, damage: str) -> None:
    rotten = store.state().active
    if damage == "flipped":
        rot(store.active(), 1000, name="manifest.json")
    else:
        (store.active() / "manifest.json").unlink()
    found = _scrub(store)
    assert found.quarantined == (rotten,)
    assert "manifest.json" in found.problems[0]


@pytest.mark.parametrize("size_bytes", [0, 1000, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES])
def test_of_a_file_that_is_cut_short_the_frames_that_are_not_whole_are_rotten(store: Store, size_bytes: int) -> None:
    _scrub(store)
    cut, frames = store.active(), -(-(store.active() / TABLE).stat().st_size // FRAME_BYTES)
    os.truncate(cut / TABLE, size_bytes)
    found = _scrub(store)
    assert found.quarantined == (cut.name,)
    assert found.rotten[0].frames == tuple(range(size_bytes // FRAME_BYTES, frames))
    assert not found.problems


def test_of_a_file_that_is_gone_every_frame_is_rotten(store: Store) -> None:
    _scrub(store)
    gone, frames = store.active(), -(-(store.active() / TABLE).stat().st_size // FRAME_BYTES)
    (gone / TABLE).unlink()
    found = _scrub(store)
    assert (found.quarantined, found.rotten[0].frames) == ((gone.name,), tuple(range(frames)))


def test_of_a_file_with_more_behind_its_end_no_more_is_read_and_the_last_frame_is_rotten(store: Store) -> None:
    _scrub(store)
    longer, size_bytes = store.active(), (store.active() / TABLE).stat().st_size
    os.truncate(longer / TABLE, size_bytes + 2**40)
    found = _scrub(store)
    assert (found.quarantined, found.rotten[0].frames) == ((longer.name,), (size_bytes // FRAME_BYTES,))
    assert found.read_bytes <= _size_bytes(store.active()) * 2 + 1


def test_a_note_that_rotted_is_no_note(store: Store) -> None:
    _scrub(store)
    for note in (store.path / "sums").iterdir():
        rot(note.parent, 3, name=note.name)
    assert _scrub(store).rotten == ()
    rot(store.active(), 5)
    assert _scrub(store).rotten[0].frames == (0,)  # the notes were written anew


class _ReadOnlyFs(OsFs):
    """A flash that its file system gave up and mounted read-only."""

    def make_folder(self, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_a_flash_that_takes_nothing_any_more_is_scrubbed_all_the_same(store: Store) -> None:
    read_only = Store(store.path, fs=_ReadOnlyFs())
    found = _scrub(read_only)
    assert found.is_whole
    assert found.read_bytes == sum(_size_bytes(each) for each in (store.path / "generations").iterdir())
    rot(store.active(), 5)
    found = _scrub(read_only)
    assert [each.name for each in found.rotten] == [TABLE]
    assert "is rotten and not noted" in found.problems[0]


def test_a_repaired_generation_is_forgiven_and_its_rot_forgotten(store: Store, bundles: tuple[Path, Path]) -> None:
    _scrub(store)
    rot(store.active(), 5)
    _scrub(store)
    assert any(generation.rotten for generation in store.status().generations)
    with pytest.raises(RefusedError):
        store.install(bundles[1], FakeProbe())
    store.install(bundles[1], FakeProbe(), retry=True)
    assert not any(generation.rotten for generation in store.status().generations)
    assert store.state().refused == ()
    assert _scrub(store).rotten == ()


def test_only_what_rotted_is_fetched_again(store: Store, bundles: tuple[Path, Path]) -> None:
    _scrub(store)
    rotten = store.active().name
    rot(store.active(), FRAME_BYTES + 5)
    (found,) = _scrub(store).rotten
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, size_bytes: int) -> bytes:
        fetched.append((start, size_bytes))
        return (bundles[1] / TABLE).read_bytes()[start : start + size_bytes]

    with pytest.raises(DigestError, match="of the mended"):
        store.mend(found, lambda start, size_bytes: bytes(size_bytes))
    assert rotten in store.state().refused
    store.mend(found, fetch)
    assert fetched == [(FRAME_BYTES, FRAME_BYTES)]
    assert (store.generation(rotten) / TABLE).read_bytes() == (bundles[1] / TABLE).read_bytes()
    assert store.state().refused == ()
    assert _scrub(store).rotten == ()
    assert store.install(bundles[1], FakeProbe()).passed


def test_after_a_power_cut_anywhere_in_a_mending_the_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    store = Store(board / "store")
    bundle = make_bundle(tmp_path / "bundle", source=small_source(dimensions=4), graphs=()).path
    store.install(bundle, FakeProbe())
    rot(store.active(), 5)
    (found,) = _scrub(store).rotten
    rotten, right = (store.active() / TABLE).read_bytes(), (bundle / TABLE).read_bytes()
    shutil.copytree(board, tmp_path / "before")
    fs = RecordingFs(board)
    Store(store.path, fs=fs).mend(found, lambda start, size_bytes: right[start : start + size_bytes])
    for cut in range(len(fs.log) + 1):
        for fate in (everything, nothing, *(dice(10 * cut + i) for i in range(5))):
            flash = replayed(tmp_path / "before", tuple(fs.log), cut, fate, tmp_path / "cut")
            after = Store(flash / "store")
            assert (after.active() / TABLE).read_bytes() in (rotten, right)
            assert cut < len(fs.log) or (after.active() / TABLE).read_bytes() == right, "what was reported is lost"
            after.install(bundle, FakeProbe())
            assert (after.active() / TABLE).read_bytes() == right
            shutil.rmtree(flash)


def test_notes_go_with_the_blobs_that_they_are_of(store: Store, tmp_path: Path) -> None:
    _scrub(store)
    for seed in (2, 3):
        bundle = make_bundle(tmp_path / f"small{seed}", source=small_source(seed=seed), graphs=()).path
        store.install(bundle, FakeProbe())
    assert not list((store.path / "sums").iterdir())


def test_it_reads_no_faster_than_it_may(store: Store) -> None:
    clock = [0.0]

    def pause(seconds: float) -> None:
        clock[0] += seconds

    scrub = Scrub(store, rate_bytes=2**20, now=lambda: clock[0], pause=pause)
    while scrub.step():
        assert scrub.found().read_bytes <= clock[0] * 2**20 + 1
    assert clock[0] == pytest.approx(scrub.found().read_bytes / 2**20)


def test_nobody_waits_for_a_scrub(store: Store, bundles: tuple[Path, Path]) -> None:
    scrub = Scrub(store, rate_bytes=RATE)
    assert scrub.step()
    store.rollback()
    assert store.install(bundles[1], FakeProbe(), retry=True).passed
    assert scrub.run().rotten == ()


def test_after_a_power_cut_anywhere_in_a_scrub_a_generation_serves_and_the_next_scrub_ends_it(tmp_path: Path) -> None:
    bundles = [
        make_bundle(tmp_path / f"v{i}", version=f"1.{i}.0", source=small_source(seed=i, dimensions=4), graphs=()).path
        for i in range(2)
    ]
    board = tmp_path / "board"
    board.mkdir()
    store = Store(board / "store")
    for bundle in bundles:
        store.install(bundle, FakeProbe())
    rotten, sound = store.state().active, _previous(store)
    rot(store.active(), 5)
    shutil.copytree(board, tmp_path / "before")
    fs = RecordingFs(board)
    _scrub(Store(store.path, fs=fs))
    assert len(fs.log) > 10
    for cut in range(len(fs.log) + 1):
        for fate in (everything, nothing, *(dice(10 * cut + i) for i in range(5))):
            flash = replayed(tmp_path / "before", tuple(fs.log), cut, fate, tmp_path / "cut")
            after = Store(flash / "store")
            assert after.state().active in (rotten, sound)
            if cut == len(fs.log):
                noted = [each.name for generation in after.status().generations for each in generation.rotten]
                assert (after.state().active, noted) == (sound, [TABLE]), "what was reported is lost"
            found = _scrub(after)
            assert after.state().active == sound
            assert [each.name for each in found.rotten] == [TABLE]
            shutil.rmtree(flash)


def test_the_command_says_what_rotted_and_status_goes_on_saying_it(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scrub", str(store.path), "--rate", "1000GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rotten"] == []
    rotten = store.state().active
    rot(store.active(), 5)
    assert main(["scrub", str(store.path), "--rate", "1000GB"]) == 1
    said = capsys.readouterr().out
    assert f"rotten: {TABLE}" in said and "frames 0, 1.0 MiB to fetch again" in said
    assert f"quarantined {str(rotten)[:12]}" in said
    assert main(["status", str(store.path)]) == 1
    assert f"rotten: {TABLE}" in capsys.readouterr().out
    assert main(["status", str(store.path), "--json"]) == 1
    generations = json.loads(capsys.readouterr().out)["generations"]
    assert generations[1]["rotten"][0]["ranges"] == [{"offset_bytes": 0, "size_bytes": FRAME_BYTES}]
    assert main(["scrub", str(store.path), "--rate", "0"]) == 2
    assert "expected at least a byte a second" in capsys.readouterr().err
