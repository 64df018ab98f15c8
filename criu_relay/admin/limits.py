"""Time limits of what the control API waits for."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from criu_relay.errors import TimedOut


def limited(pending: Deferred[Any], seconds: float | None, clock: Any, what: str) -> Deferred[Any]:
    """Give up after a time with L{TimedOut}."""

    def too_late(result: object, timeout: float) -> object:
        if isinstance(result, Failure) and result.check(CancelledError):
            raise TimedOut(f"{what} within {timeout:g} s", hint="give it more time, or look at criu-relay status")
        return result

    return pending if seconds is None else pending.addTimeout(seconds, clock, too_late)
