"""A thread beside: it does what is wanted, whatever came between, and keeps nobody waiting who ends it."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest

from edge_embed.aside import Aside


class _Owner:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.aside = Aside(self, self.act, after_seconds=0)

    def act(self) -> None:
        self.done.set()


def _while_a_thread_is_awaited(interfere: Callable[[], object]) -> None:
    """Do something once, in the calling thread, inside the next start of a thread; a signal's handler may."""

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "wait":
            sys.setprofile(None)
            interfere()

    sys.setprofile(profile)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _ends(act: Callable[[], object]) -> bool:
    acting = threading.Thread(target=act, daemon=True)
    acting.start()
    acting.join(10)
    return not acting.is_alive()


def test_who_was_interrupted_while_the_thread_began_leaves_no_second_one_that_nobody_ends() -> None:
    before, owner = threading.active_count(), _Owner()
    for _ in range(3):
        _while_a_thread_is_awaited(_interrupt)
        with pytest.raises(KeyboardInterrupt):
            owner.aside.want()
    assert owner.aside.want()
    assert owner.done.wait(10)
    assert _ends(owner.aside.end)
    assert _comes_to(before)


def test_what_is_wanted_by_a_signals_handler_while_the_thread_begins_is_left_to_the_handler() -> None:
    owner, answers = _Owner(), list[bool]()
    _while_a_thread_is_awaited(lambda: answers.append(owner.aside.want()))
    assert owner.aside.want()
    assert answers == [False]
    assert owner.done.wait(10)
    owner.aside.end()


def test_who_collects_the_owner_waits_for_no_thread() -> None:
    before, owner = threading.active_count(), _Owner()
    assert owner.aside.want()
    assert owner.done.wait(10)

    def collect() -> None:
        nonlocal owner
        # What a thread wants at its end, and whoever lists threads holds.
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            del owner
            gc.collect()

    assert _ends(collect)
    assert _comes_to(before)


def _comes_to(threads: int) -> bool:
    end = time.monotonic() + 10
    while threading.active_count() != threads and time.monotonic() < end:
        time.sleep(0.005)
    return threading.active_count() == threads
