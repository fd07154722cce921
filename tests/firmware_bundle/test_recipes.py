"""The recipes for subwords and labels at the manifest's gate: what they name is there, and made for it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from edge_embed_bundle import strict_json
from edge_embed_bundle.errors import ManifestError
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_export.exporter import export
from edge_embed_export.options import Options
from edge_embed_export.sources import read_source
from tests.attacks.makers import ABSENT, Place, set_at
from tests.fasttext_files import LABELS, Model
from tests.making import make_bundle, rows_in_topics


@pytest.fixture(scope="module")
def value(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A good manifest of a classifier with a tree of labels, as plain JSON."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "model.bin").write_bytes(Model(labels=LABELS, model=3, loss=1, word_ngrams=2).to_bytes())
    report = export(read_source(folder / "model.bin"), Options(target=folder / "bundle", name="topics", graphs=()))
    return json.loads((Path(report.path) / MANIFEST_NAME).read_bytes())


def _parse(value: Any) -> Manifest:
    return Manifest.parse(strict_json.dumps(value), source=MANIFEST_NAME)


def test_recipes_are_written_as_they_were_read(value: Any) -> None:
    manifest = _parse(value)
    assert json.loads(manifest.to_bytes()) == value
    assert manifest.helpers == {"subwords", "labels"}
    assert {"subwords-fasttext", "classify-fasttext"} <= set(manifest.requirements.features)


SUBWORDS: Place = ("models", 0, "subwords")
CLASSIFY: Place = ("models", 0, "classify")

BROKEN: dict[str, tuple[Place, Any, str]] = {
    "no key index": (("models", 0, "key_index"), None, "subwords: expected a model with a key index"),
    "a table of labels for buckets": (
        (*SUBWORDS, "table"),
        "labels",
        "subwords.buckets: expected the 3 rows of labels",
    ),
    "another number of buckets": ((*SUBWORDS, "buckets"), 51, "subwords.buckets: expected the 50 rows of subwords"),
    "words that are pooled as parts": (
        (*SUBWORDS, "rows"),
        "words",
        "text.pooling: expected mean-of-directions of words",
    ),
    "parts that are pooled as words": (
        ("models", 0, "text", "pooling"),
        "mean-of-directions",
        "expected mean of parts",
    ),
    "no recipe for texts": (("models", 0, "text"), None, "classify: expected a model whose texts are the mean"),
    "labels that are itself": (
        (*CLASSIFY, "labels"),
        "table",
        "classify.labels: expected another model of this bundle",
    ),
    "labels that are not there": ((*CLASSIFY, "labels"), "topics", "classify.labels: expected another model"),
    "labels without keys": ((*CLASSIFY, "labels"), "subwords", "classify.labels: expected a model with keys"),
    "a tree that is not there": (("models", 2, "tensors", "tree"), ABSENT, "classify.output: expected tree where"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_recipe_that_cannot_be_followed_is_refused(value: Any, name: str) -> None:
    place, broken, says = BROKEN[name]
    spoilt = copy.deepcopy(value)
    set_at(spoilt, place, broken)
    with pytest.raises(ManifestError) as refused:
        _parse(spoilt)
    assert says in str(refused.value)


# How a table is searched


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A good manifest of a table in lists with a plane, as plain JSON."""
    target = tmp_path_factory.mktemp("listed") / "bundle"
    make_bundle(target, source=rows_in_topics(600, 9), graphs=(), clustered=True, plane=True)
    return json.loads((target / MANIFEST_NAME).read_bytes())


def test_how_a_table_is_searched_is_written_as_it_was_read(listed: Any) -> None:
    assert json.loads(_parse(listed).to_bytes()) == listed
    # An exact search is always right, so a reader need not know lists; but it reads the shape of all tensors.
    assert [each for each in listed["requirements"]["features"] if "list" in each] == ["lists-4-bit"]


SEARCH: Place = ("models", 0, "search")
TENSORS: Place = ("models", 0, "tensors")

BROKEN_SEARCHES: dict[str, tuple[Place, Any, str]] = {
    "another algorithm": ((*SEARCH, "algorithm"), "graph", "search.algorithm: expected one of lists"),
    "no probes": ((*SEARCH, "probes"), 0, "search.probes: expected"),
    "more probes than lists": ((*SEARCH, "probes"), 10_000, "search.probes: expected at most the"),
    "a shortlist of none": ((*SEARCH, "shortlist"), 0, "search.shortlist: expected"),
    "an endless shortlist": ((*SEARCH, "shortlist"), 2**40, "search.shortlist: expected"),
    "a recall below zero": ((*SEARCH, "recall_at_10"), -1, "search.recall_at_10: expected"),
    "no norms": ((*TENSORS, "norms"), ABSENT, "tensors: expected the tensor norms"),
    "no centroids": ((*TENSORS, "centroids"), ABSENT, "tensors: expected the tensor centroids"),
    "no ends": ((*TENSORS, "list_ends"), ABSENT, "tensors: expected the tensor list_ends"),
    "no plane": ((*TENSORS, "plane"), ABSENT, "tensors: expected the tensor plane"),
    "ends of fewer lists": ((*TENSORS, "list_ends", "shape", 0), 3, "expected uint8 of shape (3, 5)"),
    "ends of no list": ((*TENSORS, "list_ends", "shape"), [], "tensors."),
    "norms of fewer lists": ((*TENSORS, "centroid_norms", "shape", 0), 3, "tensors.centroid_norms: expected"),
    "a wider plane": ((*TENSORS, "plane", "shape", 1), 9, "tensors.plane: expected uint8 of shape (600, 5)"),
    "a plane of other numbers": ((*TENSORS, "plane", "dtype"), "int8", "tensors.plane: expected uint8"),
}


@pytest.mark.parametrize("name", BROKEN_SEARCHES)
def test_a_search_that_cannot_be_made_is_refused(listed: Any, name: str) -> None:
    place, wrong, says = BROKEN_SEARCHES[name]
    value = copy.deepcopy(listed)
    set_at(value, place, wrong)
    with pytest.raises(ManifestError) as error:
        _parse(value)
    assert says in str(error.value)
