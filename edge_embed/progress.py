"""Progress of long work: one line on a terminal, nothing in a pipe.

The standard library alone, because a board shows progress, too. The line is drawn at most ten times a second and taken
away at the end, so what is printed afterwards stands alone.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_WIDTH = 24
_REDRAW_SECONDS = 0.1


class Progress:
    """Shows the progress of tasks on stderr if ``shown``, by default if that is a terminal."""

    def __init__(self, *, shown: bool | None = None) -> None:
        # A process may be started without a stderr.
        self._shown = (sys.stderr is not None and sys.stderr.isatty()) if shown is None else shown

    @contextlib.contextmanager
    def task(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of ``total`` steps of any size; the body is given the function that counts them."""
        if not self._shown or total <= 0:
            yield lambda count: None
            return
        line = _Line(title, total)
        try:
            line.draw()
            yield line.advance
        finally:
            line.clear()


class _Line:
    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._started = self._drawn = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        self._drawn = time.monotonic()
        share = min(1.0, self._done / self._total)
        filled = round(share * _WIDTH)
        left = f"{(self._drawn - self._started) * (1 - share) / share:.0f} s left" if share > 0 else ""
        bar = "#" * filled + "." * (_WIDTH - filled)
        sys.stderr.write(f"\r\x1b[K{self._title} [{bar}] {share:4.0%} {left}")
        sys.stderr.flush()

    def clear(self) -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


SILENT = Progress(shown=False)
