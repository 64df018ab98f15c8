"""The errors of criu_relay: each carries one line that says what happened and one that says what to do.

>>> str(NotFound("no namespace web", hint="criu-relay status lists them"))
'no namespace web'
"""

from __future__ import annotations

import enum


class Cause(enum.Enum):
    """Why a migration was given up, in classes that can be counted."""

    DUMP = "dump"  # CRIU's side: the dump failed, or ended without everything
    IDLE = "idle"  # nobody fed it
    LINK = "link"  # the connection was lost, or never there
    MEMORY = "memory"  # no room within the budget
    PEER = "peer"  # the other daemon gave it up
    PERSON = "person"  # somebody discarded it
    PROTOCOL = "protocol"  # a peer sent what does not fit
    STOPPED = "stopped"  # the daemon was stopped
    TIMEOUT = "timeout"  # the decision took too long
    OTHER = "other"


ABORTED = "namespace {name} is aborted after {bytes} bytes: {why}; it is of {who}: {todo}"
"""The one line that an aborted namespace leaves in the log of either daemon; C{migration}, its id, is there as well."""


class RelayError(Exception):
    """Base of every error that a user or a peer may get to see.

    @ivar reason: what happened, one line.
    @ivar hint: what to do about it, one line; may be empty.
    @ivar cause: what a migration that ends with it is counted under.
    @cvar status: the HTTP status code of the control API for this kind of error.
    """

    status = 500
    cause = Cause.OTHER

    def __init__(self, reason: str, hint: str = "", cause: Cause | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.cause = cause or self.cause

    @property
    def line(self) -> str:
        """What happened, and what to do."""
        return f"{self.reason}: {self.hint}" if self.hint else self.reason


class Invalid(RelayError):
    """A name, path, number or message that is not of the form it must have."""

    status = 400


class Forbidden(RelayError):
    """The caller may not do this."""

    status = 403


class NotFound(RelayError):
    """There is no such namespace, image or attachment."""

    status = 404


class Conflict(RelayError):
    """It cannot be done in the state things are in."""

    status = 409


class Aborted(RelayError):
    """The migration ended without a commit; the reason says why."""

    status = 409


class TimedOut(RelayError):
    """The time that the caller allowed is over."""

    status = 504
    cause = Cause.TIMEOUT


class OutOfMemory(RelayError):
    """The budget for images does not allow what was asked."""

    status = 507
    cause = Cause.MEMORY


class LinkLost(RelayError):
    """The connection between proxy and cache is gone."""

    status = 502
    cause = Cause.LINK


class LinkEnded(LinkLost):
    """The peer ended the link on purpose: what was under way cannot go on over another one."""


class ProtocolError(RelayError):
    """A peer sent what the protocol does not allow; the reason names the field."""

    status = 400
    cause = Cause.PROTOCOL
