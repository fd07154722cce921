"""Between reader and codec: rows left out, put into the order of their frequency, and made shorter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import RequestError
from edge_embed_export.exact import directions
from edge_embed_export.exporter import export
from edge_embed_export.key_index import hashes_of, repeated_rows
from edge_embed_export.options import Options
from edge_embed_export.preparing import Preparing, prepared, without_repeats
from edge_embed_export.sources import Source, read_source
from tests.making import keys_of, small_source, small_text_source, vectors_of, with_table

KEYS = (b"rare", b"the", b"of", b"the", b"stranger", b"of", b"the")
VECTORS = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)


def _source() -> Source:
    return with_table(small_source(), keys=KEYS, vectors=VECTORS)


@given(st.lists(st.binary(max_size=1), max_size=40))
def test_the_rows_whose_key_stands_before_are_found(keys: list[bytes]) -> None:
    expected = [row for row, key in enumerate(keys) if key in keys[:row]]
    assert repeated_rows(keys, hashes_of(keys, 0)).tolist() == expected


def test_two_keys_of_one_hash_are_no_repeat() -> None:
    assert not len(repeated_rows([b"a", b"b"], np.array([7, 7], np.uint64)))


def test_a_key_that_stands_again_keeps_its_first_row_and_a_note_tells_it() -> None:
    source = prepared(_source(), Preparing())
    assert keys_of(source) == (b"rare", b"the", b"of", b"stranger")
    np.testing.assert_array_equal(vectors_of(source), VECTORS[[0, 1, 2, 4]])
    assert source.notes == ("table: 3 rows left out whose key stands before, the first of b'the', b'of', b'the'",)
    assert source.table.space_id == _source().table.space_id


def test_a_source_without_repeats_is_left_as_it_is() -> None:
    assert without_repeats(small_source()).notes == ()
    assert keys_of(without_repeats(small_text_source())) == keys_of(small_text_source())


def test_rows_are_ordered_by_the_counts_of_a_vocabulary(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_bytes(b"the 900\nof 80\nrare 1\nunseen 5\n")
    source = prepared(_source(), Preparing(vocabulary=vocabulary))
    assert keys_of(source) == (b"the", b"of", b"rare", b"stranger")
    assert source.table.row_order == "frequency"
    np.testing.assert_array_equal(vectors_of(source), VECTORS[[1, 2, 0, 4]])


def test_rows_are_ordered_by_the_counts_of_the_source_and_without_any_stay_where_they_are() -> None:
    counted = with_table(_source(), counts=np.array([1, 9, 9, 1, 30, 1, 1]))
    assert keys_of(prepared(counted, Preparing("frequency"))) == (b"stranger", b"the", b"of", b"rare")
    source = prepared(_source(), Preparing("frequency"))
    assert keys_of(source) == (b"rare", b"the", b"of", b"stranger")
    assert source.table.row_order == "frequency"
    assert prepared(_source(), Preparing()).table.row_order == "source"


def test_the_first_rows_or_those_of_a_list_are_kept(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_bytes(b"of\nrare\nnowhere\n")
    assert keys_of(prepared(_source(), Preparing(keep=2))) == (b"rare", b"the")
    source = prepared(_source(), Preparing(keep_words=words, keep=100))
    assert keys_of(source) == (b"rare", b"of")
    assert source.notes[-1] == "table: 2 of 4 rows kept, of 3 words"


@pytest.mark.parametrize(
    ("preparing", "said"),
    [
        (Preparing(keep=0), "--keep: expected at least 1 row, found 0"),
        (Preparing(dimensions=6), "expected 1 to 5 dimensions to keep, found 6"),
        (Preparing(dimensions=0), "expected 1 to 5 dimensions to keep, found 0"),
        (Preparing(reduce="leading"), "--reduce leading: expected --dimensions beside it, found none"),
        (Preparing(keep_words=Path("/dev/null")), "/dev/null: expected a file of keys, a key a line, found no file"),
        (Preparing(vocabulary=Path("nowhere")), "nowhere: expected the vocabulary"),
    ],
)
def test_what_cannot_be_done_is_refused(preparing: Preparing, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        prepared(_source(), preparing)


@pytest.mark.parametrize("preparing", [Preparing("frequency"), Preparing(keep=3)])
def test_rows_that_something_knows_by_number_stay(preparing: Preparing) -> None:
    with pytest.raises(RequestError, match="found one whose rows are known by number"):
        prepared(small_text_source(), preparing)
    several = replace(_source(), tables=(_source().table, replace(small_source().table, name="other")))
    with pytest.raises(RequestError, match="found one whose rows are known by number"):
        prepared(several, preparing)


def test_principal_directions_keep_what_a_table_of_low_rank_has() -> None:
    random = np.random.default_rng(1)
    vectors = (random.normal(size=(500, 3)) @ random.normal(size=(3, 16))).astype(np.float32)
    source = with_table(small_source(), keys=tuple(b"%d" % i for i in range(500)), vectors=vectors)
    short = prepared(source, Preparing(dimensions=3))
    cosines = [directions(each) @ directions(each).T for each in (vectors, vectors_of(short))]
    np.testing.assert_allclose(cosines[0], cosines[1], atol=2e-3)
    assert short.table.space_id != source.table.space_id
    leading = prepared(source, Preparing(dimensions=3, reduce="leading"))
    np.testing.assert_array_equal(vectors_of(leading), vectors[:, :3])
    assert leading.table.space_id not in (short.table.space_id, source.table.space_id)


def test_word_vectors_lose_less_on_their_principal_directions_than_by_cutting(shared_data: Path) -> None:
    source = read_source(shared_data / "embeddings" / "w2v_sgns_d100_top20k.bin")
    some = prepared(source, Preparing(keep=3000))
    overlaps = {}
    for how in ("pca", "leading"):
        short = _neighbours(vectors_of(prepared(some, Preparing(dimensions=50, reduce=how))))
        both = zip(_neighbours(vectors_of(some)), short, strict=True)
        overlaps[how] = np.mean([len(np.intersect1d(*pair)) / 10 for pair in both])
    assert overlaps["pca"] > overlaps["leading"] + 0.05


def _neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    unit = directions(vectors)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    return np.argsort(-cosines, axis=1)[:, :10]


def test_the_command_prepares_and_the_bundle_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, vocabulary = tmp_path / "words.txt", tmp_path / "vocab.txt"
    path.write_bytes(b"a 1 0 3\nb 0 1 0\nc 2 0 1\na 9 9 9\n")
    vocabulary.write_bytes(b"c 7\nb 5\na 3\n")
    words = ["export", str(path), "-o", str(tmp_path / "bundle"), "--vocab", str(vocabulary), "--keep", "2"]
    assert main([*words, "--dimensions", "2", "--reduce", "leading", "--codec", "float32"]) == 0
    said = capsys.readouterr().out
    assert "note: table: 1 rows left out" in said and "the first 2 of 3 rows kept" in said
    with edge_embed.open(tmp_path / "bundle") as runtime:
        assert runtime.manifest.tables[0].row_order == "frequency"
        assert runtime.lookup_ids([0, 1]).tolist() == [[2, 0], [0, 1]]
    assert main([*words, "--force", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2


def test_a_selection_is_exported_as_its_rows_are(tmp_path: Path) -> None:
    report = export(prepared(_source(), Preparing(keep=3)), Options(tmp_path / "bundle", "words", codec="float32"))
    with edge_embed.open(report.path) as runtime:
        np.testing.assert_array_equal(runtime.lookup(["rare", "the", "of"]), VECTORS[:3])
