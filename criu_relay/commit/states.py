"""The states of a migration at the proxy; docs/states.md draws them."""

from __future__ import annotations

import enum

from criu_relay.machine import Table

LIVES_HINT = "criu's dump.log says why; when it was to run on (--leave-running), attach --copy"


class State(enum.Enum):
    """Where a migration is."""

    OPEN = "open"
    SEALING = "sealing"
    SEALED = "sealed"
    HELD = "held"
    PERMITTED = "permitted"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ABORTED = "aborted"
    LOST = "lost"


class Event(enum.Enum):
    """What happens to it."""

    SEAL = "seal"
    QUIET = "quiet"
    VERIFIED = "verified"
    PERMIT = "permit"
    COMMIT = "commit"
    CONFIRMED = "confirmed"
    UNKNOWN = "unknown to the cache"
    ABORT = "abort"
    LIVES = "its task lives on"


TABLE: Table[State, Event] = {
    (State.OPEN, Event.SEAL): State.SEALING,
    (State.SEALING, Event.QUIET): State.SEALED,
    (State.SEALED, Event.VERIFIED): State.HELD,
    (State.HELD, Event.PERMIT): State.PERMITTED,
    (State.HELD, Event.COMMIT): State.COMMITTING,
    (State.PERMITTED, Event.COMMIT): State.COMMITTING,
    (State.COMMITTING, Event.CONFIRMED): State.COMMITTED,
    (State.COMMITTING, Event.UNKNOWN): State.LOST,
    (State.COMMITTED, Event.UNKNOWN): State.LOST,
    (State.OPEN, Event.ABORT): State.ABORTED,
    (State.SEALING, Event.ABORT): State.ABORTED,
    (State.SEALED, Event.ABORT): State.ABORTED,
    (State.HELD, Event.ABORT): State.ABORTED,
    # Once criu may kill the task, only what became of it counts: no person, no cache and no link.
    (State.PERMITTED, Event.LIVES): State.ABORTED,
}

WRITING = (State.OPEN, State.SEALING)
DECIDED = (State.COMMITTED, State.ABORTED, State.LOST)
