"""Bags side by side: one bag of 16, and one request to 26 tables, by edge-embed, numpy and torch's ``EmbeddingBag``.

* The tables are a recommender's: 26 of 100 to 100,000 rows, 16 to 64 dimensions, made here and kept in float32 by the
  peers, in int8 by edge-embed, which decodes what it pools.
* Every figure comes from a process that opens one peer. Rounds are interleaved; a figure is the median over rounds of
  the median call, on one thread.
* Peers must agree on the answers (up to the rounding of int8) before their times are compared.
* A peer that is not there stays in the table with its reason.

    python benchmarks/bags.py [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SEED, install, keep_bytecode, this_machine, today, write_section
from edge_embed_bundle.manifest import BagRecipe, LatencyBudget

TITLE = "Bags"
TABLES = 26
BAG_IDS = 16
REQUEST_IDS = 4
TOLERANCE = 0.02

_CALLS = 2000
_FILE = "tables.safetensors"

Tables = dict[str, NDArray[np.float32]]
Request = dict[str, list[int]]


class Peer(NamedTuple):
    """What is measured: the mean ``(d,)`` of rows of one table, and of a bag of each table."""

    version: str
    bag: Callable[[str, list[int]], Any]
    request: Callable[[Request], Any]


def make_tables() -> Tables:
    """Return the tables; the same ones every time."""
    random = np.random.default_rng(SEED)
    rows = np.logspace(2, 5, TABLES).astype(int).tolist()
    return {f"t_cat_{i}": random.standard_normal((n, (16, 32, 64)[i % 3]), np.float32) for i, n in enumerate(rows)}


def open_edge_embed(folder: Path) -> Peer:
    """Open the store as an application does."""
    import edge_embed

    runtime = edge_embed.open(folder / "store")
    return Peer(edge_embed.__version__, lambda name, ids: runtime.bag(ids, model=name), runtime.bags)


def open_numpy(folder: Path) -> Peer:
    """Open the arrays: what one writes without any library."""
    from safetensors.numpy import load_file

    tables = {name.split(".")[0]: table for name, table in load_file(folder / _FILE).items()}
    return Peer(
        np.__version__,
        lambda name, ids: tables[name].take(ids, axis=0).mean(axis=0),
        lambda asked: {name: tables[name].take(ids, axis=0).mean(axis=0) for name, ids in asked.items()},
    )


def open_torch(folder: Path) -> Peer:
    """Open one ``EmbeddingBag`` a table."""
    import torch
    from safetensors.numpy import load_file

    torch.set_num_threads(1)
    tables = {
        name.split(".")[0]: torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(table), mode="mean")
        for name, table in load_file(folder / _FILE).items()
    }
    start = torch.tensor([0])

    def bag(name: str, ids: list[int]) -> Any:
        return tables[name](torch.tensor(ids), start)[0].numpy()

    def request(asked: Request) -> Any:
        with torch.inference_mode():
            return {name: bag(name, ids) for name, ids in asked.items()}

    return Peer(torch.__version__, torch.inference_mode()(bag), request)


PEERS = {"edge-embed": open_edge_embed, "numpy": open_numpy, "torch": open_torch}


def measure_peer(name: str, folder: Path) -> dict[str, Any]:
    """Open one peer in this process and return its figures and one answer."""
    random = np.random.default_rng(SEED)
    rows = dict(zip(make_names(), np.logspace(2, 5, TABLES).astype(int).tolist(), strict=True))
    last = f"t_cat_{TABLES - 1}"
    bags = [random.integers(0, rows[last], BAG_IDS).tolist() for _ in range(_CALLS)]
    requests = [{t: random.integers(0, n, REQUEST_IDS).tolist() for t, n in rows.items()} for _ in range(_CALLS // 10)]
    peer = PEERS[name](folder)
    answer = np.concatenate([peer.bag(last, bags[0]), *peer.request(requests[0]).values()])
    return {
        "version": peer.version,
        "bag_us": _median_us(lambda ids: peer.bag(last, ids), bags),
        "request_us": _median_us(peer.request, requests),
        "answer": answer.tolist(),
    }


def make_names() -> list[str]:
    """Return the names of the tables."""
    return [f"t_cat_{i}" for i in range(TABLES)]


def _median_us(call: Callable[[Any], object], inputs: Sequence[Any]) -> float:
    times = []
    for value in inputs:
        start = time.perf_counter_ns()
        call(value)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def _prepare(folder: Path) -> None:
    from safetensors.numpy import save_file

    from edge_embed_export.exporter import export
    from edge_embed_export.options import Options
    from edge_embed_export.sources import read_source

    save_file({f"{name}.weight": table for name, table in make_tables().items()}, folder / _FILE)
    patient = dict.fromkeys(("lookup", "bag"), LatencyBudget(1e7, 1e7))
    options = Options(folder / "bundle", name="benchmark", bags={"*": BagRecipe("mean")}, latency_budgets=patient)
    export(read_source(folder / _FILE), options)
    install(folder / "bundle", folder / "store")


def compare(rounds: int, folder: Path) -> str:
    """Measure all peers in turn and return the section."""
    keep_bytecode(folder / "bytecode")
    _prepare(folder)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    absent: dict[str, str] = {}
    for _ in range(rounds):
        for name in [name for name in PEERS if name not in absent]:
            command = [sys.executable, __file__, "--peer", name, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                absent[name] = done.stderr.strip().splitlines()[-1]
                continue
            found[name].append(json.loads(done.stdout))
    ours = np.array(found["edge-embed"][0]["answer"])
    for name in found:
        if found[name]:
            theirs = np.array(found[name][0]["answer"])
            apart = float(np.linalg.norm(theirs - ours) / np.linalg.norm(theirs))
            if apart > TOLERANCE:
                raise SystemExit(f"expected {name} and edge-embed to agree within {TOLERANCE:.0%}, found {apart:.1%}")
    return _section(rounds, found, absent)


def _section(rounds: int, found: dict[str, list[dict[str, Any]]], absent: dict[str, str]) -> str:
    lines = [
        f"{today()}, {TABLES} tables of 100 to 100,000 rows, 16 to 64 dimensions, mode mean; medians of {rounds} "
        "interleaved rounds of the median call, one process per peer, one thread, warm file cache.",
        f"{this_machine()}.",
        "",
        "In brackets: how many times better edge-embed's figure is than the peer's; **under 1 the peer is ahead**.",
        "",
        f"| peer | bag of {BAG_IDS} (us) | {TABLES} bags of {REQUEST_IDS} in one call (us) |",
        "|---|---:|---:|",
    ]
    measures = ("bag_us", "request_us")
    medians = {
        name: {measure: statistics.median(each[measure] for each in runs) for measure in measures}
        for name, runs in found.items()
        if runs
    }
    for name in found:
        if name not in medians:
            lines.append(f"| {name} | absent: {absent[name][:120]} | |")
            continue
        ratios = {m: f" ({medians[name][m] / medians['edge-embed'][m]:.2g}x)" for m in measures}
        cells = [f"{medians[name][m]:.3g}{'' if name == 'edge-embed' else ratios[m]}" for m in measures]
        lines.append(f"| {name} {found[name][0]['version']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Compare, print the section, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description="bags of edge-embed beside its peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    parser.add_argument("--peer", choices=tuple(PEERS), help="measure one peer in this process and print JSON")
    parser.add_argument("--folder", type=Path, help="with --peer: where its files are")
    arguments = parser.parse_args()
    if arguments.peer is not None:
        print(json.dumps(measure_peer(arguments.peer, arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as folder:
        section = compare(arguments.rounds, Path(folder))
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
