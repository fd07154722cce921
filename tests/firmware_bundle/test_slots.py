"""Two slots, one record in force: no bit, no cut and no other process makes it unclear which."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed_bundle.errors import StateError
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.slots import (
    SLOT_BYTES,
    SLOT_NAMES,
    Slots,
    SlotWatch,
    generation_folder,
    is_store,
    pack,
    unpack,
)
from edge_embed_bundle.state import REFUSED_CEILING, TRIES, State

# A generation is named by a sha256; 64 zeros are how a slot spells that there is none.
NAMES = st.binary(min_size=32, max_size=32).filter(any).map(bytes.hex)
REFUSED = st.lists(NAMES, max_size=REFUSED_CEILING, unique=True).map(tuple)
STATES = st.builds(
    lambda bits, refused, **fields: State(
        refused=refused, rotten=frozenset(name for i, name in enumerate(refused) if bits >> i & 1), **fields
    ),
    bits=st.integers(0, 2**REFUSED_CEILING - 1),
    refused=REFUSED,
    sequence=st.integers(0, 2**63 - 1),
    active=st.none() | NAMES,
    previous=st.none() | NAMES,
    trial=st.none() | NAMES,
    tries_left=st.integers(0, TRIES),
    needs_bytes=st.integers(0, 2**64 - 1),
)
A, B = "a" * 64, "b" * 64
# Behind the magic, the sequence, three identities and the tries.
_REFUSED_COUNT_AT = 8 + 8 + 3 * 32 + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store's folder with both slots in their first state."""
    Slots(tmp_path).create(OsFs())
    return tmp_path


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in SLOT_NAMES]


@given(STATES)
def test_a_record_is_one_sector_and_is_read_as_it_was_written(state: State) -> None:
    data = pack(state)
    assert len(data) == SLOT_BYTES == 512
    assert unpack(data) == state


@given(STATES, st.integers(0, SLOT_BYTES * 8 - 1))
def test_a_record_with_a_flipped_bit_is_none(state: State, bit: int) -> None:
    data = bytearray(pack(state))
    data[bit // 8] ^= 1 << bit % 8
    assert unpack(bytes(data)) is None


def test_every_single_flipped_bit_of_a_full_record_is_seen() -> None:
    full = State(7, A, B, "c" * 64, 2, tuple(f"{i:064x}" for i in range(1, REFUSED_CEILING + 1)))
    good = pack(full)
    for bit in range(SLOT_BYTES * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        assert unpack(bytes(data)) is None


@given(STATES, st.integers(0, SLOT_BYTES - 1), st.binary(min_size=1, max_size=9))
def test_a_record_that_is_too_short_or_too_long_is_none(state: State, length: int, more: bytes) -> None:
    data = pack(state)
    assert unpack(data[:length]) is None
    assert unpack(data + more) is None


def test_a_record_that_no_store_writes_is_none() -> None:
    assert unpack(pack(State(sequence=2**63))) is None
    assert unpack(pack(State(trial=A, tries_left=TRIES + 1))) is None
    whole = bytearray(pack(State(active=A)))
    for place, byte in ((0, ord("X")), (_REFUSED_COUNT_AT, REFUSED_CEILING + 1)):
        other = whole.copy()
        other[place] = byte
        assert unpack(bytes(other[:-32]) + hashlib.sha256(other[:-32]).digest()) is None


@pytest.mark.parametrize("stranger", ["pipe", "folder", "link"])
def test_a_slot_that_is_no_plain_file_is_as_good_as_none_and_makes_nobody_wait(folder: Path, stranger: str) -> None:
    slots = Slots(folder)
    slots.write(State(sequence=1, active=A), OsFs())
    written = next(folder / name for name in SLOT_NAMES if unpack((folder / name).read_bytes()) != State())
    other = folder / SLOT_NAMES[1 - SLOT_NAMES.index(written.name)]
    other.unlink()
    if stranger == "pipe":
        os.mkfifo(other)
    elif stranger == "folder":
        other.mkdir()
    else:
        other.symlink_to(written)
    assert slots.read().active == A
    watch = SlotWatch(folder)
    assert watch.read().active == A
    watch.close()
    written.unlink()
    with pytest.raises(StateError):
        slots.read()


@given(st.binary(min_size=SLOT_BYTES, max_size=SLOT_BYTES))
def test_random_bytes_are_no_record(data: bytes) -> None:
    assert unpack(data) is None


def test_an_erased_sector_is_no_record() -> None:
    assert unpack(bytes(SLOT_BYTES)) is None
    assert unpack(b"\xff" * SLOT_BYTES) is None


def test_new_slots_hold_the_first_state_and_make_the_folder_a_store(folder: Path, tmp_path: Path) -> None:
    assert Slots(folder).read() == State()
    assert is_store(folder) and not is_store(tmp_path / "elsewhere")
    assert generation_folder(folder, A) == str(folder / "generations" / A)


def test_only_the_slot_that_is_not_in_force_is_written(folder: Path) -> None:
    slots, fs = Slots(folder), OsFs()
    state = slots.read()
    for _ in range(5):
        before = _bytes(folder)
        in_force = before.index(pack(state))
        state = state._replace(sequence=state.sequence + 1, active=A)
        slots.write(state, fs)
        after = _bytes(folder)
        assert after[in_force] == before[in_force]
        assert after[1 - in_force] == pack(state)
        assert slots.read() == state


def test_a_write_that_was_cut_anywhere_leaves_the_older_record_in_force(folder: Path) -> None:
    slots, fs = Slots(folder), OsFs()
    slots.write(State(1, active=A), fs)
    old = slots.read()
    (idle,) = (name for name in SLOT_NAMES if (folder / name).read_bytes() != pack(old))
    torn, new = (folder / idle).read_bytes(), pack(State(2, active=B))
    for cut_at in range(SLOT_BYTES + 1):
        (folder / idle).write_bytes(new[:cut_at] + torn[cut_at:])
        assert slots.read() == (State(2, active=B) if new[cut_at:] == torn[cut_at:] else old)
    for cut_at in range(SLOT_BYTES):
        (folder / idle).write_bytes(new[:cut_at])
        assert slots.read() == old
    (folder / idle).unlink()
    assert slots.read() == old


def test_a_torn_slot_is_the_next_one_to_be_written(folder: Path) -> None:
    slots = Slots(folder)
    slots.write(State(1, active=A), OsFs())
    (idle,) = (name for name in SLOT_NAMES if (folder / name).read_bytes() != pack(State(1, active=A)))
    (folder / idle).write_bytes(os.urandom(SLOT_BYTES))
    slots.write(State(2, active=B), OsFs())
    assert (folder / idle).read_bytes() == pack(State(2, active=B))
    assert slots.read() == State(2, active=B)


def test_without_a_valid_slot_nothing_is_guessed_and_nothing_written(folder: Path) -> None:
    for name in SLOT_NAMES:
        (folder / name).write_bytes(bytes(SLOT_BYTES))
    for action in (Slots(folder).read, lambda: Slots(folder).write(State(1), OsFs())):
        with pytest.raises(StateError, match=r"expected a valid record in slot\.0 or slot\.1, found none"):
            action()
    assert _bytes(folder) == [bytes(SLOT_BYTES)] * 2


CHANGE = """
import sys
from pathlib import Path
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.slots import Slots
slots = Slots(Path(sys.argv[1]))
slots.write(slots.read().begin_trial(sys.argv[2]).spend_try().confirm(), OsFs())
"""


def test_a_watch_sees_what_another_process_wrote(folder: Path) -> None:
    watch = SlotWatch(folder)
    assert watch.read() == State() and not watch.changed()
    subprocess.run([sys.executable, "-c", CHANGE, folder, A], check=True)
    assert watch.changed()
    assert watch.read().active == A
    assert not watch.changed()
    watch.close()


def test_a_watch_that_looks_in_the_middle_of_a_write_sees_the_old_record_and_later_the_new_one(folder: Path) -> None:
    slots = Slots(folder)
    slots.write(State(1, active=A), OsFs())
    (idle,) = (name for name in SLOT_NAMES if (folder / name).read_bytes() != pack(State(1, active=A)))
    watch = SlotWatch(folder)
    watch.read()
    new = pack(State(2, active=B))
    with (folder / idle).open("r+b", buffering=0) as file:
        file.write(new[:100])
        assert watch.changed() and watch.read() == State(1, active=A)
        file.write(new[100:])
    assert watch.changed() and watch.read() == State(2, active=B)
    watch.close()


def test_a_watch_reads_what_one_whole_slot_says_and_needs_one(folder: Path, tmp_path: Path) -> None:
    in_force = SlotWatch(folder).read()
    os.truncate(folder / "slot.1", 100)
    assert SlotWatch(folder).read().sequence in (in_force.sequence, in_force.sequence - 1)
    (folder / "slot.1").unlink()
    watch = SlotWatch(folder)
    state = watch.read()
    assert not watch.changed()
    Slots(folder).write(state._replace(sequence=state.sequence + 1, active=B), OsFs())
    assert watch.changed() and watch.read().active == B
    with pytest.raises(StateError, match=r"nowhere: expected a valid record in slot\.0 or slot\.1"):
        SlotWatch(tmp_path / "nowhere").read()


def test_who_asks_for_news_while_another_thread_forgets_is_told_that_there_are_some_or_none(folder: Path) -> None:
    watch, place, steps = SlotWatch(folder), 0, 0

    def forget(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if frame.f_code is not SlotWatch.changed.__code__:
            return None
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        if steps == place:
            watch.forget()
        return forget

    while steps >= place:
        watch.read()
        place, steps = place + 1, 0
        sys.settrace(forget)
        try:
            assert watch.changed() in (False, True)
        finally:
            sys.settrace(None)
    assert place > 10
