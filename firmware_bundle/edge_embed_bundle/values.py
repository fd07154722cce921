"""The small values that every part of a manifest is made of: files, places in them, engines, spaces, names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from edge_embed_bundle.fields import HEX_DIGEST, Fields

#: Pi 5 kernels use 16 KiB pages, others 4 or 64: a section that starts here can be mapped alone on all of them.
SECTION_BYTES = 64 * 1024

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {"int8": 1, "uint8": 1, "uint16": 2, "float16": 2, "int32": 4, "uint32": 4, "float32": 4}
)

# One plain name in one flat folder: no separator, no leading dot, so no path can climb out.
FILE_NAME = re.compile(r"(?!(?:manifest\.json|slot\.[01])$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIMENSIONS_CEILING = 65_536

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Blob(NamedTuple):
    """One file of the bundle: its exact size and the sha256 of its bytes, in hex."""

    size_bytes: int
    sha256: str
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Blob:
        """Read one value of ``blobs``."""
        return cls(fields.count("size_bytes"), fields.text("sha256", pattern=HEX_DIGEST), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "size_bytes": self.size_bytes, "sha256": self.sha256}


class Tensor(NamedTuple):
    """A raw little-endian, C-contiguous array inside a blob."""

    blob: str
    offset_bytes: int
    dtype: str
    shape: tuple[int, ...]
    extra: Mapping[str, Any] = NOTHING

    @property
    def size_bytes(self) -> int:
        """The bytes that the array covers."""
        return ITEM_BYTES[self.dtype] * prod(self.shape)

    @classmethod
    def read(cls, fields: Fields) -> Tensor:
        """Read a tensor's place; whether it lies inside its blob is checked by ``Manifest.parse``."""
        return cls(
            fields.text("blob", pattern=FILE_NAME),
            fields.count("offset_bytes"),
            fields.text("dtype", among=tuple(ITEM_BYTES)),
            fields.shape("shape"),
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            "blob": self.blob,
            "offset_bytes": self.offset_bytes,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }


class Engine(NamedTuple):
    """An engine and the version of it that gave the golden answers when the bundle was made."""

    name: str
    version: str
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Engine:
        """Read one entry of ``proven``."""
        return cls(fields.text("name"), fields.text("version"), fields.rest())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**self.extra, "name": self.name, "version": self.version}


class Revision(NamedTuple):
    """Why other weights are in the space of a parent: how like its vectors those of the same keys were."""

    parent: str
    mean_cosine: float
    shared_keys: int
    aligned: bool
    #: No more than this can be said of the bundle whose weights gave the space its id: angles add up.
    mean_cosine_to_first: float
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Revision:
        """Read ``space.revision``."""
        return cls(
            fields.text("parent", pattern=HEX_DIGEST),
            fields.number("mean_cosine"),
            fields.count("shared_keys"),
            fields.flag("aligned"),
            fields.number("mean_cosine_to_first"),
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **self.extra,
            "parent": self.parent,
            "mean_cosine": self.mean_cosine,
            "shared_keys": self.shared_keys,
            "aligned": self.aligned,
            "mean_cosine_to_first": self.mean_cosine_to_first,
        }


class Space(NamedTuple):
    """What makes two vectors comparable; codecs of one source share it, and revisions that stayed alike."""

    id: str
    dimensions: int
    similarity: str
    source: str
    revision: Revision | None = None
    extra: Mapping[str, Any] = NOTHING

    @classmethod
    def read(cls, fields: Fields) -> Space:
        """Read ``space``."""
        return cls(
            fields.text("id", pattern=HEX_DIGEST),
            fields.count("dimensions", ceiling=DIMENSIONS_CEILING),
            fields.text("similarity", among=("cosine",)),
            fields.text("source"),
            fields.nested("revision", Revision.read) if fields.has("revision") else None,
            fields.rest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        revision = {} if self.revision is None else {"revision": self.revision.to_json()}
        return {
            **self.extra,
            **revision,
            "id": self.id,
            "dimensions": self.dimensions,
            "similarity": self.similarity,
            "source": self.source,
        }
