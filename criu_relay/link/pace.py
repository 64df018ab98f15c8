"""How fast image data may be sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

BURST_SECONDS = 0.05
"""What was not sent of so much time may be sent at once: about the time that a busy reactor is late."""


class Pace:
    """Lets a frame pass whenever the ones before it are paid for; a frame is never cut, so the next waits longer.

    @ivar rate: bytes per second; None: as fast as it goes.
    """

    def __init__(self, clock: IReactorTime, wake: Callable[[], None], rate: int | None = None) -> None:
        """@param wake: called when something may be sent again."""
        self.rate = rate
        self._clock = clock
        self._wake = wake
        self._paid = 0.0
        self._call: Any = None

    def set(self, rate: int | None) -> None:
        """From now on."""
        self.rate = rate
        self._paid = min(self._paid, self._clock.seconds())
        self._woken()

    def open(self) -> bool:
        """Whether a frame may be sent now; when not, C{wake} is called as soon as it may."""
        if self.rate is None:
            return True
        ahead = self._paid - self._clock.seconds()
        if ahead <= 0:
            return True
        if self._call is None:
            self._call = self._clock.callLater(ahead, self._woken)
        return False

    def sent(self, size: int) -> None:
        """A frame of so many bytes was sent."""
        if self.rate is not None:
            self._paid = max(self._paid, self._clock.seconds() - BURST_SECONDS) + size / self.rate

    def _woken(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._wake()
