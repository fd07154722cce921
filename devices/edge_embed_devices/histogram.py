"""Latencies counted in a log-linear histogram: any number of calls in a few kilobytes, percentiles within 1 %.

The idea is HdrHistogram's (Gil Tene, hdrhistogram.org): buckets double in width as values do, and each power of two has
the same number of them. Its Python package has a C extension and brings ``pbr``; a board gets numpy and
the standard library alone, and a check needs this much of it.
"""

from __future__ import annotations

from collections import Counter

#: Buckets in each power of two: 2**7 of them are at most 1/128 wide.
_BITS = 7


class Histogram:
    """Whole numbers from 0 on, counted by size."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        #: How many values there are.
        self.count = 0
        #: The largest one.
        self.most = 0

    def add(self, value: int) -> None:
        """Count a value."""
        shift = max(0, value.bit_length() - _BITS - 1)
        self._counts[(shift << _BITS) + (value >> shift)] += 1
        self.count += 1
        self.most = max(self.most, value)

    def at(self, share: float) -> int:
        """Return the value that ``share`` of all values do not exceed: its bucket's upper end; 0 of none."""
        wanted = share * self.count
        passed = 0
        for bucket in sorted(self._counts):
            passed += self._counts[bucket]
            if passed >= wanted:
                return min(_upper_end(bucket), self.most)
        return self.most


def _upper_end(bucket: int) -> int:
    shift = max(0, (bucket >> _BITS) - 1)
    return ((bucket - (shift << _BITS) + 1) << shift) - 1
