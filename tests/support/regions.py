"""Image memory that tests leave to the garbage collector.

A daemon has its memory for as long as it lives, so that a L{Region} closes nothing by itself: in a process that runs
thousands of tests the descriptors, and the pages that they keep, would pile up.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from criu_relay.store.arena import Region

MANY = 64
"""So many more regions than there were are looked through for those that nobody has any more."""


class Left:
    """The regions that nobody has closed."""

    def __init__(self) -> None:
        self._open: weakref.WeakKeyDictionary[Region, weakref.finalize[[int], Region]] = weakref.WeakKeyDictionary()
        self._most = MANY

    def made(self, region: Region) -> None:
        """It is closed when nobody has it any more."""
        self._open[region] = weakref.finalize(region, os.close, region.fd)

    def closed(self, region: Region) -> None:
        """It was closed in order."""
        self._open.pop(region).detach()

    def look(self) -> None:
        """Have the collector find them when there are many."""
        if len(self._open) > self._most:
            gc.collect()
            self._most = len(self._open) + MANY


@contextmanager
def swept() -> Iterator[Left]:
    """Within this, the regions that nobody has any more are closed."""
    left = Left()
    init, close = Region.__init__, Region.close

    def made(region: Region, first: int, size: int) -> None:
        init(region, first, size)
        left.made(region)

    def closed(region: Region) -> None:
        close(region)
        left.closed(region)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Region, "__init__", made)
        patch.setattr(Region, "close", closed)
        yield left
