"""What the documents show works, and what they state is what the code says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge_embed_bundle import encoders, manifest, slots, state, values
from edge_embed_bundle.strict_json import MANIFEST_CEILING_BYTES
from edge_embed_export.sources import readers

ROOT = Path(__file__).parents[1]


def _blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Path:
    """A folder with what the README's commands begin from: a model and a file of notes."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "model").symlink_to(real_model)
    notes = (ROOT / "export" / "edge_embed_export" / "data" / "notes.txt").read_text(encoding="utf-8")
    (folder / "notes.txt").write_text(notes, encoding="utf-8")
    random = np.random.default_rng(0)
    tables = {"user_id": (1000, 16), "genre": (20, 8), "clicks": (50, 8)}
    rows = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in tables.items()}
    save_file(rows, folder / "tables.safetensors")
    return folder


def _run(words: list[str], place: Path, statuses: tuple[int, ...] = (0,)) -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in statuses, f"{words}: {done.stderr}"
    assert done.stdout, words


def test_every_command_and_every_line_of_python_in_the_readme_works(place: Path) -> None:
    commands = [line for block in _blocks("README.md", "sh") for line in block.splitlines()]
    assert len(commands) > 10
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "edge-embed"
        # How busy this machine is decides whether an estimate is within its budget; the table comes either way.
        _run([sys.executable, "-m", "edge_embed", *words], place, (0, 1) if words[0] == "check" else (0,))
    blocks = _blocks("README.md", "python")
    assert blocks
    for block in blocks:
        _run([sys.executable, "-c", block + "print('done')"], place)


def test_the_readme_shows_the_two_commands_first_and_the_makefile_has_them() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:12]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("demo", "test"):
        assert any(line.startswith(f"    make {command} ") for line in first_screen)
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_make_target_that_a_document_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in ROOT.rglob("*.md"):
        if ".venv" in document.parts:
            continue
        named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{document.name}: {named - targets}"


def test_the_specification_names_what_the_code_knows() -> None:
    text = (ROOT / "firmware_bundle" / "SPEC.md").read_text(encoding="utf-8")
    names = {
        *manifest.FEATURES,
        *values.ITEM_BYTES,
        *manifest.CODEC_TENSORS,
        *manifest.SHARED_TENSORS,
        *manifest.OPERATIONS,
        *slots.SLOT_NAMES,
        manifest.INDEX_ALGORITHM,
        manifest.MANIFEST_NAME,
    }
    for name in sorted(names):
        assert name in text, name
    kinds = (manifest.TableModel, encoders.EncoderModel)
    parts = (encoders.TextInput, encoders.ImageInput, encoders.EncoderGraph, encoders.GraphInput, encoders.GraphOutput)
    for field in {field for kind in (*kinds, *parts) for field in kind._fields}:
        assert field == "extra" or f"`{field}`" in text, field
    for word in (*encoders.POOLINGS, *encoders.HOLDS, *encoders.RESIZES, *encoders.RESAMPLINGS, *encoders.CHANNELS):
        assert f"`{word}`" in text, word
    for number in (
        f"{values.SECTION_BYTES:,}",
        f"{MANIFEST_CEILING_BYTES // 2**20} MiB",
        f"({state.REFUSED_CEILING} x 32)",
    ):
        assert number in text, number


def test_every_source_format_is_named_in_the_help_of_export() -> None:
    command = [sys.executable, "-m", "edge_embed", "export", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for name in readers():
        assert name in shown
