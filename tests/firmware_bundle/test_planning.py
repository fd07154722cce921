"""Which release a device takes: rules over values, and the gate that makes the values of a channel's file."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace

import pytest

from edge_embed_bundle.errors import ManifestError
from edge_embed_bundle.room import PROCESS_BYTES
from edge_embed_bundle.updating.planning import ALLOW, DELTA, FULL, NOTHING_NEW, Device, by_delta, by_files, plan
from edge_embed_bundle.updating.releases import (
    FRAME_BYTES,
    Channel,
    Delta,
    File,
    Release,
    changed_spaces,
    delta_name,
)

SPACE, OTHER = "1" * 64, "2" * 64


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _release(version: str, **changes: object) -> Release:
    identity = _digest(version)
    manifest = File("manifest.json", 10, identity, (identity,))
    table = File("table.bin", FRAME_BYTES + 1, _digest("table"), (_digest("a"), _digest("b")))
    release = Release(
        identity,
        "words",
        version,
        {"table": SPACE},
        ("codec-int8",),
        "0.1.0",
        (),
        100,
        "a" * 64,
        False,
        (manifest, table),
    )
    return release._replace(**changes)  # type: ignore[arg-type]


DEVICE = Device("a board", "0.1.0", "pi-4")
NEW, OLD = _release("1.1.0"), _release("1.0.0")


def _delta(parent: str, size_bytes: int) -> Delta:
    return Delta(parent, File(delta_name(parent), size_bytes, _digest(f"from {parent}"), (_digest("c"),)))


OLDER = _digest("0.9.0")
SHORT = NEW._replace(deltas=(_delta(OLD.id, 500), _delta(OLDER, 800)))


def test_the_newest_release_is_taken_whole() -> None:
    found = plan(Channel("stable", (NEW, OLD)), DEVICE)
    assert (found.kind, found.release, found.files) == (FULL, NEW, NEW.files)
    assert not found.passed_over


def test_what_serves_already_is_not_fetched() -> None:
    found = plan(Channel("stable", (NEW, OLD)), replace(DEVICE, active=NEW.id))
    assert (found.kind, found.release, found.files) == (NOTHING_NEW, NEW, ())


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"boards": ("pi-5", "pi-zero-2w")}, DEVICE, "for pi-5, pi-zero-2w, and this board is pi-4"),
        ({"boards": ("pi-5",)}, replace(DEVICE, board=""), "this board is not named"),
        ({"minimum_runtime": "0.2.0"}, DEVICE, "needs edge-embed 0.2.0, and this is 0.1.0"),
        ({"minimum_runtime": "0.10.0"}, replace(DEVICE, runtime="0.9.1"), "needs edge-embed 0.10.0"),
        ({"features": ("codec-int8", "telepathy")}, DEVICE, "knows telepathy"),
        ({"percent": 0}, DEVICE, "rolled out to 0 percent"),
        (
            {"memory_private_bytes": 5000},
            replace(DEVICE, free_memory_bytes=PROCESS_BYTES + 4999),
            f"needs {PROCESS_BYTES + 5000} bytes of memory for its trial, and fewer are free",
        ),
        ({"halted": True}, DEVICE, "halted"),
        ({}, replace(DEVICE, refused=(NEW.id,)), "refused by this board before"),
        (
            {"spaces": {"table": OTHER}, "new_space": "another corpus"},
            replace(DEVICE, spaces={"table": SPACE}),
            "another space for table (another corpus)",
        ),
    ],
)
def test_a_release_that_is_not_meant_for_a_device_is_passed_over_and_the_older_one_taken(
    changes: dict[str, object], device: Device, reason: str
) -> None:
    found = plan(Channel("stable", (_release("1.1.0", **changes), OLD)), device)
    assert found.release == OLD
    (said,) = found.passed_over
    assert said.startswith("words 1.1.0")
    assert reason in said


@pytest.mark.parametrize(
    "device",
    [
        replace(DEVICE, free_memory_bytes=PROCESS_BYTES + 5000),
        replace(DEVICE, free_memory_bytes=None),
        replace(DEVICE, free_memory_bytes=0, drains=True),
    ],
)
def test_a_release_that_fits_or_gets_room_or_of_which_nobody_knows_is_taken(device: Device) -> None:
    large = NEW._replace(memory_private_bytes=5000)
    assert plan(Channel("stable", (large, OLD)), device).release == large


def test_a_board_that_has_a_release_keeps_it_when_its_share_shrinks_to_nothing() -> None:
    paused = NEW._replace(percent=0)
    assert plan(Channel("stable", (paused, OLD)), replace(DEVICE, active=NEW.id)).kind == NOTHING_NEW


def test_a_halted_release_is_left_for_the_one_before() -> None:
    halted = NEW._replace(halted=True)
    found = plan(Channel("stable", (halted, OLD)), replace(DEVICE, active=NEW.id))
    assert (found.kind, found.release) == (FULL, OLD)


def test_a_new_space_is_taken_where_its_owner_allows_it() -> None:
    other = NEW._replace(spaces={"table": OTHER})
    device = replace(DEVICE, spaces={"table": SPACE}, new_space=ALLOW)
    assert plan(Channel("stable", (other, OLD)), device).release == other


def test_a_model_more_is_no_change_of_space_and_one_less_is() -> None:
    assert changed_spaces({"a": SPACE}, {"a": SPACE, "b": OTHER}) == ()
    assert changed_spaces({"a": SPACE, "b": OTHER}, {"a": SPACE}) == ("b",)


def test_a_channel_without_a_release_for_a_device_leaves_it_alone() -> None:
    found = plan(Channel("stable"), DEVICE)
    assert (found.kind, found.release) == (NOTHING_NEW, None)


# Deltas.


@pytest.mark.parametrize(
    ("missing_bytes", "delta_bytes", "parent"),
    [
        (1000, {OLD.id: 500, OLDER: 800}, OLD.id),
        (2000, {OLDER: 800}, OLDER),
        # What is on the flash already counts nothing, of the files as of the deltas.
        (2000, {OLD.id: 500, OLDER: 0}, OLDER),
        (1000, {OLDER: 600}, None),
        (1000, {OLDER: 599}, OLDER),
        (800, {OLD.id: 500}, None),
        (0, {OLD.id: 0}, None),
        (1000, {}, None),
        (1000, {_digest("another bundle"): 1}, None),
    ],
)
def test_the_delta_with_the_least_to_fetch_is_taken_where_it_saves_much(
    missing_bytes: int, delta_bytes: dict[str, int], parent: str | None
) -> None:
    full = plan(Channel("stable", (SHORT, OLD)), DEVICE)
    found = by_delta(full, missing_bytes, delta_bytes)
    if parent is None:
        assert found == full
    else:
        assert found.kind == DELTA
        assert found.delta is not None
        assert found.delta.parent == parent
        assert found.files == (found.delta.file, *SHORT.files)


def test_a_delta_that_led_nowhere_is_told_and_the_files_are_taken() -> None:
    full = plan(Channel("stable", (SHORT, OLD)), DEVICE)
    found = by_files(by_delta(full, 1000, {OLD.id: 5}), "a reason")
    assert (found.kind, found.delta, found.files, found.passed_over) == (FULL, None, SHORT.files, ("a reason",))


# Roll-out.


def test_a_share_of_the_fleet_is_about_that_large() -> None:
    ten = NEW._replace(percent=10)
    taken = sum(ten.takes(f"board {i}") for i in range(10_000))
    assert 900 < taken < 1100


def test_who_is_in_a_small_share_is_in_every_larger_one() -> None:
    devices = [f"board {i}" for i in range(1000)]
    shares = [{d for d in devices if NEW._replace(percent=p).takes(d)} for p in (0, 1, 10, 50, 99, 100)]
    assert not shares[0]
    assert shares[-1] == set(devices)
    assert all(small < large for small, large in itertools.pairwise(shares))


def test_the_next_release_begins_with_other_boards() -> None:
    devices = [f"board {i}" for i in range(1000)]
    first = {d for d in devices if NEW._replace(percent=10).takes(d)}
    second = {d for d in devices if NEW._replace(percent=10, salt="b" * 64).takes(d)}
    assert len(first & second) < 40


# The gate.


def test_a_channel_survives_its_file() -> None:
    channel = Channel(
        "stable", (SHORT._replace(new_space="why", memory_private_bytes=7), OLD._replace(halted=True, boards=("pi-4",)))
    )
    assert Channel.parse(channel.to_bytes(), source="channel") == channel


def test_fields_of_a_newer_publisher_are_kept_and_ignored() -> None:
    value = json.loads(Channel("stable", (SHORT,)).to_bytes())
    value["releases"][0]["wind"] = value["releases"][0]["deltas"][1]["wind"] = "west"
    parsed = Channel.parse(json.dumps(value).encode(), source="channel")
    assert parsed.releases[0].extra == parsed.releases[0].deltas[1].extra == {"wind": "west"}
    assert json.loads(parsed.to_bytes()) == value


def test_a_release_without_deltas_is_spelled_as_before_there_were_any() -> None:
    assert b"deltas" not in Channel("stable", (NEW,)).to_bytes()


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("format",), 2, "format: expected a whole number from 1 to 1"),
        (("releases", 0, "percent"), 101, "percent"),
        (("releases", 0, "percent"), -1, "percent"),
        (("releases", 0, "percent"), True, "percent"),
        (("releases", 0, "id"), "A" * 64, "id"),
        (("releases", 0, "id"), "f" * 64, r"files: expected manifest\.json first"),
        (("releases", 0, "salt"), "", "salt"),
        (("releases", 0, "minimum_runtime"), "new", "minimum_runtime"),
        (("releases", 0, "files"), [], r"files: expected manifest\.json first"),
        (("releases", 0, "files", 0, "size_bytes"), 2**21, "frames"),
        (("releases", 0, "files", 1, "name"), "../table.bin", "name"),
        (("releases", 0, "files", 1, "name"), "slot.0", "name"),
        (("releases", 0, "files", 1, "name"), "manifest.json", "each name once"),
        (("releases", 0, "files", 1, "sha256"), "../../etc", "sha256"),
        (("releases", 0, "files", 1, "size_bytes"), 2**60, "size_bytes"),
        (("releases", 0, "files", 1, "size_bytes"), 2**40, "frames"),
        (("releases", 0, "files", 1, "frames"), ["a" * 64], "frames"),
        (("releases", 0, "files", 1, "frames"), ["a" * 64, 7], "frames"),
        (("releases", 0, "files", 1, "frames"), ["a" * 64, "/"], "frames"),
        (("releases", 0, "spaces"), {"table": 3}, "spaces"),
        (("releases", 0, "deltas"), 7, "deltas: expected a list"),
        (("releases", 0, "deltas", 0, "parent"), "../etc", "parent"),
        (("releases", 0, "deltas", 0, "parent"), OLDER, "deltas: expected each parent once"),
        (("releases", 0, "deltas", 0, "parent"), NEW.id, "deltas: expected each parent once, and another bundle"),
        (("releases", 0, "deltas", 0, "size_bytes"), 2**40, "frames"),
        (("releases", 0, "deltas", 0, "sha256"), "a", "sha256"),
        (("releases", 0, "deltas", 0, "frames"), [], "frames"),
        (("releases",), {}, "releases: expected a list"),
    ],
)
def test_a_channel_that_breaks_a_rule_is_refused_by_name(
    place: tuple[str | int, ...], value: object, match: str
) -> None:
    found = json.loads(Channel("stable", (SHORT, OLD)).to_bytes())
    parent = found
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = value
    with pytest.raises(ManifestError, match=match):
        Channel.parse(json.dumps(found).encode(), source="channel")
