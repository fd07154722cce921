"""How fast the engines at hand run a transformer: one layer, as wide as all-MiniLM's, out of graphs that export draws.

* The graphs (``layers/``) have no weights: those are a file of zeros beside or behind them, which takes no room on
  flash. Engines multiply zeros as they multiply anything else.
* A run costs something for its weights, however many tokens there are, and something for each token: two lengths tell
  one from the other. Both are said of weights, so a layer that is wider, or six of them, is told in the same figures.
* An engine that is not installed has no figures.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Callable
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
from edge_embed_devices.quiet import quietest, timed

#: The file of weights that the graphs in ONNX name.
WEIGHTS_NAME = "weights.bin"
#: Tokens of the texts that are run.
LENGTHS = (16, 64)
# Room for the weights of either kind.
_WEIGHTS_BYTES = 8 * 2**20
# all-MiniLM has six.
_OTHER_LAYERS = 5

#: The weights that a token is multiplied with in the layer: of attention, and of two dense steps.
WEIGHTS = 4 * 384**2 + 2 * 384 * 1536


def measured(seconds: float) -> dict[str, tuple[float, str]]:
    """Return the figures of the engines that are here, by their names in a profile, each with its method.

    Args:
        seconds: how long a quiet moment is looked for, for each engine.
    """
    found: dict[str, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory(prefix="edge-embed-calibrate-") as folder:
        for format, variant in ENGINE_KINDS:
            try:
                engine = _loaded(Path(folder), format, variant)
            except (MissingExtraError, BundleError):
                continue
            how = f"a layer of all-MiniLM's size by {engine.name} {engine.version.split()[-1]}, one thread"
            short, long = LENGTHS
            short_s, long_s = _seconds(engine, format, variant, seconds)
            token_s = max(1e-7, (long_s - short_s) / (long - short))
            run_s = max(1e-6, short_s - short * token_s)
            kind = f"{format}_{variant}"
            products, weights = f"{how}; what {long} tokens take beyond {short}", f"{how}; what is left of no token"
            found[f"{kind}_products_g_per_s"] = (WEIGHTS / token_s / 1e9, products)
            found[f"{kind}_weights_g_per_s"] = (WEIGHTS / run_s / 1e9, weights)
    return found


def _loaded(folder: Path, format: str, variant: str) -> EncoderEngine:
    graph_file = folder / f"{variant}.{format}"
    source = resources.files("edge_embed_devices") / "layers" / graph_file.name
    graph_file.write_bytes(source.read_bytes())
    holes = folder / WEIGHTS_NAME if format == "onnx" else graph_file
    with holes.open("ab") as file:
        file.truncate(_WEIGHTS_BYTES)
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


def _seconds(engine: EncoderEngine, format: str, variant: str, seconds: float) -> list[float]:
    """Return what a text of each length takes, the weights fetched anew: other layers drive them out of caches."""
    dtype = np.int64 if format == "onnx" else np.int32
    others = _other_weights(np.dtype(variant))

    def run(length: int) -> Callable[[], float]:
        ids = np.zeros((1, length), dtype)

        def timer() -> float:
            engine.encode({"ids": ids})
            others.max()
            return timed(lambda: engine.encode({"ids": ids}))()

        return timer

    return quietest(*map(run, LENGTHS), seconds=seconds)


def _other_weights(dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return what other layers hold, in small pages, as engines keep theirs: large ones leave the layer in the TLB."""
    pages = mmap.mmap(-1, _OTHER_LAYERS * WEIGHTS * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    weights = np.frombuffer(pages, dtype)
    # Pages of zeros that nobody wrote to are one page, whatever their number.
    weights[:] = 1
    return weights
