"""Texts and images to vectors by a graph: what goes in by the model's recipe, and what is made of what comes out.

* A vector does not depend on what stands beside it: a graph is given inputs of one length together, never padded but
  to the length of a signature, and no more of them than its ``max_batch`` (docs/decisions/0008-one-length-a-batch.md).
* Engines run; everything around them, casts, quantization, pooling, normalization, is done here, once for all.
* An engine is trusted by evidence: one that the graph was not proven on gives the golden answers first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.engines import EncoderEngine, engines_of, load_encoder
from edge_embed.errors import BundleError, MissingExtraError, RequestError
from edge_embed.text import BATCH_TEXTS, HuggingFaceTokenizer, check_texts, directed
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph, EncoderModel, Quantization, TextInput

if TYPE_CHECKING:
    from edge_embed.images import Image

#: Not an engine: whichever the bundle has a graph for and this board has.
ANY_ENGINE = "kernels"

#: Tokens that go into a graph at once, unless one text has more: more of them take memory, and save hardly any time.
RUN_TOKENS = 256


class Forward:
    """A graph in its engine: from the numbers of its inputs, by their roles, to vectors."""

    def __init__(self, model: EncoderModel, graph: EncoderGraph, engine: EncoderEngine) -> None:
        self.graph = graph
        self.engine = engine
        self._model = model
        self._pooling = None if model.text is None else model.text.pooling
        #: The types of the inputs that the graph has, by their roles.
        self.dtypes = {each.role: np.dtype(each.dtype) for each in graph.inputs}
        self._dtype = np.dtype(graph.output.dtype)

    def normalizes(self, asked: bool | None) -> bool:
        """Return whether vectors are to be normalized behind the graph.

        Raises:
            RequestError: they were asked for without, and the graph has normalized them already.
        """
        done = self.graph.output.holds == "vectors"
        if asked is False and self._model.normalize and done:
            raise RequestError(
                f"{self._model.name}: expected normalized vectors, which are all that {self.graph.blob} gives, "
                "found normalize=False"
            )
        wanted = self._model.normalize if asked is None else asked
        return wanted and not (done and self._model.normalize)

    def vectors(
        self, inputs: Mapping[str, NDArray[Any]], *, normalize: bool, mask: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of ``n`` inputs of one length, freshly allocated.

        Args:
            inputs: those that the graph has, by their roles, in their types.
            normalize: whether vectors are divided by their lengths.
            mask: which of the tokens ``(n, length)`` count where they are pooled here; all of them if not given.
        """
        found = self.engine.encode(inputs)
        shape: tuple[int, ...] = (len(next(iter(inputs.values()))), self._model.dimensions)
        if self.graph.output.holds == "tokens":
            shape = (shape[0], inputs["ids"].shape[1], shape[1])
        if isinstance(found, np.ndarray) and found.shape[:1] == shape[:1] and found.ndim > 2 == len(shape):
            # What image networks pool last often keeps its axes of length 1.
            found = found.reshape(shape[0], -1)
        if not isinstance(found, np.ndarray) or found.dtype != self._dtype or found.shape != shape:
            said = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise BundleError(
                f"{self.graph.blob}: expected {self._dtype} {shape} from {self.engine.name}, found {said}"
            )
        vectors = _dequantized(found, self.graph.output.quantization)
        if self.graph.output.holds == "tokens":
            vectors = _pooled(vectors, mask, self._pooling)
        if not np.logical_and.reduce(np.isfinite(vectors), axis=None):
            raise BundleError(
                f"{self.graph.blob}: expected finite numbers from {self.engine.name}, found NaN or infinity"
            )
        return directed(vectors) if normalize else vectors


class GraphTextEncoder:
    """A text encoder whose vectors a graph makes."""

    def __init__(
        self, model: EncoderModel, recipe: TextInput, forward: Forward, tokenizer: HuggingFaceTokenizer
    ) -> None:
        self.forward = forward
        self._model = model
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._lengths = [signature.length for signature in forward.graph.signatures]

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, normalize: bool | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts; one without tokens gets zeros.

        Raises:
            RequestError: a text is no ``str``, holds a lone surrogate, or is longer than a model takes that refuses it.
        """
        before = self._prompt(prompt)
        check_texts(texts)
        normalizes = self.forward.normalizes(normalize)
        if len(texts) == 1 and (ids := self._ids([before + texts[0]], 0)[0]):
            # With nothing to sort and to gather, a short text takes 30 us less.
            return self._vectors([ids], self._length(len(ids)), normalizes)
        vectors = np.zeros((len(texts), self._model.dimensions), np.float32)
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = texts[start : start + BATCH_TEXTS]
            tokens = self._ids([before + text for text in batch], start)
            for length, places in self._alike(tokens):
                run = [tokens[place] for place in places]
                for place, vector in zip(places, self._vectors(run, length, normalizes), strict=True):
                    vectors[start + place] = vector
        return vectors

    def warm_up(self) -> None:
        """Run the graph at every length that it was made for, so that the first caller does not wait."""
        for length in self._lengths or [min(16, self._recipe.max_tokens)]:
            self._vectors([[self._recipe.pad_token] * length], length, False)

    def _vectors(self, run: Sequence[list[int]], length: int, normalizes: bool) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of texts whose ids, padded, are of one length."""
        mask = None
        if min(map(len, run)) < length:
            mask = np.array([[1] * len(ids) + [0] * (length - len(ids)) for ids in run])
            run = [ids + [self._recipe.pad_token] * (length - len(ids)) for ids in run]
        given = {}
        for role, dtype in self.forward.dtypes.items():
            if role == "ids":
                given[role] = np.array(run, dtype)
            elif role == "types":
                given[role] = np.zeros((len(run), length), dtype)
            else:
                given[role] = np.ones((len(run), length), dtype) if mask is None else mask.astype(dtype)
        return self.forward.vectors(given, normalize=normalizes, mask=mask)

    def _prompt(self, name: str | None) -> str:
        name = self._recipe.default_prompt if name is None else name
        if name is None:
            return ""
        found = self._recipe.prompts.get(name)
        if found is None:
            known = ", ".join(self._recipe.prompts) or "none"
            raise RequestError(f"{self._model.name}: expected a prompt of this model ({known}), found {name!r}")
        return found

    def _ids(self, texts: Sequence[str], first: int) -> list[list[int]]:
        refuses = self._recipe.too_long == "refuse"
        if refuses:
            for i, text in enumerate(texts, first):
                if len(text) > self._recipe.max_letters:
                    raise RequestError(
                        f"text {i}: expected at most {self._recipe.max_letters} letters, found {len(text)}"
                    )
        ids = self._tokenizer.ids(texts)
        for i, tokens in enumerate(ids, first):
            if len(tokens) > self._recipe.max_tokens:
                raise RequestError(
                    f"text {i}: expected at most {self._recipe.max_tokens} tokens, found {len(tokens)}; "
                    "this model refuses longer texts"
                )
        return ids

    def _alike(self, ids: Sequence[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """Yield runs of texts that go into the graph together: their length there, and their places."""
        by_length: dict[int, list[int]] = {}
        for place, tokens in enumerate(ids):
            if tokens:
                by_length.setdefault(self._length(len(tokens)), []).append(place)
        for length, places in by_length.items():
            size = min(self.forward.graph.max_batch, max(1, RUN_TOKENS // length))
            for start in range(0, len(places), size):
                yield length, places[start : start + size]

    def _length(self, tokens: int) -> int:
        """Return how many tokens the graph is given for a text of so many; the manifest's gate saw to a way in."""
        return next((length for length in self._lengths if length >= tokens), tokens) if self._lengths else tokens


class GraphImageEncoder:
    """An image encoder whose vectors a graph makes."""

    def __init__(self, model: EncoderModel, forward: Forward) -> None:
        from edge_embed.images import ImageReader

        if model.image is None:
            raise AssertionError("an image encoder has a recipe for images")
        self.forward = forward
        self._model = model
        self._reader = ImageReader(model.image)

    def encode(self, images: Sequence[Image], *, normalize: bool | None = None) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of images.

        Raises:
            RequestError: an image is absent, damaged, too large or of a kind that is not read.
        """
        normalizes = self.forward.normalizes(normalize)
        vectors = np.empty((len(images), self._model.dimensions), np.float32)
        for start in range(0, len(images), self.forward.graph.max_batch):
            batch = images[start : start + self.forward.graph.max_batch]
            pixels = np.stack([self._reader.pixels(image, start + i) for i, image in enumerate(batch)])
            vectors[start : start + len(batch)] = self.of_pixels(pixels, normalize=normalizes)
        return vectors

    def of_pixels(self, pixels: NDArray[np.float32], *, normalize: bool) -> NDArray[np.float32]:
        """Return the vectors ``(n, d)`` of pixels as the recipe makes them, in the recipe's layout."""
        asked = self.forward.graph.input("pixels")
        if asked is None:
            raise AssertionError("the manifest's gate lets no such graph pass without pixels")
        return self.forward.vectors(
            {"pixels": _quantized(pixels, asked.dtype, asked.quantization)}, normalize=normalize
        )

    def warm_up(self) -> None:
        """Run the graph once, so that the first caller does not wait."""
        image = self._model.image
        if image is None:
            raise AssertionError("an image encoder has a recipe for images")
        channels = len(image.mean)
        shape = (1, *image.size, channels) if image.layout == "nhwc" else (1, channels, *image.size)
        self.of_pixels(np.zeros(shape, np.float32), normalize=False)


def open_encoder(
    bundle: Bundle, model: EncoderModel, *, engine: str = ANY_ENGINE, threads: int = 1
) -> GraphTextEncoder | GraphImageEncoder:
    """Return a model's encoder by the first of its graphs whose engine is here and right.

    Raises:
        RequestError: the bundle has no graph for the named engine.
        MissingExtraError: no engine for it, or no tokenizer or image library, is installed.
        BundleError: an engine does not accept its graph, or does not give the golden answers.
    """
    from edge_embed.golden import check_encoder

    ways = [(graph, name) for graph in model.graphs for name in engines_of(graph) if engine in (ANY_ENGINE, name)]
    if not ways:
        offered = ", ".join(dict.fromkeys(name for graph in model.graphs for name in engines_of(graph)))
        raise RequestError(f"{bundle.folder}: expected an engine of {offered} for {model.name}, found {engine!r}")
    failures: list[BundleError | MissingExtraError] = []
    for graph, name in ways:
        try:
            encoder = open_graph_encoder(bundle, model, graph, threads=threads, engine=name)
            found = encoder.forward.engine
            if not any((each.name, each.version) == (found.name, found.version) for each in graph.proven):
                check_encoder(bundle, model, encoder)
            return encoder
        except (BundleError, MissingExtraError) as error:
            failures.append(error)
    # An engine that is here and wrong says more than one that is not here.
    raise next((each for each in failures if isinstance(each, BundleError)), failures[0])


def open_graph_encoder(
    bundle: Bundle, model: EncoderModel, graph: EncoderGraph, *, threads: int = 1, engine: str | None = None
) -> GraphTextEncoder | GraphImageEncoder:
    """Return a model's encoder by one of its graphs, whatever it was proven on, by any engine or the named one."""
    forward = Forward(model, graph, load_encoder(graph, bundle, threads, engine))
    if model.text is None:
        return GraphImageEncoder(model, forward)
    recipe = model.text
    tokenizer = HuggingFaceTokenizer.shared(
        bundle,
        recipe.tokenizer_blob,
        recipe.max_tokens if recipe.too_long == "truncate" else None,
        max_letters=recipe.max_letters,
        special_tokens=recipe.special_tokens,
        for_graph=True,
    )
    return GraphTextEncoder(model, recipe, forward, tokenizer)


def _dequantized(numbers: NDArray[Any], quantization: Quantization | None) -> NDArray[np.float32]:
    if quantization is None:
        return numbers
    return (numbers.astype(np.float32) - np.float32(quantization.zero_point)) * np.float32(quantization.scale)


def _quantized(numbers: NDArray[np.float32], dtype: str, quantization: Quantization | None) -> NDArray[Any]:
    if quantization is None:
        return numbers
    limits = np.iinfo(dtype)
    codes = np.rint(numbers / np.float32(quantization.scale)) + np.float32(quantization.zero_point)
    whole: NDArray[Any] = codes.clip(limits.min, limits.max).astype(dtype)
    return whole


def _pooled(tokens: NDArray[np.float32], mask: NDArray[np.int64] | None, pooling: str | None) -> NDArray[np.float32]:
    """Return the pooled vectors ``(n, d)`` of tokens ``(n, length, d)`` where the mask, if there is one, is 1."""
    if pooling == "cls":
        return tokens[:, 0].copy()
    if mask is None:
        mask = np.ones(tokens.shape[:2], np.int64)
    kept = mask[:, :, np.newaxis] > 0
    if pooling == "max":
        largest: NDArray[np.float32] = np.where(kept, tokens, np.float32(-np.inf)).max(axis=1)
        return largest
    total: NDArray[np.float32] = np.where(kept, tokens, np.float32(0)).sum(axis=1, dtype=np.float32)
    total /= mask.sum(axis=1, keepdims=True).astype(np.float32)
    return total
