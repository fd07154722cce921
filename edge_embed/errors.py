"""The runtime's part of the error tree; the upper part stands in ``edge_embed_bundle.errors``.

EdgeEmbedError
├── BundleError ...          whoever made or copied the bundle
├── StoreError ...           whoever runs the board
└── RequestError             whoever calls
    ├── UnknownKeyError        the table has no such key (also a KeyError)
    ├── SpaceMismatchError     a vector from another space
    ├── BudgetError            the bundle cannot fit into the memory that was allowed
    ├── DeadlineError          the time that was given was over before the work was done
    └── MissingExtraError      the answer needs a package that is not installed
"""

from __future__ import annotations

from edge_embed_bundle.errors import BundleError, EdgeEmbedError, StoreError

__all__ = [
    "BudgetError",
    "BundleError",
    "DeadlineError",
    "EdgeEmbedError",
    "MissingExtraError",
    "RequestError",
    "SpaceMismatchError",
    "StoreError",
    "UnknownKeyError",
]


class RequestError(EdgeEmbedError):
    """The caller asked for something that this bundle cannot answer."""


class UnknownKeyError(RequestError, KeyError):
    """The table has no such key."""

    exit_status = 1

    def __str__(self) -> str:
        """Return the message; a plain KeyError would show it quoted."""
        return str(self.args[0])


class SpaceMismatchError(RequestError):
    """The vector is stamped with another space than the table's."""


class BudgetError(RequestError):
    """The memory that was allowed cannot hold what the bundle needs."""

    exit_status = 1


class DeadlineError(RequestError):
    """The time that was given was over before the work was done."""

    exit_status = 1


class MissingExtraError(RequestError):
    """A package that this answer needs is not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """Return the error that names the package, the extra that brings it and what it is for."""
        return cls(
            f"{purpose} needs the package {package}, which is not installed; the extra edge-embed[{extra}] brings it"
        )
