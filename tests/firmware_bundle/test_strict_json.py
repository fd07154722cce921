"""One document, one meaning: what ``json.loads`` lets through and a manifest may not hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed_bundle import strict_json
from edge_embed_bundle.errors import ManifestError

TEXTS = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=6)


@given(OBJECTS)
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    data = strict_json.dumps(value)
    assert data.endswith(b"}\n") and data == strict_json.dumps(dict(reversed(value.items())))
    assert strict_json.loads(data, source="x") == value


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_object_or_a_manifest_error_that_names_the_file(data: bytes) -> None:
    _reads_as_json_or_names_the_file(data)


@given(OBJECTS, st.data())
def test_a_document_with_changed_bytes_is_an_object_or_a_manifest_error(
    value: dict[str, Any], data: st.DataObject
) -> None:
    document = bytearray(strict_json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(document)))
        document[at : data.draw(st.integers(at, len(document)))] = data.draw(st.binary(max_size=3))
    _reads_as_json_or_names_the_file(bytes(document))


def _reads_as_json_or_names_the_file(data: bytes) -> None:
    try:
        found = strict_json.loads(data, source="some/manifest.json")
    except ManifestError as error:
        said = str(error)
        assert said.startswith("some/manifest.json: expected ") and ", found" in said and said.isprintable()
    else:
        assert found == json.loads(data)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ('{"a": 1, "a": 1}', "key 'a' twice in one object"),
        ('{"a": [{"b": 1, "\\u0062": 2}]}', "key 'b' twice in one object"),
        ('{"a": NaN}', "NaN, which is no JSON number"),
        ('{"a": -Infinity}', "-Infinity, which is no JSON number"),
        ('{"a": 1e999}', "number 1e999, which is not finite"),
        ('{"a": 9223372036854775808}', "does not fit into 64 bits"),
        ('{"a": -9223372036854775809}', "does not fit into 64 bits"),
        ('{"a": %s}' % ("9" * 100_000), "whole number 99999999999999999999..., which does not fit"),
        ('{"a": "\\ud800"}', "a lone surrogate in"),
        ('{"\\udc00": 1}', "a lone surrogate in"),
        ('{"a": %s}' % ("[" * 33 + "]" * 33), "more than 32 levels of nesting"),
        ('{"a": %s}' % ("[" * 500_000), "at most 32 levels of nesting"),
        ("\ufeff{}", "expected strict JSON, found: Unexpected UTF-8 BOM"),
        ("{} {}", "expected strict JSON, found: Extra data"),
        ("", "expected strict JSON"),
        ("null", "expected one JSON object, found NoneType"),
        ('["a"]', "expected one JSON object, found list"),
    ],
)
def test_a_document_that_two_readers_could_read_in_two_ways_is_refused(document: str, says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        strict_json.loads(document.encode(), source="manifest.json")
    assert says in str(caught.value) and len(str(caught.value)) < 200


def test_bytes_that_are_no_utf8_are_refused_by_their_place() -> None:
    with pytest.raises(ManifestError, match="expected UTF-8, found byte 0xff at 6"):
        strict_json.loads(b'{"a":"\xff"}', source="x")


def test_what_stands_just_inside_the_limits_is_read() -> None:
    document = '{"a": %s, "n": [9223372036854775807, -9223372036854775807, 1e308], "s": "\\ud83d\\ude42"}'
    found = strict_json.loads((document % ("[" * 31 + "]" * 31)).encode(), source="x")
    assert found["n"] == [2**63 - 1, 1 - 2**63, 1e308] and found["s"] == "🙂"


def test_a_number_that_json_does_not_know_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.dumps({"a": float("nan")})
