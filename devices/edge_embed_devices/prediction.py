"""What a bundle takes on a board, from the board's profile: a roofline of bytes, reads, products and page faults.

* A call costs the interpreter some calls of an empty function, whatever it asks for: ``_LOOKUP`` and its kin, counted
  on x86-64 with CPython 3.11 and the native kernels.
* A lookup reads its index, its row and its scale at random: each read is as slow as the memory that holds the table.
  A scan reads rows in order, as fast as the kernels scan a table of that size.
* A graph multiplies each token, or an image, with its weights, as fast as its engine runs a transformer there, and goes
  through all of its weights once a text. What has not been measured on a board is guessed from its cores' clock and
  instructions.
* What does not fit into the memory that a board has to spare is read from flash: a page for each read of a lookup, the
  missing part of what it goes through for a scan.
* A page that is in memory faults once, when it is touched first: who serves has that behind him, at p50 and at p99.
* A profile without a figure is helped out by one that is like it, and ``guessed`` names it. A guess errs on the slow
  side; without figures of flash, what waits for it is not predicted.
* Texts are those that a bundle is checked by, its golden ones: the typical one decides the p50, the longest the p99.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from edge_embed_bundle.encoders import EncoderModel
from edge_embed_bundle.manifest import Manifest, TableModel, TextRecipe
from edge_embed_devices.graph_work import Work
from edge_embed_devices.profiles import FIGURES, Board

# Empty calls that an operation is worth (a batch and bags 2026-11-26, others 2026-11-27): a lookup; a batch, and each
# key of one, and the odd end of its row; a request of bags, and each table in it.
_LOOKUP, _BATCH, _BATCH_KEY, _ODD_END, _BAGS, _BAG = 9.6, 13, 0.85, 0.25, 15, 20
# Likewise a search, by the bytes that it scans: they drive out of the nearer caches what the interpreter works with.
_SEARCH = MappingProxyType({2**19: 1200.0, 3 * 2**20: 2600.0})
# Likewise a text, and each token of it, by who finds the tokens; and the random reads of a token. Words are looked up,
# any as likely as another; of a vocabulary of parts most are frequent ones, whose rows a nearer cache holds. fastText's
# words have parts.
_TEXTS = MappingProxyType(
    {"whitespace": (195, 13.0, 1.0), "huggingface": (205, 4.2, 0.3), "fasttext": (115, 110.0, 1.0)}
)
# A question that is no text of a golden one; letters of a token, rather more in a text of English.
_USUAL_TOKENS, _TOKEN_BYTES = 64, 4.5
# A graph of fewer products for a token does something else that takes longer.
_FEW_PRODUCTS = 100_000
# Random reads beyond the caches that wait for one another: of a lookup; of a key in a batch, which asks ahead, for its
# slot and its scale, and for each line of its row.
_READS, _BATCH_KEY_READS, _BATCH_LINE_READS = 3.5, 0.10, 0.09
# What a batch makes is written where the batch before was, which a nearer cache may hold than rows of 4 MiB.
_WRITTEN_TO_SCANNED = 1.35
_LINE_BYTES = 64
# Those of a row that is compared behind a plane: it is asked for before, but is many lines long.
_COMPARED_READS = 2.0
BATCH_KEYS = 1000

# Memory whose random reads are those that others are measured beyond.
_NEAR_BYTES = 16 * 2**10
# Where the profile does not say: an empty call on a machine that copies 12 GB/s (2026-11-26), slower as memory is.
_CALL_NS, _COPY_BYTES_PER_S = 57.0, 12e9
_RANDOM_READ_NS = 200.0
# Products a cycle at the most, of float32 and of codes, with NEON's dot products and without; what an engine reaches of
# that: .29 is MobileNet v1 (568 million products of codes) in 164 ms on a Cortex-A53 of 1.5 GHz
# (https://coral.ai/docs/edgetpu/benchmarks/). A core whose clock nobody said has 1 GHz, and 4 at the most.
_PEAK = MappingProxyType({True: {"float32": 8, "int8": 32}, False: {"float32": 4, "int8": 8}})
_OF_PEAK = 0.29
_CORE_HZ, _FASTEST_CORE_HZ = 1e9, 4e9
# What a random read of flash is measured by.
_READ_BYTES = 4096
# What the kernel, the system and the process itself leave for pages of a bundle.
_SPARE_SHARE = 0.75
# Between the typical call and the hundredth slowest on a quiet machine.
_TAIL = 2.0
_ROW_NUMBERS = 16
_NUMBER_BYTES = 4
_WEIGHT_BYTES = MappingProxyType({"float32": 4, "int8": 1})


@dataclass(frozen=True)
class Latency:
    """What an operation is predicted to take; None where flash decides and the profile does not know it."""

    p50_us: float | None
    p99_us: float | None


@dataclass(frozen=True)
class Prediction:
    """What a bundle is predicted to take on a board."""

    board: str
    memory_private_bytes: int
    #: Pages of the bundle that find room in memory.
    resident_bytes: int
    flash_bytes: int
    operations: Mapping[str, Latency]
    #: Figures that the profile does not have.
    guessed: tuple[str, ...]
    #: Operations whose graph is none of a transformer, which the figures of engines are of.
    rougher: tuple[str, ...] = ()


def predict(
    manifest: Manifest,
    board: Board,
    works: Mapping[str, Work] = MappingProxyType({}),
    *,
    tokens: int | None = None,
    least: bool = False,
) -> Prediction:
    """Predict the memory of a bundle and the latency of its operations.

    Args:
        manifest: the bundle's.
        board: the profile.
        works: what the graph of each encoder takes, by the encoder's name; one that is not there is not predicted.
        tokens: the length of a text; those of the golden texts if not given.
        least: in the place of guesses take what no board of its kind is better than; how long a tail is stays a guess.
    """
    private_bytes = manifest.requirements.memory_private_bytes
    spare_bytes = max(0, int(board.ram_bytes * (1 if least else _SPARE_SHARE)) - private_bytes)
    resident_bytes = min(manifest.size_bytes, spare_bytes)
    missing = 1 - resident_bytes / max(1, manifest.size_bytes)
    if least:
        board = _at_best(board)
    operations: dict[str, Latency] = {}
    wanted = {"memory_random_read_ns", "python_call_ns", "scan_gb_per_s"} if manifest.tables else {"python_call_ns"}
    for model in manifest.encoders:
        if model.name in works and model.operation not in operations:
            work, format = works[model.name], model.graphs[0].format
            wanted |= {f"{_kind(work, format)}_products_g_per_s", f"{_kind(work, format)}_weights_g_per_s"}
            lengths = (tokens, tokens) if tokens else _token_counts(manifest, model)
            latencies = [run(work, format, board, each, missing, least=least) for each in lengths]
            operations[model.operation] = _of_texts(latencies)
    if manifest.tables:
        operations = {**_of_tables(manifest, board, tokens, missing, operations), **operations}
    if missing:
        wanted |= {"flash_random_reads_per_s", "flash_sequential_read_mb_per_s"}
    return Prediction(
        board.name,
        private_bytes,
        resident_bytes,
        manifest.size_bytes,
        operations,
        tuple(name for name in FIGURES if name in wanted and getattr(board, FIGURES[name].attribute) is None),
        tuple(model.operation for model in manifest.encoders if model.name in works and _is_rough(model, works)),
    )


def _at_best(board: Board) -> Board:
    """Return the board with the best that one of its kind may have in the place of what its profile does not say."""
    return replace(
        board,
        python_call_ns=board.python_call_ns or 0.0,
        memory_random_read_ns=board.memory_random_read_ns or 0.0,
        # Who copies reads and writes: what is read alone may come twice as fast.
        memory_read_bytes_per_s=board.memory_read_bytes_per_s or 2 * board.memory_copy_bytes_per_s,
        core_hz=board.core_hz or _FASTEST_CORE_HZ,
    )


def _of_tables(
    manifest: Manifest, board: Board, tokens: int | None, missing: float, encoded: Mapping[str, Latency]
) -> dict[str, Latency]:
    first = manifest.tables[0]
    operations = {"lookup": lookup(first, board, missing), "batch": batch(first, board, missing)}
    if first.text is not None:
        lengths = (tokens, tokens) if tokens else _token_counts(manifest, first)
        latency = _of_texts([encode(first, board, each or 0, missing) for each in lengths])
        operations["classify" if first.classify is not None else "encode"] = latency
    pooled = [model for model in manifest.tables if model.bag is not None]
    if pooled:
        operations["bag"] = bag(pooled, board, missing)
    searched = [model for model in manifest.tables if "norms" in model.tensors and model.classify is None]
    if searched:
        largest = max(searched, key=lambda model: scanned_rows(model) * model.dimensions)
        found = search(largest, board, missing)
        by = next((asked.by for asked in manifest.golden if asked.operation == "search"), "key")
        before = {**operations, **encoded}.get({"text": "encode", "image": "encode_image"}.get(by, ""))
        operations["search"] = found if before is None else _added(before, found)
    return operations


def scanned_rows(model: TableModel) -> int:
    """Return how many rows a search for ten neighbours goes through, its centroids among them."""
    return sum(rows for rows, _ in _scans(model))


def lookup(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of one key, any row as likely as another."""
    warm_us = (_LOOKUP * _call_ns(board) + _READS * random_read_ns(board, _table_bytes(model))) / 1000
    return _with_flash(warm_us, _faults(model), missing, board)


def batch(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of ``BATCH_KEYS`` keys at once."""
    row_bytes = _row_bytes(model, "rows")
    # A row that does not end with a line has one more, nearly, and numbers that are decoded apart.
    is_odd = bool(row_bytes % _LINE_BYTES)
    lines = row_bytes / _LINE_BYTES + is_odd
    scanned_per_s = board.scan_4_mib_bytes_per_s
    written_per_s = _WRITTEN_TO_SCANNED * scanned_per_s if scanned_per_s else board.memory_copy_bytes_per_s
    key_ns = (
        (_BATCH_KEY + _ODD_END * is_odd) * _call_ns(board)
        + (_BATCH_KEY_READS + _BATCH_LINE_READS * lines) * random_read_ns(board, _table_bytes(model))
        + _NUMBER_BYTES * model.dimensions / written_per_s * 1e9
    )
    warm_us = (_BATCH * _call_ns(board) + BATCH_KEYS * key_ns) / 1000
    return _with_flash(warm_us, BATCH_KEYS * _faults(model), missing, board)


def encode(model: TableModel, board: Board, tokens: float, missing: float = 0) -> Latency:
    """Return the latency of a text of so many tokens by a static encoder."""
    calls, per_token, reads = _TEXTS["whitespace" if model.text is None else model.text.tokenizer]
    reads_ns = tokens * reads * random_read_ns(board, _table_bytes(model))
    warm_us = ((calls + tokens * per_token) * _call_ns(board) + reads_ns) / 1000
    return _with_flash(warm_us, tokens * _faults(model), missing, board)


def bag(models: Sequence[TableModel], board: Board, missing: float = 0) -> Latency:
    """Return the latency of a request that asks each of some tables for a bag of a few rows."""
    reads_ns = sum(random_read_ns(board, _table_bytes(model)) for model in models)
    warm_us = ((_BAGS + len(models) * _BAG) * _call_ns(board) + reads_ns) / 1000
    return _with_flash(warm_us, sum(map(_faults, models)), missing, board)


def run(
    work: Work, format: str, board: Board, tokens: float | None, missing: float = 0, *, least: bool = False
) -> Latency:
    """Return the latency of a text of so many tokens, or of an image (None), by a graph.

    Args:
        work: what the graph takes for a token, or for an image.
        format: of the graph.
        board: the profile.
        tokens: of the text.
        missing: the share of the weights that flash has alone.
        least: where the profile has no figure of the engine, suppose one that wastes no cycle.
    """
    kind, variant = _kind(work, format), "int8" if work.is_coded else "float32"
    products_per_s = getattr(board, f"{kind}_products_per_s")
    weights_per_s = getattr(board, f"{kind}_weights_per_s")
    if products_per_s is None:
        peak_per_s = _PEAK["dotprod" in board.isa][variant] * (board.core_hz or _CORE_HZ)
        products_per_s = peak_per_s * (1 if least else _OF_PEAK)
    if weights_per_s is None:
        weights_per_s = (board.memory_read_bytes_per_s or board.memory_copy_bytes_per_s) / _WEIGHT_BYTES[variant]
    calls, per_token, _ = _TEXTS["huggingface"]
    interpreter_us = (calls + (tokens or 0) * per_token) * _call_ns(board) / 1000
    products_s = (1 if tokens is None else tokens) * work.products / products_per_s
    weights_s = work.weights / weights_per_s
    # At best weights come while others are multiplied.
    warm_us = interpreter_us + 1e6 * (max(products_s, weights_s) if least else products_s + weights_s)
    if not missing:
        return Latency(_rounded(warm_us), _rounded(_TAIL * warm_us))
    if board.flash_read_bytes_per_s is None:
        return Latency(None, None)
    cold_us = warm_us + missing * work.weights * _WEIGHT_BYTES[variant] / board.flash_read_bytes_per_s * 1e6
    return Latency(_rounded(cold_us), _rounded(_TAIL * cold_us))


def _is_rough(model: EncoderModel, works: Mapping[str, Work]) -> bool:
    return model.image is not None or works[model.name].products < _FEW_PRODUCTS


def _kind(work: Work, format: str) -> str:
    return f"{format}_{'int8' if work.is_coded else 'float32'}"


def _token_counts(manifest: Manifest, model: EncoderModel | TableModel) -> tuple[float | None, float | None]:
    """Return the tokens of the typical and of the longest text that a bundle is checked by; None for images."""
    recipe = model.text
    if recipe is None:
        return None, None
    texts = [text for asked in manifest.golden if asked.operation in ("encode", "classify") for text in asked.inputs]
    splits = isinstance(recipe, TextRecipe) and recipe.tokenizer != "huggingface"
    counts = [len(text.split()) if splits else math.ceil(len(text.encode()) / _TOKEN_BYTES) for text in texts]
    lengths = [min(count, recipe.max_tokens) for count in counts] or [min(_USUAL_TOKENS, recipe.max_tokens)]
    return statistics.median(lengths), max(lengths)


def _of_texts(latencies: Sequence[Latency]) -> Latency:
    """Return the latency of texts, the typical one and the longest: each of several is asked as often."""
    typical, longest = latencies
    if typical.p99_us is None or longest.p50_us is None:
        return Latency(None, None)
    return Latency(typical.p50_us, max(typical.p99_us, longest.p50_us))


def _added(first: Latency, then: Latency) -> Latency:
    if first.p50_us is None or first.p99_us is None or then.p50_us is None or then.p99_us is None:
        return Latency(None, None)
    return Latency(_rounded(first.p50_us + then.p50_us), _rounded(first.p99_us + then.p99_us))


def search(model: TableModel, board: Board, missing: float = 0) -> Latency:
    """Return the latency of a search for ten neighbours of a key."""
    scans, compared = _scans(model), _compared_rows(model)
    scanned_bytes = sum(rows * row_bytes for rows, row_bytes in scans)
    calls = _between(_SEARCH, scanned_bytes)
    scan_ns = sum(rows * _scan_row_ns(row_bytes, _table_bytes(model), board) for rows, row_bytes in scans)
    compare_ns = compared * _COMPARED_READS * random_read_ns(board, _table_bytes(model))
    warm_us = (calls * _call_ns(board) + scan_ns + compare_ns) / 1000
    if not missing:
        return Latency(_rounded(warm_us), _rounded(_TAIL * warm_us))
    if board.flash_read_bytes_per_s is None or (compared and board.flash_random_reads_per_s is None):
        return Latency(None, None)
    scan_s = scanned_bytes / board.flash_read_bytes_per_s
    compare_s = compared * _page_s(board, board.flash_random_reads_per_s) if board.flash_random_reads_per_s else 0.0
    cold_us = warm_us + missing * (scan_s + compare_s) * 1e6
    return Latency(_rounded(cold_us), _rounded(_TAIL * cold_us))


def _scans(model: TableModel) -> list[tuple[int, float]]:
    """Return how many rows of how many bytes a search for ten neighbours goes through, of one kind after the other."""
    if model.search is None:
        return [(model.rows, _row_bytes(model, "rows"))]
    lists = model.tensors["list_ends"].shape[0]
    in_lists = -(-model.rows * model.search.probes // lists)
    scanned = "rows" if model.search.shortlist is None else "plane"
    return [(lists, _row_bytes(model, "centroids")), (in_lists, _row_bytes(model, scanned))]


def _compared_rows(model: TableModel) -> int:
    """Return how many rows a search for ten neighbours compares behind a plane."""
    return 0 if model.search is None else 10 * (model.search.shortlist or 0)


def random_read_ns(board: Board, size_bytes: int) -> float:
    """Return what a dependent read in that much memory takes beyond the nearest cache."""
    points = {
        _NEAR_BYTES: None if board.memory_random_read_1_mib_ns is None else 0.0,
        2**20: board.memory_random_read_1_mib_ns,
        4 * 2**20: board.memory_random_read_4_mib_ns,
        64 * 2**20: board.memory_random_read_64_mib_ns,
        512 * 2**20: _RANDOM_READ_NS if board.memory_random_read_ns is None else board.memory_random_read_ns,
    }
    return _between(points, size_bytes)


def _scan_row_ns(row_bytes: float, table_bytes: int, board: Board) -> float:
    """Return what a row takes: something for itself, and its bytes at the speed of the memory that holds the table."""
    speeds = {
        4 * 2**20: board.scan_4_mib_bytes_per_s,
        64 * 2**20: board.scan_64_mib_bytes_per_s,
        512 * 2**20: board.scan_bytes_per_s or board.memory_read_bytes_per_s or board.memory_copy_bytes_per_s,
    }
    times = {size: None if speed is None else 256 / speed * 1e9 for size, speed in speeds.items()}
    row_256_ns = _between(times, table_bytes)
    # What nobody measured is told by the bytes alone.
    least_ns = row_256_ns * _ROW_NUMBERS / 256
    row_ns = least_ns if board.scan_row_ns is None else min(board.scan_row_ns, row_256_ns)
    # Of codecs that are computed and not just read, this is the least that it can be.
    return row_ns + max(0.0, row_bytes - _ROW_NUMBERS) * (row_256_ns - row_ns) / (256 - _ROW_NUMBERS)


def _between(points: Mapping[int, float] | Mapping[int, float | None], size_bytes: float) -> float:
    """Return the value at a size, on a line through the known points over the logarithm of their sizes."""
    known = [(size, value) for size, value in points.items() if value is not None]
    below = max((point for point in known if point[0] <= size_bytes), default=known[0])
    above = min((point for point in known if point[0] >= size_bytes), default=known[-1])
    if below[0] == above[0]:
        return below[1]
    share = math.log(size_bytes / below[0]) / math.log(above[0] / below[0])
    return below[1] + share * (above[1] - below[1])


def _call_ns(board: Board) -> float:
    if board.python_call_ns is not None:
        return board.python_call_ns
    return _CALL_NS * max(1.0, _COPY_BYTES_PER_S / board.memory_copy_bytes_per_s)


def _row_bytes(model: TableModel, tensor: str) -> float:
    found = model.tensors[tensor]
    return found.size_bytes / max(1, found.shape[0])


def _table_bytes(model: TableModel) -> int:
    return max(1, sum(tensor.size_bytes for tensor in model.tensors.values()))


def _faults(model: TableModel) -> float:
    """Return the pages that one key touches: its slot, its row, its scale."""
    return 2.0 + ("scales" in model.tensors)


def _with_flash(warm_us: float, pages: float, missing: float, board: Board) -> Latency:
    """Return the latency where ``missing`` of the pages that a call touches have to be read from flash."""
    if not missing:
        return Latency(_rounded(warm_us), _rounded(_TAIL * warm_us))
    if board.flash_random_reads_per_s is None:
        return Latency(None, None)
    page_us = 1e6 * _page_s(board, board.flash_random_reads_per_s)
    # The typical call waits for a page only if more than half of them do; the hundredth slowest for all of its own.
    waiting = pages * missing
    typical_us = warm_us + (waiting if waiting >= 1 else round(waiting)) * page_us
    return Latency(_rounded(typical_us), _rounded(_TAIL * warm_us + pages * page_us))


def _page_s(board: Board, reads_per_s: float) -> float:
    """Return what a page takes: the first 4 KiB of it by a random read, the rest of a larger one by what follows it."""
    beyond_bytes = board.page_size_bytes - _READ_BYTES
    if board.flash_read_bytes_per_s is not None:
        return 1 / reads_per_s + beyond_bytes / board.flash_read_bytes_per_s
    return (1 + beyond_bytes / _READ_BYTES) / reads_per_s


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
