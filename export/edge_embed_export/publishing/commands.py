"""``keys`` and ``publish``: how a bundle gets to boards, from the workstation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_embed.commands import Command
from edge_embed.errors import MissingExtraError
from edge_embed.progress import Progress
from edge_embed_bundle.manifest import VERSION
from edge_embed_bundle.updating.releases import Release
from edge_embed_bundle.values import NAME

_PACKAGES = ("tuf", "cryptography")
_JSON = {"action": "store_true", "default": argparse.SUPPRESS, "help": "print one JSON object"}


def _configure_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|list|rotate|revoke|sign")
    create = actions.add_parser("create", help="keys for every role and the first root, in a new folder")
    create.add_argument("folder", metavar="DIR", type=Path)
    create.add_argument(
        "--root-keys", metavar="N", type=int, default=2, help="two must sign; a third one may get lost (2)"
    )
    listed = actions.add_parser("list", help="the keys that count, and which of them are here")
    rotate = actions.add_parser("rotate", help="a new key in the place of a role's oldest one")
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp"))
    revoke = actions.add_parser("revoke", help="a new key in the place of one that somebody else may have")
    revoke.add_argument("id", metavar="ID", help="how its id begins, as keys list shows it")
    sign = actions.add_parser("sign", help="sign a repository anew, before its signatures expire or for a newer root")
    for action in (listed, rotate, revoke, sign):
        _add_keys(action)
    for action in (rotate, revoke):
        action.add_argument("--repository", metavar="DIR", type=Path, help="sign this repository by the new keys, too")
    sign.add_argument("--repository", metavar="DIR", type=Path, required=True)
    for action in (rotate, revoke, sign):
        _add_days(action)
    for action in (create, listed, rotate, revoke, sign):
        action.add_argument("--json", **_JSON)  # type: ignore[arg-type]


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys", metavar="DIR", type=Path, action="append", required=True, help="a folder of keys; may be given again"
    )


def _add_days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--days", metavar="N", type=_days, default=7, help="how long boards may install by this signature (7)"
    )


def _keys(arguments: argparse.Namespace) -> int:
    with _extra():
        from edge_embed_export.publishing.repository import Repository
        from edge_embed_export.publishing.signing import Keys, SigningError

    now = datetime.now(UTC)
    if arguments.action == "create":
        keys = Keys.create(arguments.folder, root_keys=arguments.root_keys, now=now)
    else:
        keys = Keys(arguments.keys)
    if arguments.action == "rotate":
        oldest = next(key.id for key in keys.listed() if key.role == arguments.role)
        keys.replace({arguments.role: [oldest]}, now)
    if arguments.action == "revoke":
        keys.replace(keys.named(arguments.id), now)
    if getattr(arguments, "repository", None) is not None:
        days = arguments.days
        try:
            Repository(arguments.repository, keys).sign(None, now, snapshot_days=max(30, days), timestamp_days=days)
        except SigningError as error:
            if arguments.action == "sign":
                raise
            # To do it all again would make yet another key.
            place, repository = keys.folders[0], arguments.repository
            raise SigningError(
                f"{error}; the new root and its key lie in {place} and count, and {repository} is not signed by "
                f"them yet: edge-embed keys sign --repository {repository} --keys {place} and the other's ends it"
            ) from error
    listed = keys.listed() if arguments.action != "sign" else []
    if arguments.json:
        print(json.dumps({"keys": [{"role": key.role, "id": key.id, "here": key.here} for key in listed]}))
        return 0
    for key in listed:
        print(f"{key.role:10} {key.id[:16]}  {'here' if key.here else 'not here'}")
    if arguments.action == "create":
        print(f"boards trust {arguments.folder / '1.root.json'}; take the root and targets keys off this machine")
    if arguments.action == "sign":
        print(f"{arguments.repository} is signed for {arguments.days} days")
    return 0


def _configure_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="made if absent")
    _add_keys(parser)
    parser.add_argument("--channel", metavar="NAME", type=_name, default="stable", help="(stable)")
    parser.add_argument(
        "--percent",
        metavar="P",
        type=_percent,
        help="the share of boards that may take it: 100 at first; published again, as it was; 0 pauses",
    )
    parser.add_argument(
        "--board", metavar="NAME", type=_name, action="append", help="only for boards of this name; may be given again"
    )
    parser.add_argument("--minimum-runtime", metavar="VERSION", type=_version, help="the oldest edge-embed that may")
    parser.add_argument(
        "--halt", action="store_true", help="take it back: boards that have it go to the release before"
    )
    parser.add_argument("--new-space", metavar="REASON", default="", help="why its vectors cannot be compared")
    parser.add_argument(
        "--frozen-check",
        metavar="PROGRAM",
        help="run PROGRAM OLD NEW on the bundles of the release before and of this one; it must end with 0",
    )
    parser.add_argument(
        "--delta-from",
        metavar="BUNDLE",
        type=Path,
        action="append",
        default=[],
        help="a bundle that boards may have beside the releases of the channel: make a delta from it, too; may be "
        "given again",
    )
    _add_days(parser)


def _publish(arguments: argparse.Namespace) -> int:
    with _extra():
        from edge_embed_export.publishing.repository import Repository, RollOut
        from edge_embed_export.publishing.signing import Keys

    roll_out = RollOut(
        arguments.channel,
        arguments.percent,
        None if arguments.board is None else tuple(arguments.board),
        arguments.minimum_runtime,
        arguments.halt,
        arguments.new_space,
        arguments.frozen_check,
    )
    repository = Repository(arguments.repository, Keys(arguments.keys))
    days = arguments.days
    said: list[str] = []
    release = repository.publish(
        arguments.bundle,
        roll_out,
        datetime.now(UTC),
        delta_from=arguments.delta_from,
        progress=Progress(shown=False) if arguments.json else Progress(),
        tell=said.append,
        snapshot_days=max(30, days),
        timestamp_days=days,
    )
    if arguments.json:
        print(json.dumps(_release_json(release, arguments.channel)))
    else:
        share = "halted" if release.halted else f"{release.percent} percent"
        boards = f", boards {', '.join(release.boards)}" if release.boards else ""
        print(f"{release} in channel {arguments.channel}: {share}{boards}")
        for line in said:
            print(f"  {line}")
    return 0


def _release_json(release: Release, channel: str) -> dict[str, Any]:
    return {
        "channel": channel,
        "id": release.id,
        "name": release.name,
        "version": release.version,
        "percent": release.percent,
        "boards": list(release.boards),
        "halted": release.halted,
        "new_space": release.new_space,
        "download_bytes": sum(file.size_bytes for file in release.files),
        "deltas": [{"parent": delta.parent, "size_bytes": delta.file.size_bytes} for delta in release.deltas],
    }


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        raise MissingExtraError.of(package, "update", "publishing") from error


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, '.', '_' or '-', found {text!r}")
    return text


def _version(text: str) -> str:
    if not VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a version like 0.1.0, found {text!r}")
    return text


def _percent(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 100, found {text!r}")
    return int(text)


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 3650:
        raise argparse.ArgumentTypeError(f"expected 1 to 3650 days, found {text!r}")
    return int(text)


KEYS = Command(
    "keys",
    "keys for publishing: create, list, rotate, revoke; sign a repository anew",
    "edge-embed keys create keys",
    _configure_keys,
    _keys,
    extra="update",
    packages=_PACKAGES,
)
PUBLISH = Command(
    "publish",
    "offer a bundle to boards: signed static files for any web server or a stick",
    "edge-embed publish notes-1.1.0 --repository site --keys keys --percent 10",
    _configure_publish,
    _publish,
    extra="update",
    packages=_PACKAGES,
)
