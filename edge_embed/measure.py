"""Measuring what a bundle costs on the machine at hand: memory and latency, as the budgets count them.

* Latency is the time of one call, in microseconds. Of several short rounds the one with the lowest p99 counts: a
  round that another process disturbed says nothing about the bundle.
* Private memory is the most that was seen while every operation answered again, after what is made at the first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_embed import memory
from edge_embed.memory import Memory, Peak
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import Golden

ROUNDS = 5
ROUND_SECONDS = 0.15
_SAMPLE_KEYS = 512


@dataclass(frozen=True)
class Latency:
    """One operation's time per call."""

    p50_us: float
    p99_us: float
    calls: int


@dataclass(frozen=True)
class Costs:
    """What a bundle cost this process on this machine."""

    memory: Memory
    operations: Mapping[str, Latency]


def costs(runtime: Runtime, without: Sequence[str] = ()) -> Costs:
    """Return the memory of this process and the latency of every operation that the bundle answers here."""
    calls = operations_of(runtime)
    found = {name: latency(call, inputs) for name, (call, inputs) in calls.items() if name not in without}
    with Peak() as peak:
        for name in found:
            call, inputs = calls[name]
            _round(call, inputs)
    return Costs(memory.current()._replace(private_bytes=peak.private_bytes), found)


def operations_of(runtime: Runtime) -> dict[str, tuple[Callable[[Any], Any], Sequence[Any]]]:
    """Return the operations that the bundle answers, each as a call and inputs to give it in turn."""
    golden = {question.operation: question for question in reversed(runtime.manifest.golden)}
    calls: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {}
    if "lookup" in golden:
        calls["lookup"] = _lookup_call(runtime, golden["lookup"])
    if "encode" in golden:
        calls["encode"] = (runtime.encode, golden["encode"].inputs)
    if "encode_image" in golden:
        bundle = runtime.bundle
        calls["encode_image"] = (runtime.encode_image, [bytes(bundle.map(i)) for i in golden["encode_image"].inputs])
    if "classify" in golden:
        calls["classify"] = (runtime.classify, golden["classify"].inputs)
    if "search" in golden:
        # Of several tables that are searched, the budget is that of the largest one.
        searches = [question for question in runtime.manifest.golden if question.operation == "search"]
        search = max(searches, key=lambda question: runtime.table(question.model).model.rows)
        if search.by == "key":
            calls["search"] = (lambda key: runtime.search(key, model=search.model), search.inputs)
        elif search.by == "text":
            calls["search"] = (lambda text: runtime.search(text=text, model=search.model), search.inputs)
        else:
            images = [bytes(runtime.bundle.map(name)) for name in search.inputs]
            calls["search"] = (lambda image: runtime.search(image=image, model=search.model), images)
    if "bag" in golden:
        calls["bag"] = (runtime.bags, _requests(runtime))
    return {name: call for name, call in calls.items() if call[1]}


def _requests(runtime: Runtime) -> list[dict[str, list[int]]]:
    """Return requests as a recommender makes them: one bag of every table that pools, from the golden questions."""
    asked = {question.model: question.inputs for question in runtime.manifest.golden if question.operation == "bag"}
    bags = {model: [[int(row) for row in text.split()] for text in texts] for model, texts in asked.items() if texts}
    if not bags:
        return []
    return [{model: each[i % len(each)] for model, each in bags.items()} for i in range(max(map(len, bags.values())))]


def latency(call: Callable[[Any], Any], inputs: Sequence[Any]) -> Latency:
    """Return the latency of ``call`` over ``inputs``, taken in turn; the best of a few short rounds."""
    call(inputs[0])
    return min((_round(call, inputs) for _ in range(ROUNDS)), key=lambda found: found.p99_us)


def _round(call: Callable[[Any], Any], inputs: Sequence[Any]) -> Latency:
    times_ns: list[int] = []
    end = time.perf_counter() + ROUND_SECONDS
    while not times_ns or time.perf_counter() < end:
        value = inputs[len(times_ns) % len(inputs)]
        start = time.perf_counter_ns()
        call(value)
        times_ns.append(time.perf_counter_ns() - start)
    p50, p99 = np.percentile(times_ns, [50, 99]) / 1000
    return Latency(round(float(p50), 2), round(float(p99), 2), len(times_ns))


def _lookup_call(runtime: Runtime, golden: Golden) -> tuple[Callable[[Any], Any], Sequence[Any]]:
    if golden.by == "row":
        return lambda row: runtime.lookup_ids([row], model=golden.model), [int(row) for row in golden.inputs]
    return runtime.lookup, _sample_of_keys(runtime) or golden.inputs


def _sample_of_keys(runtime: Runtime) -> list[str]:
    table = runtime.table()
    if table.names is None or not table.model.rows:
        return []
    rows = np.random.default_rng(0).integers(0, table.model.rows, _SAMPLE_KEYS)
    return [table.names[row] for row in rows.tolist()]
