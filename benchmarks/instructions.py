"""Instructions of a lookup, a bag, a row of a batch and a row of a search on ARM cores, counted under emulation.

Instructions are no time, but they are the same within 1 % on every run and on every machine: a regression shows where a
clock on a busy machine would not. The counts that ``instructions.json`` holds are the bar; exit status 1: one has grown
by more than 5 %. Only ``--write`` moves the bar, so that small steps do not add up unseen. Wants Debian's packages (see
docs/boards.md) and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import make_bundle, make_table, today, write_section, write_word2vec
from edge_embed_devices.emulation.debian import UnavailableError, tool, unpack
from edge_embed_devices.emulation.userlands import USERLANDS, install, make
from wheels import ROOT, TARGETS, build

COUNTS = Path(__file__).with_suffix(".json")
USERLAND = USERLANDS["bookworm-arm64"]
CODECS = ("int8", "pq")
ROWS, DIMENSIONS = 10_000, 128
GROWTH = 1.05
_ROUNDS = 3
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib")


def counter(kept: Path, made: Path) -> list[str]:
    """Return the command of an emulator with a plugin that counts, and writes to ``made/counts``."""
    # Debian's static emulators take none. The dynamic one runs with the libraries of its own release.
    root = kept / "qemu"
    if not (root / "ready").exists():
        unpack(["qemu-user"], USERLAND.suite, "amd64", root)
        (root / "ready").touch()
    plugin = made / "instructions.so"
    source = Path(__file__).with_suffix(".c")
    command = [
        tool("cc", "gcc"),
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        str(source),
        "-o",
        str(plugin),
    ]
    subprocess.run(command, check=True)
    libraries = ":".join(str(root / part) for part in _LIBRARIES)
    loader = [str(root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), "--library-path", libraries]
    emulator = str(root / "usr" / "bin" / USERLAND.emulator)
    # Where memory lies decides how dictionaries collide that are hashed by it.
    return [tool("setarch", "util-linux"), "-R", *loader, emulator, "-plugin", f"{plugin},out={made / 'counts'}"]


def count(core: str, python: Path, command: list[str], made: Path) -> dict[str, float]:
    """Return the instructions of each operation on a core."""
    board = python.parent
    program = board / "usr" / "bin" / f"python{USERLAND.python}"
    emulated = [*command, "-cpu", core, "-L", str(board), "-0", str(python), str(program)]
    asked = [str(Path(__file__).with_name("counted.py")), str(made / "keys"), *(str(made / codec) for codec in CODECS)]
    environment = {"PYTHONPATH": str(made / "site"), "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*emulated, *asked], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    said = json.loads(done.stdout)
    marks = [int(line.split()[1]) for line in (made / "counts").read_text().splitlines()]
    spans = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)][_ROUNDS - 1 :: _ROUNDS]
    (_, _), *operations = said["operations"]
    return {
        name: round((span - spans[0]) / units, 1) for (name, units), span in zip(operations, spans[1:], strict=True)
    }


def regressions(found: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a sentence for each count that has grown by more than the bar."""
    return [
        f"{core}, {name}: expected at most {GROWTH:.2f} times {before[core][name]:g} instructions, found {count:g}"
        for core, counts in found.items()
        for name, count in counts.items()
        if count > GROWTH * before.get(core, {}).get(name, float("inf"))
    ]


def page(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the section of the page of results."""
    cores = list(found)
    lines = [
        f"{today()}, {ROWS:,} rows x {DIMENSIONS} dimensions, a bundle; {USERLAND.name}, Python {USERLAND.python}, the "
        "wheel for aarch64. Counted by a plugin of qemu's; the same within 1 % on every run.",
        "",
        "| instructions of one | " + " | ".join(cores) + " |",
        "|---|" + "---:|" * len(cores),
    ]
    for name in found[cores[0]]:
        lines.append(f"| {name} | " + " | ".join(f"{found[core][name]:,.0f}" for core in cores) + " |")
    return "\n".join(lines)


def measure(kept: Path, made: Path) -> dict[str, dict[str, float]]:
    """Return the counts by core and operation."""
    table = make_table(ROWS, DIMENSIONS)
    write_word2vec(table, made / "table.bin")
    (made / "keys").write_text("\n".join(table.keys), encoding="utf-8")
    for codec in CODECS:
        make_bundle(made / "table.bin", made / codec, codec)
    (target,) = (target for target in TARGETS if target.machine == USERLAND.machine)
    install(build(target, made, kept), made / "site", USERLAND)
    command = counter(kept, made)
    return {core: count(core, python, command, made) for core, python in make(USERLAND, kept).items()}


def main() -> int:
    """Count, compare with the bar, and move it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write instructions.json and RESULTS.md, grown or not")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-") as folder:
        try:
            found = measure(ROOT / ".venv" / "boards", Path(folder))
        except UnavailableError as error:
            print(f"not counted: {error}", file=sys.stderr)
            return 2
    before: dict[str, Any] = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    grown = regressions(found, before)
    print(page(found))
    for sentence in grown:
        print(sentence, file=sys.stderr)
    if arguments.write:
        COUNTS.write_text(json.dumps(found, indent=2) + "\n")
        write_section("Instructions on ARM", page(found))
    return 1 if grown and not arguments.write else 0


if __name__ == "__main__":
    sys.exit(main())
