"""Kernels, ONNX Runtime and LiteRT keep the promises of ``executors`` over one bundle, and its graphs are one copy of
the table: described to each engine, mapped by each, copied by none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import SECTION_BYTES, Model, Tensor
from edge_embed_bundle.writer import BlobWriter, BundleWriter
from edge_embed_export.graphs.onnx import check_onnx, onnx_lookup
from edge_embed_export.graphs.tflite import tflite_header
from edge_embed_export.sources import Source
from tests.contracts.executors import EXECUTORS, PROMISES, Vectors, formula
from tests.making import make_bundle, small_source

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

CODECS = ("float32", "int8")
SHAPES = ((1, 1), (1, 9), (3, 7), (5, 1), (64, 16), (1000, 96))
GRAPHS = {"onnx": "table.onnx", "tflite": "table.tflite"}


def varied_source(rows: int, dimensions: int) -> Source:
    """Return rows whose lengths go from 1e-15 to 1e15, one of them zeros where there is room."""
    source = small_source(dimensions=dimensions, keys=tuple(f"key {row}" for row in range(rows)))
    source.vectors[:] *= np.logspace(-15, 15, rows, dtype=np.float32)[:, np.newaxis]
    source.vectors[1:2] = 0
    return source


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def table(request: pytest.FixtureRequest, codec: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vectors]:
    """A bundle of the codec and the shape with both graphs, and its vectors by the codec's formula."""
    source = varied_source(*request.param)
    made = make_bundle(tmp_path_factory.mktemp("executors") / "bundle", source=source, codec=codec)
    return made.path, formula(codec, source.vectors)


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request: pytest.FixtureRequest, table: tuple[Path, Vectors]) -> Iterator[Runtime]:
    with edge_embed.open(table[0], engine=request.param) as runtime:
        yield runtime


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_an_executor_keeps_its_promises(
    executor: Runtime, table: tuple[Path, Vectors], promise: Callable[[Runtime, Vectors], None]
) -> None:
    promise(executor, table[1])


@pytest.fixture(scope="module", params=[("onnx",), ("tflite",), ("onnx", "tflite")], ids="+".join)
def graphs(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    return chosen


@pytest.fixture(scope="module")
def large(codec: str, graphs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose table outweighs everything else in it."""
    source = small_source(dimensions=1024, keys=tuple(f"key {row}" for row in range(2000)))
    return make_bundle(tmp_path_factory.mktemp("large") / "bundle", source=source, codec=codec, graphs=graphs).path


def test_a_table_is_on_flash_once_however_many_formats_ask_for_it(large: Path, codec: str) -> None:
    with Bundle.open(large) as bundle:
        model = bundle.manifest.models[0]
    table_bytes = model.rows * model.dimensions * {"float32": 4, "int8": 1}[codec]
    on_flash = sum(path.stat().st_size for path in large.iterdir())
    assert table_bytes < on_flash < 1.2 * table_bytes + 2**20


def test_an_onnx_graph_is_valid_and_names_the_one_copy_of_the_table(large: Path, graphs: tuple[str, ...]) -> None:
    if "onnx" not in graphs:
        assert not (large / GRAPHS["onnx"]).exists()
        return
    check_onnx(large / GRAPHS["onnx"])
    graph = onnx.load(str(large / GRAPHS["onnx"]), load_external_data=False).graph
    with Bundle.open(large) as bundle:
        tensors = _stored(bundle.manifest.models[0])
    assert {weight.name for weight in graph.initializer} == set(tensors)
    for weight in graph.initializer:
        place = {entry.key: entry.value for entry in weight.external_data}
        tensor = tensors[weight.name]
        assert tensor.blob == ("table.tflite" if "tflite" in graphs else "table.bin")
        assert place == {
            "location": tensor.blob,
            "offset": str(tensor.offset_bytes),
            "length": str(tensor.size_bytes),
        }


def test_a_tflite_file_has_its_sections_where_the_manifest_says_and_a_map_may_begin(
    large: Path, graphs: tuple[str, ...]
) -> None:
    if "tflite" not in graphs:
        assert not (large / GRAPHS["tflite"]).exists()
        return
    model = schema.Model.GetRootAsModel((large / GRAPHS["tflite"]).read_bytes(), 0)
    graph = model.Subgraphs(0)
    found = {}
    for i in range(graph.TensorsLength()):
        buffer = model.Buffers(graph.Tensors(i).Buffer())
        if buffer.Size():
            found[graph.Tensors(i).Name().decode()] = (buffer.Offset(), buffer.Size())
    with Bundle.open(large) as bundle:
        tensors = _stored(bundle.manifest.models[0])
    assert found == {name: (tensor.offset_bytes, tensor.size_bytes) for name, tensor in tensors.items()}
    assert all(offset % SECTION_BYTES == 0 for offset, _ in found.values())
    assert {tensor.blob for tensor in tensors.values()} == {"table.tflite"}


def _stored(model: Model) -> dict[str, Tensor]:
    """Return the tensors of the codec alone, without norms, keys and index."""
    return {name: tensor for name, tensor in model.tensors.items() if name in ("rows", "scales")}


# Says by how many bytes its private memory grew while a graph was opened and asked for 100 rows; an engine's own needs
# are paid before, on a small graph.
GROWTH = """
import sys
import numpy as np
from edge_embed import memory
from edge_embed.engines import load_engine
engine, small, large, rows = sys.argv[1:]
load_engine(engine, small).lookup(np.arange(3))
before = memory.current().private_bytes
loaded = load_engine(engine, large)
loaded.lookup(np.linspace(0, int(rows) - 1, 100).astype(np.int64))
print(memory.current().private_bytes - before)
"""


@pytest.fixture(scope="module")
def forty_megabytes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The folder of an int8 table of 40 MB with both graphs over it, and the number of its rows."""
    rows, dimensions = 100_000, 400
    codes = np.random.default_rng(0).integers(-127, 128, (rows, dimensions), np.int8)
    scales = np.ones(rows, np.float32)
    header, places = tflite_header("int8", [("int8", codes.shape), ("float32", scales.shape)], "table.tflite")
    with BundleWriter(tmp_path_factory.mktemp("forty") / "bundle") as writer:
        with_places = dict(zip(("rows", "scales"), places, strict=True))
        graph = onnx_lookup("int8", with_places, dimensions)
        writer.blob("table.onnx", lambda blob: blob.write(graph))

        def write(blob: BlobWriter) -> None:
            blob.write(header)
            assert blob.section([codes.data], dtype="int8", shape=codes.shape) == places[0]
            assert blob.section([scales.data], dtype="float32", shape=scales.shape) == places[1]

        writer.blob("table.tflite", write)
        yield writer.partial, rows


@pytest.mark.parametrize(("engine", "graph"), [("onnxruntime", "table.onnx"), ("litert", "table.tflite")])
def test_an_engine_maps_the_table_and_copies_none_of_it(
    forty_megabytes: tuple[Path, int], bundle: Path, engine: str, graph: str
) -> None:
    folder, rows = forty_megabytes
    arguments = [engine, str(bundle / graph), str(folder / graph), str(rows)]
    child = subprocess.run([sys.executable, "-c", GROWTH, *arguments], capture_output=True, text=True, check=True)
    # The table has 40 MB; what is left is an engine's plan and a hundred rows as float32.
    assert int(child.stdout) < 4 * 2**20
