"""What a bundle must show before a board is offered it; each gate is a rule whose no names what is missing.

* It is whole, it asks golden questions of every model, and its answers are right here.
* It declares budgets for what it answers.
* Its vectors may be compared with those of the release before; where they may not, its publisher says why.
* A consumer that was fitted on the old vectors may be asked about the new ones: a program whose exit status counts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from edge_embed.errors import EdgeEmbedError
from edge_embed.golden import check_asked
from edge_embed.probing import report
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import Manifest
from edge_embed_bundle.updating.releases import changed_spaces

CHECK_TIMEOUT_SECONDS = 3600


class GateError(EdgeEmbedError):
    """The bundle is not fit to be published."""

    exit_status = 1


def check_bundle(path: Path) -> None:
    """See that a bundle is whole, asks golden questions, answers them rightly here, and declares budgets."""
    with Bundle.open(path) as bundle:
        bundle.verify()
        check_asked(bundle.manifest)
        check_budgets(bundle.manifest)
    found = report(path)
    misses = [found["error"]] if "error" in found else []
    misses += [outcome["text"] for outcome in found.get("golden", ()) if not outcome["passed"]]
    if misses:
        raise GateError(f"{path}: expected right golden answers, found: {'; '.join(misses)}")


def check_budgets(manifest: Manifest) -> None:
    """See that memory and latency are promised for every operation that is asked about."""
    asked = {golden.operation for golden in manifest.golden}
    missing = sorted(asked - set(manifest.budgets.operations))
    if missing or not manifest.budgets.memory_private_bytes:
        raise GateError(
            f"{manifest.name} {manifest.version}: expected budgets for memory and {', '.join(sorted(asked))}, "
            f"found none for {', '.join(missing) or 'memory'}; export declares them"
        )


def check_space(old: Mapping[str, str], new: Mapping[str, str], reason: str) -> str:
    """Return the reason why vectors of the new release cannot be compared with the old one's; nothing if they can."""
    changed = changed_spaces(old, new)
    if changed and not reason:
        raise GateError(
            f"expected the space of the release before for {', '.join(changed)}, found another one; boards refuse it "
            "unless their owners allow it: say why with --new-space, or export with --parent"
        )
    return reason if changed else ""


def check_frozen(program: str, old: Path | None, new: Path) -> None:
    """Run a consumer of the old vectors on the new ones: PROGRAM OLD NEW, two bundle folders; 0 says they still do."""
    if old is None:
        raise GateError(f"--frozen-check {program}: expected a release before this one to compare with, found none")
    try:
        done = subprocess.run(
            [program, str(old), str(new)], capture_output=True, text=True, timeout=CHECK_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GateError(f"--frozen-check {program}: expected it to run, found: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["nothing"]
        raise GateError(f"--frozen-check {program}: expected exit status 0, found {done.returncode}: {said[0][:300]}")
