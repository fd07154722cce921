"""The store installs, refuses, rolls back and keeps serving; its probes are fakes, its files are real."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import (
    BundleError,
    BusyError,
    DigestError,
    EmptyStoreError,
    RefusedError,
    SpaceError,
    StateError,
    StoreError,
)
from edge_embed_bundle.state import REFUSED_CEILING, TRIES
from edge_embed_bundle.store import Store
from edge_embed_bundle.values import Blob
from tests.fakes.lying_flash import LyingFs
from tests.fakes.probes import CRASH, NO, YES, FakeProbe, PowerCutError
from tests.making import make_bundle, small_source, small_text_source


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


def test_an_installed_bundle_serves_under_its_own_file_names(store: Store, bundle: Path) -> None:
    probe = FakeProbe()
    assert store.install(bundle, probe).passed
    assert store.active().name == _id(bundle)
    assert {path.name for path in store.active().iterdir()} == {path.name for path in bundle.iterdir()}
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in store.active().iterdir())
    assert probe.asked == [_id(bundle)]


def test_a_blob_that_two_generations_share_is_on_flash_once(store: Store, text_bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", version="2.0.0", source=small_text_source(), collection=("word1 word2",))
    store.install(text_bundle, FakeProbe())
    first = (store.active() / "table.tflite").stat()
    store.install(other.path, FakeProbe())
    assert (store.active() / "table.tflite").stat().st_ino == first.st_ino


def test_the_try_is_spent_before_the_trial_is_loaded(store: Store, bundle: Path) -> None:
    probe = FakeProbe()
    store.install(bundle, probe)
    (seen,) = probe.states
    assert (seen.trial, seen.tries_left, seen.active) == (_id(bundle), TRIES - 1, None)


def test_a_probe_that_says_no_is_final_and_the_old_bundle_serves_on(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    store.install(bundle, FakeProbe())
    probe = FakeProbe([NO])
    with pytest.raises(RefusedError, match=r"golden answers.*serves on"):
        store.install(newer_bundle, probe)
    assert len(probe.asked) == 1
    assert store.active().name == _id(bundle)
    assert store.state().refused == (_id(newer_bundle),)


def test_a_probe_that_crashes_is_tried_again_until_no_try_is_left(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    store.install(bundle, FakeProbe())
    store.install(newer_bundle, FakeProbe([CRASH, CRASH, YES]))
    assert store.active().name == _id(newer_bundle)
    store.rollback()
    probe = FakeProbe([CRASH])
    with pytest.raises(RefusedError, match="status -9"):
        store.install(newer_bundle, probe, retry=True)
    assert len(probe.asked) == TRIES
    assert store.active().name == _id(bundle)


def test_a_refused_bundle_is_never_tried_again_unless_its_operator_says_so(store: Store, bundle: Path) -> None:
    with pytest.raises(RefusedError):
        store.install(bundle, FakeProbe([NO]))
    probe = FakeProbe()
    with pytest.raises(RefusedError, match="pass --retry"):
        store.install(bundle, probe)
    assert not probe.asked
    store.install(bundle, probe, retry=True)
    assert store.active().name == _id(bundle)
    assert store.state().refused == ()


def test_a_board_that_dies_at_every_load_gives_the_trial_up_after_its_tries(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    store.install(bundle, FakeProbe())
    deadly = FakeProbe(dies=True)
    for _ in range(TRIES):
        with pytest.raises(PowerCutError):
            store.install(newer_bundle, deadly)
        assert store.active().name == _id(bundle)
    with pytest.raises(RefusedError, match="refused"):
        store.install(newer_bundle, deadly)
    assert len(deadly.asked) == TRIES
    assert store.state().trial is None


def test_an_interrupted_trial_is_settled_by_the_next_install(
    store: Store, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store.install(bundle, FakeProbe())
    with pytest.raises(PowerCutError):
        store.install(newer_bundle, FakeProbe(dies=True))
    third = make_bundle(tmp_path / "third", version="3.0.0", source=small_source(seed=3)).path
    probe = FakeProbe()
    store.install(third, probe)
    assert probe.asked == [_id(newer_bundle), _id(third)]
    state = store.state()
    assert (state.active, state.previous) == (_id(third), _id(newer_bundle))


def test_only_active_and_previous_are_kept(store: Store, bundle: Path, newer_bundle: Path, tmp_path: Path) -> None:
    third = make_bundle(tmp_path / "third", version="3.0.0", source=small_source(seed=3)).path
    for each in (bundle, newer_bundle, third):
        store.install(each, FakeProbe())
    kept = {_id(newer_bundle), _id(third)}
    assert {path.name for path in (store.path / "generations").iterdir()} == kept
    used = {blob.sha256 for each in (newer_bundle, third) for blob in _blobs(each)}
    assert {path.name for path in (store.path / "blobs").iterdir()} == used


def _blobs(bundle: Path) -> list[Blob]:
    with Bundle.open(bundle) as opened:
        return list(opened.manifest.blobs.values())


def test_installing_what_serves_already_changes_nothing(store: Store, bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    before = store.state()
    probe = FakeProbe()
    assert store.install(bundle, probe).reason == "serves already"
    assert store.state() == before
    assert not probe.asked


def test_rollback_goes_to_the_previous_generation_and_back(store: Store, bundle: Path, newer_bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    with pytest.raises(StoreError, match="previous generation"):
        store.rollback()
    store.install(newer_bundle, FakeProbe())
    store.rollback()
    assert store.active().name == _id(bundle)
    assert store.state().refused == (_id(newer_bundle),)
    store.rollback()
    assert store.active().name == _id(newer_bundle)


def test_rollback_to_a_rotten_generation_is_refused(store: Store, bundle: Path, newer_bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    store.install(newer_bundle, FakeProbe())
    _rot(store.generation(_id(bundle)) / "table.tflite")
    with pytest.raises(DigestError, match=r"table\.tflite"):
        store.rollback()
    assert store.active().name == _id(newer_bundle)


def test_rollback_to_a_generation_whose_manifest_says_something_else_by_now_is_refused(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    store.install(bundle, FakeProbe())
    store.install(newer_bundle, FakeProbe())
    path = store.generation(_id(bundle)) / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"version": "1.0.0"', '"version": "1.0.1"'))
    with pytest.raises(DigestError, match=rf"manifest\.json: expected sha256 {_id(bundle)}"):
        store.rollback()
    assert store.active().name == _id(newer_bundle)


def test_a_lock_that_leads_elsewhere_is_refused(store: Store, bundle: Path, tmp_path: Path) -> None:
    store.install(bundle, FakeProbe())
    (store.path / "lock").unlink()
    (store.path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="lock: expected a lock to hold, found"):
        store.rollback()
    assert not (tmp_path / "elsewhere").exists()


def _rot(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_rotten_blob_in_the_store_is_not_shared_with_a_new_generation(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    store.install(bundle, FakeProbe())
    store.install(newer_bundle, FakeProbe())
    _rot(store.generation(_id(bundle)) / "table.tflite")
    store.install(bundle, FakeProbe())
    with Bundle.open(store.active()) as opened:
        opened.verify()
        assert opened.id == _id(bundle)


def test_a_damaged_source_changes_nothing_even_where_the_store_has_a_good_copy(
    store: Store, bundle: Path, damageable: Path
) -> None:
    store.install(bundle, FakeProbe())
    before = store.state()
    _rot(damageable / "table.tflite")
    with pytest.raises(DigestError, match=r"damageable/table\.tflite: expected sha256"):
        store.install(damageable, FakeProbe())
    assert store.state() == before


def test_a_source_that_changes_after_it_was_verified_gives_the_store_no_blob(store: Store, damageable: Path) -> None:
    with Bundle.open(damageable) as opened:
        left = opened.manifest.size_bytes

    def rot_once_verified(read_bytes: int) -> None:
        nonlocal left
        left -= read_bytes
        if left == 0:
            _rot(damageable / "table.tflite")

    with pytest.raises(DigestError, match=r"damageable/table\.tflite: expected sha256"):
        store.install(damageable, FakeProbe(), progress=rot_once_verified)
    for blob in (store.path / "blobs").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert store.status().generations == ()


def test_a_card_that_keeps_other_bytes_than_were_written_never_brings_a_generation_to_its_trial(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    store.install(bundle, FakeProbe())
    probe = FakeProbe()
    with pytest.raises(BundleError, match=r"store/generations/.*: expected"):
        Store(store.path, fs=LyingFs()).install(newer_bundle, probe)
    assert not probe.asked
    assert store.active().name == _id(bundle)
    store.install(newer_bundle, probe)
    assert store.active().name == _id(newer_bundle)


def test_an_interrupted_trial_that_is_not_whole_any_more_is_refused_unprobed(
    store: Store, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store.install(bundle, FakeProbe())
    with pytest.raises(PowerCutError):
        store.install(newer_bundle, FakeProbe(dies=True))
    _rot(store.generation(_id(newer_bundle)) / "table.tflite")
    third = make_bundle(tmp_path / "third", version="3.0.0", source=small_source(seed=3)).path
    probe = FakeProbe()
    store.install(third, probe)
    assert probe.asked == [_id(third)]
    assert store.state().refused == (_id(newer_bundle),)


def test_one_process_changes_a_store_at_a_time(store: Store, bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    descriptor = os.open(store.path / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process"):
            store.install(bundle, FakeProbe())
        with pytest.raises(BusyError):
            store.rollback()
        assert store.active().name == _id(bundle)
    finally:
        os.close(descriptor)


def test_an_empty_place_is_no_store_yet_and_a_folder_of_strangers_never_becomes_one(
    tmp_path: Path, bundle: Path
) -> None:
    with pytest.raises(EmptyStoreError, match="expected a store, found none"):
        Store(tmp_path / "nowhere").active()
    with pytest.raises(EmptyStoreError):
        Store(tmp_path / "nowhere").rollback()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(StoreError, match=r"cat\.jpg"):
        Store(tmp_path / "photos").install(bundle, FakeProbe())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        Store(tmp_path / "file").install(bundle, FakeProbe())
    with pytest.raises(StoreError):
        Store(tmp_path / "no" / "parent").install(bundle, FakeProbe())


def test_a_store_that_never_confirmed_anything_says_so(store: Store, bundle: Path) -> None:
    with pytest.raises(RefusedError):
        store.install(bundle, FakeProbe([NO]))
    with pytest.raises(EmptyStoreError, match="expected a confirmed bundle"):
        store.active()
    assert store.status().generations == ()


def test_two_damaged_slots_are_an_error_that_touches_nothing(store: Store, bundle: Path, newer_bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    for name in ("slot.0", "slot.1"):
        (store.path / name).write_bytes(b"\xff" * 512)
    with pytest.raises(StateError, match=r"slot\.0 or slot\.1"):
        store.active()
    with pytest.raises(StateError):
        store.install(newer_bundle, FakeProbe())
    assert store.generation(_id(bundle)).is_dir()


def test_one_damaged_slot_is_survived(store: Store, bundle: Path, newer_bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    records = [(store.path / name).read_bytes() for name in ("slot.0", "slot.1")]
    for name, record in zip(("slot.0", "slot.1"), records, strict=True):
        (store.path / name).write_bytes(b"\xff" * 512)
        assert store.state().sequence > 0
        (store.path / name).write_bytes(record)
    (store.path / "slot.0").write_bytes(b"\xff" * 512)
    store.install(newer_bundle, FakeProbe())
    assert store.active().name == _id(newer_bundle)


def test_the_refused_are_remembered_up_to_the_room_in_a_slot(store: Store, tmp_path: Path) -> None:
    made = [
        make_bundle(tmp_path / f"v{i}", version=f"{i}.0", source=small_source(dimensions=2), graphs=()).path
        for i in range(REFUSED_CEILING + 1)
    ]
    for each in made:
        with pytest.raises(RefusedError):
            store.install(each, FakeProbe([NO]))
    assert store.state().refused == tuple(map(_id, made[1:]))


def test_status_names_generations_and_what_is_wrong_with_them(store: Store, bundle: Path, newer_bundle: Path) -> None:
    store.install(bundle, FakeProbe())
    store.install(newer_bundle, FakeProbe())
    active, previous = store.status().generations
    assert (active.role, active.name, active.version) == ("active", "small", "1.1.0")
    assert (previous.role, previous.version) == ("previous", "1.0.0")
    shutil.rmtree(store.generation(previous.id))
    assert "expected a bundle folder" in store.status().generations[1].problem


def test_a_store_without_room_says_so_before_it_reads_the_source(store: Store, bundle: Path, damageable: Path) -> None:
    huge = 2**43
    text = (damageable / "manifest.json").read_text()
    stated = f'"size_bytes": {(damageable / "table.bin").stat().st_size}'
    (damageable / "manifest.json").write_text(text.replace(stated, f'"size_bytes": {huge}'))
    try:
        # A sparse file: 8 TiB long, no room taken.
        os.truncate(damageable / "table.bin", huge)
    except OSError as error:
        pytest.skip(f"this file system has no sparse files of 8 TiB: {error}")
    store.install(bundle, FakeProbe())
    with pytest.raises(SpaceError, match="free bytes for the new generation"):
        store.install(damageable, FakeProbe())
    assert store.active().name == _id(bundle)


@pytest.mark.parametrize("damage", ["rotten", "lost"])
def test_installing_what_serves_already_repairs_it(store: Store, bundle: Path, damage: str) -> None:
    store.install(bundle, FakeProbe())
    path = store.active() / "table.tflite"
    _rot(path) if damage == "rotten" else path.unlink()
    assert store.install(bundle, FakeProbe()).reason == "served already, damaged; repaired"
    with Bundle.open(store.active()) as opened:
        opened.verify()
    assert not [path for path in (store.path / "generations").iterdir() if path.name.startswith(".")]
