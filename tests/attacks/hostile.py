"""Attacks by somebody who can compute digests: the bundle is consistent with itself, and lies or is malformed inside.

Digests prove nothing here. What stands between these bundles and a wrong answer are the checks where a mapped number
or a foreign parser is used, the golden answers, and the probe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge_embed
from edge_embed_bundle.bundle import Bundle
from tests.attacks.makers import Maker, read_manifest, write_manifest

#: A file that lies beside the attacked folder and is none of its business.
OUTSIDE = "outside.bin"


@dataclass(frozen=True)
class Hostile:
    """What is done to the folder, what is asked of it then, and what the refusal must say.

    ``use`` is None where only a comparison with the golden answers can tell.
    """

    make: Maker
    use: Callable[[Path], object] | None
    error: type[edge_embed.EdgeEmbedError]
    says: str


def sign(folder: Path) -> None:
    """Write the sizes and digests of the files as they are now into the manifest."""
    manifest = read_manifest(folder)
    for name, blob in manifest["blobs"].items():
        data = (folder / name).read_bytes()
        blob.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_manifest(folder, manifest)


def rewritten(tensor: str, change: Callable[[NDArray[Any]], None]) -> Maker:
    """Return the maker that lets ``change`` edit a tensor of the first model in place."""

    def make(folder: Path) -> None:
        with Bundle.open(folder) as bundle:
            place = bundle.manifest.tables[0].tensors[tensor]
        data = bytearray((folder / place.blob).read_bytes())
        count = place.size_bytes // np.dtype(place.dtype).itemsize
        change(np.frombuffer(data, place.dtype, count, place.offset_bytes).reshape(place.shape))
        (folder / place.blob).write_bytes(data)
        sign(folder)

    return make


def file_of(name: str, change: Callable[[bytes], bytes]) -> Maker:
    """Return the maker that writes other bytes into a blob."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        sign(folder)

    return make


def _onnx_data(**entries: str) -> Maker:
    """Return the maker that lets the graph's rows claim another place for their external data."""

    def make(folder: Path) -> None:
        import onnx

        outside = folder.with_name(OUTSIDE)
        outside.write_bytes(bytes(1_000_000))
        (folder / "link.bin").symlink_to(outside)
        model = onnx.load(str(folder / "table.onnx"), load_external_data=False)
        (rows,) = (weight for weight in model.graph.initializer if weight.name == "rows")
        for entry in rows.external_data:
            entry.value = entries.get(entry.key, entry.value).format(outside=outside)
        (folder / "table.onnx").write_bytes(model.SerializeToString())
        sign(folder)

    return make


def _other_names(folder: Path) -> None:
    import onnx

    model = onnx.load(str(folder / "table.onnx"), load_external_data=False)
    model.graph.input[0].name = "rows_please"
    for node in model.graph.node:
        node.input[:] = ["rows_please" if name == "ids" else name for name in node.input]
    (folder / "table.onnx").write_bytes(model.SerializeToString())
    sign(folder)


def _tflite(change: Callable[[Any], object]) -> Maker:
    """Return the maker that changes the TFLite graph before its table, which stays where it is."""

    def changed(data: bytes) -> bytes:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromPackedBuf(data, 0)
        change(model)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output()).ljust(65_536, b"\0") + data[65_536:]

    return file_of("table.tflite", changed)


def _longer_table(model: Any) -> None:
    table = next(buffer for buffer in model.buffers if buffer.offset > 1)
    table.offset = 2**40


def _goes_round(model: Any) -> None:
    first, last = model.subgraphs[0].operators[0], model.subgraphs[0].operators[-1]
    first.inputs = [*first.inputs[:-1], last.outputs[0]]


def _tokenizer(**changes: object) -> Maker:
    def change(data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **changes}).encode()

    return file_of("tokenizer.json", change)


def _point_past_the_table(slots: NDArray[Any]) -> None:
    slots[slots[:, 1] < len(slots), 1] = 1_000_000


def _point_to_the_first_row(slots: NDArray[Any]) -> None:
    slots[slots[:, 1] < len(slots), 1] = 0


def _fill(value: float) -> Callable[[NDArray[Any]], None]:
    return lambda array: array.fill(value)


def _reverse(array: NDArray[Any]) -> None:
    array[:] = array[::-1].copy()


def _lookup(folder: Path) -> object:
    with edge_embed.open(folder) as runtime:
        return runtime.lookup("word1")


def _lookup_many(folder: Path) -> object:
    with edge_embed.open(folder) as runtime:
        return runtime.lookup([f"word{i}" for i in range(60)])


def _encode(folder: Path) -> object:
    with edge_embed.open(folder) as runtime:
        return runtime.encode("word1 word2")


def _with_engine(engine: str) -> Callable[[Path], object]:
    def use(folder: Path) -> object:
        with edge_embed.open(folder, engine=engine) as runtime:
            return runtime.lookup("word1")

    return use


_PAST = "found 1000000"
_NO_TOKENIZER = "tokenizer.json: expected a tokenizer definition, found"
_STRANGE_FILE = "table.onnx: expected weights in files of the bundle, found"
_NO_MESSAGE = "table.onnx: expected an ONNX graph, found"
_NO_PLACE = "table.onnx: expected an ONNX graph, found: a tensor 'rows' of 1024 bytes at 1099511627776"
_NO_ONNX = "table.onnx: expected a graph that ONNX Runtime"
_NO_TFLITE = "table.tflite: expected a TFLite graph, found"
_OFF = "NOT within"

_onnxruntime = _with_engine("onnxruntime")
_litert = _with_engine("litert")

#: Attacks on what the kernels answer from: also the probe must refuse them.
TABLES = {
    "slots past the table": Hostile(
        rewritten("index_slots", _point_past_the_table), _lookup_many, edge_embed.BundleError, _PAST
    ),
    "slots to one row": Hostile(rewritten("index_slots", _point_to_the_first_row), None, edge_embed.BundleError, _OFF),
    "slots of no key": Hostile(
        rewritten("index_slots", _fill(2**32 - 1)), _lookup, edge_embed.UnknownKeyError, "expected keys of the table"
    ),
    "pilots of another index": Hostile(
        rewritten("index_pilots", _fill(65_535)), _lookup_many, edge_embed.UnknownKeyError, "expected keys of the table"
    ),
    "scales that are not numbers": Hostile(rewritten("scales", _fill(np.nan)), None, edge_embed.BundleError, _OFF),
    "scales without end": Hostile(rewritten("scales", _fill(np.inf)), None, edge_embed.BundleError, "golden"),
    "norms of other rows": Hostile(rewritten("norms", _reverse), None, edge_embed.BundleError, _OFF),
    "rows of another table": Hostile(rewritten("rows", _reverse), None, edge_embed.BundleError, _OFF),
}

#: Attacks on the tokenizer's definition, for a bundle that has one; the probe must refuse these, too.
TOKENIZERS = {
    name: Hostile(file_of("tokenizer.json", lambda _, data=data: data), _encode, edge_embed.BundleError, _NO_TOKENIZER)  # type: ignore[misc]
    for name, data in {
        "an empty definition": b"",
        "garbage for a definition": bytes(range(256)) * 16,
        "a definition nested without end": b'{"normalizer":' * 200_000,
        "a list nested without end": b"[" * 1_000_000,
    }.items()
} | {
    "a definition of an unknown model": Hostile(
        _tokenizer(model={"type": "Nothing"}), _encode, edge_embed.BundleError, _NO_TOKENIZER
    ),
    "a pattern that is none": Hostile(
        _tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
        _encode,
        edge_embed.BundleError,
        _NO_TOKENIZER,
    ),
    "tokens past the table": Hostile(
        _tokenizer(model={"type": "WordLevel", "vocab": {"word1": 2**32 - 1}, "unk_token": "word1"}),
        _encode,
        edge_embed.RequestError,
        "expected row ids from 0 to 63, found 4294967295",
    ),
}

#: Attacks on the portable graphs; the kernels never read them.
GRAPHS = {
    "onnx data at an absolute path": Hostile(
        _onnx_data(location="{outside}"), _onnxruntime, edge_embed.BundleError, _STRANGE_FILE
    ),
    "onnx data above the folder": Hostile(
        _onnx_data(location=f"../{OUTSIDE}"), _onnxruntime, edge_embed.BundleError, _STRANGE_FILE
    ),
    "onnx data behind a link": Hostile(
        _onnx_data(location="link.bin"), _onnxruntime, edge_embed.BundleError, _STRANGE_FILE
    ),
    "onnx data in no file": Hostile(
        _onnx_data(location="nothing.bin"), _onnxruntime, edge_embed.BundleError, _STRANGE_FILE
    ),
    "onnx data in a file that nobody hashed": Hostile(
        _onnx_data(location="stray.bin"), _onnxruntime, edge_embed.BundleError, _STRANGE_FILE
    ),
    "onnx data past the end": Hostile(_onnx_data(offset=str(2**40)), _onnxruntime, edge_embed.BundleError, _NO_PLACE),
    "onnx data before the start": Hostile(
        _onnx_data(offset="-65536"), _onnxruntime, edge_embed.BundleError, _NO_MESSAGE
    ),
    "onnx data of another tensor": Hostile(
        _onnx_data(offset="0"), _onnxruntime, edge_embed.BundleError, "expected the golden answers from onnxruntime"
    ),
    "an onnx graph of other inputs": Hostile(
        _other_names, _onnxruntime, edge_embed.BundleError, "expected a graph from int64 ids to vectors, found"
    ),
    "an empty onnx graph": Hostile(
        file_of("table.onnx", lambda _: b""), _onnxruntime, edge_embed.BundleError, _NO_ONNX
    ),
    "a garbage onnx graph": Hostile(
        file_of("table.onnx", lambda data: bytes(reversed(data))), _onnxruntime, edge_embed.BundleError, _NO_MESSAGE
    ),
    "half an onnx graph": Hostile(
        file_of("table.onnx", lambda data: data[: len(data) // 2]), _onnxruntime, edge_embed.BundleError, _NO_MESSAGE
    ),
    # The table behind the graph is left as it is: the kernels answer rightly.
    "a tflite graph of zeros": Hostile(
        file_of("table.tflite", lambda data: bytes(65_536) + data[65_536:]), _litert, edge_embed.BundleError, _NO_TFLITE
    ),
    "a tflite graph of ones behind its magic": Hostile(
        file_of("table.tflite", lambda data: data[:8] + b"\xff" * 65_528 + data[65_536:]),
        _litert,
        edge_embed.BundleError,
        _NO_TFLITE,
    ),
    "a tflite graph whose table lies outside": Hostile(
        _tflite(_longer_table), _litert, edge_embed.BundleError, f"{_NO_TFLITE}: a buffer of"
    ),
    "a tflite graph that goes round": Hostile(
        _tflite(_goes_round), _litert, edge_embed.BundleError, f"{_NO_TFLITE}: an operator that reads"
    ),
    "a tflite graph that is an onnx graph": Hostile(
        file_of("table.tflite", lambda data: b"\x08\x08".ljust(65_536) + data[65_536:]),
        _litert,
        edge_embed.BundleError,
        _NO_TFLITE,
    ),
}


def _encoder_graph(change: Callable[[Any], None]) -> Maker:
    """Return the maker that lets ``change`` edit the encoder's ONNX graph, whose weights stay where they are."""

    def make(folder: Path) -> None:
        import onnx

        model = onnx.load(str(folder / "encoder.onnx"), load_external_data=False)
        change(model)
        (folder / "encoder.onnx").write_bytes(model.SerializeToString())
        sign(folder)

    return _alone(make)


def _alone(maker: Maker) -> Maker:
    """Return a maker that takes the second graph away, too: it would serve in the place of the first one."""

    def make(folder: Path) -> None:
        manifest = read_manifest(folder)
        manifest["models"][0]["graphs"] = manifest["models"][0]["graphs"][:1]
        write_manifest(folder, manifest)
        maker(folder)

    return make


def _words_elsewhere(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (words,) = (weight for weight in model.graph.initializer if weight.name == "words.codes")
        (entry,) = (entry for entry in words.external_data if entry.key == "location")
        entry.value = location

    return change


def _in_a_circle(model: Any) -> None:
    model.graph.node[0].input[1] = "vectors"


def _own_operator(model: Any) -> None:
    model.graph.node[1].domain = "com.stranger"


def _fewer_positions(model: Any) -> None:
    (positions,) = (weight for weight in model.graph.initializer if weight.name == "positions")
    positions.raw_data = positions.raw_data[: len(positions.raw_data) // 4]
    positions.dims[0] //= 4


def _wider(model: Any) -> None:
    model.graph.node[-1].output[0] = "narrow"
    node = model.graph.node.add(op_type="Concat", input=["narrow", "narrow"], output=["vectors"])
    node.attribute.add(name="axis", i=1, type=2)
    del model.graph.output[0].type.tensor_type.shape.dim[:]


def _not_a_number(model: Any) -> None:
    model.graph.node[-1].output[0] = "sound"
    model.graph.node.add(op_type="Log", input=["sound"], output=["vectors"])


def _other_answers(model: Any) -> None:
    model.graph.node[-1].output[0] = "right"
    model.graph.node.add(op_type="Neg", input=["right"], output=["vectors"])


def _swapped(weights: str) -> Maker:
    def make(folder: Path) -> None:
        manifest = read_manifest(folder)
        manifest["models"][0]["graphs"][0]["weights"] = [weights]
        write_manifest(folder, manifest)

    return _alone(make)


_ENCODER = "encoder.onnx: expected"
_WEIGHTS_ELSEWHERE = f"{_ENCODER} weights in files of the bundle, found"

#: Attacks on an encoder that is consistent with itself: opening it, or the probe, finds out.
ENCODERS = {
    "words above the folder": Hostile(
        _encoder_graph(_words_elsewhere("../outside.bin")),
        _encode,
        edge_embed.BundleError,
        f"{_ENCODER} weights in files",
    ),
    "words in a file of the bundle that the graph does not name": Hostile(
        _encoder_graph(_words_elsewhere("collection.bin")),
        _encode,
        edge_embed.BundleError,
        f"{_ENCODER} weights in files",
    ),
    "another file in the place of its weights": Hostile(
        _swapped("golden.bin"), _encode, edge_embed.BundleError, _WEIGHTS_ELSEWHERE
    ),
    "a graph in a circle": Hostile(
        _encoder_graph(_in_a_circle), _encode, edge_embed.BundleError, f"{_ENCODER} an ONNX graph, found: a node that"
    ),
    "an operator of its own": Hostile(
        _encoder_graph(_own_operator), _encode, edge_embed.BundleError, "operators of 'com.stranger', which no engine"
    ),
    "fewer positions than texts have tokens": Hostile(
        _encoder_graph(_fewer_positions), None, edge_embed.BundleError, "expected vectors from ONNX Runtime"
    ),
    "wider vectors than it says": Hostile(
        _encoder_graph(_wider),
        _encode,
        edge_embed.BundleError,
        "expected float32 (1, 16) from onnxruntime, found",
    ),
    "numbers that are none": Hostile(
        _encoder_graph(_not_a_number), _encode, edge_embed.BundleError, "expected finite numbers from onnxruntime"
    ),
    "other answers": Hostile(_encoder_graph(_other_answers), None, edge_embed.BundleError, _OFF),
    "an empty graph": Hostile(
        _alone(file_of("encoder.onnx", lambda _: b"")),
        None,
        edge_embed.BundleError,
        "expected a graph that ONNX Runtime",
    ),
    "half a graph": Hostile(
        _alone(file_of("encoder.onnx", lambda data: data[: len(data) // 2])),
        None,
        edge_embed.BundleError,
        f"{_ENCODER} an ONNX",
    ),
    "a tokenizer that is none": Hostile(
        file_of("tokenizer.json", lambda _: b"{}"), _encode, edge_embed.BundleError, _NO_TOKENIZER
    ),
}
