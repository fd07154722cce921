"""The import map: arrows point one way, and each engine is imported only in the module that wraps it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDERS = {
    "edge_embed_bundle": ROOT / "firmware_bundle" / "edge_embed_bundle",
    "edge_embed": ROOT / "edge_embed",
    "edge_embed_devices": ROOT / "devices" / "edge_embed_devices",
    "edge_embed_export": ROOT / "export" / "edge_embed_export",
}

#: A module that CPython 3.12 has, and 3.11 under another name, is asked for by both.
STDLIB = sys.stdlib_module_names | {"_sha2", "_sha256"}

#: What each package may import beside itself and the standard library.
ALLOWED = {
    "edge_embed_bundle": set(),
    "edge_embed": {"edge_embed_bundle", "numpy"},
    "edge_embed_devices": {"edge_embed", "edge_embed_bundle", "numpy"},
    "edge_embed_export": {"edge_embed_devices", "edge_embed", "edge_embed_bundle", "numpy"},
}

#: Packages of an extra, each with the one module that wraps it.
WRAPPED = {
    "onnxruntime": ["edge_embed/engines/onnx.py"],
    "ai_edge_litert": ["export/edge_embed_export/graphs/flatbuffer.py"],
    "flatbuffers": ["export/edge_embed_export/graphs/flatbuffer.py"],
    "tokenizers": ["edge_embed/text.py"],
    "PIL": ["edge_embed/images.py"],
    "onnx": ["export/edge_embed_export/graphs/files.py", "export/edge_embed_export/graphs/onnx.py"],
    "faiss": ["export/edge_embed_export/codebooks.py"],
    "scipy": ["export/edge_embed_export/evaluation/similarity.py"],
    "sklearn": ["export/edge_embed_export/evaluation/labelled.py"],
    "ir_measures": ["export/edge_embed_export/evaluation/retrieval.py"],
    "matplotlib": ["export/edge_embed_export/plots.py"],
    "safetensors": ["export/edge_embed_export/sources/sentence_transformers.py"],
    "torch": ["export/edge_embed_export/sources/tensors.py"],
    "pyarrow": ["export/edge_embed_export/sources/parquet.py"],
    "gensim": ["export/edge_embed_export/sources/gensim_files.py"],
    "tuf": [
        "firmware_bundle/edge_embed_bundle/updating/trust.py",
        "export/edge_embed_export/publishing/signing.py",
    ],
    "securesystemslib": ["export/edge_embed_export/publishing/signing.py"],
    "cryptography": ["export/edge_embed_export/publishing/signing.py"],
}


def _imports(path: Path) -> Iterator[str]:
    """Yield the top-level package of every import of a module, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


def _modules() -> list[tuple[str, Path]]:
    return [(package, path) for package, folder in FOLDERS.items() for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_point_one_way(package: str) -> None:
    for path in FOLDERS[package].rglob("*.py"):
        place = str(path.relative_to(ROOT))
        strangers = {
            name
            for name in _imports(path)
            if name not in STDLIB | {package} | ALLOWED[package] and place not in WRAPPED.get(name, ())
        }
        assert not strangers, f"{place} imports {strangers}"


def test_what_is_wrapped_is_imported_where_it_is_wrapped() -> None:
    for name, places in WRAPPED.items():
        found = [str(path.relative_to(ROOT)) for _, path in _modules() if name in _imports(path)]
        assert found == places, name
