"""Gives extents back to the arena, a bounded number per turn of the reactor."""

from __future__ import annotations

from collections import deque

from twisted.internet.interfaces import IReactorTime

from criu_relay.store.arena import Arena, Extent

EXTENTS_PER_TURN = 64
"""Freeing a small extent that a pipe may refer to costs a PUNCH_HOLE of about 6 us: under 0.5 ms a turn."""

TRIM_PER_TURN = 2 << 20
"""PUNCH_HOLE takes about 0.5 ms per 2 MiB."""


class Reclaimer:
    """The queue of extents that nobody needs any more."""

    def __init__(self, clock: IReactorTime, arena: Arena) -> None:
        self._clock = clock
        self._arena = arena
        self._queue: deque[tuple[Extent, bool]] = deque()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """Bytes that are on their way back."""
        return sum(extent.size for extent, _ in self._queue)

    def reclaim(self, extents: list[Extent], shared: bool) -> None:
        """Take these; C{shared} as in L{criu_relay.interfaces.IArena.free}."""
        self._queue.extend((extent, shared) for extent in extents)
        self._schedule()

    def drain(self) -> None:
        """Give everything back now: memory is needed at once."""
        while self._queue:
            self._arena.free(*self._queue.popleft())

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(min(EXTENTS_PER_TURN, len(self._queue))):
            self._arena.free(*self._queue.popleft())
        if self._arena.trim(TRIM_PER_TURN) or self._queue:
            self._schedule()
