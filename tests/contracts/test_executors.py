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
from edge_embed.table import mapped
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import CODEC_TENSORS, TableModel
from edge_embed_bundle.values import SECTION_BYTES, Tensor
from edge_embed_bundle.writer import BlobWriter, BundleWriter
from edge_embed_export.codecs import ENCODERS
from edge_embed_export.graphs.onnx import check_onnx, onnx_lookup
from edge_embed_export.graphs.tflite import tflite_header
from edge_embed_export.sources import Source
from tests.contracts.executors import EXECUTORS, PROMISES, Vectors, formula
from tests.making import make_bundle, small_source, vectors_of, with_table

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

#: Every codec; those whose codebooks take long to train have few of them.
CODECS = tuple({"opq": "opq:8", "rq": "rq:3"}.get(codec, codec) for codec in ENCODERS)
SHAPES = ((1, 1), (1, 9), (3, 7), (5, 1), (64, 16), (1000, 96))
GRAPHS = {"onnx": "table.onnx", "tflite": "table.tflite"}


def varied_source(rows: int, dimensions: int, codec: str) -> Source:
    """Return rows from the shortest to the longest that a codec takes, one of them zeros where there is room."""
    source = small_source(dimensions=dimensions, keys=tuple(f"key {row}" for row in range(rows)))
    decades = 3 if codec in ("float16", "int4") else 15
    vectors = vectors_of(source)
    vectors *= np.logspace(-decades, decades, rows, dtype=np.float32)[:, np.newaxis]
    vectors[1:2] = 0
    return with_table(source, vectors=vectors)


def meant(bundle: Path) -> Vectors:
    """Return the vectors of a bundle's first table by the formula of its codec."""
    with Bundle.open(bundle) as opened:
        model = opened.manifest.tables[0]
        tensors = {name: mapped(opened, model.tensors[name]).copy() for name in CODEC_TENSORS[model.codec]}
    return formula(model.codec, tensors, model.dimensions)


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def table(request: pytest.FixtureRequest, codec: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vectors]:
    """A bundle of the codec and the shape with both graphs, and its vectors by the codec's formula."""
    rows, dimensions = request.param
    source = varied_source(rows, dimensions, codec)
    made = make_bundle(tmp_path_factory.mktemp("executors") / "bundle", source=source, codec=codec)
    return made.path, meant(made.path)


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


@pytest.fixture(scope="module", params=["float32", "float16", "int8", "int4", "pq:64"])
def wide(request: pytest.FixtureRequest) -> str:
    """A codec for rows of 1,024 numbers; opq and rq train for minutes on these, and lie in the file as pq does."""
    return str(request.param)


@pytest.fixture(scope="module")
def large(wide: str, graphs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose table outweighs everything else in it."""
    source = small_source(dimensions=1024, keys=tuple(f"key {row}" for row in range(2000)))
    return make_bundle(tmp_path_factory.mktemp("large") / "bundle", source=source, codec=wide, graphs=graphs).path


def test_a_table_is_on_flash_once_however_many_formats_ask_for_it(large: Path) -> None:
    with Bundle.open(large) as bundle:
        model = bundle.manifest.tables[0]
    table_bytes = sum(tensor.size_bytes for tensor in _stored(model).values())
    on_flash = sum(path.stat().st_size for path in large.iterdir())
    assert table_bytes < on_flash < 1.2 * table_bytes + 2**20


def test_an_onnx_graph_is_valid_and_names_the_one_copy_of_the_table(large: Path, graphs: tuple[str, ...]) -> None:
    if "onnx" not in graphs:
        assert not (large / GRAPHS["onnx"]).exists()
        return
    check_onnx(large / GRAPHS["onnx"])
    graph = onnx.load(str(large / GRAPHS["onnx"]), load_external_data=False).graph
    with Bundle.open(large) as bundle:
        tensors = _stored(bundle.manifest.tables[0])
    outside = [weight for weight in graph.initializer if weight.external_data]
    assert {weight.name for weight in outside} == set(tensors)
    assert (large / GRAPHS["onnx"]).stat().st_size < 2**16
    for weight in outside:
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
        tensors = _stored(bundle.manifest.tables[0])
    assert found == {name: (tensor.offset_bytes, tensor.size_bytes) for name, tensor in tensors.items()}
    assert all(offset % SECTION_BYTES == 0 for offset, _ in found.values())
    assert {tensor.blob for tensor in tensors.values()} == {"table.tflite"}


def _stored(model: TableModel) -> dict[str, Tensor]:
    """Return the tensors of the codec alone, without norms, keys and index."""
    return {name: tensor for name, tensor in model.tensors.items() if name in CODEC_TENSORS[model.codec]}


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
    weights = {"rows": ("int8", codes.shape), "scales": ("float32", scales.shape)}
    header, places = tflite_header("int8", weights, dimensions, "table.tflite")
    with BundleWriter(tmp_path_factory.mktemp("forty") / "bundle") as writer:
        graph = onnx_lookup("int8", places, dimensions)
        writer.blob("table.onnx", lambda blob: blob.write(graph))

        def write(blob: BlobWriter) -> None:
            blob.write(header)
            assert blob.section([codes.data], dtype="int8", shape=codes.shape) == places["rows"]
            assert blob.section([scales.data], dtype="float32", shape=scales.shape) == places["scales"]

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
