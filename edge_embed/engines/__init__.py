"""Engines that run a bundle's portable graphs, behind one protocol; each is imported only in the module that wraps it.

An engine answers like the kernels or it does not serve: ids are checked before they reach it (ONNX Runtime counts
negative ones from the end, LiteRT stops with an error of its own), and the golden answers are asked at open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_embed.engines.onnx_gate import check_graph_file
from edge_embed.engines.tflite_files import examine
from edge_embed.errors import BundleError, MissingExtraError, RequestError
from edge_embed.kernels import Pooling, Rows
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph
from edge_embed_bundle.manifest import Graph, TableModel

if TYPE_CHECKING:
    from edge_embed.engines.onnx import OnnxRuntime
    from edge_embed.engines.tflite import LiteRt

T = TypeVar("T")

#: The graph format that each engine runs; where none is named, of several that are here the first one does.
FORMATS = {"onnxruntime": "onnx", "litert": "tflite", "tflite-runtime": "tflite"}


class LookupEngine(Protocol):
    """A graph that takes row ids to vectors, loaded into an engine."""

    name: str
    version: str

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of checked ids ``(n,)``, n of at least 1."""


class BagEngine(Protocol):
    """A graph that pools bags by its table's recipe, loaded into an engine."""

    name: str
    version: str

    def bag(
        self, ids: NDArray[np.int64], offsets: NDArray[np.int64], weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the pooled vectors ``(b, d)`` of checked ids ``(n,)``, n of at least 1; weights where it is a sum."""


class EncoderEngine(Protocol):
    """A graph that encodes, loaded into an engine."""

    name: str
    version: str

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the graph's output for inputs by their roles, each in the type that the graph asks for.

        Args:
            inputs: ``ids``, ``mask``, ``types`` ``(n, length)``, or ``pixels`` ``(n, h, w, c)`` or ``(n, c, h, w)``; n
                from 1 to the graph's ``max_batch``, the length one of its signatures where it has some.

        Returns:
            ``(n, d)``, or ``(n, length, d)`` where the output holds tokens; fresh, in the output's own type.
        """


class EngineRows(Pooling):
    """A table's rows, decoded by an engine and scanned by the kernels."""

    def __init__(self, engine: LookupEngine, rows: Rows, dimensions: int) -> None:
        self.name, self.version = engine.name, engine.version
        self._engine = engine
        self._rows = rows
        self._dimensions = dimensions

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`edge_embed.kernels.Rows.decode`."""
        if not len(ids):
            return np.empty((0, self._dimensions), np.float32)
        vectors = self._engine.lookup(ids)
        expected = (len(ids), self._dimensions)
        if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32 or vectors.shape != expected:
            found = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
            raise BundleError(f"expected float32 {expected} from {self.name}, found {found}")
        return vectors

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`edge_embed.kernels.Rows.scores`."""
        return self._rows.scores(query)

    def nearest(
        self,
        queries: NDArray[np.float32],
        norms: NDArray[np.float32],
        k: int,
        runs: NDArray[np.int64],
        wanted: NDArray[np.bool_] | None,
        without: NDArray[np.int64],
        deadline_ns: int,
        plane: Rows | None,
        length: int,
        bases: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
        """See :meth:`edge_embed.kernels.Rows.nearest`."""
        return self._rows.nearest(queries, norms, k, runs, wanted, without, deadline_ns, plane, length, bases)


def load_engine(name: str, path: str, *, bags: bool = False) -> OnnxRuntime | LiteRt:
    """Load a graph file, of lookups or of bags, into an engine by name.

    Raises:
        RequestError: there is no such engine.
        MissingExtraError: the engine's package is not installed.
        BundleError: the engine does not accept the file.
    """
    if name == "onnxruntime":
        from edge_embed.engines.onnx import OnnxRuntime

        return OnnxRuntime(path, bags=bags)
    if name in FORMATS:
        from edge_embed.engines.tflite import LiteRt

        return LiteRt(path, name)
    raise RequestError(f"expected an engine of kernels, {', '.join(FORMATS)}, found {name!r}")


def load_encoder(graph: EncoderGraph, bundle: Bundle, threads: int, name: str | None = None) -> EncoderEngine:
    """Load a graph that encodes into an engine for it: the first one that is here, if none is named.

    Raises:
        MissingExtraError: the engine's package is not installed.
        BundleError: the graph reads a file that it does not name, or is hostile, or its engine does not accept it.
    """
    path = _path(graph, bundle, allowed=graph.blobs)
    if graph.format == "onnx":
        from edge_embed.engines.onnx import OnnxEncoder

        return OnnxEncoder(path, graph, threads)
    from edge_embed.engines.tflite import LiteRtEncoder

    return first_here(engines_of(graph, name), lambda each: LiteRtEncoder(path, graph, threads, each))


def engines_of(graph: Graph | EncoderGraph, name: str | None = None) -> tuple[str, ...]:
    """Return the names of the engines that run a graph, best first; of one that is named, that alone."""
    return tuple(each for each, format in FORMATS.items() if format == graph.format and name in (None, each))


def first_here(names: Sequence[str], load: Callable[[str], T]) -> T:
    """Return what is loaded by the first engine whose package is installed.

    Raises:
        MissingExtraError: none is; it is the first one's.
    """
    missing: list[MissingExtraError] = []
    for name in names:
        try:
            return load(name)
        except MissingExtraError as error:
            missing.append(error)
    raise missing[0]


def open_graph(graph: Graph, bundle: Bundle, rows: Rows, dimensions: int, name: str | None = None) -> EngineRows:
    """Return the rows behind ``rows`` as a graph of the bundle decodes them, by the first engine if none is named.

    Raises:
        BundleError: the graph reads a file that is no blob of the bundle, or its engine does not accept it.
    """
    path = _path(graph, bundle, allowed=tuple(bundle.manifest.blobs))
    engine = first_here(engines_of(graph, name), lambda each: load_engine(each, path))
    return EngineRows(engine, rows, dimensions)


def open_bag_graph(graph: Graph, bundle: Bundle) -> BagEngine:
    """Return a graph of bags in its engine.

    Raises:
        BundleError: the graph reads a file that is no blob of the bundle, or its engine does not accept it.
    """
    path = _path(graph, bundle, allowed=tuple(bundle.manifest.blobs))
    return first_here(engines_of(graph), lambda each: load_engine(each, path, bags=True))


def _path(graph: Graph | EncoderGraph, bundle: Bundle, allowed: tuple[str, ...]) -> str:
    """Return where a graph lies, once it is known that it reads no file but those that it may, and nothing outside."""
    path = f"{bundle.folder}/{graph.blob}"
    if graph.format == "tflite":
        try:
            examine(bundle.map(graph.blob))
        except ValueError as error:
            raise BundleError(f"{path}: expected a TFLite graph, found: {error}") from error
    if graph.format == "onnx":
        sizes = {name: bundle.manifest.blobs[name].size_bytes for name in allowed}
        check_graph_file(path, bundle.map(graph.blob), sizes)
    return path


def open_engine(name: str, bundle: Bundle, model: TableModel, rows: Rows) -> EngineRows:
    """Return a model's rows as the engine ``name`` decodes them, from the graph that the bundle has for it."""
    if name not in FORMATS:
        raise RequestError(f"expected an engine of kernels, {', '.join(FORMATS)}, found {name!r}")
    for graph in model.graphs:
        if graph.format == FORMATS[name] and graph.operation == "lookup":
            return open_graph(graph, bundle, rows, model.dimensions, name)
    raise RequestError(
        f"{bundle.folder}: expected a {FORMATS[name]} graph for {name}, found none; export with --graphs"
    )
