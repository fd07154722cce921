"""``install``, ``status``, ``rollback`` and ``scrub``: what a board's operator does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_embed.commands import Command, printable
from edge_embed.errors import RequestError
from edge_embed.memory import format_size, parse_size
from edge_embed.probing import probe
from edge_embed.progress import Progress
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import StateError
from edge_embed_bundle.scrub import DEFAULT_RATE_BYTES, Scrub, Scrubbed
from edge_embed_bundle.state import State
from edge_embed_bundle.store import Rotten, Status, Store
from edge_embed_bundle.updating.records import Last, Records, format_time

_SHOWN_FRAMES = 8

DRAIN_HELP = "where the trial lacks memory beside what serves, let that one's calls wait for the trial's end"


def _configure_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--store", metavar="STORE", type=Path, required=True, help="the board's store; made if absent")
    parser.add_argument("--retry", action="store_true", help="try a bundle again that this board refused")
    parser.add_argument("--drain", action="store_true", help=DRAIN_HELP)


def _install(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    with Bundle.open(arguments.bundle) as bundle:
        identity, manifest = bundle.id, bundle.manifest
    progress = Progress(shown=False) if arguments.json else Progress()
    # The source is read, missing blobs are copied, and what stands in the store is read again.
    with progress.task(f"installing {manifest.name} {manifest.version}", 3 * manifest.size_bytes) as advance:
        verdict = store.install(arguments.bundle, probe, retry=arguments.retry, drain=arguments.drain, progress=advance)
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
        if "memory" in verdict.report:
            print(trial_said(verdict.report))
        # Two operations may lack the same package.
        for reason in dict.fromkeys(verdict.report.get("skipped", {}).values()):
            print(f"not probed: {reason}")
    return 0


def trial_said(report: Mapping[str, Any]) -> str:
    """Return what the process that tried a bundle took."""
    return f"its trial took {format_size(report['memory']['private_bytes'])} of private memory"


def _configure_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", type=Path)


def _status(arguments: argparse.Namespace) -> int:
    status = Store(arguments.store).status()
    damaged = any(generation.problem or generation.rotten for generation in status.generations)
    records, trusted, distrust = Records(arguments.store), None, ""
    last = records.last()
    since = "" if last is None else _since(last, status)
    try:
        trusted = records.trusted()
    except StateError as error:
        distrust, damaged = str(error), True
    if arguments.json:
        generations = [
            {
                "role": g.role,
                "id": g.id,
                "name": g.name,
                "version": g.version,
                "problem": g.problem,
                "rotten": [_rotten_json(each) for each in g.rotten],
            }
            for g in status.generations
        ]
        updates = {
            "floor": None if trusted is None else format_time(trusted.floor),
            "problem": distrust,
            "last": None if last is None else last.to_json(),
            "since": since,
        }
        print(json.dumps({**_state_json(status.state), "generations": generations, "updates": updates}))
        return 1 if damaged else 0
    if not status.generations:
        print("nothing is installed")
    for generation in status.generations:
        said = generation.problem or f"{generation.name} {generation.version}"
        print(f"{generation.role:9} {generation.id[:12]}  {said}")
        for rotten in generation.rotten:
            print(f"          rotten: {_rotten_said(rotten)}")
    if status.state.trial is not None:
        print(f"the trial has {status.state.tries_left} tries left; the next install settles it")
    for refused in status.state.refused:
        print(f"refused   {refused[:12]}")
    if last is not None:
        print(f"update    {last.outcome} at {last.at}: {printable(last.said)}")
        if since:
            print(f"          {since}")
        print(f"          channel {last.channel} of {last.repository}")
        for reason in last.passed_over:
            print(f"          passed over: {printable(reason)}")
    if distrust:
        print(f"trust     {printable(distrust)}")
    if trusted is not None:
        print(f"trust     its repository was signed at {format_time(trusted.floor)} or later")
    return 1 if damaged else 0


def _since(last: Last, status: Status) -> str:
    """Return what serves instead of the release that the last update left serving, and why; nothing if that serves."""
    state, active = status.state, next((each for each in status.generations if each.role == "active"), None)
    if active is None or not last.release or last.release.endswith(f"({active.id[:12]})"):
        return ""
    serves = f"since then {active.name} {active.version} ({active.id[:12]}) serves"
    left = state.previous
    if left not in state.refused or not last.release.endswith(f"({left[:12]})"):
        return serves
    return f"{serves}: the other one rotted" if left in state.rotten else f"{serves}: its operator went back"


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


def _configure_scrub(parser: argparse.ArgumentParser) -> None:
    _configure_store(parser)
    parser.add_argument(
        "--rate",
        metavar="SIZE",
        default=DEFAULT_RATE_BYTES,
        type=parse_size,
        help=f"bytes to read in a second, at most ({format_size(DEFAULT_RATE_BYTES)})",
    )
    parser.add_argument(
        "--repository", metavar="URL", help="fetch what rotted from here, as update does: only the frames that did"
    )


def _scrub(arguments: argparse.Namespace) -> int:
    if arguments.rate < 1:
        raise RequestError(f"--rate: expected at least a byte a second, found {arguments.rate}")
    store = Store(arguments.store)
    progress = Progress(shown=False) if arguments.json else Progress()
    with progress.task("scrubbing", _stored_bytes(store)) as advance:
        scrub = Scrub(store, rate_bytes=arguments.rate, progress=advance)
        found = scrub.run()
    if arguments.repository is not None and found.rotten:
        found = _mended(store, scrub, arguments.repository, progress)
    if arguments.json:
        rotten = [_rotten_json(each) for each in found.rotten]
        said = {"read_bytes": found.read_bytes, "rotten": rotten, "quarantined": list(found.quarantined)}
        said["mended"] = [each.sha256 for each in found.mended]
        print(json.dumps({**said, "problems": list(found.problems), **_state_json(store.state())}))
    else:
        for each in found.rotten:
            print(f"rotten: {_rotten_said(each)}")
        for generation in found.quarantined:
            again = "" if generation in store.state().refused else "; it is whole again"
            print(f"quarantined {generation[:12]}; {str(store.state().active)[:12]} serves{again}")
        for problem in found.problems:
            print(printable(problem))
        mended = f", {len(found.mended)} mended" if arguments.repository is not None else ""
        print(f"{format_size(found.read_bytes)} read, {len(found.rotten)} blobs rotten{mended}")
    return 0 if found.is_whole else 1


def _mended(store: Store, scrub: Scrub, repository: str, progress: Progress) -> Scrubbed:
    # Imported here: who only looks at a store does not wait for a web client.
    from edge_embed_bundle.updating.mending import mend
    from edge_embed_bundle.updating.sites import open_site

    site = open_site(repository)
    total = sum(size_bytes for each in scrub.found().rotten for _, size_bytes in each.ranges)
    with progress.task("fetching what rotted", total) as advance:
        return scrub.mend(lambda rotten: mend(store, rotten, site, progress=advance))


def _stored_bytes(store: Store) -> int:
    blobs = store.path / "blobs"
    return sum(blob.stat().st_size for blob in blobs.iterdir()) if blobs.is_dir() else 0


def _rotten_said(rotten: Rotten) -> str:
    frames = ", ".join(map(str, rotten.frames[:_SHOWN_FRAMES])) + (
        ", ..." if len(rotten.frames) > _SHOWN_FRAMES else ""
    )
    size = format_size(sum(size_bytes for _, size_bytes in rotten.ranges))
    return f"{rotten.name} ({rotten.sha256[:12]}): frames {frames}, {size} to fetch again"


def _rotten_json(rotten: Rotten) -> dict[str, object]:
    ranges = [{"offset_bytes": offset, "size_bytes": size} for offset, size in rotten.ranges]
    return {"name": rotten.name, "sha256": rotten.sha256, "frames": list(rotten.frames), "ranges": ranges}


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
SCRUB = Command(
    "scrub",
    "read a store again, slowly; put away what rotted, or mend it",
    "edge-embed scrub /var/lib/notes --rate 4MiB --repository https://updates.example/notes",
    _configure_scrub,
    _scrub,
)
ROLLBACK = Command(
    "rollback", "let the previous bundle serve again", "edge-embed rollback /var/lib/notes", _configure_store, _rollback
)
