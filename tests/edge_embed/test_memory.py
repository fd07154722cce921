"""Sizes as people write them, and the memory of this very process."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed import memory
from edge_embed.errors import RequestError
from edge_embed.memory import format_size, parse_size
from edge_embed_bundle.store import Store
from tests.fakes.probes import FakeProbe

SERVES = """
import sys
import numpy
before = set(sys.modules)
import edge_embed
edge_embed.open(sys.argv[1]).lookup("word1")
print(*set(sys.modules) - before)
"""


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1000000", 10**6),
        (4096, 4096),
        ("64MiB", 64 * 2**20),
        ("64mib", 64 * 2**20),
        (" 64 MiB ", 64 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("7B", 7),
        ("2KB", 2000),
        ("2KiB", 2048),
        ("0.5KiB", 512),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", " ", "MiB", "64 M", "64MiB more", "-1", "+1", "1,5GB", "1e6", ".5GB", "٣MiB", "nan", 1.5, True, None]
)
def test_what_is_no_size_is_refused_with_examples_of_one(text: object) -> None:
    with pytest.raises(RequestError, match="expected a size like 64MiB"):
        parse_size(text)  # type: ignore[arg-type]


def test_a_size_of_more_digits_than_any_memory_has_is_refused() -> None:
    with pytest.raises(RequestError, match="expected a size like"):
        parse_size("9" * 400)


@given(st.integers(0, 2**49))
def test_a_plain_number_is_read_to_the_last_byte(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (31.4 * 2**20, "31.4 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (3 * 2**40, "3072.0 GiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_a_size_is_shown_with_one_decimal_in_the_largest_unit_that_fits(size_bytes: float, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 2**48))
def test_a_size_that_was_shown_can_be_read_again(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.06)


@pytest.mark.parametrize(
    ("line", "limits", "least"),
    [
        ("0::/app.slice/app.service", {"app.slice/app.service/memory.max": "100000000"}, 100_000_000),
        ("0::/app.slice/app.service", {"app.slice/memory.max": "7", "app.slice/app.service/memory.max": "max"}, 7),
        ("0::/", {"memory.max": "100000000"}, 100_000_000),
        ("4:cpu,memory:/docker/1", {"memory/memory.limit_in_bytes": "5000"}, 5000),
        ("4:cpu:/docker/1", {"memory/memory.limit_in_bytes": "5000"}, None),
        ("0::/", {"memory.max": "max"}, None),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("no group", {}, None),
    ],
)
def test_a_process_may_hold_what_its_groups_leave_it_and_no_more_than_the_machine_has(
    tmp_path: Path, line: str, limits: dict[str, str], least: int | None
) -> None:
    (tmp_path / "groups").write_text(f"{line}\n")
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{limit}\n")
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.allowed_bytes(str(tmp_path / "groups"), str(tmp_path)) == (least or machine_bytes)
    assert memory.allowed_bytes(str(tmp_path / "none"), str(tmp_path)) == machine_bytes


def test_what_is_written_is_private_and_what_is_read_from_a_file_is_mapped(tmp_path: Path) -> None:
    size_bytes = 32 * 2**20
    file = tmp_path / "file"
    file.write_bytes(bytes(size_bytes))
    start = memory.current()
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as written:
        written.write(b"\1" * size_bytes)
        after_writing = memory.current()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as read:
        before_reading = memory.current()
        assert read.find(b"\1") == -1
        after_reading = memory.current()
    assert after_writing.private_bytes - start.private_bytes > 0.9 * size_bytes
    assert after_reading.mapped_bytes - before_reading.mapped_bytes > 0.9 * size_bytes
    assert after_reading.private_bytes - before_reading.private_bytes < 0.1 * size_bytes


def test_a_peak_is_seen_though_it_is_gone_when_the_work_is_done() -> None:
    before = memory.current().private_bytes
    with memory.Peak() as peak:
        passing = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        passing.write(bytes(range(256)) * (len(passing) // 256))
        time.sleep(0.05)
        passing.close()
    assert peak.private_bytes >= before + 32 * 2**20
    assert memory.current().private_bytes < peak.private_bytes - 32 * 2**20


def test_serving_a_store_loads_no_library_that_takes_memory_and_is_not_needed(bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    command = [sys.executable, "-c", SERVES, str(store.path)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "edge_embed.runtime" in loaded
    # OpenSSL, and what pathlib brings on CPython 3.11: more than a megabyte of private memory.
    assert not loaded & {"_hashlib", "_ssl", "pathlib", "urllib.parse", "ctypes", "inspect", "tempfile", "argparse"}
    # A frozen dataclass takes 1 to 3 ms to define on a workstation, a NamedTuple .2.
    assert "dataclasses" not in loaded


def test_where_python_has_no_ctypes_nothing_is_given_back_and_nothing_fails() -> None:
    body = "import sys; sys.modules['ctypes'] = None; from edge_embed import memory; memory.give_back()"
    subprocess.run([sys.executable, "-c", body], check=True, timeout=60)
