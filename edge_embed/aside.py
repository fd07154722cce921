"""A thread for what no call should wait for: it begins when it is first wanted, and sleeps until it is wanted again.

* Its object is not kept alive by it; where that is gone, or ends it, the thread ends.
* At the end of the process it is waited for: nothing is cut off in the middle of an engine's own code.
* A fork takes no threads along: in the child it begins anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable


class Aside:
    """Does one thing, a method of ``owner``, in a thread of its own, some time after it is wanted."""

    def __init__(self, owner: object, act: Callable[[], object], *, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._act = weakref.WeakMethod(act)
        #: Whether nothing is done any more; what takes long in ``act`` may ask.
        self.is_ended = False
        self._begin()
        # Called when the owner is gone, or at the end of the process.
        weakref.finalize(owner, self.end)
        _ALL.add(self)

    def want(self) -> bool:
        """Have it done soon, once for all who want it before it begins; return whether there is a thread to do so."""
        if self._is_near:
            return True
        if self._thread is None:
            with self._starting:
                # A signal's handler may come here in the middle of it, and somebody else may have been first.
                if self._is_starting or (self._thread is None and not self._start()):
                    return False
        self._wake()
        return True

    def end(self) -> None:
        """Do it no more; what is being done is waited for."""
        self.is_ended = True
        self._wake()
        thread = self._thread
        # Of an owner that is gone nothing is being done, and who collects it may hold what a thread wants at its end.
        if self._act() is not None and thread is not None and thread is not threading.current_thread():
            thread.join()

    def _begin(self) -> None:
        self._begin_asleep()
        #: Whether the thread is awake, and has not begun.
        self._is_near = False
        self._starting = threading.RLock()
        self._is_starting = False
        self._thread: threading.Thread | None = None

    def _begin_asleep(self) -> None:
        asleep = threading.Lock()
        asleep.acquire()
        #: Held as long as the thread has nothing to do. A lock, not an event: who wakes the thread is in a hurry.
        self._asleep = asleep

    def _wake(self) -> None:
        # Released already: it was woken, and has not begun.
        with contextlib.suppress(RuntimeError):
            self._asleep.release()

    def _start(self) -> bool:
        asleep = self._asleep
        thread = threading.Thread(target=self._run, args=(asleep,), name="edge-embed", daemon=True)
        self._is_starting = True
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:  # no memory, no more processes, or the interpreter ends
            return False
        except BaseException:
            # Ctrl-C in the middle: whether it lives or not, the next call starts another one, and this one ends.
            self._begin_asleep()
            with contextlib.suppress(RuntimeError):
                asleep.release()
            raise
        finally:
            self._is_starting = False
        return True

    def _run(self, asleep: threading.Lock) -> None:
        while True:
            # Held again before anything is done: who wants it meanwhile wants it once more.
            asleep.acquire()
            if asleep is not self._asleep:
                return
            self._is_near = True
            time.sleep(self._after_seconds)
            self._is_near = False
            act = self._act()
            if self.is_ended or act is None:
                return
            act()
            del act


_ALL: weakref.WeakSet[Aside] = weakref.WeakSet()


def _begin_all() -> None:
    for each in list(_ALL):
        each._begin()


os.register_at_fork(after_in_child=_begin_all)
