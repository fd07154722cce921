"""From an image encoder to a bundle: its file as it is, golden pictures, and a collection of the user's own.

The original is the file itself, so nothing is lost and nothing is measured but how it answers here. Golden pictures are
drawn, uncompressed (PPM), so the same source gives the same bytes. Networks of codes round at every layer, and engines
round differently: between LiteRT 2.3 and tflite-runtime 2.14 a mobilenet of uint8 differs by up to 25 of its 255 codes
in some number. A wrong engine answers something else altogether; the tolerance lies between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.encoding import GraphImageEncoder, open_graph_encoder
from edge_embed.errors import RequestError
from edge_embed.images import FORMATS
from edge_embed.progress import SILENT, Progress
from edge_embed.runtime import Runtime
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.encoders import EncoderGraph, EncoderModel
from edge_embed_bundle.manifest import Manifest, TableModel
from edge_embed_bundle.values import Blob
from edge_embed_bundle.writer import BundleWriter
from edge_embed_devices.graph_work import works_of
from edge_embed_export.drafting import check_prediction
from edge_embed_export.encoder_drafting import draft_encoder
from edge_embed_export.encoders import ENCODER, check_encoder, proven_graph, rounded_up, signed_off, write_collection
from edge_embed_export.exporter import Report
from edge_embed_export.options import COLLECTION, Options
from edge_embed_export.parts import collection_of
from edge_embed_export.pricing import Price
from edge_embed_export.quality import measure_quality
from edge_embed_export.questions import SCORE_TOLERANCE, Question, exact_scores
from edge_embed_export.sources import SourceTable
from edge_embed_export.sources.encoders import EncoderSource
from edge_embed_export.writing import write_bytes, write_questions

#: Of the largest number of an answer, how far codes of another engine may move any of them.
_SHARE_OFF = 0.1
#: What that does to a cosine: .998 was the least between the same picture's two vectors.
_COSINE_OFF = 0.05
_HEIGHT, _WIDTH = 60, 80
_NEIGHBOURS = 5
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def export_image_encoder(
    source: EncoderSource, options: Options, pictures: Path | None = None, progress: Progress = SILENT
) -> Report:
    """Write the bundle of an encoder of images.

    Args:
        source: the encoder.
        options: what the user decided; the codec is that of the collection.
        pictures: a folder of pictures to search in; their names in it are the keys.
        progress: told each picture.

    Raises:
        RequestError: an option is impossible for this source, or a picture is none.
        BundleError: the target is taken, or the engine does not accept the graph.
        MissingExtraError: a package of the ``export`` extra is not installed.
    """
    check_encoder(source, options)
    if pictures is not None:
        pictures_in(pictures)
    golden = {f"picture-{i}.ppm": data for i, data in enumerate(drawn_pictures())}
    with BundleWriter(options.target, replace=options.replace) as writer:
        graph, *_ = [source.network.write(writer, ENCODER, format, options.codec) for format in options.graphs]
        for name, data in golden.items():
            writer.blob(name, partial(write_bytes, data))
        model = EncoderModel(ENCODER, source.dimensions, source.normalize, (graph,), None, source.image)
        draft = partial(draft_encoder, source, options)
        with Bundle.open(writer.preview(lambda blobs: draft((model,), blobs))) as bundle:
            works = works_of(bundle)
            encoder = _encoder(bundle, model, graph)
            expected = encoder.encode(list(golden.values()))
            graph = proven_graph(encoder, expected, expected)
            if graph.variant != "float32":
                graph = graph._replace(tolerance=rounded_up(_SHARE_OFF * float(np.abs(expected).max(initial=0))))
            model = model._replace(graphs=(graph,))
            size = sum(bundle.manifest.blobs[name].size_bytes for name in graph.blobs)
            same = measure_quality(expected, expected, size, progress, neighbours=False)
            quality = {ENCODER: replace(same, bytes_before=size)}
            questions = [Question("encode_image", ENCODER, "image", tuple(golden), expected, graph.tolerance)]
            models: tuple[EncoderModel | TableModel, ...] = (model,)
            if pictures is not None:
                rows = _vectors(encoder, pictures, source.weights_digest, progress)
                search = partial(_search, pictures=tuple(golden), vectors=expected, graph=graph)
                table, cost, its_own = write_collection(writer, rows, model, draft, source, options, search, progress)
                models, quality = (model, table), {**quality, **cost}
                questions += its_own
        answers = write_questions(writer, questions)
        prices: list[Price] = []

        def sign(blobs: Mapping[str, Blob]) -> Manifest:
            signed: Manifest = signed_off(draft(models, blobs), answers, quality, ())
            check_prediction(signed, options, works)
            prices.append(Price(options.codec, signed.size_bytes, quality))
            return signed

        manifest = writer.finish(sign)
    return Report(options.target, manifest, prices[0])


def pictures_in(folder: Path) -> tuple[str, ...]:
    """Return the names of all pictures in a folder and in the folders in it, in the order of their names.

    Raises:
        RequestError: it is no folder, or holds no picture.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: expected a folder of pictures, found no folder")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    )
    if not found:
        raise RequestError(f"{folder}: expected pictures ({', '.join(FORMATS)}), found none")
    return tuple(found)


def drawn_pictures() -> tuple[bytes, ...]:
    """Return golden pictures as files: colours that run into each other, squares, and noise."""
    y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    runs = np.stack([3 * x, 4 * y, 255 - x - y], axis=2)
    squares = np.stack([(x // 10 + y // 10) % 2 * 255, x // 20 * 60, y // 15 * 60], axis=2)
    noise = np.random.default_rng(0).integers(0, 256, (_HEIGHT // 6, _WIDTH // 8, 3)).repeat(6, 0).repeat(8, 1)
    return tuple(_ppm(pixels.astype(np.uint8)) for pixels in (runs, squares, noise))


def _ppm(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image in the simplest format there is: https://netpbm.sourceforge.net/doc/ppm.html."""
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def _encoder(bundle: Bundle, model: EncoderModel, graph: EncoderGraph) -> GraphImageEncoder:
    encoder = open_graph_encoder(bundle, model, graph)
    if not isinstance(encoder, GraphImageEncoder):
        raise AssertionError("a model with an image recipe encodes images")
    return encoder


def _vectors(encoder: GraphImageEncoder, folder: Path, digest: str, progress: Progress) -> SourceTable:
    """Return a table of a folder's pictures, by their names in it."""
    return collection_of(
        pictures_in(folder), lambda names: encoder.encode([folder / name for name in names]), digest, progress
    )


def _search(
    runtime: Runtime, *, pictures: tuple[str, ...], vectors: NDArray[np.float32], graph: EncoderGraph
) -> Question:
    """Ask for the neighbours of the golden pictures."""
    table = runtime.table(COLLECTION)
    scores = exact_scores(table, vectors, min(_NEIGHBOURS, table.model.rows))
    tolerance = SCORE_TOLERANCE if graph.variant == "float32" else _COSINE_OFF
    return Question("search", COLLECTION, "image", pictures, scores, tolerance)
