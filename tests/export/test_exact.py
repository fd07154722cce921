"""The same bytes on every machine: products that no order of additions can change, and exports that rest on them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edge_embed_export.exact import Sliced, directions, exact_pairs, exact_product, fixed_point, slice_bits

pytest.importorskip("onnx")
pytest.importorskip("ai_edge_litert")

# What numpy and its OpenBLAS take for other machines; names that a numpy or a CPU does not know change nothing.
MACHINES = {
    "one thread": {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},
    "a CPU of 2012": {
        "OPENBLAS_CORETYPE": "Sandybridge",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512F AVX512_SKX",
        "PYTHONHASHSEED": "2",
    },
    "a CPU of 2004": {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512F AVX512_SKX AVX2 FMA3",
    },
}

EXPORT = """
import sys
from pathlib import Path
from random import Random
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source

model, target, codec = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
lines = tuple(f"w{i} w{3 * i} w{7 * i + 1}" for i in range(50))
export(read_source(model), Options(target=target, name="same", codec=codec, collection=lines))
"""


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _model(path: Path) -> Path:
    """Write a transformer's token table as large as a small one of real life, and a tokenizer of its words."""
    path.mkdir()
    random = np.random.default_rng(0)
    table = random.normal(size=(3000, 96)) @ random.normal(size=(96, 96)) / 100
    save_file({"word_embeddings.weight": table.astype(np.float32)}, path / "model.safetensors")
    vocabulary = {"[UNK]": 0} | {f"w{i}": i for i in range(1, 3000)}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (path / "tokenizer.json").write_text(json.dumps(definition))
    return path


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_source_exported_on_other_machines_gives_the_same_bytes_in_every_file(tmp_path: Path, codec: str) -> None:
    model = _model(tmp_path / "model")
    found = {}
    for machine, environment in {"this machine": {}, **MACHINES}.items():
        target = tmp_path / machine.replace(" ", "-")
        command = [sys.executable, "-c", EXPORT, str(model), str(target), codec]
        subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
        found[machine] = _digests(target)
    for machine in MACHINES:
        assert found[machine] == found["this machine"], machine


numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
rows = st.integers(1, 40).flatmap(lambda k: st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=1, max_size=4))


@given(rows, st.randoms(use_true_random=False))
def test_a_product_has_the_same_bits_in_every_order_of_its_sums(table: list[list[float]], random: Random) -> None:
    a = np.array(table)
    order = list(range(a.shape[1]))
    random.shuffle(order)
    product = exact_product(a, a.T)
    np.testing.assert_array_equal(exact_product(a[:, order], a.T[order]), product)


@given(rows)
def test_pairs_of_rows_have_the_bits_of_the_whole_product(table: list[list[float]]) -> None:
    a = np.array(table)
    sliced = Sliced.of(a, slice_bits(a.shape[1]))
    i, j = np.divmod(np.arange(len(a) ** 2), len(a))
    np.testing.assert_array_equal(exact_pairs(sliced, sliced, i, j), exact_product(a, a.T)[i, j])


def test_pairs_of_long_rows_take_no_more_memory_than_pairs_of_short_ones() -> None:
    a = np.random.default_rng(0).standard_normal((4, 20_000))
    sliced = Sliced.of(a, slice_bits(a.shape[1]))
    i = np.arange(4096) % len(a)
    tracemalloc.start()
    try:
        found = exact_pairs(sliced, sliced, i, i)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 64 * 2**20
    np.testing.assert_array_equal(found, np.diag(exact_product(a, a.T))[i])


@given(rows)
def test_a_product_is_nearer_to_the_true_one_than_float32_can_tell(table: list[list[float]]) -> None:
    a = np.array(table)
    product = exact_product(a, a.T)
    bound = 4 * a.shape[1] * 2.0 ** -(2 * slice_bits(a.shape[1])) * np.abs(a).max() ** 2
    for i, left in enumerate(a):
        for j, right in enumerate(a):
            true = sum((Fraction(x) * Fraction(y) for x, y in zip(left, right, strict=True)), Fraction())
            assert abs(Fraction(product[i, j]) - true) <= Fraction(bound)


@pytest.mark.parametrize("dimensions", [384, 3072, 65_536])
def test_a_row_of_one_large_number_costs_the_others_nothing(dimensions: int) -> None:
    wide = np.ones((3, dimensions))
    wide[1, 0] = dimensions
    wide[2] += np.linspace(0, 1e-3, dimensions)
    unit = directions(wide.astype(np.float32))
    true = np.array([[math.fsum(x * y for x, y in zip(a, b, strict=True)) for b in unit] for a in unit])
    np.testing.assert_allclose(exact_product(unit, unit.T), true, atol=1e-8)


@given(rows)
def test_fixed_point_is_within_half_a_unit_of_the_largest_number(table: list[list[float]]) -> None:
    a = np.array(table)
    fixed = fixed_point(a, 20)
    assert np.abs(fixed - a).max() <= np.abs(a).max() * 2.0**-20
    np.testing.assert_array_equal(fixed_point(fixed, 20), fixed)


def test_directions_have_length_one_however_small_the_numbers_and_zeros_stay_zeros() -> None:
    found = directions(np.array([[3e-30, 4e-30], [0, 0], [1e-44, 0]], np.float32))
    np.testing.assert_allclose(found, np.array([[0.6, 0.8], [0, 0], [1, 0]]), rtol=1e-6)
