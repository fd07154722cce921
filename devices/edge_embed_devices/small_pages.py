"""Memory in pages of the usual size, which is how a file is mapped and how engines keep their weights.

numpy asks the kernel for large pages where an array is large. A walk through those leaves out what a bundle waits for:
the processor finding where a page stands.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


def ones(count: int, dtype: type[Number]) -> NDArray[Number]:
    """Return so many ones in small pages: written to, because pages that nobody wrote to are one page of zeros."""
    pages = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    numbers: NDArray[Any] = np.frombuffer(pages, dtype, count)
    numbers[:] = 1
    return numbers
