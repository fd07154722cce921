"""What users import is what ``__all__`` says."""

from __future__ import annotations

import edge_embed


def test_every_public_name_is_there_and_nothing_else_is_promised() -> None:
    assert sorted(edge_embed.__all__) == [
        "Bag",
        "BudgetError",
        "BundleError",
        "Classification",
        "DeadlineError",
        "EdgeEmbedError",
        "MissingExtraError",
        "Neighbours",
        "RequestError",
        "Runtime",
        "SpaceMismatchError",
        "Stamped",
        "StoreError",
        "UnknownKeyError",
        "__version__",
        "open",
    ]
    for name in edge_embed.__all__:
        assert getattr(edge_embed, name) is not None
