"""``update``: a board asks its repository, and takes what is meant for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.commands import Command, printable
from edge_embed.commands.stores import DRAIN_HELP, trial_said
from edge_embed.errors import MissingExtraError, RequestError
from edge_embed.named_files import read_named
from edge_embed.probing import probe
from edge_embed.progress import Progress
from edge_embed.version import __version__

if TYPE_CHECKING:
    from edge_embed_bundle.updating.update import Outcome

MACHINE_ID = Path("/etc/machine-id")

_PACKAGES = ("tuf",)
_ROOT_CEILING_BYTES = 64 * 1024


def _configure_update(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", type=Path, help="the board's store; made if absent")
    parser.add_argument(
        "--repository", metavar="URL", required=True, help="http://, https:// or file://, or a folder, as a stick's"
    )
    parser.add_argument(
        "--root", metavar="FILE", type=Path, help="the owner's root.json, trusted where this store trusts none yet"
    )
    parser.add_argument("--channel", metavar="NAME", default="stable", help="(stable)")
    parser.add_argument("--board", metavar="NAME", default="", help="what this board is, for releases that ask")
    parser.add_argument(
        "--device-id",
        metavar="ID",
        help=f"what its share of a roll-out hangs on; it is never sent; default: {MACHINE_ID}",
    )
    parser.add_argument(
        "--new-space",
        choices=("refuse", "allow"),
        default="refuse",
        help="vectors that cannot be compared with those of now (refuse)",
    )
    parser.add_argument("--retry", action="store_true", help="try releases again that this board refused")
    parser.add_argument("--drain", action="store_true", help=DRAIN_HELP)


def _update(arguments: argparse.Namespace) -> int:
    if not UPDATE.offered:
        raise MissingExtraError.of(" and ".join(_PACKAGES), "update", "updating from a repository")
    # Imported here: tuf and cryptography are for who updates alone.
    from edge_embed.patching import Patch
    from edge_embed_bundle.updating.planning import Plan
    from edge_embed_bundle.updating.sites import open_site
    from edge_embed_bundle.updating.update import Request, Updater

    request = Request(
        arguments.channel,
        _device_id(arguments.device_id),
        __version__,
        datetime.now(UTC),
        arguments.board,
        arguments.new_space,
        arguments.retry,
        None if arguments.root is None else read_named(arguments.root, "the owner's root.json", _ROOT_CEILING_BYTES),
        arguments.drain,
    )
    shown = Progress(shown=False) if arguments.json else Progress()

    with ExitStack() as bar:

        def progress(plan: Plan) -> Callable[[int], None]:
            total = sum(file.size_bytes for file in plan.files)
            # The one before is over: what it counted led nowhere.
            bar.close()
            return bar.enter_context(shown.task(f"fetching {plan.release}", total))

        updater = Updater(arguments.store, open_site(arguments.repository), probe, patch=Patch)
        outcome = updater.update(request, progress)
    _print(outcome, as_json=arguments.json)
    return 0


def _print(outcome: Outcome, *, as_json: bool) -> None:
    release = outcome.plan.release
    if as_json:
        print(
            json.dumps(
                {
                    "outcome": outcome.kind,
                    "said": outcome.said,
                    "id": None if release is None else release.id,
                    "name": None if release is None else release.name,
                    "version": None if release is None else release.version,
                    "plan": outcome.plan.kind,
                    "fetched_bytes": outcome.fetched_bytes,
                    "passed_over": list(outcome.plan.passed_over),
                    "probe": dict(outcome.verdict.report),
                }
            )
        )
        return
    print(outcome.said)
    if "memory" in outcome.verdict.report:
        print(trial_said(outcome.verdict.report))
    for reason in outcome.plan.passed_over:
        print(f"passed over: {printable(reason)}")
    for reason in dict.fromkeys(outcome.verdict.report.get("skipped", {}).values()):
        print(f"not probed: {reason}")


def _device_id(given: str | None) -> str:
    if given is not None:
        return given
    try:
        return MACHINE_ID.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{MACHINE_ID}: expected this machine's id, found none; give --device-id") from error


UPDATE = Command(
    "update",
    "fetch, verify and try what a repository has for this board",
    "edge-embed update /var/lib/notes --repository https://updates.example/notes --root 1.root.json",
    _configure_update,
    _update,
    extra="update",
    packages=_PACKAGES,
)
