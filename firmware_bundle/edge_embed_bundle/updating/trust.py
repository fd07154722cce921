"""The trust of a board in a repository, by The Update Framework (https://theupdateframework.github.io/specification).

The one module of the board that imports ``tuf`` and, through it, ``cryptography``; signatures, thresholds, versions and
the order of the checks are python-tuf's. What is added here:

 * The client works on a copy of the metadata, in a temporary folder, and never on what the store remembers: whoever
   cuts the power leaves that as it was.
 * Each file that was verified is trusted from then on, also where a later one is not there or not right, as the
   specification has it: a new root revokes keys at once, and nobody shows an older timestamp afterwards.
 * A root that may be newer is asked for by HEAD, which costs no body: a check that finds nothing new costs the bytes
   of ``timestamp.json``.
 * Time never runs backwards: metadata is signed with the moment at which it was (``signed_at``), the latest one seen is
   a floor, and what has expired at the floor has expired, whatever a board's clock says. Expiry is asked for all four
   roles once more at that moment. A floor falls only with the timestamp's keys: who took them might have raised it.
 * What goes wrong is one sentence of this project's errors; nothing else comes out.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Signed
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_embed_bundle.errors import AbsentError, ExpiredError, FetchError, TrustError
from edge_embed_bundle.updating.records import Trusted, format_time, parse_time
from edge_embed_bundle.updating.releases import CHANNEL_CEILING_BYTES
from edge_embed_bundle.updating.sites import Site

ROLES = ("root", "timestamp", "snapshot", "targets")

#: How long all bytes of one metadata file may take.
METADATA_SECONDS = 120.0

#: No target is larger: channels are small, and blobs are no targets.
TARGET_CEILING_BYTES = CHANNEL_CEILING_BYTES

_CONFIG = UpdaterConfig(
    root_max_length=64 * 1024,
    timestamp_max_length=4 * 1024,
    snapshot_max_length=64 * 1024,
    targets_max_length=1024 * 1024,
)


class Client:
    """One check of a repository against what is trusted. Use as a context manager.

    Args:
        site: the repository.
        known: what is trusted already: at least a root.
        clock: what this board holds for the time.
        metadata, targets: where on the site the metadata and the target files stand.
    """

    def __init__(
        self, site: Site, known: Trusted, clock: datetime, *, metadata: str = "metadata/", targets: str = "targets/"
    ) -> None:
        self._site, self._known, self._clock = site, known, clock
        self._metadata, self._targets = metadata, targets
        self._floor = known.floor

    def __enter__(self) -> Self:
        """Make the copy that python-tuf works on."""
        self._copy = tempfile.TemporaryDirectory(prefix="edge-embed-")
        self._folder = Path(self._copy.name)
        for role, data in self._known.metadata.items():
            (self._folder / f"{role}.json").write_bytes(data)
        return self

    def __exit__(self, *_: object) -> None:
        """Drop the copy."""
        self._copy.cleanup()

    @property
    def trusted(self) -> Trusted:
        """What is trusted by now: everything that was verified, also where a later check failed."""
        # Roles that targets delegates to are among them; python-tuf has quoted their names.
        metadata = {path.stem: path.read_bytes() for path in sorted(self._folder.glob("*.json"))}
        return Trusted(metadata, dict(self._known.targets), self._floor)

    def refresh(self) -> None:
        """Bring root, timestamp, snapshot and targets up to date.

        Raises:
            FetchError: a file did not come.
            TrustError: a rule of the specification is broken, or the metadata has expired.
        """
        with self._sentences():
            self._updater = Updater(
                metadata_dir=str(self._folder),
                metadata_base_url=self._metadata,
                target_base_url=self._targets,
                fetcher=_SiteFetcher(self._site),
                config=_CONFIG,
                bootstrap=self._known.metadata["root"],
            )
            self._updater.refresh()
            # Of what stands in the folder now, and of no private field, the rest is found out.
            metadata = self.trusted.metadata
            signed = {role: Metadata[Any].from_bytes(metadata[role]).signed for role in ROLES}
            self._floor = _floor(self._known, signed)
            for role, document in signed.items():
                if document.is_expired(max(self._clock, self._floor)):
                    raise ExpiredMetadataError(f"{role}.json expired at {format_time(document.expires)}")

    def target(self, path: str) -> bytes:
        """Return a target file, after ``refresh``; one that is known already is not fetched.

        Raises:
            FetchError: the file did not come.
            TrustError: it is not the one that was signed, or none of that name was.
        """
        with self._sentences():
            info = self._updater.get_targetinfo(path)
            if info is None:
                raise RepositoryError(f"no target {path}")
            if info.length > TARGET_CEILING_BYTES:
                raise RepositoryError(f"{path} of {info.length} bytes, more than {TARGET_CEILING_BYTES}")
            local = self._folder / "target"
            local.write_bytes(self._known.targets.get(path, b""))
            if self._updater.find_cached_target(info, str(local)) is None:
                self._updater.download_target(info, str(local))
            return local.read_bytes()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Let nothing out but this project's errors, each one sentence."""
        name = self._site.name
        try:
            yield
        except ExpiredMetadataError as error:
            raise ExpiredError(
                f"{name}: expected metadata that is valid at {format_time(max(self._clock, self._floor))}, found: "
                f"{error}; nothing is installed until it is signed anew, what serves serves on"
            ) from error
        except RepositoryError as error:
            raise TrustError(f"{name}: expected metadata as it was signed, found: {_said(error)}") from error
        except DownloadError as error:
            if isinstance(error.__cause__, FetchError):
                raise error.__cause__ from error
            raise FetchError(f"{name}: expected metadata, found: {_said(error)}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # Metadata that is JSON and yet no metadata.
            raise TrustError(f"{name}: expected metadata, found: {type(error).__name__} {_said(error)}") from error


def _floor(known: Trusted, signed: Mapping[str, Signed]) -> datetime:
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
