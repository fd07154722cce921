"""Made the golden bundles of format version 1, once. They are never made again: a board in the field has its bundle.

Kept to show where they come from: ``python -m tests.golden.make FOLDER`` writes bundles of the same kind elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.making import make_bundle, small_source, small_text_source

SENTENCES = ("word1 word2 word3", "word10 word11 naïve", "東京 word30", "word40")


def main(folder: Path) -> None:
    make_bundle(folder / "int8-text", source=small_text_source(dimensions=8), collection=SENTENCES)
    make_bundle(folder / "float32-words", source=small_source(dimensions=8), codec="float32", graphs=("onnx",))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
