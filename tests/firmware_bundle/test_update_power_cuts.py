"""The power goes after any operation of an update: a whole bundle serves, and the next update ends.

An update is run once with every operation recorded, from a repository that stands elsewhere; then the flash is replayed
for a cut after each of them (``weak_flash``), and the update is run again on what is left.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

import edge_embed
from edge_embed.patching import Patch
from edge_embed_bundle.errors import BundleError, EdgeEmbedError, EmptyStoreError, FetchError, StateError
from edge_embed_bundle.manifest import Manifest
from edge_embed_bundle.slots import SLOT_NAMES
from edge_embed_bundle.state import TRIES
from edge_embed_bundle.store import Store, Verdict
from edge_embed_bundle.updating.building import Patcher
from edge_embed_bundle.updating.records import Records, Trusted
from edge_embed_bundle.updating.releases import delta_name
from edge_embed_export.publishing.repository import Repository, RollOut
from edge_embed_export.publishing.signing import Keys
from tests.boards import Board
from tests.fakes.probes import CRASH, NO, YES, FakeProbe
from tests.fakes.weak_flash import Fate, Op, RecordingFs, dice, everything, nothing, replayed
from tests.making import make_bundle, small_source
from tests.repositories import Publisher

DICE = 4


@dataclass
class NotedProbe(FakeProbe):
    """Puts a mark into the log of the flash when it is asked."""

    log: list[Op] = field(default_factory=list)

    def __call__(self, generation: Path) -> Verdict:
        self.log.append(Op("probe", Path("store")))
        return super().__call__(generation)


@dataclass(frozen=True)
class World:
    """A publisher's site after each of three releases."""

    ids: Sequence[str]
    stages: Sequence[Path]
    halted: Path
    root: bytes
    #: Offers the second release by a delta that leads nowhere.
    misleading: Path


@dataclass(frozen=True)
class Flow:
    """An update that was run once: the flash before, what was done, what may serve after a cut, where it leads."""

    before: Path
    log: tuple[Op, ...]
    allowed: frozenset[str | None]
    final: str
    site: Path
    #: Whether the board takes deltas.
    patch: Patcher | None = None

    @property
    def decided_at(self) -> int:
        """After how many operations the last record is on the flash; what comes behind is tidying up."""
        records = (i for i, op in enumerate(self.log) if op.kind == "sync" and op.path.name in SLOT_NAMES)
        return 1 + max(records)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("world")
    publisher = Publisher.make(place)
    ids, stages = [], []
    for i in range(3):
        source = small_source(seed=i, dimensions=4)
        bundle = make_bundle(place / f"v{i}", version=f"1.{i}.0", source=source, graphs=()).path
        ids.append(publisher.publish(bundle).id)
        stages.append(shutil.copytree(publisher.site, place / f"stage-{i}"))
        if i == 1:
            misleading = publisher.copy(place / "misleading")
            file = Repository(misleading.site, Keys([misleading.keys])).channel("stable").releases[0].deltas[0].file
            data = (misleading.site / "blobs" / file.sha256).read_bytes()
            misleading.offer_delta(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    publisher.publish(place / "v2", RollOut(halted=True))
    return World(ids, stages, publisher.site, publisher.root, misleading.site)


def _board(place: Path, world: World, *stages: int) -> Board:
    (place / "board").mkdir()
    board = Board(place / "board" / "store", world.root)
    for stage in stages:
        board.update(world.stages[stage])
    return board


def _recorded(place: Path, board: Board, site: Path, allowed: Sequence[str | None], probe: FakeProbe) -> Flow:
    shutil.copytree(board.store.parent, place / "before")
    fs = RecordingFs(board.store.parent)
    probe = NotedProbe(probe.verdicts, log=fs.log)
    try:
        board.update(site, probe=probe, fs=fs)
    except EdgeEmbedError:
        assert probe.verdicts == [NO]
    return Flow(place / "before", tuple(fs.log), frozenset(allowed), board.serving, site, board.patch)


def _first_update(place: Path, world: World) -> Flow:
    board = _board(place, world)
    return _recorded(place, board, world.stages[0], (None, world.ids[0]), FakeProbe())


def _second_update(place: Path, world: World) -> Flow:
    board = _board(place, world, 0)
    return _recorded(place, board, world.stages[1], world.ids[:2], FakeProbe())


def _third_update(place: Path, world: World) -> Flow:
    board = _board(place, world, 0, 1)
    return _recorded(place, board, world.stages[2], world.ids[1:], FakeProbe())


def _an_update_after_a_crash(place: Path, world: World) -> Flow:
    board = _board(place, world, 0)
    return _recorded(place, board, world.stages[1], world.ids[:2], FakeProbe([CRASH, CRASH, YES]))


def _a_refused_update(place: Path, world: World) -> Flow:
    board = _board(place, world, 0)
    return _recorded(place, board, world.stages[1], world.ids[:1], FakeProbe([NO]))


def _a_release_taken_back(place: Path, world: World) -> Flow:
    board = _board(place, world, 0, 1, 2)
    return _recorded(place, board, world.halted, world.ids[1:], FakeProbe())


def _an_update_that_goes_on(place: Path, world: World) -> Flow:
    """Some files were there already, for another one room was taken."""
    board = _board(place, world, 0)
    site = shutil.copytree(world.stages[1], place / "site")
    manifest = Manifest.parse((site / "blobs" / world.ids[1]).read_bytes(), source="manifest")
    blob = site / "blobs" / manifest.blobs["table.bin"].sha256
    hidden = blob.rename(place / "hidden")
    with pytest.raises(FetchError):
        board.update(site)
    hidden.rename(blob)
    return _recorded(place, board, site, world.ids[:2], FakeProbe())


def _an_update_by_delta(place: Path, world: World) -> Flow:
    board = replace(_board(place, world, 0), patch=Patch)
    return _recorded(place, board, world.stages[1], world.ids[:2], FakeProbe())


def _an_update_by_a_delta_that_leads_nowhere(place: Path, world: World) -> Flow:
    """Its last frame makes what nobody signed; the files are fetched."""
    board = replace(_board(place, world, 0), patch=Patch)
    return _recorded(place, board, world.misleading, world.ids[:2], FakeProbe())


FLOWS = (
    _first_update,
    _second_update,
    _third_update,
    _an_update_after_a_crash,
    _a_refused_update,
    _a_release_taken_back,
    _an_update_that_goes_on,
    _an_update_by_delta,
    _an_update_by_a_delta_that_leads_nowhere,
)


def _replays(flow: Flow, place: Path, log: Sequence[Op], first: int = 0) -> Iterator[tuple[int, Path]]:
    for cut in range(first, len(log) + 1):
        fates: list[Fate] = [everything, nothing, *(dice(cut * DICE + i) for i in range(DICE))]
        for i, fate in enumerate(fates):
            target = place / f"cut-{cut}-{i}"
            yield cut, replayed(flow.before, log, cut, fate, target) / "store"
            shutil.rmtree(target)


def _serving(store: Path) -> str | None:
    """Return what a runtime serves, every byte of it verified; None where nothing was ever installed."""
    try:
        with edge_embed.open(store, verify=True) as runtime:
            assert runtime.lookup("word1").any()
            return runtime.generation
    except EmptyStoreError:
        return None


@pytest.mark.parametrize("make", FLOWS)
def test_after_a_power_cut_anywhere_the_old_or_the_new_bundle_serves(
    make: Callable[[Path, World], Flow], world: World, tmp_path: Path
) -> None:
    flow = make(tmp_path, world)
    assert len(flow.log) > 20
    for cut, store in _replays(flow, tmp_path, flow.log):
        try:
            served = _serving(store)
        except (StateError, BundleError):
            # Slots that are torn while a store is made: nothing served before, nothing is lost.
            assert make is _first_update, cut
            served = None
        assert served in flow.allowed, cut
        # What is trusted is what was before, or what is newest, and whole.
        trusted = Records(store).trusted()
        assert trusted is None or isinstance(trusted, Trusted)
        assert trusted is not None or make is _first_update, cut
        if cut >= flow.decided_at:
            assert served == flow.final, "what was confirmed is lost"


@pytest.mark.parametrize("make", FLOWS)
def test_after_a_power_cut_anywhere_the_next_update_ends_and_leaves_no_rubbish(
    make: Callable[[Path, World], Flow], world: World, tmp_path: Path
) -> None:
    flow = make(tmp_path, world)
    for cut, fate in itertools.product(range(len(flow.log) + 1), (everything, nothing, dice(1))):
        flash = replayed(flow.before, flow.log, cut, fate, tmp_path / "flash")
        board = Board(flash / "store", world.root, flow.patch)
        board.update(flow.site, retry=True)
        assert _serving(board.store) == (world.ids[1] if make is _a_refused_update else flow.final), cut
        state = Store(board.store).state()
        assert {path.name for path in (board.store / "generations").iterdir()} == state.kept
        assert not [path for path in (board.store / "blobs").iterdir() if path.stat().st_nlink < 2]
        assert not list(Records(board.store).incoming.iterdir())
        shutil.rmtree(flash)


def _loses(flow: Flow, place: Path, log: Sequence[Op], first: int = 0) -> bool:
    """Return whether some cut, from the operation ``first`` on, loses what must not be lost."""
    newest = (flow.site / "metadata" / "timestamp.json").read_bytes()
    for cut, store in _replays(flow, place, log, first):
        try:
            served, trusted, last = _serving(store), Records(store).trusted(), Records(store).last()
            lost = served not in flow.allowed or trusted is None
            if trusted is not None and served == flow.final:
                # What serves is never ahead of what is trusted: old metadata would lead the board back.
                lost = lost or trusted.metadata["timestamp"] != newest
            if "probe" in [op.kind for op in log[:cut]]:
                # A load that kills the board has cost a try.
                state = Store(store).state()
                lost = lost or not (served == flow.final or (state.trial == flow.final and state.tries_left < TRIES))
            if cut == len(log):
                lost = lost or served != flow.final or last is None or last.release[:11] != "small 1.1.0"
        except EdgeEmbedError:
            lost = True
        if lost:
            shutil.rmtree(store.parent)
            return True
    return False


@pytest.mark.parametrize("make", [_second_update, _an_update_by_delta])
def test_without_any_one_of_its_syncs_an_update_loses_something(
    make: Callable[[Path, World], Flow], world: World, tmp_path: Path
) -> None:
    flow = make(tmp_path, world)
    assert not _loses(flow, tmp_path, flow.log)
    syncs = [i for i, op in enumerate(flow.log) if op.kind in ("sync", "sync_folder")]
    slots = [i for i in syncs if flow.log[i].path.name.startswith("slot.")]
    needless = [i for i in syncs if not _loses(flow, tmp_path, [*flow.log[:i], *flow.log[i + 1 :]], i)]
    assert len(syncs) > 12
    # Of the manifest the store writes a copy of its own; a delta that was torn leads nowhere, and costs its bytes. The
    # record of a trial that began says no more than the next one, of the first try that was spent.
    spared = {flow.log[i].path.name for i in needless if i != slots[0]}
    assert spared <= {".partial-manifest.json", f".partial-{delta_name(world.ids[0])}"}
