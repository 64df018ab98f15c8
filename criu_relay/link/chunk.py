"""Bytes of one image in one extent of the window, with pages of zeros left out, and how they become frames."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy

from criu_relay.flow.frames import MemfdRange
from criu_relay.flow.zeros import rows, zero_rows, zeros_unlikely
from criu_relay.interfaces import IExtent
from criu_relay.wire import link as wire

if TYPE_CHECKING:
    from criu_relay.link.sent import Sent

RUNS_PER_LOOK = wire.MAX_PAYLOAD // wire.PAGE + 2
"""Runs that looking at an extent for zeros can add."""

Run = tuple[int, bool]
"""Bytes of an image, and whether they are zeros that are left out."""


@dataclass(frozen=True)
class Part:
    """The payload of one frame, and what is left out of it.

    @ivar chunk: what it is of; `last`: nothing follows of that.
    @ivar offset: of its first byte in the image.
    @ivar start: of its payload in the extent.
    """

    chunk: Chunk
    last: bool
    offset: int
    start: int
    runs: tuple[Run, ...]

    @property
    def payload(self) -> int:
        """Bytes of the extent."""
        return sum(count for count, zeros in self.runs if not zeros)

    @property
    def length(self) -> int:
        """Bytes of the image."""
        return sum(count for count, _ in self.runs)

    @property
    def cost(self) -> int:
        """Bytes of the cache's memory."""
        return wire.extent_cost(self.offset, self.payload, self.length - self.payload)

    @property
    def told(self) -> list[int]:
        """The runs as an extent tells of them: bytes of payload and of zeros in turn; empty when there are no zeros."""
        if self.payload == self.length:
            return []
        return ([0] if self.runs[0][1] else []) + [count for count, _ in self.runs]

    @property
    def range(self) -> MemfdRange | None:
        """Where the payload lies; None: there is none."""
        extent, count = self.chunk.extent, self.payload
        view = extent.view[self.start : self.start + count]
        return MemfdRange(extent.fd, extent.offset + self.start, view) if count else None


@dataclass(eq=False)
class Chunk:
    """See the module.

    @ivar offset: in the image, of the first byte that is not sent.
    @ivar filled: bytes of the extent that are used.
    @ivar start: where in the extent what is not sent begins.
    @ivar sent: what is kept of the part that was sent last; the memory goes back with the last one of all.
    """

    extent: IExtent
    offset: int
    filled: int = 0
    start: int = 0
    sent: Sent | None = None
    _runs: deque[Run] = field(default_factory=deque)
    _looked: int = 0

    @property
    def length(self) -> int:
        """Bytes of the image that are not sent."""
        return sum(count for count, _ in self._runs)

    @property
    def room(self) -> int:
        """Bytes that can still be written to it."""
        full = len(self._runs) + RUNS_PER_LOOK > wire.MAX_RUNS or self.length + wire.MAX_PAYLOAD > wire.MAX_RANGE
        return 0 if full else int(self.extent.size) - self.filled

    def add(self, count: int) -> None:
        """So many more bytes were written behind what is filled."""
        self.filled += count
        self._extend(count, False)

    def squeeze(self) -> int:
        """Leave out pages of zeros: what follows them moves up. How many bytes that were."""
        unseen = self.filled - self._looked
        begin = self._looked + -(self.offset + self.length - unseen) % wire.PAGE
        count = (self.filled - begin) // wire.PAGE
        if count < 1:
            return 0
        view, end = self.extent.view, begin + count * wire.PAGE
        if zeros_unlikely(view[begin:end]):
            self._looked = end
            return 0
        empty = zero_rows(rows(view[begin:end]))
        kept = count - int(numpy.count_nonzero(empty))
        self._looked = begin + kept * wire.PAGE
        if kept == count:
            return 0
        left = self.filled - end
        self._extend(begin - self.filled, False)
        edges = [0, *(numpy.flatnonzero(numpy.diff(empty)) + 1).tolist(), count]
        target = begin
        for first, last in itertools.pairwise(edges):
            length, zeros = (last - first) * wire.PAGE, bool(empty[first])
            self._extend(length, zeros)
            if not zeros:
                source = begin + first * wire.PAGE
                view[target : target + length] = view[source : source + length]
                target += length
        view[target : target + left] = view[end : self.filled]
        self._extend(left, False)
        self.filled = target + left
        return (count - kept) * wire.PAGE

    def take(self, credit: int) -> Part | None:
        """What is not sent yet, as far as that costs no more than `credit`; None: not even a page does."""
        taken: list[Run] = []
        at = self.offset
        while self._runs:
            count, zeros = self._runs.popleft()
            pages = credit // (wire.ENTRY if zeros else wire.ENTRY + wire.PAGE)
            most = min(count, -at % wire.PAGE + pages * wire.PAGE)
            if most:
                taken.append((most, zeros))
                credit -= wire.extent_cost(at, 0 if zeros else most, most if zeros else 0)
                at += most
            if most < count:
                self._runs.appendleft((count - most, zeros))
                break
        if not taken:
            return None
        part = Part(self, not self._runs, self.offset, self.start, tuple(taken))
        self.offset = at
        self.start += part.payload
        self._looked = max(self._looked, self.start)
        return part

    def _extend(self, count: int, zeros: bool) -> None:
        """So many bytes more at the end, or fewer."""
        if self._runs and self._runs[-1][1] is zeros:
            count += self._runs.pop()[0]
        if count:
            self._runs.append((count, zeros))
