"""Small transformers as their trainers leave them, and what they answer by definition, a step at a time in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

TOKENS, WIDTH, HEADS, LAYERS, INNER, POSITIONS = 50, 16, 2, 2, 24, 40

#: What DistilBERT calls the parts of a layer, by BERT's words.
_DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
    "encoder.layer": "transformer.layer",
}


def weights(*, seed: int = 0, types: bool = True) -> dict[str, NDArray[np.float32]]:
    """Return random weights under BERT's names."""
    random = np.random.default_rng(seed)

    def some(*shape: int, size: float = 0.3) -> NDArray[np.float32]:
        return (size * random.normal(size=shape)).astype(np.float32)

    made = {
        "embeddings.word_embeddings.weight": some(TOKENS, WIDTH, size=1),
        "embeddings.position_embeddings.weight": some(POSITIONS, WIDTH, size=1),
    }
    if types:
        made["embeddings.token_type_embeddings.weight"] = some(2, WIDTH, size=1)

    def norm(name: str) -> None:
        made.update({f"{name}.weight": 1 + some(WIDTH), f"{name}.bias": some(WIDTH)})

    norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            made.update({f"{layer}{name}.weight": some(WIDTH, WIDTH), f"{layer}{name}.bias": some(WIDTH)})
        made.update(
            {f"{layer}intermediate.dense.weight": some(INNER, WIDTH), f"{layer}intermediate.dense.bias": some(INNER)}
        )
        made.update({f"{layer}output.dense.weight": some(WIDTH, INNER), f"{layer}output.dense.bias": some(WIDTH)})
        norm(f"{layer}attention.output.LayerNorm")
        norm(f"{layer}output.LayerNorm")
    return made


def config(family: str = "bert", **changes: object) -> dict[str, object]:
    """Return a ``config.json`` that belongs to ``weights``."""
    if family == "distilbert":
        made: dict[str, object] = {
            "dim": WIDTH,
            "n_heads": HEADS,
            "n_layers": LAYERS,
            "hidden_dim": INNER,
            "activation": "gelu",
        }
    else:
        made = {
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "intermediate_size": INNER,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        }
    return {"model_type": family, **made, **changes}


def write_transformer(folder: Path, arrays: Arrays, configuration: Mapping[str, object], prefix: str = "") -> Path:
    """Write a folder of ``config.json`` and ``model.safetensors``."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration))
    renamed = {prefix + _renamed(name, configuration["model_type"]): array for name, array in arrays.items()}
    save_file(renamed, str(folder / "model.safetensors"))
    return folder


def _renamed(name: str, family: object) -> str:
    if family == "distilbert":
        for words, other in _DISTILBERT.items():
            name = name.replace(words, other)
    return name


def by_definition(
    arrays: Arrays,
    configuration: Mapping[str, Any],
    ids: Sequence[int],
    *,
    pooling: str = "mean",
    normalize: bool = True,
) -> NDArray[np.float64]:
    """Return the vector ``(d,)`` of a text's token ids (Devlin et al., 2019; Vaswani et al., 2017)."""
    numbers = {name: array.astype(np.float64) for name, array in arrays.items()}
    heads, epsilon = configuration.get("num_attention_heads", HEADS), configuration.get("layer_norm_eps", 1e-12)
    activation = configuration.get("hidden_act", configuration.get("activation"))
    first = (
        configuration["pad_token_id"] + 1
        if configuration["model_type"] in ("roberta", "xlm-roberta", "camembert")
        else 0
    )

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ numbers[f"{name}.weight"].T + numbers[f"{name}.bias"]

    def normed(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + epsilon)
        return np.asarray(centred / deviation * numbers[f"{name}.weight"] + numbers[f"{name}.bias"])

    words, positions = (numbers[f"embeddings.{each}_embeddings.weight"] for each in ("word", "position"))
    types = numbers.get("embeddings.token_type_embeddings.weight", np.zeros((1, words.shape[1])))
    x = normed(words[list(ids)] + positions[first : first + len(ids)] + types[0], "embeddings.LayerNorm")
    for i in range(sum(name.endswith("query.weight") for name in arrays)):
        layer = f"encoder.layer.{i}."
        query, key, value = (
            np.stack(np.split(dense(x, f"{layer}attention.self.{name}"), heads, axis=1))
            for name in ("query", "key", "value")
        )
        scores = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[2]))
        mixed = np.concatenate(list(scores / scores.sum(axis=2, keepdims=True) @ value), axis=1)
        x = normed(dense(mixed, f"{layer}attention.output.dense") + x, f"{layer}attention.output.LayerNorm")
        inner = _activated(dense(x, f"{layer}intermediate.dense"), str(activation))
        x = normed(dense(inner, f"{layer}output.dense") + x, f"{layer}output.LayerNorm")
    pooled: NDArray[np.float64] = {"mean": x.mean(axis=0), "cls": x[0], "max": x.max(axis=0)}[pooling]
    length = np.linalg.norm(pooled) if normalize else np.float64(1)
    return np.asarray(pooled / length)


def _activated(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if name == "relu":
        return np.asarray(np.maximum(x, 0))
    if name == "gelu":
        return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)
    return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
