"""How much moved lately: a sample a second of what came in and what went out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise

from criu_relay.admin.metrics import HOPS_OF

SAMPLES = 180
"""Seconds that the plot shows: the last migrations, and how the one that runs began."""


class History:
    """The bytes that a daemon has moved, over the last L{SAMPLES} seconds."""

    def __init__(self, role: str) -> None:
        """@param role: "proxy" or "cache"."""
        self._counters = HOPS_OF[role]
        self._samples: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=SAMPLES + 1)

    def sample(self, now: float, counters: Mapping[str, int]) -> None:
        """Take one.

        @param now: seconds, of any clock that only goes forward.
        """
        self._samples.append((now, tuple(counters.get(name, 0) for name in self._counters)))

    def rates(self) -> tuple[list[float], list[float]]:
        """Bytes per second between the samples, in and out, the oldest first."""
        steps = [
            (after - before, new, old) for (before, old), (after, new) in pairwise(self._samples) if after > before
        ]
        received, sent = ([(new[way] - old[way]) / span for span, new, old in steps] for way in (0, 1))
        return received, sent
