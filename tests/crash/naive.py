"""A writer that has to fail, or a test of power cuts finds nothing; alone, so that an emulated board can run it, too.

naive.py STORE REPOSITORY ROOT      updates as ``edge-embed update`` does, and prints its outcome
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from edge_embed.patching import Patch
from edge_embed.probing import probe
from edge_embed.version import __version__
from edge_embed_bundle.fsops import OsFs, WritableFile
from edge_embed_bundle.updating.planning import ALLOW
from edge_embed_bundle.updating.sites import open_site
from edge_embed_bundle.updating.update import Request, Updater


class _Forgetful:
    """A file whose ``sync`` promises and does nothing."""

    def __init__(self, real: WritableFile) -> None:
        self._real = real

    def write(self, data: bytes | memoryview) -> None:
        """See :meth:`WritableFile.write`."""
        self._real.write(data)

    def sync(self) -> None:
        """Do nothing."""

    def seal(self) -> None:
        """See :meth:`WritableFile.seal`."""
        self._real.seal()

    def __enter__(self) -> Self:
        self._real.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._real.__exit__(*error)


class NaiveFs(OsFs):
    """``FsOps`` of somebody who syncs the slots, which say what serves, and nothing that they say it of."""

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        """See :meth:`FsOps.create`."""
        return _Forgetful(super().create(path, mode=mode))

    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


def main(store: str, repository: str, root: str) -> int:
    """Update as ``edge-embed update`` does, and print the outcome."""
    request = Request("stable", "a board", __version__, datetime.now(UTC), "", ALLOW, root=Path(root).read_bytes())
    outcome = Updater(store, open_site(repository), probe, patch=Patch, fs=NaiveFs()).update(request)
    print(
        json.dumps({"outcome": outcome.kind, "id": None if outcome.plan.release is None else outcome.plan.release.id})
    )
    return 0
