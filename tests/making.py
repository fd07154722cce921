"""Small real bundles for tests: made by the exporter that users run, from sources of a few rows."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.progress import SILENT
from edge_embed_bundle.writer import BundleWriter
from edge_embed_export.drafting import draft_manifest
from edge_embed_export.exporter import Report, export
from edge_embed_export.options import Options
from edge_embed_export.parts import parts_of
from edge_embed_export.preparing import in_lists
from edge_embed_export.sources import Source, SourceTable, SourceText
from edge_embed_export.writing import write_model

WORDS = (*(f"word{i}" for i in range(60)), "naïve", "東京", "two words", "🙂")


def small_source(*, seed: int = 0, dimensions: int = 16, keys: tuple[str, ...] = WORDS) -> Source:
    """Return a table of random vectors; text is split at white space."""
    vectors = np.random.default_rng(seed).normal(size=(len(keys), dimensions)).astype(np.float32)
    table = SourceTable(
        name="table",
        keys=tuple(key.encode() for key in keys),
        vectors=vectors,
        weights_digest=hashlib.sha256(vectors.tobytes()).hexdigest(),
        text=SourceText(tokenizer=None, normalize=True, max_tokens=512),
    )
    return Source(f"random table {seed}", (table,))


def rows_in_topics(rows: int, dimensions: int, *, seed: int = 0) -> Source:
    """Return a table whose rows stand around topics, as those of real models do: ``row 0``, ``row 1``, ..."""
    random = np.random.default_rng(seed)
    topics = random.normal(size=(max(2, rows // 60), dimensions))
    vectors = topics[random.integers(0, len(topics), rows)] + 0.4 * random.normal(size=(rows, dimensions))
    source = small_source(keys=tuple(f"row {row}" for row in range(rows)))
    return with_table(source, vectors=vectors.astype(np.float32))


def small_text_source(*, seed: int = 0, dimensions: int = 16) -> Source:
    """Return a static text encoder whose tokenizer.json knows ``WORDS`` without spaces, one token a word."""
    words = ("[UNK]", *(word for word in WORDS if " " not in word))
    source = small_source(seed=seed, dimensions=dimensions, keys=words)
    definition: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": {
            "strategy": {"Fixed": 128},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[UNK]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]"},
    }
    text = SourceText(tokenizer=json.dumps(definition).encode(), normalize=True, max_tokens=512)
    return with_table(source, text=text)


def keys_of(source: Source) -> tuple[bytes, ...]:
    """Return the keys of a source's first table."""
    keys = source.table.keys
    assert keys is not None
    return tuple(keys)


def vectors_of(source: Source) -> NDArray[np.float32]:
    """Return the vectors of a source's first table."""
    vectors: NDArray[np.float32] = source.table.vectors[:]
    return vectors


def with_table(source: Source, **changes: Any) -> Source:
    """Return a source with another first table."""
    return replace(source, tables=(replace(source.table, **changes), *source.tables[1:]))


def tables_source(shapes: Mapping[str, tuple[int, int]], *, seed: int = 0) -> Source:
    """Return a source of tables of ids, as a recommender has them, each with a shape of its own."""
    random = np.random.default_rng(seed)
    tables = []
    for name, shape in shapes.items():
        vectors = random.normal(size=shape).astype(np.float32)
        tables.append(SourceTable(name, None, vectors, hashlib.sha256(vectors.tobytes()).hexdigest()))
    return Source("tables", tuple(tables))


def make_bundle(
    target: Path,
    *,
    version: str = "1.0.0",
    source: Source | None = None,
    codec: str = "int8",
    graphs: tuple[str, ...] = ("onnx", "tflite"),
    collection: tuple[str, ...] = (),
    clustered: bool = False,
    **options: Any,
) -> Report:
    """Export a bundle to ``target``; ``clustered`` puts a table in lists that an exporter finds too small for them."""
    options |= {"version": version, "codec": codec, "graphs": graphs, "collection": collection}
    source = small_source() if source is None else source
    if clustered:
        source = replace(source, tables=(in_lists(source.table), *source.tables[1:]))
    return export(source, Options(target=target, name="small", **options))


def make_topics_in_lists(target: Path, rows: int, dimensions: int, *, plane: bool | None = None) -> Path:
    """Export ``rows_in_topics`` in lists, also where numpy is asked for by the native kernels, whose bits are the same.

    Numpy measures for minutes how long a shortlist has to be.
    """
    if not os.environ.get("EDGE_EMBED_PURE"):
        return _topics_in_lists(target, rows, dimensions, plane)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("EDGE_EMBED_PURE")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(_topics_in_lists, target, rows, dimensions, plane).result()


def _topics_in_lists(target: Path, rows: int, dimensions: int, plane: bool | None) -> Path:
    source = rows_in_topics(rows, dimensions)
    return make_bundle(target, source=source, graphs=(), clustered=True, plane=plane).path


def make_unmeasured_bundle(target: Path, source: Source, **options: Any) -> Path:
    """Write a bundle's tables without asking it anything: large ones in a second."""
    wanted = Options(target=target, name="small", **options)
    with BundleWriter(target) as writer:
        models = tuple(write_model(writer, part, SILENT) for part in parts_of(source, wanted, SILENT))
        writer.finish(partial(draft_manifest, source, wanted, models))
    return target
