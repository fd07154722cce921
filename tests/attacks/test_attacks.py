"""No damaged or falsified bundle answers, hangs, eats memory or takes the place of one that serves."""

from __future__ import annotations

import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_embed
from edge_embed.commands import main
from edge_embed.probing import probe
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.manifest import MANIFEST_NAME
from edge_embed_bundle.store import Store
from tests.attacks.hostile import ENCODERS, GRAPHS, TABLES, TOKENIZERS, Hostile
from tests.attacks.makers import (
    ATTACKS,
    BLOBS,
    Attack,
    Place,
    dotted,
    flip_bit,
    put,
    read_manifest,
    set_at,
    write_manifest,
)
from tests.fakes.probes import FakeProbe

#: What a refusal may cost a board of 512 MB; each of these attacks asks for less, whatever sizes it claims.
MEMORY_CEILING_BYTES = 24 * 2**20
DEADLINE_SECONDS = 10


@contextmanager
def _bounded() -> Iterator[None]:
    """Fail what runs longer than the deadline or allocates more than the ceiling."""
    old = signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(DEADLINE_SECONDS)
    tracemalloc.start()
    try:
        yield
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert peak_bytes < MEMORY_CEILING_BYTES


def _too_late(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"nothing within {DEADLINE_SECONDS} seconds")


def _open_files(*folders: Path) -> list[str]:
    """Return the files in some folders that this process has open; of others, another thread may open some."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the list itself is gone
            found.append(str(descriptor.readlink()))
    return sorted(path for path in found if path.startswith(tuple(map(str, folders))))


@contextmanager
def _copy(bundle: Path, folder: Path) -> Iterator[Path]:
    """A copy that may be damaged; hundreds of them would fill the disk, so it goes when its test is over."""
    copy = folder / "victim"
    shutil.copytree(bundle, copy)
    for path in copy.iterdir():
        path.chmod(0o644)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture
def victim(bundle: Path, tmp_path: Path) -> Iterator[Path]:
    with _copy(bundle, tmp_path) as copy:
        yield copy


@pytest.fixture
def text_victim(text_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    with _copy(text_bundle, tmp_path) as copy:
        yield copy


@dataclass
class Board:
    """A store that serves a good bundle, and a process that answers from it."""

    store: Store
    runtime: edge_embed.Runtime

    def answers(self) -> tuple[object, ...]:
        """Return all that must not change when an attack is refused; what is remembered of it may."""
        state = self.store.state()
        return state.active, state.previous, state.trial, self.runtime.lookup("word1").tolist(), self.runtime.problem


@pytest.fixture(scope="module")
def board(newer_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    store = Store(tmp_path_factory.mktemp("board") / "store")
    store.install(newer_bundle, FakeProbe())
    with edge_embed.open(store.path) as runtime:
        runtime.lookup("word1")
        yield Board(store, runtime)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_refused_at_the_door_and_what_served_serves_on(attack: Attack, victim: Path, board: Board) -> None:
    attack.make(victim)
    served, never, files = board.answers(), FakeProbe(), _open_files(victim, board.store.path)
    with _bounded(), pytest.raises(edge_embed.EdgeEmbedError) as opened:
        edge_embed.open(victim)
    with _bounded(), pytest.raises(edge_embed.EdgeEmbedError) as installed:
        board.store.install(victim, never)
    assert _open_files(victim, board.store.path) == files
    for caught in (opened, installed):
        said = str(caught.value)
        assert caught.type is attack.error
        assert said.startswith(f"{victim / attack.file}: ")
        assert attack.says in said and "expected" in said and "found" in said
        assert said.isprintable() and len(said) < 500 + len(str(victim))
    assert board.answers() == served
    assert never.asked == []


@pytest.mark.parametrize("name", BLOBS)
def test_every_flipped_bit_of_a_blob_is_refused(name: str, victim: Path, board: Board) -> None:
    path = victim / name
    for byte in np.linspace(0, path.stat().st_size - 1, 40).astype(int).tolist():
        flip_bit(path, byte, byte % 8)
        with pytest.raises(edge_embed.BundleError, match=rf"{name}: expected sha256"):
            edge_embed.open(victim)
        with pytest.raises(edge_embed.BundleError, match=rf"{name}: expected sha256"):
            board.store.install(victim, FakeProbe())
        flip_bit(path, byte, byte % 8)
    edge_embed.open(victim).close()


def test_every_flipped_bit_of_a_manifest_is_refused_or_makes_another_bundle(victim: Path, bundle: Path) -> None:
    with Bundle.open(bundle) as good:
        identity = good.id
    refused = 0
    for byte in np.linspace(0, (victim / MANIFEST_NAME).stat().st_size - 1, 80).astype(int).tolist():
        flip_bit(victim / MANIFEST_NAME, byte, byte % 8)
        try:
            with edge_embed.open(victim) as runtime:
                assert runtime.generation != identity
        except edge_embed.BundleError as error:
            assert MANIFEST_NAME in str(error) or "sha256" in str(error) or "expected a plain file" in str(error)
            refused += 1
        flip_bit(victim / MANIFEST_NAME, byte, byte % 8)
    assert refused > 40


def test_every_flipped_bit_of_an_installed_manifest_is_refused(bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.install(bundle, FakeProbe())
    path = store.active() / MANIFEST_NAME
    path.chmod(0o644)
    for byte in np.linspace(0, path.stat().st_size - 1, 80).astype(int).tolist():
        flip_bit(path, byte, byte % 8)
        with pytest.raises(edge_embed.BundleError):
            edge_embed.open(store.path)
        flip_bit(path, byte, byte % 8)
    edge_embed.open(store.path).close()


WRONG: tuple[object, ...] = (None, True, -1, 1.5, "", "\0", [], [[]], {}, {"": {}})


@pytest.mark.parametrize("wrong", WRONG, ids=map(ascii, WRONG))
def test_a_value_of_the_wrong_type_is_refused_by_its_place(wrong: Any, victim: Path) -> None:
    good = read_manifest(victim)
    original = (victim / MANIFEST_NAME).read_bytes()
    for place, value in _places(good):
        if _may_stand(wrong, value, place):
            continue
        put(wrong, *place)(victim)
        with pytest.raises(edge_embed.BundleError) as caught:
            edge_embed.open(victim)
        # A list of plain values is judged as a whole.
        named = place[:-1] if isinstance(place[-1], int) and not isinstance(value, dict) else place
        assert f"{MANIFEST_NAME}: {dotted(named)}" in str(caught.value)
        (victim / MANIFEST_NAME).write_bytes(original)


def _places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every place of a manifest that the specification gives a type, with what stands there."""
    steps = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for step, item in steps:
        here = (*place, step)
        yield here, item
        if place[:1] != ("quality",):
            yield from _places(item, here)


def _may_stand(new: Any, old: Any, place: Place) -> bool:
    """Return whether ``new`` is of the type that a manifest may hold where it holds ``old``."""
    if place[0] == "quality" and len(place) > 2:
        return True
    if new is None:
        return place[-1] in ("key_index", "text", "board")
    return type(new) is type(old) and new != -1


def _is_refused_by_all(hostile: Hostile, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle opens; what is asked of it, and ``edge-embed verify``, is refused with the reason."""
    hostile.make(victim)
    with Bundle.open(victim) as bundle:
        bundle.verify()
    with np.errstate(all="ignore"), _bounded():
        if hostile.use is not None:
            with pytest.raises(hostile.error) as caught:
                hostile.use(victim)
            assert hostile.says in str(caught.value)
        assert main(["verify", str(victim)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert any(hostile.says in line or "other vectors than the kernels" in line for line in failed)


@pytest.mark.parametrize("hostile", TABLES.values(), ids=TABLES.keys())
def test_a_table_that_lies_is_found_out_and_not_installed(
    hostile: Hostile, victim: Path, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_refused_by_all(hostile, victim, capsys)
    _is_not_installed(hostile, victim, board)


@pytest.mark.parametrize("hostile", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_a_tokenizer_that_is_none_is_found_out_and_not_installed(
    hostile: Hostile, text_victim: Path, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_refused_by_all(hostile, text_victim, capsys)
    _is_not_installed(hostile, text_victim, board)


@pytest.mark.parametrize("hostile", GRAPHS.values(), ids=GRAPHS.keys())
def test_a_graph_that_lies_or_reaches_out_is_refused_before_it_answers(
    hostile: Hostile, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    _is_refused_by_all(hostile, victim, capsys)


@pytest.fixture
def encoder_victim(encoder_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    with _copy(encoder_bundle, tmp_path) as copy:
        yield copy


@pytest.mark.parametrize("hostile", ENCODERS.values(), ids=ENCODERS.keys())
def test_an_encoder_that_lies_is_found_out_and_not_installed(
    hostile: Hostile, encoder_victim: Path, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    _is_refused_by_all(hostile, encoder_victim, capsys)
    _is_not_installed(hostile, encoder_victim, board)


def _is_not_installed(hostile: Hostile, victim: Path, board: Board) -> None:
    served = board.answers()
    with pytest.raises(edge_embed.StoreError) as caught:
        board.store.install(victim, probe)
    assert str(victim) in str(caught.value)
    assert hostile.says in str(caught.value)
    assert board.answers() == served


@pytest.fixture(scope="module")
def open_house(text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest is written anew for every example; all that it names stays as it is."""
    folder = tmp_path_factory.mktemp("open") / "house"
    shutil.copytree(text_bundle, folder)
    (folder / MANIFEST_NAME).chmod(0o644)
    return folder


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 200),
    st.sampled_from((2**31 - 1, 2**31, 2**32 - 2, 2**47, 65_536, 131_072)),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(("table", "collection", "float32", "int8", "table.bin", "golden.bin", "search", "key", "zeros")),
    st.lists(st.integers(0, 70), max_size=3),
    st.lists(st.sampled_from(("word1", "word2 word3", "nowhere")), max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_manifest_with_changed_values_is_refused_or_the_runtime_answers_or_says_why(
    data: st.DataObject, open_house: Path, text_bundle: Path
) -> None:
    manifest = read_manifest(text_bundle)
    places = [place for place, _ in _all_places(manifest)]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        with suppress(KeyError, IndexError, TypeError):
            set_at(manifest, place, data.draw(VALUES))
    write_manifest(open_house, manifest)
    with np.errstate(all="ignore"):
        try:
            runtime = edge_embed.open(open_house)
        except edge_embed.BundleError:
            return
        with runtime:
            for ask in (
                lambda: runtime.lookup("word1"),
                lambda: runtime.lookup(["word1", "nowhere"], unknown="zeros"),
                lambda: runtime.encode(["word1 word2", ""]),
                lambda: runtime.search("word1", k=3),
                lambda: runtime.search(text="word1", k=3),
                lambda: runtime.check_golden(),
            ):
                with suppress(edge_embed.EdgeEmbedError):
                    ask()


def _all_places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in steps:
        yield (*place, step), item
        yield from _all_places(item, (*place, step))
