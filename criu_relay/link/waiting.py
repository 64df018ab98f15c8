"""Producers that wait for room, and how many go on at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime

from criu_relay.flow.pipes import DEFAULT_PIPE


class Waiting:
    """See the module. First come, first served: as many in a turn of the reactor as there is room for, if each of them
    has a pipe full. All of them at once would find out one after the other that there is none left; and the one that
    goes on may have nothing to write, so that the next turn takes the next of them."""

    def __init__(self, clock: IReactorTime, room: Callable[[], int]) -> None:
        """@param room: bytes that there is room for now; 0 or less: none."""
        self._clock = clock
        self._room = room
        self._producers: deque[IPushProducer] = deque()
        self._next: IDelayedCall | None = None

    def add(self, producer: IPushProducer) -> None:
        """Resume this one when there is room."""
        if producer not in self._producers:
            self._producers.append(producer)

    def forget(self, producer: IPushProducer) -> None:
        """It does not wait any more."""
        if producer in self._producers:
            self._producers.remove(producer)

    def resume(self) -> None:
        """There may be room."""
        if self._producers and self._next is None:
            self._go_on()

    def _go_on(self) -> None:
        self._next = None
        count = min(len(self._producers), -(-self._room() // DEFAULT_PIPE))
        for producer in [self._producers.popleft() for _ in range(count)]:
            producer.resumeProducing()
        if self._producers and count > 0 and self._next is None:
            self._next = self._clock.callLater(0, self._go_on)
