"""Which pages stay and which come and go: as the kernel itself counts them."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from benchmarks.cgroup import MemoryLimit
from edge_embed import memory
from edge_embed_bundle.manifest import TableModel
from edge_embed_bundle.store import Store
from tests.fakes.probes import FakeProbe
from tests.making import make_bundle, make_topics_in_lists, small_source, with_table

ROWS, DIMENSIONS = 60_000, 100
_MIB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of 24 MB of rows."""
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    source = with_table(small_source(keys=tuple(f"key {row}" for row in range(ROWS))), vectors=vectors, text=None)
    folder = tmp_path_factory.mktemp("large") / "bundle"
    return make_bundle(folder, source=source, codec="float32", graphs=()).path


def _sections_read_at_random(path: Path, model: TableModel) -> set[str]:
    """Return the tensors whose maps have the kernel's flag for random reads (``rr``, proc(5))."""
    found = set()
    blob = path / model.tensors["rows"].blob
    areas = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    for area in areas:
        if str(blob) not in area or not re.search(r"^VmFlags:.* rr( |$)", area, re.MULTILINE):
            continue
        first, last, _, offset = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+)", area).groups()  # type: ignore[union-attr]
        start, size = int(offset, 16), int(last, 16) - int(first, 16)
        for name, tensor in model.tensors.items():
            if start <= tensor.offset_bytes < start + size:
                found.add(name)
    return found


def test_what_is_read_at_random_is_advised_so_and_a_scan_takes_the_advice_back_only_while_it_lasts(
    tmp_path: Path,
) -> None:
    path = make_bundle(tmp_path / "plain", graphs=()).path
    with edge_embed.open(path) as runtime:
        model = runtime.manifest.tables[0]
        advised = {"index_pilots", "index_slots", "rows", "scales"}
        assert _sections_read_at_random(path, model) == advised
        with runtime.table().pages.scanned():
            assert _sections_read_at_random(path, model) == {"index_pilots", "index_slots"}
        assert _sections_read_at_random(path, model) == advised
        runtime.search("word1")
        assert _sections_read_at_random(path, model) == advised


def test_a_budget_with_no_room_for_what_is_read_ahead_has_all_pages_read_singly(large: Path) -> None:
    tight = memory.current().private_bytes + runtime_needs(large) + _MIB
    with edge_embed.open(large, verify=False, memory_budget=tight) as runtime:
        model = runtime.manifest.tables[0]
        assert _sections_read_at_random(large, model) == set(model.tensors)
        with runtime.table().pages.scanned():
            assert _sections_read_at_random(large, model) == set(model.tensors)


@pytest.mark.parametrize("plane", [False, True])
def test_rows_in_lists_keep_the_read_ahead_but_behind_a_plane(tmp_path: Path, plane: bool) -> None:
    path = make_topics_in_lists(tmp_path / "lists", 600, 8, plane=plane)
    with edge_embed.open(path) as runtime:
        found = _sections_read_at_random(path, runtime.manifest.tables[0])
        assert "index_slots" in found and "plane" not in found and "centroids" not in found
        assert ("rows" in found) is plane


def test_all_pages_of_the_rows_that_are_asked_for_come_and_no_others(large: Path) -> None:
    with edge_embed.open(large, verify=False) as runtime:
        rows = runtime.manifest.tables[0].tensors["rows"]
        _evict(large)
        if _in_memory(runtime.bundle.tensor(rows), 20):
            pytest.skip("the file system keeps its pages in memory")
        # Row 10 of 400 bytes begins on page 0 and ends on page 1; row 61 lies on page 5, row 71 on 6 and 7.
        runtime.table().pages.ask(np.array([10, 61, 71]))
        until = time.monotonic() + 10
        while _in_memory(runtime.bundle.tensor(rows), 20) != {0, 1, 5, 6, 7} and time.monotonic() < until:
            time.sleep(0.01)
        assert _in_memory(runtime.bundle.tensor(rows), 20) == {0, 1, 5, 6, 7}


def test_who_waits_for_flash_is_noted_and_only_who_waits(large: Path) -> None:
    with edge_embed.open(large, verify=False) as runtime:
        rows = runtime.bundle.tensor(runtime.manifest.tables[0].tensors["rows"])
        pages = runtime.table().pages
        _evict(large)
        if _in_memory(rows, 20):
            pytest.skip("the file system keeps its pages in memory")
        assert not pages.waited
        for waited in (True, False):
            with pages.compared():
                assert rows[mmap.PAGESIZE * 9] is not None
            assert pages.waited is waited


def _in_memory(tensor: memoryview, count: int) -> set[int]:
    """Return which of a mapped tensor's first pages are in memory (``mincore(2)``)."""
    there = (ctypes.c_ubyte * count)()
    address = ctypes.c_void_p(int(np.frombuffer(tensor, np.uint8).ctypes.data))
    assert not ctypes.CDLL(None).mincore(address, ctypes.c_size_t(count * mmap.PAGESIZE), there)
    return {page for page in range(count) if there[page] & 1}


def test_under_a_budget_what_is_asked_for_most_is_pinned_within_half_of_what_is_left(large: Path) -> None:
    before = memory.current()
    with edge_embed.open(large, verify=False) as runtime:
        assert runtime.memory().pinned_bytes == before.pinned_bytes
    adds = runtime_needs(large)
    for room in (2, 4, 400):
        budget = memory.current().private_bytes + adds + room * _MIB
        with edge_embed.open(large, verify=False, memory_budget=budget) as runtime:
            pinned = runtime.memory().pinned_bytes - before.pinned_bytes
            assert 0 < pinned <= room * _MIB / 2
            assert runtime.memory().private_bytes + pinned <= budget
            assert len(runtime.lookup("key 7")) == DIMENSIONS
        assert memory.current().pinned_bytes == before.pinned_bytes


def runtime_needs(path: Path) -> int:
    """Return what a bundle says that it adds to a process."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    return int(manifest["requirements"]["memory_private_bytes"])


def test_a_new_generation_pins_after_the_old_one_let_go(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for seed in (0, 1):
        keys = tuple(f"key {row}" for row in range(5000))
        source = small_source(seed=seed, keys=keys)
        made = make_bundle(tmp_path / str(seed), version=f"1.0.{seed}", source=source, graphs=()).path
        Store(store).install(made, FakeProbe())
        if seed == 0:
            before = memory.current().pinned_bytes
            runtime = edge_embed.open(store, memory_budget="4GiB")
            first, pinned = runtime.generation, runtime.memory().pinned_bytes - before
    runtime.catch_up()
    runtime.lookup("key 1")
    assert runtime.generation != first
    assert 0 < runtime.memory().pinned_bytes - before <= 1.1 * pinned
    runtime.close()
    assert memory.current().pinned_bytes == before


_WITHOUT_LOCKS = """
import ctypes, resource, sys
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
# No capability, or a superuser may lock in spite of the limit (capset(2), version 3).
assert not ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
import edge_embed
with edge_embed.open(sys.argv[1], verify=False, memory_budget="4GiB") as runtime:
    print(len(runtime.lookup("key 7")), runtime.memory().pinned_bytes)
"""


def test_who_may_not_pin_serves_all_the_same(large: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", _WITHOUT_LOCKS, str(large)], capture_output=True, check=True)
    assert answer.stdout.split() == [b"100", b"0"]


def _evict(path: Path) -> None:
    """Let the system forget a bundle's pages."""
    for blob in path.iterdir():
        descriptor = os.open(blob, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


_OPENED = """
import sys, edge_embed
read = lambda: int(dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())["read_bytes"])
before = read()
runtime = edge_embed.open(sys.argv[1], verify=False, memory_budget="4GiB")
print(read() - before)
runtime.lookup("key 7")
print(read() - before)
"""


def test_opening_reads_almost_nothing(large: Path) -> None:
    _evict(large)
    # The command's own modules may come from disk the first time; the answer is about the bundle.
    subprocess.run([sys.executable, "-c", "import edge_embed"], check=True)
    answer = subprocess.run([sys.executable, "-c", _OPENED, str(large)], capture_output=True, check=True)
    opened, looked_up = map(int, answer.stdout.split())
    if not looked_up:
        pytest.skip("the file system keeps its pages in memory, or does not count what it reads")
    assert opened < 1.5 * _MIB and looked_up < 2 * _MIB


_WORKS = """
import random, sys, threading
import edge_embed
runtime = edge_embed.open(sys.argv[1], verify=False, memory_budget=sys.argv[2])
def work(seed):
    rows = random.Random(seed)
    for _ in range(400):
        runtime.lookup(f"key {rows.randrange(60_000)}")
    runtime.search([f"key {row}" for row in rows.sample(range(60_000), 3)], k=100, exact=True)
workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
"""
_HELD_BESIDE = "from edge_embed import memory, runtime; print(memory.current().private_bytes)"


def test_a_process_that_may_hold_no_more_than_its_budget_is_never_killed(large: Path) -> None:
    beside = int(subprocess.run([sys.executable, "-c", _HELD_BESIDE], capture_output=True, check=True).stdout)
    budget = beside + runtime_needs(large) + _MIB
    for _ in range(3):
        # Pages that are in memory already are charged to who brought them there.
        _evict(large)
        try:
            with MemoryLimit(budget) as limit:
                command = [sys.executable, "-c", _WORKS, str(large), str(budget)]
                done = subprocess.run(command, preexec_fn=limit.enter, capture_output=True, text=True)
                kills, refusals = limit.kills, limit.refusals
        except OSError as error:
            pytest.skip(f"no memory controller may be used here: {error}")
        assert (done.returncode, kills) == (0, 0), done.stderr
        assert refusals > 0, "the limit was never met"
