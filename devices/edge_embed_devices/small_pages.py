"""Memory in pages of the usual size, which is how a file is mapped and how engines keep their weights.

numpy asks the kernel for large pages where an array is large. A walk through those leaves out what a bundle waits for:
the processor finding where a page stands.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


def empty(count: int, dtype: type[Number]) -> NDArray[Number]:
    """Return an array of so many numbers in small pages; where nobody has written, all are one page of zeros."""
    pages = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype, count)
