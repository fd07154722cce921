"""What the scripts share: one synthetic table, the bundle made of it, the machine, and the page of results.

* The table depends on nothing but its shape and ``SEED``: two runs, or two machines, measure the same bytes.
* Keys look like words (syllables, joined phrases, some letters beyond ASCII) and frequent ones are short; rows stand
  in the order of frequency, as trainers write them.
* Queries follow Zipf's law: the key of rank r is asked for with a probability proportional to 1/r.
* Every process that is measured finds its modules compiled, whatever the environment says about writing bytecode: pip
  compiles what it installs, an editable install leaves that to the first run, and compiling is not what is compared.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.probing import probe
from edge_embed_bundle.manifest import LatencyBudget
from edge_embed_bundle.store import Store
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source

SEED = 20_240_229
RESULTS = Path(__file__).with_name("RESULTS.md")

_COPY_BYTES = 256 * 2**20
_COPY_ROUNDS = 9
_ONSETS = [*"bcdfghjklmnprstvwzßł", "ch", "ph", "pr", "qu", "sh", "st", "th", "tr"]
_VOWELS = [*"aeiouéöü", "ai", "ea", "ee", "ou"]
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "nd", "ng", "st"]
_SYLLABLES = ((1, 2, 3, 4, 5), (0.10, 0.35, 0.33, 0.16, 0.06))
_PHRASE_SHARE = 0.08

# A busy machine must not refuse the bundle that it is about to measure.
_PATIENT = LatencyBudget(1e7, 1e7)


@dataclass(frozen=True, eq=False)
class SyntheticTable:
    """Keys, most frequent first, and their vectors ``(n, d)`` float32."""

    keys: tuple[str, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    cpu: str
    cores: int
    python: str
    numpy: str
    copy_bytes_per_s: float
    read_bytes_per_s: float

    def __str__(self) -> str:
        """Return the line that stands beside every table of figures."""
        return (
            f"{self.cpu}, {self.cores} cores; Python {self.python}, numpy {self.numpy}; "
            f"numpy copies {self.copy_bytes_per_s / 1e9:.1f} GB/s, reads {self.read_bytes_per_s / 1e9:.1f}"
        )


def make_table(rows: int, dimensions: int) -> SyntheticTable:
    """Return the table of this shape; the same one every time."""
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((rows, dimensions), np.float32)
    vectors *= rng.uniform(0.5, 2.0, (rows, 1)).astype(np.float32)
    return SyntheticTable(_make_keys(rows, rng), vectors)


def _make_keys(rows: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Return different keys, short ones first more often than not (Zipf's law of abbreviation)."""
    found: dict[str, None] = {}
    while len(found) < rows:
        words = _words(rows, rng)
        phrases = rng.random(rows) < _PHRASE_SHARE
        pairs = zip(words, words[1:] + words[:1], phrases.tolist(), strict=True)
        found.update(dict.fromkeys(f"{first}_{second}" if joined else first for first, second, joined in pairs))
    keys = list(found)[:rows]
    noisy_lengths = np.array([len(key) for key in keys]) + rng.normal(0, 3, rows)
    return tuple(keys[i] for i in np.argsort(noisy_lengths, kind="stable").tolist())


def _words(count: int, rng: np.random.Generator) -> list[str]:
    sizes = rng.choice(_SYLLABLES[0], count, p=_SYLLABLES[1])
    total = int(sizes.sum())
    parts = [rng.integers(0, len(letters), total).tolist() for letters in (_ONSETS, _VOWELS, _CODAS)]
    syllables = [_ONSETS[a] + _VOWELS[b] + _CODAS[c] for a, b, c in zip(*parts, strict=True)]
    ends = np.cumsum(sizes).tolist()
    return ["".join(syllables[end - size : end]) for end, size in zip(ends, sizes.tolist(), strict=True)]


def make_queries(keys: Sequence[str], count: int) -> list[str]:
    """Return ``count`` keys, drawn by Zipf's law over the order of ``keys``; the same ones every time."""
    rng = np.random.default_rng(SEED + 1)
    mass = np.cumsum(1 / np.arange(1, len(keys) + 1))
    ranks = np.searchsorted(mass, rng.random(count) * mass[-1], side="right")
    return [keys[rank] for rank in ranks.tolist()]


def write_word2vec(table: SyntheticTable, path: Path) -> None:
    """Write the table in word2vec's binary format."""
    rows, dimensions = table.vectors.shape
    little = table.vectors.astype("<f4")
    with path.open("wb") as file:
        file.write(f"{rows} {dimensions}\n".encode())
        for key, vector in zip(table.keys, little, strict=True):
            file.write(key.encode() + b" " + vector.tobytes() + b"\n")


def make_bundle(word2vec: Path, target: Path, codec: str = "int8") -> None:
    """Export a word2vec file as ``edge-embed export`` does: int8 by default, with both lookup graphs."""
    patient = dict.fromkeys(("lookup", "encode", "search"), _PATIENT)
    export(read_source(word2vec), Options(target, name="benchmark", codec=codec, latency_budgets=patient))


def install(bundle: Path, store: Path) -> None:
    """Install a bundle into a new store: verified, probed and confirmed, as on a board."""
    Store(store).install(bundle, probe)


@contextlib.contextmanager
def workplace_at(kept: Path | None) -> Iterator[Path]:
    """Give a folder for large files: one that is made and removed, or one that is kept, with what was made there."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="edge-embed-benchmark-", dir="/var/tmp") as folder:
        yield Path(folder)


def keep_bytecode(folder: Path) -> None:
    """Let the processes started from now on keep the bytecode of all their modules in ``folder``."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def wall_ms(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Return the time of a whole process, from before its start until it has ended well, in milliseconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - start) * 1000


def this_machine() -> Machine:
    """Return the machine, with its copy bandwidth measured now."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        numpy=np.__version__,
        copy_bytes_per_s=_copy_bytes_per_s(),
        read_bytes_per_s=_read_bytes_per_s(),
    )


def _cpu_model() -> str:
    # ARM kernels name no model; the architecture is what they leave us.
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _copy_bytes_per_s() -> float:
    """Return the bytes that numpy copies in a second, one thread, from and to memory larger than any cache."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(_COPY_ROUNDS):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return _COPY_BYTES / statistics.median(seconds)


def _read_bytes_per_s() -> float:
    """Return the bytes that numpy reads in a second, one thread, from memory larger than any cache."""
    words = np.ones(_COPY_BYTES // 8, np.uint64)
    seconds = []
    for _ in range(_COPY_ROUNDS):
        start = time.perf_counter()
        np.bitwise_or.reduce(words)
        seconds.append(time.perf_counter() - start)
    return _COPY_BYTES / statistics.median(seconds)


def today() -> str:
    """Return the date for the page of results."""
    return datetime.now(UTC).date().isoformat()


def write_section(title: str, body: str, path: Path = RESULTS) -> None:
    """Write the section ``title`` of the page of results, in place of the one that was there."""
    page = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    new = f"## {title}\n\n{body.strip()}\n"
    places = [i for i, section in enumerate(sections) if section.startswith(f"## {title}\n")]
    if places:
        sections[places[0]] = new
    else:
        sections.append(new)
    path.write_text("\n".join(section.rstrip() + "\n" for section in sections), encoding="utf-8")
