"""What the profile of this machine predicts beside what is measured: lookup, batch, encode and search, warm, at p50.

* Each round calibrates this machine (``edge-embed boards calibrate``) and then measures every table, so a slow minute
  falls on both. A figure is the median over rounds; a ratio is prediction over measurement, the median of the rounds'.
* Any key of a table is as likely as another; a batch has 1,000 keys, a text eight words.

The bar: every ratio within 20 %. Exit status 1: one is not.

    python benchmarks/prediction.py [--rounds 3] [--keep DIR] [--write]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import edge_embed
from benchmarks.common import (
    SEED,
    make_bundle,
    make_table,
    this_machine,
    today,
    workplace_at,
    write_section,
    write_word2vec,
)
from edge_embed_bundle.bundle import Bundle
from edge_embed_devices.calibrating import Extent, calibrate
from edge_embed_devices.prediction import BATCH_KEYS, predict

TITLE = "Prediction"
TABLES = ((5_000, 64), (20_000, 128), (100_000, 256), (300_000, 300))
BAR = 0.20

_SECONDS = 1.0
_WORDS = 8

Ratios = dict[tuple[str, str], list[tuple[float, float]]]


def make_bundles(place: Path) -> dict[str, Path]:
    """Make the bundle of each table that is not there yet."""
    found = {}
    for rows, dimensions in TABLES:
        bundle = place / f"prediction-{rows}x{dimensions}"
        if not bundle.exists():
            words = place / "prediction.bin"
            write_word2vec(make_table(rows, dimensions), words)
            make_bundle(words, bundle)
            words.unlink()
        found[f"{rows:,} x {dimensions}"] = bundle
    return found


def measured_us(bundle: Path) -> dict[str, float]:
    """Return the p50 of each operation, in microseconds."""
    with edge_embed.open(bundle, verify=False) as runtime:
        names = runtime.table().names
        assert names is not None
        random = np.random.default_rng(SEED)
        keys = [names[row] for row in random.permutation(len(names)).tolist()]
        batches = [[keys[i] for i in random.integers(0, len(keys), BATCH_KEYS).tolist()] for _ in range(64)]
        for key in keys:
            runtime.lookup(key)
        return {
            "lookup": _p50_us(runtime.lookup, keys),
            "batch": _p50_us(runtime.lookup, batches),
            "encode": _p50_us(runtime.encode, [" ".join(batch[:_WORDS]) for batch in batches]),
            "search": _p50_us(runtime.search, keys[:200]),
        }


def _p50_us(call: Callable[[Any], Any], inputs: Iterable[Any]) -> float:
    times = []
    end = time.perf_counter() + _SECONDS
    for value in itertools.cycle(inputs):
        start = time.perf_counter_ns()
        call(value)
        times.append(time.perf_counter_ns() - start)
        if time.perf_counter() > end:
            break
    return statistics.median(times) / 1000


def compare(bundles: dict[str, Path], place: Path, rounds: int) -> Ratios:
    """Return prediction and measurement of each table and operation, round by round."""
    found: Ratios = {}
    for _ in range(rounds):
        board = calibrate(place / "this-machine.toml", place, Extent.of_this_machine())
        for table, path in bundles.items():
            with Bundle.open(path) as bundle:
                predicted = predict(bundle.manifest, board).operations
            for operation, now_us in measured_us(path).items():
                expected_us = predicted[operation].p50_us
                assert expected_us is not None
                found.setdefault((table, operation), []).append((expected_us, now_us))
    return found


def ratio(pairs: list[tuple[float, float]]) -> float:
    """Return prediction over measurement, the median of the rounds'."""
    return statistics.median(expected / now for expected, now in pairs)


def section(found: Ratios) -> str:
    """Return the section of the page of results."""
    lines = [
        f"{today()}; {this_machine()}. Microseconds, warm, p50; the bar is {BAR:.0%}. [prediction.py](prediction.py)",
        "",
        "| table | operation | predicted | measured | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for (table, operation), pairs in found.items():
        expected, now = (statistics.median(values) for values in zip(*pairs, strict=True))
        lines.append(f"| {table} | {operation} | {expected:.4g} | {now:.4g} | {ratio(pairs):.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Run the rounds, print the section, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the bundles there")
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    arguments = parser.parse_args()
    with workplace_at(arguments.keep) as place:
        found = compare(make_bundles(place), place, arguments.rounds)
    body = section(found)
    print(body)
    if arguments.write:
        write_section(TITLE, body)
    return int(any(not 1 - BAR <= ratio(pairs) <= 1 + BAR for pairs in found.values()))


if __name__ == "__main__":
    sys.exit(main())
