"""What the proxy keeps of images until the cache has taken it: extents, in the order in which they were sent."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from twisted.internet.interfaces import IPushProducer

from criu_relay.interfaces import IArena, IExtent


@dataclass(eq=False)
class Chunk:
    """Bytes of one image in one extent: the payload of one frame.

    @ivar offset: of its first byte in the image.
    @ivar filled: bytes of the extent that are used.
    """

    extent: IExtent
    offset: int
    filled: int = 0


class Window:
    """The bytes that were read from CRIU and not yet acknowledged, within a limit.

    @ivar limit: bytes; a full window pauses its producers.
    @ivar sent: payload bytes handed to the link since its hello.
    """

    def __init__(self, arena: IArena) -> None:
        self._arena = arena
        self._unacknowledged: deque[tuple[int, Chunk]] = deque()
        self._paused: deque[IPushProducer] = deque()
        self.sent = 0

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

    def scheduled(self, chunk: Chunk) -> None:
        """The link sends this one now."""
        self.sent += chunk.filled
        self._unacknowledged.append((self.sent, chunk))

    def passed(self, count: int) -> None:
        """The link sends C{count} payload bytes that are not kept."""
        self.sent += count

    def acknowledged(self, count: int) -> bool:
        """The cache has taken C{count} payload bytes since the hello.

        @return: False: it cannot have, so much was not sent.
        """
        if count > self.sent:
            return False
        while self._unacknowledged and self._unacknowledged[0][0] <= count:
            self._arena.free(self._unacknowledged.popleft()[1].extent)
        self._resume()
        return True

    def release(self, chunk: Chunk, shared: bool = False) -> None:
        """A chunk that is not going to be sent; C{shared}: the kernel may still refer to its pages."""
        self._arena.free(chunk.extent, shared)
        self._resume()

    def link_lost(self) -> None:
        """What was sent will never be acknowledged, and the kernel may still send it."""
        while self._unacknowledged:
            self._arena.free(self._unacknowledged.popleft()[1].extent, True)
        self.sent = 0
        self._resume()

    def _resume(self) -> None:
        if self._paused and self.used < self.limit:
            waiting, self._paused = self._paused, deque()
            for producer in waiting:
                producer.resumeProducing()
