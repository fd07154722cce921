"""Deltas of somebody who wants a board to crash, to fill its memory or to serve other bytes: one per rule broken."""

from __future__ import annotations

import lzma
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_embed_bundle import delta
from edge_embed_bundle.delta import FRAME_HEAD, HEAD, number, shift
from edge_embed_bundle.errors import BundleError, DeltaError, DigestError
from tests.deltas import applied, files, frame, frames_of, made, packed, patch

#: Takes an honest delta; the frame of ``table.rows`` is found by what it makes.
Attack = Callable[[bytes], bytes]

_BOMB_BYTES = 2**27


def _head(index: int, value: bytes | int) -> Attack:
    def attack(data: bytes) -> bytes:
        fields = list(HEAD.unpack_from(data))
        fields[index] = value
        return HEAD.pack(*fields) + data[HEAD.size :]

    return attack


def _rows(change: Callable[[bytes], bytes]) -> Attack:
    """Put another frame in the place of the largest one, which makes the rows."""

    def attack(data: bytes) -> bytes:
        frames = frames_of(data)
        largest = max(range(1, len(frames)), key=lambda i: len(frames[i]))
        frames[largest] = change(frames[largest])
        return data[: HEAD.size] + b"".join(frames)

    return attack


def _held(held: bytes, way: str = "rows") -> Attack:
    """Let the frame of the rows hold something else; its digest is that of the honest one."""

    def change(honest: bytes) -> bytes:
        digest = FRAME_HEAD.unpack_from(honest)[3]
        data = packed(held)
        return FRAME_HEAD.pack(delta.WAYS.index(way), 0, len(data), digest) + data

    return _rows(change)


def _lzma_bomb() -> bytes:
    return lzma.compress(bytes(_BOMB_BYTES // 4), lzma.FORMAT_RAW, filters=list(delta.LZMA_FILTERS))


def _swapped(data: bytes) -> bytes:
    first, *frames = frames_of(data)
    return data[: HEAD.size] + first + b"".join(reversed(frames))


def _twice(data: bytes) -> bytes:
    frames = frames_of(data)
    return data + frames[-1]


def _run(*, new: int = 0, old: int = 0, count: int = 1) -> bytes:
    return number(1) + number(new) + shift(old) + number(count)


ATTACKS: dict[str, tuple[Attack, str]] = {
    "nothing": (lambda data: b"", "a head: expected 76 bytes"),
    "another kind of file": (_head(0, b"EEDELTA9"), "expected a delta that begins with"),
    "another parent": (_head(1, bytes(32)), "the bundle at hand, found 0000"),
    "another bundle promised": (_head(2, bytes(32)), "manifest.json: expected sha256 0000"),
    "no manifest": (_head(3, 0), "expected a manifest of 1 to 1048576 bytes, found 0"),
    "a manifest of 4 GiB": (_head(3, 2**32 - 1), "expected a manifest of 1 to 1048576 bytes, found 4294967295"),
    "a manifest that is longer": (_head(3, 2**20), "the frame of manifest.json: expected a frame of its way"),
    "cut in a frame": (lambda data: data[:-1], "expected"),
    "cut between frames": (lambda data: data[: -len(frames_of(data)[-1])], "an end at byte"),
    "bytes behind the end": (lambda data: data + b"\0", "behind the last frame"),
    "a frame sent twice": (_twice, "behind the last frame"),
    "frames in another order": (_swapped, "expected"),
    "no such way": (_rows(lambda honest: b"\x06" + honest[1:]), "a way below 6"),
    "no such packing": (_rows(lambda honest: honest[:1] + b"\x02" + honest[2:]), "a packing below 2"),
    "a frame of 4 GiB": (
        _rows(lambda honest: honest[:2] + struct.pack("<I", 2**32 - 1) + honest[6:]),
        "4294967295 bytes from",
    ),
    "a bomb": (_held(bytes(_BOMB_BYTES)), "a whole zlib stream of at most 1572864 bytes"),
    "a bomb of the other kind": (
        _rows(lambda honest: frame(1, _lzma_bomb(), b"", packing=1)),
        "a whole lzma stream of at most 1572864 bytes",
    ),
    "no stream": (_rows(lambda honest: frame(1, b"\xff" * 50, b"")), "a whole zlib stream"),
    "a stream without its end": (_rows(lambda honest: frame(1, packed(b"abc" * 99)[:-3], b"")), "a whole zlib stream"),
    "bytes behind a stream": (_rows(lambda honest: frame(1, packed(b"abc") + b"\0", b"")), "bytes behind its end"),
    "an empty frame": (_held(b""), "an end within a number"),
    "a number without end": (_held(b"\xff" * 20), "a number of more than nine bytes"),
    "more runs than a frame may have": (_held(number(2**14 + 1)), "16385 runs, of 16384 at most"),
    "a run before the parent's rows": (_held(_run(old=-1)), "a run of 1 from -1"),
    "a run behind the parent's rows": (_held(_run(old=64)), "a run of 1 from 64 to 0, of 64 units"),
    "a run behind the frame": (_held(_run(new=64)), "a run of 1 from 0 to 64"),
    "a run of nothing": (_held(_run(count=0)), "a run of 0"),
    "a run of 2**62 rows": (_held(_run(count=2**62)), "a run of 4611686018427387904"),
    "a run from 2**62": (_held(_run(old=2**61)), "a run of 1 from 2305843009213693952"),
    "fewer bytes than rows want": (_held(number(0) + bytes(10)), "10 bytes where"),
    "more bytes than rows want": (_held(number(0) + bytes(2**14)), "bytes behind the end"),
    "rows that are lengths": (_held(b"", "norms"), "the way norms for rows"),
    "rows that are slots": (_held(b"", "slots"), "the way slots for rows"),
    "rows that are answers": (_held(b"", "means"), "the way means for rows"),
    "other rows": (_held(number(0) + bytes(1024)), "sha256"),
}


@pytest.fixture(scope="module")
def honest(bundle: Path, newer_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("honest") / "delta"
    made(bundle, newer_bundle, file)
    return file.read_bytes()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_delta_is_refused_in_one_sentence(attack: str, honest: bytes, bundle: Path, tmp_path: Path) -> None:
    change, says = ATTACKS[attack]
    (tmp_path / "delta").write_bytes(change(honest))
    tracemalloc.start()
    try:
        with pytest.raises((DeltaError, DigestError)) as refused:
            applied(bundle, tmp_path / "delta", tmp_path / "made")
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["delta"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2**20), bit=st.integers(0, 7))
@example(at=HEAD.size, bit=0)
def test_every_flipped_bit_is_refused(
    at: int, bit: int, honest: bytes, bundle: Path, newer_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(honest)
    data[at % len(data)] ^= 1 << bit
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "delta").write_bytes(data)
    try:
        found = files(applied(bundle, folder / "delta", folder / "made"))
    except BundleError:
        return
    # Padding of a stream says nothing.
    assert found == files(newer_bundle)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=st.binary(max_size=300), way=st.sampled_from(delta.WAYS), place=st.integers(1, 30))
def test_whatever_a_frame_holds_only_our_errors_come_out(
    held: bytes, way: str, place: int, honest: bytes, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    frames = frames_of(honest)
    place = 1 + place % (len(frames) - 1)
    frames[place] = frame(delta.WAYS.index(way), packed(held), b"")
    file = tmp_path_factory.mktemp("fuzzed") / "delta"
    file.write_bytes(honest[: HEAD.size] + b"".join(frames))
    with patch(bundle, file) as opened, pytest.raises((DeltaError, DigestError)):
        for name in opened.made:
            for _ in opened.chunks(name):
                pass


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), whole=st.booleans())
def test_bytes_that_are_no_delta_are_refused(
    data: bytes, whole: bool, honest: bytes, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("bytes") / "delta"
    file.write_bytes(data if whole else honest[: HEAD.size] + data)
    with pytest.raises((DeltaError, DigestError)), patch(bundle, file):
        pass
