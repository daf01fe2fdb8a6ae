"""The initiator's transition table."""

from __future__ import annotations

import itertools

import pytest

from kinkd.exchange.table import TRANSITIONS, Action, Event, State, step

ILLEGAL = [k for k in itertools.product(State, Event) if k not in TRANSITIONS]


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_changes_nothing(state: State, event: Event) -> None:
    assert step(state, event) == (state, Action.NOTHING)


def test_an_ended_command_stays_ended() -> None:
    assert not [state for state, _ in TRANSITIONS if state in (State.DONE, State.FAILED)]


def test_every_end_is_told_to_the_purpose_exactly_once() -> None:
    for state, action in TRANSITIONS.values():
        assert (state is State.DONE) == (action is Action.COMPLETE)
        assert (state is State.FAILED) == (action is Action.ABANDON)
