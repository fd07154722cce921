"""One opened bundle and everything that answers from it: made whole, replaced whole, never changed.

A runtime takes the current ``Serving`` once per call, so an answer comes from one generation from its first byte to
its last.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from edge_embed import kernels
from edge_embed.errors import BudgetError, MissingExtraError, RequestError
from edge_embed.memory import format_size
from edge_embed.table import Table
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderModel
from edge_embed_bundle.manifest import Golden, Model, TableModel

if TYPE_CHECKING:
    from edge_embed.classifier import Classifier
    from edge_embed.encoding import GraphImageEncoder, GraphTextEncoder
    from edge_embed.residency import Pins
    from edge_embed.text import Encoder

    AnyEncoder: TypeAlias = Encoder | GraphTextEncoder | GraphImageEncoder


class Serving:
    """The tables and the encoder of one bundle; ``open_table`` makes a table of a model."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "kernels",
        threads: int = 1,
        open_table: Callable[[Bundle, TableModel], Table] = Table,
        open_encoder: Callable[[Bundle, EncoderModel, str, int], AnyEncoder] | None = None,
    ) -> None:
        self.bundle = bundle
        self._engine, self._threads = engine, threads
        self._open_encoder = _open_encoder if open_encoder is None else open_encoder
        models = bundle.manifest.tables
        self._tables = {model.name: open_table(bundle, model) for model in models}
        for table in self._tables.values():
            if table.model.subwords is not None:
                self._give_subwords(table)
        # Where there are encoders, an engine that is named is theirs.
        if engine != "kernels" and not bundle.manifest.encoders:
            from edge_embed.engines import open_engine
            from edge_embed.golden import check_engine

            first = self._tables[models[0].name]
            first.rows = open_engine(engine, bundle, models[0], first.rows)
            # An engine is trusted by evidence: it gives the golden vectors here, on this board, or it does not serve.
            check_engine(bundle, first, engine)
        self._shortcuts = {name: table.shortcut() for name, table in self._tables.items()}
        self._pins: Pins | None = None
        self._encoders: dict[str, AnyEncoder] = {}
        self._text_encoder: Encoder | None = None
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

    def shortcut(self, name: str) -> kernels.Shortcut:
        """Return what answers the plain request to a table in one step."""
        shortcut = self._shortcuts.get(name)
        return self.table(name).shortcut() if shortcut is None else shortcut

    @cached_property
    def collection(self) -> Table:
        """The table that is searched for what a caller brings: one in its space beside the encoder's own."""
        helpers = self.bundle.manifest.helpers
        beside = (
            table for table in self._tables.values() if table.model.text is None and table.model.name not in helpers
        )
        # An encoder of texts or images has no table of its own; its space is the bundle's first model's.
        manifest = self.bundle.manifest
        space = manifest.space_of(manifest.models[0])
        return next((table for table in beside if table.space.id == space.id), self.table())

    def text_model(self) -> Model:
        """Return the model that encodes texts."""
        for model in self.bundle.manifest.models:
            if model.text is not None:
                return model
        raise RequestError(f"{self.bundle.manifest.name}: expected a bundle that encodes text, found none that does")

    def image_model(self) -> EncoderModel:
        """Return the model that encodes images."""
        for model in self.bundle.manifest.encoders:
            if model.image is not None:
                return model
        raise RequestError(f"{self.bundle.manifest.name}: expected a bundle that encodes images, found none that does")

    def encoder(self, name: str) -> AnyEncoder:
        """Return the encoder of a model, made at its first use: a board that only looks up pays nothing for it."""
        with self._making_encoder:
            if name not in self._encoders:
                self._encoders[name] = self._make_encoder(name)
            return self._encoders[name]

    def text_encoder(self) -> Encoder:
        """Return the encoder of texts."""
        if self._text_encoder is None:
            self._text_encoder = self.encoder(self.text_model().name)  # type: ignore[assignment]  # the model says what
        return self._text_encoder  # type: ignore[return-value]  # None is over

    def image_encoder(self) -> GraphImageEncoder:
        """Return the encoder of images."""
        return self.encoder(self.image_model().name)  # type: ignore[return-value]  # the model says what it encodes

    def tolerance(self, golden: Golden) -> float:
        """Return how far an answer may be from a golden one: an encoder's by the graph that serves."""
        encoder = self._encoders.get(golden.model)
        forward = None if encoder is None else getattr(encoder, "forward", None)
        return golden.tolerance if forward is None else float(forward.graph.tolerance)

    def warm_up(self) -> None:
        """Make the encoders that run graphs and let each run once, as far as this board has what they need."""
        for model in self.bundle.manifest.encoders:
            with contextlib.suppress(MissingExtraError):
                self.encoder(model.name).warm_up()  # type: ignore[union-attr]  # those of graphs have it

    def pin(self, room_bytes: int) -> None:
        """Keep what is asked for most in memory, within a part of ``room_bytes``; read no further ahead than fits."""
        from edge_embed.residency import Pins, has_room_ahead

        if not has_room_ahead(self.bundle, room_bytes):
            for table in self._tables.values():
                table.pages.read_singly()
        self._pins = Pins(self.bundle, room_bytes)

    def unpin(self) -> None:
        """Let go of what was pinned, before another generation pins its own."""
        if self._pins is not None:
            self._pins.release()
            self._pins = None

    def warm_up_like(self, other: Serving) -> None:
        """Make what ``other`` has made at its first uses, so that the first call after a swap does not wait."""
        if other._encoders and any(table.model.text for table in self._tables.values()):
            self.text_encoder()
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

    def _make_encoder(self, name: str) -> AnyEncoder:
        from edge_embed.text import TextEncoder

        for model in self.bundle.manifest.encoders:
            if model.name == name:
                return self._open_encoder(self.bundle, model, self._engine, self._threads)
        table = self.table(name)
        if table.model.text is None:
            raise RequestError(f"{name}: expected a model that encodes text, found a table alone")
        if table.model.text.tokenizer == "fasttext":
            from edge_embed.sentences import SentenceEncoder

            labels = None if table.model.classify is None else self._tables[table.model.classify.labels]
            return SentenceEncoder(table, labels, table.model.text.max_tokens)
        return TextEncoder.of(self.bundle, table.model.text, table)


def _open_encoder(bundle: Bundle, model: EncoderModel, engine: str, threads: int) -> AnyEncoder:
    # Imported here: only who encodes by a graph pays for it.
    from edge_embed.encoding import open_encoder

    return open_encoder(bundle, model, engine=engine, threads=threads)


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
            f"{bundle.folder}: expected at most {format_size(budget_bytes)} of private memory, found a need of "
            f"{format_size(needed)} ({format_size(private_bytes_beside)} in this process beside a bundle, "
            f"{format_size(adds)} for the bundle); raise the budget or export with fewer dimensions"
        )
    return budget_bytes - needed
