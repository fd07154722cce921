"""The trust of a board in a repository, by The Update Framework (https://theupdateframework.github.io/specification).

The one module of the board that imports ``tuf`` and, through it, ``cryptography``; signatures, thresholds, versions and
the order of the checks are python-tuf's. What is added here:

 * The client works on a copy of the metadata, in a temporary folder, and never on what the store remembers: whoever
   cuts the power, or a check that fails in the middle, leaves that as it was.
 * A root that may be newer is asked for by HEAD, which costs no body: a check that finds nothing new costs the bytes
   of ``timestamp.json``.
 * Time never runs backwards: metadata is signed with the moment at which it was (``signed_at``), the latest one seen is
   a floor, and what has expired at the floor has expired, whatever a board's clock says. Expiry is asked for all four
   roles once more at that moment. A floor falls only with the timestamp's keys: who took them might have raised it.
 * What goes wrong is one sentence of this project's errors; nothing else comes out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Signed
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_embed_bundle.errors import AbsentError, ExpiredError, FetchError, TrustError
from edge_embed_bundle.updating.records import Trusted, format_time, parse_time
from edge_embed_bundle.updating.releases import CHANNEL_CEILING_BYTES, channel_path
from edge_embed_bundle.updating.sites import Site

ROLES = ("root", "timestamp", "snapshot", "targets")

#: How long all bytes of one metadata file may take.
METADATA_SECONDS = 120.0

_METADATA, _TARGETS = "metadata/", "targets/"
_CONFIG = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=4,
    root_max_length=64 * 1024,
    timestamp_max_length=4 * 1024,
    snapshot_max_length=64 * 1024,
    targets_max_length=1024 * 1024,
)


@dataclass(frozen=True)
class Checked:
    """What a repository says, all of it verified: to be remembered, and the file of the channel."""

    trusted: Trusted
    channel: bytes


def check(site: Site, known: Trusted, channel: str, clock: datetime) -> Checked:
    """Ask a repository for its newest metadata and a channel's file, and verify them against what is known.

    Args:
        site: the repository.
        known: what is trusted already: at least a root.
        channel: the channel's name.
        clock: what this board holds for the time.

    Raises:
        FetchError: a file did not come.
        TrustError: a rule of the specification is broken, or the metadata has expired.
    """
    with tempfile.TemporaryDirectory(prefix="edge-embed-") as name:
        folder = Path(name)
        for role, data in known.metadata.items():
            (folder / f"{role}.json").write_bytes(data)
        try:
            return _checked(site, known, channel, clock, folder)
        except ExpiredMetadataError as error:
            raise ExpiredError(
                f"{site.name}: expected metadata that is valid at {format_time(clock)}, found: {error}; "
                "nothing is installed until it is signed anew, what serves serves on"
            ) from error
        except RepositoryError as error:
            raise TrustError(f"{site.name}: expected metadata as it was signed, found: {_said(error)}") from error
        except DownloadError as error:
            if isinstance(error.__cause__, FetchError):
                raise error.__cause__ from error
            raise FetchError(f"{site.name}: expected metadata, found: {_said(error)}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # Metadata that is JSON and yet no metadata.
            raise TrustError(f"{site.name}: expected metadata, found: {type(error).__name__} {_said(error)}") from error


def _checked(site: Site, known: Trusted, channel: str, clock: datetime, folder: Path) -> Checked:
    updater = Updater(
        metadata_dir=str(folder),
        metadata_base_url=_METADATA,
        target_base_url=_TARGETS,
        fetcher=_SiteFetcher(site),
        config=_CONFIG,
        bootstrap=known.metadata["root"],
    )
    updater.refresh()
    # What was verified stands in the folder now: of that alone, and of no private field, the rest is made.
    metadata = {role: (folder / f"{role}.json").read_bytes() for role in ROLES}
    signed: dict[str, Signed] = {role: Metadata[Any].from_bytes(data).signed for role, data in metadata.items()}
    floor = _floor(known, signed)
    for role, document in signed.items():
        if document.is_expired(max(clock, floor)):
            raise ExpiredMetadataError(f"{role}.json expired at {format_time(document.expires)}")
    path = channel_path(channel)
    target = updater.get_targetinfo(path)
    if target is None:
        raise TrustError(f"{site.name}: expected the channel {channel!r}, found no such one in the signed metadata")
    if target.length > CHANNEL_CEILING_BYTES:
        raise TrustError(f"{site.name}: {path}: expected {CHANNEL_CEILING_BYTES} bytes at most, found {target.length}")
    local = folder / "channel"
    local.write_bytes(known.targets.get(path, b""))
    if updater.find_cached_target(target, str(local)) is None:
        updater.download_target(target, str(local))
    data = local.read_bytes()
    return Checked(Trusted(metadata, {path: data}, floor), data)


def _floor(known: Trusted, signed: dict[str, Signed]) -> datetime:
    """Return the latest moment that has passed for certain."""
    moments = [known.floor] if _same_timestamp_keys(known.metadata["root"], signed["root"]) else []
    for document in signed.values():
        moment = parse_time(document.unrecognized_fields.get("signed_at"))
        # Nothing is signed after it expires; who says so says nothing.
        if moment is not None and moment < document.expires:
            moments.append(moment)
    return max(moments, default=known.floor)


def _same_timestamp_keys(before: bytes, root: Signed) -> bool:
    old = Metadata[Root].from_bytes(before).signed
    if not isinstance(root, Root):
        raise TypeError("a root")
    return set(old.roles["timestamp"].keyids) == set(root.roles["timestamp"].keyids)


def _said(error: Exception) -> str:
    """Return a message that may hold a stranger's words: one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class _SiteFetcher(FetcherInterface):
    """Gives python-tuf the files of a site, under a limit of time; it watches their sizes itself."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url.endswith("root.json") and not self._site.exists(url):
            raise DownloadHTTPError(f"{url}: there is none", 404)
        return self._chunks(url)

    def _chunks(self, url: str) -> Iterator[bytes]:
        deadline = time.monotonic() + METADATA_SECONDS
        try:
            for chunk in self._site.read(url):
                yield chunk
                if time.monotonic() > deadline:
                    raise FetchError(f"{self._site.name}/{url}: expected it within {METADATA_SECONDS:g} s")
        except AbsentError as error:
            raise DownloadHTTPError(str(error), 404) from error
        except FetchError as error:
            raise DownloadError(str(error)) from error
