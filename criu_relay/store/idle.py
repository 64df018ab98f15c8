"""What can wait until no image comes or is read: pages are compared, and free memory gets its pages.

The next migration then writes into memory at a fourth of the cost, and a process that stands still waits for neither.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime

from criu_relay.store.memory import Memory

BYTES_PER_TURN = 1 << 20
"""Touching so much takes 0.2 to 0.5 ms, comparing it about 1 ms."""

PAUSE_SECONDS = 0.001
"""Between two turns: whatever else there is to do comes first."""

LOOK_SECONDS = 0.5
"""How often it is looked whether there is something to do: while images move, or nothing was."""


class Idle(Service):
    """Works while no image comes or is read; pages are also compared meanwhile, when memory is short."""

    def __init__(self, clock: IReactorTime, memory: Memory) -> None:
        self._clock = clock
        self._memory = memory
        self._seen = 0
        self._call: Any = None

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._turn()

    def stopService(self) -> None:
        """End."""
        super().stopService()
        self._call.cancel()

    def _turn(self) -> None:
        more = self._work()
        self._call = self._clock.callLater(PAUSE_SECONDS if more else LOOK_SECONDS, self._turn)

    def _work(self) -> bool:
        """One turn's; whether there is more to do now."""
        memory = self._memory
        quiet, self._seen = self._seen == memory.moves, memory.moves
        if (quiet or memory.short) and memory.backlog.work(BYTES_PER_TURN):
            return True
        return quiet and memory.arena.warm(BYTES_PER_TURN)
