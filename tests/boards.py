"""Boards for tests: stores that update from a repository, by a probe that is a fake."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge_embed.version import __version__
from edge_embed_bundle.fsops import FsOps
from edge_embed_bundle.store import Probe, Store
from edge_embed_bundle.updating.building import Patcher
from edge_embed_bundle.updating.planning import ALLOW
from edge_embed_bundle.updating.sites import FolderSite, Site
from edge_embed_bundle.updating.update import Outcome, Request, Updater
from tests.fakes.probes import FakeProbe
from tests.repositories import now


@dataclass(frozen=True)
class Board:
    """A store that updates from a repository; its probe is a fake. With ``patch`` it takes deltas."""

    store: Path
    root: bytes | None
    patch: Patcher | None = None

    def update(
        self,
        site: Site | Path,
        *,
        probe: Probe | None = None,
        fs: FsOps | None = None,
        clock: datetime | None = None,
        device_id: str = "a board",
        board: str = "",
        new_space: str = ALLOW,
        retry: bool = False,
    ) -> Outcome:
        """Update once, without pauses between attempts."""
        request = Request("stable", device_id, __version__, clock or now(), board, new_space, retry, self.root)
        site = FolderSite(site) if isinstance(site, Path) else site
        probe = FakeProbe() if probe is None else probe
        updater = Updater(self.store, site, probe, patch=self.patch, fs=fs, pause=lambda seconds: None)
        return updater.update(request)

    @property
    def serving(self) -> str:
        """The generation that serves."""
        return Store(self.store).active().name
