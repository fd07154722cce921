"""What is counted, run on an emulated board: ``counted.py KEYS BUNDLE...`` marks where each operation begins and ends.

It sees what is installed on the board alone, and prints what each pair of marks was: a name, and how many of it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import edge_embed
from edge_embed import kernels

MARK = 0x45454D42
LOOKUPS, BAGS, BAG, BATCH, SEARCHES, ROUNDS = 1000, 300, 16, 10_000, 4, 3

_prctl = ctypes.CDLL(None).prctl


def _counted(name: str, units: int, ask: Callable[[], object]) -> tuple[str, int]:
    # The third time everything that is made once is there, and it is the third pair of marks that counts.
    for _ in range(ROUNDS):
        _prctl(MARK, 0)
        ask()
        _prctl(MARK, 1)
    return name, units


def _nothing() -> None:
    pass


def main(keys_file: str, *bundles: str) -> None:
    """Ask every bundle every operation, between marks."""
    keys = Path(keys_file).read_text(encoding="utf-8").splitlines()
    gc.disable()
    said = [_counted("marks", 1, _nothing)]
    for bundle in bundles:
        with edge_embed.open(bundle, verify=False) as runtime:
            rows = runtime.manifest.tables[0].rows
            name = runtime.manifest.tables[0].codec
            queries = runtime.lookup(keys[:SEARCHES])
            bags = [keys[start : start + BAG] for start in range(BAGS)]

            def lookups(ask: Callable[[str], object] = runtime.lookup) -> None:
                for key in keys[:LOOKUPS]:
                    ask(key)

            def pools(ask: Callable[[list[str]], object] = runtime.bag, bags: list[list[str]] = bags) -> None:
                for bag in bags:
                    ask(bag)

            def searches(ask: Callable[..., object] = runtime.search, queries: Any = queries) -> None:
                for query in queries:
                    ask(vector=query, k=10)

            said += [
                _counted(f"{name}: lookup", LOOKUPS, lookups),
                _counted(f"{name}: bag of {BAG}", BAGS, pools),
                _counted(f"{name}: row of a batch", BATCH, partial(runtime.lookup, keys[:BATCH])),
                _counted(f"{name}: row of a search", rows * SEARCHES, searches),
            ]
    print(json.dumps({"variant": kernels.VARIANT, "operations": said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
