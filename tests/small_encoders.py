"""Small encoders as sentence-transformers leaves them, and bundles of them made by the exporter that users run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_embed_export.encoders import export_encoder
from edge_embed_export.exporter import Report
from edge_embed_export.options import Options
from edge_embed_export.sources import read_encoder
from tests.small_transformers import TOKENS, config, weights, write_transformer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*(f"word{i}" for i in range(TOKENS - len(SPECIAL) - 2)), "naïve", "東京")
SENTENCES = ("word1 word2 word3", "word10 word11", "word20 naïve", "東京 word30 word31", "word5 word6 word7 word8")
#: The most tokens that a text of these encoders has.
LONGEST = 32


def tokenizer(**changes: object) -> dict[str, Any]:
    """Return a ``tokenizer.json`` of whole words between ``[CLS]`` and ``[SEP]``, which pads as all-MiniLM's does."""
    tokens = (*SPECIAL, *WORDS)
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i, token in enumerate(SPECIAL)
    ]
    template = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    return {
        "version": "1.0",
        "truncation": {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {**padding, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [SPECIAL.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": "[UNK]"},
        **changes,
    }


def write_encoder(
    folder: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
    seed: int = 0,
) -> Path:
    """Write a sentence-transformers folder of a small random BERT."""
    write_transformer(folder, weights(seed=seed), config(pad_token_id=0))
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    modes = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    (folder / "1_Pooling").mkdir()
    flags = {f"pooling_mode_{mode}": name == pooling for name, mode in modes.items()}
    for name, value in {
        "tokenizer.json": tokenizer(),
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 16, **flags},
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": dict(prompts or {}), "default_prompt_name": default_prompt},
    }.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def make_encoder_bundle(
    target: Path,
    folder: Path,
    *,
    codec: str = "int8",
    graphs: tuple[str, ...] = ("onnx", "tflite"),
    collection: tuple[str, ...] = SENTENCES,
    **options: Any,
) -> Report:
    """Export the encoder in ``folder`` to ``target``."""
    options = {"codec": codec, "graphs": graphs, "collection": collection, "name": "small", **options}
    return export_encoder(read_encoder(folder, "transformer"), Options(target=target, **options))
