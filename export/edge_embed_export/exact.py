"""Matrix products that give the same bits on every machine.

A BLAS adds in an order that depends on the CPU and on the number of threads, so two workstations would write two
bundles of one source. Here numbers become fixed-point first: then every partial sum is a whole number of units below
2**53, which float64 holds exactly, and no order of additions can change the result. (The idea of error-free products:
Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication", Numerical Algorithms 59, 2012; one slice of theirs is enough here.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNIFICAND_BITS = 53


def fixed_point(values: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Return values as whole multiples of a power of two, the largest of them below ``2**bits`` such units."""
    largest = float(np.abs(values).max(initial=0))
    _, exponent = np.frexp(largest)
    shift = bits - int(exponent)
    rounded: NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(values.astype(np.float64), shift)), -shift)
    return rounded


def exact_product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``a @ b`` of ``(n, k)`` and ``(k, m)``, each rounded to fixed point, with nothing rounded after that.

    The numbers keep ``(53 - log2(k)) / 2`` bits below the largest of their matrix: 22 for 256 dimensions.
    """
    inner_bits = (a.shape[1] - 1).bit_length()
    bits = (_SIGNIFICAND_BITS - inner_bits) // 2
    product: NDArray[np.float64] = fixed_point(a, bits) @ fixed_point(b, bits)
    return product


def directions(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rows ``(n, d)`` at length 1; rows of zeros stay zeros."""
    # In float64: the squares of a row of tiny numbers are zeros in float32.
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    found: NDArray[np.float64] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return found
