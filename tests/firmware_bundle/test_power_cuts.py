"""The power goes after any operation of an install, a rollback or a refusal: a whole bundle serves all the same.

Each flow is run once with every operation recorded; then the flash is replayed for a cut after each of them, with
everything kept, with only what was synced kept, and with some random shares of the rest (``weak_flash``).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edge_embed
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError, EmptyStoreError, RefusedError, StateError
from edge_embed_bundle.slots import SLOT_NAMES, unpack
from edge_embed_bundle.store import Store
from tests.fakes.probes import CRASH, NO, FakeProbe
from tests.fakes.weak_flash import Fate, Op, RecordingFs, dice, everything, nothing, replayed
from tests.making import make_bundle, small_source

DICE = 10


@dataclass(frozen=True)
class Flow:
    """A flow that was run once: the store as it was before, what was done, and which bundles may serve after a cut."""

    before: Path
    log: tuple[Op, ...]
    allowed: frozenset[str]
    final: str

    @property
    def decided_at(self) -> int:
        """After how many operations the last record is on the flash; what comes behind is tidying up."""
        records = (i for i, op in enumerate(self.log) if op.kind == "sync" and op.path.name in SLOT_NAMES)
        return 1 + max(records)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    place = tmp_path_factory.mktemp("bundles")
    made = [
        make_bundle(place / f"v{i}", version=f"1.{i}.0", source=small_source(seed=i, dimensions=4), graphs=())
        for i in range(3)
    ]
    return made[0].path, made[1].path, made[2].path


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


def _recorded(
    store: Path, before: Path, allowed: Sequence[Path], act: Callable[[Store], object], **options: Any
) -> Flow:
    """Run ``act`` on a store and return the flow; ``before`` gets a copy of the folder around it as it was."""
    shutil.copytree(store.parent, before)
    fs = RecordingFs(store.parent)
    act(Store(store, fs=fs, **options))
    final = Store(store).active().name
    return Flow(before, tuple(fs.log), frozenset(map(_id, allowed)), final)


def _installed(store: Path, *bundles: Path) -> Path:
    for bundle in bundles:
        Store(store).install(bundle, FakeProbe())
    return store


def _first_install(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = place / "board" / "store"
    return _recorded(store, place / "before", bundles[:1], lambda store: store.install(bundles[0], FakeProbe()))


def _second_install(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", bundles[0])
    return _recorded(store, place / "before", bundles[:2], lambda store: store.install(bundles[1], FakeProbe()))


def _third_install(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", *bundles[:2])
    return _recorded(store, place / "before", bundles[1:], lambda store: store.install(bundles[2], FakeProbe()))


def _install_after_a_crash(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", bundles[0])
    probe = FakeProbe([CRASH, CRASH, FakeProbe().verdicts[0]])
    return _recorded(store, place / "before", bundles[:2], lambda store: store.install(bundles[1], probe))


def _install_without_memory(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", bundles[0])
    # None for the trial beside what serves, enough once that let go.
    frees = iter((0, 2**40))

    def act(store: Store) -> None:
        store.install(bundles[1], FakeProbe(), drain=True)

    return _recorded(store, place / "before", bundles[:2], act, free_memory=frees.__next__)


def _install_with_a_lost_slot(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", bundles[0])
    state = Store(store).state()
    lost = next(name for i, name in enumerate(SLOT_NAMES) if unpack((store / SLOT_NAMES[1 - i]).read_bytes()) == state)
    (store / lost).unlink()
    return _recorded(store, place / "before", bundles[:2], lambda store: store.install(bundles[1], FakeProbe()))


def _refused_install(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", bundles[0])

    def act(store: Store) -> None:
        with pytest.raises(RefusedError):
            store.install(bundles[1], FakeProbe([NO]))

    return _recorded(store, place / "before", bundles[:1], act)


def _rollback(place: Path, bundles: tuple[Path, Path, Path]) -> Flow:
    store = _installed(place / "board" / "store", *bundles[:2])
    return _recorded(store, place / "before", bundles[:2], lambda store: store.rollback())


FLOWS = (
    _first_install,
    _second_install,
    _third_install,
    _install_after_a_crash,
    _install_without_memory,
    _install_with_a_lost_slot,
    _refused_install,
    _rollback,
)


def _fates(cut: int) -> Iterator[Fate]:
    yield everything
    yield nothing
    yield from (dice(cut * DICE + i) for i in range(DICE))


def _replays(flow: Flow, place: Path, log: Sequence[Op]) -> Iterator[tuple[int, Path]]:
    """Yield every cut and the store as the flash holds it then, in a folder that goes afterwards."""
    for cut in range(len(log) + 1):
        for i, fate in enumerate(_fates(cut)):
            target = place / f"cut-{cut}-{i}"
            yield cut, replayed(flow.before, log, cut, fate, target) / "store"
            shutil.rmtree(target)


def _serving(store: Path) -> str | None:
    """Return the bundle that a runtime serves, every byte of it verified, or None where nothing was ever installed.

    Raises:
        BundleError: what the slots name is not whole.
    """
    try:
        with edge_embed.open(store, verify=True) as runtime:
            assert runtime.lookup("word1").any()
            return runtime.generation
    except EmptyStoreError:
        return None


@pytest.mark.parametrize("make", FLOWS)
def test_after_a_power_cut_anywhere_a_whole_bundle_serves(
    make: Callable[[Path, tuple[Path, Path, Path]], Flow], bundles: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "board").mkdir()
    flow = make(tmp_path, bundles)
    for cut, store in _replays(flow, tmp_path, flow.log):
        if make is _first_install:
            # Nothing served before, so nothing may serve yet; and slots that are torn, or not there yet, while the
            # store is made are not a damaged store, but one that the next install makes again.
            try:
                served = _serving(store)
            except (StateError, BundleError):
                served = None
            assert served in (None, *flow.allowed), cut
        else:
            served = _serving(store)
            assert served in flow.allowed, cut
        if cut >= flow.decided_at:
            assert served == flow.final, "what was confirmed is lost"


@pytest.mark.parametrize("make", FLOWS)
def test_after_a_power_cut_anywhere_the_next_install_succeeds_and_leaves_no_rubbish(
    make: Callable[[Path, tuple[Path, Path, Path]], Flow], bundles: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "board").mkdir()
    flow = make(tmp_path, bundles)
    target = bundles[2]
    for cut, fate in itertools.product(range(len(flow.log) + 1), (nothing, dice(1))):
        flash = replayed(flow.before, flow.log, cut, fate, tmp_path / "flash")
        store = flash / "store"
        Store(store).install(target, FakeProbe())
        assert _serving(store) == _id(target)
        state = Store(store).state()
        assert {path.name for path in (store / "generations").iterdir()} == state.kept
        assert not [path for path in (store / "blobs").iterdir() if path.stat().st_nlink < 2]
        shutil.rmtree(flash)


@pytest.mark.parametrize("damaged", ["golden.bin", "manifest.json"])
def test_after_a_power_cut_in_a_repair_what_serves_is_whole_or_as_damaged_as_before(
    damaged: str, bundles: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "board").mkdir()
    store = _installed(tmp_path / "board" / "store", bundles[0])
    path = Store(store).active() / damaged
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    rotten = path.read_bytes()
    flow = _recorded(store, tmp_path / "before", bundles[:1], lambda store: store.install(bundles[0], FakeProbe()))
    for cut, store in _replays(flow, tmp_path, flow.log):
        active = Store(store).active()
        with edge_embed.open(active, verify=False) as runtime:
            assert runtime.lookup("word1").any()
        if (active / damaged).read_bytes() != rotten:
            assert _serving(store) == flow.final
        assert cut < len(flow.log) or (active / damaged).read_bytes() != rotten, "a repair that was reported is lost"


@pytest.mark.parametrize("missing", ["sync", "sync_folder"])
def test_the_harness_catches_a_store_that_does_not_sync(
    missing: str, bundles: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "board").mkdir()
    flow = _second_install(tmp_path, bundles)
    careless = [op for op in flow.log if op.kind != missing]
    failures = 0
    for cut, store in _replays(flow, tmp_path, careless):
        try:
            lost = _serving(store) not in flow.allowed or (cut == len(careless) and _serving(store) != flow.final)
        except (BundleError, StateError):
            lost = True
        failures += lost
    assert failures > 0
