"""Whether the peer is there: both ends say something in each beat, and one that is silent for some beats is gone.

A black hole acknowledges nothing and ends nothing, and the kernel of a process that hangs acknowledges everything: only
the peer itself can tell that it lives. A slow peer is not a dead one. While it takes what we send, bit by bit, its own
pings come behind nothing; and any byte of it counts, not only a pong, which waits behind all that we have sent before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from criu_relay.wire.link_pb2 import Frame

BEAT_SECONDS = 2.4
"""A ping is sent as often as this."""

SILENT_BEATS = 3
"""Whole beats without a byte of the peer: it is found to be gone within 4 beats, which is less than 10 s."""

SILENT_SECONDS = BEAT_SECONDS * SILENT_BEATS
"""For people."""


class Liveness:
    """Of one connection, from its hello on.

    @ivar round_trip: seconds that the last answered ping took; None: none was.
    """

    def __init__(self, clock: IReactorTime, send: Callable[[Frame], None], gone: Callable[[], None]) -> None:
        """@param gone: called once, when the peer is."""
        self._clock = clock
        self._send = send
        self._gone = gone
        self._heard = False
        self._silent = 0
        self._nonce = 0
        self._asked_at = 0.0
        self._call: Any = None
        self.round_trip: float | None = None

    def start(self) -> None:
        """The hellos are exchanged."""
        self._ask()

    def stop(self) -> None:
        """The connection is over."""
        if self._call is not None and self._call.active():
            self._call.cancel()

    def heard(self) -> None:
        """Something of the peer has come."""
        self._heard = True

    def answered(self, nonce: int) -> None:
        """A pong; one of an earlier beat than the last says nothing of the round trip."""
        if nonce == self._nonce:
            self.round_trip = self._clock.seconds() - self._asked_at

    def _ask(self) -> None:
        self._nonce += 1
        self._asked_at = self._clock.seconds()
        # One beat after the other, not by the time of day: when it was us that stood still, what came meanwhile is
        # read before the next.
        self._call = self._clock.callLater(BEAT_SECONDS, self._beat)
        self._send(Frame(ping={"nonce": self._nonce}))

    def _beat(self) -> None:
        self._silent = 0 if self._heard else self._silent + 1
        self._heard = False
        if self._silent >= SILENT_BEATS:
            self._gone()
        else:
            self._ask()
