"""Storing rows: one encoder per codec, each the inverse of its decoder in ``edge_embed.codecs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Encoded = Mapping[str, NDArray[Any]]


def encode_float32(vectors: NDArray[np.float32]) -> Encoded:
    """Return the tensors of codec ``float32`` for ``(n, d)`` vectors."""
    return {"rows": vectors}


def encode_int8(vectors: NDArray[np.float32]) -> Encoded:
    """Return the tensors of codec ``int8``: codes ``(n, d)`` from -127 to 127 and scales ``(n,)`` float32.

    The largest number of a row gets the code 127. Codes are made with the scale as it is stored, rounded to float32,
    so the decoder multiplies by exactly what the encoder divided by. A row of zeros has scale 0.
    """
    scales = (np.abs(vectors).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
    # Below the smallest normal number the quotient would be coarse or infinite; such a row is zeros for any use.
    scales[scales < np.finfo(np.float32).tiny] = 0
    divisors = np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]
    codes = np.clip(np.rint(vectors / divisors), -127, 127)
    codes[scales == 0] = 0
    return {"rows": codes.astype(np.int8), "scales": scales}


ENCODERS: Mapping[str, Callable[[NDArray[np.float32]], Encoded]] = MappingProxyType(
    {"float32": encode_float32, "int8": encode_int8}
)
