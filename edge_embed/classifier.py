"""Labels of texts, as a supervised fastText model gives them (``loss.cc``, version 0.9.2).

The vector of a text is compared with the row of each label; ``output`` says what becomes of the products:

 * ``softmax``: the labels' probabilities add up to one;
 * ``sigmoid``: each label is likely or not by itself; the original reads the function from a table of 513 values, and
   so does this module, by products that are added up in the original's order: a last bit decides between two values;
 * ``tree``: labels are leaves of a binary tree (hierarchical softmax), a row belongs to an inner node and says how
   likely its right side is. Only branches that can still lead to one of the ``k`` best are walked.

Probabilities are those of the original, which adds 1e-5 to each before it takes a logarithm.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.errors import BundleError
from edge_embed.sentences import SentenceEncoder
from edge_embed.table import Table

_SIGMOID_BOUND, _SIGMOID_STEPS = 8, 512
_SMALLEST = 1e-5
# Labels whose products are made together: they bound the private memory of a model of very many.
_BLOCK_LABELS = 1024


@dataclass(frozen=True, eq=False)
class Classification:
    """The labels of a text, likeliest first, and their probabilities ``(k,)`` float32."""

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        """Return how many labels were found."""
        return len(self.labels)


class Classifier:
    """The classifier of a model: its encoder, its labels and what makes products into probabilities."""

    def __init__(self, table: Table, labels: Table, output: str) -> None:
        if table.model.text is None:
            raise AssertionError("the manifest's gate lets no classifier pass without a recipe for texts")
        self._encoder = SentenceEncoder(table, labels, table.model.text.max_tokens)
        self._labels = labels
        self._output = output
        self._tree = labels.tree if output == "tree" else None
        if self._tree is not None:
            _check_tree(self._tree, labels.model.name)

    def classify(self, texts: Sequence[str], k: int, threshold: float) -> list[Classification]:
        """Return up to ``k`` labels of each text whose probability is ``threshold`` or more.

        Raises:
            RequestError: a text is no ``str``, or holds a lone surrogate.
        """
        return [self._classified(text, place, k, threshold) for place, text in enumerate(texts)]

    def _classified(self, text: str, place: int, k: int, threshold: float) -> Classification:
        vector = self._encoder.vector(text, place)
        if vector is None:
            return Classification((), np.empty(0, np.float32))
        if self._tree is not None:
            found = self._walked(self._tree, vector, k, threshold)
            rows, scores = [row for _, row in found], np.array([score for score, _ in found], np.float32)
        else:
            products = self._products(vector)
            given = self._probabilities(products)
            # By the products: probabilities of the table are often equal, and the original leaves their order open.
            likely = kernels.top_k(products, k)
            likely = likely[given[likely] >= threshold]
            rows, scores = likely.tolist(), _logarithms(given[likely])
        if self._labels.names is None:
            raise AssertionError("the manifest's gate lets no labels pass without names")
        return Classification(tuple(self._labels.names[row] for row in rows), np.exp(scores))

    def _products(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the dot product ``(n,)`` of every label's row with a text's vector."""
        if self._output == "softmax":
            return self._labels.rows.scores(vector)
        rows = self._labels.model.rows
        products = np.zeros(rows, np.float32)
        if len(vector):
            for start in range(0, rows, _BLOCK_LABELS):
                ids = np.arange(start, min(start + _BLOCK_LABELS, rows))
                products[ids] = np.add.accumulate(self._labels.rows.decode(ids) * vector, axis=1)[:, -1]
        return products

    def _probabilities(self, products: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._output == "softmax":
            powers = np.exp(products - products.max())
            return np.asarray(powers / powers.sum(), np.float32)
        steps = (products.astype(np.float64) + _SIGMOID_BOUND) * (_SIGMOID_STEPS / _SIGMOID_BOUND / 2)
        found = _sigmoids()[np.clip(steps, 0, _SIGMOID_STEPS).astype(np.int64)]
        return np.where(
            products < -_SIGMOID_BOUND, np.float32(0), np.where(products > _SIGMOID_BOUND, np.float32(1), found)
        )

    def _walked(
        self, tree: NDArray[np.uint32], vector: NDArray[np.float32], k: int, threshold: float
    ) -> list[tuple[float, int]]:
        """Return the ``k`` likeliest leaves with their logarithms, best first; every branch costs one row."""
        leaves = self._labels.model.rows
        least = _logarithm(threshold)
        found: list[tuple[float, int]] = []
        waiting = [(0.0, 2 * leaves - 2)]
        while waiting:
            score, node = waiting.pop()
            if score < least or (len(found) == k and score < found[0][0]):
                continue
            if node < leaves:
                heapq.heappush(found, (score, node))
                if len(found) > k:
                    heapq.heappop(found)
                continue
            row = self._labels.rows.decode(np.array([node - leaves]))[0]
            right = 1 / (1 + math.exp(-max(-700.0, min(700.0, float(np.dot(row, vector))))))
            left_node, right_node = tree[node - leaves].tolist()
            waiting.append((score + _logarithm(right), right_node))
            waiting.append((score + _logarithm(1 - right), left_node))
        return sorted(found, key=lambda each: (-each[0], each[1]))


def _check_tree(tree: NDArray[np.uint32], name: str) -> None:
    """Refuse what is no tree: a node stands before the one above it, and under one alone."""
    inner = len(tree) + 1 + np.arange(len(tree))
    if (tree >= inner[:, np.newaxis]).any() or len(np.unique(tree)) != tree.size:
        # The publisher's word, as with keys: it must not become a walk without an end.
        raise BundleError(f"{name}: expected a tree of labels, found one with loops; ask the bundle's publisher")


def _logarithm(probability: float) -> float:
    return math.log(probability + _SMALLEST)


def _logarithms(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(probabilities.astype(np.float64) + _SMALLEST).astype(np.float32)


def _sigmoids() -> NDArray[np.float32]:
    """Return the original's table of the function 1 / (1 + exp(-x)), from -8 to 8."""
    x = (np.arange(_SIGMOID_STEPS + 1) * 2 * _SIGMOID_BOUND / _SIGMOID_STEPS - _SIGMOID_BOUND).astype(np.float32)
    return (1 / (1 + np.exp(-x))).astype(np.float32)
