"""Encoders as their trainers left them: how inputs become numbers, and a network that writes its graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edge_embed_bundle import strict_json
from edge_embed_bundle.encoders import EncoderGraph, ImageInput, TextInput
from edge_embed_bundle.values import Space
from edge_embed_bundle.writer import BundleWriter


class Network(Protocol):
    """What stands behind an encoder's vectors."""

    @property
    def variants(self) -> Mapping[str, tuple[str, ...]]:
        """How weights may be stored, for each format that there is a graph of; the first format is the usual one."""

    @property
    def original(self) -> tuple[str, str]:
        """The format and the variant whose answers are those of the model as it was trained."""

    @property
    def size_bytes(self) -> int:
        """What the weights take as float32."""

    @property
    def products_per_token(self) -> int:
        """How many numbers a token, or an image as a whole, is multiplied with: what an answer takes in time."""

    def run_bytes(self, tokens: int) -> int:
        """Predict the private memory of one run over so many tokens, or over one image."""

    def write(self, writer: BundleWriter, name: str, format: str, variant: str) -> EncoderGraph:
        """Write a graph's blobs, whose names begin with ``name``; what it is proven on and how far it is off is open.

        Raises:
            RequestError: there is no such graph of this model.
        """


@dataclass(frozen=True, eq=False)
class EncoderSource:
    """A trained encoder of texts, with its ``tokenizer.json``, or of images.

    ``weights_digest`` and ``recipe`` say where the vectors come from: with the text recipe they make the space.
    ``notes`` tell the user what was assumed on the way here.
    """

    title: str
    dimensions: int
    normalize: bool
    network: Network
    weights_digest: str
    text: TextInput | None = None
    tokenizer: bytes | None = None
    image: ImageInput | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        """How weights may be stored, in one format or another."""
        return tuple(dict.fromkeys(variant for own in self.network.variants.values() for variant in own))

    @property
    def space(self) -> Space:
        """What the vectors may be compared with; how weights are stored is no part of it."""
        text = self.text
        described = {
            "dimensions": self.dimensions,
            "similarity": "cosine",
            "weights": self.weights_digest,
            "recipe": {**self.recipe, "normalize": self.normalize},
            "text": None
            if text is None or self.tokenizer is None
            else {
                "tokenizer": hashlib.sha256(self.tokenizer).hexdigest(),
                "pooling": text.pooling,
                "special_tokens": text.special_tokens,
                "normalize": self.normalize,
            },
            "image": None if self.image is None else self.image.to_json(),
        }
        digest = hashlib.sha256(b"edge-embed space 1\n" + strict_json.dumps(described)).hexdigest()
        # A file's name may hold bytes that are no UTF-8; JSON may not.
        said = self.title.encode("utf-8", "backslashreplace").decode()
        return Space(digest, self.dimensions, "cosine", said)
