"""The errors of criu_relay: each carries one line that says what happened and one that says what to do.

>>> str(NotFound("no namespace web", hint="criu-relay status lists them"))
'no namespace web'
"""

from __future__ import annotations


class RelayError(Exception):
    """Base of every error that a user or a peer may get to see.

    @ivar reason: what happened, one line.
    @ivar hint: what to do about it, one line; may be empty.
    @cvar status: the HTTP status code of the control API for this kind of error.
    """

    status = 500

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


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


class OutOfMemory(RelayError):
    """The budget for images does not allow what was asked."""

    status = 507


class LinkLost(RelayError):
    """The connection between proxy and cache is gone."""

    status = 502


class LinkEnded(LinkLost):
    """The peer ended the link on purpose: what was under way cannot go on over another one."""


class ProtocolError(RelayError):
    """A peer sent what the protocol does not allow; the reason names the field."""

    status = 400
