"""What a migration may send: the memory that the cache has reserved for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from criu_relay.errors import ProtocolError
from criu_relay.link.waiting import Waiting
from criu_relay.wire import link as wire

if TYPE_CHECKING:
    from criu_relay.link.images import QueuedImage
    from criu_relay.link.window import Window

AHEAD = wire.MAX_PAYLOAD
"""Bytes that every migration may keep in the window beyond its credit: enough to send at once when there is more. All
together may keep as much as half of the window, and leave the rest to those that have credit."""

UNSENT = 32 << 20
"""Bytes that a migration may have in the window and not sent, credit or not: with the dump's last byte read, no more is
left to go. Enough for a fast link while the reactor does something else."""


class SendCredit:
    """See the module. Costs are bytes of the cache's memory.

    @ivar left: what may be sent.
    @ivar queued: bytes in the window that are not sent yet.
    @ivar waiting: producers that wait until more may be queued.
    """

    def __init__(self, window: Window, ready: Callable[[QueuedImage], None]) -> None:
        """@param ready: puts an image on the scheduler's round again."""
        self.left = 0
        self.queued = 0
        self._window = window
        self._granted = 0
        self._ready = ready
        self._images: deque[QueuedImage] = deque()
        self.waiting = Waiting(window.clock, lambda: self.room)

    @property
    def room(self) -> int:
        """Bytes that may be read; 0 or less: none before something is sent."""
        most = UNSENT
        if self._window.queued >= self._window.limit // 2:
            most = min(most, AHEAD + self.left)
        return most - self.queued

    def granted(self, total: int) -> None:
        """The cache has granted so much in all.

        @raise ProtocolError: that is less than before.
        """
        if total < self._granted:
            raise ProtocolError(f"credit.bytes is {total}, it was {self._granted}")
        self.left += total - self._granted
        self._granted = total
        images, self._images = self._images, deque()
        for image in images:
            self._ready(image)
        self.waiting.resume()

    def spend(self, cost: int) -> None:
        """Something is sent."""
        self.left -= cost

    def queue(self, count: int) -> None:
        """So many bytes more of the window wait to be sent."""
        self.queued += count
        self._window.queued += count

    def sent(self, count: int) -> None:
        """So many do not wait any more."""
        self.queue(-count)
        self.waiting.resume()

    def park(self, image: QueuedImage) -> None:
        """It goes on when there is more credit."""
        self._images.append(image)
