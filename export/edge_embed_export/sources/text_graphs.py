r"""A text encoder in TFLite as it is, whose metadata say how a text becomes token ids.

TFLite's own library reads metadata of three kinds of tokenizers. The one that cuts at a pattern (``RegexTokenizer``, of
TFLite Model Maker's average word vectors) is kept, since the package ``tokenizers`` can say the very same: words
between runs of ``[^\w\']+``, which RE2 reads as ASCII, their ids from a vocabulary beside the graph, a token before
the first, another for what is unknown, a third behind the last up to the graph's fixed length. Nothing becomes lower
case. (The original stops at a NUL, here it is one more delimiter.) Other patterns and tokenizers are refused by name.

Source: https://github.com/tensorflow/tflite-support, ``regex_tokenizer.cc`` and ``text_preprocessor.cc``.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_embed.engines.tflite_files import Table
from edge_embed.errors import RequestError
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput, Signature, TextInput
from edge_embed_export.graphs.files import GraphFile, Port, describe, try_out
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.sources.graph_network import GraphNetwork, digest_of
from edge_embed_export.sources.transformers import TOKENIZER_BLOB

_METADATA = "TFLITE_METADATA"
#: The pattern that is kept, and how ``tokenizers`` says it: RE2's ``\\w`` is ASCII.
_PATTERN, _SAME = r"[^\w\']+", "[^0-9A-Za-z_']+"
_PAD, _START, _UNKNOWN = "<PAD>", "<START>", "<UNKNOWN>"
#: Of the union ``ProcessUnitOptions`` of metadata_schema.fbs.
_TOKENIZERS = {4: "BertTokenizer", 5: "SentencePieceTokenizer", 6: "RegexTokenizer"}
_REGEX = 6
_VOCABULARY_CEILING_BYTES = 2**26
_LETTERS_PER_TOKEN = 64


class _Said(NamedTuple):
    """What the metadata say of the tokenizer: its kind, pattern and vocabulary's file."""

    kind: int
    pattern: str
    vocabulary: str


def names_a_tokenizer(path: Path) -> bool:
    """Tell whether a sound TFLite file's metadata name a tokenizer; a file that is not sound is another reader's."""
    try:
        return next(_tokenizers(describe(path)), None) is not None
    except RequestError:
        return False


def read_text_graph(path: Path) -> EncoderSource:
    """Read an encoder's file and its tokenizer, and run it once.

    Raises:
        RequestError: the file is no such encoder, its tokenizer cannot be kept, or its engine refuses it.
    """
    file = describe(path)
    said = next(_tokenizers(file), None)
    if said is None:
        raise RequestError(f"{path}: expected metadata that name a tokenizer, found none")
    if said.kind != _REGEX or said.pattern != _PATTERN:
        other = f"the pattern {said.pattern!r:.60}" if said.kind == _REGEX else _TOKENIZERS[said.kind]
        raise RequestError(f"{path}: expected a tokenizer that cuts at {_PATTERN}, found {other}")
    ids, vectors = _ends(file)
    vocabulary = _vocabulary(path, said.vocabulary)
    length = ids.shape[1]
    graph = EncoderGraph(
        format="tflite",
        blob="text.tflite",
        weights=(),
        variant="float32",
        inputs=(GraphInput(ids.name, "ids", ids.dtype),),
        output=GraphOutput(vectors.name, "vectors"),
        max_batch=1,
        tolerance=0.0,
        signatures=(Signature(length),),
    )
    start = vocabulary.get(_START, vocabulary[_PAD])
    found = try_out(graph, path, {"ids": np.full((1, length), start, ids.dtype)})
    if found.dtype != np.float32 or found.ndim != 2 or len(found) != 1:
        raise RequestError(f"{path}: expected float32 (1, d) from {vectors.name}, found {found.dtype} {found.shape}")
    return EncoderSource(
        title=path.resolve().name,
        dimensions=found.shape[1],
        normalize=False,
        network=GraphNetwork(file, graph),
        weights_digest=digest_of(file),
        text=TextInput(
            tokenizer_blob=TOKENIZER_BLOB,
            special_tokens=True,
            max_tokens=length,
            max_letters=_LETTERS_PER_TOKEN * length,
            too_long="truncate",
            pad_token=vocabulary[_PAD],
        ),
        tokenizer=json.dumps(_definition(vocabulary), ensure_ascii=False).encode("utf-8"),
        recipe={"network": "graph", "output": vectors.name},
    )


def _tokenizers(file: GraphFile) -> Iterator[_Said]:
    """Yield the tokenizers that the metadata name."""
    if file.tflite is None or _METADATA not in file.tflite.metadata:
        return
    data = file.tflite.metadata[_METADATA]
    try:
        model = Table(data, struct.unpack_from("<I", data)[0])
        for subgraph in model.tables(10):
            of_inputs = [unit for tensor in subgraph.tables(8) for unit in tensor.tables(12)]
            for unit in (*of_inputs, *subgraph.tables(14)):
                kind, options = unit.number(4, "B"), unit.table(6)
                if kind == _REGEX and options is not None:
                    files = [each.text(4) for each in options.tables(6)]
                    yield _Said(kind, options.text(4), files[0] if files else "")
                elif kind in _TOKENIZERS:
                    yield _Said(kind, "", "")
    except (ValueError, struct.error) as error:
        raise RequestError(f"{file.path}: expected metadata that can be read, found: {error}") from error


def _ends(file: GraphFile) -> tuple[Port, Port]:
    """Return the only input and output, ids of a fixed length to a vector."""
    inputs, outputs = list(file.inputs.values()), list(file.outputs.values())
    if len(inputs) != 1 or len(outputs) != 1:
        names = ", ".join((*file.inputs, *file.outputs))[:200]
        raise RequestError(f"{file.path}: expected one input and one output, found {names}")
    ids, vectors = inputs[0], outputs[0]
    if ids.dtype not in ("int32", "int64") or len(ids.shape) != 2 or ids.shape[0] not in (1, -1) or ids.shape[1] < 1:
        raise RequestError(f"{file.path}: expected ids (1, length) of int32, found {ids.dtype} {ids.shape}")
    return ids, vectors


def _vocabulary(path: Path, name: str) -> dict[str, int]:
    """Return the id of each word: the file that is packed behind the graph has a word and its id a line."""
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as packed:
            entry = packed.getinfo(name)
            if entry.file_size > _VOCABULARY_CEILING_BYTES:
                raise ValueError(f"{entry.file_size} bytes")
            with packed.open(entry) as file:
                text = file.read(_VOCABULARY_CEILING_BYTES).decode("utf-8")
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line]
        vocabulary = {word: int(number) for word, number in lines}
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
        raise RequestError(f"{path}: expected a vocabulary {name!r:.60} packed behind it, found: {error}") from error
    if _PAD not in vocabulary or _UNKNOWN not in vocabulary or min(vocabulary.values()) < 0:
        raise RequestError(f"{path}: expected {_PAD} and {_UNKNOWN} in {name}, found neither or one")
    return vocabulary


def _definition(vocabulary: dict[str, int]) -> dict[str, object]:
    """Return the ``tokenizer.json`` that says the same."""
    sequence: list[dict[str, object]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special: dict[str, object] = {}
    if _START in vocabulary:
        sequence.insert(0, {"SpecialToken": {"id": _START, "type_id": 0}})
        special[_START] = {"id": _START, "ids": [vocabulary[_START]], "tokens": [_START]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": _SAME}, "behavior": "Removed", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": _UNKNOWN},
    }
