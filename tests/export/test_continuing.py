"""What an export keeps of the bundle that it follows: places, codes, scales, codebooks, and the space where it may."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.commands import main
from edge_embed.table import Table
from edge_embed_bundle.bundle import Bundle
from edge_embed_export.continuing import continued
from edge_embed_export.exact import directions
from edge_embed_export.parents import Parent
from edge_embed_export.preparing import in_lists
from edge_embed_export.sources import Source
from tests import deltas
from tests.making import keys_of, make_bundle, rows_in_topics, small_source, small_text_source, vectors_of, with_table

ROWS = 600


def _source() -> Source:
    return rows_in_topics(ROWS, 24)


def _with(source: Source, vectors: NDArray[np.float32], keys: tuple[bytes, ...] | None = None) -> Source:
    """Return other weights under the same keys, or under those that are given."""
    digest = hashlib.sha256(vectors.tobytes()).hexdigest()
    return with_table(source, vectors=vectors, keys=keys_of(source) if keys is None else keys, weights_digest=digest)


def _trained_on(source: Source, *, share: float = 0.3, step: float = 0.1) -> Source:
    """Return a source of which some rows moved."""
    random = np.random.default_rng(7)
    vectors = vectors_of(source).copy()
    rows = random.random(len(vectors)) < share
    vectors[rows] += step * random.normal(size=vectors[rows].shape).astype(np.float32)
    return _with(source, vectors)


@pytest.fixture(scope="module", params=["int8", "pq", "opq"])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("old") / request.param
    return make_bundle(target, source=_source(), codec=request.param, graphs=()).path


def _exported(old: Path, source: Source, target: Path, *, drift: float = 0.0) -> Path:
    """Export a source as ``export --parent`` does."""
    with Bundle.open(old) as bundle:
        parent = Parent(bundle, drift)
        codec = bundle.manifest.tables[0].codec
        followed = continued(source, parent)
        return make_bundle(target, source=followed, codec=codec, graphs=(), version="1.1.0", parent=parent).path


def _tensors(folder: Path) -> dict[str, bytes]:
    with Bundle.open(folder) as bundle:
        table = bundle.manifest.tables[0]
        return {name: bytes(bundle.tensor(tensor)) for name, tensor in table.tensors.items()}


def _decoded(folder: Path) -> dict[str, NDArray[np.float32]]:
    with Bundle.open(folder) as bundle:
        table = Table(bundle, bundle.manifest.tables[0])
        names = table.names
        assert names is not None
        return dict(zip(names, table.decode(np.arange(len(names))), strict=True))


def _cosines(folder: Path, source: Source) -> NDArray[np.float64]:
    """Return the cosine of each stored row with its true vector."""
    decoded = _decoded(folder)
    stored = np.array([decoded[key.decode()] for key in keys_of(source)])
    found: NDArray[np.float64] = (directions(stored) * directions(vectors_of(source))).sum(axis=1)
    return found


def test_the_same_model_makes_the_same_codes(old: Path, tmp_path: Path) -> None:
    assert _tensors(_exported(old, _source(), tmp_path / "new")) == _tensors(old)


def test_rows_stand_where_they_stood_and_new_ones_behind(old: Path, tmp_path: Path) -> None:
    source = _source()
    order = np.random.default_rng(1).permutation(ROWS)
    keys = [keys_of(source)[row] for row in order]
    vectors = vectors_of(source)[order].copy()
    keys[5] = b"a new word"  # and one of the old ones is gone
    new = _decoded(_exported(old, _with(source, vectors, tuple(keys)), tmp_path / "new"))
    gone = keys_of(source)[order[5]].decode()
    assert list(new) == [*(key for key in _decoded(old) if key != gone), "a new word"]


def test_scales_books_and_rows_stay_where_they_fit(old: Path, tmp_path: Path) -> None:
    new, before = _tensors(_exported(old, _trained_on(_source()), tmp_path / "new")), _tensors(old)
    for name in ("codebooks", "rotation"):
        assert new.get(name) == before.get(name)
    if "scales" in new:
        kept = np.frombuffer(new["scales"], "<f4") == np.frombuffer(before["scales"], "<f4")
        assert kept.mean() > 0.85


def test_keeping_scales_costs_half_as_much_again_at_most(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", source=_source(), graphs=()).path
    source = _trained_on(_source(), share=1.0, step=0.3)
    plain = make_bundle(tmp_path / "plain", source=source, graphs=()).path
    kept = _exported(old, source, tmp_path / "kept")
    assert (1 - _cosines(kept, source)).mean() < 1.5 * (1 - _cosines(plain, source)).mean()


def test_a_row_that_outgrew_its_scale_gets_another(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", source=_source(), graphs=()).path
    vectors = vectors_of(_source()).copy()
    vectors[:4] *= np.array([[1.2], [3.0], [0.5], [0.0]], np.float32)
    source = _with(_source(), vectors)
    kept = _exported(old, source, tmp_path / "kept")
    assert _cosines(kept, source)[:3].min() > 0.9998
    assert not _decoded(kept)["row 3"].any()


@pytest.mark.parametrize("drift", [0.001, 0.01])
def test_a_drift_is_never_more_than_was_allowed(old: Path, drift: float, tmp_path: Path) -> None:
    source = _trained_on(_source(), step=0.3)
    exact = _exported(old, source, tmp_path / "exact")
    near = _exported(old, source, tmp_path / "near", drift=drift)
    assert (_cosines(exact, source) - _cosines(near, source)).max() <= drift + 1e-6
    sizes = [deltas.made(old, new, tmp_path / f"{new.name}.delta").size_bytes for new in (exact, near)]
    assert sizes[1] < sizes[0]


def test_a_chain_does_not_drift(tmp_path: Path) -> None:
    old, source = make_bundle(tmp_path / "0", source=_source(), graphs=()).path, _source()
    for step in range(1, 6):
        vectors = vectors_of(source) + np.float32(0.02) * np.roll(vectors_of(source), step, axis=0)
        source = _with(source, vectors)
        old = _exported(old, source, tmp_path / str(step), drift=0.001)
        assert (1 - _cosines(old, source)).max() < 0.0015


def _space(folder: Path) -> tuple[str, float | None, bool]:
    with Bundle.open(folder) as bundle:
        space = bundle.manifest.space
        revision = space.revision
        return space.id, None if revision is None else revision.mean_cosine, revision is not None and revision.aligned


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Path]:
    yield make_bundle(tmp_path / "words", source=_source(), graphs=()).path


def test_a_model_that_stayed_alike_keeps_the_space_and_says_how_much(words: Path, tmp_path: Path) -> None:
    new = _exported(words, _trained_on(_source()), tmp_path / "new")
    (identity, cosine, aligned), before = _space(new), _space(words)
    assert identity == before[0] and before[1] is None
    assert cosine is not None and 0.98 < cosine < 1 and not aligned
    with Bundle.open(new) as bundle, Bundle.open(words) as parent:
        revision = bundle.manifest.space.revision
        assert revision is not None
        assert (revision.parent, revision.shared_keys) == (parent.id, ROWS)
        assert bundle.manifest.parent == parent.id


def test_another_model_has_a_space_of_its_own(words: Path, tmp_path: Path) -> None:
    stranger = _with(_source(), vectors_of(rows_in_topics(ROWS, 24, seed=9)))
    assert _space(_exported(words, stranger, tmp_path / "new")) == (stranger.table.space_id, None, False)


def test_a_model_that_was_turned_is_turned_back(words: Path, tmp_path: Path) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(24, 24)))
    turned = _with(_source(), (vectors_of(_trained_on(_source())) @ rotation).astype(np.float32))
    identity, cosine, aligned = _space(_exported(words, turned, tmp_path / "new"))
    assert identity == _space(words)[0]
    assert cosine is not None and cosine > 0.98 and aligned


def test_the_lists_of_a_model_that_is_turned_back_turn_with_it(words: Path) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(24, 24)))
    turned = _with(_source(), (vectors_of(_source()) @ rotation).astype(np.float32))
    listed = replace(turned, tables=(in_lists(turned.tables[0]),))
    with Bundle.open(words) as bundle:
        (table,) = continued(listed, Parent(bundle), keep_places=False).tables
    revision = None if table.space is None else table.space.revision
    assert revision is not None and revision.aligned and table.clusters is not None
    of_row = np.searchsorted(table.clusters.ends, np.arange(ROWS), side="right")
    nearest = (directions(table.vectors[:]) @ table.clusters.centroids.T).argmax(axis=1)
    assert (nearest == of_row).mean() > 0.99


def test_many_small_steps_end_a_space(words: Path, tmp_path: Path) -> None:
    source, folder, identities = _source(), words, [_space(words)[0]]
    for step in range(6):
        source = _trained_on(source, share=1.0, step=0.3)
        folder = _exported(folder, source, tmp_path / str(step))
        identities.append(_space(folder)[0])
    assert identities[0] == identities[1] != identities[-1]


def test_another_tokenizer_is_another_space(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    old = make_bundle(tmp_path / "old", source=small_text_source()).path
    source = small_text_source()
    text = source.table.text
    assert text is not None and text.tokenizer is not None
    changed = with_table(source, text=type(text)(text.tokenizer + b" ", text.normalize, text.max_tokens))
    with Bundle.open(old) as bundle:
        assert continued(source, Parent(bundle)).table.space_id == bundle.manifest.space.id
        assert continued(changed, Parent(bundle)).table.space_id != bundle.manifest.space.id


def test_a_table_that_the_parent_has_not_starts_anew(words: Path, tmp_path: Path) -> None:
    source = with_table(small_source(dimensions=8), name="other")
    assert _space(_exported(words, source, tmp_path / "new"))[0] == source.table.space_id


def test_a_drift_wants_a_parent(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.vec").write_text("2 2\na 1 0\nb 0 1\n")
    assert main(["export", str(tmp_path / "x.vec"), "-o", str(tmp_path / "new"), "--drift", "0.1"]) == 2
    assert "--drift: expected --parent beside it" in capsys.readouterr().err
