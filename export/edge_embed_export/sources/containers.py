"""Containers of vectors by name: what each begins with, how it is read, which of the user's words it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from edge_embed.errors import RequestError
from edge_embed.progress import Progress
from edge_embed_export.sources import Reader, Reading
from edge_embed_export.sources.finalfusion import MAGIC as FINALFUSION_MAGIC
from edge_embed_export.sources.finalfusion import read_finalfusion
from edge_embed_export.sources.gensim_files import MAGICS as PICKLE_MAGICS
from edge_embed_export.sources.gensim_files import read_gensim
from edge_embed_export.sources.numpy_files import ARCHIVE_MAGIC, read_npy, read_npz
from edge_embed_export.sources.numpy_files import MAGIC as NUMPY_MAGIC
from edge_embed_export.sources.parquet import MAGIC as PARQUET_MAGIC
from edge_embed_export.sources.parquet import read_parquet
from edge_embed_export.sources.records import read_jsonl
from edge_embed_export.sources.static_encoders import read_static_encoder, static_folder

_MAGICS = {
    NUMPY_MAGIC: "npy",
    FINALFUSION_MAGIC: "finalfusion",
    PARQUET_MAGIC: "parquet",
    **dict.fromkeys(PICKLE_MAGICS, "gensim"),
}

# torch's files before its archives: a pickle of a number of its own.
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"

# A word of a text file may be a brace; a record goes on with a name.
_JSON_OBJECT = re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"')

#: Which formats take which of the user's words: the option and the formats, by the field of ``Reading``.
_TAKEN_BY = {
    "keys": ("--keys", ("npy", "npz", "jsonl", "parquet", "safetensors", "torch")),
    "key_column": ("--key-column", ("npz", "jsonl", "parquet")),
    "vector_column": ("--vector-column", ("npz", "jsonl", "parquet")),
    "trust_pickle": ("--trust-pickle", ("gensim",)),
    "tables": ("--table", ("safetensors", "torch")),
}


def container_readers(reading: Reading, progress: Progress) -> Mapping[str, Reader]:
    """Return the readers of containers by the name of their format."""
    return {
        "npy": partial(read_npy, progress=progress, reading=reading),
        "npz": partial(read_npz, progress=progress, reading=reading),
        "finalfusion": partial(read_finalfusion, progress=progress),
        "jsonl": partial(read_jsonl, progress=progress, reading=reading),
        "parquet": partial(read_parquet, progress=progress, reading=reading),
        "gensim": partial(read_gensim, progress=progress, reading=reading),
        "static-encoder": partial(read_static_encoder, progress=progress),
    }


def container_by_head(head: bytes) -> str | None:
    """Return the format of a file that begins with ``head``, if it is a container's."""
    # An archive, or a pickle, may be torch's as well.
    if head.startswith(ARCHIVE_MAGIC):
        name_bytes = int.from_bytes(head[26:28], "little")
        return "npz" if head[30 : 30 + name_bytes].endswith(b".npy") else None
    if head.startswith(_TORCH_MAGIC):
        return None
    for magic, name in _MAGICS.items():
        if head.startswith(magic):
            return name
    return "jsonl" if _JSON_OBJECT.match(head) else None


def container_by_folder(path: Path) -> str | None:
    """Return the format of a folder, if it is a static encoder's."""
    return None if static_folder(path) is None else "static-encoder"


def check_reading(reading: Reading, format: str) -> None:
    """Refuse words that the format has no use for: whoever says them expects something else.

    Raises:
        RequestError: there is one.
    """
    for name, (option, formats) in _TAKEN_BY.items():
        if getattr(reading, name) and format not in formats:
            raise RequestError(f"{option}: expected a source in one of {', '.join(formats)}, found {format}")
