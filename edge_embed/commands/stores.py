"""``install``, ``status`` and ``rollback``: what a board's operator does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edge_embed.commands import Command, printable
from edge_embed.probing import probe
from edge_embed.progress import Progress
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import StateError
from edge_embed_bundle.state import State
from edge_embed_bundle.store import Store
from edge_embed_bundle.updating.records import Records, format_time


def _configure_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--store", metavar="STORE", type=Path, required=True, help="the board's store; made if absent")
    parser.add_argument("--retry", action="store_true", help="try a bundle again that this board refused")


def _install(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    with Bundle.open(arguments.bundle) as bundle:
        identity, manifest = bundle.id, bundle.manifest
    progress = Progress(shown=False) if arguments.json else Progress()
    # The source is read, missing blobs are copied, and what stands in the store is read again.
    with progress.task(f"installing {manifest.name} {manifest.version}", 3 * manifest.size_bytes) as advance:
        verdict = store.install(arguments.bundle, probe, retry=arguments.retry, progress=advance)
    if arguments.json:
        print(
            json.dumps(
                {
                    "id": identity,
                    "name": manifest.name,
                    "version": manifest.version,
                    "installed": not verdict.reason,
                    "reason": verdict.reason,
                    "probe": dict(verdict.report),
                }
            )
        )
    else:
        print(f"{manifest.name} {manifest.version} ({identity[:12]}) {verdict.reason or 'probed, confirmed, serves'}")
        # Two operations may lack the same package.
        for reason in dict.fromkeys(verdict.report.get("skipped", {}).values()):
            print(f"not probed: {reason}")
    return 0


def _configure_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", type=Path)


def _status(arguments: argparse.Namespace) -> int:
    status = Store(arguments.store).status()
    damaged = any(generation.problem for generation in status.generations)
    records, trusted, distrust = Records(arguments.store), None, ""
    last = records.last()
    try:
        trusted = records.trusted()
    except StateError as error:
        distrust, damaged = str(error), True
    if arguments.json:
        generations = [
            {"role": g.role, "id": g.id, "name": g.name, "version": g.version, "problem": g.problem}
            for g in status.generations
        ]
        updates = {
            "floor": None if trusted is None else format_time(trusted.floor),
            "problem": distrust,
            "last": None if last is None else last.to_json(),
        }
        print(json.dumps({**_state_json(status.state), "generations": generations, "updates": updates}))
        return 1 if damaged else 0
    if not status.generations:
        print("nothing is installed")
    for generation in status.generations:
        said = generation.problem or f"{generation.name} {generation.version}"
        print(f"{generation.role:9} {generation.id[:12]}  {said}")
    if status.state.trial is not None:
        print(f"the trial has {status.state.tries_left} tries left; the next install settles it")
    for refused in status.state.refused:
        print(f"refused   {refused[:12]}")
    if last is not None:
        print(f"update    {last.outcome} at {last.at}: {printable(last.said)}")
        print(f"          channel {last.channel} of {last.repository}")
        for reason in last.passed_over:
            print(f"          passed over: {printable(reason)}")
    if distrust:
        print(f"trust     {printable(distrust)}")
    if trusted is not None:
        print(f"trust     its repository was signed at {format_time(trusted.floor)} or later")
    return 1 if damaged else 0


def _rollback(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    state = store.rollback()
    with Bundle.open(store.active()) as bundle:
        name, version = bundle.manifest.name, bundle.manifest.version
    if arguments.json:
        print(json.dumps({**_state_json(state), "name": name, "version": version}))
    else:
        print(f"{name} {version} ({str(state.active)[:12]}) serves again")
    return 0


def _state_json(state: State) -> dict[str, object]:
    return {
        "sequence": state.sequence,
        "active": state.active,
        "previous": state.previous,
        "trial": state.trial,
        "tries_left": state.tries_left,
        "refused": list(state.refused),
    }


INSTALL = Command(
    "install",
    "swap a bundle into a store: verify, probe, confirm or roll back",
    "edge-embed install notes-1.1.0 --store /var/lib/notes",
    _configure_install,
    _install,
)
STATUS = Command("status", "what a store serves", "edge-embed status /var/lib/notes", _configure_store, _status)
ROLLBACK = Command(
    "rollback", "let the previous bundle serve again", "edge-embed rollback /var/lib/notes", _configure_store, _rollback
)
