"""The wheel is a good citizen, and a board with numpy alone gets its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = {"edge_embed", "edge_embed_bundle", "edge_embed_devices", "edge_embed_export"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def board(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel and numpy, and nothing else."""
    folder = tmp_path_factory.mktemp("board") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}, scheme="posix_prefix"))
    numpy = Path(np.__file__).parent
    for part in (numpy, numpy.with_name("numpy.libs")):
        if part.exists():
            (site / part.name).symlink_to(part)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder


def _run(board: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(board / "bin" / "python"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean, cwd=board, check=False)


def test_the_wheel_puts_no_generic_name_into_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_the_wheel_holds_the_data_that_its_code_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    needed = {"edge_embed_export/data/notes.txt", "edge_embed_devices/boards/pi-zero-2w.toml"}
    needed |= {f"{package}/py.typed" for package in PACKAGES}
    assert needed <= names


def test_a_board_with_numpy_alone_looks_up_and_searches(board: Path, bundle: Path) -> None:
    code = (
        # What the system's own Python brings (a sitecustomize, say) is no business of ours.
        "import sys; before = {name.split('.')[0] for name in sys.modules}\n"
        "import edge_embed\n"
        f"with edge_embed.open({str(bundle)!r}, memory_budget='64MiB') as runtime:\n"
        "    assert runtime.lookup('word1').shape == (16,)\n"
        "    assert runtime.encode('word1 word2').shape == (16,)\n"
        "    assert len(runtime.search('word1', k=3)) == 3\n"
        "    assert all(outcome.passed for outcome in runtime.check_golden())\n"
        "roots = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(roots - before - set(sys.stdlib_module_names)))\n"
    )
    done = _run(board, "-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.replace("'", '"')) == ["edge_embed", "edge_embed_bundle", "numpy"]


def test_a_board_with_numpy_alone_installs_checks_and_rolls_back(
    board: Path, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    for made in (bundle, newer_bundle):
        done = _run(board, "-m", "edge_embed", "install", str(made), "--store", store)
        assert done.returncode == 0, done.stderr
    for words in (["verify", store], ["check", store], ["rollback", store], ["status", store], ["boards", "list"]):
        done = _run(board, "-m", "edge_embed", *words)
        assert done.returncode == 0, (words, done.stderr)


def test_a_board_without_a_tokenizer_installs_a_text_bundle_and_says_what_was_not_probed(
    board: Path, text_bundle: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    done = _run(board, "-m", "edge_embed", "install", str(text_bundle), "--store", store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not probed: encoding text needs the package tokenizers") == 1
    assert _run(board, "-m", "edge_embed", "lookup", store, "word1").returncode == 0
    assert _run(board, "-m", "edge_embed", "search", store, "--key", "word1").returncode == 0
    refused = _run(board, "-m", "edge_embed", "encode", store, "word1")
    assert refused.returncode == 2
    assert "edge-embed[text]" in refused.stderr


def test_what_a_board_cannot_do_names_the_extra_that_brings_it(board: Path, text_bundle: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("2 2\na 1 0\nb 0 1\n")
    asked = {
        "edge-embed[text]": ["encode", str(text_bundle), "word1"],
        "edge-embed[onnx]": ["lookup", str(text_bundle), "word1", "--engine", "onnxruntime"],
        "edge-embed[tflite]": ["lookup", str(text_bundle), "word1", "--engine", "litert"],
        "edge-embed[export]": ["export", str(vectors), "-o", str(tmp_path / "made")],
    }
    for extra, words in asked.items():
        done = _run(board, "-m", "edge_embed", *words)
        assert done.returncode == 2, words
        assert extra in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_board_is_offered_what_it_can_run_and_told_what_adds_the_rest(board: Path) -> None:
    done = _run(board, "-m", "edge_embed", "--help")
    assert done.returncode == 0, done.stderr
    offered = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"install", "lookup", "check", "boards"} <= offered
    assert not {"export", "demo"} & offered
    assert "the extra edge-embed[export] adds: demo, export" in done.stdout


def test_the_base_install_asks_for_numpy_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert needed == ["Requires-Dist: numpy>=1.24"]
