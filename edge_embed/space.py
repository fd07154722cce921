"""Which vectors may be compared: a stamp on a vector, and the check before a search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError, SpaceMismatchError
from edge_embed_bundle.values import Space


class Stamped(NamedTuple):
    """A vector with the id of the space it belongs to; a search in another space refuses it."""

    values: NDArray[np.float32]
    space: str


def comparable(vector: Stamped | NDArray[np.float32], space: Space) -> NDArray[np.float32]:
    """Return the values ``(d,)`` of a vector that may be compared in ``space``.

    Raises:
        SpaceMismatchError: the vector is stamped with another space.
        RequestError: the vector is no ``(d,)`` array of finite numbers.
    """
    if isinstance(vector, Stamped):
        if vector.space != space.id:
            raise SpaceMismatchError(
                f"expected a vector of space {space.id[:12]} ({space.source}), found one of {vector.space[:12]}; "
                "encode it again with this bundle"
            )
        vector = vector.values
    try:
        values = np.asarray(vector, np.float32)
    except (TypeError, ValueError) as error:
        raise RequestError(f"expected a vector of numbers, found {type(vector).__name__}") from error
    if values.shape != (space.dimensions,):
        raise RequestError(f"expected a vector of shape ({space.dimensions},), found {values.shape}")
    if not np.isfinite(values).all():
        raise RequestError("expected finite numbers in the query vector, found NaN or infinity")
    return values
