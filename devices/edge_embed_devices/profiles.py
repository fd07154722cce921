"""Board profiles: one TOML file a board, units in the key names, each figure with its source.

* One gate reads them, whoever wrote them: ``FIGURES`` says what a figure is called, in which unit, between which
  bounds. What passed it is trusted.
* A figure without a source is refused; one that nobody published is left out, and is None here.
* ``like`` names a known board whose fields hold unless the file has its own.
* A user's profiles: a path to a ``.toml`` file stands wherever a name does; those in the folder that the environment
  variable ``EDGE_EMBED_BOARDS`` names are known by their names, before ours.
"""

from __future__ import annotations

import math
import os
import platform
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_embed.errors import RequestError
from edge_embed.memory import allowed_bytes
from edge_embed.named_files import read_named
from edge_embed_bundle.values import NAME

THIS_MACHINE = "this-machine"
USER_FOLDER = "EDGE_EMBED_BOARDS"

ISA = ("neon", "dotprod", "fp16", "i8mm", "sve")
#: The formats and variants of graphs for which a profile may say how fast their engine is.
ENGINE_KINDS = (("onnx", "float32"), ("onnx", "int8"), ("tflite", "float32"), ("tflite", "int8"))
_CEILING_BYTES = 64 * 1024


class Figure(NamedTuple):
    """A number of a profile: the attribute that holds it in base units, its bounds in the file's, what one is worth."""

    attribute: str
    least: float
    most: float
    unit: float = 1
    whole: bool = False
    required: bool = False


FIGURES = {
    "cores": Figure("cores", 1, 1024, whole=True, required=True),
    "core_mhz": Figure("core_hz", 10, 20_000, 1e6),
    "ram_mib": Figure("ram_bytes", 16, 2**26, 2**20, whole=True, required=True),
    "page_size_bytes": Figure("page_size_bytes", 4096, 65_536, whole=True, required=True),
    "memory_copy_gb_per_s": Figure("memory_copy_bytes_per_s", 0.01, 10_000, 1e9, required=True),
    "memory_read_gb_per_s": Figure("memory_read_bytes_per_s", 0.01, 10_000, 1e9),
    "memory_random_read_ns": Figure("memory_random_read_ns", 1, 100_000),
    "flash_random_reads_per_s": Figure("flash_random_reads_per_s", 1, 1e8),
    "flash_sequential_read_mb_per_s": Figure("flash_read_bytes_per_s", 0.1, 1e6, 1e6),
    "page_fault_us": Figure("page_fault_us", 0.001, 10_000),
    "python_call_ns": Figure("python_call_ns", 1, 1e6),
    "scan_row_ns": Figure("scan_row_ns", 0.01, 1e6),
    "scan_gb_per_s": Figure("scan_bytes_per_s", 0.001, 10_000, 1e9),
    "memory_random_read_of_1_mib_ns": Figure("memory_random_read_1_mib_ns", 0.01, 100_000),
    **{
        f"{key}_of_{mib}_mib_{unit}": figure
        for mib in (4, 64)
        for key, unit, figure in (
            ("scan", "gb_per_s", Figure(f"scan_{mib}_mib_bytes_per_s", 0.001, 10_000, 1e9)),
            ("memory_random_read", "ns", Figure(f"memory_random_read_{mib}_mib_ns", 0.01, 100_000)),
        )
    },
    **{
        f"{format}_{variant}_{what}_g_per_s": Figure(f"{format}_{variant}_{what}_per_s", 0.001, 1e6, 1e9)
        for format, variant in ENGINE_KINDS
        for what in ("products", "weights")
    },
}
_TEXTS = ("title", "architecture", "os", "python", "date")
_KNOWN = {"like", "isa", "sources", *_TEXTS, *FIGURES}


@dataclass(frozen=True)
class Board:
    """A device profile, in base units; None where nobody published a figure, or measured it.

    Bandwidths are one core's: of copying, the bytes that are copied; of reading, those that are read; of scanning, the
    codes that the kernels on hand compare with a query.
    """

    name: str
    title: str
    architecture: str
    cores: int
    isa: tuple[str, ...]
    ram_bytes: int
    page_size_bytes: int
    memory_copy_bytes_per_s: float
    memory_read_bytes_per_s: float | None = None
    #: A read that depends on the one before it, in memory far larger than the caches.
    memory_random_read_ns: float | None = None
    #: Of 4 KiB, one after the other.
    flash_random_reads_per_s: float | None = None
    flash_read_bytes_per_s: float | None = None
    #: First touch of a mapped page that is in memory already.
    page_fault_us: float | None = None
    #: A call of an empty function of Python.
    python_call_ns: float | None = None
    #: A row of 16 numbers in a scan that the caches hold: what a row costs, whatever its length.
    scan_row_ns: float | None = None
    scan_bytes_per_s: float | None = None
    #: In less memory, which caches hold more or less of.
    scan_4_mib_bytes_per_s: float | None = None
    scan_64_mib_bytes_per_s: float | None = None
    memory_random_read_1_mib_ns: float | None = None
    memory_random_read_4_mib_ns: float | None = None
    memory_random_read_64_mib_ns: float | None = None
    #: Of the fastest core.
    core_hz: float | None = None
    #: What an engine multiplies and adds in a transformer, on one core; and the weights that it goes through for each
    #: text, however short.
    onnx_float32_products_per_s: float | None = None
    onnx_float32_weights_per_s: float | None = None
    onnx_int8_products_per_s: float | None = None
    onnx_int8_weights_per_s: float | None = None
    tflite_float32_products_per_s: float | None = None
    tflite_float32_weights_per_s: float | None = None
    tflite_int8_products_per_s: float | None = None
    tflite_int8_weights_per_s: float | None = None
    os: str | None = None
    python: str | None = None
    #: When it was measured, if it was.
    date: str | None = None
    #: Where each figure comes from, by its name in the file.
    sources: Mapping[str, str] = field(default_factory=dict)


def board_names() -> tuple[str, ...]:
    """Return the names of all boards that are known, and of the machine that this runs on."""
    return (*sorted(_files().keys() - {THIS_MACHINE}), THIS_MACHINE)


def board_named(name: str) -> Board:
    """Return a board's profile, by its name or by the path of a file.

    Raises:
        RequestError: no board has that name, or its profile breaks a rule.
    """
    files = _files()
    if name in files:
        return read_profile(files[name])
    if name == THIS_MACHINE:
        return this_machine()
    if name.endswith(".toml"):
        return read_profile(Path(name))
    raise RequestError(f"expected a board of {', '.join(board_names())}, found {name!r}")


def read_profile(path: Path) -> Board:
    """Return the board that a file describes.

    Raises:
        RequestError: the file breaks a rule; the message names it, the key, what was expected and what was found.
    """
    fields = _fields(path)
    if "like" in fields:
        like, known = fields["like"], _known_files()
        if not isinstance(like, str) or like not in known:
            raise RequestError(f"{path}: like: expected a board of {', '.join(sorted(known))}, found {like!r}")
        below = _fields(known[like])
        if "like" in below:
            raise RequestError(f"{path}: like: expected a board that is like no other, found {like!r}")
        # A figure of the file's own has a source of its own.
        inherited = {key: source for key, source in below["sources"].items() if key not in fields}
        fields = {**below, **fields, "sources": {**inherited, **fields["sources"]}}
    return _checked(path, fields)


def _known_files() -> dict[str, Path]:
    folder = Path(str(resources.files("edge_embed_devices"))) / "boards"
    return {path.stem: path for path in folder.glob("*.toml")}


def _files() -> dict[str, Path]:
    folder = os.environ.get(USER_FOLDER)
    if not folder:
        return _known_files()
    if not Path(folder).is_dir():
        raise RequestError(f"{USER_FOLDER}: expected a folder of boards' profiles, found {folder}")
    return {**_known_files(), **{path.stem: path for path in Path(folder).glob("*.toml")}}


def _fields(path: Path) -> dict[str, Any]:
    """Return what stands in a file: its keys are known, its sources are texts."""
    data = read_named(path, "a board's profile", _CEILING_BYTES)
    try:
        fields = tomllib.loads(data.decode("utf-8"))
        # What Python cannot show, a number of thousands of hexadecimal digits, no error could tell of.
        repr(fields)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected a board's profile in TOML, found: {error}") from error
    for key in fields.keys() - _KNOWN:
        raise RequestError(f"{path}: expected keys of {', '.join(sorted(_KNOWN))}, found {key[:60]!r}")
    fields.setdefault("sources", {})
    sources = fields["sources"]
    if not isinstance(sources, dict):
        raise RequestError(f"{path}: sources: expected a table of texts, found {sources!r:.60}")
    for key, text in sources.items():
        if not isinstance(text, str) or not text.isprintable() or not text.strip():
            raise RequestError(f"{path}: sources: {key!r:.60}: expected a line of text, found {text!r:.60}")
    return fields


def _checked(path: Path, fields: Mapping[str, Any]) -> Board:
    if not NAME.fullmatch(path.stem):
        raise RequestError(f"{path}: expected a file called after its board, like pi-4.toml, found {path.name!r}")
    for key in ("title", "architecture", "isa", *(key for key, figure in FIGURES.items() if figure.required)):
        if key not in fields:
            raise RequestError(f"{path}: {key}: expected it in every profile, found none")
    isa = fields["isa"]
    if not isinstance(isa, list) or not all(flag in ISA for flag in isa):
        raise RequestError(f"{path}: isa: expected a list of {', '.join(ISA)}, found {isa!r:.60}")
    values: dict[str, Any] = {}
    for key in _TEXTS:
        if key in fields:
            if not isinstance(fields[key], str) or not fields[key].isprintable() or not fields[key].strip():
                raise RequestError(f"{path}: {key}: expected a line of text, found {fields[key]!r:.60}")
            values[key] = fields[key]
    for key, figure in FIGURES.items():
        if key in fields:
            values[figure.attribute] = _number(path, key, figure, fields[key])
            if key not in fields["sources"]:
                raise RequestError(f"{path}: {key}: expected its source in [sources], found none")
    return Board(name=path.stem, isa=tuple(isa), sources=fields["sources"], **values)


def _number(path: Path, key: str, figure: Figure, value: Any) -> float:
    kinds = (int,) if figure.whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not figure.least <= value <= figure.most:
        kind = "a whole number" if figure.whole else "a number"
        bounds = f"{kind} from {figure.least:.15g} to {figure.most:.15g}"
        raise RequestError(f"{path}: {key}: expected {bounds}, found {value!r:.60}")
    if key == "page_size_bytes" and not math.log2(value).is_integer():
        raise RequestError(f"{path}: {key}: expected a power of two, found {value}")
    return value * figure.unit


@cache
def this_machine() -> Board:
    """Return what the system says of the machine that this runs on, and what a second of measuring tells."""
    page_size_bytes = os.sysconf("SC_PAGE_SIZE")
    copied_bytes = min(64 * 2**20, allowed_bytes() // 16)
    return Board(
        name=THIS_MACHINE,
        title=platform.node() or "this machine",
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        isa=(),
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * page_size_bytes,
        page_size_bytes=page_size_bytes,
        memory_copy_bytes_per_s=copy_bytes_per_s(copied_bytes),
        python=platform.python_version(),
        sources={"memory_copy_gb_per_s": f"measured: the best of 5 copies of {copied_bytes // 2**20} MiB by numpy"},
    )


def is_here(board: Board) -> bool:
    """Return whether a board is the machine that this runs on, and not a profile that was made on one, and kept."""
    return board.name == THIS_MACHINE and board is this_machine()


def machine_model() -> str:
    """Return what this machine says that it is, by its device tree or else its processor, and how many cores it has."""
    tree = Path("/sys/firmware/devicetree/base/model")
    model = tree.read_text(errors="replace").strip("\0\n ") if tree.is_file() else ""
    if not model:
        fields = (line.partition(":") for line in cpuinfo().splitlines())
        model = next((value.strip() for name, _, value in fields if name.strip() == "model name"), "")
    return f"{model or platform.machine()}, {os.cpu_count() or 1} cores"


def cpuinfo(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return what Linux says of the processor; nothing where it keeps that to itself, as some containers do."""
    return path.read_text(errors="replace") if path.is_file() else ""


def copy_bytes_per_s(size_bytes: int = 64 * 2**20, rounds: int = 5) -> float:
    """Return how fast one core copies memory by numpy: the best of some rounds."""
    source = np.ones(size_bytes, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return source.nbytes / best
