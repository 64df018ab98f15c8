"""A reactor of one's own: real descriptors, turned by hand, with a clock that stands still."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.pollreactor import PollReactor
from twisted.internet.task import Clock

PATIENCE = 5.0
"""Real seconds until a condition that must come true is given up."""


class Loop:
    """An IReactorFDSet over poll(2), and an IReactorTime that moves only by L{advance}."""

    def __init__(self) -> None:
        self._poll = PollReactor()
        self.clock = Clock()
        self.addReader = self._poll.addReader
        self.addWriter = self._poll.addWriter
        self.removeReader = self._poll.removeReader
        self.removeWriter = self._poll.removeWriter
        self.seconds = self.clock.seconds
        self._own = set(self._poll.getReaders())

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the next turn, or by the clock that stands still."""
        if not delay:
            return self._poll.callLater(0, function, *args, **kwargs)
        return self.clock.callLater(delay, function, *args, **kwargs)

    def getDelayedCalls(self) -> list[Any]:
        """What is to be called later."""
        return [*self.clock.getDelayedCalls(), *self._poll.getDelayedCalls()]

    def turn(self, seconds: float = 0.0) -> None:
        """One turn: what is due, then what is readable or writable (waiting for it at most so long)."""
        self._poll.runUntilCurrent()
        self._poll.doIteration(seconds)

    def turns(self, count: int = 20) -> None:
        """Let whatever is under way come to rest."""
        for _ in range(count):
            self.turn()

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Turn until the condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"never came: {what}"
            self.turn(0.001)

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)

    @property
    def watched(self) -> set[Any]:
        """What is registered for reading or writing."""
        return (set(self._poll.getReaders()) | set(self._poll.getWriters())) - self._own

    def close(self) -> None:
        """Close its own descriptors."""
        self._poll.removeAll()
        for reader in self._own:
            reader.connectionLost(None)
