"""``lookup``, ``encode``, ``search`` and ``classify``: what an application asks, from the shell."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import edge_embed
from edge_embed.commands import Command, printable, spelled
from edge_embed.errors import RequestError
from edge_embed.runtime import Runtime, Vector
from edge_embed_bundle.manifest import BAG_MODES

_ID = re.compile(r"-?[0-9]{1,19}")
_ENGINES = "kernels, onnxruntime, litert or tflite-runtime; of an encoder, by default, the first that is here"


def _configure_answer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="STORE|BUNDLE", help="folder of a store or of a bundle")
    parser.add_argument("--memory-budget", metavar="SIZE", help="private memory allowed, as 64MiB")


def _configure_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="kernels", metavar="NAME", help=_ENGINES)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="that an encoder's engine may use (1)")


def _open(arguments: argparse.Namespace) -> Runtime:
    # One answer, one generation: its vectors and the identity that is printed beside them belong together.
    return edge_embed.open(
        arguments.path,
        memory_budget=arguments.memory_budget,
        engine=getattr(arguments, "engine", "kernels"),
        threads=getattr(arguments, "threads", 1),
        follow=False,
    )


def _print_vectors(
    arguments: argparse.Namespace, runtime: Runtime, names: Sequence[str], vectors: Vector, space: str
) -> None:
    rows = vectors.tolist()
    if arguments.json:
        answers = [{"input": spelled(name), "vector": row} for name, row in zip(names, rows, strict=True)]
        print(json.dumps({"generation": runtime.generation, "space": space, "answers": answers}))
        return
    for name, row in zip(names, rows, strict=True):
        print(printable(name), *(f"{number:.6g}" for number in row))


def _configure_lookup(parser: argparse.ArgumentParser) -> None:
    _configure_answer(parser)
    parser.add_argument("keys", metavar="KEY", nargs="+")
    parser.add_argument("--model", metavar="NAME", help="the table to ask; the bundle's first one by default")
    parser.add_argument(
        "--unknown",
        choices=("error", "zeros", "hash", "subwords"),
        help="what an unknown key gets; default: the bundle's word",
    )
    _configure_engine(parser)


def _lookup(arguments: argparse.Namespace) -> int:
    with _open(arguments) as runtime:
        asked = _asked(runtime, arguments.model, arguments.keys)
        if isinstance(asked[0], int):
            vectors = runtime.lookup_ids(asked, model=arguments.model)
        else:
            vectors = runtime.lookup(asked, model=arguments.model, unknown=arguments.unknown)
        _print_vectors(arguments, runtime, arguments.keys, vectors, runtime.table(arguments.model).space.id)
    return 0


def _asked(runtime: Runtime, model: str | None, words: list[str]) -> list[Any]:
    """Return words as keys; as row ids where they are numbers and the table has no keys."""
    if runtime.table(model).model.key_index is None and all(map(_ID.fullmatch, words)):
        return [int(word) for word in words]
    return words


def _configure_bag(parser: argparse.ArgumentParser) -> None:
    _configure_answer(parser)
    parser.add_argument("keys", metavar="KEY", nargs="+", help="keys, or row ids where the table has no keys")
    parser.add_argument("--model", metavar="NAME", help="the table to ask; the bundle's first one by default")
    parser.add_argument("--mode", choices=BAG_MODES, help="default: the bundle's word, else mean")
    parser.add_argument("--weights", metavar="W,W,...", help="a factor for each, with --mode sum")
    parser.add_argument(
        "--unknown", choices=("error", "zeros", "hash"), help="what an unknown key gets; default: the bundle's word"
    )


def _bag(arguments: argparse.Namespace) -> int:
    weights = None
    if arguments.weights is not None:
        try:
            weights = [float(word) for word in arguments.weights.split(",")]
        except ValueError as error:
            raise RequestError(f"expected weights like 0.5,2,1, found {arguments.weights!r}") from error
    with _open(arguments) as runtime:
        vector = runtime.bag(
            _asked(runtime, arguments.model, arguments.keys),
            model=arguments.model,
            mode=arguments.mode,
            weights=weights,
            unknown=arguments.unknown,
        )
        _print_vectors(
            arguments, runtime, [" ".join(arguments.keys)], vector[None], runtime.table(arguments.model).space.id
        )
    return 0


def _configure_encode(parser: argparse.ArgumentParser) -> None:
    _configure_answer(parser)
    _configure_engine(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*")
    parser.add_argument("--image", metavar="FILE", nargs="+", default=[], help="pictures, for an encoder of images")
    parser.add_argument("--prompt", metavar="NAME", help="the model's prompt to put before each text")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="divide vectors by their lengths; default: as the model says",
    )
    parser.add_argument("--deadline-ms", metavar="MS", type=float, help="give up after so many milliseconds")


def _encode(arguments: argparse.Namespace) -> int:
    if bool(arguments.texts) == bool(arguments.image):
        raise RequestError("expected texts to encode, or pictures with --image, found both or neither")
    shown = not arguments.json and sys.stderr is not None and sys.stderr.isatty()
    how: dict[str, Any] = {
        "normalize": arguments.normalize,
        "deadline_ms": arguments.deadline_ms,
        "show_progress": shown,
    }
    with _open(arguments) as runtime:
        manifest = runtime.manifest
        if arguments.image:
            vectors = runtime.encode_image(arguments.image, **how)
            model = next(model for model in manifest.encoders if model.image is not None)
            _print_vectors(arguments, runtime, arguments.image, vectors, manifest.space_of(model).id)
        else:
            vectors = runtime.encode(arguments.texts, prompt=arguments.prompt, **how)
            first = next(model for model in manifest.models if model.text is not None)
            _print_vectors(arguments, runtime, arguments.texts, vectors, manifest.space_of(first).id)
    return 0


def _configure_search(parser: argparse.ArgumentParser) -> None:
    _configure_answer(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--key", metavar="K", help="a key of the searched table; it is left out of the answer")
    asked.add_argument("--text", metavar="T", help="a text to encode and search for")
    asked.add_argument("--image", metavar="FILE", help="a picture to encode and search for")
    _configure_engine(parser)
    parser.add_argument("-k", type=int, default=10, help="how many neighbours (10)")
    parser.add_argument("--model", metavar="NAME", help="the table to search; by default the collection for a text")
    parser.add_argument("--exact", action="store_true", help="scan all rows of a table that has lists, too")
    parser.add_argument(
        "--deadline-ms", metavar="MS", type=float, help="the best that is found in so many milliseconds"
    )


def _search(arguments: argparse.Namespace) -> int:
    with _open(arguments) as runtime:
        found = runtime.search(
            arguments.key,
            text=arguments.text,
            image=arguments.image,
            k=arguments.k,
            model=arguments.model,
            exact=arguments.exact,
            deadline_ms=arguments.deadline_ms,
        )
        scores = found.scores.tolist()
        if arguments.json:
            neighbours = [{"key": spelled(key), "score": score} for key, score in zip(found.keys, scores, strict=True)]
            answer = {"generation": runtime.generation, "space": found.space, "complete": found.complete}
            print(json.dumps({**answer, "neighbours": neighbours}))
        else:
            for key, score in zip(found.keys, scores, strict=True):
                print(f"{score:7.4f}  {printable(key)}")
            if not found.complete:
                print("the deadline came first: these are the best of what was looked at", file=sys.stderr)
    return 0


BAG = Command(
    "bag",
    "one vector for several rows: their sum, mean or maximum",
    "edge-embed bag /var/lib/recommender --model genre 3 17 4 --mode mean",
    _configure_bag,
    _bag,
)


def _configure_classify(parser: argparse.ArgumentParser) -> None:
    _configure_answer(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="+")
    parser.add_argument("-k", type=int, default=1, help="how many labels (1)")
    parser.add_argument("--threshold", type=float, default=0.0, help="leave out what is less probable (0)")


def _classify(arguments: argparse.Namespace) -> int:
    with _open(arguments) as runtime:
        found = runtime.classify(arguments.texts, k=arguments.k, threshold=arguments.threshold)
        if arguments.json:
            answers = [
                {
                    "input": spelled(text),
                    "labels": [spelled(name) for name in of.labels],
                    "probabilities": of.probabilities.tolist(),
                }
                for text, of in zip(arguments.texts, found, strict=True)
            ]
            print(json.dumps({"generation": runtime.generation, "answers": answers}))
            return 0
        for text, of in zip(arguments.texts, found, strict=True):
            named = zip(of.labels, of.probabilities.tolist(), strict=True)
            print(printable(text), *(f"{printable(name)} {probability:.4f}" for name, probability in named), sep="  ")
    return 0


LOOKUP = Command("lookup", "vectors of keys", "edge-embed lookup /var/lib/words king queen", _configure_lookup, _lookup)
ENCODE = Command(
    "encode", "vectors of texts", 'edge-embed encode /var/lib/notes "the board is warm"', _configure_encode, _encode
)
SEARCH = Command(
    "search",
    "nearest neighbours of a key or a text",
    'edge-embed search /var/lib/notes --text "the board is warm" -k 3',
    _configure_search,
    _search,
)
CLASSIFY = Command(
    "classify",
    "labels of texts, with their probabilities",
    'edge-embed classify /var/lib/topics "how do I boil an egg" -k 3',
    _configure_classify,
    _classify,
)
