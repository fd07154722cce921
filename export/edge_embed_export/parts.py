"""From a source's tables to parts of a bundle: encoded, indexed, each with its recipes, and not yet written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels
from edge_embed.errors import RequestError
from edge_embed.kernels.reference import decode_plane
from edge_embed.progress import Progress
from edge_embed.text import HuggingFaceTokenizer, TextEncoder
from edge_embed_bundle.manifest import (
    HASH_ALGORITHM,
    INDEX_ALGORITHM,
    SEARCH_ALGORITHM,
    BagRecipe,
    ClassifyRecipe,
    HashRecipe,
    KeyIndex,
    SearchRecipe,
    SubwordRecipe,
    TextRecipe,
)
from edge_embed_bundle.values import DIMENSIONS_CEILING, NAME, Space
from edge_embed_devices.profiles import board_named
from edge_embed_export.clusters import FEWEST_ROWS, BeyondCentroids, Clusters
from edge_embed_export.codecs import Encoded, decoded_blocks, encode_plane, encoder
from edge_embed_export.key_index import build_index
from edge_embed_export.matrix import Matrix, blocks_of
from edge_embed_export.options import ALL_TABLES, COLLECTION, Hashing, Options
from edge_embed_export.preparing import in_lists
from edge_embed_export.sources import Source, SourceTable
from edge_embed_export.sticky import encode_as_before

TOKENIZER_BLOB = "tokenizer.json"

# Labels are few, and a rounding of theirs is a rounding of every answer.
_LABELS_CODEC = "float32"
_FINER_THAN_PLANE = ("float32", "float16", "int8")
# What is left to the rows of one table where a system, an application and other files want to stay in memory, too.
_SHARE_OF_RAM = 2
_LINES_AT_A_TIME = 64
# The smallest normal number of float32 and eight digits more.
_SHORTEST = 1e-30


@dataclass(frozen=True, eq=False)
class Part:
    """One table on its way into the bundle: its model without places, and the arrays that get them."""

    name: str
    codec: str
    vectors: Matrix
    #: What the vectors are compared with: longer ones, where they were made shorter.
    whole: Matrix
    codes: Encoded
    shared: Encoded
    row_order: str
    index: KeyIndex | None
    text: TextRecipe | None
    graphs: tuple[str, ...]
    space: Space | None = None
    bag: BagRecipe | None = None
    hash: HashRecipe | None = None
    subwords: SubwordRecipe | None = None
    classify: ClassifyRecipe | None = None
    search: SearchRecipe | None = None
    clusters: Clusters | None = None
    is_helper: bool = False


def check_tables(source: Source, options: Options) -> None:
    """Refuse names that are none, and what no cosine can be taken of: NaN, infinity, numbers of too large squares.

    Raises:
        RequestError: a table or an option for one cannot be exported; the error names the row and its key.
    """
    names = [table.name for table in source.tables]
    if options.collection and COLLECTION in names:
        raise RequestError(f"{source.title}: expected tables of other names than {COLLECTION} beside a collection")
    strangers = {*options.codecs, *options.bags, *options.hashes} - {*names, ALL_TABLES}
    if strangers:
        raise RequestError(
            f"{source.title}: expected options for the tables {', '.join(names)}, found {', '.join(sorted(strangers))}"
        )
    if not names or len(set(names)) != len(names) or not all(map(NAME.fullmatch, names)):
        raise RequestError(f"{source.title}: expected tables, each with a name of its own, found {names}")
    for table in source.tables:
        dimensions = table.vectors.shape[1]
        if dimensions > DIMENSIONS_CEILING:
            raise RequestError(
                f"{source.title}: expected at most {DIMENSIONS_CEILING} dimensions, found {dimensions} in {table.name}"
            )
        for block in blocks_of(table.vectors):
            with np.errstate(over="ignore"):
                lengths = np.linalg.norm(table.vectors[block], axis=1)
            endless = np.flatnonzero(~np.isfinite(lengths))
            short = np.flatnonzero(_is_too_short(table.vectors[block], lengths))
            if len(endless):
                place = _row_said(table, source.title, block.start + int(endless[0]))
                raise RequestError(f"{place}: expected a vector of finite length, found {lengths[endless[0]]}")
            if len(short):
                place = _row_said(table, source.title, block.start + int(short[0]))
                raise RequestError(
                    f"{place}: expected zeros or a vector of length {_SHORTEST:g} or more, found a shorter one; "
                    "multiply the table by a number"
                )


def _row_said(table: SourceTable, title: str, row: int) -> str:
    key = "" if table.keys is None else f" ({table.keys[row]!r})"
    return f"{table.name} of {title}: row {row}{key}"


def _is_too_short(vectors: NDArray[np.float32], lengths: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rows ``(n,)`` are no zeros, and so short that float32 has hardly a digit of their products."""
    short = lengths < 1e-15  # squares may have gone to zero: those are looked at again
    short[short] = np.linalg.norm(vectors[short].astype(np.float64), axis=1) < _SHORTEST
    return short & vectors.any(axis=1)


def parts_of(source: Source, options: Options, progress: Progress) -> list[Part]:
    """Return the source's tables and, where one is asked for, the collection's."""
    parts = []
    for table in source.tables:
        part = _part(table, source.title, options.codecs.get(table.name, options.codec), options.graphs, options)
        if table.is_helper:
            # Its rows are in the space of the table that reads them, and nobody else asks it.
            parts.append(part)
            continue
        bag = options.bags.get(table.name, options.bags.get(ALL_TABLES))
        hashing = options.hashes.get(table.name, options.hashes.get(ALL_TABLES))
        space = None if table.space_id == source.table.space_id else space_of(table, f"{source.title}: {table.name}")
        hashed = None if hashing is None else _hash_recipe(table, hashing, source.title)
        if bag is not None and bag.padding_row is not None and bag.padding_row >= len(table.vectors):
            raise RequestError(
                f"{table.name} of {source.title}: expected a padding row below {len(table.vectors)}, "
                f"found {bag.padding_row}"
            )
        parts.append(replace(part, space=space, bag=bag, hash=hashed))
    if options.collection:
        encode = _static_encoder(source).encode
        collection = collection_of(options.collection, encode, source.table.weights_digest, progress)
        parts.append(collection_part(collection, source.title, options.codec, options, progress))
    return parts


def collection_part(table: SourceTable, title: str, codec: str, options: Options, progress: Progress) -> Part:
    """Return a collection, encoded and indexed; a large one in lists: nobody asks for its rows but a search."""
    if len(table.vectors) >= FEWEST_ROWS:
        table = in_lists(table, progress)
    return _part(table, title, codec, (), options)


def space_of(table: SourceTable, title: str) -> Space:
    """Return the space of a table, which says in words where it comes from."""
    # A file's name may hold bytes that are no UTF-8; JSON may not.
    said = title.encode("utf-8", "backslashreplace").decode()
    revision = None if table.space is None else table.space.revision
    return Space(table.space_id, table.vectors.shape[1], "cosine", said, revision)


def _hash_recipe(table: SourceTable, hashing: Hashing, title: str) -> HashRecipe:
    rows = len(table.vectors)
    count = rows - hashing.first_row if hashing.rows is None else hashing.rows
    if count < 1 or hashing.first_row + count > rows:
        raise RequestError(
            f"{table.name} of {title}: expected rows for hashed ids within 0 to {rows - 1}, "
            f"found {count} from {hashing.first_row} on"
        )
    return HashRecipe(HASH_ALGORITHM, hashing.seed, hashing.first_row, count)


def _part(table: SourceTable, title: str, codec: str, graphs: tuple[str, ...], options: Options) -> Part:
    # floret's table of words is empty: nothing to store, to run or to price.
    is_empty = not len(table.vectors)
    is_labels = table.is_helper and table.keys is not None
    codec, encode = encoder("float32" if is_empty else _LABELS_CODEC if is_labels else codec)
    before = None if options.parent is None else options.parent.before(table, codec)
    try:
        codes = encode(table.vectors) if before is None else encode_as_before(before, table.vectors, encode)
        with_plane = _wants_plane(codec, codes, options)
        shared: dict[str, Matrix] = dict(table.tensors)
        if _is_searched(table):
            shared["norms"] = _norms(codec, codes, table.vectors)
        search = None if table.clusters is None else _in_lists(table, table.clusters, shared, with_plane)
        index = None if table.keys is None else _indexed(table.keys, shared)
    except RequestError as error:
        raise RequestError(f"{table.name} of {title}: {error}") from error
    return Part(
        table.name,
        codec,
        table.vectors,
        table.whole,
        codes,
        shared,
        table.row_order,
        index,
        _recipe(table),
        () if table.is_helper or is_empty else graphs,
        subwords=table.subwords,
        classify=table.classify,
        search=search,
        clusters=table.clusters,
        is_helper=table.is_helper,
    )


def _wants_plane(codec: str, codes: Encoded, options: Options) -> bool:
    """Whether a search is to go through 4 bits of each number first: where the rows would crowd a board's memory."""
    if codec not in _FINER_THAN_PLANE:
        return False
    crowded = codes["rows"].nbytes > board_named(options.board).ram_bytes // _SHARE_OF_RAM
    return crowded if options.plane is None else options.plane


def _is_searched(table: SourceTable) -> bool:
    """Whether a search may answer with a row's key: it has one, and the row is what it stands for, not a part."""
    parts = table.subwords is not None and table.subwords.rows == "parts" and table.subwords.maxn > 0
    return table.keys is not None and not table.is_helper and not parts and len(table.vectors) > 0


def _in_lists(table: SourceTable, clusters: Clusters, shared: dict[str, Matrix], with_plane: bool) -> SearchRecipe:
    """Add the tensors of a table's lists; that all are searched stands until it is measured how few are enough."""
    # Which lists are likely shows in 4 bits as well: one list in fifty more finds as much, in half the bytes.
    centroids = encode_plane(clusters.centroids)
    norms, lists = np.linalg.norm(clusters.centroids, axis=1), len(clusters.ends)
    shared |= {
        "centroids": centroids["rows"],
        "centroid_scales": centroids["scales"],
        "centroid_norms": norms,
        "list_ends": clusters.ends,
    }
    if with_plane:
        decoded = decode_plane(centroids["rows"][:], centroids["scales"][:], np.arange(lists), table.vectors.shape[1])
        plane = encode_plane(BeyondCentroids(table.vectors, clusters, decoded / norms[:, np.newaxis]))
        shared |= {"plane": plane["rows"], "plane_scales": plane["scales"]}
    return SearchRecipe(SEARCH_ALGORITHM, lists, 1.0, 0, 1 if with_plane else None)


def _norms(codec: str, codes: Encoded, vectors: Matrix) -> NDArray[np.float32]:
    """Return the length ``(n,)`` of each row as a board decodes it."""
    norms = np.empty(len(vectors), np.float32)
    at = 0
    for decoded in decoded_blocks(codec, codes, vectors.shape[1]):
        # In float64: the squares of a row of tiny numbers are zeros in float32.
        norms[at : at + len(decoded)] = np.linalg.norm(decoded.astype(np.float64), axis=1)
        at += len(decoded)
    return norms


def _indexed(keys: Sequence[bytes], shared: dict[str, Matrix]) -> KeyIndex:
    """Add the tensors of keys, in both directions."""
    index = build_index(keys)
    lengths = np.fromiter(map(len, keys), np.uint64, len(keys))
    total = int(lengths.sum())
    if total >= 2**32:
        raise RequestError(f"expected at most 4 GiB of keys, found {total} bytes")
    shared |= {
        "index_pilots": index.pilots,
        "index_slots": index.slots,
        "key_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
        "key_bytes": np.frombuffer(b"".join(keys), np.uint8),
    }
    return KeyIndex(INDEX_ALGORITHM, index.seed)


def _recipe(table: SourceTable) -> TextRecipe | None:
    text = table.text
    if text is None:
        return None
    if table.subwords is not None:
        pooling = "mean-of-directions" if table.subwords.rows == "words" else "mean"
        return TextRecipe("fasttext", None, pooling, normalize=False, max_tokens=text.max_tokens)
    return TextRecipe(
        tokenizer="whitespace" if text.tokenizer is None else "huggingface",
        tokenizer_blob=None if text.tokenizer is None else TOKENIZER_BLOB,
        pooling="mean",
        normalize=text.normalize,
        max_tokens=text.max_tokens,
        max_letters=text.max_letters,
        skipped_token=text.skipped_token,
    )


def tokenizer_of(source: Source) -> bytes | None:
    """Return the ``tokenizer.json`` of the source's encoder, if it has one."""
    return next((table.text.tokenizer for table in source.tables if table.text and table.text.tokenizer), None)


def _static_encoder(source: Source) -> TextEncoder:
    """Return the encoder of a source as its trainer left it, before any codec."""
    table = source.table
    if table.text is None or table.text.tokenizer is None:
        raise RequestError(f"{source.title}: expected a source with a tokenizer to encode a collection, found none")
    return TextEncoder(
        HuggingFaceTokenizer(
            table.text.tokenizer,
            table.text.max_tokens,
            source.title,
            max_letters=table.text.max_letters,
            skipped=table.text.skipped_token,
        ),
        lambda ids, counts: kernels.pool(table.vectors[ids], counts, "mean"),
        dimensions=table.vectors.shape[1],
        normalize=table.text.normalize,
    )


def collection_of(
    lines: Sequence[str],
    encode: Callable[[Sequence[str]], NDArray[np.float32]],
    weights_digest: str,
    progress: Progress,
) -> SourceTable:
    """Return lines of text with their vectors by an encoder of that digest."""
    blocks = []
    with progress.task("encoding the collection", len(lines)) as advance:
        for start in range(0, len(lines), _LINES_AT_A_TIME):
            blocks.append(encode(lines[start : start + _LINES_AT_A_TIME]))
            advance(len(blocks[-1]))
    keys = tuple(line.encode("utf-8") for line in lines)
    return SourceTable(COLLECTION, keys, np.concatenate(blocks), weights_digest)
