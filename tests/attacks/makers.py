"""One maker per attack: each takes a copy of a good bundle's folder and makes one thing in it wrong.

* ``ATTACKS`` are seen without trusting a byte of the folder: opening refuses them, and no probe is ever asked.
* A maker that edits the manifest writes it back in the project's own spelling, so that only the edit is wrong.
* Attacks whose digests are right, because the attacker computed them anew, stand in ``hostile``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_embed_bundle import strict_json
from edge_embed_bundle.errors import (
    BundleError,
    DigestError,
    ManifestError,
    MissingBlobError,
    TruncatedError,
    UnsupportedFormatError,
)
from edge_embed_bundle.manifest import MANIFEST_NAME
from edge_embed_bundle.strict_json import MANIFEST_CEILING_BYTES
from edge_embed_bundle.values import SECTION_BYTES
from tests.making import WORDS

#: The blobs of the bundle that is attacked: one of each kind.
BLOBS = ("golden.bin", "table.bin", "table.onnx", "table.tflite")

Maker = Callable[[Path], None]
Place = tuple[str | int, ...]

#: In place of a new value: take the old one away.
ABSENT = object()

# The keys are the last section of their blob.
_KEY_BYTES = len("".join(WORDS).encode())


@dataclass(frozen=True)
class Attack:
    """What is done to the folder, the error that must come of it, what its message must say, and of which file."""

    make: Maker
    error: type[BundleError]
    says: str
    file: str = MANIFEST_NAME


def read_manifest(folder: Path) -> Any:
    """Return the manifest as plain JSON."""
    return json.loads((folder / MANIFEST_NAME).read_bytes())


def write_manifest(folder: Path, value: Any) -> None:
    """Write plain JSON as the manifest, in the project's own spelling."""
    (folder / MANIFEST_NAME).write_bytes(strict_json.dumps(value))


def set_at(manifest: Any, place: Place, value: Any) -> None:
    """Write ``value`` at one place of a manifest as plain JSON, or take away what stands there."""
    parent = manifest
    for step in place[:-1]:
        parent = parent[step]
    if isinstance(parent, dict) and not isinstance(place[-1], str):
        raise TypeError("an earlier change put an object where a list was; JSON has no numbers for names")
    if value is ABSENT:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value


def put(value: Any, *place: str | int) -> Maker:
    """Return the maker that writes ``value`` at one place of the manifest and leaves the rest."""

    def make(folder: Path) -> None:
        manifest = read_manifest(folder)
        set_at(manifest, place, value)
        write_manifest(folder, manifest)

    return make


def manifest_of(data: bytes) -> Maker:
    """Return the maker that writes raw bytes in place of the manifest."""
    return lambda folder: _replace(folder / MANIFEST_NAME, data)


def spelled(old: bytes, new: bytes) -> Maker:
    """Return the maker that changes the spelling of the manifest at the first place where ``old`` stands."""

    def make(folder: Path) -> None:
        data = (folder / MANIFEST_NAME).read_bytes()
        if old not in data:
            raise ValueError(f"the manifest does not hold {old!r}")
        (folder / MANIFEST_NAME).write_bytes(data.replace(old, new, 1))

    return make


def flip_bit(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _flipped(name: str) -> Maker:
    return lambda folder: flip_bit(folder / name, (folder / name).stat().st_size // 2, 3)


def _truncated(name: str) -> Maker:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def _emptied(name: str) -> Maker:
    return lambda folder: os.truncate(folder / name, 0)


def _lengthened(name: str) -> Maker:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size + 1)


def _missing(name: str) -> Maker:
    return lambda folder: (folder / name).unlink()


def _link_inside(name: str) -> Maker:
    def make(folder: Path) -> None:
        (folder / name).rename(folder / "elsewhere")
        (folder / name).symlink_to("elsewhere")

    return make


def _link_outside(name: str) -> Maker:
    def make(folder: Path) -> None:
        outside = folder.with_name(f"{folder.name}-{name}")
        shutil.copy(folder / name, outside)
        (folder / name).unlink()
        (folder / name).symlink_to(outside)

    return make


def _folder(name: str) -> Maker:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


def _pipe(name: str) -> Maker:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def _link_to_device(name: str) -> Maker:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return make


def _sparse_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST_NAME, 2**30)


def _too_long_manifest(folder: Path) -> None:
    data = (folder / MANIFEST_NAME).read_bytes()
    (folder / MANIFEST_NAME).write_bytes(data.ljust(MANIFEST_CEILING_BYTES + 1))


def _two_models_of_one_name(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest["models"] *= 2
    write_manifest(folder, manifest)


def _many_keys_and_one_twice(folder: Path) -> None:
    # A search for the second one that starts anew at each key would take minutes.
    keys = [f"k{i:05}" for i in range(50_000)]
    _replace(folder / MANIFEST_NAME, b"{%s}" % ",".join(f'"{key}":1' for key in (*keys, keys[-1])).encode())


def _files() -> Iterator[tuple[str, Attack]]:
    """What can happen to any file of a bundle, the manifest as well."""
    for name in (MANIFEST_NAME, *BLOBS):
        for what, maker, says in (
            ("missing", _missing, "expected a plain file, found: No such file"),
            ("a link inside", _link_inside, "expected a plain file, found: Too many levels of symbolic links"),
            ("a link outside", _link_outside, "expected a plain file, found: Too many levels of symbolic links"),
            ("a link to a device", _link_to_device, "expected a plain file, found: Too many levels of symbolic links"),
            ("a folder", _folder, "expected a plain file, found drwx"),
            ("a pipe", _pipe, "expected a plain file, found prw"),
        ):
            yield f"{name} {what}", Attack(maker(name), MissingBlobError, says, name)
    for name in BLOBS:
        yield f"{name} with a flipped bit", Attack(_flipped(name), DigestError, "expected sha256", name)
        for what, maker in (("truncated", _truncated), ("lengthened", _lengthened), ("emptied", _emptied)):
            yield f"{name} {what}", Attack(maker(name), TruncatedError, " bytes, found ", name)


def _manifest_as_a_file() -> Iterator[tuple[str, Attack]]:
    """The manifest before anything in it has a meaning."""
    for name, make, says in (
        ("empty", manifest_of(b""), "expected strict JSON"),
        ("white space", manifest_of(b" \n"), "expected strict JSON"),
        ("cut in the middle", lambda folder: os.truncate(folder / MANIFEST_NAME, 1000), "expected strict JSON"),
        ("of 1 GB", _sparse_manifest, f"expected at most {MANIFEST_CEILING_BYTES} bytes, found {2**30}"),
        ("a byte over the ceiling", _too_long_manifest, f"found {MANIFEST_CEILING_BYTES + 1}"),
        ("not UTF-8", spelled(b'"small"', b'"sm\xffll"'), "expected UTF-8, found byte 0xff"),
        ("UTF-16", manifest_of("{}".encode("utf-16")), "expected UTF-8"),
        ("an overlong NUL", spelled(b'"small"', b'"sm\xc0\x80ll"'), "expected UTF-8"),
        ("a surrogate in UTF-8", spelled(b'"small"', b'"sm\xed\xa0\x80ll"'), "expected UTF-8"),
        ("with a byte order mark", spelled(b"{", b"\xef\xbb\xbf{"), "expected strict JSON"),
        ("a list", manifest_of(b"[]"), "expected one JSON object, found list"),
        ("a number", manifest_of(b"1"), "expected one JSON object, found int"),
        ("two documents", manifest_of(b"{}{}"), "expected strict JSON"),
        ("a million open brackets", manifest_of(b"[" * 1_000_000), "levels of nesting"),
        ("a hundred thousand open objects", manifest_of(b'{"":' * 100_000), "levels of nesting"),
        ("nested to the end", manifest_of(b"[" * 50 + b"]" * 50), "expected strict JSON, found: more than 32 levels"),
        ("a key twice", spelled(b'"format": 1', b'"format": 1, "format": 1'), "key 'format' twice"),
        ("a blob twice", spelled(b'"golden.bin": {', b'"golden.bin": {}, "golden.bin": {'), "key 'golden.bin' twice"),
        ("a key twice in two spellings", spelled(b'"format"', b'"format": 1, "f\\u006frmat"'), "key 'format' twice"),
        ("one key of very many twice", _many_keys_and_one_twice, "key 'k49999' twice"),
        ("NaN", spelled(b'"tolerance": 0.0', b'"tolerance": NaN'), "NaN, which is no JSON number"),
        ("Infinity", spelled(b'"tolerance": 0.0', b'"tolerance": Infinity'), "Infinity, which is no JSON number"),
        ("minus Infinity", spelled(b'"tolerance": 0.0', b'"tolerance": -Infinity'), "-Infinity, which is no JSON"),
        ("1e999", spelled(b'"tolerance": 0.0', b'"tolerance": 1e999'), "1e999, which is not finite"),
        ("2**63", spelled(b'"rows": 64', b'"rows": 9223372036854775808'), "which does not fit into 64 bits"),
        ("digits by the thousand", spelled(b'"rows": 64', b'"rows": ' + b"9" * 5000), "does not fit into 64 bits"),
        ("digits by the million", spelled(b'"rows": 64', b'"rows": ' + b"9" * 1_000_000), "does not fit into 64 bits"),
        ("a lone surrogate", spelled(b'"small"', b'"sm\\ud800ll"'), "a lone surrogate"),
        ("a lone surrogate as a key", spelled(b'"format"', b'"x\\udfff": 1, "format"'), "a lone surrogate"),
        ("a bare control character", spelled(b'"small"', b'"sm\0ll"'), "expected strict JSON"),
        ("a comment", spelled(b"{", b"{ // all is well\n"), "expected strict JSON"),
        ("a trailing comma", spelled(b'"format": 1', b'"format": 1, '), "expected strict JSON"),
    ):
        yield f"{MANIFEST_NAME} {name}", Attack(make, ManifestError, says)


#: What no file of a bundle may be called.
BAD_FILE_NAMES = (
    *("../golden.bin", "..", ".", "/etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "", "golden.bin\0", "golden.bin\n"),
    *(MANIFEST_NAME, "n" * 101, "näive.bin", "C:", "golden bin"),
)


def _names() -> Iterator[tuple[str, Attack]]:
    tensor = {"blob": "golden.bin", "offset_bytes": 0, "dtype": "int8", "shape": [1]}
    blob = {"size_bytes": 0, "sha256": "0" * 64}
    tensors: Place = ("models", 0, "tensors")
    for name in BAD_FILE_NAMES:
        shown = ascii(name)[:20]
        for place in (
            ("golden", 0, "expected", "blob"),
            (*tensors, "norms", "blob"),
            ("models", 0, "graphs", 0, "blob"),
        ):
            says = f"{dotted(place)}: expected text like"
            yield f"{dotted(place)} = {shown}", Attack(put(name, *place), ManifestError, says)
        yield f"a blob called {shown}", Attack(put(blob, "blobs", name), ManifestError, "blobs: expected names like")
    for name in ("", "a b", "a/b", "\n", "\x1b[2J", "n" * 65, "..", "名"):
        shown = ascii(name)[:20]
        for place in (("name",), ("models", 0, "name"), ("golden", 0, "model")):
            says = f"{dotted(place)}: expected text like"
            yield f"{dotted(place)} = {shown}", Attack(put(name, *place), ManifestError, says)
        making = put(tensor, *tensors, name)
        yield f"a tensor called {shown}", Attack(making, ManifestError, "models[0].tensors: expected names like")


def _values() -> Iterator[tuple[str, Attack]]:
    """Values of the right type that no bundle may have: place, value, what the message says."""
    table: Place = ("models", 0)
    tensors: Place = (*table, "tensors")
    size = ("blobs", "golden.bin", "size_bytes")
    rows: Place = (*tensors, "rows")
    expected: Place = ("golden", 0, "expected")
    stranger = {"blob": "golden.bin", "offset_bytes": 0, "dtype": "int8", "shape": [0, 2**48, 2**48, 2**48]}
    hashed = {"algorithm": "xxh64-modulo", "seed": 0, "first_row": 0, "rows": 64}
    space = {"id": "0" * 64, "dimensions": 16, "similarity": "cosine", "source": "another"}

    def subwords(spoilt: dict[str, Any]) -> dict[str, Any]:
        good = {"algorithm": "fasttext", "rows": "words", "buckets": 9, "minn": 1, "maxn": 2, "word_ngrams": 1}
        # What is spoilt comes first, and names the attack.
        return {**spoilt, **{name: value for name, value in good.items() if name not in spoilt}}

    cases: tuple[tuple[Place, Any, str], ...] = (
        (("version",), "one", "version: expected text like"),
        (("version",), "1.0.0\n", "version: expected text like"),
        (("parent",), "0" * 63, "parent: expected text like"),
        (("parent",), "A" * 64, "parent: expected text like"),
        (("space", "id"), "0" * 65, "space.id: expected text like"),
        (("space", "similarity"), "dot", "space.similarity: expected one of cosine"),
        (("space", "dimensions"), 15, "models.table: expected the 15 dimensions of the space, found 16"),
        (("space", "dimensions"), 65_537, "space.dimensions: expected a whole number from 0 to 65536"),
        (("requirements", "memory_private_bytes"), 2**48 + 1, "requirements.memory_private_bytes: expected"),
        (("budgets", "memory_private_bytes"), -1, "budgets.memory_private_bytes: expected"),
        (("budgets", "operations", "lookup", "p99_us"), -0.5, "operations.lookup.p99_us: expected a number"),
        (("budgets", "operations", "format"), {"p50_us": 1, "p99_us": 1}, "budgets.operations: expected names like"),
        (("budgets", "board"), "../pi", "budgets.board: expected text like"),
        (("quality",), {"table": 3}, "quality.table: expected an object, found 3"),
        ((*size[:2], "sha256"), "0" * 64 + "\n", "golden.bin.sha256: expected text like"),
        ((*size[:2], "sha256"), "sha256:" + "0" * 57, "golden.bin.sha256: expected text like"),
        (size, 2**48 + 1, "blobs.golden.bin.size_bytes: expected a whole number from 0 to"),
        (size, 2**63 - 1, "blobs.golden.bin.size_bytes: expected a whole number from 0 to"),
        (("models",), [], "models: expected at least one model"),
        ((*table, "kind"), "pickle", "models[0].kind: expected one of table, encoder"),
        ((*table, "codec"), "float64", "models[0].codec: expected one of float32, float16, int8, int4, pq, opq, rq"),
        ((*table, "codec"), "float32", "models[0].tensors.rows: expected float32 of shape (64, 16)"),
        ((*table, "unknown"), "hash", "models[0].hash: expected a recipe where unknown is hash, and none elsewhere"),
        ((*table, "hash"), hashed, "models[0].hash: expected a recipe where unknown is hash, and none elsewhere"),
        ((*table, "hash"), _first({"rows": 65}, hashed), "models[0].hash: expected rows among the table's 64"),
        ((*table, "hash"), _first({"first_row": 60}, hashed), "models[0].hash: expected rows among the table's 64"),
        ((*table, "hash"), _first({"rows": 0}, hashed), "models[0].hash.rows: expected a whole number from 1"),
        ((*table, "hash"), _first({"algorithm": "md5"}, hashed), "hash.algorithm: expected one of xxh64-modulo"),
        ((*table, "hash"), _first({"seed": -1}, hashed), "models[0].hash.seed: expected a whole number"),
        ((*table, "bag"), {"mode": "min"}, "models[0].bag.mode: expected one of sum, mean, max"),
        ((*table, "bag"), {"mode": "sum", "padding_row": 64}, "models[0].bag.padding_row: expected a row of the"),
        ((*table, "bag"), {"mode": "sum", "padding_row": -1}, "models[0].bag.padding_row: expected a whole number"),
        ((*table, "bag"), [], "models[0].bag: expected an object, found []"),
        ((*table, "graphs", 0, "operation"), "bag", "models[0].bag: expected the recipe of the bag graphs"),
        ((*table, "space"), _first({"dimensions": 15}, space), "models.table: expected the 15 dimensions of the space"),
        ((*table, "space"), _first({"id": "0"}, space), "models[0].space.id: expected text like"),
        ((*table, "row_order"), "random", "models[0].row_order: expected one of"),
        ((*table, "unknown"), "guess", "models[0].unknown: expected one of"),
        ((*table, "rows"), 63, "models[0].tensors.rows: expected int8 of shape (63, 16)"),
        ((*table, "rows"), 2**32 - 1, "models[0].rows: expected a whole number from 0 to 4294967294"),
        ((*table, "dimensions"), 65_537, "models[0].dimensions: expected a whole number from 0 to 65536"),
        ((*table, "key_index", "algorithm"), "md5", "key_index.algorithm: expected one of xxh64-pilot"),
        ((*table, "key_index", "seed"), -1, "key_index.seed: expected a whole number"),
        ((*table, "text", "tokenizer"), "python", "text.tokenizer: expected one of huggingface, whitespace"),
        ((*table, "text", "tokenizer"), "huggingface", "text.tokenizer_blob: expected a value, found nothing there"),
        ((*table, "text", "pooling"), "max", "text.pooling: expected one of mean"),
        ((*table, "text", "max_tokens"), 1_000_001, "text.max_tokens: expected a whole number from 1 to 1000000"),
        ((*table, "text", "max_tokens"), 0, "text.max_tokens: expected a whole number from 1 to 1000000"),
        ((*table, "text", "max_letters"), 0, "text.max_letters: expected a whole number from 1 to 4294967296"),
        ((*table, "text", "skipped_token"), -1, "text.skipped_token: expected a whole number from 0 to 4294967294"),
        ((*table, "graphs", 0, "format"), "pickle", "graphs[0].format: expected one of onnx, tflite"),
        ((*table, "graphs", 0, "operation"), "system", "graphs[0].operation: expected one of lookup, bag"),
        ((*table, "graphs", 0, "blob"), "other.onnx", "models.table: expected a file of this bundle"),
        (tensors, {}, "models[0].tensors: expected the tensor rows, found nothing there"),
        (rows, ABSENT, "models[0].tensors: expected the tensor rows, found nothing there"),
        ((*tensors, "scales"), ABSENT, "models[0].tensors: expected the tensor scales, found nothing there"),
        ((*tensors, "index_pilots"), ABSENT, "tensors: expected the tensor index_pilots, found nothing there"),
        ((*tensors, "index_slots"), ABSENT, "tensors: expected the tensor index_slots, found nothing there"),
        ((*tensors, "key_bytes"), ABSENT, "tensors: expected the tensor key_bytes, found nothing there"),
        ((*tensors, "key_offsets"), ABSENT, "tensors: expected the tensor key_offsets, found nothing there"),
        ((*tensors, "index_pilots", "shape"), [0], "tensors.index_pilots: expected one pilot or more"),
        ((*tensors, "index_slots", "shape"), [67, 3], "tensors.index_slots: expected uint32 of shape (slots, 2)"),
        ((*tensors, "index_slots", "shape"), [134], "tensors.index_slots: expected uint32 of shape (slots, 2)"),
        ((*tensors, "key_offsets", "shape"), [64], "tensors.key_offsets: expected uint32 of shape (65)"),
        ((*tensors, "key_offsets", "dtype"), "int32", "tensors.key_offsets: expected uint32 of shape (65)"),
        ((*tensors, "norms", "shape"), [65], "tensors.norms: expected float32 of shape (64)"),
        ((*tensors, "scales", "dtype"), "float16", "tensors.scales: expected float32 of shape (64)"),
        ((*rows, "dtype"), "object", "tensors.rows.dtype: expected one of"),
        ((*rows, "dtype"), "uint8", "tensors.rows: expected int8 of shape (64, 16)"),
        ((*rows, "shape"), [1024], "tensors.rows: expected int8 of shape (64, 16)"),
        ((*rows, "shape"), [16, 64], "tensors.rows: expected int8 of shape (64, 16)"),
        ((*rows, "shape"), [], "tensors.rows.shape: expected a list of 1 to 4 whole numbers"),
        ((*rows, "shape"), [1, 1, 1, 64, 16], "tensors.rows.shape: expected a list of 1 to 4 whole numbers"),
        ((*rows, "shape"), [64, -16], "tensors.rows.shape: expected a list of 1 to 4 whole numbers"),
        ((*rows, "shape"), [64, True], "tensors.rows.shape: expected a list of 1 to 4 whole numbers"),
        ((*rows, "shape"), [64, 16.0], "tensors.rows.shape: expected a list of 1 to 4 whole numbers"),
        ((*rows, "shape"), [64, 2**63 - 1], "tensors.rows.shape: expected a list of 1 to 4 whole numbers"),
        ((*rows, "offset_bytes"), SECTION_BYTES + 1, "tensors.rows: expected an offset that is a multiple of 65536"),
        ((*rows, "offset_bytes"), 4096, "tensors.rows: expected an offset that is a multiple of 65536"),
        ((*rows, "offset_bytes"), -SECTION_BYTES, "tensors.rows.offset_bytes: expected a whole number"),
        ((*rows, "offset_bytes"), 2**48, "tensors.rows: expected a tensor inside"),
        ((*rows, "offset_bytes"), 2 * SECTION_BYTES, "tensors.rows: expected a tensor inside"),
        ((*tensors, "key_bytes", "shape"), [_KEY_BYTES + 1], "tensors.key_bytes: expected a tensor inside"),
        (("golden", 0, "tolerance"), 1e-6, "golden[0].tolerance: expected 0 for a lookup, whose answers are exact"),
        ((*rows, "blob"), "other.bin", "models.table.tensors.rows: expected a file of this bundle, found 'other.bin'"),
        ((*tensors, "key_bytes", "shape"), [2**48], "tensors.key_bytes: expected a tensor inside"),
        ((*tensors, "index_slots", "shape"), [2**47, 2], "tensors.index_slots: expected a tensor inside"),
        ((*tensors, "stranger"), stranger, "tensors.stranger: expected other axes of at most 2147483647 bytes"),
        (
            ("golden", 0, "operation"),
            "eval",
            "golden[0].operation: expected one of lookup, encode, encode_image, search, bag, classify",
        ),
        ((*table, "unknown"), "subwords", "models[0].unknown: expected subwords where there is a recipe for them"),
        ((*table, "text", "tokenizer"), "fasttext", "text.tokenizer: expected fasttext where there is a recipe for"),
        (
            (*table, "classify"),
            {"labels": "table", "output": "softmax"},
            "classify: expected a model with a recipe for",
        ),
        ((*table, "classify"), {"labels": "../x", "output": "softmax"}, "classify.labels: expected text like"),
        (
            (*table, "classify"),
            {"labels": "table", "output": "dice"},
            "classify.output: expected one of softmax, sigmoid",
        ),
        ((*table, "subwords"), subwords({"algorithm": "eval"}), "subwords.algorithm: expected one of fasttext"),
        ((*table, "subwords"), subwords({"rows": "letters"}), "subwords.rows: expected one of words, parts"),
        ((*table, "subwords"), subwords({"table": "other"}), "table.subwords.table: expected another model of this"),
        ((*table, "subwords"), subwords({"table": "table"}), "table.subwords.table: expected another model of this"),
        ((*table, "subwords"), subwords({"table": "../x"}), "subwords.table: expected text like"),
        (
            (*table, "subwords"),
            subwords({"table": "x", "buckets": 0}),
            "subwords.buckets: expected a whole number from 1",
        ),
        ((*table, "subwords"), subwords({"buckets": 2**32}), "subwords.buckets: expected a whole number from 0"),
        ((*table, "subwords"), subwords({"maxn": 1001}), "subwords.maxn: expected a whole number from 0 to 1000"),
        ((*table, "subwords"), subwords({"minn": -1}), "subwords.minn: expected a whole number from 0 to 1000"),
        ((*table, "subwords"), subwords({"word_ngrams": 0}), "subwords.word_ngrams: expected a whole number from 1"),
        ((*tensors, "bucket_ids"), {**stranger, "shape": [64]}, "bucket_ids: expected uint32 of shape (64)"),
        ((*tensors, "tree"), {**stranger, "shape": [64, 2]}, "tensors.tree: expected uint32 of shape (63, 2)"),
        (("golden", 0, "by"), "vector", "golden[0].by: expected one of key, text"),
        (("golden", 0, "model"), "other", "golden[0].model: expected a model of this bundle, found 'other'"),
        (("golden", 0, "inputs"), ["word1"], "golden[0].expected: expected float32 of shape (1, ...)"),
        (("golden", 0, "tolerance"), -1, "golden[0].tolerance: expected a number that is not negative"),
        ((*expected, "dtype"), "float16", "golden[0].expected: expected float32 of shape"),
        ((*expected, "shape"), [16], "golden[0].expected: expected float32 of shape"),
        ((*expected, "shape"), [16, 2**48], "golden[0].expected: expected a tensor inside"),
        ((*expected, "offset_bytes"), 32, "golden[0].expected: expected an offset that is a multiple of 65536"),
        ((*expected, "offset_bytes"), 2**40, "golden[0].expected: expected a tensor inside"),
        ((*expected, "blob"), "other.bin", "golden[0].expected: expected a file of this bundle, found 'other.bin'"),
    )
    for place, value, says in cases:
        shown = "absent" if value is ABSENT else ascii(value)[:40]
        yield f"{dotted(place)} = {shown}", Attack(put(value, *place), ManifestError, says)
    yield "two models of one name", Attack(_two_models_of_one_name, ManifestError, "each with a name of its own")
    for value in (0, 2, 2**48):
        says = f"{MANIFEST_NAME}: expected format version 1, found {value}"
        yield f"format = {value}", Attack(put(value, "format"), UnsupportedFormatError, says)
    for value in ("1", True, 1.0, None, -1, [1]):
        says = f"{MANIFEST_NAME}: format: expected a whole number"
        yield f"format = {value!r}", Attack(put(value, "format"), ManifestError, says)
    for feature in ("quantum", "", "\x1b[2J\n", "f" * 100_000):
        says = "requirements.features: expected features that this reader knows"
        making = put(["codec-int8", feature], "requirements", "features")
        yield f"feature {feature[:20]!r}", Attack(making, UnsupportedFormatError, says)


def _first(change: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Return a value with a change, which stands first: an attack is named by how its value begins."""
    return {**change, **{name: kept for name, kept in value.items() if name not in change}}


def dotted(place: Place) -> str:
    """Return a place of the manifest as error messages spell it."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")


def _registry() -> dict[str, Attack]:
    entries = [*_files(), *_manifest_as_a_file(), *_names(), *_values()]
    attacks = dict(entries)
    if len(attacks) != len(entries):
        raise ValueError("two attacks have one name")
    return attacks


ATTACKS = _registry()
