"""A folder of queries, documents and judgements, as TREC and BEIR lay them out.

* Judgements (``*qrel*``): lines of query, iteration, document, grade (TREC), or a table of query-id, corpus-id, score.
* Queries (``*quer*``, ``*qry*``, ``*topic*``) and documents (``*corpus*``, ``*doc*``, ``*all*``, ``*collection*``):
  ``.jsonl`` (``_id``, ``title``, ``text``), tables of id and text, or TREC's tags (``<top>``, ``<doc>``), which are
  read as text and never by an XML parser: no entity is ever followed.
* Cranfield's judgements number the queries by their place, not by their own numbers; where no other reading names
  every judged query, that one is taken.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from pathlib import Path

from edge_embed.errors import RequestError
from edge_embed.named_files import read_named
from edge_embed_export.evaluation.retrieval import Retrieval

_ROLES = {
    "judgements": ("qrel",),
    "queries": ("quer", "qry", "topic"),
    "documents": ("corpus", "doc", "all", "collection"),
}
_TEXTS = (".txt", ".tsv", ".xml", ".jsonl", ".trec", ".sgml", ".qrels", "")
_TAGS = {
    "queries": (re.compile(r"<top>(.*?)</top>", re.DOTALL | re.IGNORECASE), ("num",), ("title",)),
    "documents": (re.compile(r"<doc>(.*?)</doc>", re.DOTALL | re.IGNORECASE), ("docno",), ("title", "text")),
}


def read_collection(folder: Path) -> tuple[Retrieval, str]:
    """Return the questions of a folder and the sha256 of its three files' digests, in the order of their roles.

    Raises:
        RequestError: a file is absent or not as one of the layouts has it.
    """
    paths = _files(folder)
    contents = {role: _content(path) for role, path in paths.items()}
    digest = hashlib.sha256()
    for content in contents.values():
        digest.update(hashlib.sha256(content.encode("utf-8")).digest())
    queries = _texts(paths["queries"], contents["queries"], "queries")
    documents = _texts(paths["documents"], contents["documents"], "documents")
    relevance = _judgements(paths["judgements"], contents["judgements"])
    if not relevance.keys() <= queries.keys():
        places = {str(place): text for place, text in enumerate(queries.values(), 1)}
        if not relevance.keys() <= places.keys():
            stranger = next(name for name in relevance if name not in queries)
            raise RequestError(
                f"{paths['judgements']}: expected judgements of the queries, found query {stranger[:60]!r}"
            )
        queries = places
    return Retrieval(queries, documents, relevance), digest.hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    present = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in _TEXTS)
    for role, marks in _ROLES.items():
        # A folder may be called after its role, as BEIR's qrels/test.tsv.
        candidates = [
            path
            for path in present
            if path not in found.values() and any(mark in str(path.relative_to(folder)).lower() for mark in marks)
        ]
        tests = [path for path in candidates if "test" in path.stem.lower()]
        if len(candidates) > 1 and len(tests) == 1:
            candidates = tests
        if len(candidates) != 1:
            raise RequestError(
                f"{folder}: expected one file of {role} (named like {', '.join(marks)}), found {len(candidates)}"
            )
        found[role] = candidates[0]
    return found


def _content(path: Path) -> str:
    try:
        return read_named(path, "UTF-8 text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: expected UTF-8 text, found: {error}") from error


def _texts(path: Path, content: str, role: str) -> dict[str, str]:
    entries, ids, fields = _TAGS[role]
    blocks = entries.findall(content)
    if blocks:
        pairs = [(_tag(block, ids), _tag(block, fields)) for block in blocks]
    elif path.suffix == ".jsonl":
        pairs = [_record(path, number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    else:
        rows = [line.partition("\t") for line in content.splitlines() if line.strip()]
        pairs = [(name.strip(), text.strip()) for name, _, text in rows]
    texts = {name: text for name, text in pairs if name}
    if not texts or len(texts) < len(pairs):
        raise RequestError(
            f"{path}: expected {role} with ids that differ, found {len(texts)} ids of {len(pairs)} entries"
        )
    return texts


def _tag(block: str, names: tuple[str, ...]) -> str:
    """Return what stands in the named tags of an entry; one without its end tag reaches to the next tag."""
    parts = []
    for name in names:
        match = re.search(rf"<{name}>([^<]*)", block, re.IGNORECASE)
        parts.append(" ".join(html.unescape(match.group(1)).split()) if match else "")
    return " ".join(part for part in parts if part)


def _record(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
        name = record.get("_id", record.get("id"))
        text = " ".join(str(record[field]) for field in ("title", "text") if record.get(field))
    except (ValueError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{path}: line {number}: expected an object with _id and text, found {line[:60]!r}"
        ) from error
    return "" if name is None else str(name), text


def _judgements(path: Path, content: str) -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.split()
        if not fields or (number == 1 and not fields[-1].lstrip("-").isdigit()):
            continue  # a header names the columns
        try:
            if len(fields) not in (3, 4):
                raise ValueError(line)
            query, document, grade = fields[0], fields[-2], int(fields[-1])
        except ValueError as error:
            raise RequestError(
                f"{path}: line {number}: expected query, (iteration,) document and grade, found {line[:60]!r}"
            ) from error
        judged.setdefault(query, {})[document] = grade
    if not judged:
        raise RequestError(f"{path}: expected at least one judgement, found none")
    return judged
