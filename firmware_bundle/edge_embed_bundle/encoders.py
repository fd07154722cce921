"""Models of kind ``encoder``: graphs that take a text's tokens or an image's pixels to a vector, and their recipes.

* A model takes texts or images, never both: who compares the two has two models in one space.
* The recipe says all that happens before a graph, so two engines are given the same numbers: how a text becomes
  token ids, how a picture becomes pixels. What happens behind a graph hangs on what its output holds.
* A graph says by name which of its inputs is what. Its weights may lie in other blobs, and all of them are named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge_embed_bundle.fields import NOTHING_THERE, Fields
from edge_embed_bundle.values import DIMENSIONS_CEILING, FILE_NAME, NAME, NOTHING, Engine, Space

ENCODER_KIND = "encoder"

POOLINGS = ("mean", "cls", "max")
#: What is done with an input that is longer than a model takes.
TOO_LONG = ("truncate", "refuse")
#: What of a text or an image an input of a graph is.
TEXT_ROLES = ("ids", "mask", "types")
IMAGE_ROLES = ("pixels",)
#: What a graph's output holds: a vector for each token, their pooled vector, or the vector that is answered.
HOLDS = ("tokens", "pooled", "vectors")
CHANNELS: Mapping[str, int] = {"rgb": 3, "bgr": 3, "gray": 1}
RESIZES = ("stretch", "cover", "contain", "central")
RESAMPLINGS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "bilinear-plain")
LAYOUTS = ("nhwc", "nchw")

_TOKENS_CEILING = 1_000_000
_LETTERS_CEILING = 2**32
_TOKEN_ID_CEILING = 2**31 - 1
_SIDE_CEILING = 16_384
_PIXELS_CEILING = 2**30
_BATCH_CEILING = 65_536
#: A tensor's name in a file of another maker: what is printable, and not without end.
_TENSOR_NAME = re.compile(r"[!-~]{1,200}")


class Quantization(NamedTuple):
    """What the whole numbers of a graph's input or output mean: ``(number - zero_point) * scale``."""

    scale: float
    zero_point: int
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Quantization:
        """Read ``quantization``."""
        scale = fields.number("scale")
        if scale <= 0:
            fields.fail("scale", "a number of more than 0", scale)
        return cls(scale, fields.whole("zero_point", floor=-128, ceiling=255), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "scale": self.scale, "zero_point": self.zero_point}


class GraphInput(NamedTuple):
    """An input of a graph: its name in the file, what of a text or an image it is, and its numbers' type."""

    name: str
    role: str
    dtype: str
    quantization: Quantization | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> GraphInput:
        """Read one entry of ``inputs``."""
        role = fields.text("role", among=TEXT_ROLES + IMAGE_ROLES)
        is_text = role in TEXT_ROLES
        dtype = fields.text("dtype", among=("int32", "int64") if is_text else ("float32", "uint8", "int8"))
        quantization = None if is_text else _quantization(fields, dtype)
        return cls(fields.text("name", pattern=_TENSOR_NAME), role, dtype, quantization, fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            **_optional(quantization=self.quantization),
            "name": self.name,
            "role": self.role,
            "dtype": self.dtype,
        }


class GraphOutput(NamedTuple):
    """The output of a graph that is read: its name in the file, what it holds, and its numbers' type."""

    name: str
    holds: str
    dtype: str = "float32"
    quantization: Quantization | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> GraphOutput:
        """Read ``output``."""
        dtype = fields.text("dtype", among=("float32", "uint8", "int8"))
        quantization = _quantization(fields, dtype)
        name = fields.text("name", pattern=_TENSOR_NAME)
        return cls(name, fields.text("holds", among=HOLDS), dtype, quantization, fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            **_optional(quantization=self.quantization),
            "name": self.name,
            "holds": self.holds,
            "dtype": self.dtype,
        }


class Signature(NamedTuple):
    """A way into a file for texts of just ``length`` tokens; without a name it is the file's only one."""

    length: int
    name: str | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Signature:
        """Read one entry of ``signatures``."""
        length = fields.count("length", floor=1, ceiling=_TOKENS_CEILING)
        return cls(length, fields.text("name", pattern=_TENSOR_NAME) if fields.has("name") else None, fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        name = {} if self.name is None else {"name": self.name}
        return {**self.extra, **name, "length": self.length}


class EncoderGraph(NamedTuple):
    """A graph that encodes.

    ``weights`` are the blobs that ``blob`` reads beside itself. A graph without ``signatures`` takes texts of any
    length. ``max_batch`` is how many inputs of one length it may be given at once without their changing one another's
    vectors. ``tolerance`` bounds how far any number of its golden answers is off, on every engine that may serve;
    ``variant`` says in a word how its weights are stored.
    """

    format: str
    blob: str
    weights: tuple[str, ...]
    variant: str
    inputs: tuple[GraphInput, ...]
    output: GraphOutput
    max_batch: int
    tolerance: float
    signatures: tuple[Signature, ...] = ()
    proven: tuple[Engine, ...] = ()
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> EncoderGraph:
        """Read one entry of ``graphs``."""
        fields.text("operation", among=("encode",))
        graph = cls(
            fields.text("format", among=("onnx", "tflite")),
            fields.text("blob", pattern=FILE_NAME),
            fields.texts("weights"),
            fields.text("variant", pattern=NAME),
            fields.listed("inputs", GraphInput.read),
            fields.nested("output", GraphOutput.read),
            fields.count("max_batch", floor=1, ceiling=_BATCH_CEILING),
            fields.number("tolerance"),
            fields.listed("signatures", Signature.read) if fields.has("signatures") else (),
            fields.listed("proven", Engine.read),
            fields.rest(),
        )
        lengths = [signature.length for signature in graph.signatures]
        if lengths != sorted(set(lengths)):
            fields.fail("signatures", "lengths that rise", lengths)
        names = [each.name for each in graph.inputs]
        if len(set(names)) != len(names):
            fields.fail("inputs", "names that differ", names)
        if not all(FILE_NAME.fullmatch(name) for name in graph.weights):
            fields.fail("weights", f"names like {FILE_NAME.pattern}", list(graph.weights))
        return graph

    @property
    def operation(self) -> str:
        """What it does with its inputs, as lookup graphs have it."""
        return "encode"

    @property
    def blobs(self) -> tuple[str, ...]:
        """The files of this graph."""
        return (self.blob, *self.weights)

    def input(self, role: str) -> GraphInput | None:
        """Return the input of a role, if the graph has one."""
        return next((each for each in self.inputs if each.role == role), None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        signatures = {"signatures": [each.to_json() for each in self.signatures]} if self.signatures else {}
        return {
            **self.extra,
            **signatures,
            "format": self.format,
            "operation": self.operation,
            "blob": self.blob,
            "weights": list(self.weights),
            "variant": self.variant,
            "inputs": [each.to_json() for each in self.inputs],
            "output": self.output.to_json(),
            "max_batch": self.max_batch,
            "tolerance": self.tolerance,
            "proven": [engine.to_json() for engine in self.proven],
        }


class TextInput(NamedTuple):
    """How a text becomes token ids: prompt, letters, tokenizer, special tokens, length; and how tokens are pooled.

    ``pooling`` is absent where the graphs pool and nobody said how.
    """

    tokenizer_blob: str
    special_tokens: bool
    max_tokens: int
    max_letters: int
    too_long: str
    pad_token: int
    pooling: str | None = None
    prompts: Mapping[str, str] = NOTHING
    default_prompt: str | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> TextInput:
        """Read ``text`` of an encoder."""
        fields.text("tokenizer", among=("huggingface",))
        text = cls(
            fields.text("tokenizer_blob", pattern=FILE_NAME),
            fields.flag("special_tokens"),
            fields.count("max_tokens", floor=1, ceiling=_TOKENS_CEILING),
            fields.count("max_letters", floor=1, ceiling=_LETTERS_CEILING),
            fields.text("too_long", among=TOO_LONG),
            fields.count("pad_token", ceiling=_TOKEN_ID_CEILING),
            fields.text("pooling", among=POOLINGS) if fields.has("pooling") else None,
            fields.texts_by_name("prompts", pattern=NAME) if fields.has("prompts") else NOTHING,
            fields.text("default_prompt", pattern=NAME) if fields.has("default_prompt") else None,
            fields.rest(),
        )
        if text.default_prompt is not None and text.default_prompt not in text.prompts:
            fields.fail("default_prompt", "the name of a prompt", text.default_prompt)
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        pooling = {} if self.pooling is None else {"pooling": self.pooling}
        prompts = {"prompts": dict(self.prompts)} if self.prompts else {}
        default = {} if self.default_prompt is None else {"default_prompt": self.default_prompt}
        return {
            **self.extra,
            **pooling,
            **prompts,
            **default,
            "tokenizer": "huggingface",
            "tokenizer_blob": self.tokenizer_blob,
            "special_tokens": self.special_tokens,
            "max_tokens": self.max_tokens,
            "max_letters": self.max_letters,
            "too_long": self.too_long,
            "pad_token": self.pad_token,
        }


class ImageInput(NamedTuple):
    """How a picture becomes pixels.

    Its sides are brought to ``size`` (height, width) by ``resize``: ``stretch``; ``cover``, so that its shorter side is
    ``resize_to`` and its middle is cut out; ``contain``, so that all of it is inside and the rest is ``fill``;
    ``central``, so that the middle ``fraction`` of both sides is cut out and stretched. Each number p of 0 to 255
    becomes ``(p / 255 - mean) / std`` of its channel, and then what the graph's input asks for.

    ``resampling`` widens its filter where a picture shrinks, as Pillow and torchvision do; ``bilinear-plain`` takes the
    four pixels around each point, as ``tf.image.resize`` does, and rounds nothing.
    """

    size: tuple[int, int]
    channels: str
    layout: str
    resize: str
    resampling: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixels: int
    resize_to: int | None = None
    fill: int | None = None
    fraction: float | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> ImageInput:
        """Read ``image``."""
        size = fields.shape("size")
        if len(size) != 2 or not all(1 <= side <= _SIDE_CEILING for side in size):
            fields.fail("size", f"height and width from 1 to {_SIDE_CEILING}", list(size))
        resize = fields.text("resize", among=RESIZES)
        image = cls(
            (size[0], size[1]),
            fields.text("channels", among=tuple(CHANNELS)),
            fields.text("layout", among=LAYOUTS),
            resize,
            fields.text("resampling", among=RESAMPLINGS),
            fields.numbers("mean"),
            fields.numbers("std"),
            fields.count("max_pixels", floor=1, ceiling=_PIXELS_CEILING),
            fields.count("resize_to", floor=max(size), ceiling=_SIDE_CEILING) if resize == "cover" else None,
            fields.count("fill", ceiling=255) if resize == "contain" else None,
            fields.number("fraction") if resize == "central" else None,
            fields.rest(),
        )
        if image.fraction is not None and not 0 < image.fraction <= 1:
            fields.fail("fraction", "a share of more than 0 and at most 1", image.fraction)
        channels = CHANNELS[image.channels]
        for name, each in (("mean", image.mean), ("std", image.std)):
            if len(each) != channels:
                fields.fail(name, f"a number for each of {channels} channels", list(each))
        if not all(each > 0 for each in image.std):
            fields.fail("std", "numbers of more than 0", list(image.std))
        return image

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        resize_to = {} if self.resize_to is None else {"resize_to": self.resize_to}
        fill = {} if self.fill is None else {"fill": self.fill}
        fraction = {} if self.fraction is None else {"fraction": self.fraction}
        return {
            **self.extra,
            **resize_to,
            **fill,
            **fraction,
            "size": list(self.size),
            "channels": self.channels,
            "layout": self.layout,
            "resize": self.resize,
            "resampling": self.resampling,
            "mean": list(self.mean),
            "std": list(self.std),
            "max_pixels": self.max_pixels,
        }


class EncoderModel(NamedTuple):
    """A model that makes vectors of ``dimensions`` out of texts, or out of images, by one of its graphs.

    The first graph whose engine is there serves where the caller names no engine.
    """

    name: str
    dimensions: int
    normalize: bool
    graphs: tuple[EncoderGraph, ...]
    text: TextInput | None = None
    image: ImageInput | None = None
    #: Its own space; the bundle's where it has none.
    space: Space | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> EncoderModel:
        """Read one entry of ``models`` whose kind is ``encoder``."""
        model = cls(
            fields.text("name", pattern=NAME),
            fields.count("dimensions", floor=1, ceiling=DIMENSIONS_CEILING),
            fields.flag("normalize"),
            fields.listed("graphs", EncoderGraph.read),
            fields.nested("text", TextInput.read) if fields.has("text") else None,
            fields.nested("image", ImageInput.read) if fields.has("image") else None,
            fields.nested("space", Space.read) if fields.has("space") else None,
            fields.rest(),
        )
        if (model.text is None) == (model.image is None):
            found = NOTHING_THERE if model.text is None else "both"
            fields.fail("text", "a recipe for texts, or one for images", found)
        if not model.graphs:
            fields.fail("graphs", "one graph or more", "none")
        for i, graph in enumerate(model.graphs):
            model._check_graph(graph, f"graphs[{i}]", fields)
        return model

    @property
    def operation(self) -> str:
        """What is asked of it: ``encode`` or ``encode_image``."""
        return "encode" if self.image is None else "encode_image"

    @property
    def features(self) -> tuple[str, ...]:
        """What a reader must know to answer rightly."""
        return ("encoder-text-1",) if self.image is None else ("encoder-image-1",)

    @property
    def blobs(self) -> tuple[str, ...]:
        """The files of this model."""
        tokenizer = () if self.text is None else (self.text.tokenizer_blob,)
        return (*tokenizer, *(name for graph in self.graphs for name in graph.blobs))

    def _check_graph(self, graph: EncoderGraph, where: str, fields: Fields) -> None:
        """What a graph is given is what the recipe makes, and what it answers can be made a vector of."""
        roles = sorted(each.role for each in graph.inputs)
        among = TEXT_ROLES if self.image is None else IMAGE_ROLES
        if among[0] not in roles or len(set(roles)) != len(roles) or not set(roles) <= set(among):
            fields.fail(f"{where}.inputs", f"{among[0]} and, once each, others of {', '.join(among)}", roles)
        if graph.output.holds == "tokens" and (self.text is None or self.text.pooling is None):
            fields.fail(f"{where}.output.holds", "tokens where the text says how they are pooled", graph.output.holds)
        if graph.output.holds == "pooled" and not self.normalize:
            fields.fail(f"{where}.output.holds", "vectors where nothing is normalized", graph.output.holds)
        if graph.signatures and (self.text is None or self.text.max_tokens > graph.signatures[-1].length):
            longest = graph.signatures[-1].length
            fields.fail(f"{where}.signatures", "a length for the longest text", longest)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            **_optional(text=self.text, image=self.image, space=self.space),
            "name": self.name,
            "kind": ENCODER_KIND,
            "dimensions": self.dimensions,
            "normalize": self.normalize,
            "graphs": [graph.to_json() for graph in self.graphs],
        }


def _quantization(fields: Fields, dtype: str) -> Quantization | None:
    """Read what whole numbers mean; other numbers mean themselves."""
    return None if dtype == "float32" else fields.nested("quantization", Quantization.read)


def _optional(**values: Any) -> dict[str, Any]:
    return {name: value.to_json() for name, value in values.items() if value is not None}
