"""The bar for starting: one answer of the command, against what importing numpy costs anyway.

    edge-embed lookup on 100,000 rows starts and answers in at most 1.5 times the time of  python -c 'import numpy'

* Whole processes are timed, from before their start until they have ended; runs of all three commands are
  interleaved, and their medians are compared.
* A bundle folder is verified before it answers (every byte is read and hashed); a store was verified when the bundle
  was installed. Both must stay under the bar.
* Exit status 0: met; 1: missed.

    python benchmarks/startup.py [--runs 21] [--write]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import (
    install,
    keep_bytecode,
    make_bundle,
    make_queries,
    make_table,
    this_machine,
    today,
    wall_ms,
    write_section,
    write_word2vec,
)

TITLE = "Startup"
ROWS, DIMENSIONS = 100_000, 100
BAR = 1.5
BASE = "python -c 'import numpy'"


@dataclass(frozen=True)
class Start:
    """A command's time from start to end: medians, and the quartiles of its ratio to the base round by round."""

    name: str
    median_ms: float
    ratio: float
    quartiles: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether the command stays under the bar."""
        return self.ratio <= BAR


def commands(workplace: Path, dimensions: int) -> dict[str, list[str]]:
    """Make the bundle, install it, and return the commands to compare; the base is the first."""
    keep_bytecode(workplace / "bytecode")
    table = make_table(ROWS, dimensions)
    word2vec, bundle, store = workplace / "table.bin", workplace / "bundle", workplace / "store"
    write_word2vec(table, word2vec)
    make_bundle(word2vec, bundle)
    install(bundle, store)
    key = make_queries(table.keys, 1)[0]
    edge_embed = str(Path(sysconfig.get_path("scripts")) / "edge-embed")
    return {
        BASE: [sys.executable, "-c", "import numpy"],
        "edge-embed lookup BUNDLE KEY": [edge_embed, "lookup", str(bundle), key],
        "edge-embed lookup STORE KEY": [edge_embed, "lookup", str(store), key],
    }


def times_ms(compared: Mapping[str, list[str]], runs: int) -> dict[str, list[float]]:
    """Return each command's times over interleaved runs; a first run of each fills the caches and does not count."""
    times: dict[str, list[float]] = {name: [] for name in compared}
    for command in compared.values():
        wall_ms(command)
    for _ in range(runs):
        for name, command in compared.items():
            times[name].append(wall_ms(command))
    return times


def judge(times: Mapping[str, Sequence[float]]) -> list[Start]:
    """Return every command with its ratio to the base."""
    return [_start(name, found, times[BASE]) for name, found in times.items()]


def _start(name: str, times: Sequence[float], base: Sequence[float]) -> Start:
    median = statistics.median(times)
    low, _, high = statistics.quantiles([a / b for a, b in zip(times, base, strict=True)], n=4)
    return Start(name, median, median / statistics.median(base), (low, high))


def report(starts: list[Start], runs: int, dimensions: int) -> str:
    """Return the section: what was measured on what, and met or missed."""
    lines = [
        f"{today()}, {ROWS:,} rows x {dimensions} dimensions, int8; medians of {runs} interleaved runs, warm file "
        "cache.",
        f"{this_machine()}.",
        "",
        f"| command | ms | ratio | ratio, middle half of the runs | at most {BAR} |",
        "|---|---:|---:|---:|---|",
    ]
    for start in starts:
        word = "the base" if start.name == BASE else "met" if start.met else "**missed**"
        low, high = start.quartiles
        lines.append(
            f"| `{start.name}` | {start.median_ms:.1f} | {start.ratio:.2f} | {low:.2f} to {high:.2f} | {word} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print the section, write it where that is asked for, and return whether the bar was missed."""
    parser = argparse.ArgumentParser(description="the time of edge-embed lookup against importing numpy")
    parser.add_argument("--runs", type=int, default=21, help="at least 2")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS, help=f"of the {ROWS:,} rows ({DIMENSIONS})")
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as workplace:
        starts = judge(times_ms(commands(Path(workplace), arguments.dimensions), arguments.runs))
    section = report(starts, arguments.runs, arguments.dimensions)
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0 if all(start.met for start in starts if start.name != BASE) else 1


if __name__ == "__main__":
    sys.exit(main())
