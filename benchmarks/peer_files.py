"""What each peer serves from: the one table written in the peer's own format, by its own tools where it has some.

Each converter takes the folder of the peer, and the table; it returns the folder whose files a board would carry.
Indexes that search (usearch, hnswlib) are asked for vectors by key alone, so their graphs are as thin as they go.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SyntheticTable, install, make_bundle, write_word2vec
from benchmarks.peers import FLAT, GRAPH, KEYED_VECTORS, KEYS, ROWS, STORE

WORD2VEC = "table.bin"

Converter = Callable[[SyntheticTable, Path], Path]


def _edge_embed(table: SyntheticTable, folder: Path, codec: str = "int8") -> Path:
    word2vec = folder.parent / WORD2VEC
    if not word2vec.exists():
        write_word2vec(table, word2vec)
    make_bundle(word2vec, folder / "bundle", codec)
    install(folder / "bundle", folder / STORE)
    return folder / "bundle"


def _as_int8(table: SyntheticTable, folder: Path) -> Path:
    """Serve the files that edge-embed has: another runtime reads the same bundle."""
    bundle = folder.parent / "edge-embed" / "bundle"
    (folder / STORE).symlink_to(bundle.with_name(STORE))
    (folder / "bundle").symlink_to(bundle)
    _write_keys(table, folder)
    return bundle


def _write_keys(table: SyntheticTable, folder: Path) -> None:
    (folder / KEYS).write_text("\n".join(table.keys), encoding="utf-8")


def _numpy(table: SyntheticTable, folder: Path) -> Path:
    np.save(folder / ROWS, table.vectors)
    _write_keys(table, folder)
    return folder


def _gensim(table: SyntheticTable, folder: Path) -> Path:
    from gensim.models import KeyedVectors  # type: ignore[import-untyped,import-not-found,unused-ignore]

    vectors = KeyedVectors(table.vectors.shape[1])
    vectors.add_vectors(list(table.keys), table.vectors)
    vectors.save(str(folder / KEYED_VECTORS))
    return folder


def _finalfusion(table: SyntheticTable, folder: Path) -> Path:
    from finalfusion import Embeddings  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from finalfusion.storage import NdArray  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from finalfusion.vocab import SimpleVocab  # type: ignore[import-untyped,import-not-found,unused-ignore]

    Embeddings(NdArray(table.vectors), SimpleVocab(list(table.keys))).write(str(folder / FLAT))
    return folder


def _fasttext(table: SyntheticTable, folder: Path) -> Path:
    """Write a model of words alone, in the layout of the original's ``saveModel``: it cannot be given vectors."""
    import fasttext  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401

    rows, dimensions = table.vectors.shape
    with (folder / FLAT).open("wb") as file:
        # Version 12; skip-gram under softmax, no buckets, no n-grams.
        file.write(struct.pack("<2i12id", 793712314, 12, dimensions, 5, 5, 1, 5, 1, 3, 2, 0, 0, 0, 100, 1e-4))
        file.write(struct.pack("<3i2q", rows, rows, 0, rows, -1))
        for key in table.keys:
            file.write(key.encode() + struct.pack("<xqb", 1, 0))
        file.write(struct.pack("<?2q", False, rows, dimensions))
        file.write(table.vectors.astype("<f4").data)
        file.write(struct.pack("<?2q", False, 1, dimensions) + bytes(4 * dimensions))
    return folder


def _model2vec(table: SyntheticTable, folder: Path) -> Path:
    from model2vec import StaticModel
    from tokenizers import Tokenizer

    definition: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {key: row for row, key in enumerate(table.keys)},
            "unk_token": table.keys[0],
        },
    }
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    StaticModel(table.vectors, tokenizer, normalize=False).save_pretrained(str(folder / FLAT))
    return folder / FLAT


def _faiss(table: SyntheticTable, folder: Path) -> Path:
    import faiss

    index = faiss.IndexFlatIP(table.vectors.shape[1])
    index.add(table.vectors)
    faiss.write_index(index, str(folder / FLAT))
    _write_keys(table, folder)
    return folder


def _usearch(table: SyntheticTable, folder: Path) -> Path:
    from usearch.index import Index  # type: ignore[import-not-found,unused-ignore]

    index = Index(ndim=table.vectors.shape[1], metric="cos", dtype="f32", connectivity=2, expansion_add=1)
    index.add(np.arange(len(table.vectors)), table.vectors)
    index.save(str(folder / GRAPH))
    _write_keys(table, folder)
    return folder


def _hnswlib(table: SyntheticTable, folder: Path) -> Path:
    import hnswlib  # type: ignore[import-untyped,import-not-found,unused-ignore]

    index = hnswlib.Index("ip", table.vectors.shape[1])
    index.init_index(len(table.vectors), ef_construction=2, M=2)
    index.add_items(table.vectors)
    index.save_index(str(folder / GRAPH))
    (folder / "dimensions").write_text(str(table.vectors.shape[1]))
    _write_keys(table, folder)
    return folder


CONVERTERS: Mapping[str, Converter] = {
    "edge-embed": _edge_embed,
    "edge-embed, pq": partial(_edge_embed, codec="pq"),
    "edge-embed, numpy": _as_int8,
    "edge-embed, bundle": _as_int8,
    "numpy": _numpy,
    "gensim": _gensim,
    "finalfusion": _finalfusion,
    "fasttext": _fasttext,
    "model2vec": _model2vec,
    "onnxruntime": _as_int8,
    "faiss": _faiss,
    "usearch": _usearch,
    "hnswlib": _hnswlib,
}
