"""What a codec costs on the user's own questions: a file with known answers, asked of both sides.

 * A file is read and its kind is seen from its content (``files``); ``kind:FILE`` names the kind.
 * Both sides answer the same questions: the source's float32 vectors, and the packed ones as the runtime decodes them.
 * Each score stands beside its loss (float32 less packed, so positive is worse) and their intervals (``scoring``).
 * A word is looked up as it stands and, where it is unknown, in lower case: the rule of the runtime's own texts.
   A question with an unknown word is left out on both sides, and counted.

What it takes is the extra ``evaluate``: scipy, scikit-learn and ir-measures, each imported where it is wrapped.
"""

from __future__ import annotations

from edge_embed_export.evaluation.files import KINDS, TEXT_KINDS, read_evaluation
from edge_embed_export.evaluation.scoring import Evaluation, Interval, Score, evaluate
from edge_embed_export.evaluation.sides import Side
from edge_embed_export.evaluation.tasks import Answers, Questions, Task

__all__ = [
    "KINDS",
    "TEXT_KINDS",
    "Answers",
    "Evaluation",
    "Interval",
    "Questions",
    "Score",
    "Side",
    "Task",
    "evaluate",
    "read_evaluation",
]
