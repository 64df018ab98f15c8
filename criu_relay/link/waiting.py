"""Producers that wait for room, and how many go on at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime

from criu_relay.flow.pipes import DEFAULT_PIPE


class Waiting:
    """See the module. First come, first served: as many in a turn of the reactor as there is room for, if each of them
    has a pipe full. All of them at once would find out one after the other that there is none left; and the one that
    goes on may have nothing to write, so that the next turn takes the next of them, unless somebody was told meanwhile
    that there is too little room for him."""

    def __init__(self, clock: IReactorTime, room: Callable[[], int]) -> None:
        """@param room: bytes that there is room for now; 0 or less: none."""
        self._clock = clock
        self._room = room
        self._producers: OrderedDict[IPushProducer, None] = OrderedDict()
        self._next: IDelayedCall | None = None
        self._full = False

    def add(self, producer: IPushProducer) -> None:
        """There is too little room for this one: resume it when there is more."""
        self._producers.setdefault(producer)
        self._full = True

    def forget(self, producer: IPushProducer) -> None:
        """It does not wait any more."""
        self._producers.pop(producer, None)

    def resume(self) -> None:
        """There is more room."""
        self._full = False
        if self._producers and self._next is None:
            self._go_on()

    def _turn(self) -> None:
        self._next = None
        if not self._full:
            self._go_on()

    def _go_on(self) -> None:
        count = min(len(self._producers), -(-self._room() // DEFAULT_PIPE))
        for producer in [self._producers.popitem(last=False)[0] for _ in range(count)]:
            producer.resumeProducing()
        if self._producers and count > 0 and self._next is None:
            self._next = self._clock.callLater(0, self._turn)
