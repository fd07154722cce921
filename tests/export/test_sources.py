"""What trainers leave behind is read as it is, or refused with what was expected and found; no header is believed."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed.errors import EdgeEmbedError, RequestError
from edge_embed_export.sources import Source, read_source, readers
from tests.making import keys_of, vectors_of

KEYS = (b"the", "東京".encode(), b"latin\xff1")
VECTORS = np.array([[1, -2.5, 3e-5], [0, -0.0, 1e30], [7, 8, 9]], np.float32)


def _binary(
    keys: tuple[bytes, ...] = KEYS,
    vectors: NDArray[np.float32] = VECTORS,
    *,
    newline: bytes = b"\n",
    header: bytes | None = None,
) -> bytes:
    first = b"%d %d\n" % vectors.shape if header is None else header
    rows = (key + b" " + vector.astype("<f4").tobytes() for key, vector in zip(keys, vectors, strict=True))
    return first + newline.join(rows) + newline


def _text(
    keys: tuple[bytes, ...] = KEYS,
    vectors: NDArray[np.float32] = VECTORS,
    *,
    newline: bytes = b"\n",
    header: bytes | None = None,
) -> bytes:
    first = (b"%d %d" % vectors.shape) + newline if header is None else header
    rows = (
        key + b" " + b" ".join(repr(float(number)).encode() for number in vector)
        for key, vector in zip(keys, vectors, strict=True)
    )
    return first + newline.join(rows) + newline


def _read(path: Path, data: bytes, format: str | None = None) -> Source:
    path.write_bytes(data)
    return read_source(path, format)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Where a test writes its model."""
    return tmp_path / "model.vec"


WRITERS: Mapping[str, bytes] = {
    "binary with newlines": _binary(),
    "binary without newlines": _binary(newline=b""),
    "text": _text(),
    "text with Windows line ends": _text(newline=b"\r\n"),
    "text without a newline at the end": _text()[:-1],
    "text with a blank before the line's end": _text().replace(b"\n", b" \n")[:-2],
}


@pytest.mark.parametrize("named", [True, False], ids=["named", "detected"])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_writer_wrote_is_read_with_its_words_and_its_numbers(model: Path, writer: str, named: bool) -> None:
    format = f"word2vec-{writer.split()[0]}" if named else None
    source = _read(model, WRITERS[writer], format)
    assert keys_of(source) == KEYS
    np.testing.assert_array_equal(vectors_of(source), VECTORS)
    assert vectors_of(source).dtype == np.float32
    assert source.title == "model.vec"


@pytest.mark.parametrize("format", ["word2vec-text", None])
def test_a_word_of_a_text_file_may_hold_spaces(model: Path, format: str | None) -> None:
    keys = (b"new york city", b"plain", b"a . b")
    source = _read(model, _text(keys), format)
    assert keys_of(source) == keys
    np.testing.assert_array_equal(vectors_of(source), VECTORS)


@pytest.mark.parametrize("dimensions", [1, 2, 900])
@pytest.mark.parametrize("write", [_binary, _text])
def test_a_format_is_told_by_the_content_for_short_and_long_rows(
    model: Path, write: Callable[..., bytes], dimensions: int
) -> None:
    # 900 numbers of a text are a row that the first look at the file does not see the end of.
    vectors = np.random.default_rng(0).normal(size=(2, dimensions)).astype(np.float32)
    source = _read(model, write((b"1900", b"a"), vectors))
    assert keys_of(source) == (b"1900", b"a")
    np.testing.assert_array_equal(vectors_of(source), vectors)


def test_a_glove_file_has_no_header_and_words_with_spaces_and_numbers(model: Path) -> None:
    keys = (b"1900", b". . .", b"at name@domain.com", b"5 3")
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for format in ("glove-text", None):
        source = _read(model, _text(keys, vectors, header=b""), format)
        assert keys_of(source) == keys
        np.testing.assert_array_equal(vectors_of(source), vectors)


@pytest.mark.parametrize("write", [_binary, _text])
def test_keys_may_be_any_bytes_without_a_newline(model: Path, write: Callable[..., bytes]) -> None:
    # The empty key, the end of a sentence, a family of several code points, bytes that are no UTF-8, a line separator.
    keys = (b"", b"</s>", "👩‍👩‍👧".encode(), b"\xff\xfe", "a\u2028b".encode(), "n\u0303".encode(), b"\xc2\x85")
    vectors = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    source = _read(model, write(keys, vectors))
    assert keys_of(source) == keys
    np.testing.assert_array_equal(vectors_of(source), vectors)


def test_rows_of_zeros_and_blank_lines_at_the_end_are_read(model: Path) -> None:
    assert not vectors_of(_read(model, b"2 2\na 0 0\nb 0.0 -0\n\n \n")).any()


def test_a_blank_line_in_between_is_a_row_without_numbers(model: Path) -> None:
    with pytest.raises(RequestError, match="row 1: expected 2 numbers, found b''"):
        _read(model, b"3 2\na 0 0\n\nb 0 0\n")


@pytest.mark.parametrize("write", [_binary, _text])
def test_a_file_of_many_blocks_is_read_as_a_small_one_is(model: Path, write: Callable[..., bytes]) -> None:
    random = np.random.default_rng(2)
    vectors = random.normal(size=(60_000, 50)).astype(np.float32)
    keys = tuple(b"word%d" % i if i % 1000 else b"two words %d" % i for i in range(60_000))
    if write is _binary:
        keys = tuple(key.replace(b" ", b"_") for key in keys)
    source = _read(model, write(keys, vectors))
    assert keys_of(source) == keys
    np.testing.assert_array_equal(vectors_of(source), vectors)


def _glove_binary(vectors: NDArray[np.float64]) -> bytes:
    """Return what GloVe writes for rows whose sum of word and context is ``vectors``."""
    contexts = np.random.default_rng(3).normal(size=vectors.shape)
    biases = np.ones((len(vectors), 1))
    return np.concatenate([np.hstack([vectors - contexts, biases]), np.hstack([contexts, biases])]).tobytes()


def test_gloves_binary_file_is_read_beside_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"the 900\nof a 80\n\xff 7\n")
    source = _read(tmp_path / "vectors.bin", _glove_binary(VECTORS.astype(np.float64)), "glove-binary")
    assert keys_of(source) == (b"the", b"of a", b"\xff")
    np.testing.assert_allclose(vectors_of(source), VECTORS, rtol=1e-6)
    assert source.table.counts is not None and source.table.counts.tolist() == [900, 80, 7]


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        (None, "vocab.txt: expected the vocabulary, a word and its count a line, found: No such file"),
        (b"the 900\nof\n", "vocab.txt: line 2: expected a word and its count, found b'of'"),
        (b"a 5\n" * 5, "expected two rows of float64 for each of the 5 words of .*, found a file of 192 bytes"),
        (b"", "for each of the 0 words"),
    ],
)
def test_a_vocabulary_that_does_not_fit_gloves_binary_file_is_refused(
    tmp_path: Path, vocabulary: bytes | None, said: str
) -> None:
    if vocabulary is not None:
        (tmp_path / "vocab.txt").write_bytes(vocabulary)
    with pytest.raises(RequestError, match=said):
        _read(
            tmp_path / "vectors.bin",
            _glove_binary(VECTORS.astype(np.float64))[: 192 if vocabulary else None],
            "glove-binary",
        )


def test_the_space_depends_on_words_and_numbers_and_not_on_the_file_format(model: Path) -> None:
    space = _read(model, _text()).table.space_id
    assert _read(model, _binary()).table.space_id == space
    assert _read(model, _text((*KEYS[:2], b"other"))).table.space_id != space
    assert _read(model, _text(vectors=VECTORS + 1)).table.space_id != space


NOT_A_MODEL = {
    "an empty file": (b"", "expected a model's file of a known format, found one that begins with b''"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(90), "expected a model's file of a known format"),
    "words alone": (b"rows dimensions\n", "name the format with --format"),
    "a line of a word alone": (b"the 0.1 0.2\nof\nand 0.1 0.2\n", "name the format with --format"),
    "lines of unequal length": (b"-1 3\nthe 1 2 3 4\n", "row 0: expected 4 numbers, found b'-1 3'"),
    "no rows": (b"0 3\n", "expected rows and dimensions of at least 1, found 0 and 3"),
    "no dimensions": (b"3 0\nthe \nof \nand \n", "expected rows and dimensions of at least 1, found 3 and 0"),
}


@pytest.mark.parametrize("content", NOT_A_MODEL)
def test_what_is_no_model_is_refused(model: Path, content: str) -> None:
    data, said = NOT_A_MODEL[content]
    with pytest.raises(RequestError, match=said) as error:
        _read(model, data)
    assert str(model) in str(error.value)


NAN = np.where(VECTORS == 8, np.float32("nan"), VECTORS)
INFINITE = np.where(VECTORS == 8, np.float32("inf"), VECTORS)
TRUNCATED = "row 2: expected 12 bytes of numbers, found 11"

DAMAGED = {
    "binary, last row cut": ("word2vec-binary", _binary(newline=b"")[:-1], TRUNCATED),
    "binary, more rows than the header says": (
        "word2vec-binary",
        _binary(header=b"2 3\n"),
        "expected the end after 2 rows, found 22 more bytes",
    ),
    "binary, fewer rows than the header says": (
        "word2vec-binary",
        _binary(header=b"4 3\n"),
        "row 3 at byte .* expected a word and a space, found neither",
    ),
    "binary, bytes behind the last row": ("word2vec-binary", _binary() + b"x", "found 2 more bytes"),
    "binary, a word without an end": ("word2vec-binary", b"1 1\n" + b"x" * 5000, "row 0 at byte 4: expected a word"),
    "binary, NaN": ("word2vec-binary", _binary(vectors=NAN), r"row 2 \(b'latin\\xff1'\): expected finite numbers"),
    "binary, infinity": ("word2vec-binary", _binary(vectors=INFINITE), "found NaN or infinity"),
    "text, NaN": ("word2vec-text", _text(vectors=NAN), r"row 2 \(b'latin\\xff1'\): expected finite numbers"),
    "text, infinity": ("word2vec-text", _text(vectors=INFINITE), "found NaN or infinity"),
    "text, a number too large for float32": ("word2vec-text", b"1 1\na 1e39\n", "found NaN or infinity"),
    "text, more rows": ("word2vec-text", _text(header=b"2 3\n"), "expected 2 rows as the header says, found 3"),
    "text, fewer rows": ("word2vec-text", _text(header=b"4 3\n"), "expected 4 rows as the header says, found 3"),
    "text, last row cut": ("word2vec-text", _text()[:-9], "row 2: expected 3 numbers, found b'latin"),
    "text, a row of one number": ("word2vec-text", b"2 3\na 1\nb 1 2 3\n", "row 0: expected 3 numbers, found b'a 1'"),
    "text, a row of a word alone": ("word2vec-text", b"2 3\na\nbbb 1 2 3\n", "row 0: expected 3 numbers, found b'a'"),
    "text, no number": ("word2vec-text", b"1 3\na 1 x 3\n", "row 0: expected 3 numbers, found b'a 1 x 3'"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_the_row_or_the_count(model: Path, damage: str) -> None:
    format, data, said = DAMAGED[damage]
    with pytest.raises(RequestError, match=said) as error:
        _read(model, data, format)
    assert str(model) in str(error.value)


@pytest.mark.parametrize("format", ["word2vec-binary", "word2vec-text"])
@pytest.mark.parametrize("header", [b"3000000000 300", b"1 999999999999", b"99999999999999999999 99999999999999999999"])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(model: Path, format: str, header: bytes) -> None:
    model.write_bytes(_text(header=header + b"\n") * 20)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"numbers, found a file of .* bytes"):
            read_source(model, format)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_word_that_stands_twice_is_read_for_the_exporter_to_refuse(model: Path) -> None:
    assert keys_of(_read(model, _text((b"a", b"b", b"a")))) == (b"a", b"b", b"a")


@pytest.mark.parametrize("format", [None, *readers()])
def test_a_path_that_is_not_there_is_refused(tmp_path: Path, format: str | None) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        read_source(tmp_path / "nowhere", format)


@pytest.mark.parametrize("format", ["word2vec-binary", "word2vec-text"])
def test_a_folder_is_no_word2vec_file(tmp_path: Path, format: str) -> None:
    with pytest.raises(RequestError, match="expected a model to export, found"):
        read_source(tmp_path, format)


def test_a_format_that_is_not_known_is_refused_with_those_that_are(model: Path) -> None:
    with pytest.raises(RequestError, match=r"expected a format of word2vec-binary, .*, found 'pickle'"):
        _read(model, _text(), "pickle")


# A transformer's folder.

TABLE_NAME = "embeddings.word_embeddings.weight"
TOKENS = ("[PAD]", "[UNK]", "[unused7]", "the", "of", "##ing", "東")
TABLE = np.random.default_rng(0).normal(size=(len(TOKENS), 5)).astype(np.float32)


def _safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """Return a safetensors file: the length of a JSON header, the header, the data."""
    header, data = {}, b""
    for name, (dtype, shape, numbers) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (len(data), len(data) + len(numbers))}
        data += numbers
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _weights(table: NDArray[np.float32] = TABLE, name: str = TABLE_NAME) -> bytes:
    return _safetensors({name: ("F32", table.shape, table.tobytes()), "pooler.bias": ("F32", (2,), bytes(8))})


def _vocabulary(tokens: tuple[str, ...] = TOKENS) -> bytes:
    return json.dumps({"model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(tokens)}}}).encode()


def _folder(path: Path, weights: bytes | None, tokenizer: bytes | None) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in (("model.safetensors", weights), ("tokenizer.json", tokenizer)):
        (path / name).unlink(missing_ok=True)
        if data is not None:
            (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("named", [True, False], ids=["named", "detected"])
def test_a_token_table_is_centred_rotated_and_weighted_by_rank(tmp_path: Path, named: bool) -> None:
    folder = _folder(tmp_path / "model", _weights(), _vocabulary())
    source = read_source(folder, "transformer-tokens" if named else None)
    assert keys_of(source) == tuple(token.encode() for token in TOKENS)
    assert (
        source.table.text is not None and source.table.text.tokenizer == _vocabulary() and source.table.text.normalize
    )
    centred = TABLE.astype(np.float64) - TABLE.mean(axis=0, dtype=np.float64)
    # Tokens that no text contains get nothing; the others the logarithm of their place among those that texts contain.
    weights = np.array([0, 0, 0, *np.log1p([1, 2, 3, 4])])
    expected = (centred @ centred.T) * weights[:, np.newaxis] * weights
    # A rotation keeps the products between rows.
    np.testing.assert_allclose(vectors_of(source) @ vectors_of(source).T, expected, atol=1e-4)
    assert vectors_of(source).shape == TABLE.shape and vectors_of(source).dtype == np.float32
    spread = (vectors_of(source)[3:] / weights[3:, np.newaxis]).std(axis=0)
    assert spread[0] > spread[-1]


def test_a_wide_token_table_keeps_its_first_256_components(tmp_path: Path) -> None:
    tokens = tuple(f"token{i}" for i in range(300))
    table = np.random.default_rng(1).normal(size=(300, 270)).astype(np.float32)
    assert read_source(_folder(tmp_path, _weights(table), _vocabulary(tokens))).table.vectors.shape == (300, 256)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read_and_the_same_folder_gives_the_same_bits(tmp_path: Path, dtype: str) -> None:
    if dtype == "BF16":
        pytest.importorskip("ml_dtypes")
        numbers = TABLE.view(np.uint32) >> 16  # the upper half of a float32
        half = _safetensors({TABLE_NAME: (dtype, TABLE.shape, numbers.astype("<u2").tobytes())})
    else:
        half = _safetensors({TABLE_NAME: (dtype, TABLE.shape, TABLE.astype("<f2").tobytes())})
    one, other = (read_source(_folder(tmp_path, half, _vocabulary())) for _ in range(2))
    assert vectors_of(one).tobytes() == vectors_of(other).tobytes() and one.table.space_id == other.table.space_id
    exact = read_source(_folder(tmp_path, _weights(), _vocabulary()))
    np.testing.assert_allclose(vectors_of(one) @ vectors_of(one).T, vectors_of(exact) @ vectors_of(exact).T, atol=0.1)


BROKEN_FOLDERS: Mapping[str, tuple[bytes | None, bytes | None, str]] = {
    "no tokenizer": (_weights(), None, r"tokenizer\.json"),
    "no weights": (None, _vocabulary(), r"model\.safetensors"),
    "an empty folder": (None, None, r"model\.safetensors"),
    "weights that are none": (b"\x80\x04 a pickle", _vocabulary(), "expected a safetensors file"),
    "weights cut short": (_weights()[:-30], _vocabulary(), "expected a safetensors file"),
    "no token table": (_weights(name="other.weight"), _vocabulary(), "expected one tensor word_embeddings.weight"),
    "a table of one axis": (_weights(TABLE[0]), _vocabulary(), "expected a matrix of finite numbers"),
    "a table without rows": (_weights(TABLE[:0]), _vocabulary(()), "expected a matrix of finite numbers"),
    "a table without columns": (_weights(TABLE[:, :0]), _vocabulary(), "expected a matrix of finite numbers"),
    "a table with NaN": (_weights(TABLE * np.float32("nan")), _vocabulary(), "expected a matrix of finite numbers"),
    "numbers too large for float32": (
        _safetensors({TABLE_NAME: ("F64", TABLE.shape, (TABLE.astype(np.float64) * 1e300).tobytes())}),
        _vocabulary(),
        "expected a matrix of finite numbers",
    ),
    "numbers that numpy does not have": (
        _safetensors({TABLE_NAME: ("F8_E4M3", TABLE.shape, bytes(TABLE.size))}),
        _vocabulary(),
        "numbers that numpy has, found: .*float8",
    ),
    "fewer tokens than rows": (_weights(), _vocabulary(TOKENS[:-1]), "expected token ids from 0 to 6"),
    "a tokenizer that is no JSON": (_weights(), b"\x00", "expected a tokenizer with a vocabulary"),
    "a tokenizer of another shape": (_weights(), b"[]", "expected a tokenizer with a vocabulary"),
    "a vocabulary without ids": (
        _weights(),
        json.dumps({"model": {"vocab": [[token, 0.5] for token in TOKENS]}}).encode(),
        "expected a tokenizer with a vocabulary",
    ),
    "a token that is no Unicode": (_weights(), _vocabulary((*TOKENS[:-1], "\ud800")), "surrogates not allowed"),
    "a tokenizer of a thousand brackets": (_weights(), b"[" * 100_000, "expected a tokenizer with a vocabulary"),
}


@pytest.mark.parametrize("fault", BROKEN_FOLDERS)
def test_a_folder_that_is_no_text_encoder_is_refused(tmp_path: Path, fault: str) -> None:
    weights, tokenizer, said = BROKEN_FOLDERS[fault]
    folder = _folder(tmp_path / "model", weights, tokenizer)
    with pytest.raises(RequestError, match=said) as error:
        read_source(folder, "transformer-tokens")
    assert str(folder) in str(error.value)
    with pytest.raises(RequestError):
        read_source(folder)


# Damage that nobody thought of.


@st.composite
def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Return data with a few bytes overwritten, removed, repeated or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 9))
        new = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"9" * 19, b" ", b"\n", b"nan", b"-", data[:20]])))
        data = data[:at] + new + data[at + length :]
        if draw(st.booleans()):
            data = data[: draw(st.integers(0, len(data)))]
    return data


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


def _assert_read_or_refused(path: Path, format: str | None) -> None:
    try:
        source = read_source(path, format)
    except EdgeEmbedError:
        return
    assert vectors_of(source).shape[0] == len(keys_of(source)) > 0
    assert np.isfinite(vectors_of(source)).all()


@pytest.mark.parametrize("format", ["word2vec-binary", "word2vec-text", None])
@given(data=st.one_of(_mutated(_binary()), _mutated(_text()), _mutated(_text(header=b""))))
@example(data=_text(header=b"3 1\n"))
@settings(deadline=None, max_examples=150)
def test_any_damage_to_a_file_gives_a_source_or_an_error_of_ours(
    workplace: Path, format: str | None, data: bytes
) -> None:
    path = workplace / "mutated.vec"
    path.write_bytes(data)
    _assert_read_or_refused(path, format)


@given(weights=_mutated(_weights()), tokenizer=_mutated(_vocabulary()), which=st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_damage_to_a_folder_gives_a_source_or_an_error_of_ours(
    workplace: Path, weights: bytes, tokenizer: bytes, which: bool
) -> None:
    folder = _folder(workplace / "folder", weights if which else _weights(), _vocabulary() if which else tokenizer)
    _assert_read_or_refused(folder, None)
