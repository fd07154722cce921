"""The runtime answers from a bundle folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge_embed
from edge_embed import memory
from edge_embed_bundle.manifest import MANIFEST_NAME
from tests.making import WORDS, keys_of, make_bundle, small_source, small_text_source, vectors_of


def test_a_key_and_a_list_of_keys_get_the_same_vectors(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        one = runtime.lookup("word7")
        assert one.shape == (16,) and one.dtype == np.float32
        many = runtime.lookup(list(WORDS))
        assert many.shape == (len(WORDS), 16)
        for word, row in zip(WORDS, many, strict=True):
            np.testing.assert_array_equal(runtime.lookup(word), row)
            np.testing.assert_array_equal(runtime.lookup(word.encode()), row)


def test_int8_vectors_are_as_near_to_the_source_as_half_a_step(bundle: Path) -> None:
    source = small_source()
    with edge_embed.open(bundle) as runtime:
        found = runtime.lookup(list(keys_of(source)))
    step = np.abs(vectors_of(source)).max(axis=1, keepdims=True) / 120
    assert (np.abs(found - vectors_of(source)) <= step * 0.5001).all()


def test_float32_vectors_are_those_of_the_source(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "exact", codec="float32")
    with edge_embed.open(made.path) as runtime:
        np.testing.assert_array_equal(runtime.lookup(list(WORDS)), vectors_of(small_source()))
        assert runtime.search("word3", k=2).keys == _nearest_by_hand("word3", 2)


def _nearest_by_hand(word: str, k: int) -> tuple[str, ...]:
    vectors = vectors_of(small_source()).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    row = WORDS.index(word)
    order = np.argsort(-(vectors @ vectors[row]), kind="stable")
    return tuple(WORDS[i] for i in order if i != row)[:k]


def test_an_unknown_key_is_an_error_that_names_it_unless_the_caller_wants_zeros(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        with pytest.raises(edge_embed.UnknownKeyError, match="'nowhere'"):
            runtime.lookup("nowhere")
        with pytest.raises(KeyError):
            runtime.lookup(["word1", "nowhere"])
        assert not runtime.lookup("nowhere", unknown="zeros").any()
        mixed = runtime.lookup(["word1", "nowhere"], unknown="zeros")
        np.testing.assert_array_equal(mixed[0], runtime.lookup("word1"))
        assert not mixed[1].any()
        with pytest.raises(edge_embed.RequestError, match="expected unknown to be one of"):
            runtime.lookup("word1", unknown="guess")


def test_row_ids_outside_the_table_are_an_error(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        assert runtime.lookup_ids([0, 63]).shape == (2, 16)
        assert runtime.lookup_ids([]).shape == (0, 16)
        for ids in ([-1], [64], [0, 2**40]):
            with pytest.raises(edge_embed.RequestError, match="row ids from 0 to 63"):
                runtime.lookup_ids(ids)


def test_a_model_that_the_bundle_does_not_have_is_an_error_that_names_those_it_has(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime, pytest.raises(edge_embed.RequestError, match=r"table.*'other'"):
        runtime.lookup("word1", model="other")


def test_a_text_is_the_direction_of_the_mean_of_its_known_words(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        mean = runtime.lookup(["word1", "word2"]).mean(axis=0)
        expected = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(runtime.encode("word1 nowhere  WORD2"), expected, atol=1e-6)
        assert not runtime.encode("").any()
        assert not runtime.encode("nowhere at all").any()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_a_text_gets_the_same_bits_alone_and_among_others(text_bundle: Path, count: int) -> None:
    texts = [" ".join(f"word{(i * j) % 60}" for j in range(1, 1 + i % 40)) for i in range(count)]
    with edge_embed.open(text_bundle) as runtime:
        together = runtime.encode(texts)
        for text, vector in zip(texts, together, strict=True):
            np.testing.assert_array_equal(runtime.encode(text), vector)


def test_padding_and_truncation_of_a_tokenizer_definition_are_not_used(text_bundle: Path) -> None:
    # The definition pads to 128 tokens of [UNK]; a mean over those would be another vector.
    source = small_text_source()
    row = vectors_of(source)[keys_of(source).index(b"word1")]
    with edge_embed.open(text_bundle) as runtime:
        np.testing.assert_allclose(runtime.encode("word1"), row / np.linalg.norm(row), atol=0.02)


def test_texts_that_are_no_unicode_are_refused_by_their_place(text_bundle: Path) -> None:
    with edge_embed.open(text_bundle) as runtime:
        with pytest.raises(edge_embed.RequestError, match=r"text 1: .*lone surrogate"):
            runtime.encode(["fine", "\ud800"])
        with pytest.raises(edge_embed.RequestError, match="text 0: expected str, found int"):
            runtime.encode([3])  # type: ignore[list-item]
        assert runtime.encode("null \0 byte and " + "word1 " * 100_000).shape == (16,)
        assert runtime.encode([]).shape == (0, 16)


def test_a_key_is_searched_in_its_table_and_a_text_in_the_collection(text_bundle: Path) -> None:
    with edge_embed.open(text_bundle) as runtime:
        assert "word1" not in runtime.search("word1", k=5).keys
        best = runtime.search(text="word10 word11", k=2)
        assert best.keys[0] == "word10 word11"
        assert best.scores[0] == pytest.approx(1, abs=1e-3)
        assert best.scores[0] >= best.scores[1]
        assert len(runtime.search(text="word10", k=100)) == 4
        assert runtime.search(text="word10", k=1, model="table").keys == ("word10",)


def test_a_search_wants_exactly_one_question(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        for question in ({}, {"key": "word1", "text": "word1"}):
            with pytest.raises(edge_embed.RequestError, match="exactly one"):
                runtime.search(**question)  # type: ignore[call-overload]
        with pytest.raises(edge_embed.RequestError, match="k of at least 1"):
            runtime.search("word1", k=0)


def test_a_vector_of_another_space_is_refused_and_one_of_this_space_is_searched(
    bundle: Path, newer_bundle: Path
) -> None:
    with edge_embed.open(bundle) as here, edge_embed.open(newer_bundle) as there:
        assert here.space.id != there.space.id
        mine, other = here.stamped(key="word5"), there.stamped(text="word5")
        assert here.search(vector=mine, k=1).keys == ("word5",)
        with pytest.raises(edge_embed.SpaceMismatchError, match="expected a vector of space"):
            here.search(vector=other)
        assert here.search(vector=here.lookup("word5"), k=1).space == here.space.id
        several = here.search(vector=[mine, here.lookup("word7"), here.lookup("word9").tolist()], k=1)
        assert [found.keys for found in several] == [("word5",), ("word7",), ("word9",)]
        for wrong in ([mine, other], [other], (other, mine)):
            with pytest.raises(edge_embed.SpaceMismatchError, match="expected a vector of space"):
                here.search(vector=wrong)
        assert here.search(vector=mine.values.tolist(), k=1).keys == ("word5",)


@pytest.mark.parametrize(
    "vector", [np.zeros(3, np.float32), np.full(16, np.nan, np.float32), np.zeros((1, 1, 16)), "abc", [["abc"]]]
)
def test_a_query_vector_of_another_shape_or_without_finite_numbers_is_refused(
    bundle: Path, vector: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    with edge_embed.open(bundle) as runtime, pytest.raises(edge_embed.RequestError):
        runtime.search(vector=vector)


def test_zeros_are_like_nothing(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        assert not runtime.search(vector=np.zeros(16, np.float32), k=3).scores.any()


@pytest.mark.parametrize("length", [1e-44, 1e-20, 3e38])
def test_the_length_of_a_query_does_not_matter(bundle: Path, length: float) -> None:
    with edge_embed.open(bundle) as runtime:
        direction = np.sign(runtime.lookup("word5"))
        expected = runtime.search(vector=direction, k=5)
        found = runtime.search(vector=(direction * np.float32(length)), k=5)
    assert found.keys == expected.keys
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_a_codec_of_the_same_source_keeps_the_space(bundle: Path, tmp_path: Path) -> None:
    exact = make_bundle(tmp_path / "exact", codec="float32")
    with edge_embed.open(bundle) as runtime:
        assert runtime.space.id == exact.manifest.space.id


def test_what_cannot_fit_into_the_memory_budget_is_refused_with_the_numbers(bundle: Path) -> None:
    with pytest.raises(edge_embed.BudgetError, match=r"at most 1\.0 MiB of private memory, found a need of"):
        edge_embed.open(bundle, memory_budget="1MiB")
    with edge_embed.open(bundle, memory_budget="4GiB") as runtime:
        assert runtime.lookup("word1").any()
    with pytest.raises(edge_embed.RequestError, match="expected a size like 64MiB"):
        edge_embed.open(bundle, memory_budget="plenty")


def test_a_memory_budget_counts_what_the_process_holds_and_what_the_bundle_adds(bundle: Path) -> None:
    with edge_embed.open(bundle) as runtime:
        adds = runtime.manifest.requirements.memory_private_bytes
    holds = memory.current().private_bytes
    # The process holds more than this beside, and does not grow by as much meanwhile.
    slack = 8 * 2**20
    edge_embed.open(bundle, memory_budget=holds + adds + slack).close()
    for too_little in (adds + slack, holds + adds - slack):
        with pytest.raises(edge_embed.BudgetError, match="found a need of"):
            edge_embed.open(bundle, memory_budget=too_little)


def test_a_bare_folder_is_verified_unless_the_caller_says_otherwise(damageable: Path) -> None:
    path = damageable / "golden.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(edge_embed.BundleError, match=r"golden\.bin: expected sha256"):
        edge_embed.open(damageable)
    with edge_embed.open(damageable, verify=False) as runtime:
        assert runtime.lookup("word1").any()


def test_a_key_index_that_points_past_the_table_is_an_error_not_a_wild_read(damageable: Path) -> None:
    with edge_embed.open(damageable) as runtime:
        place = runtime.manifest.tables[0].tensors["index_slots"]
    path = damageable / place.blob
    data = bytearray(path.read_bytes())
    slots = np.frombuffer(data, np.uint32, count=place.size_bytes // 4, offset=place.offset_bytes).reshape(place.shape)
    slots[slots[:, 1] < 64, 1] = 1_000_000
    path.write_bytes(data)
    with edge_embed.open(damageable, verify=False) as runtime:
        with pytest.raises(edge_embed.BundleError, match="expected rows below 64, found 1000000"):
            runtime.lookup("word1")
        with pytest.raises(edge_embed.BundleError, match="expected rows below 64, found 1000000"):
            runtime.lookup(["word1"] * 100)


def test_a_closed_runtime_says_so(bundle: Path) -> None:
    runtime = edge_embed.open(bundle)
    vector = runtime.lookup("word1")
    runtime.close()
    runtime.close()
    with pytest.raises(edge_embed.RequestError, match="closed"):
        runtime.lookup("word1")
    assert vector.any()


def test_a_path_that_is_no_bundle_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(edge_embed.BundleError, match="nothing-here"):
        edge_embed.open(tmp_path / "nothing-here")
    with pytest.raises(edge_embed.BundleError, match=MANIFEST_NAME):
        edge_embed.open(tmp_path)


def test_every_golden_answer_holds(text_bundle: Path) -> None:
    with edge_embed.open(text_bundle) as runtime:
        outcomes = runtime.check_golden()
    assert {outcome.operation for outcome in outcomes} == {"lookup", "encode", "search"}
    assert all(outcome.passed for outcome in outcomes)
    assert all(outcome.worst_difference == 0 for outcome in outcomes if outcome.operation == "lookup")
