"""What a store remembers of its updates, in ``STORE/update/``: trusted metadata, and how the last update ended.

   trust.json      the metadata that was verified last, its root first of all, and the floor of trusted time
   last.json       the last outcome, for people; written when it differs from the one before
   incoming/ID/    a bundle that is being fetched
   lock            held by the process that updates

* ``trust.json`` changes as a whole, by one rename of a durable file: a power cut leaves the old one or the new one.
* What is read from it is verified again by who uses it; a damaged one is an error, never a fresh start, because a
  board that forgets what it saw can be led back to what it left.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_embed_bundle import strict_json
from edge_embed_bundle.errors import ManifestError, StateError
from edge_embed_bundle.fields import NOTHING_THERE, Fields
from edge_embed_bundle.fsops import FsOps, replace_file

_TIME = "%Y-%m-%dT%H:%M:%SZ"
#: Before this project there was nothing to trust: a clock that shows less is a board's without a battery.
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Trusted:
    """Verified metadata by role (``root``, ``timestamp``, ``snapshot``, ``targets``) and target files by path.

    ``floor`` is a moment that has passed for certain: the latest one at which verified metadata was signed.
    """

    metadata: dict[str, bytes]
    targets: dict[str, bytes] = field(default_factory=dict)
    floor: datetime = _BEGINNING

    @classmethod
    def parse(cls, data: bytes, *, source: str) -> Trusted:
        """Read ``trust.json``."""
        fields = Fields(strict_json.loads(data, source=source), source=source)
        metadata, targets = fields.nested("metadata", _texts), fields.nested("targets", _texts)
        floor = parse_time(fields.text("floor"))
        if floor is None:
            fields.fail("floor", "a time", "something else")
        if "root" not in metadata:
            fields.fail("metadata", "a root", NOTHING_THERE)
        return cls(metadata, targets, floor)

    def to_bytes(self) -> bytes:
        """Return the file."""
        return strict_json.dumps(
            {
                "floor": format_time(self.floor),
                "metadata": {name: data.decode() for name, data in self.metadata.items()},
                "targets": {name: data.decode() for name, data in self.targets.items()},
            }
        )


@dataclass(frozen=True)
class Last:
    """How the last update ended."""

    outcome: str
    said: str
    repository: str
    channel: str
    at: str
    release: str = ""
    passed_over: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**vars(self), "passed_over": list(self.passed_over)}


class Records:
    """The folder ``update`` of a store."""

    def __init__(self, store: Path) -> None:
        self.folder = store / "update"
        self.incoming = self.folder / "incoming"
        self._trust = self.folder / "trust.json"
        self._last = self.folder / "last.json"

    def trusted(self) -> Trusted | None:
        """Return what is trusted, or None where this store never saw a repository.

        Raises:
            StateError: the file is there and damaged.
        """
        try:
            return Trusted.parse(self._trust.read_bytes(), source=str(self._trust))
        except FileNotFoundError:
            return None
        except ManifestError as error:
            raise StateError(f"{error}; remove the file and give --root to trust a repository anew") from error

    def save_trusted(self, trusted: Trusted, fs: FsOps) -> None:
        """Remember what is trusted; durable on return."""
        replace_file(fs, self._trust, trusted.to_bytes())

    def last(self) -> Last | None:
        """Return how the last update ended, as far as that can be read."""
        try:
            fields = Fields(strict_json.loads(self._last.read_bytes(), source=str(self._last)), source=str(self._last))
            return Last(
                fields.text("outcome"),
                fields.text("said"),
                fields.text("repository"),
                fields.text("channel"),
                fields.text("at"),
                fields.text("release"),
                fields.texts("passed_over"),
            )
        except (OSError, ManifestError):
            return None

    def save_last(self, last: Last, fs: FsOps) -> None:
        """Remember an outcome, unless it is the one that is known: flash wears out."""
        known = self.last()
        if known is None or replace(known, at=last.at) != last:
            with contextlib.suppress(OSError):
                # A full disk must not hide why the update failed.
                replace_file(fs, self._last, strict_json.dumps(last.to_json()))


def format_time(moment: datetime) -> str:
    """Return a moment as metadata spells it."""
    return moment.astimezone(UTC).strftime(_TIME)


def parse_time(text: Any) -> datetime | None:
    """Return the moment that metadata spells, or None."""
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None


def _texts(fields: Fields) -> dict[str, bytes]:
    return {name: value.encode() for name, value in fields.rest().items() if isinstance(value, str)}
