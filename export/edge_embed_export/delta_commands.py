"""``delta make`` and ``delta apply``: one bundle as its differences from another, and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edge_embed.commands import Command
from edge_embed.memory import format_size
from edge_embed.patching import Patch, apply_delta
from edge_embed.progress import Progress
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.delta import DeltaFile
from edge_embed_bundle.errors import DeltaError
from edge_embed_bundle.slots import is_store
from edge_embed_bundle.store import Store
from edge_embed_export.deltas import make_delta

_SHOWN_PARTS = 6


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="make|apply", required=True)
    make = actions.add_parser("make", help="write the delta that leads from OLD to NEW")
    make.add_argument(
        "old", metavar="OLD", type=Path, help="the bundle, or the store whose bundle serves, to start from"
    )
    make.add_argument("new", metavar="NEW", type=Path, help="the bundle to arrive at")
    make.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the delta to write")
    apply = actions.add_parser("apply", help="write the bundle that a delta makes of OLD")
    apply.add_argument(
        "old", metavar="OLD", type=Path, help="the bundle, or the store whose bundle serves, to start from"
    )
    apply.add_argument("delta", metavar="FILE", type=Path, help="a delta that starts from it")
    apply.add_argument("-o", "--output", metavar="NEW", type=Path, required=True, help="the folder to write")
    apply.add_argument("--force", action="store_true", help="replace the bundle at the output")
    for action in (make, apply):
        # Behind the action as before it.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    progress = Progress(shown=False) if arguments.json else Progress()
    return (_make if arguments.action == "make" else _apply)(arguments, progress)


def _make(arguments: argparse.Namespace, progress: Progress) -> int:
    with _opened(arguments.old) as old, _opened(arguments.new) as new:
        with progress.task("verifying", old.manifest.size_bytes + new.manifest.size_bytes) as advance:
            old.verify(advance)
            new.verify(advance)
        report = make_delta(old, new, arguments.output, progress)
        versions = f"{old.manifest.name} {old.manifest.version} -> {new.manifest.version}"
        said = {"path": str(arguments.output), "parent": old.id, "id": new.id}
    if arguments.json:
        figures = {"size_bytes": report.size_bytes, "full_bytes": report.full_bytes, "parts": dict(report.parts)}
        print(json.dumps({**said, **figures}))
        return 0
    size, full = format_size(report.size_bytes), format_size(report.full_bytes)
    print(f"{arguments.output}: {versions}, {size} where the whole bundle has {full}")
    for name, size_bytes in sorted(report.parts.items(), key=lambda part: -part[1])[:_SHOWN_PARTS]:
        print(f"  {format_size(size_bytes):>10}  {name}")
    return 0


def _apply(arguments: argparse.Namespace, progress: Progress) -> int:
    try:
        file = arguments.delta.open("rb")
    except OSError as error:
        raise DeltaError(f"{arguments.delta}: expected a delta, found: {error.strerror}") from error
    with file, _opened(arguments.old) as old:
        patch = Patch(old, DeltaFile(file.fileno(), source=str(arguments.delta)))
        manifest = patch.manifest
        with progress.task(f"making {manifest.name} {manifest.version}", manifest.size_bytes) as advance:
            apply_delta(patch, arguments.output, replace=arguments.force, progress=advance)
    if arguments.json:
        names = {"name": manifest.name, "version": manifest.version, "size_bytes": manifest.size_bytes}
        print(json.dumps({"path": str(arguments.output), "id": patch.id, **names}))
    else:
        print(f"{arguments.output}: {manifest.name} {manifest.version}, {format_size(manifest.size_bytes)} on flash")
    return 0


def _opened(path: Path) -> Bundle:
    return Bundle.open(Store(path).active() if is_store(path) else path)


DELTA = Command(
    "delta",
    "one bundle as its differences from another, and back",
    "edge-embed delta make words-1.0.0 words-1.1.0 -o words.delta\n"
    "  edge-embed delta apply words-1.0.0 words.delta -o words-1.1.0",
    _configure,
    _run,
)
