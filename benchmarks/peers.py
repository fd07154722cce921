"""The peers: how each opens the one table and answers from it.

* A peer's package is imported when the peer is opened: a process pays for one peer and for no other.
* Each is spelled the fastest way its manual offers, and every answer is memory of its own. A peer that hands out a
  view of its map is asked for a copy: without one, its time would not contain reading the row.
* ``python benchmarks/peers.py NAME FOLDER KEY`` is the smallest program with a peer: it opens, answers one key, and
  prints the private bytes of its process before and after. The comparison times it as a whole, so nothing stands at
  the top of this module that numpy does not import anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

#: What each peer finds in the folder.
STORE, ROWS, KEYS, KEYED_VECTORS = "store", "rows.npy", "keys.txt", "vectors.kv"
FLAT, GRAPH = "flat", "graph"


class Peer(NamedTuple):
    """What is measured: the vector ``(d,)`` of a key, ``(n, d)`` of keys, and the mean ``(d,)`` of keys; float32."""

    one: Callable[[str], Vectors]
    many: Callable[[list[str]], Vectors]
    bag: Callable[[list[str]], Vectors]


def open_edge_embed(folder: str) -> Peer:
    """Open the store as an application on a board does; it was verified when it was installed."""
    import edge_embed

    runtime = edge_embed.open(f"{folder}/{STORE}")
    return Peer(runtime.lookup, runtime.lookup, runtime.bag)


def open_edge_embed_bundle(folder: str) -> Peer:
    """Open the store's bundle for itself, as the peers open a file: it follows no store to newer ones."""
    import edge_embed

    with edge_embed.open(f"{folder}/{STORE}") as following:
        generation = following.bundle.path
    runtime = edge_embed.open(generation, verify=False)
    return Peer(runtime.lookup, runtime.lookup, runtime.bag)


def _places(folder: str) -> dict[str, int]:
    """Return the row of each key, for peers that know rows by number."""
    with open(f"{folder}/{KEYS}", encoding="utf-8") as file:  # noqa: PTH123 (a path object is one more import)
        return {key: place for place, key in enumerate(file.read().split("\n"))}


def open_numpy(folder: str) -> Peer:
    """Open a mapped array and a dict of the keys: what one writes without any library."""
    import numpy as np

    # A plain array over the map: numpy.memmap itself costs a microsecond more per row.
    rows: Vectors = np.asarray(np.load(f"{folder}/{ROWS}", mmap_mode="r"))
    place_of = _places(folder)

    def many(keys: list[str]) -> Vectors:
        return rows.take([place_of[key] for key in keys], axis=0)

    return Peer(lambda key: rows[place_of[key]].copy(), many, lambda keys: many(keys).mean(axis=0))


def open_gensim(folder: str) -> Peer:
    """Open gensim's native format, vectors mapped."""
    from gensim.models import KeyedVectors  # type: ignore[import-untyped,import-not-found,unused-ignore]

    table = KeyedVectors.load(f"{folder}/{KEYED_VECTORS}", mmap="r")
    return Peer(
        lambda key: table[key].copy(),
        lambda keys: table[keys],
        lambda keys: table.get_mean_vector(keys, pre_normalize=False),
    )


def open_finalfusion(folder: str) -> Peer:
    """Open finalfusion's own format, mapped; a batch goes through its storage."""
    import numpy as np
    from finalfusion import load_finalfusion  # type: ignore[import-untyped,import-not-found,unused-ignore]

    table = load_finalfusion(f"{folder}/{FLAT}", mmap=True)
    place_of, rows = table.vocab.word_index, np.asarray(table.storage)

    def many(keys: list[str]) -> Vectors:
        return rows.take([place_of[key] for key in keys], axis=0)

    return Peer(table.embedding, many, lambda keys: many(keys).mean(axis=0))


def open_fasttext(folder: str) -> Peer:
    """Load a model of words alone; it has no batches."""
    import fasttext  # type: ignore[import-untyped,import-not-found,unused-ignore]
    import numpy as np

    # The module prints a warning whenever a model is loaded.
    fasttext.FastText.eprint = lambda *_: None
    model = fasttext.load_model(f"{folder}/{FLAT}")

    def many(keys: list[str]) -> Vectors:
        return np.stack([model.get_word_vector(key) for key in keys])

    return Peer(model.get_word_vector, many, lambda keys: many(keys).mean(axis=0))


def open_model2vec(folder: str) -> Peer:
    """Load the vectors as a static model whose tokens are the keys: a key is a text of one token."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(f"{folder}/{FLAT}")

    def many(keys: list[str]) -> Vectors:
        found: Vectors = model.encode(keys, use_multiprocessing=False)
        return found

    return Peer(lambda key: many([key])[0], many, lambda keys: many([" ".join(keys)])[0])


def open_onnxruntime(folder: str) -> Peer:
    """Run the graph of edge-embed's own bundle, int8 rows gathered and scaled, behind a dict of the keys."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{folder}/bundle/table.onnx", options, providers=["CPUExecutionProvider"])
    place_of = _places(folder)

    def many(keys: list[str]) -> Vectors:
        found: Vectors = session.run(None, {"ids": np.array([place_of[key] for key in keys], np.int64)})[0]
        return found

    return Peer(lambda key: many([key])[0], many, lambda keys: many(keys).mean(axis=0))


def open_faiss(folder: str) -> Peer:
    """Map a flat index, behind a dict of the keys."""
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(f"{folder}/{FLAT}", faiss.IO_FLAG_MMAP)
    place_of = _places(folder)

    def many(keys: list[str]) -> Vectors:
        found: Vectors = index.reconstruct_batch(np.array([place_of[key] for key in keys], np.int64))
        return found

    return Peer(lambda key: index.reconstruct(place_of[key]), many, lambda keys: many(keys).mean(axis=0))


def open_usearch(folder: str) -> Peer:
    """Map an index, behind a dict of the keys."""
    import numpy as np
    from usearch.index import Index  # type: ignore[import-not-found,unused-ignore]

    index: Any = Index.restore(f"{folder}/{GRAPH}", view=True)
    place_of = _places(folder)

    def many(keys: list[str]) -> Vectors:
        # Of keys that stand twice it returns a tuple, else an array.
        return np.stack(index.get(np.array([place_of[key] for key in keys])))

    return Peer(lambda key: index.get(place_of[key]), many, lambda keys: many(keys).mean(axis=0))


def open_hnswlib(folder: str) -> Peer:
    """Load an index, behind a dict of the keys."""
    import hnswlib  # type: ignore[import-untyped,import-not-found,unused-ignore]
    import numpy as np

    place_of = _places(folder)
    with open(f"{folder}/dimensions", encoding="ascii") as file:  # noqa: PTH123
        index = hnswlib.Index("ip", int(file.read()))
    index.load_index(f"{folder}/{GRAPH}")

    def many(keys: list[str]) -> Vectors:
        return np.asarray(index.get_items([place_of[key] for key in keys]), np.float32)

    return Peer(lambda key: many([key])[0], many, lambda keys: many(keys).mean(axis=0))


def open_nothing(folder: str) -> Peer:
    """Open no table: numpy alone, the floor under every peer."""
    import numpy as np

    nothing = np.zeros(0, np.float32)
    return Peer(lambda _: nothing, lambda _: nothing, lambda _: nothing)


#: Every peer by its name, edge-embed first; the floor is measured beside them and is none of them.
PEERS = {
    "edge-embed": open_edge_embed,
    "edge-embed, pq": open_edge_embed,
    "edge-embed, numpy": open_edge_embed,
    "edge-embed, bundle": open_edge_embed_bundle,
    "numpy": open_numpy,
    "gensim": open_gensim,
    "finalfusion": open_finalfusion,
    "fasttext": open_fasttext,
    "model2vec": open_model2vec,
    "onnxruntime": open_onnxruntime,
    "faiss": open_faiss,
    "usearch": open_usearch,
    "hnswlib": open_hnswlib,
}
#: What a peer's processes have in their environment.
ENVIRONMENTS = {"edge-embed, numpy": {"EDGE_EMBED_PURE": "1"}}
#: The distribution of a peer, where it is called otherwise.
DISTRIBUTIONS = {
    "edge-embed, pq": "edge-embed",
    "edge-embed, numpy": "edge-embed",
    "edge-embed, bundle": "edge-embed",
    "fasttext": "fasttext-wheel",
    "faiss": "faiss-cpu",
}
FLOOR = "import numpy alone"


def private_bytes() -> int:
    """Return what this process holds in private memory, as Linux counts it (``RssAnon``)."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))


def main(name: str, folder: str, key: str) -> None:
    """Open, answer one key, and say what that took of private memory."""
    before = private_bytes()
    peer = {**PEERS, FLOOR: open_nothing}[name](folder)
    peer.one(key)
    print(f'{{"private_bytes": {private_bytes() - before}}}')


if __name__ == "__main__":
    main(*sys.argv[1:])
