"""A file of questions is read as what it is, or refused by one sentence with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_embed.errors import RequestError
from edge_embed_export.evaluation import KINDS, read_evaluation
from edge_embed_export.evaluation.analogies import Analogies
from edge_embed_export.evaluation.labelled import Labelled
from edge_embed_export.evaluation.odd_one_out import OddOneOut
from edge_embed_export.evaluation.retrieval import Retrieval
from edge_embed_export.evaluation.similarity import Similarity

CONTENTS = {
    "similarity": "love\tsex\t6.77\r\ntiger\tcat\t7.35\r\n",
    "text-similarity": '"A man, a plan.","A man, with one",4.5\nA dog.,A cat.,1\n',
    "analogies": ": capitals\nAthens Greece Oslo Norway\nOslo Norway Athens Greece\n",
    "odd-one-out": "# category other w1 w2 w3 odd\nfood\tplace\tbread\tmilk\trice\toslo\n",
    "labels": "0 3\n1 2 3\n2 3\n",
    "text-labels": "1 a fine film\n0 a bad film\n1 more of it\n0 less of it\n1 again please\n",
}


def _read(tmp_path: Path, content: str | bytes, kind: str = "") -> object:
    path = tmp_path / "questions.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_evaluation(f"{kind}:{path}" if kind else str(path)).questions


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_kind_of_a_file_is_seen_from_its_content(tmp_path: Path, kind: str) -> None:
    found = read_evaluation(_file(tmp_path, CONTENTS[kind]))
    assert found.questions.kind == kind
    assert found.name == "questions.txt"
    assert len(found.sha256) == 64


def _file(folder: Path, content: str) -> str:
    path = folder / "questions.txt"
    path.write_text(content, encoding="utf-8", newline="")
    return str(path)


@pytest.mark.parametrize("separator", ["\t", " ", ","])
def test_word_pairs_are_separated_by_tabs_white_space_or_commas(tmp_path: Path, separator: str) -> None:
    lines = ("sun", "light", "50.0"), ("李白", "诗", "9")
    found = _read(tmp_path, "\n".join(separator.join(line) for line in lines))
    assert found == Similarity(("sun", "李白"), ("light", "诗"), (50.0, 9.0))


def test_text_pairs_may_hold_commas_in_quotes(tmp_path: Path) -> None:
    found = _read(tmp_path, CONTENTS["text-similarity"])
    assert found == Similarity(("A man, a plan.", "A dog."), ("A man, with one", "A cat."), (4.5, 1.0), texts=True)


def test_a_header_names_the_columns_of_text_pairs(tmp_path: Path) -> None:
    content = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tjudgment\n4\tA boy runs\tA girl runs\t3.6\tNEUTRAL\n"
    assert _read(tmp_path, content) == Similarity(("A boy runs",), ("A girl runs",), (3.6,), texts=True)


def test_texts_without_white_space_are_texts_in_chinese(tmp_path: Path) -> None:
    assert _read(
        tmp_path, "开初婚未育证明怎么弄\t初婚未育情况证明怎么开\t1\n谁知道她是谁吗\t谁认识那个人呢\t0\n"
    ) == Similarity(
        ("开初婚未育证明怎么弄", "谁知道她是谁吗"), ("初婚未育情况证明怎么开", "谁认识那个人呢"), (1.0, 0.0), texts=True
    )


def test_sections_of_analogies_are_no_questions(tmp_path: Path) -> None:
    assert _read(tmp_path, CONTENTS["analogies"]) == Analogies(
        (("Athens", "Greece", "Oslo", "Norway"), ("Oslo", "Norway", "Athens", "Greece"))
    )


def test_the_columns_that_a_comment_names_are_the_group_and_the_odd_one(tmp_path: Path) -> None:
    assert _read(tmp_path, CONTENTS["odd-one-out"]) == OddOneOut((("bread", "milk", "rice", "oslo"),))
    assert _read(tmp_path, "bread\tmilk\toslo\n") == OddOneOut((("bread", "milk", "oslo"),))


def test_nodes_have_one_label_or_several_and_texts_one_before_them(tmp_path: Path) -> None:
    assert _read(tmp_path, "1 6 16 \n2 30\n3 6\n") == Labelled(("1", "2", "3"), (("6", "16"), ("30",), ("6",)))
    assert _read(tmp_path, "__label__good a film\n__label__bad a film\n") == Labelled(
        ("a film", "a film"), (("good",), ("bad",)), texts=True
    )


def test_a_few_lines_may_be_latin_1_and_a_file_of_them_may_not(tmp_path: Path) -> None:
    lines = [b"%d how long is the river ?" % (i % 2) for i in range(40)]
    found = _read(tmp_path, b"\n".join([*lines, "1 où est le café".encode("latin-1")]))
    assert isinstance(found, Labelled)
    assert found.items[-1] == "où est le café"
    with pytest.raises(RequestError, match=r"line 1: expected UTF-8 text"):
        _read(tmp_path, "\n".join(["1 où est", "0 là"] * 9).encode("latin-1"))


def test_a_graphs_edges_are_no_labels(tmp_path: Path) -> None:
    edges = "".join(f"{a} {b}\n" for a in range(4) for b in range(10, 20))
    with pytest.raises(RequestError, match="name the kind"):
        _read(tmp_path, edges)


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("similarity", "a b c d\n", "line 1: expected two fields and a finite score"),
        ("similarity", "a\tb\t1\nc\td\tnan\n", "line 2: expected two fields and a finite score"),
        ("analogies", ": x\na b c d\na b c\n", "line 3: expected four words"),
        ("odd-one-out", "a b\n", "line 1: expected 3 fields"),
        ("labels", "1 2\n3\n", "line 2: expected a key and its labels"),
        ("labels", "1 2\n1 3\n", "line 2: expected keys that differ"),
        ("labels", "1 2\n2 2\n", "at least two labels that differ, found 1"),
        ("text-labels", "1\n", "line 1: expected a label and a text"),
        ("", " \n\n", "at least one line"),
        ("", "# nothing\n", "found comments alone"),
        ("retrieval", "a", "expected a folder"),
    ],
)
def test_what_is_no_question_is_named_with_its_line(tmp_path: Path, kind: str, content: str, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        _read(tmp_path, content, kind)


def test_an_absent_file_and_a_folder_without_judgements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"absent\.txt"):
        read_evaluation(str(tmp_path / "absent.txt"))
    with pytest.raises(RequestError, match="expected one file of judgements"):
        read_evaluation(str(tmp_path))
    with pytest.raises(RequestError, match="found a folder"):
        read_evaluation(f"labels:{tmp_path}")


def _trec(folder: Path, judgements: str) -> Path:
    (folder / "all.xml").write_text(
        "<doc>\n<docno>7</docno><title>wings</title><text>of &amp; birds</text></doc>\n"
        "<doc><docno>9</docno><title></title><text>stones</text></doc>"
    )
    (folder / "qry.xml").write_text(
        "<xml><top><num> 3</num><title>\nbirds</title></top><top><num> 8</num><title>stones</title></top></xml>"
    )
    (folder / "qrel.txt").write_text(judgements)
    return folder


def test_a_trec_collection_is_read_without_an_xml_parser(tmp_path: Path) -> None:
    found = read_evaluation(str(_trec(tmp_path, "3 0 7 1\n8 0 9 2\n")))
    assert found.questions == Retrieval(
        {"3": "birds", "8": "stones"}, {"7": "wings of & birds", "9": "stones"}, {"3": {"7": 1}, "8": {"9": 2}}
    )


def test_judgements_that_number_the_queries_by_place_are_understood(tmp_path: Path) -> None:
    found = read_evaluation(str(_trec(tmp_path, "1 0 7 1\n2 0 9 1\n"))).questions
    assert isinstance(found, Retrieval)
    assert found.queries == {"1": "birds", "2": "stones"}


def test_judgements_of_strange_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="found query '5'"):
        read_evaluation(str(_trec(tmp_path, "5 0 7 1\n")))


def test_a_beir_collection_is_read(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d1", "title": "On", "text": "birds"}) + "\n")
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "wings"}) + "\n")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\n")
    found = read_evaluation(f"retrieval:{tmp_path}").questions
    assert found == Retrieval({"q1": "wings"}, {"d1": "On birds"}, {"q1": {"d1": 1}})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(CONTENTS)),
    place=st.integers(0, 80),
    strange=st.binary(max_size=6) | st.sampled_from([b"\t", b"\n", b",", b'"', b"#", b":", b"\x00", b"\xff", b"1e999"]),
    cut=st.integers(0, 4),
    named=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path: Path, kind: str, place: int, strange: bytes, cut: int, named: bool
) -> None:
    content = CONTENTS[kind].encode()
    damaged = content[:place] + strange + content[place + cut :]
    try:
        questions = _read(tmp_path, damaged, kind if named else "")
    except RequestError as error:
        assert "questions.txt" in str(error)
    else:
        assert questions.kind in KINDS  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["all.xml", "qry.xml", "qrel.txt"]), place=st.integers(0, 120), strange=st.binary(max_size=5)
)
def test_a_damaged_collection_is_read_or_refused_and_nothing_else(
    tmp_path: Path, name: str, place: int, strange: bytes
) -> None:
    path = _trec(tmp_path, "3 0 7 1\n8 0 9 2\n") / name
    content = path.read_bytes()
    path.write_bytes(content[:place] + strange + content[place:])
    try:
        assert read_evaluation(str(tmp_path)).questions.kind == "retrieval"
    except RequestError as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("".join(f"word{i} {9999 - i}\n" for i in range(50)), "name the kind, as in labels:questions.txt"),
        ("a\tb\t1\nc\td\t1\n", "expected scores that differ, found 1 for all 2 pairs"),
        ("the of nan\nand in inf\n", "line 1: expected two fields and a finite score"),
        ("".join(f"word{i} l{i // 2}\n" for i in range(4000)), "expected at most 1000 labels"),
    ],
    ids=["words and their counts", "scores all alike", "scores that are none", "labels without end"],
)
def test_a_file_that_can_measure_nothing_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        _read(tmp_path, content)
