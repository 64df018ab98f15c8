"""Waiting for a condition, with a limit."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

INTERVAL = 0.01
"""Seconds between two looks: short beside everything that is waited for, and next to no load."""


class Unfulfilled(AssertionError):
    """What was waited for did not come true in time."""


def until(condition: Callable[[], T], seconds: float, what: str, detail: Callable[[], str] = lambda: "") -> T:
    """Look at `condition` until it is true.

    @param seconds: the longest wait; the last look comes after it.
    @param what: said when it does not come true, such as "the proxy listens".
    @param detail: asked for more to say then.
    @return: what `condition` returned.
    @raise Unfulfilled: it was not true in time.
    """
    end = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= end
        value = condition()
        if value:
            return value
        if late:
            raise Unfulfilled(f"not within {seconds:g} s: {what} {detail()}".rstrip())
        time.sleep(INTERVAL)


def readable(descriptor: Any, patience: float = 0.0) -> bool:
    """Whether a descriptor can be read within so many seconds; select(2) knows none above 1023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(patience * 1000))
