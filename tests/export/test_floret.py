"""floret's ``.vec``: every word out of hashed buckets, as the original finds them, and bad files refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_embed
from edge_embed.errors import BundleError, RequestError
from edge_embed.runtime import Runtime
from edge_embed.subwords import bloom_rows, murmur3
from edge_embed_bundle.manifest import BloomRecipe, Manifest
from edge_embed_bundle.store import Store
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source
from tests.fakes.probes import YES, FakeProbe
from tests.floret_files import BUCKETS, DIMENSIONS, SEED, floret_file

#: Rows that floret 0.10.5 names for a word (``get_subwords``, less its words), by hashes, shortest and longest n-gram.
FOUND = {
    (2, 3, 4, "board"): "362 686 99 458 582 304 728 512 14 516 120 729 637 835 167 338 436 820 648 669",
    (2, 3, 4, "naïve"): "629 648 228 624 991 328 954 780 829 11 343 266 787 529 162 529 50 305 844 941",
    (2, 3, 4, "東京"): "58 392 981 914 58 392 583 728",
    (1, 1, 2, "naïve"): "629 792 804 146 536 346 895 132 148 867 255 194",
    (1, 1, 2, "a"): "305 105 536 281",
    (4, 2, 5, "a"): "305 722 636 578 105 384 289 943 305 722 636 578 281 878 36 886",
}

TEXT = "the board is small and the board is warm\nnaïve café 東京 running runner table\n" * 60


def _stored(folder: Path, path: Path, codec: str) -> Runtime:
    report = export(read_source(path), Options(target=folder / "bundle", name="words", codec=codec))
    store = Store(folder / "store")
    store.install(report.path, FakeProbe([YES]))
    return edge_embed.open(store.path)


def test_the_hash_is_murmurhash3_of_128_bits() -> None:
    words = murmur3(b"The quick brown fox jumps over the lazy dog", 0)
    assert words == (0xBC071B6C, 0xE34BBC7B, 0xC49A9347, 0x7A433CA9)
    assert murmur3(b"", 0) == (0, 0, 0, 0)


@pytest.mark.parametrize("asked", FOUND, ids=str)
def test_a_word_is_found_in_the_rows_that_the_original_names(asked: tuple[int, int, int, str]) -> None:
    hashes, minn, maxn, word = asked
    assert bloom_rows(word.encode(), minn, maxn, 1000, BloomRecipe(hashes, SEED, "<", ">")) == [
        int(row) for row in FOUND[asked].split()
    ]


def test_a_file_becomes_a_bundle_that_makes_every_word_of_its_rows(tmp_path: Path) -> None:
    path = floret_file(tmp_path)
    numbers = np.loadtxt(path, skiprows=1, dtype=np.float32)[:, 1:]
    with _stored(tmp_path, path, "float32") as runtime:
        for word in ("board", "naïve", "東京", "a", "thermometers" * 20):
            rows = bloom_rows(word.encode(), 3, 4, BUCKETS, BloomRecipe(2, SEED, "<", ">"))
            np.testing.assert_allclose(runtime.lookup(word), numbers[rows].astype(np.float64).mean(axis=0), atol=1e-6)
        words = runtime.lookup(["board", "naïve"])
        # A text is the mean of its words' directions, as fastText's sentence vector.
        expected = (words / np.linalg.norm(words, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(runtime.encode("board naïve"), expected, atol=1e-6)
        # The file does not hold the row of the end of a line.
        assert not runtime.lookup("</s>").any()
        assert "subwords-floret" in runtime.manifest.requirements.features
        with pytest.raises(RequestError, match="expected a table made for search"):
            runtime.search("board")
        assert all(outcome.passed for outcome in runtime.check_golden())


@pytest.mark.parametrize(("codec", "worst"), [("float32", 0.9999), ("float16", 0.999), ("int8", 0.999), ("pq:8", 0.95)])
def test_words_and_sentences_are_the_originals_from_file_to_board(tmp_path: Path, codec: str, worst: float) -> None:
    floret = pytest.importorskip("floret", reason="floret is not installed (its wheels end at CPython 3.11)")
    (tmp_path / "text.txt").write_text(TEXT)
    settings = {"mode": "floret", "hashCount": 3, "bucket": 600, "dim": 24, "minn": 2, "maxn": 5, "minCount": 1}
    model = floret.train_unsupervised(str(tmp_path / "text.txt"), **settings, epoch=2, thread=1, verbose=0)
    path = tmp_path / "trained.floret.vec"
    model.save_floret_vectors(str(path))
    with _stored(tmp_path, path, codec) as runtime:
        for word in ("board", "boards", "naïve", "naïvety", "東京", "x", "thermo" * 30):
            assert _cosine(runtime.lookup(word), model.get_word_vector(word)) > worst
        # Not of "the": to its first word the original adds a row that its file does not hold.
        for text in ("board is warm", "unheard of words 東京"):
            assert _cosine(runtime.encode(text), model.get_sentence_vector(text)) > worst


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (f"{2**31} 6 3 4 2 1 < >", "expected buckets and dimensions that a file of"),
        ("40 0 3 4 2 1 < >", "expected buckets and dimensions"),
        ("40 6 5 4 2 1 < >", "n-grams from short to long"),
        ("40 6 3 4 5 1 < >", "1 to 4 hashes"),
        ("40 6 3 4 0 1 < >", "1 to 4 hashes"),
        (f"40 6 3 4 2 {2**32} < >", "a seed of 32 bits"),
        ("41 6 3 4 2 1 < >", "expected 41 rows as the header says, found 40"),
        ("39 6 3 4 2 1 < >", "expected 39 rows as the header says, found 40"),
        ("40 7 3 4 2 1 < >", "row 0: expected 7 numbers"),
        ("40 6 3 4 2 1 <", "expected floret's header of eight fields"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str, fault: str) -> None:
    with pytest.raises(RequestError, match=fault):
        read_source(floret_file(tmp_path, header), "floret")


def test_rows_out_of_their_order_and_rows_cut_short_are_refused(tmp_path: Path) -> None:
    path = floret_file(tmp_path)
    lines = path.read_text().splitlines()
    for damaged, fault in (
        ([*lines[:3], lines[4], lines[3], *lines[5:]], "row 2: expected its number, 2, found b'3'"),
        ([*lines[:-1], lines[-1][:12]], "row 39: expected 6 numbers"),
        ([*lines[:-1], "39 nan 0 0 0 0 0"], "row 39 .*: expected finite numbers"),
    ):
        path.write_text("\n".join(damaged) + "\n")
        with pytest.raises(RequestError, match=fault):
            read_source(path)


@given(at=st.integers(0, 800), data=st.binary(max_size=9), cut=st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_damaged_file_is_read_or_refused_by_its_name(
    tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes, cut: bool
) -> None:
    path = floret_file(tmp_path_factory.mktemp("floret"), rows=12, header=f"12 {DIMENSIONS} 3 4 2 {SEED} < >")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + data + (b"" if cut else whole[at + len(data) :]))
    try:
        source = read_source(path, "floret")
    except RequestError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(source.tables[1].vectors[:]).all()


@pytest.mark.parametrize(
    ("field", "value"), [("hashes", 5), ("hashes", 0), ("seed", -1), ("begin", ""), ("begin", "a b"), ("end", None)]
)
def test_a_manifest_with_another_recipe_is_refused(tmp_path: Path, field: str, value: object) -> None:
    report = export(
        read_source(floret_file(tmp_path)), Options(target=tmp_path / "bundle", name="words", codec="float32")
    )
    manifest = json.loads((report.path / "manifest.json").read_bytes())
    manifest["models"][0]["subwords"]["bloom"][field] = value
    with pytest.raises(BundleError, match=field):
        Manifest.parse(json.dumps(manifest).encode(), source="manifest.json")
