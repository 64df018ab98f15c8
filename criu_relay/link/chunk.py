"""Bytes of one image in one extent of the window, with pages of zeros left out, and how they become frames."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

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


class Part(NamedTuple):
    """The payload of one frame, and what is left out of it.

    @ivar last: nothing follows of its chunk.
    @ivar offset: of its first byte in the image.
    @ivar payload: bytes of the extent that it takes; C{cost}: of the cache's memory.
    @ivar range: where the payload lies; None: there is none.
    @ivar told: its runs as an extent tells of them: bytes of payload and of zeros in turn; empty: there are no zeros.
    """

    last: bool
    offset: int
    payload: int
    cost: int
    range: MemfdRange | None
    told: Sequence[int]


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
        kept = count - len(empty.nonzero()[0])
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
        told: list[int] = []
        begin, start, left = self.offset, self.start, credit
        while self._runs:
            count, zeros = self._runs[0]
            cost = wire.extent_cost(self.offset, 0 if zeros else count, count if zeros else 0)
            if cost > left:
                pages = left // (wire.ENTRY if zeros else wire.ENTRY + wire.PAGE)
                count = -self.offset % wire.PAGE + pages * wire.PAGE
                if not count:
                    break
                cost = wire.extent_cost(self.offset, 0 if zeros else count, count if zeros else 0)
                self._runs[0] = self._runs[0][0] - count, zeros
            else:
                self._runs.popleft()
            told += [0, count] if zeros and not told else [count]
            left -= cost
            self.offset += count
            if not zeros:
                self.start += count
        if not told:
            return None
        payload = self.start - start
        self._looked = max(self._looked, self.start)
        place = MemfdRange(self.extent.fd, self.extent.offset + start, self.extent.view[start : self.start])
        sparse = payload < self.offset - begin
        return Part(not self._runs, begin, payload, credit - left, place if payload else None, told if sparse else ())

    def _extend(self, count: int, zeros: bool) -> None:
        """So many bytes more at the end, or fewer."""
        if self._runs and self._runs[-1][1] is zeros:
            count += self._runs.pop()[0]
        if count:
            self._runs.append((count, zeros))
