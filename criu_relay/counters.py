"""What a daemon counts: events, times and the last failures. `status`, `/metrics` and the page show it."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from criu_relay.errors import Cause

FAILURES = 50
"""Failures that are remembered: what a person reads through."""

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the classes of a time, in seconds: a task notices a freeze of milliseconds; 120 is where the action
script gives up (L{criu_relay.admin.action.TIMEOUT})."""


@dataclass(frozen=True)
class Failed:
    """Something that went wrong.

    @ivar at: when, in seconds since 1970.
    @ivar what: such as "namespace web" or "link".
    """

    at: float
    what: str
    cause: Cause
    reason: str


@dataclass
class Times:
    """How often something took how long: a histogram.

    @ivar counts: of the times up to each of L{BOUNDS}; the last is of the longer ones.
    @ivar total: seconds, all together.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass
class Counters:
    """See the module.

    @ivar values: counts that only grow, by name.
    @ivar times: histograms by name.
    @ivar failures: the newest last.
    """

    values: dict[str, int] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    failures: deque[Failed] = field(default_factory=lambda: deque(maxlen=FAILURES))
    now: Callable[[], float] = time.time

    def add(self, name: str, count: int = 1) -> None:
        """Add `count` to the counter `name`."""
        self.values[name] = self.values.get(name, 0) + count

    def took(self, name: str, seconds: float) -> None:
        """Something took so long."""
        self.times.setdefault(name, Times()).add(seconds)

    def failed(self, what: str, cause: Cause, reason: str) -> None:
        """Remember a failure."""
        self.failures.append(Failed(self.now(), what, cause, reason))

    def aborted(self, namespace: str, cause: Cause, reason: str) -> None:
        """Count and remember the abort of a migration."""
        self.add(f"aborts_{cause.value}")
        self.failed(f"namespace {namespace}", cause, reason)
