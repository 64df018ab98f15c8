"""Gives pages back to the arena, a bounded number per turn of the reactor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy
from twisted.internet.interfaces import IReactorTime

from criu_relay.flow.zeros import PAGE
from criu_relay.store.arena import LARGEST
from criu_relay.store.pages import PageIndex, Pages

PAGES_PER_TURN = LARGEST // PAGE
"""Those of the largest extent. A page that was found by its content, or that has no neighbours, costs about 4 us to
give back: under 5 ms a turn."""

TRIM_PER_TURN = LARGEST
"""PUNCH_HOLE takes about 1 ms for 4 MiB."""


class Reclaimer:
    """The queue of pages that somebody does not need any more.

    @ivar freed: called after each turn that gave something back.
    """

    def __init__(self, clock: IReactorTime, pages: Pages) -> None:
        self.freed: Callable[[], None] = lambda: None
        self._clock = clock
        self._pages = pages
        self._queue: deque[tuple[numpy.ndarray, PageIndex]] = deque()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """Bytes that are on their way back, unless somebody else has the same pages."""
        return sum(len(numbers) for numbers, _ in self._queue) * PAGE

    def reclaim(self, numbers: numpy.ndarray, index: PageIndex) -> None:
        """Take these; they can be found in C{index}."""
        if len(numbers):
            self._queue.append((numbers, index))
        self.schedule()

    def obtain(self, count: int) -> bool:
        """Reserve C{count} bytes of the budget, with what is on its way back as far as that takes."""
        while not self._pages.arena.reserve(count):
            if not self._queue:
                return False
            self._give_back()
        return True

    def schedule(self) -> None:
        """There is memory to give back, or to trim."""
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._queue:
            self._give_back()
        if self._pages.arena.trim(TRIM_PER_TURN) or self._queue:
            self.schedule()
        self.freed()

    def _give_back(self) -> None:
        numbers, index = self._queue.popleft()
        if len(numbers) > PAGES_PER_TURN:
            count, next_one = PAGES_PER_TURN, int(numbers[PAGES_PER_TURN])
            if next_one - int(numbers[0]) == PAGES_PER_TURN:
                # They lie together: up to where an extent ends, as less than a whole one is split, and merged again.
                count -= next_one % PAGES_PER_TURN
            self._queue.appendleft((numbers[count:], index))
            numbers = numbers[:count]
        self._pages.drop(numbers, index)
