"""fastText's files of every version, beside what the original answers where its package is installed."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed.commands import main
from edge_embed.errors import RequestError
from edge_embed.runtime import Runtime
from edge_embed_bundle.store import Store
from edge_embed_export.exporter import export
from edge_embed_export.matrix import Matrix
from edge_embed_export.options import Options
from edge_embed_export.sources import Source, read_source
from tests.fakes.probes import YES, FakeProbe
from tests.fasttext_files import LABELS, WORDS, Model, quantized

#: Words that no test's model knows: in part of its letters, of others, the end of a line, a letter, nothing at all.
UNKNOWN = ("batteries", "naïvety", "東京都", "x", "жуки", "thermo" * 30, "__label__9", "")
TEXTS = (
    "the board is warm, naïvety",
    "qqq zzz",
    "board </s> more words",
    "the __label__1 board __label__77",
    "a  b\tc",
    "",
)


def _written(folder: Path, model: Model) -> Path:
    path = folder / "model.bin"
    path.write_bytes(model.to_bytes())
    return path


def _stored(folder: Path, source: Source, codec: str) -> Runtime:
    """Return a runtime on a store that the source's bundle was installed in."""
    report = export(source, Options(target=folder / "bundle", name="words", codec=codec, graphs=()))
    store = Store(folder / "store")
    store.install(report.path, FakeProbe([YES]))
    return edge_embed.open(store.path)


def _cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    there = b.any(axis=1)
    assert not ours[~there].any()
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = (a * b).sum(axis=1)[there] / lengths[there]
    return found


def _all(matrix: Matrix) -> NDArray[Any]:
    return matrix[:]


@pytest.mark.parametrize("version", [None, 11, 12])
def test_files_of_every_version_are_read(tmp_path: Path, version: int | None) -> None:
    model = Model(version=version)
    source = read_source(_written(tmp_path, model))
    words, buckets = source.tables
    assert [key.decode() for key in words.keys or ()] == list(WORDS)
    np.testing.assert_array_equal(_all(buckets.vectors), model.input()[len(WORDS) :])
    # </s> has no n-grams: its vector is its row.
    np.testing.assert_array_equal(_all(words.vectors)[0], model.input()[0])
    assert words.row_order == "frequency"


@pytest.mark.parametrize(("version", "maxn"), [(None, 0), (11, 0), (12, 3)])
def test_supervised_models_of_old_had_no_letters_whatever_they_say(
    tmp_path: Path, version: int | None, maxn: int
) -> None:
    model = Model(labels=LABELS, model=3, loss=3, version=version)
    table = read_source(_written(tmp_path, model)).table
    assert table.subwords is not None and table.subwords.maxn == maxn


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_what_came_quantized_keeps_its_codes_in_pq(tmp_path: Path, norms: bool, width: int) -> None:
    kept = ((40, 1), (7, 0), (21, 2))
    rows = len(WORDS) + len(kept)
    codes = quantized(rows, 4, width, norms=norms)
    model = Model(labels=LABELS, model=3, loss=3, kept=kept, quantized=codes)
    source = read_source(_written(tmp_path, model))
    with _stored(tmp_path, source, "pq") as runtime:
        words, buckets, labels = (runtime.table(name) for name in ("table", "subwords", "labels"))
        np.testing.assert_array_equal(buckets.bucket_ids, [7, 21, 40])
        assert labels.model.codec == "float32" and words.model.codec == buckets.model.codec == "pq"
        numbers = codes.centroids
        whole = (codes.codes.shape[1] - 1) * 256 * width
        last = 4 - (codes.codes.shape[1] - 1) * width
        for row, table, at in ((2, words, 2), (len(WORDS) + 1, buckets, 2), (len(WORDS), buckets, 0)):
            parts = [
                numbers[(part * 256 + code) * width :][:width]
                for part, code in enumerate(codes.codes[row, :-1].tolist())
            ]
            parts.append(numbers[whole + int(codes.codes[row, -1]) * last :][:last])
            length = np.float32(1) if codes.norms is None else codes.norms[1][codes.norms[0][row]]
            np.testing.assert_array_equal(table.decode(np.array([at]))[0], np.concatenate(parts) * length)


def test_an_unknown_word_is_made_of_its_parts_or_of_nothing(tmp_path: Path) -> None:
    model = Model()
    with _stored(tmp_path, read_source(_written(tmp_path, model)), "float32") as runtime:
        assert runtime.manifest.tables[0].unknown == "subwords"
        assert runtime.lookup("boardy").any()
        assert not runtime.lookup("boardy", unknown="zeros").any()
        with pytest.raises(edge_embed.UnknownKeyError, match="boardy"):
            runtime.lookup("boardy", unknown="error")
        np.testing.assert_array_equal(runtime.lookup(["board", "boardy"])[1], runtime.lookup("boardy"))
        assert runtime.search("boardy", k=3).scores[0] > 0
        with pytest.raises(RequestError, match="found none that does"):
            runtime.classify("board")
        with pytest.raises(RequestError, match="subwords: expected a table with a key index"):
            runtime.lookup("board", model="subwords")


def test_parts_are_no_neighbours_of_anything(tmp_path: Path) -> None:
    source = read_source(_written(tmp_path, Model(labels=LABELS, model=3, loss=3)))
    with _stored(tmp_path, source, "int8") as runtime:
        assert {question.operation for question in runtime.manifest.golden} == {"lookup", "encode", "classify"}
        assert all(outcome.passed for outcome in runtime.check_golden())
        with pytest.raises(RequestError, match="made for search"):
            runtime.search("board")


def test_a_model_goes_from_its_file_to_labels_by_the_command_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bundle, store = _written(tmp_path, Model(labels=LABELS, model=3, loss=3)), tmp_path / "b", tmp_path / "store"
    for words in (
        ("export", path, "-o", bundle, "--graphs", "none"),
        ("install", bundle, "--store", store),
        ("check", store),
        ("lookup", store, "warm", "unknown"),
        ("encode", store, "the board"),
    ):
        assert main([str(word) for word in words]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert main(["classify", str(store), "the board is warm", "so what", "-k", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["answers"]
    assert (first["input"], second["input"]) == ("the board is warm", "so what")
    assert len(first["labels"]) == len(first["probabilities"]) == 2
    assert main(["classify", str(store), "the board is warm"]) == 0
    assert capsys.readouterr().out.startswith(f"the board is warm  {first['labels'][0]} 0.")


@pytest.mark.parametrize("loss", [1, 2, 3, 4])
def test_labels_come_likeliest_first_as_many_as_are_asked_for(tmp_path: Path, loss: int) -> None:
    source = read_source(_written(tmp_path, Model(labels=LABELS, model=3, loss=loss)))
    with _stored(tmp_path, source, "float32") as runtime:
        found = runtime.classify("the board is warm", k=9)
        assert sorted(found.labels) == sorted(LABELS) and len(found) == 3
        assert (np.diff(found.probabilities) <= 0).all()
        assert runtime.classify("the board is warm").labels == found.labels[:1]
        likely = runtime.classify(["the board is warm"], k=3, threshold=float(found.probabilities[1]) - 1e-4)[0]
        assert likely.labels == found.labels[:2]
        with pytest.raises(RequestError, match="k of at least 1"):
            runtime.classify("the board", k=0)
        with pytest.raises(RequestError, match="expected str"):
            runtime.classify([3])  # type: ignore[list-item]


FAULTS: dict[str, tuple[Model, str]] = {
    "a version of tomorrow": (Model(version=13), "expected version 11 or 12, found 13"),
    "no dimensions": (Model(head={"dim": 0}), "dim from 1 to 65536, found 0"),
    "an unknown loss": (Model(head={"loss": 9}), "loss from 1 to 4, found 9"),
    "a negative bucket": (Model(head={"bucket": -1}), "bucket from 0 to"),
    "endless n-grams": (Model(head={"maxn": 2**31 - 1}), "maxn from 0 to 1000"),
    "another number of buckets": (Model(head={"bucket": 51}), "input matrix to be 57 x 4"),
    "other dimensions": (Model(head={"dim": 5}), "x 5 as the dictionary says, found 56 x 4"),
    "pruned but not quantized": (Model(kept=((1, 0),)), "expected a quantized matrix behind a pruned dictionary"),
    "a bucket in a row that is not there": (
        Model(kept=((1, 7),), quantized=quantized(7, 4, 2, norms=False)),
        "expected kept buckets in rows from 0 to 0",
    ),
    "a bucket twice": (
        Model(kept=((1, 0), (1, 1)), quantized=quantized(8, 4, 2, norms=False)),
        "expected kept buckets that differ",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_contradicts_itself_is_refused_by_name_and_place(tmp_path: Path, name: str) -> None:
    model, says = FAULTS[name]
    path = _written(tmp_path, model)
    with pytest.raises(RequestError) as refused:
        read_source(path, "fasttext")
    assert str(path) in str(refused.value) and says in str(refused.value) and ", found " in str(refused.value)


@pytest.mark.parametrize("version", [None, 12])
def test_a_file_is_refused_wherever_it_was_cut_and_whatever_was_added(tmp_path: Path, version: int | None) -> None:
    data = Model(version=version, words=WORDS[:3], bucket=5).to_bytes()
    path = tmp_path / "model.bin"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(RequestError, match=r"expected .*found "):
            read_source(path, "fasttext")
    path.write_bytes(data + b"\0")
    with pytest.raises(RequestError, match="expected the end after the output matrix, found 1 more bytes"):
        read_source(path)


def test_counts_are_compared_with_the_file_before_anything_is_made_for_them(tmp_path: Path) -> None:
    data = Model().to_bytes()
    at = 8 + struct.calcsize("<12id")
    path = tmp_path / "model.bin"
    huge = struct.pack("<3iq", 2**31 - 1, 2**31 - 1, 0, 0)
    path.write_bytes(data[:at] + huge + data[at + len(huge) :])
    with pytest.raises(RequestError, match="2147483647 and 0 of 2147483647"):
        read_source(path)
    shape = data.rindex(struct.pack("<2q", 56, 4))
    for rows, columns in ((2**62, 4), (2**40, 4), (-1, 4), (56, 2**40), (56, 0)):
        path.write_bytes(data[:shape] + struct.pack("<2q", rows, columns) + data[shape + 16 :])
        with pytest.raises(RequestError, match=f"found {rows} x {columns} numbers"):
            read_source(path)


def test_numbers_that_are_none_are_refused_at_the_export(tmp_path: Path) -> None:
    data = Model().to_bytes()
    at = data.rindex(Model().input().tobytes())
    path = tmp_path / "model.bin"
    path.write_bytes(data[:at] + b"\xff" * 4 + data[at + 4 :])
    with pytest.raises(RequestError, match="expected a vector of finite length, found nan"):
        export(read_source(path), Options(target=tmp_path / "bundle", name="words"))


SMALL = (
    Model(words=WORDS[:4], bucket=6),
    Model(words=WORDS[:4], bucket=6, version=None),
    Model(words=WORDS[:4], bucket=6, labels=LABELS, model=3, loss=1),
    Model(
        words=WORDS[:3], labels=LABELS, model=3, loss=3, kept=((2, 0), (5, 1)), quantized=quantized(5, 4, 3, norms=True)
    ),
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_a_damaged_file_says_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = bytearray(data.draw(st.sampled_from([model.to_bytes() for model in SMALL])))
    # The centroids are most of a quantized file, and any bytes are numbers.
    places = st.integers(0, min(len(original) - 4, 700))
    for at, value in data.draw(st.lists(st.tuples(places, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)):
        original[at : at + len(value)] = value
    end = data.draw(st.one_of(st.none(), st.integers(0, len(original))))
    path = tmp_path_factory.mktemp("damaged") / "model.bin"
    path.write_bytes(original[:end])
    try:
        source = read_source(path, "fasttext")
    except RequestError as error:
        assert str(path) in str(error) and "expected" in str(error) and "found" in str(error)
        return
    for table in source.tables:
        assert _all(table.vectors).shape == table.vectors.shape
        assert table.keys is None or len(table.keys) == len(table.vectors)


@pytest.fixture(scope="module")
def original() -> Any:
    """The original, where it is installed."""
    package = pytest.importorskip("fasttext")
    package.FastText.eprint = lambda *_: None
    return package


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small text of our own, and its lines with labels."""
    root = Path(__file__).parents[2]
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in ("README.md", "firmware_bundle/SPEC.md"))
    text = "".join(letter if letter.isalnum() or letter == "\n" else " " for letter in text.lower())
    lines = [*(line for line in text.split("\n") if len(line.split()) > 3), *["жук東京 naïve über ünï"] * 6]
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "plain.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    labelled = "".join(f"__label__{len(line) % 7} {line}\n" for line in lines)
    (folder / "labelled.txt").write_text(labelled, encoding="utf-8")
    return folder / "plain.txt", folder / "labelled.txt"


def _vectors_of(model: Any, words: list[str]) -> NDArray[np.float32]:
    return np.stack([model.get_word_vector(word) for word in words])


def _sentences_of(model: Any) -> NDArray[np.float32]:
    return np.stack([model.get_sentence_vector(text) for text in TEXTS])


@pytest.mark.parametrize("maxn", [0, 5])
@pytest.mark.parametrize("kind", ["cbow", "skipgram"])
def test_words_and_sentences_of_an_unsupervised_model_are_the_originals(
    tmp_path: Path, original: Any, corpus: tuple[Path, Path], kind: str, maxn: int
) -> None:
    settings = {
        "dim": 20,
        "bucket": 1000,
        "minCount": 2,
        "epoch": 3,
        "thread": 1,
        "minn": 3,
        "maxn": maxn,
        "verbose": 0,
    }
    model = original.train_unsupervised(str(corpus[0]), model=kind, **settings)
    model.save_model(str(tmp_path / "model.bin"))
    source = read_source(tmp_path / "model.bin")
    words = [*model.words, *UNKNOWN]
    with _stored(tmp_path, source, "float32") as runtime:
        np.testing.assert_array_equal(runtime.lookup(words), _vectors_of(model, words))
        np.testing.assert_array_equal(
            np.stack([runtime.lookup(word) for word in UNKNOWN]), _vectors_of(model, [*UNKNOWN])
        )
        np.testing.assert_array_equal(runtime.encode(TEXTS), _sentences_of(model))
    (tmp_path / "int8").mkdir()
    with _stored(tmp_path / "int8", source, "int8") as runtime:
        assert _cosines(runtime.lookup(words), _vectors_of(model, words)).min() > 0.999
        assert _cosines(runtime.encode(TEXTS), _sentences_of(model)).min() > 0.999


def _quantize(**how: Any) -> Callable[[Any, Path], Any]:
    return lambda model, labelled: model.quantize(input=str(labelled), **how)


FLAVOURS: dict[str, Callable[[Any, Path], Any]] = {
    "bin": lambda *_: None,
    "ftz": _quantize(qnorm=False),
    "ftz, norms": _quantize(qnorm=True),
    "ftz, pruned": _quantize(qnorm=True, cutoff=400, dsub=4),
    "ftz, pruned, no norms, odd parts": _quantize(qnorm=False, cutoff=400, dsub=5),
    "ftz, quantized output": _quantize(qnorm=True, qout=True),
}


CASES = (
    *(("bin", loss, *parts) for loss in ("softmax", "ova", "hs", "ns") for parts in ((0, 1), (4, 3))),
    *((flavour, "softmax", 4, 3) for flavour in FLAVOURS if flavour != "bin"),
    ("ftz, pruned", "hs", 0, 2),
    ("ftz, norms", "softmax", 0, 1),
    ("ftz, quantized output", "ova", 0, 1),
)


@pytest.mark.parametrize(("flavour", "loss", "maxn", "word_ngrams"), CASES)
def test_words_sentences_and_labels_of_a_supervised_model_are_the_originals(
    tmp_path: Path, original: Any, corpus: tuple[Path, Path], flavour: str, loss: str, maxn: int, word_ngrams: int
) -> None:
    if flavour == "ftz, quantized output":
        # The original trains 256 centroids on the labels, and refuses fewer of them.
        lines = corpus[1].read_text(encoding="utf-8").split("\n")
        many = [f"__label__n{i} {lines[i % len(lines)].partition(' ')[2]}" for i in range(300)]
        (tmp_path / "many.txt").write_text("\n".join(many) + "\n", encoding="utf-8")
        labelled = tmp_path / "many.txt"
    else:
        labelled = corpus[1]
    settings = {"dim": 18, "bucket": 1000, "epoch": 10, "thread": 1, "lr": 0.5, "verbose": 0}
    model = original.train_supervised(
        str(labelled), loss=loss, maxn=maxn, minn=2 if maxn else 0, wordNgrams=word_ngrams, **settings
    )
    FLAVOURS[flavour](model, labelled)
    model.save_model(str(tmp_path / "model.bin"))
    model = original.load_model(str(tmp_path / "model.bin"))
    words = [*model.get_words(), *UNKNOWN]
    source = read_source(tmp_path / "model.bin")
    assert source.table.classify is not None
    texts = [*TEXTS, *corpus[0].read_text(encoding="utf-8").split("\n")[:40]]
    with _stored(tmp_path, source, "float32" if flavour == "bin" else "pq") as runtime:
        np.testing.assert_array_equal(runtime.lookup(words), _vectors_of(model, words))
        np.testing.assert_array_equal(runtime.encode(TEXTS), _sentences_of(model))
        for text in texts:
            found = runtime.classify(text, k=3)
            # The wrapped call: the package's own ``predict`` raises on numpy 2.
            expected = model.f.predict(text + "\n", 3, 0.0, "strict")
            assert len(found) == len(expected)
            np.testing.assert_allclose(found.probabilities, [p for p, _ in expected], atol=2e-6)
            close = np.diff([p for p, _ in expected], append=-1.0) > -1e-6
            if not close.any():
                assert found.labels[:2] == tuple(label for _, label in expected)[:2]


def test_a_classifier_of_int8_gives_nearly_the_originals_words(
    tmp_path: Path, original: Any, corpus: tuple[Path, Path]
) -> None:
    model = original.train_supervised(
        str(corpus[1]), dim=18, bucket=1000, epoch=10, thread=1, maxn=4, minn=2, wordNgrams=2, verbose=0
    )
    model.save_model(str(tmp_path / "model.bin"))
    words = [*model.get_words(), *UNKNOWN]
    with _stored(tmp_path, read_source(tmp_path / "model.bin"), "int8") as runtime:
        assert _cosines(runtime.lookup(words), _vectors_of(model, words)).min() > 0.999
        assert _cosines(runtime.encode(TEXTS), _sentences_of(model)).min() > 0.999


@pytest.mark.parametrize("name", ["crime-and-punishment.bin", "lee_fasttext_new.bin"])
def test_real_models_answer_as_the_original_does(tmp_path: Path, shared_data: Path, original: Any, name: str) -> None:
    path = shared_data / "vectors" / name
    model = original.load_model(str(path))
    words = [*model.words, *UNKNOWN]
    with _stored(tmp_path, read_source(path), "float32") as runtime:
        np.testing.assert_array_equal(runtime.lookup(words), _vectors_of(model, words))
        assert runtime.search(words[3], k=3).keys == tuple(key for _, key in model.get_nearest_neighbors(words[3], k=3))


def test_a_real_model_without_magic_is_found_out(shared_data: Path) -> None:
    source = read_source(shared_data / "vectors" / "non_ascii_fasttext.bin")
    assert list(source.table.keys or ())[:2] == [b"ji", "který".encode()]
    assert source.tables[1].vectors.shape == (10000, 2)


def test_two_sources_of_the_same_numbers_share_a_space_and_others_do_not(tmp_path: Path) -> None:
    first = read_source(_written(tmp_path, Model())).table.space_id
    assert read_source(_written(tmp_path, Model())).table.space_id == first
    assert read_source(_written(tmp_path, dataclasses.replace(Model(), minn=3))).table.space_id != first
