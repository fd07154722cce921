"""Deltas for tests: made and applied as the commands do, and pieces of malformed ones."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_embed.patching import Patch, apply_delta
from edge_embed_bundle import delta
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.delta import DeltaFile
from edge_embed_export.deltas import DeltaReport, make_delta


def made(old: Path, new: Path, target: Path) -> DeltaReport:
    """Make the delta from one bundle's folder to another's."""
    with Bundle.open(old) as before, Bundle.open(new) as after:
        return make_delta(before, after, target)


@contextmanager
def patch(old: Path, file: Path) -> Iterator[Patch]:
    """A delta over its parent's folder."""
    with Bundle.open(old) as parent, file.open("rb") as opened:
        yield Patch(parent, DeltaFile(opened.fileno(), source=str(file)))


def applied(old: Path, file: Path, target: Path) -> Path:
    """Apply a delta and return the new bundle's folder."""
    with patch(old, file) as opened:
        apply_delta(opened, target)
    return target


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a bundle's files by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def packed(held: bytes) -> bytes:
    """Return what a frame holds as raw deflate."""
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packing.compress(held) + packing.flush()


def frame(way: int, data: bytes, makes: bytes, packing: int = 0) -> bytes:
    """Return a frame around packed data."""
    return delta.FRAME_HEAD.pack(way, packing, len(data), hashlib.sha256(makes).digest()) + data


def frames_of(data: bytes) -> list[bytes]:
    """Return the frames of a delta, that of the manifest first."""
    found, at = [], delta.HEAD.size
    while at < len(data):
        size = delta.FRAME_HEAD.unpack_from(data, at)[2] + delta.FRAME_HEAD.size
        found.append(data[at : at + size])
        at += size
    return found
