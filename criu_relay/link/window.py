"""The memory for what the proxy keeps of images until the cache has taken it, and who waits for room in it."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from criu_relay.interfaces import IArena, IExtent
from criu_relay.link.chunk import Chunk
from criu_relay.link.waiting import Waiting


class Window:
    """The bytes that were read from CRIU and not yet acknowledged, within a limit.

    @ivar limit: bytes; a full window pauses its producers.
    @ivar leave_out_zeros: pages of zeros are not sent.
    @ivar clock: of the reactor's turns.
    @ivar queued: bytes that wait to be sent.
    @ivar waiting: producers that wait for room.
    """

    def __init__(self, arena: IArena, clock: IReactorTime, leave_out_zeros: bool = True) -> None:
        self.leave_out_zeros = leave_out_zeros
        self.clock = clock
        self._arena = arena
        self.waiting = Waiting(clock, lambda: self.limit - self.used)
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

    def release(self, chunk: Chunk, shared: bool = False) -> None:
        """A chunk that is not needed any more; C{shared}: the kernel may still refer to its pages."""
        self._arena.free(chunk.extent, shared)
        self.waiting.resume()
