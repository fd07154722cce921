"""Progress of long work: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


class Progress:
    """Shows bars on stderr if ``shown``; the work is the same either way."""

    def __init__(self, *, shown: bool | None = None) -> None:
        self._shown = sys.stderr.isatty() if shown is None else shown

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Show a bar for ``total`` steps; the body is given the function that advances it."""
        if not self._shown:
            yield lambda count: None
            return
        from tqdm import tqdm

        with tqdm(desc=title, total=total, unit=unit or "it", unit_scale=True, leave=False, file=sys.stderr) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            yield advance


SILENT = Progress(shown=False)
