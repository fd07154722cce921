"""Bundles of every format version so far open and answer as on the day they were made."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
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
    "float16-words": "93e3cda65958c79b269e313346cd0dd87095a0e5e6597b1dd9f1ac7076d72360",
    "int4-words": "6855ce2ab60e6805cf4fe11613c3e86250c939aa255f0221e4ea295be97536da",
    "pq-words": "72f282c80c2556d21429957e3fc0e5171107c62e201c954223e6b0b0c0edc544",
    "opq-words": "3c179a324fe371691323b5a45e76cfa2134d62e244f4fe26c8f47a78a1b3b3a3",
    "rq-words": "deed6408a99a363d57b549632cc4dad78b3cd8740ecf68564ecdd85b21b4ba59",
    "int8-lists": "ce53425eb41b8effa6fa542aff1b47f7bde4140b7184e9efe6f2289448cde9ee",
    "lists-4-bit": "f380a9df164d294911e28eb954d29b14cec50a4f9628539d8213766905821954",
    "fasttext-labels": "2f1b981b9f79bd78bd3aa0d0993664d8cc139f121b4e5e47d36c3987b0581540",
    "floret-words": "c4c5d3c520d6e17e3f6893e17a255a3f7acde337a3437fddf4fe014c61ca360b",
}

#: Those whose words are added up of parts.
COMPOSED = ("fasttext-labels", "floret-words")

#: The vector of 東京, byte for byte.
TOKYO = {
    "int8-text": "3f0b5abec9582a3fe00cacbf7df9b73e863ca53ff3abe73e2957d8bfaa613bbf",
    "float32-words": "fe7ead3f89f0103b25614abf6c48113e07cb5e3e8b1d2dbf7b55923f6bb5f1bf",
    "float16-words": "0080ad3f0000113b00604abf0040113e00c05e3e00202dbf0060923f00c0f1bf",
    "int4-words": "0050b53f00000000005035bf00c0713e00c0713e005035bf0018973f00c0f1bf",
    "pq-words": "39d9ad3feb3b113b65ca4abffb93113ee53e5f3e93772dbf96a1923f2033f2bf",
    "opq-words": "a060ad3fbc2ed83a457154bffe62043e40bb883eac5e2abf778b8f3fe0a0efbf",
    "rq-words": "1784ad3f6bdfbf3a710f4cbf46a01b3e7c636a3ebc052ebfe9fd913fb8caf0bf",
    "int8-lists": "7b39ad3f00000000846c49bf7306113e4298613e7b392dbf180a933f6bb5f1bf",
    "lists-4-bit": "7b39ad3f00000000846c49bf7306113e4298613e7b392dbf180a933f6bb5f1bf",
    "fasttext-labels": "2aaa64be98e251be8e35b4be261f65be",
    "floret-words": "6270e0be6fd5bf3e320838becce44b3d3a56f7be0e93753e",
}

#: Who is nearest to 東京 by lists, and how near, byte for byte.
TOKYOS_NEIGHBOURS = ("word53", "more154", "more18")
TOKYOS_SCORES = "4f2c5c3f48a75a3f032d3b3f"


@pytest.mark.parametrize("name", IDENTITY)
def test_a_golden_bundle_opens_and_gives_every_golden_answer(name: str) -> None:
    with edge_embed.open(GOLDEN / name) as runtime:
        assert runtime.generation == IDENTITY[name]
        assert all(outcome.passed for outcome in runtime.check_golden(["lookup"]))
        assert runtime.lookup("東京").tobytes().hex() == TOKYO[name]


@pytest.mark.parametrize("name", ["int8-lists", "lists-4-bit"])
def test_the_golden_lists_are_searched_as_on_the_day_they_were_made(name: str) -> None:
    with edge_embed.open(GOLDEN / name) as runtime:
        assert all(outcome.passed for outcome in runtime.check_golden())
        found = runtime.search("東京", k=3)
        assert found.keys == TOKYOS_NEIGHBOURS
        assert found.scores.tobytes().hex() == TOKYOS_SCORES


def test_the_golden_classifier_gives_its_labels() -> None:
    with edge_embed.open(GOLDEN / "fasttext-labels") as runtime:
        assert all(outcome.passed for outcome in runtime.check_golden())
        found = runtime.classify("the board is warm", k=2)
        assert found.labels == ("__label__hot", "__label__wet")
        np.testing.assert_allclose(found.probabilities, [0.407701, 0.324637], atol=1e-5)


def test_the_golden_encoder_encodes_and_searches_as_it_did() -> None:
    pytest.importorskip("tokenizers")
    with edge_embed.open(GOLDEN / "int8-text") as runtime:
        assert all(outcome.passed for outcome in runtime.check_golden())
        np.testing.assert_allclose(runtime.encode("word1 word2")[:3], [0.145830, -0.088358, -0.138031], atol=1e-5)
        found = runtime.search(text="word10 word11", k=2)
        assert found.keys == ("word10 word11 naïve", "東京 word30")
        np.testing.assert_allclose(found.scores, [0.640134, 0.256959], atol=1e-4)
        assert runtime.search("word7", k=3).keys == ("word50", "word48", "word26")


def test_the_golden_text_encoder_encodes_and_searches_as_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("tokenizers", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    folder = GOLDEN / "int8-encoder"
    for engine in ("onnxruntime", "litert"):
        with edge_embed.open(folder, engine=engine) as runtime:
            assert runtime.generation == "bd97b3ac70fd356a6c1b1798bada0b28664566fd1d6a779ebaea766e5e8af040"
            assert all(outcome.passed for outcome in runtime.check_golden())
            np.testing.assert_allclose(runtime.encode("word1 word2")[:3], [-0.1848, 0.2809, -0.1236], atol=0.02)
            np.testing.assert_allclose(runtime.encode("", prompt="query"), runtime.encode("word1"), atol=1e-6)
            found = runtime.search(text="word10 word11", k=2)
            assert found.keys == ("word1 word2 word3", "word10 word11 naïve")
            np.testing.assert_allclose(found.scores, [0.9855, 0.9778], atol=0.02)
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]


def test_the_golden_image_encoder_finds_pictures_as_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("ai_edge_litert")
    folder = GOLDEN / "colours-image"
    with edge_embed.open(folder) as runtime:
        assert runtime.generation == "ce993eb8ffa031740e19d6427059d2a35a4d5f41d48965494b9d40307d562225"
        assert all(outcome.passed for outcome in runtime.check_golden())
        picture = np.full((5, 7, 3), (200, 40, 90), np.uint8)
        expected = [-0.026206, 0.320914, 0.298513, -0.303971, -0.805481]
        np.testing.assert_allclose(runtime.encode_image(picture), expected, atol=1e-5)
        found = runtime.search(image=picture, k=2)
        assert found.keys == ("red.ppm", "blue.ppm")
        np.testing.assert_allclose(found.scores, [0.891929, -0.584791], atol=1e-4)
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize("name", IDENTITY)
def test_verify_finds_every_graph_of_a_golden_bundle_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(GOLDEN / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize("name", [name for name in IDENTITY if name not in COMPOSED])
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

    assert np.array(_decoded(model, words, row), "<f4").tobytes().hex() == TOKYO[name]


def _decoded(model: Any, words: Callable[[str, str, int, int], tuple[Any, ...]], row: int) -> list[np.float32]:
    """Return the vector of a row as the specification's table of tensors says it, a number at a time."""
    d = model["dimensions"]
    if model["codec"] == "float32":
        return [np.float32(number) for number in words("rows", "f", row * d, d)]
    if model["codec"] == "float16":
        return [np.float32(number) for number in words("rows", "e", row * d, d)]
    if model["codec"] == "int8":
        (scale,) = words("scales", "f", row, 1)
        return [np.float32(code) * np.float32(scale) for code in words("rows", "b", row * d, d)]
    if model["codec"] == "int4":
        (scale,) = words("scales", "e", row, 1)  # eight dimensions are one block
        pairs = words("rows", "B", row * d // 2, d // 2)
        halves = [half for pair in pairs for half in (pair & 15, pair >> 4)]
        return [np.float32(half - 8) * np.float32(scale) for half in halves]
    m, count, width = model["tensors"]["codebooks"]["shape"]
    codes = words("rows", "B", row * m, m)
    centroids = [words("codebooks", "f", (j * count + code) * width, width) for j, code in enumerate(codes)]
    (level,) = words("length_codes", "B", row, 1)
    (length,) = (np.float32(number) for number in words("length_levels", "f", level, 1))
    if model["codec"] == "rq":
        total = [np.float32(0)] * d
        for centroid in centroids:
            total = [a + np.float32(b) for a, b in zip(total, centroid, strict=True)]
        return [number * length for number in total]
    parts = [number for centroid in centroids for number in centroid]
    if model["codec"] == "pq":
        return [np.float32(number) * length for number in parts[:d]]
    rotation = [words("rotation", "f", i * m * width, m * width) for i in range(d)]
    # Python's floats have 53 bits: sums that are exact in float32, as the specification says, are exact here.
    return [np.float32(sum(a * b for a, b in zip(line, parts, strict=True))) * length for line in rotation]
