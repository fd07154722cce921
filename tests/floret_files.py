"""floret's ``.vec`` written by a few lines of our own, with numbers of our choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SEED = 2166136261
BUCKETS, DIMENSIONS = 40, 6


def floret_file(folder: Path, header: str = f"{BUCKETS} {DIMENSIONS} 3 4 2 {SEED} < >", rows: int = BUCKETS) -> Path:
    """Write a file of random rows and return its path; a test may spoil its header or leave out rows."""
    path = folder / "model.floret.vec"
    numbers = np.random.default_rng(0).normal(size=(rows, DIMENSIONS)).astype(np.float32)
    lines = [f"{row} " + " ".join(f"{number:.5g}" for number in numbers[row]) + " " for row in range(rows)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path
