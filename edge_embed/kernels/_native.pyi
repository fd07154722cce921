"""The C extension; see ``native/module.c``. What each means stands in ``pure`` and ``reference``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.kernels.pure import KeyIndex, Watched
from edge_embed.kernels.pure import Rows as RowsProtocol
from edge_embed.keys import Key

VARIANT: str

class Index:
    def __init__(self, pilots: NDArray[np.uint16], slots: NDArray[np.uint32], seed: int, row_count: int, /) -> None: ...
    def find(self, key: Key) -> int: ...
    def find_all(self, keys: Sequence[Key]) -> NDArray[np.int64]: ...

class open_rows:  # noqa: N801 (a type that is called like the function it stands for)
    def __init__(self, codec: str, tensors: Mapping[str, NDArray[Any]], dimensions: int, /) -> None: ...
    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def pool(
        self, ids: NDArray[np.int64], counts: NDArray[np.int64], weights: NDArray[np.float32] | None, mode: str
    ) -> NDArray[np.float32]: ...
    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def nearest(
        self,
        queries: NDArray[np.float32],
        norms: NDArray[np.float32],
        k: int,
        runs: NDArray[np.int64],
        wanted: NDArray[np.bool_] | None,
        without: NDArray[np.int64],
        deadline_ns: int,
        plane: RowsProtocol | None,
        length: int,
        bases: NDArray[np.float32] | None,
        /,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]: ...

class Shortcut:
    def __init__(
        self,
        index: KeyIndex | None,
        rows: RowsProtocol,
        mode: str,
        padding_row: int,
        watched: tuple[tuple[Watched, bytes], ...],
        noticed: Callable[[], bool],
        /,
    ) -> None: ...
    def lookup(self, asked: object, /) -> NDArray[np.float32] | None: ...
    def bag(self, asked: object, mode: str | None, /) -> NDArray[np.float32] | None: ...

def hash_key(key: bytes, seed: int, /) -> int: ...
def hash_keys(keys: Sequence[bytes], seed: int, /) -> NDArray[np.uint64]: ...
def pool(vectors: NDArray[np.float32], counts: NDArray[np.int64], mode: str, /) -> NDArray[np.float32]: ...
