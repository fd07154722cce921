"""The golden questions of a bundle, and the answers that every board has to give.

* Lookups and encodings are what the runtime answers here: their arithmetic is the same everywhere, or within a
  tolerance where a kernel may choose an order of additions.
* Scores are not what a scan answers, whose last bits depend on this machine, but computed apart from it (``exact``);
  a scan that is further from them than the tolerance ends the export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edge_embed.bags import error_bound
from edge_embed.errors import BundleError
from edge_embed.neighbours import Neighbours
from edge_embed.runtime import Runtime
from edge_embed.table import Table
from edge_embed_bundle.manifest import Manifest, TableModel
from edge_embed_export.exact import directions, exact_product

#: Pooling sums float32 in an order that a kernel may choose; scores add the rounding of a scan.
TEXT_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4

QUESTIONS = 16
NEIGHBOURS = 5

_BLOCK_ROWS = 8192

#: What a table without words of its own is asked, where every word is made of parts: letters of one to three bytes.
_ANY_WORDS = ("board", "embedding", "naïve", "東京", "a")


@dataclass(frozen=True, eq=False)
class Question:
    """What a bundle is asked, and its answer ``(q, ...)`` float32; the rest as in the manifest's ``Golden``."""

    operation: str
    model: str
    by: str
    inputs: tuple[str, ...]
    answer: NDArray[np.float32]
    tolerance: float


def answered(runtime: Runtime) -> list[Question]:
    """Return the golden questions for the bundle that a runtime serves, with their answers.

    Raises:
        BundleError: a search does not find what an exact one does.
    """
    models = runtime.manifest.tables
    # An empty table of words that are made of parts is asked for such words alone.
    questions = [lookup_question(runtime, model.name) for model in models if model.rows or model.unknown != "subwords"]
    first, beside = models[0], _beside(runtime.manifest)
    if first.unknown == "subwords":
        strangers = _strangers(runtime.table())
        questions.append(Question("lookup", first.name, "key", strangers, runtime.lookup(strangers), 0.0))
    questions += [_bag(runtime, model) for model in models if model.bag is not None and model.rows]
    if first.text is not None:
        texts = _texts(runtime)
        questions.append(Question("encode", first.name, "text", texts, runtime.encode(texts), TEXT_TOLERANCE))
        if first.classify is not None:
            questions.append(_classified(runtime, first.name, texts))
        if beside is not None:
            k = min(NEIGHBOURS, beside.rows)
            exact = runtime.search(text=texts, model=beside.name, k=k, exact=True)
            scores = exact_scores(runtime.table(beside.name), runtime.encode(texts), k)
            found = runtime.search(text=texts, model=beside.name, k=k)
            questions.append(_search(beside.name, "text", texts, exact, found, scores))
            return questions
    return questions + [_search_by_keys(runtime, model) for model in models if searchable(model) and model.rows > 1]


def searchable(model: TableModel) -> bool:
    """Tell whether a table can be searched: its keys are the answer."""
    return "norms" in model.tensors and "key_offsets" in model.tensors


def _beside(manifest: Manifest) -> TableModel | None:
    """Return the table that a text is searched in, if it is another than the encoder's own."""
    space = manifest.space_of(manifest.tables[0]).id
    return next(
        (
            model
            for model in manifest.tables[1:]
            if model.text is None
            and model.name not in manifest.helpers
            and manifest.space_of(model).id == space
            and searchable(model)
        ),
        None,
    )


def _search_by_keys(runtime: Runtime, model: TableModel) -> Question:
    table = runtime.table(model.name)
    # A key is not its own neighbour.
    k = min(NEIGHBOURS, model.rows - 1)
    keys = _keys(table)
    exact = runtime.search(keys, model=model.name, k=k, exact=True)
    found = runtime.search(keys, model=model.name, k=k)
    own = np.array([table.find(key) for key in keys], np.int64)
    scores = exact_scores(table, table.decode(own), k, without=own)
    return _search(model.name, "key", keys, exact, found, scores)


def _bag(runtime: Runtime, model: TableModel) -> Question:
    """Ask for bags of one row to sixteen, of rows that stand twice and that pad, and for an empty one."""
    rows: list[int] = spread_rows(model.rows, QUESTIONS).tolist()
    padding = [] if model.bag is None or model.bag.padding_row is None else [model.bag.padding_row]
    bags = [rows, rows[-1:], [*rows[:2], *padding, *rows[:1]], []]
    vectors = runtime.lookup_ids(rows, model=model.name)
    answer = runtime.bag([*bags[:-1], []], model=model.name)
    inputs = tuple(" ".join(map(str, bag)) for bag in bags)
    return Question("bag", model.name, "row", inputs, answer, error_bound(vectors, len(rows)))


def spread_rows(rows: int, count: int) -> NDArray[np.int64]:
    """Return at most ``count`` rows from all over a table."""
    return np.unique(np.linspace(0, max(rows - 1, 0), min(rows, count)).astype(np.int64))


def lookup_question(runtime: Runtime, model: str) -> Question:
    """Ask for rows from all over a table."""
    table = runtime.table(model)
    keys = _keys(table)
    if keys or not table.model.rows:
        return Question("lookup", model, "key", keys, runtime.lookup(keys, model=model), 0.0)
    # JSON holds no key that is not UTF-8; the rows can be asked all the same.
    rows = range(min(QUESTIONS, table.model.rows))
    return Question("lookup", model, "row", tuple(map(str, rows)), runtime.lookup_ids(rows, model=model), 0.0)


def _strangers(table: Table) -> tuple[str, ...]:
    """Return words that the table does not know: two of its own, run together; of one that knows none, any."""
    if not table.model.rows:
        return _ANY_WORDS
    return tuple(word for word in map("".join, pairwise(_keys(table))) if word and table.find(word) < 0)


def _classified(runtime: Runtime, model: str, texts: tuple[str, ...]) -> Question:
    # A text without parts has no label.
    texts = tuple(text for text in texts if len(runtime.classify(text)))
    k = min(NEIGHBOURS, min((len(runtime.classify(text, k=NEIGHBOURS)) for text in texts), default=0))
    found = [of.probabilities for of in runtime.classify(texts, k=k)]
    answer = np.stack(found) if found else np.empty((0, k), np.float32)
    return Question("classify", model, "text", texts, answer, TEXT_TOLERANCE)


def _search(
    model: str,
    by: str,
    inputs: tuple[str, ...],
    exact: Sequence[Neighbours],
    found: Sequence[Neighbours],
    scores: NDArray[np.float32],
) -> Question:
    """Return the question of those inputs whose neighbours a search through lists finds, too: it need not find all."""
    for asked, given, expected in zip(inputs, exact, scores, strict=True):
        off = _off(given, expected)
        # Half of the tolerance: the boards have roundings of their own.
        if off > SCORE_TOLERANCE / 2:
            raise BundleError(
                f"{model}: expected the scores of an exact search for {asked!r}, found others, off by {off:.3g}; "
                "the bundle was not written"
            )
    kept = [_off(given, expected) <= SCORE_TOLERANCE / 2 for given, expected in zip(found, scores, strict=True)]
    asked_for = tuple(asked for asked, is_kept in zip(inputs, kept, strict=True) if is_kept)
    return Question("search", model, by, asked_for, scores[np.array(kept, bool)], SCORE_TOLERANCE)


def _off(found: Neighbours, expected: NDArray[np.float32]) -> float:
    return float(np.abs(found.scores - expected).max(initial=0))


def exact_scores(
    table: Table, queries: NDArray[np.float32], k: int, without: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return the ``k`` highest cosines ``(q, k)`` of each query with the rows but, where given, its own one."""
    asked = directions(queries)
    best = np.empty((len(queries), 0))
    for start in range(0, table.model.rows, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, table.model.rows))
        scores = exact_product(asked, directions(table.decode(rows)).T)
        if without is not None:
            scores[without[:, np.newaxis] == rows] = -np.inf
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :k]
    return best.astype(np.float32)


def _keys(table: Table) -> tuple[str, ...]:
    """Return keys from all over the table; those whose vector is zeros say little, but must be right as well."""
    names = table.names
    if names is None:
        return ()
    keys = [names[row] for row in spread_rows(len(names), QUESTIONS).tolist()]
    # JSON holds no bytes that are not UTF-8.
    return tuple(key for key in keys if key.isprintable() and key.encode("utf-8", "ignore").decode() == key)


def _texts(runtime: Runtime) -> tuple[str, ...]:
    """Return texts that the bundle can be asked: lines of its collection, or words of its table in pairs."""
    beside = _beside(runtime.manifest)
    if beside is not None:
        return _keys(runtime.table(beside.name))
    words = _keys(runtime.table()) if runtime.table().model.rows else _ANY_WORDS
    return tuple(" ".join(pair) for pair in pairwise(words))
