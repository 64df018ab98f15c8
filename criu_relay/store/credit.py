"""How much each open namespace may send: nobody gets more than the budget has room for, and who waits stalls nobody.

Credit is reserved memory. The oldest namespace gets what there is first, so that it can end; when nothing moves any
more, the youngest of those that wait is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from criu_relay.errors import Conflict
from criu_relay.flow.zeros import PAGE
from criu_relay.store.memory import Memory
from criu_relay.store.table import ENTRY

WINDOW = 16 << 20
"""Bytes that a namespace may send ahead of what was taken, when there is memory: 10 Gbit/s at 10 ms."""

FIRST = 1 << 20
"""The same before it has sent anything: one that waits for CRIU keeps little from others."""

PART = 4
"""All open namespaces together are given credit for one in so many bytes of the budget at a time."""

LEAST = PAGE + ENTRY
"""What one page costs: with less credit a namespace waits."""

STALL_SECONDS = 2.0
"""Who waits is looked at this often; when nothing has moved in between, somebody is given up."""


@dataclass
class Credit:
    """What one namespace may send.

    @ivar granted: bytes of memory in all, since it began.
    @ivar left: bytes that are reserved for what comes.
    """

    granted: int = 0
    left: int = 0

    @property
    def window(self) -> int:
        """Bytes that it may be ahead."""
        return WINDOW if self.left < self.granted else FIRST


class Credits:
    """See the module; the namespaces are known by their migrations.

    @ivar granted: called with a migration and what it was granted in all.
    @ivar scarce: called when somebody waits for memory.
    @ivar given_up: called with the migration that is given up.
    """

    def __init__(self, clock: IReactorTime, memory: Memory) -> None:
        self.granted: Callable[[bytes, int], None] = lambda migration, total: None
        self.scarce: Callable[[], None] = lambda: None
        self.given_up: Callable[[bytes], None] = lambda migration: None
        self._clock = clock
        self._memory = memory
        self._arena = memory.arena
        self._open: dict[bytes, Credit] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> list[bytes]:
        """Those that cannot send anything, oldest first."""
        return [migration for migration, credit in self._open.items() if credit.left < LEAST]

    def begin(self, migration: bytes) -> None:
        """It sends within credit from now on; when it does already (its link was made again) it is told what it has."""
        known = self._open.get(migration)
        if known is not None:
            self.granted(migration, known.granted)
        self._open.setdefault(migration, Credit())
        self.share()

    def end(self, migration: bytes) -> None:
        """It sends nothing more."""
        credit = self._open.pop(migration, None)
        if credit is not None:
            self._return(credit)
            self.share()

    def spend(self, migration: bytes, cost: int) -> None:
        """It sends something that costs so much. That much is reserved, for the caller to use.

        @raise Conflict: it has not so much credit.
        """
        credit = self._open.get(migration)
        if credit is None or cost > credit.left:
            raise Conflict(f"more was sent than the cache has room for: {cost} bytes of memory")
        credit.left -= cost
        self._memory.stirred = True
        if credit.left < self._window(credit) // 2:
            self.share()

    def share(self) -> None:
        """Grant what there is, oldest first."""
        for migration, credit in list(self._open.items()):
            window = self._window(credit)
            if credit.left > window // 2:
                continue
            more = min(window - credit.left, self._memory.spare)
            if more < LEAST:
                break
            self._arena.reserve(more)
            credit.left += more
            credit.granted += more
            self._memory.stirred = True
            self.granted(migration, credit.granted)
        if self.waiting:
            self._watch()
            self.scarce()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _window(self, credit: Credit) -> int:
        return max(LEAST, min(credit.window, self._arena.limit // (PART * len(self._open))))

    def _return(self, credit: Credit) -> None:
        self._arena.unreserve(credit.left)

    def _watch(self) -> None:
        if self._timer is None:
            self._memory.stirred = False
            self._timer = self._clock.callLater(STALL_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        waiting = self.waiting
        if not waiting:
            return
        if not self._memory.stirred:
            self.given_up(waiting[-1])
        if self.waiting:
            self._watch()
