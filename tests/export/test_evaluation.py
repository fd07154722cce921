"""Scores that can be worked out on paper, or by the package that everybody uses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed_export.evaluation import Evaluation, Questions, Side, Task, evaluate
from edge_embed_export.evaluation.analogies import Analogies
from edge_embed_export.evaluation.labelled import Labelled, splits
from edge_embed_export.evaluation.odd_one_out import OddOneOut
from edge_embed_export.evaluation.retrieval import Retrieval
from edge_embed_export.evaluation.similarity import Similarity, spearman

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("ir_measures")


def _side(vectors: Mapping[str, Sequence[float]], *, texts: bool = False) -> Side:
    rows = {key: row for row, key in enumerate(vectors)}
    table = np.array(list(vectors.values()), np.float32)

    def encode(words: Sequence[str]) -> NDArray[np.float32]:
        return table[[rows[word] for word in words]]

    return Side(len(rows), lambda key: rows.get(key, -1), lambda ids: table[ids], encode if texts else None)


def _evaluated(questions: Questions, before: Side, after: Side | None = None) -> Evaluation:
    return evaluate(Task("file", "0" * 64, questions), before, before if after is None else after)


def _random(count: int, dimensions: int, seed: int = 0) -> dict[str, list[float]]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return {f"w{i}": row.tolist() for i, row in enumerate(vectors)}


def test_spearman_is_scipys_with_ties_and_without() -> None:
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    found, expected = random.normal(size=(5, 40)), random.integers(0, 6, (5, 40)).astype(np.float64)
    for one, other, correlation in zip(found, expected, spearman(found, expected), strict=True):
        assert correlation == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(np.ones((1, 4)), found[:1, :4]).tolist() == [0]


def test_pairs_are_ranked_by_cosine_whatever_the_lengths() -> None:
    side = _side({"east": [9, 0], "north": [0, 1], "northeast": [0.1, 0.1], "west": [-3, 0]})
    pairs = Similarity(("east", "east", "east"), ("northeast", "north", "west"), (10, 5, 1))
    found = _evaluated(pairs, side)
    assert found.scores[0].float32 == found.scores[0].packed == 1
    assert found.scores[0].loss == 0
    assert (found.scores[0].loss_interval.low, found.scores[0].loss_interval.high) == (0, 0)


def test_words_are_found_in_lower_case_and_unknown_ones_are_counted() -> None:
    side = _side({"east": [1, 0], "north": [0, 1], "West": [-1, 0]})
    pairs = Similarity(("East", "NORTH", "east", "west"), ("north", "West", "mars", "east"), (3, 2, 5, 1))
    found = _evaluated(pairs, side)
    # "west" is not "West": only the lower-case form of what was asked is tried.
    assert (found.asked, found.known) == (4, 2)


def test_a_loss_is_that_of_the_rounded_scores() -> None:
    words = _random(60, 8)
    noisy = {
        key: (np.array(row) + np.random.default_rng(i).normal(size=8)).tolist()
        for i, (key, row) in enumerate(words.items())
    }
    names = list(words)
    cosines = [float(np.dot(words[a], words[b])) for a, b in zip(names[::2], names[1::2], strict=True)]
    pairs = Similarity(tuple(names[::2]), tuple(names[1::2]), tuple(cosines))
    score = _evaluated(pairs, _side(words), _side(noisy)).scores[0]
    assert score.loss == round(score.float32 - score.packed, 4) > 0
    assert score.loss_interval.low < score.loss < score.loss_interval.high
    assert score.float32_interval.low < score.float32 < score.float32_interval.high
    assert _evaluated(pairs, _side(words), _side(noisy)).scores[0] == score


def test_the_interval_of_a_share_is_that_of_the_textbook() -> None:
    # 60 of 100 right: the standard error is sqrt(.6 * .4 / 100) = .049, so 95 % are about .504 to .696.
    groups = OddOneOut(tuple(("a", "b", "odd") if i < 60 else ("odd", "a", "b") for i in range(100)))
    side = _side({"a": [1, 0], "b": [1, 0.1], "odd": [0, 1]})
    score = _evaluated(groups, side).scores[0]
    assert score.float32 == 0.6
    assert score.float32_interval.low == pytest.approx(0.504, abs=0.015)
    assert score.float32_interval.high == pytest.approx(0.696, abs=0.015)


def test_analogies_are_those_of_a_plain_search() -> None:
    words = _random(9000, 6)  # more than a block of rows
    table = np.array(list(words.values()), np.float32).astype(np.float64)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    random = np.random.default_rng(1)
    questions, right = [], 0
    for place in range(40):
        a, b, c, guess = random.choice(9000, 4, replace=False)
        scores = unit @ (unit[b] - unit[a] + unit[c])
        scores[[a, b, c]] = -np.inf
        best = int(scores.argmax())
        answer = best if place % 2 else int(guess)
        right += answer == best
        questions.append((f"w{a}", f"w{b}", f"w{c}", f"w{answer}"))
    found = _evaluated(Analogies((*questions, ("w1", "w2", "w3", "unknown"))), _side(words))
    assert found.scores[0].float32 == right / 40
    assert (found.asked, found.known) == (41, 40)


def test_none_of_the_words_asked_with_is_an_answer() -> None:
    side = _side({"a": [1, 0], "b": [1, 0.2], "c": [0.9, 0.1], "far": [-1, 0]})
    assert _evaluated(Analogies((("a", "b", "c", "far"),) * 2), side).scores[0].float32 == 1


def test_labels_of_separate_groups_are_all_found_and_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 60)
    apart: dict[str, list[float]] = {
        f"n{i}": (10 * np.eye(3)[label] + random.normal(size=3) * 0.1).tolist() for i, label in enumerate(truth)
    }
    labels = tuple((str(label),) for label in truth)
    found = {score.measure: score for score in _evaluated(Labelled(tuple(apart), labels), _side(apart)).scores}
    assert found["micro-F1"].float32 == found["macro-F1"].float32 == 1

    mixed = _random(60, 3)
    questions = Labelled(tuple(mixed), labels)
    values = questions.answers(_side(mixed)).values
    scores = questions.scores(values, np.arange(60)[np.newaxis])
    # True and false positives of each label over all splits, as lists of true and given labels.
    true = [label for label in range(3) for _ in range(int(values[:, [0, 2], label].sum()))]
    assert len(true) == sum(len(asked) for _, asked in splits(60))
    hits, strangers, missed = values.sum(axis=0)
    reference = f1_score(
        np.repeat([1, 0, 1] * 3, np.stack([hits, strangers, missed], axis=1).ravel()),
        np.repeat([1, 1, 0] * 3, np.stack([hits, strangers, missed], axis=1).ravel()),
    )
    assert scores["micro-F1"][0] == pytest.approx(reference)
    each = [2 * h / (2 * h + s + m) for h, s, m in zip(hits, strangers, missed, strict=True)]
    assert scores["macro-F1"][0] == pytest.approx(np.mean(each))


def test_half_of_the_items_train_and_the_splits_are_the_same_every_time() -> None:
    for (train, asked), (again, _) in zip(splits(11), splits(11), strict=True):
        assert (len(train), len(asked)) == (5, 6)
        assert sorted([*train, *asked]) == list(range(11))
        assert train.tolist() == again.tolist()


def test_a_node_gets_as_many_labels_as_it_has() -> None:
    vectors: dict[str, list[float]] = {f"n{i}": [float(i % 2), float(i % 3 == 0)] for i in range(30)}
    labels = tuple(("even", "three") if i % 3 == 0 else ("odd",) for i in range(30))
    values = Labelled(tuple(vectors), labels).answers(_side(vectors)).values
    hits, strangers, missed = values.sum(axis=2).T
    assert (hits + missed == hits + strangers).all()


def test_documents_are_ranked_and_judged_as_trec_does() -> None:
    texts: dict[str, list[float]] = {"q": [1, 0], "r": [0, 1], "near": [1, 0.1], "mid": [1, 0.5], "far": [0, 1]}
    retrieval = Retrieval(
        {"1": "q", "2": "r", "3": "q"},
        {name: name for name in ("far", "mid", "near")},
        {"1": {"mid": 1}, "2": {"far": 1, "mid": 1}, "3": {"near": 0}},
    )
    found = _evaluated(retrieval, _side(texts, texts=True))
    assert (found.asked, found.known) == (3, 2)
    scores = {score.measure: score.float32 for score in found.scores}
    # Query 1 finds near, mid, far: the first relevant one is second. Query 2 finds far, mid, near.
    discounted = (1 / np.log2(3) + 1) / 2
    assert scores == {
        "Recall@10": 1,
        "Recall@100": 1,
        "Precision@10": pytest.approx((0.1 + 0.2) / 2),
        "MRR": 0.75,
        "nDCG@10": pytest.approx(discounted, abs=1e-4),
    }


def test_texts_need_a_source_that_encodes_them() -> None:
    pairs = Similarity(("a b", "c"), ("d", "e"), (1, 2), texts=True)
    with pytest.raises(RequestError, match=r"file: expected a source that encodes text, found a table of keys alone"):
        _evaluated(pairs, _side(_random(3, 2)))


def test_too_few_known_words_are_no_score() -> None:
    pairs = Similarity(("w0", "x"), ("w1", "y"), (1, 2))
    with pytest.raises(RequestError, match=re.escape("whose words the table knows, found 1 of 2")):
        _evaluated(pairs, _side(_random(3, 2)))
