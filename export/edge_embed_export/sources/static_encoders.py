"""model2vec's folders and sentence-transformers' StaticEmbedding: a tokenizer and a row of numbers for each token.

* ``embeddings`` is model2vec's tensor, ``embedding.weight`` the one of sentence-transformers; each answers as its own
  maker: model2vec leaves the unknown token out of the mean and cuts a text at a number of letters first.
* A vocabulary that was quantized has fewer rows than tokens: ``mapping`` says which row is a token's, ``weights`` by
  what it is multiplied. The bundle gets a row for each token (docs/decisions/0005-a-row-for-each-token.md).
* model2vec's int8 rows have lost their scale: their directions are whole, their lengths mean nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.progress import SILENT, Progress
from edge_embed_export.files import read_json, read_settings
from edge_embed_export.matrix import Keys, Matrix, Places
from edge_embed_export.sources import Source, SourceText
from edge_embed_export.sources.safetensors_file import Tensor, matrix_of, tensors_of, vector_of
from edge_embed_export.sources.tables import one_table

MODEL2VEC, SENTENCE_TRANSFORMERS = "embeddings", "embedding.weight"

_DEFAULT_MAX_TOKENS = 512
#: What a manifest may say at most: no limit, for every text that there is.
_MAX_TOKENS = 1_000_000
_NESTED = "0_StaticEmbedding"
_LOST_SCALE = "model2vec's int8 drops the scale of the rows: cosines are right, lengths mean nothing"


@dataclass(frozen=True)
class _Tokenizer:
    """A ``tokenizer.json``: its bytes, the token of each id, the id of the unknown token, where it truncates."""

    definition: bytes
    tokens: tuple[str, ...]
    unknown: int | None
    truncation: int | None


class TokenRows:
    """The row of each token: ``rows[mapping[token]] * weights[token]``, ``(n, d)`` float32, made as it is read."""

    dtype = np.dtype(np.float32)

    def __init__(
        self, rows: Matrix, mapping: NDArray[np.int64] | None, weights: NDArray[np.float64] | None, count: int
    ) -> None:
        self._rows = rows
        self._mapping = mapping
        self._weights = weights
        self.shape = (count, rows.shape[1])
        self.nbytes = 4 * count * rows.shape[1]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.shape[0]

    def __getitem__(self, rows: Places) -> NDArray[np.float32]:
        """Return some tokens' rows, by a slice or by their ids ``(m,)``."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            rows = slice(start, max(start, stop), step)
        found: NDArray[np.float32] = self._rows[rows if self._mapping is None else self._mapping[rows]]
        if self._weights is None:
            return found
        with np.errstate(over="ignore"):
            return (found * self._weights[rows, np.newaxis]).astype(np.float32)


def static_folder(path: Path) -> Path | None:
    """Return where a static encoder's ``model.safetensors`` and ``tokenizer.json`` lie in a folder, if it is one."""
    for folder in (path, path / _NESTED):
        weights = folder / "model.safetensors"
        if weights.is_file() and (folder / "tokenizer.json").is_file():
            names = tensors_of(weights)
            return folder if MODEL2VEC in names or SENTENCE_TRANSFORMERS in names else None
    return None


def read_static_encoder(path: Path, progress: Progress = SILENT) -> Source:
    """Read a static text encoder; see :func:`edge_embed_export.sources.read_source`."""
    folder = static_folder(path)
    if folder is None:
        raise RequestError(
            f"{path}: expected tokenizer.json, and model.safetensors with {MODEL2VEC} or {SENTENCE_TRANSFORMERS}, "
            "found another folder"
        )
    weights = folder / "model.safetensors"
    tensors = tensors_of(weights)
    tokenizer = _tokenizer(folder / "tokenizer.json")
    ours = MODEL2VEC in tensors
    tensor = tensors[MODEL2VEC if ours else SENTENCE_TRANSFORMERS]
    vectors, left_out = _token_rows(weights, tensors, tensor, len(tokenizer.tokens))
    notes = () if not left_out else (f"{left_out} rows that no token of the tokenizer names were left out",)
    if tensor.dtype == "I8":
        notes = (*notes, _LOST_SCALE)
    return one_table(
        path,
        Keys.of(iter([[token.encode("utf-8") for token in tokenizer.tokens]])),
        vectors,
        title=f"static encoder {path.resolve().name}",
        text=(_as_model2vec if ours else _as_sentence_transformers)(path, tokenizer),
        notes=notes,
        progress=progress,
    )


def _as_model2vec(path: Path, tokenizer: _Tokenizer) -> SourceText:
    config = read_settings(path / "config.json") if (path / "config.json").is_file() else {}
    max_tokens = config.get("max_length", _DEFAULT_MAX_TOKENS)
    if max_tokens is not None and (type(max_tokens) is not int or not 1 <= max_tokens <= _MAX_TOKENS):
        raise RequestError(
            f"{path / 'config.json'}: expected a max_length of 1 to {_MAX_TOKENS} or null, found {str(max_tokens)[:40]}"
        )
    letters = int(statistics.median(map(len, tokenizer.tokens)))
    return SourceText(
        tokenizer=tokenizer.definition,
        normalize=config.get("normalize", False) is True,
        max_tokens=max_tokens or _MAX_TOKENS,
        max_letters=None if max_tokens is None else max(1, max_tokens * letters),
        skipped_token=tokenizer.unknown,
    )


def _as_sentence_transformers(path: Path, tokenizer: _Tokenizer) -> SourceText:
    modules = read_json(path / "modules.json") if (path / "modules.json").is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise RequestError(f"{path / 'modules.json'}: expected a list of modules, found {str(modules)[:60]}")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    strange = [kind for kind in kinds if kind not in ("StaticEmbedding", "Normalize")]
    if strange:
        raise RequestError(
            f"{path / 'modules.json'}: expected StaticEmbedding and Normalize alone, found {', '.join(strange)[:100]}"
        )
    return SourceText(
        tokenizer=tokenizer.definition,
        normalize="Normalize" in kinds,
        max_tokens=min(tokenizer.truncation or _MAX_TOKENS, _MAX_TOKENS),
    )


def _token_rows(path: Path, tensors: Mapping[str, Tensor], tensor: Tensor, tokens: int) -> tuple[Matrix, int]:
    """Return a row for each token, and how many rows no token has."""
    rows = matrix_of(path, tensor)
    weights = vector_of(path, tensors["weights"]).astype(np.float64) if "weights" in tensors else None
    mapping = vector_of(path, tensors["mapping"]) if "mapping" in tensors else None
    for name, array in (("weights", weights), ("mapping", mapping)):
        if array is not None and len(array) < tokens:
            raise RequestError(f"{path}: {name}: expected a number for each of {tokens} tokens, found {len(array)}")
    if mapping is None:
        if len(rows) < tokens:
            raise RequestError(f"{path}: expected a row for each of {tokens} tokens, found {len(rows)}")
        if weights is None and len(rows) == tokens:
            return rows, 0
        return TokenRows(rows, None, weights, tokens), len(rows) - tokens
    if mapping.dtype.kind not in "iu" or not 0 <= int(mapping.min()) <= int(mapping.max()) < len(rows):
        raise RequestError(
            f"{path}: mapping: expected rows from 0 to {len(rows) - 1}, found {mapping.min()} to {mapping.max()}"
        )
    return TokenRows(rows, mapping.astype(np.int64), weights, tokens), 0


def tokens_of(path: Path, definition: bytes) -> tuple[str, ...]:
    """Return the token of each id of a tokenizer's definition, whose ids are 0, 1, 2, ...

    Raises:
        RequestError: they are not, or the definition is none; the error names ``path``.
    """
    try:
        found = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected JSON, found: {str(error)[:100]}") from error
    return _parsed(path, found if isinstance(found, dict) else {}, definition).tokens


def _tokenizer(path: Path) -> _Tokenizer:
    return _parsed(path, read_settings(path), path.read_bytes())


def _parsed(path: Path, found: dict[str, Any], definition: bytes) -> _Tokenizer:
    model, truncation = found.get("model"), found.get("truncation")
    try:
        vocabulary = model["vocab"]  # type: ignore[index]
        ids = (
            {str(entry[0]): i for i, entry in enumerate(vocabulary)}
            if isinstance(vocabulary, list)
            else dict(vocabulary)
        )
        ids |= {str(added["content"]): added["id"] for added in found.get("added_tokens") or ()}
        unknown = model.get("unk_id") if isinstance(vocabulary, list) else ids.get(model.get("unk_token"))  # type: ignore[union-attr]
        tokens = tuple(sorted(ids, key=ids.__getitem__))
        sound = [ids[token] for token in tokens] == list(range(len(tokens))) and len(tokens) > 0
        limit = None if truncation is None else truncation["max_length"]
        if truncation is not None and truncation.get("direction", "Right") != "Right":
            raise ValueError(f"texts cut on the side {truncation['direction']!r:.60}, not on the right")
        "".join(tokens).encode("utf-8")
        if not sound or not all(type(number) is int for number in ids.values()):
            raise ValueError(f"{len(tokens)} tokens whose ids are not 0 to {len(tokens) - 1}")
        if any(number is not None and (type(number) is not int or number < 0) for number in (unknown, limit)):
            raise ValueError("an unknown token's id or a length that is no whole number")
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise RequestError(f"{path}: expected a tokenizer with a vocabulary of ids, found: {error!r}") from error
    return _Tokenizer(definition, tokens, unknown, limit or None)
