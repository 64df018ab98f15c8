"""What the victims share: a loop that counts, and answers when a file asks. No imports of ours: they run alone.

In the working directory of a victim:
    count       a decimal number of 19 digits, rewritten in place (its size must not change: criu checks it)
    ask         created by the test; removed when the answer is there
    answer      JSON, renamed into place
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

TICK = 0.005
"""Seconds between two counts."""


class Counter:
    """The count in its file."""

    def __init__(self) -> None:
        self.value = 0
        self._file = os.open("count", os.O_RDWR | os.O_CREAT, 0o600)

    def tick(self) -> None:
        """Count."""
        self.value += 1
        os.pwrite(self._file, b"%019d\n" % self.value, 0)


def answer(report: Callable[[], dict[str, Any]]) -> None:
    """When asked, answer with `report()` and the pid."""
    if not os.path.exists("ask"):
        return
    os.unlink("ask")
    with open("answer.new", "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), **report()}, file)
    os.rename("answer.new", "answer")


def loop(report: Callable[[], dict[str, Any]], work: Callable[[], None] = lambda: None) -> None:
    """Count, work and answer for ever."""
    counter = Counter()
    while True:
        counter.tick()
        work()
        answer(lambda: {"count": counter.value, **report()})
        time.sleep(TICK)
