"""A sentence-transformers or Hugging Face folder as an encoder: weights, tokenizer, pooling, prompts, longest text.

* ``modules.json`` says what stands behind the transformer: pooling, then perhaps a normalization. What else stands
  there (a dense step, a second model) is refused by its name. Without it the tokens' mean is taken, as
  sentence-transformers does, and the user is told.
* The longest text is the smallest of what the folder says and of what the model has positions for.
* The tokenizer has to be the model's: an id without a row of the word table is refused here, not on a board.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from edge_embed.errors import RequestError
from edge_embed.named_files import read_named
from edge_embed_bundle.encoders import EncoderGraph, GraphInput, GraphOutput, TextInput
from edge_embed_bundle.values import NAME
from edge_embed_bundle.writer import BlobWriter, BundleWriter
from edge_embed_export.files import read_json, read_settings
from edge_embed_export.graphs import onnx_text, tflite_text
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.transformer import Transformer, read_transformer

TOKENIZER_BLOB = "tokenizer.json"

#: How many texts of one length are given to a graph at once: more change no bit, and take memory.
_MAX_BATCH = 16
# A token of any language has fewer letters than this, by a wide margin; behind the last of them nobody looks.
_LETTERS_PER_TOKEN = 64
_CHUNK_BYTES = 2**20
# Of a model that does not say how many positions it has: BERT's.
_MOST_TOKENS = 512
_MEAN_TAKEN = "no modules.json says how tokens are pooled: their mean is taken, as sentence-transformers does"

#: What may stand in ``modules.json``, in this order.
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


@dataclass(frozen=True, eq=False)
class TransformerNetwork:
    """A transformer of BERT's kind with its pooling: drawn in ONNX and in TFLite."""

    model: Transformer
    pooling: str
    normalize: bool
    longest: int

    variants = MappingProxyType({"onnx": onnx_text.VARIANTS, "tflite": tflite_text.VARIANTS})
    original = ("onnx", "float32")

    @property
    def size_bytes(self) -> int:
        """See :class:`Network`."""
        model = self.model
        return 4 * (model.words.shape[0] * model.width + self.longest * model.width + self.products_per_token)

    @property
    def products_per_token(self) -> int:
        """See :class:`Network`."""
        model = self.model
        return model.layers * (4 * model.width**2 + 2 * model.width * model.inner)

    def run_bytes(self, tokens: int) -> int:
        """See :meth:`Network.run_bytes`."""
        model = self.model
        return 4 * tokens * (3 * model.heads * min(tokens, self.longest) + 10 * model.width + 5 * model.inner)

    def write(self, writer: BundleWriter, name: str, format: str, variant: str) -> EncoderGraph:
        """See :meth:`Network.write`."""
        if variant not in self.variants.get(format, ()):
            known = ", ".join(self.variants.get(format, ()))
            raise RequestError(f"expected a graph of {known or 'another format'} in {format}, found {variant}")
        how: dict[str, Any] = {"pooling": self.pooling, "normalize": self.normalize, "longest": self.longest}
        if format == "tflite":
            writer.blob(f"{name}.tflite", tflite_text.TextGraph(self.model, variant, **how).write)
            inputs, weights, batch = GraphInput("ids", "ids", "int32"), (), 1
            return EncoderGraph(format, f"{name}.tflite", weights, variant, (inputs,), _OUTPUT, batch, 0.0)
        drawn: list[bytes] = []

        def write_weights(blob: BlobWriter) -> None:
            drawn.append(onnx_text.draw_text(self.model, variant, weights=blob, **how))

        writer.blob(f"{name}.bin", write_weights)
        writer.blob(f"{name}.onnx", partial(_write, drawn[0]))
        inputs = GraphInput("ids", "ids", "int64")
        return EncoderGraph(format, f"{name}.onnx", (f"{name}.bin",), variant, (inputs,), _OUTPUT, _MAX_BATCH, 0.0)


_OUTPUT = GraphOutput("vectors", "vectors")


def _write(data: bytes, blob: BlobWriter) -> None:
    blob.write(data)


def read_transformer_encoder(path: Path) -> EncoderSource:
    """Read an encoder's folder.

    Raises:
        RequestError: a file is absent or damaged, the model is of no known family, or its parts do not belong together.
    """
    settings = Settings.read(path)
    model = read_transformer(settings.folder)
    text = settings.text(model.longest, rows=model.words.shape[0])
    pooling = text.pooling or "mean"
    return EncoderSource(
        title=settings.title,
        dimensions=model.width,
        normalize=settings.normalize,
        network=TransformerNetwork(model, pooling, settings.normalize, text.max_tokens),
        weights_digest=_digest(settings.folder / "model.safetensors"),
        text=text,
        tokenizer=settings.tokenizer,
        recipe={"network": "transformer"},
        notes=settings.notes,
    )


@dataclass(frozen=True, eq=False)
class Settings:
    """What the files of a folder say beside the weights; ``folder`` is the transformer's own in it."""

    path: Path
    folder: Path
    title: str
    normalize: bool
    pooling: str
    config: Mapping[str, Any]
    tokenizer: bytes
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read them.

        Raises:
            RequestError: one is absent or damaged, or says what no bundle does.
        """
        modules = _modules(path)
        folder = path / modules.get("Transformer", "")
        pooling, notes = "mean", [_MEAN_TAKEN]
        if "Pooling" in modules:
            pooling, notes = _pooling(path / modules["Pooling"] / "config.json"), []
        config = read_settings(folder / "config.json")
        if _optional(folder / "sentence_bert_config.json").get("do_lower_case"):
            notes.append("do_lower_case: the tokenizer's own normalizer decides on letters, as its definition says")
        return cls(
            path,
            folder,
            str(config.get("_name_or_path") or path.resolve().name)[:100],
            "Normalize" in modules,
            pooling,
            config,
            read_named(folder / "tokenizer.json", "a tokenizer's definition"),
            tuple(notes),
        )

    def text(self, positions: int | None, rows: int) -> TextInput:
        """Return the recipe for texts of a model with so many positions, if that is known, and rows of words.

        Raises:
            RequestError: the tokenizer is not the model's.
        """
        _check_tokenizer(self.folder / "tokenizer.json", self.tokenizer, rows, self.folder)
        _check_sides(self.folder / "tokenizer_config.json")
        prompts, default = _prompts(self.path / "config_sentence_transformers.json")
        longest = _longest(self.folder, positions)
        return TextInput(
            tokenizer_blob=TOKENIZER_BLOB,
            special_tokens=True,
            max_tokens=longest,
            max_letters=_LETTERS_PER_TOKEN * longest,
            too_long="truncate",
            pad_token=_count(self.config, "pad_token_id", 0),
            pooling=self.pooling,
            prompts=prompts,
            default_prompt=default,
        )


def _modules(path: Path) -> dict[str, str]:
    """Return the folders of a model's modules by their kind; none of a model that is a transformer alone."""
    file = path / "modules.json"
    if not file.is_file():
        return {}
    listed = read_json(file)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise RequestError(f"{file}: expected a list of modules, found {type(listed).__name__}")
    found: dict[str, str] = {}
    order = list(_MODULES)
    for each in listed:
        kind = str(each.get("type", "")).rpartition(".")[2]
        place = each.get("path", "")
        if kind not in order or not isinstance(place, str) or ".." in Path(place).parts or Path(place).is_absolute():
            raise RequestError(
                f"{file}: expected modules of {', '.join(_MODULES)}, in this order, in folders of this one, "
                f"found {str(each)[:100]!r}"
            )
        found[kind] = place
        order = order[order.index(kind) + 1 :]
    if list(found)[:2] != ["Transformer", "Pooling"]:
        raise RequestError(f"{file}: expected Transformer, then Pooling, found {', '.join(found) or 'nothing'}")
    return found


def _pooling(file: Path) -> str:
    """Return how tokens are pooled, in either spelling of the file."""
    config = read_settings(file)
    named = config.get("pooling_mode")
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    modes = [named] if isinstance(named, str) else [_POOLINGS.get(key, key) for key in chosen]
    if len(modes) != 1 or modes[0] not in _POOLINGS.values():
        found = ", ".join(map(str, modes)) or "none"
        raise RequestError(f"{file}: expected one mode of pooling of {', '.join(_POOLINGS.values())}, found {found}")
    if config.get("include_prompt", True) is not True:
        raise RequestError(f"{file}: include_prompt: expected true, found {config['include_prompt']!r}")
    return str(modes[0])


def _longest(folder: Path, positions: int | None) -> int:
    """Return how many tokens a text may have: what the folder says, but no more than there are positions."""
    ceiling = _MOST_TOKENS if positions is None else positions
    said = _optional(folder / "sentence_bert_config.json").get("max_seq_length")
    if said is None:
        said = _optional(folder / "tokenizer_config.json").get("model_max_length")
    if not isinstance(said, int) or isinstance(said, bool) or said < 1:
        return ceiling
    return min(said, ceiling)


def _prompts(file: Path) -> tuple[Mapping[str, str], str | None]:
    config = _optional(file)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str) and NAME.fullmatch(name) for name, text in prompts.items()
    ):
        raise RequestError(f"{file}: prompts: expected names and texts, found {str(prompts)[:60]!r}")
    # An empty prompt is none.
    prompts = {name: text for name, text in prompts.items() if text}
    default = config.get("default_prompt_name")
    return MappingProxyType(prompts), default if default in prompts else None


def _check_tokenizer(file: Path, definition: bytes, rows: int, folder: Path) -> None:
    """See that every id of the tokenizer has a row.

    Raises:
        RequestError: it is no tokenizer with a vocabulary, or has more ids than the model has rows.
    """
    try:
        found = json.loads(definition)
        vocabulary = found["model"]["vocab"]
        ids = [int(i) for i in vocabulary.values()] if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        ids += [int(token["id"]) for token in found.get("added_tokens", [])]
        sides = {does: (found.get(does) or {}).get("direction", "Right") for does in ("truncation", "padding")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"{file}: expected a tokenizer with a vocabulary of ids, found: {error!r:.100}") from error
    if not ids or not 0 <= min(ids) <= max(ids) < rows:
        found_ids = f"{min(ids)} to {max(ids)}" if ids else "none"
        raise RequestError(
            f"{file}: expected ids from 0 to {rows - 1}, which the model in {folder.name or folder} has rows for, "
            f"found {found_ids}"
        )
    _refuse_left(file, sides)


def _check_sides(file: Path) -> None:
    config = _optional(file)
    _refuse_left(file, {name: config.get(name) or "right" for name in ("truncation_side", "padding_side")})


def _refuse_left(file: Path, sides: Mapping[str, object]) -> None:
    """See that texts are cut and padded on the right: where a model was padded on the left, its positions are others.

    Raises:
        RequestError: they are not.
    """
    for name, side in sides.items():
        if str(side).lower() != "right":
            raise RequestError(f"{file}: {name}: expected the right side, found {side!r:.60}")


def _optional(file: Path) -> dict[str, Any]:
    return read_settings(file) if file.is_file() else {}


def _count(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
