"""The runtime: opens a bundle or a store, answers, and follows the store from one generation to the next.

* Opening maps and checks; it reads nothing large. A store's generation was verified when it was installed; a bare
  folder comes from anywhere, so every byte of it is verified unless the caller says otherwise.
* Each call is answered by one generation. A call asks the mapped state slots for news, which costs no system call.
  Where there are some, a thread of the runtime's own opens what was newly confirmed, while calls are answered from the
  old generation; then all move to the new one as a whole, between two calls. ``catch_up`` waits for that.
* A new generation that this process cannot open (its memory budget, say) leaves the old one serving;
  ``Runtime.problem`` tells why.
* Where a trial lacks memory and its installer was told to ask for it, the runtime lets go of its generation between two
  calls, and the next ones wait until the trial is over, or the process that tries is gone (``edge_embed_bundle.room``).
* A runtime may be shared by threads.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from edge_embed import kernels, memory
from edge_embed.aside import Aside
from edge_embed.bags import Asked, Bag, flat, runs_of
from edge_embed.batches import Batches, in_batches
from edge_embed.errors import BudgetError, EdgeEmbedError, RequestError, SpaceMismatchError
from edge_embed.keys import Key
from edge_embed.memory import Memory, format_size, parse_size
from edge_embed.serving import Serving, check_budget
from edge_embed.space import Stamped, comparable
from edge_embed.table import UNKNOWN_POLICIES, Table
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError, DigestError, EmptyStoreError
from edge_embed_bundle.manifest import BAG_MODES, MANIFEST_NAME, OPERATIONS, BagRecipe, Manifest, Model
from edge_embed_bundle.slots import SlotWatch, generation_folder, is_store
from edge_embed_bundle.state import State
from edge_embed_bundle.values import Space

if TYPE_CHECKING:
    from pathlib import Path

    from edge_embed.classifier import Classification
    from edge_embed.golden import Outcome
    from edge_embed.images import Image
    from edge_embed.neighbours import Neighbours

Vector = NDArray[np.float32]
T = TypeVar("T")

#: A generation may be collected between reading its name and opening it, if two installs pass meanwhile.
_OPEN_ATTEMPTS = 5

#: A deadline further away than a day is none.
_LONGEST_MS = 86_400_000.0
_BATCH_AXES = 2
_CLOSED = "this runtime is closed"
_MOST_THREADS = 1024

#: How long a move to a new generation that failed is not tried again.
_RETRY_SECONDS = 1.0

#: The call that saw the news is over by then: what opens the new generation holds the interpreter for some time.
_AFTER_NEWS_SECONDS = 0.002

#: Three probes that hang, and some time beside: nobody waits longer for a trial.
_LONGEST_TRIAL_SECONDS = 600.0
_PAUSE_SECONDS = 0.02


class _NoShortcut:
    """Where every question goes the general way."""

    def lookup(self, _: object, /) -> None:
        """Answer nothing."""

    def bag(self, _: object, _mode: str | None, /) -> None:
        """Answer nothing."""


class Runtime:
    """Vectors, neighbours and encodings from a bundle. Use as a context manager, or ``close`` it."""

    def __init__(
        self,
        path: Path | str,
        *,
        memory_budget: str | int | None = None,
        engine: str = "kernels",
        threads: int = 1,
        verify: bool | None = None,
        follow: bool = True,
    ) -> None:
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= _MOST_THREADS:
            raise RequestError(f"expected 1 to {_MOST_THREADS} threads, found {threads!r}")
        self._folder = os.fsdecode(path)
        #: Why the runtime does not serve the store's newest generation, or None.
        self.problem: str | None = None
        self._retry_at = 0.0
        self._budget_bytes = None if memory_budget is None else parse_size(memory_budget)
        self._room_bytes = 0
        self._private_bytes_before = 0 if memory_budget is None else memory.current().private_bytes
        self._engine = engine
        self._threads = threads
        self._make_locks()
        self._is_closed = False
        self._follower = Aside(self, self._follow, after_seconds=_AFTER_NEWS_SECONDS)
        #: The generation that was let go for a trial.
        self._left = ""
        self._watch: SlotWatch | None = None
        self._serving: Serving | None = None
        self._shortcut: kernels.Shortcut | _NoShortcut = _NoShortcut()
        _OPEN.add(self)
        if is_store(self._folder):
            self._verify = bool(verify)
            self._watch = SlotWatch(self._folder)
            serving = _given(self._open_active())
            if not follow:
                self._watch.close()
                self._watch = None
            self._serve(serving)
        else:
            self._verify = verify is not False
            self._serve(self._open(self._folder))

    @property
    def path(self) -> Path:
        """The folder of the bundle or of the store."""
        from pathlib import Path

        return Path(self._folder)

    @overload
    def lookup(self, keys: Key, *, model: str | None = None, unknown: str | None = None) -> Vector: ...

    @overload
    def lookup(self, keys: Sequence[Key], *, model: str | None = None, unknown: str | None = None) -> Vector: ...

    def lookup(self, keys: Key | Sequence[Key], *, model: str | None = None, unknown: str | None = None) -> Vector:
        """Return the vector ``(d,)`` of a key, or the vectors ``(n, d)`` of a list of keys; float32, freshly allocated.

        Args:
            keys: text (UTF-8) or bytes, one or a sequence.
            model: the table's name; the bundle's first one if not given.
            unknown: ``error``, ``zeros``, ``hash`` or ``subwords`` (a word made of its parts) for keys that are not
                there; the manifest's policy if not given.

        Raises:
            UnknownKeyError: a key is not there and the policy is ``error``.
        """
        if model is None and unknown is None and (vector := self._shortcut.lookup(keys)) is not None:
            return vector
        return self._lookup(self._current(), keys, model, unknown)

    def lookup_ids(self, ids: Sequence[int] | NDArray[np.integer], *, model: str | None = None) -> Vector:
        """Return the vectors ``(n, d)`` of row ids ``(n,)``, float32; ids outside a table that hashes get its rows.

        Raises:
            RequestError: an id lies outside the table, or they are no list of whole numbers.
        """
        given = flat(ids)
        if not isinstance(given, np.ndarray):
            raise RequestError("expected row ids as a list of whole numbers, found keys")
        return self._current().table(model).lookup_ids(given)

    def bag(
        self,
        ids: Asked,
        offsets: Sequence[int] | NDArray[np.integer] | None = None,
        *,
        model: str | None = None,
        mode: str | None = None,
        weights: Sequence[Any] | NDArray[np.floating] | None = None,
        padding_row: int | None = None,
        include_last_offset: bool = False,
        unknown: str | None = None,
    ) -> Vector:
        """Return one vector for several rows, as ``nn.EmbeddingBag`` does: ``(d,)`` of one list, else ``(b, d)``.

        Args:
            ids: row ids, or keys: one list is one bag; a list of lists, or ``(b, k)``, are b bags.
            offsets: where in a flat ``ids`` each bag begins.
            model: the table's name; the bundle's first one if not given.
            mode: ``sum``, ``mean`` or ``max``; the manifest's recipe if not given, else ``mean``.
            weights: a factor for each id; for ``sum`` alone.
            padding_row: the row that is left out and not counted; the manifest's if not given, -1 for none.
            include_last_offset: the last of ``offsets`` is the number of ids, not the beginning of a bag.
            unknown: ``error``, ``zeros`` (such a key is left out) or ``hash``; the manifest's policy if not given.

        Raises:
            RequestError: an id lies outside the table, or ids, offsets and weights do not belong together.
            UnknownKeyError: a key is not there and the policy is ``error``.
        """
        if offsets is None and weights is None and padding_row is None and unknown is None and not include_last_offset:
            shortcut = self._shortcut if model is None else self._current().shortcut(model)
            if (pooled := shortcut.bag(ids, mode)) is not None:
                return pooled
        bag = Bag(ids, offsets, weights, include_last_offset)
        return self._bag(self._current().table(model), bag, mode, padding_row, unknown)

    def bags(self, asked: Mapping[str, Bag | Asked]) -> dict[str, Vector]:
        """Return the pooled vectors of several tables, by their names, from one generation.

        Each table is asked by its own recipe. A value is what :meth:`bag` takes as ``ids``, or a ``Bag`` with offsets
        or weights.
        """
        serving = self._current()
        pooled = {}
        for name, bag in asked.items():
            at_once = None if isinstance(bag, Bag) else serving.shortcut(name).bag(bag, None)
            if at_once is None:
                bag = bag if isinstance(bag, Bag) else Bag(bag)
                at_once = self._bag(serving.table(name), bag, None, None, None)
            pooled[name] = at_once
        return pooled

    def encode(
        self,
        text: str | Sequence[str],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        batch_size: int | None = None,
        deadline_ms: float | None = None,
        show_progress: bool = False,
    ) -> Vector:
        """Return the vector ``(d,)`` of a text, or ``(n, d)`` of a list of texts; float32.

        A text's vector does not depend on the texts beside it, nor on ``batch_size``. A text without a token, or
        without one that a table knows, gets zeros. What is longer than the model takes is cut or refused, as the
        manifest says.

        Args:
            text: one or a sequence.
            prompt: the name of one of the model's prompts, put before each text; its default one if not given.
            normalize: whether vectors are divided by their lengths; as the model says if not given.
            batch_size: how many texts are worked on at a time, which bounds memory; 64 if not given.
            deadline_ms: give up so many milliseconds after the call. It is looked at between texts: one that is being
                encoded is not broken off.
            show_progress: draw a bar on stderr while a list is encoded.

        Raises:
            RequestError: the bundle encodes no text, a text is not Unicode or is too long for a model that refuses it.
            DeadlineError: the time was over before the last text.
            MissingExtraError: the tokenizer's or the engine's package is not installed.
        """
        deadline_ns = _deadline_ns(deadline_ms)
        serving = self._current()
        if prompt is None and normalize is None and batch_size is None and not deadline_ns and not show_progress:
            return self._encode(serving, text)
        texts, alone = _listed(text, isinstance(text, str), "texts")
        encode = partial(serving.text_encoder().encode, prompt=prompt, normalize=normalize)
        dimensions = serving.text_model().dimensions
        vectors = in_batches(encode, texts, dimensions, Batches("texts", batch_size, deadline_ns, show_progress))
        return vectors[0] if alone else vectors

    def encode_image(
        self,
        image: Image | Sequence[Image],
        *,
        normalize: bool | None = None,
        batch_size: int | None = None,
        deadline_ms: float | None = None,
        show_progress: bool = False,
    ) -> Vector:
        """Return the vector ``(d,)`` of an image, or ``(n, d)`` of a list of images; float32.

        Args:
            image: a path, the bytes of a file, an array ``(h, w)``, ``(h, w, 3)`` or ``(h, w, 4)`` of uint8 or uint16,
                a Pillow image; or a sequence of these, or an array ``(n, h, w, c)``.
            normalize: as for :meth:`encode`, and so are the others.
            batch_size: how many images are worked on at a time.
            deadline_ms: give up so many milliseconds after the call.
            show_progress: draw a bar on stderr.

        Raises:
            RequestError: the bundle encodes no images, or one is absent, damaged or too large.
            DeadlineError: the time was over before the last image.
            MissingExtraError: the image library or the engine's package is not installed.
        """
        deadline_ns = _deadline_ns(deadline_ms)
        from edge_embed.images import listed

        serving = self._current()
        images, alone = listed(image)
        encode = partial(serving.image_encoder().encode, normalize=normalize)
        batches = Batches("images", batch_size, deadline_ns, show_progress)
        vectors = in_batches(encode, images, serving.image_model().dimensions, batches)
        return vectors[0] if alone else vectors

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a sequence of str to mypy, too
        self, text: str, *, k: int = 1, threshold: float = 0.0
    ) -> Classification: ...

    @overload
    def classify(self, text: Sequence[str], *, k: int = 1, threshold: float = 0.0) -> list[Classification]: ...

    def classify(
        self, text: str | Sequence[str], *, k: int = 1, threshold: float = 0.0
    ) -> Classification | list[Classification]:
        """Return the likeliest labels of a text, or of each of a list of texts, with their probabilities.

        Args:
            text: one or a sequence.
            k: how many labels, at most all.
            threshold: labels that are less probable are left out.

        Raises:
            RequestError: the bundle classifies no text, or a text is not Unicode.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise RequestError(f"expected k of at least 1, found {k!r}")
        classifier = self._current().classifier()
        texts, alone = _listed(text, isinstance(text, str), "texts")
        found = classifier.classify(texts, int(k), threshold)
        return found[0] if alone else found

    @overload
    def stamped(self, *, key: Key) -> Stamped: ...

    @overload
    def stamped(self, *, text: str) -> Stamped: ...

    def stamped(self, *, key: Key | None = None, text: str | None = None) -> Stamped:
        """Return the vector of a key or of a text together with the space it belongs to, from one generation."""
        serving = self._current()
        if (key is None) == (text is None):
            raise RequestError("expected a key or a text to stamp, found both or neither")
        if key is not None:
            vector = self._lookup(serving, key, None, None)
        elif text is not None:
            vector = self._encode(serving, text)
        # A text's vector lies in the space of the model that encodes it.
        manifest = serving.bundle.manifest
        space = serving.table().space if key is not None else manifest.space_of(serving.text_model())
        return Stamped(vector, space.id)

    @overload
    def search(
        self,
        key: Key | None = None,
        *,
        text: str | None = None,
        image: Image | None = None,
        vector: Stamped | Vector | None = None,
        k: int = 10,
        model: str | None = None,
        exact: bool = False,
        deadline_ms: float | None = None,
    ) -> Neighbours: ...

    @overload
    def search(
        self,
        key: Sequence[Key] | None = None,
        *,
        text: Sequence[str] | None = None,
        image: Sequence[Image] | None = None,
        vector: Sequence[Stamped | Vector] | None = None,
        k: int = 10,
        model: str | None = None,
        exact: bool = False,
        deadline_ms: float | None = None,
    ) -> list[Neighbours]: ...

    def search(
        self,
        key: Key | Sequence[Key] | None = None,
        *,
        text: str | Sequence[str] | None = None,
        image: Image | Sequence[Image] | None = None,
        vector: Stamped | Vector | Sequence[Stamped | Vector] | None = None,
        k: int = 10,
        model: str | None = None,
        exact: bool = False,
        deadline_ms: float | None = None,
    ) -> Neighbours | list[Neighbours]:
        """Return the ``k`` nearest rows by cosine; of several questions, which share one scan, a list of answers.

        A table that was exported with lists is scanned in those that are likeliest, as many as its exporter measured
        to be enough; any other is scanned as a whole.

        Args:
            key: a key of the searched table (the first one if ``model`` is not given), or several; a key is left out
                of its own answer.
            text: a text, or several, to encode and search for, in the bundle's collection if ``model`` is not given.
            image: an image, or several, likewise.
            vector: ``(d,)`` values or a ``Stamped`` vector, searched like a text; several as a list or ``(q, d)``.
            k: how many, at most the table's rows.
            model: the table to search.
            exact: scan all rows of a table that has lists, too.
            deadline_ms: return the best of what was scanned so many milliseconds after the call; ``complete`` says
                whether that was all. A text is encoded first, whatever time that takes.

        Raises:
            RequestError: not exactly one of ``key``, ``text``, ``image`` and ``vector``, or the table keeps no keys.
            SpaceMismatchError: a vector is stamped with another space.
            UnknownKeyError: the table does not have a key.
        """
        deadline_ns = _deadline_ns(deadline_ms)
        if (key is not None) + (text is not None) + (image is not None) + (vector is not None) != 1:
            raise RequestError("expected exactly one of key, text, image and vector to search for")
        if not isinstance(k, int | np.integer) or k < 1:
            raise RequestError(f"expected k of at least 1, found {k!r}")
        serving = self._current()
        without = None
        if key is not None:
            keys, alone = _listed(key, isinstance(key, str | bytes), "keys")
            table = serving.table(model)
            queries = table.lookup_all(keys, table.policy_of_questions)
            without = np.array([table.find(each) for each in keys], np.int64)
        elif text is not None:
            texts, alone = _listed(text, isinstance(text, str), "texts")
            table = _table_for(serving, serving.text_model(), model)
            queries = serving.text_encoder().encode(texts)
        elif image is not None:
            from edge_embed.images import listed

            images, alone = listed(image)
            table = _table_for(serving, serving.image_model(), model)
            queries = serving.image_encoder().encode(images)
        else:
            vectors, alone = _listed(vector, _is_one_vector(vector), "vectors")
            table = serving.collection if model is None else serving.table(model)
            compared = [comparable(each, table.space) for each in vectors]
            queries = np.array(compared, np.float32).reshape(len(vectors), table.model.dimensions)
        found = table.search(queries, int(k), without, exact=exact, deadline_ns=deadline_ns)
        return found[0] if alone else found

    @property
    def space(self) -> Space:
        """What these vectors may be compared with."""
        return self._current().bundle.manifest.space

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation that answers now."""
        return self._current().bundle.manifest

    @property
    def bundle(self) -> Bundle:
        """The bundle of the generation that answers now; the runtime closes it."""
        return self._current().bundle

    @property
    def generation(self) -> str:
        """The identity (sha256 of the manifest) of the generation that answers now."""
        return self._current().bundle.id

    def memory(self) -> Memory:
        """Return what this process holds now, private and mapped, as the system counts it: measured, not predicted."""
        return memory.current()

    def table(self, model: str | None = None) -> Table:
        """Return a table of the generation that answers now; it does not follow the store."""
        return self._current().table(model)

    def check_golden(self, operations: Sequence[str] = OPERATIONS) -> list[Outcome]:
        """Ask the golden questions of the generation that answers now, all or those of some operations.

        Raises:
            MissingExtraError: a question needs a package that is not installed.
        """
        from edge_embed.golden import check_golden

        return check_golden(self._current(), operations)

    def catch_up(self) -> None:
        """Be at the store's newest generation when this returns; without it, calls move there a moment after the news.

        A generation that cannot be opened leaves the old one serving; ``problem`` tells why.

        Raises:
            RequestError: the runtime is closed.
            EdgeEmbedError: there is nothing to answer from.
        """
        watch = self._watch
        if watch is None:
            _given(self._serving)
            return
        with self._moving:
            try:
                self._move_if_news()
            except BaseException:
                # Ctrl-C in the middle: what was read is news again, also to who was told of it before.
                watch.forget()
                self._shortcut = _NoShortcut()
                raise

    def close(self) -> None:
        """Let go of the bundle."""
        with self._placing:
            self._is_closed = True
            serving, self._serving = self._serving, None
            watch, self._watch = self._watch, None
            self._shortcut = _NoShortcut()
        if serving is not None:
            serving.unpin()
            serving.bundle.close()
        if watch is not None:
            watch.close()
        self._follower.end()

    def __enter__(self) -> Self:
        """Return the open runtime."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the runtime."""
        self.close()

    def _lookup(self, serving: Serving, keys: Key | Sequence[Key], model: str | None, unknown: str | None) -> Vector:
        table = serving.table(model)
        policy = self._policy(table, unknown)
        if isinstance(keys, str | bytes):
            return table.lookup(keys, policy)
        if not isinstance(keys, Iterable):
            raise RequestError(f"expected a key as str or bytes, or several of them, found {type(keys).__name__}")
        return table.lookup_all(list(keys), policy)

    def _bag(self, table: Table, bag: Bag, mode: str | None, padding_row: int | None, unknown: str | None) -> Vector:
        recipe = table.model.bag or BagRecipe("mean")
        mode = recipe.mode if mode is None else mode
        if mode not in BAG_MODES:
            raise RequestError(f"expected a mode of {', '.join(BAG_MODES)}, found {mode!r}")
        if bag.weights is not None and mode != "sum":
            raise RequestError(f"expected weights with the mode sum alone, found them with {mode}")
        padding_row = recipe.padding_row if padding_row is None else padding_row
        if padding_row is not None and not -1 <= padding_row < table.model.rows:
            raise RequestError(f"expected a padding row below {table.model.rows}, or -1 for none, found {padding_row}")
        runs = runs_of(bag)
        pooled = table.bag(runs, mode, None if padding_row == -1 else padding_row, self._policy(table, unknown))
        return pooled[0] if runs.alone else pooled

    def _policy(self, table: Table, unknown: str | None) -> str:
        policy = table.model.unknown if unknown is None else unknown
        if policy not in UNKNOWN_POLICIES:
            raise RequestError(f"expected unknown to be one of {', '.join(UNKNOWN_POLICIES)}, found {policy!r}")
        return policy

    def _encode(self, serving: Serving, text: str | Sequence[str]) -> Vector:
        texts, alone = _listed(text, isinstance(text, str), "texts")
        vectors = serving.text_encoder().encode(texts)
        return vectors.reshape(-1) if alone else vectors

    def _current(self) -> Serving:
        """Return the generation to answer from; see to it that a newly confirmed one is opened."""
        # Taken first: what another thread lets go of meanwhile is whole as long as somebody holds it.
        serving, watch = self._serving, self._watch
        if watch is not None:
            if serving is None:
                # It was let go for a trial, and is there again when who moves is done.
                self.catch_up()
                serving = self._serving
            elif self._has_news(watch) and not self._follower.want():
                # Where it is to be let go, this call is not the one to hold it.
                del serving
                self.catch_up()
                serving = self._serving
        return _given(serving)

    def _has_news(self, watch: SlotWatch) -> bool:
        return watch.changed() or (self.problem is not None and time.monotonic() >= self._retry_at)

    def _follow(self) -> None:
        """Move to what is new, in a thread that nobody waits for."""
        # Not for ever: who closes the runtime waits for this thread, and a signal's handler may do so inside a move.
        while not self._moving.acquire(timeout=_PAUSE_SECONDS):
            if self._follower.is_ended:
                return
        try:
            self._move_if_news()
        except BaseException as error:  # a panic of an engine's own code is no Exception
            # What leaves nothing to answer from is met by the next call, which tries the same again.
            self._put_off(error)
        finally:
            self._moving.release()

    def _move_if_news(self) -> None:
        # Another thread may have moved meanwhile, or closed the runtime.
        watch = _given(self._watch)
        if self._serving is None or self._has_news(watch):
            self._move(watch)

    def _put_off(self, error: BaseException) -> None:
        # Out of memory or descriptors may pass: look again, though not at every call.
        self._shortcut = _NoShortcut()
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        self.problem = str(error) or type(error).__name__

    def _make_locks(self) -> None:
        #: Held by who moves.
        self._moving = threading.Lock()
        #: Held while what serves is put in or taken out, never while anything is opened.
        self._placing = threading.RLock()

    def _move(self, watch: SlotWatch) -> None:
        try:
            self._make_room(watch.read())
            old = self._serving
            new = self._open_active(but_not="" if old is None else old.bundle.id)
            if new is not None:
                if old is not None:
                    new.warm_up_like(old)
                    old.unpin()
                # First: who is answered by what is new asks what is wrong, and is told nothing.
                self.problem = None
                self._serve(new)
                # The old one goes now, unless calls hold it: made by one thread and freed by another, in the middle
                # of the heap.
                del old
                memory.give_back()
            elif old is not None:
                self.problem = None
                self._place(old)
        except Exception as error:  # whatever is wrong with a new generation, the old one serves
            if self._serving is None:
                self._serve(self._open_again(error))
            self._put_off(error)

    def _is_to_let_go(self, state: State) -> bool:
        """Return whether a trial that somebody makes lacks memory, of which this runtime holds some."""
        if not state.needs_bytes or state.trial is None or self._serving is None:
            return False
        # Imported here: hardly anybody who serves ever needs it.
        from edge_embed_bundle.room import is_held

        return is_held(generation_folder(self._folder, state.trial))

    def _make_room(self, state: State) -> None:
        """Let go of what serves where a trial wants its memory, and wait for the end of that."""
        serving = self._serving
        if serving is None or state.trial is None or not self._is_to_let_go(state):
            return
        import gc

        from edge_embed_bundle.room import is_held

        folder, end = generation_folder(self._folder, state.trial), time.monotonic() + _LONGEST_TRIAL_SECONDS
        self._left = serving.bundle.id
        with self._placing:
            self._serving, self._shortcut = None, _NoShortcut()
        serving.unpin()
        # Calls that still run hold it to their end; then its maps and its engine go.
        del serving
        gc.collect()
        memory.give_back()
        while is_held(folder) and not self._follower.is_ended and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)

    def _open_again(self, error: Exception) -> Serving:
        """Return the generation that was let go for the trial of what cannot be opened here, as ``error`` says."""
        try:
            return self._open(generation_folder(self._folder, self._left), expected=self._left)
        except (EdgeEmbedError, OSError, MemoryError):
            raise error from None

    def _serve(self, serving: Serving) -> None:
        if self._budget_bytes is not None:
            serving.pin(self._room_bytes)
        self._place(serving)

    def _place(self, serving: Serving) -> None:
        """Let a generation answer from now on, unless the runtime was closed meanwhile."""
        with self._placing:
            if not self._is_closed:
                self._serving, self._shortcut = serving, self._shortcut_to(serving)
                return
        serving.unpin()
        serving.bundle.close()
        raise RequestError(_CLOSED)

    def _shortcut_to(self, serving: Serving) -> kernels.Shortcut | _NoShortcut:
        """Return what answers plain requests to the first table as long as the store has no news."""
        watched = () if self._watch is None else self._watch.watched()
        has_table = bool(serving.bundle.manifest.tables)
        if not has_table or watched is None:
            return _NoShortcut()
        return serving.table().shortcut(watched, self._follower.want)

    def _open_active(self, but_not: str = "") -> Serving | None:
        """Open the store's active generation, or return None if that is ``but_not``."""
        watch = _given(self._watch)
        attempts_left = _OPEN_ATTEMPTS
        while True:
            state = watch.read()
            if self._is_to_let_go(state):
                # That came between two looks, so it is still news for the next call.
                watch.forget()
            active = state.active
            if active is None:
                raise EmptyStoreError(
                    f"{self._folder}: expected a confirmed bundle, found none; edge-embed install one"
                )
            if active == but_not:
                return None
            try:
                return self._open(generation_folder(self._folder, active), expected=active)
            except BundleError:
                attempts_left -= 1
                if not attempts_left or not watch.changed():
                    raise

    def _private_bytes_beside(self) -> int:
        """Return what this process holds beside a bundle: at the first opening, and what it has grown by since."""
        if self._serving is None:
            return self._private_bytes_before
        serves_in = self._serving.bundle.manifest.requirements.memory_private_bytes
        return max(self._private_bytes_before, memory.current().private_bytes - serves_in)

    def _open(self, folder: str, expected: str = "") -> Serving:
        bundle = Bundle.open(folder)
        try:
            if expected and bundle.id != expected:
                raise DigestError(f"{folder}/{MANIFEST_NAME}: expected sha256 {expected}, found {bundle.id}")
            if self._budget_bytes is not None:
                self._room_bytes = check_budget(bundle, self._budget_bytes, self._private_bytes_beside())
            if self._verify:
                bundle.verify()
            serving = Serving(bundle, engine=self._engine, threads=self._threads)
            if bundle.manifest.encoders:
                serving.warm_up()
                self._check_warm(bundle)
            return serving
        except BaseException:
            bundle.close()
            raise

    def _check_warm(self, bundle: Bundle) -> None:
        """Refuse an encoder that took more than the budget when it ran: engines are measured, not believed.

        Raises:
            BudgetError: the process holds more private memory than it was allowed.
        """
        held = 0 if self._budget_bytes is None else memory.current().private_bytes
        if self._budget_bytes is not None and held > self._budget_bytes:
            raise BudgetError(
                f"{bundle.folder}: expected at most {format_size(self._budget_bytes)} of private memory, found "
                f"{format_size(held)} after the encoder ran; raise the budget or export a smaller variant"
            )


_OPEN: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _begin_again() -> None:
    """See to it that in a process that was forked off nobody waits for threads that stayed behind."""
    for runtime in list(_OPEN):
        runtime._make_locks()
        if runtime._watch is not None:
            runtime._watch.forget()
            runtime._shortcut = _NoShortcut()


os.register_at_fork(after_in_child=_begin_again)


def _deadline_ns(deadline_ms: float | None) -> int:
    """Return when a call that begins now has to be done, on the clock of ``time.monotonic_ns``; 0 for never."""
    if deadline_ms is None:
        return 0
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float | np.number) or not deadline_ms > 0:
        raise RequestError(f"expected a deadline of more than 0 milliseconds, found {deadline_ms!r}")
    return time.monotonic_ns() + int(min(deadline_ms, _LONGEST_MS) * 1e6)


def _table_for(serving: Serving, encoder: Model, model: str | None) -> Table:
    """Return the table that what an encoder answers is searched in."""
    table = serving.collection if model is None else serving.table(model)
    if table.space.id != serving.bundle.manifest.space_of(encoder).id:
        raise SpaceMismatchError(
            f"{table.model.name}: expected a table in the space of {encoder.name}, found one of "
            f"{table.space.id[:12]} ({table.space.source})"
        )
    return table


def _listed(asked: Any, alone: bool, what: str) -> tuple[list[Any], bool]:
    """Return what is asked as a list, and whether it stands for itself."""
    if alone:
        return [asked], True
    # Of what has no order nobody could tell which answer is whose; an array without axes is no sequence.
    has_order = isinstance(asked, Iterable) and not isinstance(asked, Mapping | set | frozenset)
    if not has_order or (isinstance(asked, np.ndarray) and not asked.ndim):
        raise RequestError(f"expected one or several {what}, found {type(asked).__name__}")
    return list(asked), False


def _is_one_vector(vector: Any) -> bool:
    """Return whether a vector stands for itself, or several in a list or an array."""
    if isinstance(vector, Stamped):
        return True
    if isinstance(vector, np.ndarray):
        return vector.ndim < _BATCH_AXES
    # A stamped vector is a tuple, too.
    if isinstance(vector, list | tuple) and any(isinstance(each, np.ndarray | list | tuple) for each in vector):
        return False
    return bool(np.ndim(vector) < _BATCH_AXES)


def _given(value: T | None) -> T:
    if value is None:
        raise RequestError(_CLOSED)
    return value
