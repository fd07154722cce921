"""From a file that the user passes to its questions: seen from the content, or named as ``kind:FILE``.

| kind | content |
|---|---|
| `similarity` | two words and a score; tabs, commas or white space |
| `text-similarity` | two texts and a score; tabs or commas with quotes; a header may name the columns (SICK, STS) |
| `analogies` | four words a line, sections by `: name` (questions-words.txt) |
| `odd-one-out` | three or more words a line, the last is odd; or columns that a `#` line names: w1, w2 ..., odd |
| `labels` | a key and its labels, at white space (nodes of a graph, words) |
| `text-labels` | a label and a text; `__label__` is left out |
| `retrieval` | a folder of queries, documents and judgements (``folders``) |

Lines are UTF-8; blank ones and, except in texts, those that open with `#` are comments. A few lines that are no UTF-8
(one in twenty at most) are read as Latin-1: TREC's questions have two of them.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_embed.errors import RequestError
from edge_embed.named_files import read_named
from edge_embed_export.evaluation.analogies import Analogies
from edge_embed_export.evaluation.folders import read_collection
from edge_embed_export.evaluation.labelled import Labelled
from edge_embed_export.evaluation.odd_one_out import OddOneOut
from edge_embed_export.evaluation.similarity import Similarity
from edge_embed_export.evaluation.tasks import Questions, Task

# What the kind is seen from.
_HEAD_LINES = 200
_COLUMNS = (
    {"sentence_a", "sentence1", "sentence_1", "word1", "word_1", "text1"},
    {"sentence_b", "sentence2", "sentence_2", "word2", "word_2", "text2"},
    {"relatedness_score", "similarity_score", "score", "similarity", "human_score", "human (mean)"},
)
_LABEL = "__label__"
_STRANGE_SHARE = 0.05
# Of fewer lines nobody can tell whether labels are shared.
_FEW_LINES = 20
_LABELS_CEILING = 1000
# Words of Chinese and Japanese are shorter than this, and their texts have no white space.
_TEXT_IDEOGRAPHS = 7
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def read_evaluation(word: str) -> Task:
    """Read what ``--eval`` names: ``FILE`` or ``kind:FILE``.

    Raises:
        RequestError: it is absent, of no kind that can be told, or a line is not as its kind asks.
    """
    kind, colon, rest = word.partition(":")
    path = Path(rest if colon and kind in KINDS else word)
    if not (colon and kind in KINDS):
        kind = ""
    if path.is_dir():
        if kind not in ("", "retrieval"):
            raise RequestError(f"{path}: expected a file of {kind}, found a folder")
        questions, digest = read_collection(path)
        return Task(_name(path), digest, questions)
    if kind == "retrieval":
        raise RequestError(f"{path}: expected a folder of queries, documents and judgements, found none")
    content, lines = _lines(path)
    return Task(_name(path), hashlib.sha256(content).hexdigest(), _READERS[kind or _detected(path, lines)](path, lines))


def _name(path: Path) -> str:
    # A file's name may hold bytes that are no UTF-8; JSON may not.
    return path.resolve().name.encode("utf-8", "backslashreplace").decode()


def _lines(path: Path) -> tuple[bytes, list[tuple[int, str]]]:
    """Return a file's bytes, and its lines that are not blank with their numbers."""
    content = read_named(path, "a file of questions")
    lines = []
    strange = []
    for number, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            line = raw.decode("latin-1")
            strange.append(number)
        if line.strip():
            lines.append((number, line.rstrip("\r")))
    if not lines:
        raise RequestError(f"{path}: expected at least one line, found none")
    if len(strange) > len(lines) * _STRANGE_SHARE:
        raise RequestError(f"{path}: line {strange[0]}: expected UTF-8 text, found bytes that are none")
    return content, lines


def _detected(path: Path, lines: list[tuple[int, str]]) -> str:
    texts = [line for _, line in lines]
    head = [line for line in texts if not line.startswith("#")][:_HEAD_LINES]
    if not head:
        raise RequestError(f"{path}: expected questions, found comments alone")
    if any(line.startswith(":") for line in head):
        return "analogies"
    named = texts[0].startswith("#") and "odd" in texts[0].split()
    if named:
        return "odd-one-out"
    rows = [_fields(line) for line in head]
    if rows and _named_columns(rows[0]) is not None:
        rows = [_chosen(row, _named_columns(rows[0])) for row in rows[1:]]
    pairs = [row for row in rows if len(row) == 3 and _is_numeric(row[2])]
    if rows and len(pairs) > 0.9 * len(rows) and not all(_is_numeric(row[1]) for row in pairs):
        return "text-similarity" if _mostly(pairs, lambda row: _is_text(row[0]) or _is_text(row[1])) else "similarity"
    if all("\t" in line for line in head) and {len(row) for row in rows}.issubset(range(3, 100)):
        return "odd-one-out"
    firsts = [line.split(maxsplit=1) for line in head]
    if all(len(parts) == 2 for parts in firsts):
        repeated = len({first for first, _ in firsts}) <= max(2, len(firsts) // 2)
        # A word and its count are no label: hardly two of the frequent ones share it.
        counts = [parts[1] for parts in firsts if parts[1].isdigit()]
        counted = len(counts) > max(_FEW_LINES, 0.9 * len(firsts)) and 2 * len(set(counts)) > len(counts)
        if (repeated and _mostly(firsts, lambda parts: " " in parts[1])) or head[0].startswith(_LABEL):
            return "text-labels"
        if (
            not repeated
            and not counted
            and _mostly(firsts, lambda parts: all(map(str.isdigit, parts[1].split())) or len(parts[1].split()) == 1)
        ):
            return "labels"
    raise RequestError(
        f"{path}: expected questions of {', '.join(KINDS)}, found {head[0][:60]!r}; "
        f"name the kind, as in labels:{path.name}"
    )


def _mostly(rows: Sequence[list[str]], test: Callable[[list[str]], bool]) -> bool:
    return 2 * sum(map(test, rows)) > len(rows)


def _is_text(field: str) -> bool:
    return (
        " " in field.strip()
        or field.rstrip().endswith((".", "?", "!", "。", "？", "！"))
        or len(_IDEOGRAPH.findall(field)) >= _TEXT_IDEOGRAPHS
    )


def _fields(line: str) -> list[str]:
    """Return a line's fields: at tabs, else at commas (with quotes) if a number ends it so, else at white space."""
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    try:
        row = next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration):
        row = []
    if len(row) >= 3 and (_number(row[-1]) is not None or _named_columns(row) is not None):
        return [field.strip() for field in row]
    return line.split()


def _named_columns(row: Sequence[str]) -> tuple[int, int, int] | None:
    """Return the places of the two texts and the score if a row is a header that names them."""
    names = [field.strip().lower() for field in row]
    places = [next((i for i, name in enumerate(names) if name in known), -1) for known in _COLUMNS]
    return None if min(places) < 0 else (places[0], places[1], places[2])


def _chosen(row: list[str], places: tuple[int, int, int] | None) -> list[str]:
    return [row[i] for i in places] if places is not None and len(row) > max(places) else row


def _is_numeric(field: str) -> bool:
    """Whether a field is a number at all, one that is none to score with (nan, inf) among them."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def _number(field: str) -> float | None:
    try:
        number = float(field)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _similarity(path: Path, lines: list[tuple[int, str]], *, texts: bool) -> Questions:
    rows = [(number, line) for number, line in lines if texts or not line.startswith("#")]
    places = _named_columns(_fields(rows[0][1])) if rows else None
    pairs = []
    for number, line in rows if places is None else rows[1:]:
        row = _chosen(_fields(line), places)
        score = _number(row[2]) if len(row) == 3 else None
        if score is None:
            raise RequestError(f"{path}: line {number}: expected two fields and a finite score, found {line[:60]!r}")
        pairs.append((row[0], row[1], score))
    if not pairs:
        raise RequestError(f"{path}: expected at least one pair, found none")
    ones, others, scores = zip(*pairs, strict=True)
    if len(scores) > 1 and len(set(scores)) < 2:
        raise RequestError(f"{path}: expected scores that differ, found {scores[0]:g} for all {len(scores)} pairs")
    return Similarity(ones, others, scores, texts=texts)


def _word_similarity(path: Path, lines: list[tuple[int, str]]) -> Questions:
    return _similarity(path, lines, texts=False)


def _text_similarity(path: Path, lines: list[tuple[int, str]]) -> Questions:
    return _similarity(path, lines, texts=True)


def _analogies(path: Path, lines: list[tuple[int, str]]) -> Questions:
    questions = []
    for number, line in lines:
        if line.startswith((":", "#")):
            continue
        words = line.split()
        if len(words) != 4:
            raise RequestError(f"{path}: line {number}: expected four words, found {line[:60]!r}")
        questions.append((words[0], words[1], words[2], words[3]))
    return Analogies(tuple(questions))


def _odd_one_out(path: Path, lines: list[tuple[int, str]]) -> Questions:
    places: list[int] | None = None
    if lines[0][1].startswith("#"):
        names = [name for name in re.split(r"\s+", lines[0][1].lstrip("# ").split("(")[0]) if name]
        words = [i for i, name in enumerate(names) if re.fullmatch(r"w[0-9]+", name)]
        if words and "odd" in names:
            places = [*words, names.index("odd")]
    groups = []
    for number, line in lines:
        if line.startswith("#"):
            continue
        row = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
        wanted = max(places) + 1 if places is not None else 3
        if len(row) < wanted:
            raise RequestError(f"{path}: line {number}: expected {wanted} fields or more, found {line[:60]!r}")
        groups.append(tuple(row) if places is None else tuple(row[i] for i in places))
    return OddOneOut(tuple(groups))


def _labels(path: Path, lines: list[tuple[int, str]]) -> Questions:
    found: dict[str, tuple[str, ...]] = {}
    for number, line in lines:
        if line.startswith("#"):
            continue
        key, *labels = line.split()
        if not labels:
            raise RequestError(f"{path}: line {number}: expected a key and its labels, found {line[:60]!r}")
        if key in found:
            raise RequestError(f"{path}: line {number}: expected keys that differ, found twice: {key[:60]!r}")
        found[key] = tuple(labels)
    return _labelled(path, tuple(found), tuple(found.values()), texts=False)


def _text_labels(path: Path, lines: list[tuple[int, str]]) -> Questions:
    texts, labels = [], []
    for number, line in lines:
        label, _, text = line.lstrip().replace("\t", " ", 1).partition(" ")
        if not text.strip():
            raise RequestError(f"{path}: line {number}: expected a label and a text, found {line[:60]!r}")
        texts.append(text.strip())
        labels.append((label.removeprefix(_LABEL),))
    return _labelled(path, tuple(texts), tuple(labels), texts=True)


def _labelled(path: Path, items: tuple[str, ...], labels: tuple[tuple[str, ...], ...], *, texts: bool) -> Questions:
    different = len({label for own in labels for label in own})
    if different < 2:
        raise RequestError(f"{path}: expected at least two labels that differ, found {different}")
    if different > _LABELS_CEILING:
        raise RequestError(
            f"{path}: expected at most {_LABELS_CEILING} labels, each of which gets a classifier, found {different}"
        )
    return Labelled(items, labels, texts=texts)


_READERS: dict[str, Callable[[Path, list[tuple[int, str]]], Questions]] = {
    "similarity": _word_similarity,
    "text-similarity": _text_similarity,
    "analogies": _analogies,
    "odd-one-out": _odd_one_out,
    "labels": _labels,
    "text-labels": _text_labels,
}

#: What ``kind:FILE`` may name.
KINDS = (*_READERS, "retrieval")
#: Those that ask nothing but texts.
TEXT_KINDS = ("text-similarity", "text-labels", "retrieval")
