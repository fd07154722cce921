"""A transformer of BERT's kind out of its trainer's folder: its shape, and its weights under one set of names.

* Families differ in what they call their tensors and where positions begin; behind this module there is one kind:
  embeddings, then layers of attention and of two dense steps, each followed by a normalization (Devlin et al., "BERT",
  NAACL 2019). What computes anything else (relative positions, gated units, other norms) is refused by its name.
* ``config.json`` is judged before a tensor is read, and each tensor's shape before its numbers.
* Weights are read where they lie, a layer at a time: a model is never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed_export.files import read_settings
from edge_embed_export.matrix import Matrix
from edge_embed_export.sources.safetensors_file import Tensor, matrix_of, tensors_of, vector_of

Floats = NDArray[np.float32]

#: What an activation is called in a configuration: exact GELU, its approximation by tanh, ReLU.
ACTIVATIONS: Mapping[str, str] = MappingProxyType(
    {
        "gelu": "gelu",
        "gelu_new": "gelu-tanh",
        "gelu_pytorch_tanh": "gelu-tanh",
        "gelu_fast": "gelu-tanh",
        "relu": "relu",
    }
)

_WORDS = "embeddings.word_embeddings.weight"


class Linear(NamedTuple):
    """``x @ weight.T + bias``: weight ``(out, in)``, bias ``(out,)``."""

    weight: Floats
    bias: Floats


class Norm(NamedTuple):
    """Layer normalization over the last axis: weight and bias ``(d,)``."""

    weight: Floats
    bias: Floats


class Layer(NamedTuple):
    """Attention and two dense steps, each with a residual and a normalization behind it."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attention_norm: Norm
    inner: Linear
    outer: Linear
    output_norm: Norm


class _Family(NamedTuple):
    """What a family calls things: in ``config.json`` and, of a layer, in the weights."""

    width: str
    heads: str
    layers: str
    inner: str
    activation: str
    layer: str
    parts: tuple[str, str, str, str, str, str, str, str]
    #: Positions are counted from behind the padding token's id.
    after_padding: bool = False


_BERT = _Family(
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "hidden_act",
    "encoder.layer.{}.",
    (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ),
)
_ROBERTA = _BERT._replace(after_padding=True)
_DISTILBERT = _Family(
    "dim",
    "n_heads",
    "n_layers",
    "hidden_dim",
    "activation",
    "transformer.layer.{}.",
    (
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
)
FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "bert": _BERT,
        "roberta": _ROBERTA,
        "xlm-roberta": _ROBERTA,
        "camembert": _ROBERTA,
        "distilbert": _DISTILBERT,
    }
)


@dataclass(frozen=True, eq=False)
class Transformer:
    """The shape of a model, and its weights.

    ``words`` ``(tokens, width)``; ``positions`` ``(longest, width)`` float32: what is added to the first token, the
    second one, ..., with the row of the only token type in it.
    """

    width: int
    heads: int
    layers: int
    inner: int
    activation: str
    epsilon: float
    words: Matrix
    positions: Floats
    norm: Norm
    _weights: _Weights
    _family: _Family

    @property
    def longest(self) -> int:
        """How many tokens a text may have at most."""
        return len(self.positions)

    def layer(self, i: int) -> Layer:
        """Read the weights of a layer."""
        names = [self._family.layer.format(i) + part for part in self._family.parts]
        d, inner = self.width, self.inner
        query, key, value, output = (self._weights.linear(name, d, d) for name in names[:4])
        return Layer(
            query,
            key,
            value,
            output,
            self._weights.norm(names[4], d),
            self._weights.linear(names[5], inner, d),
            self._weights.linear(names[6], d, inner),
            self._weights.norm(names[7], d),
        )


def read_transformer(folder: Path) -> Transformer:
    """Read a model's ``config.json`` and find its weights in ``model.safetensors``.

    Raises:
        RequestError: a file is absent or damaged, the family is none of ``FAMILIES``, or a tensor has another shape.
    """
    config = _Config(folder / "config.json")
    family = FAMILIES[config.word("model_type", tuple(FAMILIES))]
    if config.values.get("position_embedding_type", "absolute") != "absolute":
        raise config.wrong("position_embedding_type", "absolute", config.values["position_embedding_type"])
    width, heads = config.count(family.width), config.count(family.heads)
    if width % heads:
        raise config.wrong(family.heads, f"a divisor of the width {width}", heads)
    weights = _Weights.of(folder / "model.safetensors")
    words = weights.matrix(_WORDS, None, width)
    skipped = config.count("pad_token_id", floor=0) + 1 if family.after_padding else 0
    positions: Floats = weights.matrix("embeddings.position_embeddings.weight", None, width)[skipped:]
    if weights.has("embeddings.token_type_embeddings.weight"):
        positions = positions + weights.matrix("embeddings.token_type_embeddings.weight", None, width)[:1]
    epsilon = config.values.get("layer_norm_eps", 1e-12)
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise config.wrong("layer_norm_eps", "a number between 0 and 1", epsilon)
    return Transformer(
        width=width,
        heads=heads,
        layers=config.count(family.layers, ceiling=256),
        inner=config.count(family.inner),
        activation=ACTIVATIONS[config.word(family.activation, tuple(ACTIVATIONS))],
        epsilon=epsilon,
        words=words,
        positions=positions,
        norm=weights.norm("embeddings.LayerNorm", width),
        _weights=weights,
        _family=family,
    )


class _Config:
    """A ``config.json`` under examination."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: Mapping[str, Any] = read_settings(path)

    def wrong(self, name: str, expected: str, found: object) -> RequestError:
        """Return the error that names the file, the field, what was expected and what was found."""
        return RequestError(f"{self.path}: {name}: expected {expected}, found {found!r:.60}")

    def count(self, name: str, *, floor: int = 1, ceiling: int = 65_536) -> int:
        """Return a whole number."""
        value = self.values.get(name)
        if type(value) is not int or not floor <= value <= ceiling:
            raise self.wrong(name, f"a whole number from {floor} to {ceiling}", value)
        return value

    def word(self, name: str, among: tuple[str, ...]) -> str:
        """Return one of some words."""
        value = self.values.get(name)
        if not isinstance(value, str) or value not in among:
            raise self.wrong(name, f"one of {', '.join(among)}", value)
        return value


@dataclass(frozen=True, eq=False)
class _Weights:
    """The tensors of a file, by their names behind the prefix that all of a model's have."""

    path: Path
    prefix: str
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, path: Path) -> _Weights:
        if not path.is_file():
            raise RequestError(f"{path}: expected a model's weights, found nothing there")
        tensors = tensors_of(path)
        prefixes = [name.removesuffix(_WORDS) for name in tensors if name.endswith(_WORDS)]
        if len(prefixes) != 1:
            raise RequestError(f"{path}: expected one tensor {_WORDS}, found {len(prefixes)}")
        return cls(path, prefixes[0], tensors)

    def has(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def matrix(self, name: str, rows: int | None, columns: int) -> Matrix:
        """Return a matrix ``(rows, columns)`` where it lies; any number of rows where ``rows`` is None."""
        tensor = self._tensor(name)
        expected = (tensor.shape[0] if rows is None and tensor.shape else rows, columns)
        if tensor.shape != expected or not all(tensor.shape):
            raise RequestError(f"{self.path}: {tensor.name}: expected the shape {expected}, found {tensor.shape}")
        return matrix_of(self.path, tensor)

    def linear(self, name: str, rows: int, columns: int) -> Linear:
        weight = self._finite(name, self.matrix(f"{name}.weight", rows, columns)[:])
        return Linear(weight, self._vector(f"{name}.bias", rows))

    def norm(self, name: str, width: int) -> Norm:
        return Norm(self._vector(f"{name}.weight", width), self._vector(f"{name}.bias", width))

    def _vector(self, name: str, length: int) -> Floats:
        tensor = self._tensor(name)
        if tensor.shape != (length,):
            raise RequestError(f"{self.path}: {tensor.name}: expected the shape {(length,)}, found {tensor.shape}")
        return self._finite(name, vector_of(self.path, tensor).astype(np.float32))

    def _finite(self, name: str, numbers: Floats) -> Floats:
        if not np.isfinite(numbers).all():
            raise RequestError(f"{self.path}: {self.prefix}{name}: expected finite numbers, found others")
        return numbers

    def _tensor(self, name: str) -> Tensor:
        tensor = self.tensors.get(self.prefix + name)
        if tensor is None:
            raise RequestError(f"{self.path}: expected a tensor {self.prefix}{name}, found none")
        return tensor
