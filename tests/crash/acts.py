"""What a store does, each from a known state to a known end.

An act may be cut short anywhere. Then, and after any number of cuts:

 * a bundle serves, whole to its last byte, and it is one of those that the act allows;
 * what was reported done is done;
 * the act, done again, comes to its end.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import edge_embed
from edge_embed.patching import Patch
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import EdgeEmbedError, EmptyStoreError, StoreError
from edge_embed_bundle.scrub import Scrub
from edge_embed_bundle.store import Store
from edge_embed_bundle.updating.building import Patcher
from tests.boards import Board
from tests.fakes.probes import FakeProbe, PowerCutError
from tests.making import make_bundle, small_source
from tests.repositories import Publisher

_VERSIONS = 3
_UNBOUNDED = 2**40


@dataclass(frozen=True)
class Act:
    """Something that changes a store."""

    name: str
    #: A folder that holds the store as it was, or none yet.
    before: Path
    run: Callable[[Path], None]
    #: The generations that may serve after a cut; None: nothing has to.
    allowed: frozenset[str | None]
    #: The one that serves in the end.
    final: str
    #: A generation that was damaged before.
    rotten: str | None = None

    def begin(self, place: Path) -> Path:
        """Put the store as it was into a new folder, hard links and all; return where it is to be."""
        subprocess.run(["cp", "-a", str(self.before), str(place)], check=True)
        return place / "store"

    def serving(self, store: Path) -> str | None:
        """Return what serves, after reading all of it.

        Raises:
            EdgeEmbedError: what serves is not whole.
        """
        try:
            with edge_embed.open(store) as runtime:
                if runtime.generation != self.rotten:
                    runtime.bundle.verify()
                if not runtime.lookup("word1").any():
                    raise AssertionError("a lookup found zeros")
                return runtime.generation
        except EmptyStoreError:
            return None
        except EdgeEmbedError:
            # A store that is just being made: its slots may be torn, and the next run makes them anew.
            if None not in self.allowed or any(store.glob("generations/[0-9a-f]*")):
                raise
            return None

    def faults(self, store: Path, *, is_done: bool) -> list[str]:
        """Return what is wrong with a store after a cut, in which the act is then done once more."""
        try:
            served = self.serving(store)
            if served not in self.allowed:
                return [f"{served} serves, which is none of what may"]
            if is_done and served != self.final:
                return ["what was reported done is lost"]
            if served != self.final:
                self.run(store)
            if self.serving(store) != self.final:
                return ["done again, it came to another end"]
        except EdgeEmbedError as error:
            return [f"{type(error).__name__}: {error}"]
        state = Store(store).state()
        left = {path.name for path in (store / "generations").iterdir()} - state.kept
        return [f"generations/{name} is left over" for name in sorted(left)] if served != self.final else []


def make_acts(place: Path) -> list[Act]:
    """Make the bundles, the repository and the stores that the acts begin from."""
    bundles = [
        make_bundle(place / f"v{i}", version=f"1.{i}.0", source=small_source(seed=i, dimensions=4), graphs=()).path
        for i in range(_VERSIONS)
    ]
    ids = [_id(bundle) for bundle in bundles]
    publisher = Publisher.make(place / "publisher")
    publisher.publish(bundles[0])
    root = publisher.root

    def update(store: Path, patch: Patcher | None = None) -> None:
        Board(store, root, patch).update(publisher.site, retry=True)

    def install(number: int) -> Callable[[Path], None]:
        return lambda store: _done(Store(store).install(bundles[number], FakeProbe(), retry=True))

    def before(name: str, *acts: Callable[[Path], None]) -> Path:
        folder = place / "before" / name
        folder.mkdir(parents=True)
        for act in acts:
            act(folder / "store")
        return folder

    def allowed(*numbers: int) -> frozenset[str | None]:
        return frozenset(ids[number] for number in numbers)

    first, second, third = install(0), install(1), install(2)
    updated = before("update", update)
    if not publisher.publish(bundles[1]).deltas:
        raise AssertionError("a release is offered by a delta, too")
    return [
        # Those that write least come first.
        Act("rollback", before("rollback", first, second), _rollback, allowed(0, 1), ids[0]),
        Act("confirm", before("confirm", first, _cut_off(bundles[1])), second, allowed(0, 1), ids[1]),
        Act("scrub", before("scrub", first, second, _rot), _scrub, allowed(0, 1), ids[0], rotten=ids[1]),
        Act("install", before("install", first), second, allowed(0, 1), ids[1]),
        Act("third install", before("third", first, second), third, allowed(1, 2), ids[2]),
        Act("first install", before("nothing"), first, allowed(0) | {None}, ids[0]),
        Act("update", updated, update, allowed(0, 1), ids[1]),
        Act("update by a delta", updated, lambda store: update(store, Patch), allowed(0, 1), ids[1]),
    ]


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


def _done(_: object) -> None:
    """Throw a result away."""


def _cut_off(bundle: Path) -> Callable[[Path], None]:
    def act(store: Path) -> None:
        try:
            Store(store).install(bundle, FakeProbe(dies=True))
        except PowerCutError:
            return

    return act


def _rollback(store: Path) -> None:
    Store(store).rollback()


def _rot(store: Path) -> None:
    path = Store(store).active() / "golden.bin"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def _scrub(store: Path) -> None:
    found = Scrub(Store(store), rate_bytes=_UNBOUNDED).run()
    if not found.quarantined:
        raise StoreError("; ".join(found.problems) or "expected to find what is rotten, found nothing")
