"""The life of a command, from the initiator's side, as a table.

Every command of RFC 4430 goes the same way at its initiator: a ticket is needed; the command
is sent, and sent again with a fresh authenticator whenever the timer T runs out (§9); a REPLY
that verifies ends it well or badly; a full cycle without a ticket or a REPLY ends it badly. A
refusal that says what to do about it (our clock, our ticket) has it begun again (§3.5), and so has
silence where there is another ticket to try.

         +------remedied, renewed-------+
         v                              |
    NEEDS_TICKET --ticket--> AWAITS_REPLY --accepted--> DONE
         |                     |     ^ |
         |                  timeout  | +--refused, exhausted--> FAILED
         +--exhausted--> FAILED +----+

An event that the table does not know for a state changes nothing: a REPLY that comes twice, a
ticket that comes after the command was cancelled. The responder keeps no state of this kind:
it answers each command on the spot.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """Where a command stands at its initiator."""

    NEEDS_TICKET = enum.auto()
    AWAITS_REPLY = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class Event(enum.Enum):
    """What can happen to a command."""

    TICKET = enum.auto()
    TIMEOUT = enum.auto()
    EXHAUSTED = enum.auto()
    ACCEPTED = enum.auto()
    REFUSED = enum.auto()
    REMEDIED = enum.auto()
    RENEWED = enum.auto()
    CANCEL = enum.auto()


class Action(enum.Enum):
    """What is done on the way to the next state."""

    NOTHING = enum.auto()
    SEND = enum.auto()
    BEGIN_AGAIN = enum.auto()
    COMPLETE = enum.auto()
    ABANDON = enum.auto()


TRANSITIONS: Mapping[tuple[State, Event], tuple[State, Action]] = MappingProxyType(
    {
        (State.NEEDS_TICKET, Event.TICKET): (State.AWAITS_REPLY, Action.SEND),
        (State.NEEDS_TICKET, Event.EXHAUSTED): (State.FAILED, Action.ABANDON),
        (State.NEEDS_TICKET, Event.REFUSED): (State.FAILED, Action.ABANDON),
        (State.NEEDS_TICKET, Event.CANCEL): (State.FAILED, Action.ABANDON),
        (State.AWAITS_REPLY, Event.TIMEOUT): (State.AWAITS_REPLY, Action.SEND),
        (State.AWAITS_REPLY, Event.EXHAUSTED): (State.FAILED, Action.ABANDON),
        (State.AWAITS_REPLY, Event.ACCEPTED): (State.DONE, Action.COMPLETE),
        (State.AWAITS_REPLY, Event.REFUSED): (State.FAILED, Action.ABANDON),
        (State.AWAITS_REPLY, Event.REMEDIED): (State.NEEDS_TICKET, Action.BEGIN_AGAIN),
        (State.AWAITS_REPLY, Event.RENEWED): (State.NEEDS_TICKET, Action.BEGIN_AGAIN),
        (State.AWAITS_REPLY, Event.CANCEL): (State.FAILED, Action.ABANDON),
    }
)


def step(state: State, event: Event) -> tuple[State, Action]:
    """The next state and what to do; an illegal event is (``state``, NOTHING)."""
    return TRANSITIONS.get((state, event), (state, Action.NOTHING))
