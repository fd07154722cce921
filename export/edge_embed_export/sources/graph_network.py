"""A network that is nothing but its file, of another maker: it goes into a bundle byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_embed.errors import RequestError
from edge_embed_bundle.encoders import EncoderGraph
from edge_embed_bundle.writer import BlobWriter, BundleWriter
from edge_embed_export.graphs.files import GraphFile

_CHUNK_BYTES = 2**20
#: Most weights of an image network stand where its map has a sixteenth of the picture's sides.
_USUAL_STRIDE = 16


@dataclass(frozen=True, eq=False)
class GraphNetwork:
    """A network that is nothing but its file."""

    file: GraphFile
    graph: EncoderGraph
    #: Of the picture in pixels; of a text's graph 0.
    area: int = 0

    @property
    def variants(self) -> Mapping[str, tuple[str, ...]]:
        """See :class:`Network`."""
        return {self.graph.format: (self.graph.variant,)}

    @property
    def original(self) -> tuple[str, str]:
        """See :class:`Network`."""
        return self.graph.format, self.graph.variant

    @property
    def size_bytes(self) -> int:
        """See :class:`Network`; of a file of codes, what they would take."""
        stored = sum(path.stat().st_size for path in (self.file.path, *self.file.beside))
        return stored if self.graph.variant == "float32" else 4 * stored

    @property
    def products_per_token(self) -> int:
        """See :class:`Network`; an estimate by the weights and the picture's area."""
        return self.size_bytes // 4 * max(1, self.area // _USUAL_STRIDE**2)

    def run_bytes(self, tokens: int) -> int:
        """See :meth:`Network.run_bytes`; three maps of sixteen numbers a pixel, an estimate."""
        return 4 * 16 * 3 * self.area * tokens

    def write(self, writer: BundleWriter, name: str, format: str, variant: str) -> EncoderGraph:
        """See :meth:`Network.write`."""
        if (format, variant) != self.original:
            raise RequestError(
                f"{self.file.path}: expected {self.graph.variant} in {self.graph.format}, which is all that there is, "
                f"found {variant} in {format}"
            )
        blob = f"{name}.{format}"
        for path, target in ((self.file.path, blob), *((path, path.name) for path in self.file.beside)):
            writer.blob(target, partial(_copied, path))
        return self.graph._replace(blob=blob)


def digest_of(file: GraphFile) -> str:
    """Return the digest of a graph's file and of those beside it."""
    digest = hashlib.sha256()
    for path in (file.path, *file.beside):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _copied(path: Path, blob: BlobWriter) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            blob.write(chunk)
