"""Both sides' scores with bootstrap intervals: questions are drawn again, the same ones for both sides.

Percentile intervals at 95 % of 1,000 samples (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13),
from a fixed seed. Drawing the same questions for both sides makes the interval of the loss far narrower than those of
the scores: what is hard for one side is hard for the other. Figures are rounded to four digits, and a loss is that of
the rounded scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed_export.evaluation.sides import Side
from edge_embed_export.evaluation.tasks import Answers, Task

SAMPLES = 1000
DIGITS = 4

_PERCENTILES = (2.5, 97.5)
# Drawn at once: 20,000 questions take 8 MB.
_BATCH = 50


@dataclass(frozen=True)
class Interval:
    """From 2.5 to 97.5 % of the samples."""

    low: float
    high: float

    def __str__(self) -> str:
        """Return it as the tables have it."""
        return f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Score:
    """One measure on both sides; ``loss`` is float32 less packed."""

    measure: str
    float32: float
    packed: float
    float32_interval: Interval
    packed_interval: Interval
    loss_interval: Interval

    @property
    def loss(self) -> float:
        """How much worse the packed vectors do; below 0 they do better."""
        return round(self.float32 - self.packed, DIGITS)

    def to_json(self) -> dict[str, object]:
        """Return the score as manifests and ``--json`` have it."""
        return {
            "measure": self.measure,
            "float32": self.float32,
            "packed": self.packed,
            "loss": self.loss,
            "float32_interval": [self.float32_interval.low, self.float32_interval.high],
            "packed_interval": [self.packed_interval.low, self.packed_interval.high],
            "loss_interval": [self.loss_interval.low, self.loss_interval.high],
        }


@dataclass(frozen=True)
class Evaluation:
    """What one file showed: of ``asked`` questions those whose words are known were scored."""

    name: str
    kind: str
    sha256: str
    asked: int
    known: int
    scores: tuple[Score, ...]
    reproducible: bool

    def to_json(self) -> dict[str, object]:
        """Return the evaluation as manifests and ``--json`` have it."""
        return {
            "file": self.name,
            "kind": self.kind,
            "sha256": self.sha256,
            "asked": self.asked,
            "known": self.known,
            "scores": [score.to_json() for score in self.scores],
        }


def evaluate(task: Task, before: Side, after: Side) -> Evaluation:
    """Ask both sides and compare what they answer.

    Raises:
        RequestError: the table knows too few of the words, or encodes no text where that is asked for.
        MissingExtraError: a package of the extra ``evaluate`` is not installed.
    """
    sides = (_answers(task, before), _answers(task, after))
    known = len(sides[0].values)
    everything = np.arange(known)[np.newaxis]
    points = [_rounded(task.questions.scores(side.values, everything)) for side in sides]
    drawn = _drawn(task, [side.values for side in sides], known)
    scores = tuple(
        Score(
            measure,
            float(points[0][measure][0]),
            float(points[1][measure][0]),
            _interval(drawn[0][measure]),
            _interval(drawn[1][measure]),
            _interval(drawn[0][measure] - drawn[1][measure]),
        )
        for measure in points[0]
    )
    questions = task.questions
    return Evaluation(task.name, questions.kind, task.sha256, sides[0].asked, known, scores, questions.reproducible)


def _answers(task: Task, side: Side) -> Answers:
    try:
        answers = task.questions.answers(side)
    except RequestError as error:
        # The class says who can act, and whether an extra is missing: it stays.
        raise type(error)(f"{task.name}: {error}") from error
    if len(answers.values) < 2:
        raise RequestError(
            f"{task.name}: expected at least two questions whose words the table knows, "
            f"found {len(answers.values)} of {answers.asked}"
        )
    return answers


def _drawn(task: Task, values: list[NDArray[Any]], count: int) -> list[dict[str, NDArray[np.float64]]]:
    """Return each side's measures ``(SAMPLES,)`` over the same samples."""
    random = np.random.default_rng(0)
    batches: list[list[Mapping[str, NDArray[np.float64]]]] = [[] for _ in values]
    for _ in range(0, SAMPLES, _BATCH):
        items = random.integers(0, count, (_BATCH, count))
        for batch, each in zip(batches, values, strict=True):
            batch.append(task.questions.scores(each, items))
    return [{name: np.concatenate([part[name] for part in batch]) for name in batch[0]} for batch in batches]


def _interval(samples: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(samples, _PERCENTILES)
    # Adding 0 makes a zero without a sign of the negative one.
    return Interval(round(float(low), DIGITS) + 0.0, round(float(high), DIGITS) + 0.0)


def _rounded(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.round(score, DIGITS) for name, score in scores.items()}
