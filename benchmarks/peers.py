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
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

#: What each peer finds in the folder.
STORE, ROWS, KEYS, KEYED_VECTORS = "store", "rows.npy", "keys.txt", "vectors.kv"


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


def open_numpy(folder: str) -> Peer:
    """Open a mapped array and a dict of the keys: what one writes without any library."""
    import numpy as np

    # A plain array over the map: numpy.memmap itself costs a microsecond more per row.
    rows: Vectors = np.asarray(np.load(f"{folder}/{ROWS}", mmap_mode="r"))
    with open(f"{folder}/{KEYS}", encoding="utf-8") as file:  # noqa: PTH123 (a path object is one more import)
        place_of = {key: place for place, key in enumerate(file.read().split("\n"))}

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


def open_nothing(folder: str) -> Peer:
    """Open no table: numpy alone, the floor under every peer."""
    import numpy as np

    nothing = np.zeros(0, np.float32)
    return Peer(lambda _: nothing, lambda _: nothing, lambda _: nothing)


#: Every peer by its name, edge-embed first; the floor is measured beside them and is none of them.
PEERS = {"edge-embed": open_edge_embed, "numpy": open_numpy, "gensim": open_gensim}
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
