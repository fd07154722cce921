"""How fast the engines at hand run a transformer: layers as many and as wide as all-MiniLM's, as export draws them.

* The graphs (``layers/``) have no weights: random ones are written beside or behind them. Zeros would be told as
  faster than they are, because ONNX Runtime keeps weights that are alike once, and so in a cache.
* A run costs something for its weights, however many tokens there are, and something for each token: two lengths tell
  one from the other. Both are said of weights, so layers that are wider, or more of them, are told in the same figures.
* An engine that is not installed, or has no room for its weights, has no figures; neither has one that ends its process
  (tflite-runtime 2.14 on an emulated Cortex-A76), which another process finds out before.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.engines import EncoderEngine, engines_of, first_here
from edge_embed.engines.onnx import OnnxEncoder
from edge_embed.engines.tflite import LiteRtEncoder
from edge_embed.errors import BundleError, MissingExtraError
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput
from edge_embed_devices.profiles import ENGINE_KINDS
from edge_embed_devices.quiet import in_quiet, timed

#: The file of weights that the graphs in ONNX name.
WEIGHTS_NAME = "weights.bin"
#: Tokens of the texts that are run.
LENGTHS = (16, 64)
#: How many layers there are: fewer would find their weights in a cache.
LAYERS = 6
#: The weights that a token is multiplied with: of attention, and of two dense steps.
WEIGHTS = LAYERS * (4 * 384**2 + 2 * 384 * 1536)
#: What the system says where there is no room: a disk is full, or what one user may have of it.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# What is written for them, with room for what is no such weight (words, norms, scales).
_WEIGHTS_BYTES = {"float32": 4 * WEIGHTS + 2**20, "int8": WEIGHTS + 2**20}


def measured(folder: Path, seconds: float) -> dict[str, tuple[float, str]]:
    """Return the figures of the engines that are here, by their names in a profile, each with its method.

    Args:
        folder: with room for the weights, 43 MB; it is left as it was. Engines without room have no figures.
        seconds: how long quiet moments are looked for, for each engine and length.
    """
    found: dict[str, tuple[float, str]] = {}
    # Even a folder takes room, on a disk that is full to the last block.
    with _left_out():
        for format, variant in _living(folder):
            with _left_out(), _place(folder) as place:
                found |= _figures(_loaded(place, format, variant), format, variant, seconds)
    return found


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    """Leave an engine out that is not here, or has no room."""
    try:
        yield
    except (MissingExtraError, BundleError):
        return
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edge-embed-calibrate-", dir=folder) as place:
        yield Path(place)


def _living(folder: Path) -> list[tuple[str, str]]:
    """Return the kinds that did not end another process, which was asked for each of them."""
    asked, living = list(ENGINE_KINDS), []
    while asked:
        words = [f"{format},{variant}" for format, variant in asked]
        # What a process that ended left behind goes with this folder.
        with _place(folder) as place:
            command = [sys.executable, "-P", "-m", "edge_embed_devices.engine_speeds", str(place.absolute()), *words]
            said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
        # An engine may say anything there, text or not.
        count = sum(line in words for line in said.decode(errors="replace").splitlines())
        living += asked[:count]
        # Where it ended, the next one was too much for it.
        asked = asked[count + 1 :]
    return living


def _ask_here(folder: Path, kinds: Sequence[str]) -> None:
    """Ask each kind for a text of each length, and say after each that this process is still there."""
    for kind in kinds:
        format, variant = kind.split(",")
        with _left_out(), _place(folder) as place:
            engine = _loaded(place, format, variant)
            for text in _texts(format):
                engine.encode(text)
        print(kind, flush=True)


def _figures(engine: EncoderEngine, format: str, variant: str, seconds: float) -> dict[str, tuple[float, str]]:
    how = f"{LAYERS} layers of all-MiniLM's size by {engine.name} {engine.version.split()[-1]}, one thread"
    short, long = LENGTHS
    short_s, long_s = _seconds(engine, format, seconds)
    # Half of a long text's time at the least is its tokens': a disturbance of the short one must not say otherwise.
    token_s = max(long_s / long / 2, (long_s - short_s) / (long - short))
    run_s = max(short_s / 100, short_s - short * token_s)
    kind = f"{format}_{variant}"
    return {
        f"{kind}_products_g_per_s": (WEIGHTS / token_s / 1e9, f"{how}; what {long} tokens take beyond {short}"),
        f"{kind}_weights_g_per_s": (
            WEIGHTS / run_s / 1e9,
            f"{how}; what is left of no token, a hundredth of {short} at the least",
        ),
    }


def _loaded(folder: Path, format: str, variant: str) -> EncoderEngine:
    graph_file = folder / f"{variant}.{format}"
    source = resources.files("edge_embed_devices") / "layers" / graph_file.name
    graph_file.write_bytes(source.read_bytes())
    # Plain numbers as float32, and any codes as int8.
    weights = np.random.default_rng(0).random(_WEIGHTS_BYTES[variant] // 4, np.float32) * 0.02 + 0.01
    with (folder / WEIGHTS_NAME).open("wb") if format == "onnx" else graph_file.open("ab") as file:
        file.write(weights.data)
    dtype = "int64" if format == "onnx" else "int32"
    graph = EncoderGraph(
        format,
        graph_file.name,
        (),
        variant,
        (GraphInput("ids", "ids", dtype),),
        GraphOutput("vectors", "vectors"),
        1,
        0.0,
    )
    if format == "onnx":
        return OnnxEncoder(str(graph_file), graph, 1)
    return first_here(engines_of(graph), lambda name: LiteRtEncoder(str(graph_file), graph, 1, name))


def _seconds(engine: EncoderEngine, format: str, seconds: float) -> list[float]:
    """Return what a text takes, of each length among others of its length: after a longer one, caches hold less."""
    return [in_quiet(timed(functools.partial(engine.encode, text)), seconds=seconds)[0] for text in _texts(format)]


def _texts(format: str) -> list[dict[str, NDArray[Any]]]:
    dtype = np.int64 if format == "onnx" else np.int32
    return [{"ids": np.zeros((1, length), dtype)} for length in LENGTHS]


if __name__ == "__main__":
    _ask_here(Path(sys.argv[1]), sys.argv[2:])
