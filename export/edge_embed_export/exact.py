"""Matrix products that give the same bits on every machine.

A BLAS adds in an order that depends on the CPU and on the number of threads, so two workstations would write two
bundles of one source. Here numbers are cut into slices of a few bits: then every partial sum of a product of slices
is a whole number of units below 2**53, which float64 holds exactly, and no order of additions can change the result
(Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication", Numerical Algorithms 59, 2012). Two slices of theirs keep more than float32 asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNIFICAND_BITS = 53
_COMPONENT_BITS = 16
# Numbers of each side of the pairs of rows that are multiplied at once: 4 MiB.
_PAIRED_NUMBERS = 2**19


def fixed_point(values: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Return values as whole multiples of a power of two, the largest of them below ``2**bits`` such units."""
    largest = float(np.abs(values).max(initial=0))
    _, exponent = np.frexp(largest)
    shift = bits - int(exponent)
    rounded: NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(values.astype(np.float64), shift)), -shift)
    return rounded


@dataclass(frozen=True, eq=False)
class Sliced:
    """A matrix as the sum of two, each number of which is a whole multiple of a power of two."""

    coarse: NDArray[np.float64]
    fine: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any], bits: int) -> Sliced:
        """Cut a matrix into slices of so many bits."""
        coarse = fixed_point(values, bits)
        return cls(coarse, fixed_point(values - coarse, bits))


def exact_product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``a @ b`` of ``(n, k)`` and ``(k, m)``, the same bits whatever adds them up.

    Each number keeps ``53 - log2(k)`` bits below the largest of its matrix, 45 for 256 dimensions, so the product is
    off by less than ``4 * k * 2**-bits`` of the product of the two largest.
    """
    bits = slice_bits(a.shape[1])
    left, right = Sliced.of(a, bits), Sliced.of(b, bits)
    # The product of the two fine slices is below what is kept.
    product: NDArray[np.float64] = left.coarse @ right.coarse + (left.coarse @ right.fine + left.fine @ right.coarse)
    return product


def exact_pairs(a: Sliced, b: Sliced, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the product of row ``i`` of ``(n, k)`` and row ``j`` of ``(m, k)``, for each of some pairs.

    The bits are those that ``exact_product`` of the two has in these places, if both are cut by ``slice_bits``.
    """
    found = np.empty(len(i))
    step = max(1, _PAIRED_NUMBERS // max(1, a.coarse.shape[1]))
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        left, fine_left = a.coarse[i[part]], a.fine[i[part]]
        right, fine_right = b.coarse[j[part]], b.fine[j[part]]
        found[part] = _by_row(left, right) + (_by_row(left, fine_right) + _by_row(fine_left, right))
    return found


def slice_bits(inner: int) -> int:
    """Return the bits of a slice, so that ``inner`` products of two of them add up within float64."""
    return (_SIGNIFICAND_BITS - (inner - 1).bit_length()) // 2


def _by_row(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = np.einsum("ij,ij->i", a, b)
    return products


def directions(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rows ``(n, d)`` at length 1; rows of zeros stay zeros."""
    # In float64: the squares of a row of tiny numbers are zeros in float32.
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    found: NDArray[np.float64] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return found


def principal_components(moment: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Return the first eigenvectors ``(d, dimensions)`` of a symmetric matrix, alike on every machine.

    The sign of one is free; the largest of its numbers is made positive.
    """
    _, vectors = np.linalg.eigh(moment)
    # LAPACKs differ by 2e-13 here (all-MiniLM; OpenBLAS for Prescott, Sandybridge, Haswell, SkylakeX; 2026-11). A grid
    # of 1.5e-5 takes that away, but for one export in a thousand, where a number lies that close to a border.
    components = fixed_point(vectors[:, ::-1][:, :dimensions], _COMPONENT_BITS)
    largest = components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])]
    found: NDArray[np.float64] = components * np.sign(largest)
    return found
