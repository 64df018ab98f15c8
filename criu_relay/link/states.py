"""The states of a connection of the link; docs/states.md."""

from __future__ import annotations

import enum

from criu_relay.machine import Table


class State(enum.Enum):
    """Where a connection is."""

    SECURING = "securing"
    GREETING = "greeting"
    UP = "up"
    CLOSING = "closing"
    CLOSED = "closed"


class Event(enum.Enum):
    """What happens to a connection."""

    SECURED = "secured"
    HELLO = "hello"
    FAIL = "fail"
    BYE = "bye"
    LOST = "lost"


TABLE: Table[State, Event] = {
    (State.SECURING, Event.SECURED): State.GREETING,
    (State.SECURING, Event.LOST): State.CLOSED,
    (State.GREETING, Event.HELLO): State.UP,
    (State.GREETING, Event.FAIL): State.CLOSING,
    (State.GREETING, Event.BYE): State.CLOSING,
    (State.GREETING, Event.LOST): State.CLOSED,
    (State.UP, Event.FAIL): State.CLOSING,
    (State.UP, Event.BYE): State.CLOSING,
    (State.UP, Event.LOST): State.CLOSED,
    (State.CLOSING, Event.LOST): State.CLOSED,
}
