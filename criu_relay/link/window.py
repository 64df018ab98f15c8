"""The memory for what the proxy keeps of images until the cache has taken it, and who waits for room in it."""

from __future__ import annotations

from collections import deque

from twisted.internet.interfaces import IPushProducer

from criu_relay.interfaces import IArena, IExtent
from criu_relay.link.chunk import Chunk


class Window:
    """The bytes that were read from CRIU and not yet acknowledged, within a limit.

    @ivar limit: bytes; a full window pauses its producers.
    @ivar leave_out_zeros: pages of zeros are not sent.
    @ivar queued: bytes that wait to be sent.
    """

    def __init__(self, arena: IArena, leave_out_zeros: bool = True) -> None:
        self.leave_out_zeros = leave_out_zeros
        self._arena = arena
        self._paused: deque[IPushProducer] = deque()
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

    def release(self, chunk: Chunk, shared: bool = False) -> None:
        """A chunk that is not needed any more; C{shared}: the kernel may still refer to its pages."""
        self._arena.free(chunk.extent, shared)
        self._resume()

    def _resume(self) -> None:
        if self._paused and self.used < self.limit:
            waiting, self._paused = self._paused, deque()
            for producer in waiting:
                producer.resumeProducing()
