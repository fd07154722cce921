"""Every processor answers alike: the kernels, in a program without Python, on this machine and on emulated ARM cores.

Cores are named, so that an instruction that one of them lacks ends the program: SDOT on a Cortex-A53, say. Wants
Debian's ``gcc-aarch64-linux-gnu``, ``gcc-arm-linux-gnueabihf`` and ``qemu-user-static``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.kernels import pure
from edge_embed_export.codecs import ENCODERS, encoder

pytest.importorskip("hatchling", reason="the kernels are compiled by the build hook, which needs hatchling")
from hatch_build import SOURCES, link

ROOT = Path(__file__).parents[2]
CODECS = ("float32", "float16", "int8", "int4", "plane", "pq", "opq", "rq")
TENSORS = ("rows", "scales", "codebooks", "rotation", "length_codes", "length_levels")
ROWS, K = 19, 5
#: What the program ends with where the processor lacks what it was asked for.
NOT_HERE = 6


class Processor(NamedTuple):
    """A core that runs the kernels: who compiles for it, who emulates it, and which of the kernels it has to choose."""

    name: str
    compiler: tuple[str, ...]
    emulator: tuple[str, ...]
    variant: str | None
    asked: str = ""


_ARM64, _ARM32 = ("aarch64-linux-gnu-gcc", "-static"), ("arm-linux-gnueabihf-gcc", "-static")

PROCESSORS = (
    Processor("this machine's", ("cc",), (), None),
    Processor("this machine's baseline", ("cc",), (), "baseline", "baseline"),
    Processor("this machine's avx2", ("cc",), (), "avx2", "avx2"),
    Processor("this machine's vnni", ("cc",), (), "vnni", "vnni"),
    Processor("cortex-a53", _ARM64, ("qemu-aarch64-static", "-cpu", "cortex-a53"), "baseline"),
    Processor("cortex-a72", _ARM64, ("qemu-aarch64-static", "-cpu", "cortex-a72"), "baseline"),
    Processor("cortex-a76", _ARM64, ("qemu-aarch64-static", "-cpu", "cortex-a76"), "dotprod"),
    Processor("cortex-a76's baseline", _ARM64, ("qemu-aarch64-static", "-cpu", "cortex-a76"), "baseline", "baseline"),
    Processor("cortex-a7", _ARM32, ("qemu-arm-static", "-cpu", "cortex-a7"), "neon"),
    Processor("cortex-a9 without NEON", _ARM32, ("qemu-arm-static", "-cpu", "cortex-a9,neon=off"), "baseline"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


def _program(processor: Processor, made: Path) -> Path:
    for tool in (processor.compiler[0], *processor.emulator[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{processor.name}: {tool} is not installed here")
    path = made / processor.compiler[0]
    if not path.exists():
        link(processor.compiler, ROOT, path, Path(__file__).with_name("ask.c"), f"-I{ROOT / SOURCES}", "-Werror")
    return path


class Case(NamedTuple):
    """A table, and what is asked of it."""

    codec: str
    tensors: Mapping[str, NDArray[Any]]
    dimensions: int
    ids: NDArray[np.int64]
    queries: NDArray[np.float32]
    norms: NDArray[np.float32]

    def spelled(self) -> bytes:
        """Return what the program reads."""
        rows, books = self.tensors["rows"], self.tensors.get("codebooks", np.empty((0, 0, 0)))
        numbers = [CODECS.index(self.codec), ROWS, self.dimensions, rows[0].nbytes, books.shape[0], books.shape[2], K]
        parts = [np.array(numbers, np.int64).tobytes()]
        for name in TENSORS:
            tensor = self.tensors[name].tobytes() if name in self.tensors else b""
            parts += [np.array([len(tensor)], np.int64).tobytes(), tensor]
        parts += [self.norms.tobytes(), np.array([len(self.ids)], np.int64).tobytes(), self.ids.tobytes()]
        return b"".join([*parts, np.array([len(self.queries)], np.int64).tobytes(), self.queries.tobytes()])


def _cases() -> list[Case]:
    found = []
    for codec in (*ENCODERS, "plane"):
        for dimensions in (1, 7, 16, 31, 32, 33, 64, 300, 384, 513, 1025):
            random = np.random.default_rng(dimensions)
            if codec == "plane":
                codes = random.integers(0, 256, (ROWS, -(-dimensions // 2))).astype(np.uint8)
                tensors: dict[str, NDArray[Any]] = {"rows": codes, "scales": random.random(ROWS, np.float32)}
            else:
                settings = {"pq": "pq:3", "opq": "opq:4", "rq": "rq:2"} if dimensions >= 7 else {"opq": "pq"}
                vectors = random.normal(size=(ROWS, dimensions)).astype(np.float32)
                tensors = {name: tensor[:] for name, tensor in encoder(settings.get(codec, codec))[1](vectors).items()}
            if codec == "int8":
                tensors["rows"] = random.integers(-128, 128, (ROWS, dimensions)).astype(np.int8)
            queries = random.normal(size=(3, dimensions)).astype(np.float32)
            # The largest that sums of whole numbers can become, and nothing at all.
            queries[1], queries[2] = -3, 0
            norms = random.random(ROWS, np.float32)
            ids = random.integers(0, ROWS, 12)
            stored = "pq" if codec == "opq" and "rotation" not in tensors else codec
            found.append(Case(stored, tensors, dimensions, ids, queries, norms))
    return found


class Answer(NamedTuple):
    """What the program said of one case."""

    decoded: NDArray[np.float32]
    mean: NDArray[np.float32]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]


def _answer(case: Case, said: bytes, at: int) -> tuple[Answer, int]:
    m, q, d = len(case.ids), len(case.queries), case.dimensions
    shapes = (((m, d), "<f4"), ((d,), "<f4"), ((q, ROWS), "<f4"), ((q, K), "<i8"), ((q, K), "<f4"))
    parts = []
    for shape, dtype in shapes:
        parts.append(np.frombuffer(said, dtype, int(np.prod(shape)), at).reshape(shape))
        at += parts[-1].nbytes
    return Answer(*parts), at


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
def test_a_program_without_python_has_the_references_bits_on_every_processor(processor: Processor, made: Path) -> None:
    program, cases = _program(processor, made), _cases()
    environment = {**os.environ, "EDGE_EMBED_VARIANT": processor.asked}
    asked = b"".join(case.spelled() for case in cases)
    done = subprocess.run(
        [*processor.emulator, str(program)], input=asked, capture_output=True, env=environment, timeout=120, check=False
    )
    if done.returncode == NOT_HERE and not processor.emulator:
        pytest.skip(f"this machine's processor does not run the kernels of {processor.asked}")
    assert done.returncode == 0, done.stderr
    if processor.variant is not None:
        assert done.stdout[:16].rstrip(b"\0").decode() == processor.variant
    at = 16
    for case in cases:
        found, at = _answer(case, done.stdout, at)
        meant = pure.open_rows(case.codec, case.tensors, case.dimensions)
        assert found.decoded.tobytes() == meant.decode(case.ids).tobytes()
        np.testing.assert_array_equal(found.mean, meant.pool(case.ids, np.array([len(case.ids)]), None, "mean")[0])
        scores = np.stack([meant.scores(query) for query in case.queries])
        if case.codec in ("int8", "plane"):
            assert found.scores.tobytes() == scores.tobytes()
            runs, none = np.array([[0, ROWS]]), np.full(3, -1)
            rows, cosines, _ = meant.nearest(case.queries, case.norms, K, runs, None, none, 0, None, 0, None)
            np.testing.assert_array_equal(found.rows, rows)
            np.testing.assert_array_equal(found.cosines, cosines)
        else:
            magnitudes = np.abs(meant.decode(np.arange(ROWS))) @ np.abs(case.queries).T
            assert (np.abs(found.scores - scores) <= 1e-5 * magnitudes.T + 1e-6).all()
    assert at == len(done.stdout)
