"""The rules of installing and rolling back, each as one line of values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_embed_bundle.errors import StateError, StoreError
from edge_embed_bundle.state import REFUSED_CEILING, TRIES, State

A, B, C = ("a" * 64, "b" * 64, "c" * 64)

NEW = State()
SERVING = State(5, active=A, previous=B)
TRYING = State(6, active=A, previous=B, trial=C, tries_left=TRIES)


def test_a_new_store_serves_nothing() -> None:
    assert State(0, active=None, previous=None, trial=None, tries_left=0, refused=()) == NEW
    assert NEW.kept == frozenset()


@pytest.mark.parametrize("state", [NEW, SERVING])
def test_a_trial_begins_with_all_its_tries_and_leaves_what_serves(state: State) -> None:
    after = state.begin_trial(C)
    assert (after.trial, after.tries_left) == (C, TRIES)
    assert (after.active, after.previous) == (state.active, state.previous)


def test_what_a_trial_lacks_of_memory_is_known_until_it_ends() -> None:
    trying = SERVING.begin_trial(C, needs_bytes=5)
    assert [state.needs_bytes for state in (trying, trying.spend_try())] == [5, 5]
    assert [state.needs_bytes for state in (trying.confirm(), trying.refuse())] == [0, 0]


def test_there_is_one_trial_at_a_time() -> None:
    with pytest.raises(StateError, match=f"expected no generation on trial, found {C[:12]}"):
        TRYING.begin_trial(B)


def test_a_refused_generation_that_is_tried_again_is_forgiven_and_no_other() -> None:
    assert State(refused=(B, C)).begin_trial(C).refused == (B,)


def test_each_load_of_a_trial_spends_a_try_until_none_is_left() -> None:
    state = TRYING
    for left in reversed(range(TRIES)):
        state = state.spend_try()
        assert (state.tries_left, state.trial, state.active) == (left, C, A)
    with pytest.raises(StateError, match="expected a trial with tries left, found none"):
        state.spend_try()


def test_a_confirmed_trial_serves_and_what_served_is_the_previous_one() -> None:
    after = TRYING.spend_try().confirm()
    assert (after.active, after.previous, after.trial, after.tries_left) == (C, A, None, 0)


def test_the_first_confirmed_generation_has_no_previous_one() -> None:
    after = NEW.begin_trial(A).spend_try().confirm()
    assert (after.active, after.previous) == (A, None)


def test_a_generation_that_is_tried_while_it_serves_is_not_its_own_previous_one() -> None:
    after = SERVING.begin_trial(A).spend_try().confirm()
    assert (after.active, after.previous) == (A, B)


def test_a_refused_trial_changes_nothing_that_serves_and_is_remembered() -> None:
    after = TRYING.spend_try().refuse()
    assert (after.active, after.previous, after.trial, after.tries_left) == (A, B, None, 0)
    assert after.refused == (C,)


def test_a_rollback_swaps_what_serves_with_the_previous_one_and_refuses_what_it_left() -> None:
    after = SERVING.roll_back()
    assert (after.active, after.previous, after.refused) == (B, A, (A,))


def test_a_rollback_of_a_rollback_serves_what_served_at_first() -> None:
    after = SERVING.roll_back().roll_back()
    assert (after.active, after.previous, after.refused) == (A, B, (B,))


def test_a_rollback_leaves_a_trial_as_it_is() -> None:
    after = TRYING.roll_back()
    assert (after.active, after.previous, after.trial, after.tries_left) == (B, A, C, TRIES)


@pytest.mark.parametrize("state", [NEW, State(active=A), State(previous=A)])
def test_without_a_previous_generation_there_is_no_rollback(state: State) -> None:
    with pytest.raises(StoreError, match="expected a previous generation to go back to, found none"):
        state.roll_back()


@pytest.mark.parametrize("change", [State.spend_try, State.confirm, State.refuse])
def test_without_a_trial_nothing_is_spent_confirmed_or_refused(change: Callable[[State], State]) -> None:
    with pytest.raises(StateError, match="found none"):
        change(SERVING)


def test_the_oldest_refusal_is_forgotten_first_and_none_stands_twice() -> None:
    state = NEW
    names = [f"{i:064x}" for i in range(1, REFUSED_CEILING + 3)]
    for name in (*names, names[-2]):
        state = state.begin_trial(name).refuse()
    assert state.refused == (*names[2:-2], names[-1], names[-2])
    assert len(state.refused) == REFUSED_CEILING


@pytest.mark.parametrize(
    "change",
    [State.spend_try, State.confirm, State.refuse, State.roll_back],
    ids=lambda change: change.__name__,
)
def test_every_change_is_one_step_of_the_sequence_and_leaves_the_old_record(
    change: Callable[[State], State],
) -> None:
    before = State(6, active=A, previous=B, trial=C, tries_left=TRIES)
    assert change(TRYING).sequence == TRYING.sequence + 1
    assert before == TRYING


def test_what_serves_served_and_is_tried_is_kept_and_what_was_refused_is_not() -> None:
    assert TRYING.kept == {A, B, C}
    assert TRYING.refuse().kept == {A, B}


def test_a_previous_generation_that_rotted_is_refused_where_it_stands() -> None:
    after = SERVING.refuse_previous()
    assert (after.active, after.previous, after.refused, after.sequence) == (A, B, (B,), 6)
    with pytest.raises(StateError, match="expected a previous generation, found none"):
        NEW.refuse_previous()


def test_who_was_put_away_for_its_rot_is_forgiven_and_nobody_who_was_refused_for_something_else() -> None:
    away = SERVING.put_away(A)
    assert (away.active, away.previous, away.refused) == (B, A, (A,))
    assert away.rotten == {A}
    assert away.forgive(A).refused == ()
    assert away.forgive(A).rotten == frozenset()
    assert SERVING.put_away(B).rotten == {B}
    # Gone back to, and left again by its operator: that is another reason.
    assert away.roll_back().rotten == frozenset()
    assert away.roll_back().roll_back().rotten == frozenset()
    # Tried again, and found wanting.
    assert away.begin_trial(A).refuse().rotten == frozenset()
