"""A static text encoder out of a whole transformer: every token of its vocabulary goes through the model once.

 1. Each token alone, between the special tokens of the model's own template, is a text; its row is the model's vector,
    pooled as the model pools and not normalized.
 2. Rows are centred and projected on their first principal components.
 3. Rows are weighted: frequent tokens say little. A vocabulary stands in the order of frequency, as a rule, so the
    rank stands in for the frequency by Zipf's law; tokens that stand in no text are zeros.

The method is model2vec's (Tulkens and van Dongen, 2024, https://github.com/MinishLab/model2vec), whose own code asks
for torch and transformers; here the model is drawn in ONNX and run by ONNX Runtime. Its float32 carries roundings of
this machine, and with it the rows: the same source gives the same bytes again on the same machine.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.encoding import Forward, GraphTextEncoder
from edge_embed.engines.onnx import OnnxEncoder
from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed.text import HuggingFaceTokenizer
from edge_embed_bundle.encoders import EncoderModel
from edge_embed_bundle.writer import BundleWriter
from edge_embed_export.exact import exact_product, principal_components
from edge_embed_export.matrix import spool_folder
from edge_embed_export.sources import TABLE, Source, SourceTable, SourceText, Teacher
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.sources.static_encoders import tokens_of
from edge_embed_export.sources.transformers import TransformerNetwork, read_transformer_encoder

DIMENSIONS = 256

_MAX_TOKENS = 512
#: A run reads all weights; so many texts of three tokens make that a small part of what it takes.
_TOKENS_AT_ONCE = 128
_UNUSED = re.compile(r"\[unused\d+\]|madeupword\d+")


def distilled(path: Path, dimensions: int = DIMENSIONS, progress: Progress = SILENT) -> Source:
    """Make a static encoder of a sentence-transformers or Hugging Face folder.

    Args:
        path: the folder, as ``--format transformer`` takes it.
        dimensions: how many numbers a vector has; those of the model at most.
        progress: told each token.

    Raises:
        RequestError: the folder is no encoder of a known family, or has no tokenizer of ids from 0 on.
        MissingExtraError: a package of the ``export`` extra is not installed.
    """
    encoder = read_transformer_encoder(path)
    if not 1 <= dimensions <= encoder.dimensions:
        raise RequestError(f"{path}: expected --dimensions of 1 to {encoder.dimensions}, found {dimensions}")
    if encoder.tokenizer is None or encoder.text is None or not isinstance(encoder.network, TransformerNetwork):
        raise AssertionError("a transformer's folder has a tokenizer")
    teacher = _Run(encoder, encoder.network)
    tokens = tokens_of(path / "tokenizer.json", encoder.tokenizer)
    weights = _weights(tokens, encoder.tokenizer)
    rows = _projected(teacher.of_tokens(weights > 0, progress), weights > 0, dimensions) * weights[:, np.newaxis]
    table = SourceTable(
        name=TABLE,
        keys=tuple(token.encode("utf-8") for token in tokens),
        vectors=rows.astype(np.float32),
        weights_digest=encoder.weights_digest,
        recipe={
            "distilled": "each token through the model",
            "pooling": encoder.network.pooling,
            "projection": f"{dimensions} principal components",
            "token_weights": "log(1 + rank)",
        },
        text=SourceText(tokenizer=encoder.tokenizer, normalize=True, max_tokens=_MAX_TOKENS),
    )
    title = f"distilled {encoder.title}"
    return Source(title, (table,), encoder.notes, Teacher(encoder.title, teacher.encode))


class _Run:
    """The transformer in its engine; its files are unlinked once they are mapped."""

    def __init__(self, source: EncoderSource, network: TransformerNetwork) -> None:
        if source.text is None or source.tokenizer is None:
            raise AssertionError("a transformer encodes texts")
        as_it_pools = replace(network, normalize=False)
        with (
            tempfile.TemporaryDirectory(prefix="edge-embed-", dir=spool_folder()) as folder,
            BundleWriter(Path(folder) / "teacher") as writer,
        ):
            graph = as_it_pools.write(writer, "teacher", "onnx", "float32")
            engine = OnnxEncoder(str(writer.partial / graph.blob), graph, len(os.sched_getaffinity(0)))
        model = EncoderModel("teacher", source.dimensions, False, (graph,), source.text)
        tokenizer = partial(HuggingFaceTokenizer, source.tokenizer, special_tokens=True, for_graph=True)
        self._width = source.dimensions
        self._forward = Forward(model, graph, engine)
        self._special = tokenizer(None, source.title).ids([""])[0]
        text = source.text
        limited = tokenizer(text.max_tokens, source.title, max_letters=text.max_letters)
        self._encoder = GraphTextEncoder(model, text, self._forward, limited)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the model's own vectors ``(n, d)`` of texts."""
        return self._encoder.encode(texts)

    def of_tokens(self, wanted: NDArray[np.bool_], progress: Progress) -> NDArray[np.float32]:
        """Return the vector ``(n, d)`` of each token by itself; zeros for those that are not wanted."""
        middle = (len(self._special) + 1) // 2
        vectors = np.zeros((len(wanted), self._width), np.float32)
        tokens = np.flatnonzero(wanted)
        with progress.task("tokens through the model", len(tokens)) as advance:
            for start in range(0, len(tokens), _TOKENS_AT_ONCE):
                some = tokens[start : start + _TOKENS_AT_ONCE]
                ids = np.insert(np.tile(np.array(self._special, np.int64), (len(some), 1)), middle, some, axis=1)
                vectors[some] = self._forward.vectors({"ids": ids}, normalize=False)
                advance(len(some))
        return vectors


def _weights(tokens: Sequence[str], definition: bytes) -> NDArray[np.float64]:
    """Return ``log(1 + rank)`` for each token; 0 for those that stand in no text."""
    added = json.loads(definition).get("added_tokens") or ()
    special = {token.get("content") for token in added if token.get("special")}
    in_text = np.array([token not in special and not _UNUSED.fullmatch(token) for token in tokens])
    # Rounded: numpy's logarithm has other last bits with AVX-512.
    return np.where(in_text, np.log1p(np.cumsum(in_text)).round(6), 0.0)


def _projected(vectors: NDArray[np.float32], used: NDArray[np.bool_], dimensions: int) -> NDArray[np.float64]:
    """Return the centred rows on the principal components of those that are used, ``(n, dimensions)``."""
    centred = vectors.astype(np.float64)
    centred -= centred[used].mean(axis=0)
    moment = exact_product(centred[used].T, centred[used])
    return exact_product(centred, principal_components(moment, dimensions))
