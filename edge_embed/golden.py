"""Golden answers: what the exporter was told by the bundle it wrote, asked again wherever it is to serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_embed.bags import Bag, error_bound, runs_of
from edge_embed.errors import BundleError, RequestError
from edge_embed.table import Table, mapped
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderModel
from edge_embed_bundle.manifest import OPERATIONS, BagRecipe, Golden, Manifest, TableModel

if TYPE_CHECKING:
    from edge_embed.encoding import GraphImageEncoder, GraphTextEncoder
    from edge_embed.engines import BagEngine
    from edge_embed.runtime import Runtime
    from edge_embed.serving import Serving


@dataclass(frozen=True)
class Outcome:
    """How far an answer was from the golden one, in the worst of its numbers."""

    operation: str
    model: str
    questions: int
    worst_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every number was within the tolerance; NaN is not."""
        return self.worst_difference <= self.tolerance

    def __str__(self) -> str:
        """Return the outcome as a sentence for people."""
        within = "within" if self.passed else "NOT within"
        return (
            f"{self.operation} of {self.questions} golden questions to {self.model}: "
            f"off by {self.worst_difference:.3g}, {within} {self.tolerance:.3g}"
        )


def check_golden(serving: Serving, operations: Sequence[str] = OPERATIONS) -> list[Outcome]:
    """Ask every golden question of some operations and return how the answers compare."""
    questions = [golden for golden in serving.bundle.manifest.golden if golden.operation in operations]
    return [
        _compared(serving.bundle, golden, _answer(serving, golden), serving.tolerance(golden)) for golden in questions
    ]


def check_asked(manifest: Manifest) -> None:
    """See that a bundle asks something: golden lookups for every table that has rows, encodings for every encoder.

    Raises:
        BundleError: a model could answer anything, and nobody would notice.
    """
    asked = {golden.model for golden in manifest.golden if golden.operation == "lookup" and golden.inputs}
    for table in manifest.tables:
        if table.rows and table.name not in asked:
            raise BundleError(f"golden: expected lookups for the model {table.name}, found none")
    for encoder in manifest.encoders:
        if not any(golden.model == encoder.name and golden.inputs for golden in manifest.golden):
            raise BundleError(f"golden: expected {encoder.operation} for the model {encoder.name}, found none")


def check_engine(bundle: Bundle, table: Table, engine: str) -> None:
    """Ask the golden lookups of a table whose rows an engine decodes.

    Raises:
        BundleError: the bundle has no golden lookup for the table, or the engine answers wrongly.
    """
    lookups = [
        golden for golden in bundle.manifest.golden if (golden.operation, golden.model) == ("lookup", table.model.name)
    ]
    if not lookups:
        raise BundleError(f"{bundle.folder}: expected golden lookups to try {engine} on, found none")
    for golden in lookups:
        outcome = _compared(bundle, golden, _lookup(table, golden), golden.tolerance)
        if not outcome.passed:
            raise BundleError(f"{bundle.folder}: expected the golden answers from {engine}, found {outcome}")


def check_encoder(bundle: Bundle, model: EncoderModel, encoder: GraphTextEncoder | GraphImageEncoder) -> None:
    """Ask the golden encodings of an encoder on an engine that its graph was not proven on.

    Raises:
        BundleError: the bundle has no golden encoding of the model, or the engine answers wrongly.
    """
    engine = encoder.forward.engine
    outcomes = encoder_outcomes(bundle, model, encoder)
    if not outcomes:
        raise BundleError(
            f"{bundle.folder}: expected golden encodings to try {engine.name} {engine.version} on, found none"
        )
    for outcome in outcomes:
        if not outcome.passed:
            raise BundleError(
                f"{bundle.folder}: expected the golden answers from {engine.name} {engine.version}, which "
                f"{encoder.forward.graph.blob} was not proven on, found {outcome}"
            )


def encoder_outcomes(
    bundle: Bundle, model: EncoderModel, encoder: GraphTextEncoder | GraphImageEncoder
) -> list[Outcome]:
    """Ask every golden encoding of a model and return how the answers of one of its graphs compare."""
    asked = [golden for golden in bundle.manifest.golden if golden.model == model.name and golden.inputs]
    return [
        _compared(bundle, golden, _encoded(bundle, golden, encoder.encode), encoder.forward.graph.tolerance)
        for golden in asked
    ]


def _encoded(bundle: Bundle, golden: Golden, encode: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
    """Encode golden texts, or the golden pictures that lie in the bundle."""
    if golden.by == "image":
        return encode([bytes(bundle.map(name)) for name in golden.inputs])
    return encode(golden.inputs)


def bag_difference(runtime: Runtime, model: TableModel, engine: BagEngine) -> tuple[float, float]:
    """Return how far an engine's bags lie from the kernels', at the most, and how far they may (``error_bound``)."""
    counts = np.array([1, 5, 0, 16, 2, 0])
    ids = np.linspace(0, model.rows - 1, int(counts.sum())).astype(np.int64)
    # The padding row stands in the bag of five, and an id that is hashed in the bag of two.
    if model.bag is not None and model.bag.padding_row is not None:
        ids[2] = model.bag.padding_row
    if model.hash is not None:
        ids[-2:] = model.rows + 3, -1
    weighted = model.bag is not None and model.bag.mode == "sum"
    weights = np.linspace(-2, 2, len(ids)).astype(np.float32) if weighted else None
    offsets = np.cumsum(counts) - counts
    found = engine.bag(ids, offsets, weights)
    expected = runtime.bag(ids, offsets, model=model.name, weights=weights)
    bound = error_bound(2 * runtime.lookup_ids(ids, model=model.name), int(counts.max()))
    if found.shape != expected.shape or found.dtype != np.float32:
        return float("inf"), bound
    return float(np.abs(found - expected).max(initial=0)), bound


def _answer(serving: Serving, golden: Golden) -> NDArray[np.float32]:
    if golden.operation in ("encode", "encode_image"):
        return _encoded(serving.bundle, golden, serving.encoder(golden.model).encode)
    table = serving.table(golden.model)
    if golden.operation == "lookup":
        return _lookup(table, golden)
    if golden.operation == "bag":
        recipe = table.model.bag or BagRecipe("mean")
        bags = [[int(row) for row in text.split()] for text in golden.inputs]
        return table.bag(runs_of(Bag(bags)), recipe.mode, recipe.padding_row, "error")
    k = golden.expected.shape[1]
    if golden.operation == "classify":
        return _probabilities(serving, golden, k)
    if golden.by == "key":
        found = [
            table.search(
                table.lookup(key, table.policy_of_questions)[np.newaxis], k, np.array([table.find(key)], np.int64)
            )[0]
            for key in golden.inputs
        ]
    else:
        encoder = serving.text_encoder() if golden.by == "text" else serving.image_encoder()
        found = table.search(_encoded(serving.bundle, golden, encoder.encode), k)
    if any(len(neighbours) != k for neighbours in found):
        raise RequestError(f"{golden.model}: expected {k} neighbours for each golden search, found fewer rows")
    return np.stack([neighbours.scores for neighbours in found]) if found else np.empty((0, k), np.float32)


def _lookup(table: Table, golden: Golden) -> NDArray[np.float32]:
    if golden.by == "row":
        return table.decode(np.array([int(row) for row in golden.inputs], np.int64))
    return table.lookup_all(golden.inputs, table.policy_of_questions)


def _probabilities(serving: Serving, golden: Golden, k: int) -> NDArray[np.float32]:
    found = serving.classifier().classify(golden.inputs, k, 0.0)
    if any(len(labels) != k for labels in found):
        raise RequestError(f"{golden.model}: expected {k} labels for each golden text, found fewer")
    return np.stack([labels.probabilities for labels in found]) if found else np.empty((0, k), np.float32)


def _compared(bundle: Bundle, golden: Golden, answer: NDArray[np.float32], tolerance: float) -> Outcome:
    expected = mapped(bundle, golden.expected)
    worst = float(np.abs(answer - expected).max(initial=0)) if answer.shape == expected.shape else float("inf")
    return Outcome(golden.operation, golden.model, len(golden.inputs), worst, tolerance)
