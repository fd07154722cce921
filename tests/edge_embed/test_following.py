"""An open runtime follows its store from generation to generation, between two calls and never inside one."""

from __future__ import annotations

import gc
import json
import mmap
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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


def test_the_next_call_after_a_confirmation_is_answered_by_the_new_generation(
    store: Store, bundle: Path, newer_bundle: Path
) -> None:
    with (
        edge_embed.open(store.path) as runtime,
        edge_embed.open(bundle) as old,
        edge_embed.open(newer_bundle) as new,
    ):
        np.testing.assert_array_equal(runtime.lookup("word1"), old.lookup("word1"))
        store.install(newer_bundle, FakeProbe())
        np.testing.assert_array_equal(runtime.lookup("word1"), new.lookup("word1"))
        assert runtime.manifest.version == "1.1.0"
        assert runtime.space.id == new.space.id
        store.rollback()
        np.testing.assert_array_equal(runtime.lookup("word1"), old.lookup("word1"))
        assert runtime.problem is None


def test_a_trial_does_not_serve_before_it_is_confirmed(store: Store, newer_bundle: Path) -> None:
    with edge_embed.open(store.path) as runtime:
        seen = []

        def looking(generation: Path) -> object:
            seen.append(runtime.manifest.version)
            return FakeProbe()(generation)

        store.install(newer_bundle, looking)  # type: ignore[arg-type]
        assert seen == ["1.0.0"]
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
def test_what_is_confirmed_inside_a_call_answers_the_next_one(
    store: Store, bundle: Path, newer_bundle: Path, ask: Callable[[edge_embed.Runtime, Iterable[str]], object]
) -> None:
    def keys() -> Iterator[str]:
        yield "word1"
        store.install(newer_bundle, FakeProbe())
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
        np.testing.assert_array_equal(runtime.encode("word1"), alone.encode("word1"))
        store.rollback()
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
            assert runtime.lookup("word1").any()
        assert open_files() == before
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert not [line for line in maps if "(deleted)" in line and str(store.path) in line]


def test_a_generation_that_this_process_cannot_open_leaves_the_old_one_serving(store: Store, tmp_path: Path) -> None:
    with edge_embed.open(store.path, memory_budget=_budget_for(store.path)) as runtime:
        big = small_source(seed=9, dimensions=2048, keys=tuple(f"key{i}" for i in range(2000)))
        made = make_bundle(tmp_path / "big", version="9.0.0", source=big, graphs=())
        store.install(made.path, FakeProbe())
        assert runtime.lookup("word1").any()
        assert runtime.manifest.version == "1.0.0"
        assert runtime.problem is not None
        assert "of private memory" in runtime.problem
        store.rollback()
        assert runtime.lookup("word1").any()
        assert runtime.problem is None


def test_a_generation_of_the_same_needs_fits_into_the_budget_that_held_the_old_one(
    store: Store, newer_bundle: Path
) -> None:
    with edge_embed.open(store.path, memory_budget=_budget_for(store.path)) as runtime:
        store.install(newer_bundle, FakeProbe())
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
def test_a_move_that_was_interrupted_is_made_by_the_next_call(store: Store, newer_bundle: Path, inside: str) -> None:
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
            runtime.lookup("word1")
        assert runtime.lookup("word1").any()
        assert (runtime.manifest.version, runtime.problem) == ("1.1.0", None)


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
            assert runtime.lookup("word1").any()
            assert runtime.problem is not None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        end = time.monotonic() + 10
        while runtime.manifest.version != "1.1.0" and time.monotonic() < end:
            time.sleep(0.05)
        assert runtime.manifest.version == "1.1.0"
        assert runtime.problem is None


def test_the_real_probe_lets_a_good_bundle_pass_and_measures_it(store: Store, newer_bundle: Path) -> None:
    verdict = store.install(newer_bundle, probe)
    assert verdict.passed
    assert set(verdict.report["operations"]) == {"lookup", "encode", "search"}
    assert verdict.report["memory"]["private_bytes"] > 0
    assert all(outcome["passed"] for outcome in verdict.report["golden"])
