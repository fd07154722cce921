"""Probes that need no board: each implements ``edge_embed_bundle.store.Probe``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.slots import Slots
from edge_embed_bundle.state import State
from edge_embed_bundle.store import Verdict


class PowerCutError(BaseException):
    """The board is off; nothing in the process may catch this."""


@dataclass
class FakeProbe:
    """Answers with the verdicts it was given, one after the other, the last one for ever; remembers what it saw."""

    verdicts: list[Verdict] = field(default_factory=lambda: [Verdict(True)])
    asked: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    dies: bool = False

    def __call__(self, generation: Path) -> Verdict:
        self.asked.append(generation.name)
        self.states.append(Slots(generation.parents[1]).read())
        if self.dies:
            raise PowerCutError
        with Bundle.open(generation) as bundle:
            bundle.verify()
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]


CRASH = Verdict(False, "the probe ended with status -9", crashed=True)
NO = Verdict(False, "expected the golden answers, found others")
YES = Verdict(True)
