"""The manifest's gate: whatever stands in the file, it becomes a whole Manifest or an error that says where."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed_bundle import strict_json
from edge_embed_bundle.errors import BundleError, ManifestError, UnsupportedFormatError
from edge_embed_bundle.manifest import (
    CODEC_TENSORS,
    FEATURES,
    MANIFEST_NAME,
    BagRecipe,
    HashRecipe,
    Manifest,
    TableModel,
)
from edge_embed_bundle.values import ITEM_BYTES, SECTION_BYTES, Tensor
from edge_embed_export.options import Hashing
from tests.making import make_bundle, small_text_source, tables_source


@pytest.fixture(scope="module")
def data(bundle: Path) -> bytes:
    """The bytes of a good manifest."""
    return (bundle / MANIFEST_NAME).read_bytes()


def _parse(value: Any) -> Manifest:
    return Manifest.parse(strict_json.dumps(value), source="manifest.json")


def test_a_manifest_that_is_read_is_written_byte_for_byte(data: bytes) -> None:
    manifest = Manifest.parse(data, source=MANIFEST_NAME)
    assert manifest.to_bytes() == data
    assert Manifest.parse(manifest.to_bytes(), source=MANIFEST_NAME) == manifest


def test_a_manifest_with_all_its_optional_parts_is_written_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    made = make_bundle(tmp_path / "text", source=small_text_source(), collection=("word1 word2", "word3"))
    full = made.manifest._replace(parent="0" * 64, extra={"note": [1, {"b": None}]})
    again = Manifest.parse(full.to_bytes(), source=MANIFEST_NAME)
    assert again == full and again.parent == "0" * 64
    assert [model.name for model in again.models] == ["table", "collection"]


def test_fields_that_this_reader_does_not_know_survive_at_every_level(data: bytes) -> None:
    newer = json.loads(data)
    levels = 0
    for place, value in [((), newer), *_places(newer)]:
        # An object of names (blobs, tensors, ...) holds what it names and no fields.
        if isinstance(value, dict) and place[-1:] not in (("blobs",), ("quality",), ("tensors",), ("operations",)):
            value["x-later"] = {"kind": "unknown", "list": [1, 2.5, None, "text"], "deep": {"a": {}}}
            levels += 1
    assert levels > 20
    assert json.loads(_parse(newer).to_bytes()) == newer


@pytest.mark.parametrize(
    "place", [("budgets", "board"), ("parent",), ("models", 0, "key_index"), ("models", 0, "text")]
)
def test_null_stands_for_an_optional_part_that_is_absent(data: bytes, place: tuple[str | int, ...]) -> None:
    value = json.loads(data)
    _set(value, place, None)
    manifest = _parse(value)
    found = {
        "board": manifest.budgets.board,
        "parent": manifest.parent,
        "key_index": manifest.tables[0].key_index,
        "text": manifest.tables[0].text,
    }
    assert found[str(place[-1])] is None
    assert json.loads(manifest.to_bytes()) == value


def test_every_field_but_the_optional_ones_is_needed(data: bytes) -> None:
    optional = {("parent",), ("budgets", "board"), ("models", 0, "key_index"), ("models", 0, "text")}
    for place, _ in _places(json.loads(data)):
        if place in optional or not isinstance(place[-1], str) or place[0] == "quality":
            continue
        value = json.loads(data)
        _set(value, place, ABSENT)
        free = {("tensors", "norms"), ("operations", place[-1])}
        if tuple(place[-2:]) in free:
            _parse(value)
            continue
        with pytest.raises(ManifestError, match=r"found nothing there|expected a file of this bundle"):
            _parse(value)


def test_names_and_sizes_of_what_is_held_can_be_asked_for(data: bytes, bundle: Path) -> None:
    manifest = Manifest.parse(data, source=MANIFEST_NAME)
    assert manifest.size_bytes == sum((bundle / name).stat().st_size for name in manifest.blobs)
    table = manifest.model("table")
    assert isinstance(table, TableModel) and table.rows == 64
    assert manifest.model("other") is None
    assert Tensor("a", 0, "uint16", (3, 4)).size_bytes == 24


def test_a_newer_format_and_an_unknown_feature_tell_the_operator_to_update(data: bytes) -> None:
    for place, new in ((("format",), 2), (("requirements", "features"), ["codec-int8", "codec-of-tomorrow"])):
        value = json.loads(data)
        _set(value, place, new)
        with pytest.raises(UnsupportedFormatError, match="update edge-embed on this board"):
            _parse(value)


def test_a_bundle_of_bags_with_a_space_for_each_table_is_written_byte_for_byte(tmp_path: Path) -> None:
    made = make_bundle(
        tmp_path / "tables",
        source=tables_source({"a": (8, 4), "b": (9, 5)}),
        bags={"a": BagRecipe("sum", 3), "b": BagRecipe("max")},
        hashes={"b": Hashing(2)},
    )
    assert {"bag-1", "model-space", "unknown-hash"} <= set(made.manifest.requirements.features) <= FEATURES
    again = Manifest.parse(made.manifest.to_bytes(), source=MANIFEST_NAME)
    assert again == made.manifest
    first, second = again.tables
    assert first.bag == BagRecipe("sum", 3) and first.hash is None and first.unknown == "error"
    assert second.hash == HashRecipe("xxh64-modulo", 0, 2, 7) and second.unknown == "hash"
    assert again.space_of(first) is again.space and again.space_of(second) is second.space is not None


GOLDEN_BAGS = {
    "ids with spaces between": ({"by": "row", "inputs": ["3 17 4", ""]}, True),
    "by key": ({"by": "key", "inputs": ["a", "b"]}, False),
    "two spaces": ({"by": "row", "inputs": ["3  4", ""]}, False),
    "a negative id": ({"by": "row", "inputs": ["-3", ""]}, False),
    "of a table without a recipe": ({"by": "row", "inputs": ["3", ""], "model": "b"}, False),
}


@pytest.mark.parametrize("case", GOLDEN_BAGS)
def test_golden_bags_are_row_ids_with_spaces_between(tmp_path: Path, case: str) -> None:
    changes, fits = GOLDEN_BAGS[case]
    source = tables_source({"a": (30, 4), "b": (9, 4)})
    made = make_bundle(tmp_path / "tables", source=source, graphs=(), bags={"a": BagRecipe("sum")})
    value = json.loads(made.manifest.to_bytes())
    bag = next(golden for golden in value["golden"] if golden["operation"] == "bag")
    bag |= changes
    bag["expected"]["shape"] = [2, 4]
    if fits:
        assert _parse(value).golden
    else:
        with pytest.raises(ManifestError, match=r"golden\[\d\]\.(by|inputs|model): expected"):
            _parse(value)


def test_every_codec_is_a_feature_of_this_reader() -> None:
    assert {f"codec-{codec}" for codec in CODEC_TENSORS} <= FEATURES


def test_an_empty_table_of_no_keys_is_a_table(data: bytes) -> None:
    value = json.loads(data)
    (model,) = value["models"]
    model["rows"] = 0
    for name, shape in {"rows": [0, 16], "scales": [0], "norms": [0], "key_offsets": [1], "key_bytes": [0]}.items():
        model["tensors"][name]["shape"] = shape
    assert _parse(value).tables[0].tensors["rows"].size_bytes == 0


#: Of a codec with codebooks: the shapes of codes, books and rotation for 64 rows of 16, and whether they fit.
CODES: dict[str, tuple[str, list[int], list[int], list[int] | None, bool]] = {
    "parts that fill the row": ("pq", [64, 4], [4, 256, 4], None, True),
    "a last part that is not full": ("pq", [64, 6], [6, 256, 3], None, True),
    "a part beyond the row": ("pq", [64, 7], [7, 256, 3], None, False),
    "parts that do not reach the end": ("pq", [64, 5], [5, 256, 3], None, False),
    "no parts": ("pq", [64, 0], [0, 256, 3], None, False),
    "parts of nothing": ("pq", [64, 4], [4, 256, 0], None, False),
    "books that are not one a code": ("pq", [64, 4], [5, 256, 4], None, False),
    "255 centroids": ("pq", [64, 4], [4, 255, 4], None, False),
    "parts to rotate": ("opq", [64, 5], [5, 256, 2], [16, 10], True),
    "a rotation from fewer parts": ("opq", [64, 5], [5, 256, 2], [16, 8], False),
    "a rotation to fewer numbers": ("opq", [64, 5], [5, 256, 2], [15, 10], False),
    "whole rows to add up": ("rq", [64, 3], [3, 256, 16], None, True),
    "nothing to add up": ("rq", [64, 0], [0, 256, 16], None, False),
    "rows of another width": ("rq", [64, 3], [3, 256, 15], None, False),
}


@pytest.mark.parametrize("case", CODES)
def test_codes_and_codebooks_fit_one_another_and_the_row(data: bytes, case: str) -> None:
    codec, codes, books, rotation, fits = CODES[case]
    value = json.loads(data)
    (model,) = value["models"]
    value["blobs"]["books.bin"] = {"size_bytes": 2**30, "sha256": "0" * 64}
    described = {"rows": ("uint8", codes), "codebooks": ("float32", books)}
    described |= {"length_codes": ("uint8", [64]), "length_levels": ("float32", [256])}
    if rotation is not None:
        described["rotation"] = ("float32", rotation)
    model["codec"] = codec
    for name, (dtype, shape) in described.items():
        model["tensors"][name] = {"blob": "books.bin", "offset_bytes": 0, "dtype": dtype, "shape": shape}
    if fits:
        assert _parse(value).tables[0].codec == codec
    else:
        with pytest.raises(ManifestError, match=r"models\[0\]\.tensors\.(codebooks|rows|rotation): expected"):
            _parse(value)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ABSENT = object()


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_manifest_with_random_values_at_random_places_is_whole_or_refused(data: st.DataObject, bundle: Path) -> None:
    value = json.loads((bundle / MANIFEST_NAME).read_bytes())
    places = [place for place, _ in _places(value)]
    there = [item for _, item in _places(value)]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4)):
        # A value from another place of the same manifest comes nearer to being right than a random one.
        new = data.draw(JSON | st.sampled_from(there) | st.just(ABSENT) | st.integers(-1, 70))
        with suppress(KeyError, IndexError, TypeError):
            _set(value, place, new if new is ABSENT else copy.deepcopy(new))
    _is_whole_or_refused(strict_json.dumps(value))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_manifest_with_random_bytes_at_random_places_is_whole_or_refused(data: st.DataObject, bundle: Path) -> None:
    document = bytearray((bundle / MANIFEST_NAME).read_bytes())
    pieces = st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"1e999"])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(document)))
        document[at : at + data.draw(st.integers(0, 8))] = data.draw(pieces)
    _is_whole_or_refused(bytes(document))


def _is_whole_or_refused(document: bytes) -> None:
    try:
        manifest = Manifest.parse(document, source="some/manifest.json")
    except BundleError as error:
        assert str(error).startswith("some/manifest.json: ") and str(error).isprintable()
        return
    assert Manifest.parse(manifest.to_bytes(), source="again") == manifest
    for name in manifest.blobs:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and name != MANIFEST_NAME
    tensors = [tensor for model in manifest.tables for tensor in model.tensors.values()]
    for tensor in (*tensors, *(golden.expected for golden in manifest.golden)):
        assert tensor.offset_bytes % SECTION_BYTES == 0 and all(size >= 0 for size in tensor.shape)
        end = tensor.offset_bytes + ITEM_BYTES[tensor.dtype] * prod(tensor.shape)
        assert end <= manifest.blobs[tensor.blob].size_bytes
    for model in manifest.tables:
        assert set(CODEC_TENSORS[model.codec]) <= set(model.tensors)
        assert all(graph.blob in manifest.blobs for graph in model.graphs)


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in steps:
        yield (*place, step), item
        yield from _places(item, (*place, step))


def _set(value: Any, place: tuple[str | int, ...], new: Any) -> None:
    for step in place[:-1]:
        value = value[step]
    if isinstance(value, dict) and not isinstance(place[-1], str):
        raise TypeError("an earlier change put an object where a list was; JSON has no numbers for names")
    if new is ABSENT:
        del value[place[-1]]
    else:
        value[place[-1]] = new
