"""A delta for a release: made where it saves a board enough, and left out where it does not.

* What counts is what a board that has the parent would fetch without it: the files that the parent does not share.
* A delta that was written has been applied once, and gave the release's bundle bit for bit; where none can, as of
  files that hold something between their sections, the release goes out without.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_embed.memory import format_size
from edge_embed.progress import Progress
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError
from edge_embed_bundle.updating.planning import is_short
from edge_embed_bundle.updating.releases import Release
from edge_embed_export.deltas import make_delta


@dataclass(frozen=True)
class Tried:
    """Whether a delta is worth offering, and what to tell people."""

    is_offered: bool
    said: str


def try_delta(old: Path, new: Path, release: Release, target: Path, progress: Progress) -> Tried:
    """Write the delta from an older bundle to a release's; both are read whole first.

    Raises:
        BundleError: one of the bundles is damaged.
    """
    with Bundle.open(old) as parent, Bundle.open(new) as bundle:
        total = parent.manifest.size_bytes + bundle.manifest.size_bytes
        with progress.task(f"reading {parent.manifest.version} and {bundle.manifest.version}", total) as advance:
            parent.verify(advance)
            bundle.verify(advance)
        named = f"delta from {parent.manifest.version} ({parent.id[:12]})"
        try:
            delta_bytes = make_delta(parent, bundle, target, progress).size_bytes
        except BundleError as error:
            return Tried(False, f"no {named}: {error}")
        shared = {blob.sha256 for blob in parent.manifest.blobs.values()}
        files_bytes = sum(file.size_bytes for file in release.files if file.sha256 not in shared)
        is_offered = is_short(delta_bytes, files_bytes)
        sizes = f"{format_size(delta_bytes)} where the files have {format_size(files_bytes)}"
        return Tried(is_offered, f"{named}: {sizes}" if is_offered else f"{named}: {sizes}; left out")
