"""Golden answers are true before they travel: scores computed apart, and a scan that disagrees ends the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_embed
from edge_embed.errors import BundleError
from edge_embed_export.questions import answered
from tests.attacks.hostile import rewritten


def test_golden_scores_are_the_cosines_of_the_decoded_rows_and_their_tolerance_is_a_scans(text_bundle: Path) -> None:
    with edge_embed.open(text_bundle) as runtime:
        questions = {question.operation: question for question in answered(runtime)}
        search = questions["search"]
        rows = runtime.lookup_ids(range(runtime.table(search.model).model.rows), model=search.model).astype(np.float64)
        texts = runtime.encode(search.inputs).astype(np.float64)
    cosines = (texts @ rows.T) / np.linalg.norm(texts, axis=1, keepdims=True) / np.linalg.norm(rows, axis=1)
    expected = -np.sort(-cosines, axis=1)[:, : search.answer.shape[1]]
    np.testing.assert_allclose(search.answer, expected, atol=1e-7)
    tolerances = {name: question.tolerance for name, question in questions.items()}
    assert tolerances == {"lookup": 0.0, "encode": 1e-5, "search": 1e-4}


def test_a_key_is_asked_for_its_neighbours_and_not_for_itself(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        (search,) = (question for question in answered(runtime) if question.operation == "search")
        for key, scores in zip(search.inputs, search.answer, strict=True):
            # The scan of int8 rows rounds its query to 16 bits.
            np.testing.assert_allclose(scores, runtime.search(key, k=len(scores)).scores, atol=2e-5)
    assert search.by == "key" and search.answer.max() < 0.999


def _lengthen(norms: NDArray[Any]) -> None:
    norms *= np.float32(1.001)


def test_a_search_that_does_not_find_the_exact_scores_ends_the_export(damageable: Path) -> None:
    rewritten("norms", _lengthen)(damageable)
    with edge_embed.open(damageable) as runtime, pytest.raises(BundleError, match="expected the scores of an exact"):
        answered(runtime)
