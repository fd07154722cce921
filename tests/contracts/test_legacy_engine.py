"""tflite-runtime 2.14, the engine of 32-bit boards, keeps the promises of ``executors``, too.

It lives in an environment of its own (Python 3.11, numpy 1), which ``make test`` makes; bundles come from this one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.executors import PROMISES
from tests.contracts.test_executors import CODECS, SHAPES, meant, varied_source
from tests.making import make_bundle

ROOT = Path(__file__).parents[2]
LEGACY_PYTHON = ROOT / ".venv" / "legacy" / "bin" / "python"

KEEPS = """
import sys
import numpy as np
import edge_embed
from tests.contracts import executors

bundle, expected, promise = sys.argv[1:]
with edge_embed.open(bundle, engine="tflite-runtime") as runtime:
    assert runtime.table().rows.version.startswith("tflite-runtime 2.14"), runtime.table().rows.version
    getattr(executors, promise)(runtime, np.load(expected))
"""


@pytest.fixture(scope="module")
def legacy() -> Path:
    if not LEGACY_PYTHON.exists():
        pytest.skip("there is no .venv/legacy with tflite-runtime 2.14; make test makes it where Python 3.11 is")
    return LEGACY_PYTHON


@pytest.mark.parametrize("codec", CODECS)
def test_the_legacy_engine_keeps_every_promise(legacy: Path, codec: str, tmp_path: Path) -> None:
    rows, dimensions = SHAPES[-1]
    source = varied_source(rows, dimensions, codec)
    made = make_bundle(tmp_path / "bundle", source=source, codec=codec)
    np.save(tmp_path / "expected.npy", meant(made.path))
    for promise in PROMISES:
        command = [str(legacy), "-c", KEEPS, str(made.path), str(tmp_path / "expected.npy"), promise.__name__]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, (promise.__name__, done.stderr)
