"""Keys and signed metadata, by The Update Framework; python-tuf signs, this module says what and for how long.

* Four roles. ``root`` says whose keys count: two signatures, made where no network is. ``targets`` vouches for the
  channels: one, likewise. ``snapshot`` and ``timestamp`` say what is newest: online, because they are signed often.
* A key is a PEM file, ``ROLE-ID.pem``, 0600, in a folder of keys; several folders may be given, so that root keys can
  travel apart. Which keys count is what the newest root says, never which files lie around.
* Every root that ever was stays in the chain ``N.root.json``: a board walks from the one it knows to the newest, each
  signed by the one before.
* Everything is signed with the moment at which it was (``signed_at``), the floor under a board's clock.
* A signature that is still good is not made again: who holds the online keys alone can keep a repository fresh.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from edge_embed.errors import EdgeEmbedError
from edge_embed_bundle.updating.records import format_time

ROLES = ("root", "targets", "snapshot", "timestamp")
ROOT_THRESHOLD = 2
DEFAULT_ROOT_KEYS = 2

#: How long a signature counts, in days. Boards go on serving afterwards, they install nothing.
ROOT_DAYS, TARGETS_DAYS, SNAPSHOT_DAYS, TIMESTAMP_DAYS = 365, 180, 30, 7

_ONE_LINE = JSONSerializer(compact=True)
_ID_LETTERS = 8

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


class SigningError(EdgeEmbedError):
    """A key or a signature that is needed is not there."""


@dataclass(frozen=True)
class Key:
    """A key that counts."""

    role: str
    id: str
    #: Whether its private half lies in one of the folders.
    here: bool


class Keys:
    """The private keys in some folders, and the newest root that lies there."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._signers: dict[str, CryptoSigner] = {}
        #: Keys that were made and not yet written, each with its role.
        self._fresh: list[tuple[str, CryptoSigner]] = []
        for folder in self.folders:
            if not folder.is_dir():
                raise SigningError(f"{folder}: expected a folder of keys, found none; edge-embed keys create makes one")
            for path in sorted(folder.glob("*.pem")):
                signer = _load(path)
                self._signers[signer.public_key.keyid] = signer

    @classmethod
    def create(cls, folder: Path, *, root_keys: int, now: datetime) -> Keys:
        """Make keys for every role and the first root, in a new folder."""
        if root_keys < ROOT_THRESHOLD:
            raise SigningError(f"expected at least {ROOT_THRESHOLD} root keys, found {root_keys}")
        if folder.exists() and any(folder.iterdir()):
            raise SigningError(f"{folder}: expected a new folder, found one that is not empty; keys are never replaced")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = Root(expires=_until(now, ROOT_DAYS), consistent_snapshot=True)
        keys = cls([folder])
        for role in ROLES:
            for _ in range(root_keys if role == "root" else 1):
                root.add_key(keys._new(role).public_key, role)
        root.roles["root"].threshold = ROOT_THRESHOLD
        keys._sign_root(root, None, now)
        return keys

    def replace(self, which: Mapping[str, Sequence[str]], now: datetime) -> Root:
        """Put a new key in the place of each one that is named, by role; return the next root, signed and written."""
        before = newest_root(self.folders).signed
        root = deepcopy(before)
        root.version += 1
        for role, ids in which.items():
            for key_id in ids:
                root.revoke_key(key_id, role)
                root.add_key(self._new(role).public_key, role)
        self._sign_root(root, before, now)
        return root

    def listed(self) -> list[Key]:
        """Return the keys that count by the newest root."""
        root = newest_root(self.folders).signed
        return [Key(role, key_id, key_id in self._signers) for role in ROLES for key_id in root.roles[role].keyids]

    def named(self, prefix: str) -> dict[str, list[str]]:
        """Return the keys that count and whose id begins so, by role."""
        found: dict[str, list[str]] = {}
        for key in self.listed():
            if prefix and key.id.startswith(prefix):
                found.setdefault(key.role, []).append(key.id)
        if len({key_id for ids in found.values() for key_id in ids}) != 1:
            raise SigningError(f"expected the id of one key that counts (edge-embed keys list), found {prefix!r}")
        return found

    def sign(self, root: Root, role: str, signed: S, now: datetime, days: int) -> bytes | None:
        """Sign metadata of a role as the root demands; return None where its keys are not here."""
        signers = [self._signers[key_id] for key_id in root.roles[role].keyids if key_id in self._signers]
        if len(signers) < root.roles[role].threshold:
            return None
        signed.expires = _until(now, days)
        signed.unrecognized_fields["signed_at"] = format_time(now)
        metadata = Metadata[S](signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(_ONE_LINE)

    def _sign_root(self, root: Root, before: Root | None, now: datetime) -> None:
        root.expires = _until(now, ROOT_DAYS)
        root.unrecognized_fields["signed_at"] = format_time(now)
        metadata = Metadata[Root](root)
        of_before = () if before is None else before.roles["root"].keyids
        for key_id in dict.fromkeys((*of_before, *root.roles["root"].keyids)):
            if key_id in self._signers:
                metadata.sign(self._signers[key_id], append=True)
        result = root.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
        if not result:
            raise SigningError(
                f"expected {ROOT_THRESHOLD} root keys of the newest root, found {len(result.first.signed)}; "
                "give the folders of the others with --keys, too; nothing was changed"
            )
        # The keys first: a root that names a key which nobody has would lock everybody out.
        for role, signer in self._fresh:
            name = f"{role}-{signer.public_key.keyid[:_ID_LETTERS]}.pem"
            _write_new(self.folders[0] / name, signer.private_bytes, 0o600)
        self._fresh.clear()
        _write_new(self.folders[0] / f"{root.version}.root.json", metadata.to_bytes(_ONE_LINE), 0o644)

    def _new(self, role: str) -> CryptoSigner:
        signer = CryptoSigner.generate_ed25519()
        self._signers[signer.public_key.keyid] = signer
        self._fresh.append((role, signer))
        return signer


class SignedRepository:
    """The metadata of a repository: ``metadata/`` and the target files it vouches for, ``targets/``."""

    def __init__(self, folder: Path) -> None:
        self._metadata = folder / "metadata"
        self._targets = folder / "targets"

    def target(self, path: str) -> bytes | None:
        """Return the file that the newest targets metadata names so, verified against it, or None if it names none."""
        targets = self._newest("targets", Targets)
        info = None if targets is None else targets.signed.targets.get(path)
        if info is None:
            return None
        place = self._targets / _prefixed(info)
        try:
            data = place.read_bytes()
            info.verify_length_and_hashes(data)
        except (OSError, RepositoryError) as error:
            raise SigningError(f"{place}: expected the file that targets.json vouches for, found: {error}") from error
        return data

    def sign(
        self,
        keys: Keys,
        files: Mapping[str, bytes],
        now: datetime,
        *,
        snapshot_days: int = SNAPSHOT_DAYS,
        timestamp_days: int = TIMESTAMP_DAYS,
    ) -> None:
        """Bring what is signed up to date: changed target files, a newer root, signatures that are about to expire.

        What a reader meets last is written first: whoever asks meanwhile gets the old state or the new one.

        Raises:
            SigningError: a signature is needed and its key is not here; nothing was changed.
        """
        root = newest_root([*keys.folders, self._metadata]).signed
        targets, targets_bytes = self._next_targets(keys, root, files, now)
        snapshot, snapshot_bytes = self._next_snapshot(keys, root, targets, targets_bytes, now, snapshot_days)
        before = self._newest("timestamp", Timestamp)
        meta = MetaFile(snapshot.version, len(snapshot_bytes))
        timestamp = Timestamp(1 if before is None else before.signed.version + 1, snapshot_meta=meta)
        timestamp_bytes = _needed(keys.sign(root, "timestamp", timestamp, now, timestamp_days), "timestamp")

        for folder in (self._metadata, self._targets):
            folder.mkdir(parents=True, exist_ok=True)
        for place in keys.folders:
            for link in place.glob("*.root.json"):
                _write(self._metadata / link.name, link.read_bytes())
        for path, data in files.items():
            _write(self._targets / _prefixed(targets.targets[path]), data)
        _write(self._metadata / f"{targets.version}.targets.json", targets_bytes)
        _write(self._metadata / f"{snapshot.version}.snapshot.json", snapshot_bytes)
        _write(self._metadata / "timestamp.json", timestamp_bytes)

    def _next_targets(self, keys: Keys, root: Root, files: Mapping[str, bytes], now: datetime) -> tuple[Targets, bytes]:
        before = self._newest("targets", Targets)
        targets = Targets() if before is None else deepcopy(before.signed)
        for path, data in files.items():
            targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        changed = before is None or targets.targets != before.signed.targets
        if before is not None and not changed and _holds(root, "targets", before, now, 0):
            signed = None
            if not _holds(root, "targets", before, now, TARGETS_DAYS // 2):
                targets.version += 1
                signed = keys.sign(root, "targets", targets, now, TARGETS_DAYS)
            # Good for now; the offline key is asked for when it no longer is.
            return (before.signed, before.to_bytes(_ONE_LINE)) if signed is None else (targets, signed)
        targets.version = 1 if before is None else before.signed.version + 1
        return targets, _needed(keys.sign(root, "targets", targets, now, TARGETS_DAYS), "targets")

    def _next_snapshot(
        self, keys: Keys, root: Root, targets: Targets, targets_bytes: bytes, now: datetime, days: int
    ) -> tuple[Snapshot, bytes]:
        before = self._newest("snapshot", Snapshot)
        meta = MetaFile.from_data(targets.version, targets_bytes, ["sha256"])
        same = before is not None and before.signed.meta == {"targets.json": meta}
        if before is not None and same and _holds(root, "snapshot", before, now, max(1, days // 2)):
            return before.signed, before.to_bytes(_ONE_LINE)
        snapshot = Snapshot(1 if before is None else before.signed.version + 1, meta={"targets.json": meta})
        return snapshot, _needed(keys.sign(root, "snapshot", snapshot, now, days), "snapshot")

    def _newest(self, role: str, kind: type[S]) -> Metadata[S] | None:
        if role == "timestamp":
            path = self._metadata / "timestamp.json"
            return _read(path, kind) if path.is_file() else None
        numbers = [_number(path) for path in self._metadata.glob(f"*.{role}.json")]
        if not numbers:
            return None
        return _read(self._metadata / f"{max(numbers)}.{role}.json", kind)


def newest_root(folders: Sequence[Path]) -> Metadata[Root]:
    """Return the newest root that lies in any of the folders."""
    found = {_number(path): path for folder in folders for path in folder.glob("*.root.json")}
    if not found:
        raise SigningError(f"{folders[0]}: expected 1.root.json, found none; edge-embed keys create makes one")
    return _read(found[max(found)], Root)


def _read(path: Path, kind: type[S]) -> Metadata[S]:
    try:
        metadata = Metadata[S].from_bytes(path.read_bytes())
    except RepositoryError as error:
        raise SigningError(f"{path}: expected metadata as it was signed, found: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise SigningError(f"{path}: expected metadata of {kind.type}, found {metadata.signed.type}")
    return metadata


def _holds(root: Root, role: str, metadata: Metadata[Any], now: datetime, days: int) -> bool:
    """Return whether a signature counts by this root, and will for so many days more."""
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return False
    return not metadata.signed.is_expired(now + timedelta(days=days))


def _needed(data: bytes | None, role: str) -> bytes:
    if data is None:
        raise SigningError(f"expected the key of {role} in the folders of keys, found none that counts")
    return data


def _prefixed(info: TargetFile) -> str:
    """Return where consistent snapshots keep a target file: its digest before its name."""
    return info.get_prefixed_paths()[0]


def _number(path: Path) -> int:
    digits = path.name.split(".")[0]
    return int(digits) if digits.isdecimal() else 0


def _until(now: datetime, days: int) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)


def _load(path: Path) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), password=None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{path}: expected a private key in PEM without a password, found: {error}") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file for a web server to hand out: whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(data)
    partial.chmod(0o644)
    partial.replace(path)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
