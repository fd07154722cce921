"""Made the golden bundles of format version 1, each once; they are never made again: boards in the field have theirs.

Kept to show where they come from: ``python -m tests.golden.make FOLDER`` writes bundles of the same kind elsewhere.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edge_embed_export.sources import read_source
from tests.fasttext_files import LABELS, Model
from tests.floret_files import floret_file
from tests.making import WORDS, make_bundle, small_source, small_text_source

#: More rows than centroids, so that codebooks are trained.
MANY_WORDS = (*WORDS, *(f"more{i}" for i in range(240)))

SENTENCES = ("word1 word2 word3", "word10 word11 naïve", "東京 word30", "word40")


def main(folder: Path) -> None:
    make_bundle(folder / "int8-text", source=small_text_source(dimensions=8), collection=SENTENCES)
    make_bundle(folder / "float32-words", source=small_source(dimensions=8), codec="float32", graphs=("onnx",))
    for codec in ("float16", "int4", "pq:4", "opq:4", "rq:2"):
        source = small_source(dimensions=8, keys=MANY_WORDS)
        make_bundle(folder / f"{codec.partition(':')[0]}-words", source=source, codec=codec)
    source = small_source(dimensions=8, keys=MANY_WORDS)
    make_bundle(folder / "int8-lists", source=source, graphs=(), clustered=True, plane=True, recall=0.9)
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / "model.bin"
        model.write_bytes(Model(labels=LABELS, model=3, loss=3).to_bytes())
        make_bundle(folder / "fasttext-labels", source=read_source(model), codec="float32")
        make_bundle(folder / "floret-words", source=read_source(floret_file(Path(made))), codec="float32")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
