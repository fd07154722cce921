"""Bundles of every format version so far open and answer as on the day they were made."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import edge_embed
from edge_embed.commands import main

GOLDEN = Path(__file__).parent / "golden" / "format-1"

IDENTITY = {
    "int8-text": "391f1eac8ce8eee9b4929d9e5272c5b31237713c06b92cf3f6aebcd1f924999a",
    "float32-words": "5ee3da2440bf1503634cf59c3896579447d78da486b5d607951deb2130e2d856",
}

#: The vector of 東京, byte for byte.
TOKYO = {
    "int8-text": "3f0b5abec9582a3fe00cacbf7df9b73e863ca53ff3abe73e2957d8bfaa613bbf",
    "float32-words": "fe7ead3f89f0103b25614abf6c48113e07cb5e3e8b1d2dbf7b55923f6bb5f1bf",
}


@pytest.mark.parametrize("name", IDENTITY)
def test_a_golden_bundle_opens_and_gives_every_golden_answer(name: str) -> None:
    with edge_embed.open(GOLDEN / name) as runtime:
        assert runtime.generation == IDENTITY[name]
        assert all(outcome.passed for outcome in runtime.check_golden(["lookup"]))
        assert runtime.lookup("東京").tobytes().hex() == TOKYO[name]


def test_the_golden_encoder_encodes_and_searches_as_it_did() -> None:
    pytest.importorskip("tokenizers")
    with edge_embed.open(GOLDEN / "int8-text") as runtime:
        assert all(outcome.passed for outcome in runtime.check_golden())
        np.testing.assert_allclose(runtime.encode("word1 word2")[:3], [0.145830, -0.088358, -0.138031], atol=1e-5)
        found = runtime.search(text="word10 word11", k=2)
        assert found.keys == ("word10 word11 naïve", "東京 word30")
        np.testing.assert_allclose(found.scores, [0.640134, 0.256959], atol=1e-4)
        assert runtime.search("word7", k=3).keys == ("word50", "word48", "word26")


@pytest.mark.parametrize("name", IDENTITY)
def test_verify_finds_every_graph_of_a_golden_bundle_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(GOLDEN / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize("name", IDENTITY)
def test_a_reader_written_from_the_specification_alone_finds_the_same_vector(name: str) -> None:
    folder = GOLDEN / name
    manifest = json.loads((folder / "manifest.json").read_bytes())
    model = manifest["models"][0]

    def words(tensor: str, code: str, start: int, count: int) -> tuple[Any, ...]:
        place = model["tensors"][tensor]
        width = struct.calcsize(code)
        data = (folder / place["blob"]).read_bytes()
        return struct.unpack_from(f"<{count}{code}", data, place["offset_bytes"] + start * width)

    key = "東京".encode()
    (buckets,), (slots, _) = model["tensors"]["index_pilots"]["shape"], model["tensors"]["index_slots"]["shape"]
    h = xxhash.xxh64_intdigest(key, model["key_index"]["seed"])
    (pilot,) = words("index_pilots", "H", ((h % 2**32) * buckets) >> 32, 1)
    x = ((h ^ (pilot * 0x9E3779B97F4A7C15 % 2**64)) * 0xD6E8FEB86659FD93) % 2**64
    fingerprint, row = words("index_slots", "I", 2 * (((x >> 32) * slots) >> 32), 2)
    assert fingerprint == h >> 32
    start, end = words("key_offsets", "I", row, 2)
    assert bytes(words("key_bytes", "B", start, end - start)) == key

    dimensions = model["dimensions"]
    if model["codec"] == "int8":
        (scale,) = words("scales", "f", row, 1)
        vector = [np.float32(code) * np.float32(scale) for code in words("rows", "b", row * dimensions, dimensions)]
    else:
        vector = [np.float32(number) for number in words("rows", "f", row * dimensions, dimensions)]
    assert np.array(vector, "<f4").tobytes().hex() == TOKYO[name]
