"""What every migration of a proxy uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorTime

from criu_relay.commit.records import Records
from criu_relay.errors import RelayError
from criu_relay.interfaces import Counters, IOutlet


@dataclass(frozen=True)
class Surroundings:
    """What every migration of a proxy uses.

    @ivar in_thread: runs a function that blocks, and fires with its result.
    @ivar cache: where the cache is, for records.
    @ivar idle: seconds after which an open migration without a client aborts.
    """

    reactor: IReactorFDSet
    clock: IReactorTime
    outlet: IOutlet
    records: Records
    counters: Counters
    in_thread: Callable[..., Deferred[Any]]
    cache: str
    idle: float

    def arrived(self, count: int) -> None:
        """CRIU wrote so many bytes."""
        self.counters.add("criu_bytes_in", count)


class Waiters:
    """Deferreds that wait for the same thing."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self) -> Deferred[None]:
        """One more; may be cancelled."""
        fired: Deferred[None] = Deferred(lambda _: self._waiting.remove(fired))
        self._waiting.append(fired)
        return fired

    def fire(self, error: RelayError | None = None) -> None:
        """It happened, or never will."""
        waiting, self._waiting = self._waiting, []
        for fired in waiting:
            if error is None:
                fired.callback(None)
            else:
                fired.errback(error)


class Later:
    """One call that is still to come, or none."""

    def __init__(self, clock: IReactorTime, function: Callable[[], None]) -> None:
        self._clock = clock
        self._function = function
        self._call: Any = None

    def set(self, seconds: float) -> None:
        """Call in so many seconds, and not when it was to be called before."""
        self.cancel()
        self._call = self._clock.callLater(seconds, self._function)

    def cancel(self) -> None:
        """Do not call."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
