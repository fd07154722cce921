"""A static text encoder out of a transformer's token table: no forward pass, no torch.

The table's rows are centred and projected on their first principal components, then weighted by the logarithm of the
token's rank: a WordPiece vocabulary stands in the order of frequency, and frequent tokens say little (the idea of
inverse frequency weights: Arora, Liang and Ma, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", ICLR
2017; the rank stands in for the frequency by Zipf's law). The weight goes into the row, so a text's vector is the
plain mean of its rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError, RequestError
from edge_embed_export.exact import exact_product, principal_components
from edge_embed_export.sources import TABLE, Source, SourceTable, SourceText

DIMENSIONS = 256
MAX_TOKENS = 512

_NAME_LETTERS = 100

_TOKEN_TABLE = re.compile(r"(.*\.)?word_embeddings\.weight")
_UNUSED_TOKEN = re.compile(r"\[unused\d+\]")


def read_static_from_transformer(path: Path) -> Source:
    """Make a static encoder of a sentence-transformers or Hugging Face folder.

    Args:
        path: a folder with ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        RequestError: the folder is not one, or table and tokenizer do not belong together.
    """
    table = _token_table(path / "model.safetensors")
    tokenizer = (path / "tokenizer.json").read_bytes()
    tokens = _tokens(path / "tokenizer.json", tokenizer, len(table))
    weights = _rank_weights(tokens)
    vectors = _projected(table, min(DIMENSIONS, table.shape[1])) * weights[:, np.newaxis]
    return Source(
        f"token table of {_name(path)}",
        (
            SourceTable(
                name=TABLE,
                keys=tuple(token.encode("utf-8") for token in tokens),
                vectors=vectors.astype(np.float32),
                weights_digest=hashlib.sha256(table.tobytes()).hexdigest(),
                recipe={"projection": "principal components", "token_weights": "log(1 + rank)"},
                text=SourceText(tokenizer=tokenizer, normalize=True, max_tokens=MAX_TOKENS),
            ),
        ),
        ("this is the model's token table alone; --format transformer exports the encoder itself",),
    )


def _name(path: Path) -> str:
    """Return what the trainer called the model; where a folder stands is no part of a bundle."""
    try:
        return str(json.loads((path / "config.json").read_bytes())["_name_or_path"])[:_NAME_LETTERS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return path.resolve().name


def _token_table(path: Path) -> NDArray[np.float32]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError.of("safetensors", "export", "reading a transformer's weights") from error
    with contextlib.suppress(ImportError):
        importlib.import_module("ml_dtypes")  # comes with onnx, and teaches numpy bfloat16
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = [name for name in file.keys() if _TOKEN_TABLE.fullmatch(name)]  # noqa: SIM118, it is no mapping
            if len(names) != 1:
                raise RequestError(f"{path}: expected one tensor word_embeddings.weight, found {len(names)}")
            # What numpy does not have (float8; bfloat16 without ml_dtypes) is a TypeError or an AttributeError.
            table = file.get_tensor(names[0])
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise RequestError(f"{path}: expected a safetensors file of numbers that numpy has, found: {error}") from error
    with np.errstate(over="ignore"):
        table = table.astype(np.float32, copy=False)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise RequestError(f"{path}: {names[0]}: expected a matrix of finite numbers, found shape {table.shape}")
    return np.ascontiguousarray(table)


def _tokens(path: Path, definition: bytes, rows: int) -> list[str]:
    """Return the token of each row, in the order of their ids; each is Unicode text."""
    try:
        vocabulary = json.loads(definition)["model"]["vocab"]
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        ids = [vocabulary[token] for token in tokens]
        "".join(tokens).encode("utf-8")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"{path}: expected a tokenizer with a vocabulary of ids, found: {error!r}") from error
    if ids != list(range(rows)):
        raise RequestError(
            f"{path}: expected token ids from 0 to {rows - 1} for the table's rows, found {len(ids)} ids"
        )
    return tokens


def _rank_weights(tokens: list[str]) -> NDArray[np.float64]:
    """Return ``log(1 + rank)`` for each token; tokens that no text contains get 0."""
    in_text = np.array([not _is_special(token) for token in tokens])
    ranks = np.cumsum(in_text)
    # Rounded: numpy's logarithm has other last bits with AVX-512.
    return np.where(in_text, np.log1p(ranks).round(6), 0.0)


def _is_special(token: str) -> bool:
    return token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") or _UNUSED_TOKEN.fullmatch(token) is not None


def _projected(table: NDArray[np.float32], dimensions: int) -> NDArray[np.float64]:
    """Return the centred table on its first principal components, ``(n, dimensions)``, alike on every machine."""
    centred = table.astype(np.float64)
    centred -= centred.mean(axis=0)
    return exact_product(centred, principal_components(exact_product(centred.T, centred), dimensions))
