"""A trial that does not fit beside what serves: who serves lets go between two calls, waits, and answers again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import pytest

import edge_embed
from edge_embed import memory
from edge_embed_bundle.errors import RefusedError
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.room import PROCESS_BYTES, held
from edge_embed_bundle.slots import Slots
from edge_embed_bundle.store import Store, Verdict
from tests.fakes.probes import NO, FakeProbe, PowerCutError

PLENTY = 2**40


@pytest.fixture
def store(tmp_path: Path, bundle: Path) -> Path:
    Store(tmp_path / "store").install(bundle, FakeProbe())
    return tmp_path / "store"


def _maps(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/generations" in line]


def _room_without(folder: Path) -> Callable[[], int]:
    """Return a board's memory: there is none as long as this process maps a generation."""
    return lambda: 0 if _maps(folder) else PLENTY


@contextmanager
def _asking(runtime: edge_embed.Runtime, threads: int = 3) -> Iterator[list[object]]:
    """Ask without a break; yield what went wrong."""
    stop, wrong = threading.Event(), list[object]()

    def ask() -> None:
        while not stop.is_set():
            try:
                if not runtime.lookup(["word1", "word2"]).any() or not runtime.encode("word3").any():
                    wrong.append("zeros")
            except Exception as error:
                wrong.append(error)
            time.sleep(0.001)

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in asking:
            thread.join()


@pytest.mark.parametrize("verdict", [Verdict(True), NO])
def test_who_serves_lets_go_for_the_trial_and_no_call_fails(store: Path, newer_bundle: Path, verdict: Verdict) -> None:
    mapped: list[int] = []

    def probe(generation: Path) -> Verdict:
        mapped.append(len(_maps(store)))
        return verdict

    board = Store(store, free_memory=_room_without(store))
    with edge_embed.open(store) as runtime:
        runtime.encode("word1")
        assert _maps(store)
        with _asking(runtime) as wrong:
            try:
                board.install(newer_bundle, probe, drain=True)
            except RefusedError:
                assert verdict is NO
            time.sleep(0.1)
        runtime.catch_up()
        assert (mapped, wrong) == ([0], [])
        assert runtime.manifest.version == ("1.1.0" if verdict.passed else "1.0.0")
        assert runtime.problem is None
    assert board.state().needs_bytes == 0


def test_nobody_is_asked_to_let_go_where_the_trial_fits_or_the_operator_did_not_say_so(
    store: Path, bundle: Path, newer_bundle: Path
) -> None:
    with edge_embed.open(bundle) as alone:
        needed = alone.manifest.requirements.memory_private_bytes + PROCESS_BYTES
    asked: list[int] = []

    def probe(generation: Path) -> Verdict:
        asked.append(Store(store).state().needs_bytes)
        return NO

    for free, drain in ((needed, True), (None, True), (0, False), (needed - 1, True)):
        with pytest.raises(RefusedError):
            frees = iter((free, PLENTY))
            Store(store, free_memory=frees.__next__).install(newer_bundle, probe, drain=drain, retry=True)
    assert asked == [0, 0, 0, needed]


def test_for_who_asks_nothing_a_trial_does_not_wait_for_ever_and_is_refused(store: Path, newer_bundle: Path) -> None:
    probe = FakeProbe()
    board = Store(store, free_memory=_room_without(store), patience_seconds=0.1)
    with edge_embed.open(store) as idle:
        with pytest.raises(RefusedError, match=r"bytes of free memory for its trial, found 0 after"):
            board.install(newer_bundle, probe, drain=True)
        assert idle.lookup("word1").any()
        assert (idle.manifest.version, idle.problem, probe.asked) == ("1.0.0", None, [])
    assert len(board.state().refused) == 1


def test_that_memory_was_lacking_is_told_by_who_ends_a_trial_that_was_cut_off(store: Path, newer_bundle: Path) -> None:
    frees = iter((0, PLENTY))
    with pytest.raises(PowerCutError):
        Store(store, free_memory=frees.__next__).install(newer_bundle, FakeProbe(dies=True), drain=True)
    board = Store(store, free_memory=lambda: 0, patience_seconds=0.1)
    with pytest.raises(RefusedError, match=r"bytes of free memory for its trial, found 0 after"):
        board.install(newer_bundle, FakeProbe(), drain=True)
    with pytest.raises(RefusedError, match=r"refused small 1\.1\.0 \(\w+\) before; pass --retry"):
        board.install(newer_bundle, FakeProbe(), drain=True)


def test_an_installer_that_is_killed_in_the_trial_keeps_nobody_from_serving(store: Path, newer_bundle: Path) -> None:
    body = """
import sys, time
from edge_embed_bundle.store import Store
frees = iter((0, 2**40))
def probe(generation):
    print("trying", flush=True)
    time.sleep(60)
Store(sys.argv[1], free_memory=frees.__next__).install(sys.argv[2], probe, drain=True)
"""
    command = [sys.executable, "-c", body, str(store), str(newer_bundle)]
    with edge_embed.open(store) as runtime, _asking(runtime) as wrong:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as installer:
            assert installer.stdout is not None and installer.stdout.readline() == "trying\n"
            end = time.monotonic() + 10
            while _maps(store) and time.monotonic() < end:
                time.sleep(0.01)
            assert not _maps(store)
            os.kill(installer.pid, signal.SIGKILL)
        assert runtime.manifest.version == "1.0.0"
        assert Store(store).state().needs_bytes > 0
        # A process that starts now is not kept from it, either.
        with edge_embed.open(store) as another:
            assert another.lookup("word1").any()
        # What the dead one left open is settled by the next one.
        Store(store, free_memory=lambda: PLENTY).settle(FakeProbe())
        runtime.catch_up()
        assert runtime.manifest.version == "1.1.0"
    assert not wrong


def test_who_cannot_open_what_he_let_go_for_answers_from_what_served_before(store: Path, tmp_path: Path) -> None:
    from tests.making import make_bundle, small_source

    big = small_source(seed=9, dimensions=2048, keys=tuple(f"key{i}" for i in range(2000)))
    made = make_bundle(tmp_path / "big", version="9.0.0", source=big, graphs=()).path
    with edge_embed.open(store) as alone:
        budget = memory.current().private_bytes + alone.manifest.requirements.memory_private_bytes + 2**20
    with edge_embed.open(store, memory_budget=budget) as runtime:
        with _asking(runtime, 1) as wrong:
            Store(store, free_memory=_room_without(store)).install(made, FakeProbe(), drain=True)
            time.sleep(0.1)
        assert not wrong
        assert runtime.lookup("word1").any()
        assert runtime.manifest.version == "1.0.0"
        assert runtime.problem is not None and "of private memory" in runtime.problem


def test_a_trial_that_begins_in_the_middle_of_a_move_is_made_room_for_by_the_next_call(
    store: Path, bundle: Path
) -> None:
    slots, fs = Slots(store), OsFs()
    trial = next(path for path in (store / "generations").iterdir())
    mapped: list[int] = []

    def begin(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_open_active":
            sys.setprofile(None)
            trying.enter_context(held(trial))
            slots.write(slots.read().spend_try(), fs)

    def end() -> None:
        time.sleep(0.3)
        mapped.append(len(_maps(store)))
        trying.close()

    with ExitStack() as trying, edge_embed.open(store) as runtime:
        assert runtime.lookup("word1").any()
        slots.write(slots.read().begin_trial(trial.name, needs_bytes=1), fs)
        # As an installer in another process may, at a place that is known.
        sys.setprofile(begin)
        runtime.catch_up()
        ending = threading.Thread(target=end)
        ending.start()
        assert runtime.lookup("word1").any()
        ending.join()
    assert mapped == [0]


def test_a_runtime_that_is_closed_while_it_waits_is_closed(store: Path, newer_bundle: Path) -> None:
    runtime = edge_embed.open(store)

    def probe(generation: Path) -> Verdict:
        runtime.close()
        # Who waited is told; nobody is left behind in the lock.
        asking.join(10)
        return Verdict(True)

    said: list[str] = []

    def ask() -> None:
        try:
            while True:
                runtime.lookup("word1")
        except edge_embed.RequestError as error:
            said.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    Store(store, free_memory=_room_without(store)).install(newer_bundle, probe, drain=True)
    assert not asking.is_alive()
    assert said == ["this runtime is closed"]
