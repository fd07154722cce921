"""An open runtime follows its store from generation to generation, between two calls and never inside one."""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import edge_embed
from benchmarks.swapping import returns, swapped
from edge_embed.errors import RequestError
from edge_embed.probing import probe
from edge_embed_bundle.errors import EmptyStoreError, RefusedError
from edge_embed_bundle.slots import SLOT_NAMES
from edge_embed_bundle.store import Store
from tests.fakes.probes import NO, FakeProbe
from tests.making import make_bundle, small_source, small_text_source, with_table


@pytest.fixture
def store(tmp_path: Path, bundle: Path) -> Store:
    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    return store


def test_who_catches_up_is_answered_by_what_was_confirmed(store: Store, bundle: Path, newer_bundle: Path) -> None:
    with (
        edge_embed.open(store.path) as runtime,
        edge_embed.open(bundle) as old,
        edge_embed.open(newer_bundle) as new,
    ):
        np.testing.assert_array_equal(runtime.lookup("word1"), old.lookup("word1"))
        store.install(newer_bundle, FakeProbe())
        runtime.catch_up()
        np.testing.assert_array_equal(runtime.lookup("word1"), new.lookup("word1"))
        assert runtime.manifest.version == "1.1.0"
        assert runtime.space.id == new.space.id
        store.rollback()
        runtime.catch_up()
        np.testing.assert_array_equal(runtime.lookup("word1"), old.lookup("word1"))
        assert runtime.problem is None


def test_calls_alone_lead_to_what_was_confirmed_a_moment_later(store: Store, bundle: Path, newer_bundle: Path) -> None:
    with edge_embed.open(store.path) as runtime, edge_embed.open(newer_bundle) as new:
        for _ in range(3):
            store.install(newer_bundle, FakeProbe(), retry=True)
            assert _comes_true(lambda: np.array_equal(runtime.lookup("word1"), new.lookup("word1")))
            store.install(bundle, FakeProbe(), retry=True)
            assert _comes_true(lambda: runtime.manifest.version == "1.0.0")
        assert runtime.problem is None


def test_while_the_new_generation_is_opened_the_old_one_answers(store: Store, bundle: Path, newer_bundle: Path) -> None:
    with (
        _opening_held_up() as (has_begun, go_on),
        edge_embed.open(store.path) as runtime,
        edge_embed.open(bundle) as old,
        edge_embed.open(newer_bundle) as new,
    ):
        store.install(newer_bundle, FakeProbe())
        runtime.lookup("word1")
        assert has_begun.wait(10)
        for _ in range(100):
            np.testing.assert_array_equal(runtime.lookup("word1"), old.lookup("word1"))
        go_on.set()
        assert _comes_true(lambda: np.array_equal(runtime.lookup("word1"), new.lookup("word1")))


@pytest.mark.parametrize("is_caught_up", [False, True])
def test_a_process_that_is_forked_off_in_the_middle_of_a_move_follows_on_its_own(
    store: Store, newer_bundle: Path, is_caught_up: bool
) -> None:
    with _opening_held_up() as (has_begun, go_on), edge_embed.open(store.path) as runtime:
        store.install(newer_bundle, FakeProbe())
        runtime.lookup("word1")
        assert has_begun.wait(10)
        child = os.fork()
        if not child:
            status = 1
            try:
                threading.setprofile(None)
                if is_caught_up:
                    runtime.catch_up()
                status = 0 if _comes_true(lambda: runtime.manifest.version == "1.1.0") else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert runtime.manifest.version == "1.0.0"
        go_on.set()
        assert _comes_true(lambda: runtime.manifest.version == "1.1.0")


def test_a_process_may_end_in_the_middle_of_a_move(store: Store, newer_bundle: Path) -> None:
    body = """
import sys, threading, time
import edge_embed
def slow(frame, event, _):
    if event == "call" and frame.f_code.co_name == "_open":
        print("opening", flush=True)
        time.sleep(0.2)
        print("opened", flush=True)
threading.setprofile(slow)
runtime = edge_embed.open(sys.argv[1])
print(runtime.manifest.version, flush=True)
sys.stdin.readline()
runtime.lookup("word1")
time.sleep(0.05)
"""
    command = [sys.executable, "-c", body, str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1.0.0\n"
        store.install(newer_bundle, FakeProbe())
        said, _ = process.communicate("\n", timeout=60)
    assert (process.returncode, said) == (0, "opening\nopened\n")


@pytest.mark.parametrize("ending", ["closed", "let go"])
def test_a_runtime_leaves_no_thread_behind(store: Store, newer_bundle: Path, ending: str) -> None:
    before = threading.active_count()
    runtime = edge_embed.open(store.path)
    assert threading.active_count() == before
    store.install(newer_bundle, FakeProbe())
    runtime.lookup("word1")
    assert threading.active_count() == before + 1
    if ending == "closed":
        runtime.close()
        assert threading.active_count() == before
    del runtime
    gc.collect()
    assert _comes_true(lambda: threading.active_count() == before)


def test_a_panic_of_an_engine_leaves_the_old_generation_serving_and_is_tried_again(
    store: Store, newer_bundle: Path
) -> None:
    class PanicError(BaseException):
        """What is written in Rust throws no Exception."""

    panics: list[str] = []

    def panic(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "warm_up_like" and not panics:
            panics.append("at the tokenizer")
            raise PanicError(*panics)

    threading.setprofile(panic)
    try:
        with edge_embed.open(store.path) as runtime:
            store.install(newer_bundle, FakeProbe())
            runtime.lookup("word1")
            assert _comes_true(lambda: runtime.problem == "at the tokenizer")
            assert runtime.manifest.version == "1.0.0"
            assert _comes_true(lambda: runtime.manifest.version == "1.1.0")
            assert runtime.problem is None
    finally:
        threading.setprofile(None)


def test_a_signals_handler_may_close_the_runtime_in_the_middle_of_a_move(store: Store, newer_bundle: Path) -> None:
    body = """
import signal, sys, threading, time
import edge_embed
def hold_up(frame, event, _):
    if event == "call" and frame.f_code.co_name == "_open":
        sys.setprofile(None)
        # The thread that follows is told, and waits for this move.
        asking = threading.Thread(target=runtime._follower.want)
        asking.start()
        asking.join()
        time.sleep(0.1)
        signal.raise_signal(signal.SIGTERM)
runtime = edge_embed.open(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: runtime.close())
print(runtime.manifest.version, flush=True)
sys.stdin.readline()
sys.setprofile(hold_up)
try:
    runtime.catch_up()
except edge_embed.RequestError as error:
    print(error)
"""
    command = [sys.executable, "-c", body, str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1.0.0\n"
        store.install(newer_bundle, FakeProbe())
        try:
            said, _ = process.communicate("\n", timeout=30)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "this runtime is closed\n")


def test_where_no_thread_can_be_started_the_call_itself_moves(
    store: Store, newer_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with edge_embed.open(store.path) as runtime:
        store.install(newer_bundle, FakeProbe())
        monkeypatch.setattr(threading.Thread, "start", start)
        assert runtime.manifest.version == "1.1.0"


@contextmanager
def _opening_held_up() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold up who opens a generation in a thread of its own; yield what tells that, and what lets it go on."""
    has_begun, go_on = threading.Event(), threading.Event()

    def hold_up(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_open" and not go_on.is_set():
            has_begun.set()
            go_on.wait(10)

    threading.setprofile(hold_up)
    try:
        yield has_begun, go_on
    finally:
        go_on.set()
        threading.setprofile(None)


def _comes_true(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_a_trial_does_not_serve_before_it_is_confirmed(store: Store, newer_bundle: Path) -> None:
    with edge_embed.open(store.path) as runtime:
        seen = []

        def looking(generation: Path) -> object:
            runtime.catch_up()
            seen.append(runtime.manifest.version)
            return FakeProbe()(generation)

        store.install(newer_bundle, looking)  # type: ignore[arg-type]
        assert seen == ["1.0.0"]
        runtime.catch_up()
        assert runtime.manifest.version == "1.1.0"


@pytest.mark.parametrize(
    "ask",
    [
        lambda runtime, keys: runtime.lookup(keys),
        lambda runtime, keys: runtime.encode(keys),
        lambda runtime, keys: [each.scores for each in runtime.search(keys, k=3)],
    ],
    ids=["lookup", "encode", "search"],
)
def test_what_is_confirmed_inside_a_call_answers_none_of_it(
    store: Store, bundle: Path, newer_bundle: Path, ask: Callable[[edge_embed.Runtime, Iterable[str]], object]
) -> None:
    def keys() -> Iterator[str]:
        yield "word1"
        store.install(newer_bundle, FakeProbe())
        runtime.catch_up()
        yield "word2"

    with (
        edge_embed.open(store.path) as runtime,
        edge_embed.open(bundle) as old,
        edge_embed.open(newer_bundle) as new,
    ):
        np.testing.assert_array_equal(ask(runtime, keys()), ask(old, ["word1", "word2"]))
        np.testing.assert_array_equal(ask(runtime, ["word1", "word2"]), ask(new, ["word1", "word2"]))


def test_an_install_by_another_process_is_followed(store: Store, newer_bundle: Path) -> None:
    with edge_embed.open(store.path) as runtime:
        assert runtime.manifest.version == "1.0.0"
        command = [
            sys.executable,
            "-m",
            "edge_embed",
            "install",
            str(newer_bundle),
            "--store",
            str(store.path),
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert json.loads(done.stdout)["installed"] is True
        runtime.catch_up()
        assert runtime.manifest.version == "1.1.0"


def test_threads_and_processes_that_ask_during_swaps_get_no_failure_and_no_mixed_answer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    bundles = [
        make_bundle(tmp_path / f"v{i}", version=f"1.{i}.0", source=small_text_source(seed=i), graphs=()).path
        for i in range(3)
    ]
    found = swapped(tmp_path, bundles, 100)
    for asked in found.asked:
        assert (asked.failed, asked.mixed) == ((), 0)
        assert asked.calls > 1000
        assert returns(asked), (asked.before, asked.after)


def test_a_new_generation_cuts_texts_by_its_own_tokenizer(tmp_path: Path, text_bundle: Path) -> None:
    source = small_text_source(seed=1)
    text = source.table.text
    assert text is not None and text.tokenizer is not None
    other = replace(text, tokenizer=text.tokenizer.replace(b'"word1"', b'"another"'))
    newer = make_bundle(tmp_path / "newer", version="1.1.0", source=with_table(source, text=other), graphs=()).path
    store = Store(tmp_path / "store")
    store.install(text_bundle, FakeProbe())
    with edge_embed.open(store.path) as runtime, edge_embed.open(newer) as alone:
        before = runtime.encode("word1")
        store.install(newer, FakeProbe())
        runtime.catch_up()
        np.testing.assert_array_equal(runtime.encode("word1"), alone.encode("word1"))
        store.rollback()
        runtime.catch_up()
        np.testing.assert_array_equal(runtime.encode("word1"), before)


def test_old_generations_are_let_go(store: Store, tmp_path: Path) -> None:
    def open_files() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    with edge_embed.open(store.path) as runtime:
        runtime.lookup("word1")
        before = open_files()
        for i in range(4):
            made = make_bundle(tmp_path / f"v{i}", version=f"2.{i}.0", source=small_source(seed=i))
            store.install(made.path, FakeProbe())
            runtime.catch_up()
            assert runtime.lookup("word1").any()
        assert open_files() == before
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert not [line for line in maps if "(deleted)" in line and str(store.path) in line]


def test_a_generation_that_this_process_cannot_open_leaves_the_old_one_serving(store: Store, tmp_path: Path) -> None:
    with edge_embed.open(store.path, memory_budget=_budget_for(store.path)) as runtime:
        big = small_source(seed=9, dimensions=2048, keys=tuple(f"key{i}" for i in range(2000)))
        made = make_bundle(tmp_path / "big", version="9.0.0", source=big, graphs=())
        store.install(made.path, FakeProbe())
        runtime.catch_up()
        assert runtime.lookup("word1").any()
        assert runtime.manifest.version == "1.0.0"
        assert runtime.problem is not None
        assert "of private memory" in runtime.problem
        store.rollback()
        runtime.catch_up()
        assert runtime.lookup("word1").any()
        assert runtime.problem is None


def test_a_generation_of_the_same_needs_fits_into_the_budget_that_held_the_old_one(
    store: Store, newer_bundle: Path
) -> None:
    with edge_embed.open(store.path, memory_budget=_budget_for(store.path)) as runtime:
        store.install(newer_bundle, FakeProbe())
        runtime.catch_up()
        assert runtime.lookup("word1").any()
        assert runtime.problem is None
        assert runtime.manifest.version == "1.1.0"


def test_a_process_that_has_grown_since_counts_what_it_holds_now(store: Store, newer_bundle: Path) -> None:
    store.install(newer_bundle, FakeProbe())
    store.rollback()
    with edge_embed.open(store.path, memory_budget=_budget_for(store.path)) as runtime:
        before = runtime.memory().private_bytes
        # Pages of their own: an array might get some that the heap held already.
        grown = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        grown.write(bytes(range(256)) * (len(grown) // 256))
        assert runtime.memory().private_bytes >= before + len(grown) // 2
        store.rollback()
        runtime.catch_up()
        assert runtime.lookup("word1").any()
        assert runtime.manifest.version == "1.0.0"
        assert runtime.problem is not None and "in this process beside a bundle" in runtime.problem


def _budget_for(store: Path) -> int:
    from edge_embed import memory

    with edge_embed.open(store) as runtime:
        return memory.current().private_bytes + runtime.manifest.requirements.memory_private_bytes + 2**20


def test_two_installs_between_two_calls_are_followed_to_the_last(store: Store, tmp_path: Path) -> None:
    with edge_embed.open(store.path) as runtime:
        for i in range(3):
            made = make_bundle(tmp_path / f"v{i}", version=f"3.{i}.0", source=small_source(seed=i))
            store.install(made.path, FakeProbe())
        runtime.catch_up()
        assert runtime.manifest.version == "3.2.0"


def test_a_store_that_serves_nothing_yet_cannot_be_opened(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(RefusedError):
        Store(tmp_path / "store").install(bundle, FakeProbe([NO]))
    with pytest.raises(EmptyStoreError, match="expected a confirmed bundle"):
        edge_embed.open(tmp_path / "store")


@pytest.mark.parametrize("damage", ["lost", "cut short", "too long"])
@pytest.mark.parametrize("slot", ["slot.0", "slot.1"])
def test_one_damaged_slot_stops_neither_serving_nor_following_nor_installing(
    store: Store, newer_bundle: Path, bundle: Path, slot: str, damage: str
) -> None:
    store.install(newer_bundle, FakeProbe())
    path = store.path / slot
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut short" else path.read_bytes() + b"x")
    with edge_embed.open(store.path) as runtime:
        assert runtime.manifest.version in ("1.0.0", "1.1.0")
        for each in (bundle, newer_bundle):
            store.install(each, FakeProbe(), retry=True)
            runtime.catch_up()
            assert runtime.lookup("word1").any()
        assert runtime.manifest.version == "1.1.0"


@pytest.mark.parametrize("slot", SLOT_NAMES)
@pytest.mark.parametrize("fate", ["lost", "replaced"])
def test_an_open_runtime_follows_through_a_slot_that_was_lost_or_replaced(
    store: Store, newer_bundle: Path, slot: str, fate: str
) -> None:
    path = store.path / slot
    with edge_embed.open(store.path) as runtime:
        assert runtime.lookup("word1").any()
        if fate == "replaced":
            path.with_suffix(".copy").write_bytes(path.read_bytes())
            path.with_suffix(".copy").replace(path)
        else:
            path.unlink()
        store.install(newer_bundle, FakeProbe())
        runtime.catch_up()
        assert runtime.lookup("word1").any()
        assert runtime.manifest.version == "1.1.0"


def test_a_runtime_that_is_closed_while_it_moves_stays_closed(store: Store, bundle: Path, newer_bundle: Path) -> None:
    for number in range(40):
        runtime = edge_embed.open(store.path)
        runtime.lookup("word1")
        store.install(bundle if number % 2 else newer_bundle, FakeProbe(), retry=True)
        asking = threading.Thread(target=_answered, args=(runtime,))
        asking.start()
        time.sleep(0.0003 * (number % 10))
        runtime.close()
        asking.join()
        assert not _answered(runtime)


def _answered(runtime: edge_embed.Runtime) -> bool:
    try:
        return bool(runtime.lookup("word1").any())
    except RequestError:
        return False


@pytest.mark.parametrize("inside", ["_open", "warm_up_like", "_place"])
def test_a_move_that_was_interrupted_is_made_by_who_comes_next(store: Store, newer_bundle: Path, inside: str) -> None:
    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == inside:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with edge_embed.open(store.path) as runtime:
        runtime.lookup("word1")
        store.install(newer_bundle, FakeProbe())
        # As Ctrl-C does, at a place that is known.
        sys.setprofile(interrupt)
        with pytest.raises(KeyboardInterrupt):
            runtime.catch_up()
        assert runtime.lookup("word1").any()
        runtime.catch_up()
        assert (runtime.manifest.version, runtime.problem) == ("1.1.0", None)


def test_who_is_interrupted_while_he_notes_a_problem_meets_it_again(store: Store, tmp_path: Path) -> None:
    def interrupt(frame: FrameType, event: str, called: object) -> None:
        if frame.f_code.co_name == "_put_off" and called is time.monotonic:
            sys.setprofile(None)
            raise KeyboardInterrupt

    big = small_source(seed=9, dimensions=2048, keys=tuple(f"key{i}" for i in range(2000)))
    made = make_bundle(tmp_path / "big", version="9.0.0", source=big, graphs=())
    with edge_embed.open(store.path, memory_budget=_budget_for(store.path)) as runtime:
        store.install(made.path, FakeProbe())
        sys.setprofile(interrupt)
        with pytest.raises(KeyboardInterrupt):
            runtime.catch_up()
        assert runtime.problem is None
        runtime.catch_up()
        assert runtime.problem is not None and "of private memory" in runtime.problem


def test_a_runtime_that_does_not_follow_stays_with_what_it_opened(store: Store, newer_bundle: Path) -> None:
    with edge_embed.open(store.path, follow=False) as runtime:
        store.install(newer_bundle, FakeProbe())
        assert runtime.manifest.version == "1.0.0"
        assert runtime.lookup("word1").any()


def test_a_move_that_failed_for_want_of_the_system_is_tried_again(store: Store, newer_bundle: Path) -> None:
    with edge_embed.open(store.path) as runtime:
        runtime.lookup("word1")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        store.install(newer_bundle, FakeProbe())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            runtime.catch_up()
            assert runtime.lookup("word1").any()
            assert runtime.problem is not None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert _comes_true(lambda: runtime.manifest.version == "1.1.0")
        assert runtime.problem is None


def test_the_real_probe_lets_a_good_bundle_pass_and_measures_it(store: Store, newer_bundle: Path) -> None:
    verdict = store.install(newer_bundle, probe)
    assert verdict.passed
    assert set(verdict.report["operations"]) == {"lookup", "encode", "search"}
    assert verdict.report["memory"]["private_bytes"] > 0
    assert all(outcome["passed"] for outcome in verdict.report["golden"])
