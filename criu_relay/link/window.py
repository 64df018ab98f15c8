"""What the proxy keeps of images until the cache has taken it: extents, in the order in which they were sent."""

from __future__ import annotations

from collections import deque

from twisted.internet.interfaces import IPushProducer

from criu_relay.interfaces import IArena, IExtent
from criu_relay.link.chunk import Part


class Window:
    """The bytes that were read from CRIU and not yet acknowledged, within a limit.

    @ivar limit: bytes; a full window pauses its producers.
    @ivar leave_out_zeros: pages of zeros are not sent.
    @ivar queued: bytes that wait to be sent.
    @ivar sent: bytes of images handed to the link since its hello, zeros and all.
    """

    def __init__(self, arena: IArena, leave_out_zeros: bool = True) -> None:
        self.leave_out_zeros = leave_out_zeros
        self._arena = arena
        self._unacknowledged: deque[tuple[int, IExtent | None]] = deque()
        self._paused: deque[IPushProducer] = deque()
        self.sent = 0
        self.queued = 0

    @property
    def used(self) -> int:
        """Bytes of memory it takes."""
        return int(self._arena.used)

    @property
    def limit(self) -> int:
        """Bytes it may take."""
        return int(self._arena.limit)

    @property
    def recycled(self) -> int:
        """Bytes of memory that wait to be used again."""
        return int(self._arena.recycled)

    def allocate(self, size: int) -> IExtent | None:
        """An extent for the next bytes; None: the window is full."""
        return self._arena.allocate(size)

    def force(self, size: int) -> IExtent:
        """An extent for bytes that are here already; at most twice the limit."""
        return self._arena.force(size)

    def wait(self, producer: IPushProducer) -> None:
        """Resume this producer when there is room."""
        if producer not in self._paused:
            self._paused.append(producer)

    def forget(self, producer: IPushProducer) -> None:
        """It does not wait any more."""
        if producer in self._paused:
            self._paused.remove(producer)

    def scheduled(self, part: Part) -> None:
        """The link sends this one now."""
        self.sent += part.length
        self._unacknowledged.append((self.sent, part.chunk.extent if part.last else None))

    def passed(self, count: int) -> None:
        """The link sends C{count} bytes that are not kept."""
        self.sent += count

    def acknowledged(self, count: int) -> bool:
        """The cache has taken C{count} bytes of images since the hello.

        @return: False: it cannot have, so much was not sent.
        """
        if count > self.sent:
            return False
        while self._unacknowledged and self._unacknowledged[0][0] <= count:
            self._free(self._unacknowledged.popleft()[1])
        self._resume()
        return True

    def release(self, extent: IExtent, sent: bool = False) -> None:
        """An extent whose rest is not going to be sent; C{sent}: some of it was."""
        if sent:
            self._unacknowledged.append((self.sent, extent))
        else:
            self._free(extent)
        self._resume()

    def link_lost(self) -> None:
        """What was sent will never be acknowledged, and the kernel may still send it."""
        while self._unacknowledged:
            self._free(self._unacknowledged.popleft()[1], True)
        self.sent = 0
        self._resume()

    def _free(self, extent: IExtent | None, shared: bool = False) -> None:
        if extent is not None:
            self._arena.free(extent, shared)

    def _resume(self) -> None:
        if self._paused and self.used < self.limit:
            waiting, self._paused = self._paused, deque()
            for producer in waiting:
                producer.resumeProducing()
