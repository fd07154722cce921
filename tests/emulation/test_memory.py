"""What a board's runtime holds while it waits: the pages of its own, apart from those of the bundle and the emulator's.

A 32-bit process is emulated in one stretch of its emulator's memory, 4 GiB from its address 0: what the kernel counts
there is the process', and what the translator holds lies elsewhere.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_embed.memory import format_size
from tests.emulation.conftest import Board
from tests.making import make_unmeasured_bundle, small_source

ROWS, DIMENSIONS = 100_000, 256
MIB = 2**20
MOST_BYTES = 40 * MIB

SERVES = """
import sys, edge_embed
with edge_embed.open(sys.argv[1], verify=False) as runtime:
    runtime.lookup([f"key{i}" for i in range(0, 100_000, 100)])
    (place,) = {line.split("-")[0] for line in open("/proc/self/maps") if line.rstrip().endswith("table.bin")}
    print(place, flush=True)
    sys.stdin.read()
"""


def test_a_runtime_of_a_hundred_megabytes_holds_less_than_forty_of_its_own(
    boards: Callable[..., Board], tmp_path: Path
) -> None:
    board = boards("bookworm-armhf", "cortex-a7")
    source = small_source(dimensions=DIMENSIONS, keys=tuple(f"key{i}" for i in range(ROWS)))
    bundle = make_unmeasured_bundle(tmp_path / "bundle", source, codec="float32", graphs=())
    size = sum(blob.stat().st_size for blob in bundle.iterdir())
    assert size > 100e6
    command, environment = board.command("-P", "-c", SERVES, str(bundle))
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        place = int(serving.stdout.readline(), 16)
        own, mapped = _resident(serving.pid, place)
        serving.communicate(timeout=60)
    print(f"own {format_size(own)}, mapped {format_size(mapped)} of {format_size(size)}")
    assert 4 * MIB < own < MOST_BYTES, format_size(own)
    assert mapped > 4 * MIB


def _resident(process: int, place: int) -> tuple[int, int]:
    """Return the bytes of a 32-bit process' own pages and of files', by where it sees the bundle's table."""
    found = []
    for region in re.split(r"^(?=[0-9a-f]+-)", Path(f"/proc/{process}/smaps").read_text(), flags=re.MULTILINE)[1:]:
        sizes = {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB", region, re.MULTILINE)}
        start = int(region.split("-")[0], 16)
        found.append((start, region.splitlines()[0], sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]))
    base = next(start for start, title, *_ in found if title.endswith("table.bin")) - place
    inside = [(own, mapped) for start, _, own, mapped in found if base <= start < base + 2**32]
    return sum(own for own, _ in inside), sum(mapped for _, mapped in inside)
