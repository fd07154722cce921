"""Long lists, a batch at a time: how much is worked on at once, until when, and what the caller sees meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import DeadlineError, RequestError
from edge_embed.progress import Progress

#: Inputs that are worked on at a time where the caller does not say.
BATCH_SIZE = 64


class Batches(NamedTuple):
    """How a list of ``noun`` is encoded; ``deadline_ns`` on the clock of ``time.monotonic_ns``, 0 for none."""

    noun: str
    size: int | None = None
    deadline_ns: int = 0
    shown: bool = False


def in_batches(
    encode: Callable[[Sequence[Any]], NDArray[np.float32]], inputs: Sequence[Any], dimensions: int, batches: Batches
) -> NDArray[np.float32]:
    """Return the vectors ``(n, d)`` of inputs, freshly allocated.

    Raises:
        RequestError: the batch size is none.
        DeadlineError: the time was over before the last one.
    """
    size = BATCH_SIZE if batches.size is None else batches.size
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise RequestError(f"expected a batch size of at least 1, found {size!r}")
    if batches.deadline_ns:
        # The clock is looked at before each of them.
        size = 1
    vectors = np.empty((len(inputs), dimensions), np.float32)
    with Progress(shown=batches.shown).task(f"encoding {batches.noun}", len(inputs)) as advance:
        for start in range(0, len(inputs), int(size)):
            if batches.deadline_ns and time.monotonic_ns() >= batches.deadline_ns:
                raise DeadlineError(
                    f"expected {len(inputs)} {batches.noun} to be encoded before the deadline, found {start} done then"
                )
            batch = inputs[start : start + int(size)]
            vectors[start : start + len(batch)] = encode(batch)
            advance(len(batch))
    return vectors
