"""One opened bundle and everything that answers from it: made whole, replaced whole, never changed.

A runtime takes the current ``Serving`` once per call, so an answer comes from one generation from its first byte to
its last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_embed.errors import BudgetError, RequestError
from edge_embed.memory import format_size
from edge_embed.table import Table, not_plain
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import TableModel

if TYPE_CHECKING:
    from edge_embed.classifier import Classifier
    from edge_embed.residency import Pins
    from edge_embed.text import Encoder


class Serving:
    """The tables and the encoder of one bundle; ``open_table`` makes a table of a model."""

    def __init__(
        self, bundle: Bundle, *, engine: str = "kernels", open_table: Callable[[Bundle, TableModel], Table] = Table
    ) -> None:
        self.bundle = bundle
        models = bundle.manifest.tables
        self._tables = {model.name: open_table(bundle, model) for model in models}
        for table in self._tables.values():
            if table.model.subwords is not None:
                self._give_subwords(table)
        if engine != "kernels":
            from edge_embed.engines import open_engine
            from edge_embed.golden import check_engine

            first = self._tables[models[0].name]
            first.rows = open_engine(engine, bundle, models[0], first.rows)
            # An engine is trusted by evidence: it gives the golden vectors here, on this board, or it does not serve.
            check_engine(bundle, first, engine)
        #: The plain lookup in the first table, in one step; None sends the caller the general way.
        self.quick_lookup = self.table().quick_lookup() if models else not_plain
        self._pins: Pins | None = None
        self._encoder: Encoder | None = None
        self._classifier: Classifier | None = None
        self._making_encoder = threading.Lock()

    def table(self, name: str | None = None) -> Table:
        """Return a table; the bundle's first model where no name is given."""
        if name is None:
            name = next(iter(self._tables), None)
        if name is None:
            raise RequestError(f"{self.bundle.manifest.name}: expected a bundle with a table, found encoders alone")
        table = self._tables.get(name)
        if table is None:
            raise RequestError(f"expected one of the tables {', '.join(self._tables)}, found {name!r}")
        return table

    def collection(self) -> Table:
        """Return the table that a text is searched in: one in its space beside the encoder's own, if there is one."""
        helpers = self.bundle.manifest.helpers
        beside = (
            table for table in self._tables.values() if table.model.text is None and table.model.name not in helpers
        )
        return next((table for table in beside if table.space.id == self.table().space.id), self.table())

    def encoding_table(self) -> Table:
        """Return the table whose rows a text's tokens are."""
        for table in self._tables.values():
            if table.model.text is not None:
                return table
        raise RequestError(f"{self.bundle.manifest.name}: expected a bundle that encodes text, found tables alone")

    def encoder(self) -> Encoder:
        """Return the text encoder, made at its first use: a board that only looks up pays nothing for it."""
        with self._making_encoder:
            if self._encoder is None:
                self._encoder = self._make_encoder()
            return self._encoder

    def pin(self, room_bytes: int) -> None:
        """Keep what is asked for most in memory, within a part of ``room_bytes``."""
        from edge_embed.residency import Pins

        self._pins = Pins(self.bundle, room_bytes)

    def unpin(self) -> None:
        """Let go of what was pinned, before another generation pins its own."""
        if self._pins is not None:
            self._pins.release()
            self._pins = None

    def warm_up_like(self, other: Serving) -> None:
        """Make what ``other`` has made at its first uses, so that the first call after a swap does not wait."""
        if other._encoder is not None and any(table.model.text for table in self._tables.values()):
            self.encoder()
        if other._classifier is not None and any(table.model.classify for table in self._tables.values()):
            self.classifier()

    def classifier(self) -> Classifier:
        """Return the classifier of texts, made at its first use."""
        with self._making_encoder:
            if self._classifier is None:
                self._classifier = self._make_classifier()
            return self._classifier

    def _give_subwords(self, table: Table) -> None:
        from edge_embed.subwords import Subwords

        recipe = table.model.subwords
        if recipe is None:
            raise AssertionError("a table is given subwords where its model has a recipe")
        buckets = None if recipe.table is None else self._tables[recipe.table]
        table.subwords = Subwords(
            recipe,
            # By the table: an engine may take the place of its rows.
            lambda ids: table.rows.decode(ids),
            None if buckets is None else buckets.rows.decode,
            None if buckets is None else buckets.bucket_ids,
            table.model.dimensions,
        )

    def _make_classifier(self) -> Classifier:
        from edge_embed.classifier import Classifier

        for table in self._tables.values():
            if table.model.classify is not None:
                return Classifier(table, self._tables[table.model.classify.labels], table.model.classify.output)
        raise RequestError(f"{self.bundle.manifest.name}: expected a bundle that classifies text, found none that does")

    def _make_encoder(self) -> Encoder:
        from edge_embed.text import TextEncoder

        table = self.encoding_table()
        if table.model.text is None:
            raise AssertionError("the encoding table has the recipe")
        if table.model.text.tokenizer == "fasttext":
            from edge_embed.sentences import SentenceEncoder

            labels = None if table.model.classify is None else self._tables[table.model.classify.labels]
            return SentenceEncoder(table, labels, table.model.text.max_tokens)
        return TextEncoder.of(self.bundle, table.model.text, table)


def check_budget(bundle: Bundle, budget_bytes: int, private_bytes_beside: int) -> int:
    """Refuse what cannot fit: what the process holds beside a bundle, and what the bundle says it adds.

    Returns:
        The bytes that are left.

    Raises:
        BudgetError: the sum is more than ``budget_bytes`` of private memory.
    """
    adds = bundle.manifest.requirements.memory_private_bytes
    needed = private_bytes_beside + adds
    if needed > budget_bytes:
        raise BudgetError(
            f"{bundle.path}: expected at most {format_size(budget_bytes)} of private memory, found a need of "
            f"{format_size(needed)} ({format_size(private_bytes_beside)} in this process beside a bundle, "
            f"{format_size(adds)} for the bundle); raise the budget or export with fewer dimensions"
        )
    return budget_bytes - needed
