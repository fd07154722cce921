"""Made the golden bundles of format version 1, each once; they are never made again: boards in the field have theirs.

Kept to show where they come from: ``python -m tests.golden.make FOLDER`` writes bundles of the same kind elsewhere.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edge_embed_export.image_encoders import export_image_encoder
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source
from edge_embed_export.sources.image_encoders import read_image_encoder
from tests.fasttext_files import LABELS, Model
from tests.floret_files import floret_file
from tests.making import WORDS, make_bundle, small_source, small_text_source
from tests.small_encoders import make_encoder_bundle, write_encoder
from tests.small_images import write_tflite

#: More rows than centroids, so that codebooks are trained.
MANY_WORDS = (*WORDS, *(f"more{i}" for i in range(240)))

COLOURS = {"red": (255, 20, 20), "green": (20, 250, 30), "blue": (10, 20, 255), "black": (3, 2, 1)}

SENTENCES = ("word1 word2 word3", "word10 word11 naïve", "東京 word30", "word40")


def main(folder: Path) -> None:
    make_bundle(folder / "int8-text", source=small_text_source(dimensions=8), collection=SENTENCES)
    make_bundle(folder / "float32-words", source=small_source(dimensions=8), codec="float32", graphs=("onnx",))
    for codec in ("float16", "int4", "pq:4", "opq:4", "rq:2"):
        source = small_source(dimensions=8, keys=MANY_WORDS)
        make_bundle(folder / f"{codec.partition(':')[0]}-words", source=source, codec=codec)
    source = small_source(dimensions=8, keys=MANY_WORDS)
    # ``int8-lists`` was made like this when centroids had 8 bits and a plane held the rows themselves.
    make_bundle(folder / "lists-4-bit", source=source, graphs=(), clustered=True, plane=True, recall=0.9)
    with tempfile.TemporaryDirectory() as made:
        encoder = write_encoder(Path(made) / "encoder", prompts={"query": "word1"})
        make_encoder_bundle(folder / "int8-encoder", encoder, collection=SENTENCES)
        model = Path(made) / "model.bin"
        model.write_bytes(Model(labels=LABELS, model=3, loss=3).to_bytes())
        make_bundle(folder / "fasttext-labels", source=read_source(model), codec="float32")
        make_bundle(folder / "floret-words", source=read_source(floret_file(Path(made))), codec="float32")
    with tempfile.TemporaryDirectory() as made:
        _make_colours(folder / "colours-image", Path(made))


def _make_colours(target: Path, made: Path) -> None:
    """Make an image encoder of TFLite, and four pictures to find."""
    pictures = made / "pictures"
    pictures.mkdir()
    for name, colour in COLOURS.items():
        (pictures / f"{name}.ppm").write_bytes(b"P6 4 4 255\n" + bytes(colour) * 16)
    source = write_tflite(made / "colour.tflite")
    source.with_suffix(".image.toml").write_text("mean = 0.5\nstd = 0.5\nnormalize = true\n")
    options = Options(target, "colours", codec="float32", graphs=("tflite",), board="pi-4")
    export_image_encoder(read_image_encoder(source), options, pictures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
