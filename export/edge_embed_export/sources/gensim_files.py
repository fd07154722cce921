"""gensim's own files (``.kv``, ``.model``): pickles, so gensim reads them, and only for a user who says so.

Who opens a pickle runs what its maker wrote. Without ``--trust-pickle`` nothing of it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError, RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.sources import Reading, Source
from edge_embed_export.sources.tables import WORDS, key_of, one_table

#: A pickle of protocol 2 to 5 begins with these.
MAGICS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


def read_gensim(path: Path, progress: Progress = SILENT, *, reading: Reading = Reading()) -> Source:  # noqa: B008, frozen
    """Read word vectors that gensim saved; see :func:`edge_embed_export.sources.read_source`.

    Raises:
        MissingExtraError: gensim is not installed.
    """
    if not reading.trust_pickle:
        raise RequestError(
            f"{path}: expected a format that is read without running it, found a pickle, which may run any program; "
            "save it with kv.save_word2vec_format('vectors.bin', binary=True), or pass --trust-pickle if you made it "
            "yourself"
        )
    try:
        from gensim.utils import SaveLoad
    except ImportError as error:
        raise MissingExtraError.of("gensim", "gensim", "reading gensim's own files") from error
    try:
        model = SaveLoad.load(str(path), mmap="r")
    # A pickle may raise whatever its maker wrote.
    except Exception as error:
        raise RequestError(f"{path}: expected a model that gensim can load, found: {error!r}") from error
    vectors, words, counts = _table(path, getattr(model, "wv", model))

    def fault(fact: str) -> RequestError:
        return RequestError(f"{path}: {fact}")

    notes: tuple[str, ...] = ()
    if hasattr(getattr(model, "wv", model), "vectors_ngrams"):
        notes = (
            "subwords were left out: words that are not in the table get no vector; "
            "save with gensim.models.fasttext.save_facebook_model to keep them",
        )
    keys = tuple(key_of(word, fault) for word in words)
    return one_table(path, keys, vectors, text=WORDS, counts=counts, notes=notes, progress=progress)


def _table(path: Path, words: Any) -> tuple[NDArray[np.float32], list[Any], NDArray[np.int64] | None]:
    """Return rows, words and their counts, if the trainer kept them."""
    vectors, names = getattr(words, "vectors", None), getattr(words, "index_to_key", None)
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f" or names is None:
        raise RequestError(f"{path}: expected gensim's KeyedVectors or a model with .wv, found {type(words).__name__}")
    counts = getattr(words, "expandos", {}).get("count")
    if not isinstance(counts, np.ndarray) or counts.shape != (len(vectors),):
        return vectors, list(names), None
    return vectors, list(names), counts.astype(np.int64)
