"""What can be read of an image, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy

from criu_relay.errors import Conflict
from criu_relay.flow.vectors import vectors
from criu_relay.flow.zeros import PAGE
from criu_relay.store.memory import Memory
from criu_relay.store.piece import Piece
from criu_relay.store.table import NUMBERED, RUN, Kind, PageTable, kinds, numbers, pages_of

if TYPE_CHECKING:
    from criu_relay.store.image import Image

_MAPPED = numpy.array([kind in (Kind.HELD, Kind.ZERO, Kind.SUPERSEDED) for kind in Kind])
"""By kind: whether such pages can be read where they are mapped."""

FEW = 4
"""Pages that are looked at one by one: numpy takes longer to begin."""

GONE = {Kind.RELEASED: "given back as they were read", Kind.DISCARDED: "discarded"}
"""Why bytes of a kind cannot be read."""


class Spill(Protocol):
    """A file that pages of images lie in, by number."""

    fd: int

    def append(self, image: Image, start: int) -> None:
        """Move pages there."""

    def punch(self, numbers: numpy.ndarray) -> None:
        """These are not wanted any more."""

    def leave(self, image: Image) -> None:
        """It has no pages there any more."""


class Readable:
    """The bytes of an image.

    @ivar size: bytes so far.
    @ivar pool: the memory of all images.
    @ivar spill: where its SPILLED pages are.
    """

    def __init__(self, memory: Memory, name: str) -> None:
        self.name = name
        self.size = 0
        self._table = PageTable()
        self.pool = memory
        self.spill: Spill | None = None
        self._arena = memory.arena

    @property
    def table(self) -> PageTable:
        """Its pages."""
        return self._table

    def piece(self, offset: int) -> Piece:
        """The run of bytes from `offset` (below `size`) on.

        @raise Conflict: that range was thrown away.
        """
        kind, number, count = self._run(offset // PAGE)
        if kind in GONE:
            raise Conflict(f"image {self.name}: the bytes at {offset} were {GONE[kind]}")
        skip = offset % PAGE
        view: memoryview | None
        if kind is Kind.SPILLED and self.spill is not None:
            fd, start, view = self.spill.fd, number * PAGE, None
        elif kind is Kind.HELD:
            _, count = next(self._arena.parts(number, count))
            fd, start = self._arena.locate(number)
            view = self._arena.view(number, count)
        else:
            fd, start, view = self.pool.zeros.fd, 0, self.pool.zeros.view[: count * PAGE]
        length = min(count * PAGE - skip, self.size - offset)
        return Piece(fd, start + skip, length, None if view is None else view[skip : skip + length])

    def _run(self, page: int) -> tuple[Kind, int, int]:
        """See L{PageTable.run}."""
        left = len(self.table) - page
        if left > FEW:
            return self.table.run(page)
        kind, number = self.table.at(page)
        step, count = kind in NUMBERED, 1
        while count < left and self.table.at(page + count) == (kind, number + count * step):
            count += 1
        return kind, number, count

    def runs(self, offset: int, most: int) -> numpy.ndarray:
        """At most `most` bytes from `offset` on where they lie in memory, as far as they do: see L{vectors}."""
        skip, end = offset % PAGE, min(offset + most, self.size)
        entries = self.table.slice(offset // PAGE, min(offset // PAGE + RUN, pages_of(end)))
        found = kinds(entries)
        mapped = _MAPPED[found]
        count = len(entries) if mapped.all() else int(mapped.argmin())
        held = found[:count] == Kind.HELD
        addresses = self.pool.zeros.address + PAGE * numpy.arange(count)
        addresses[held] = self._arena.addresses(numbers(entries[:count], Kind.HELD))
        starts = numpy.flatnonzero(numpy.diff(addresses, prepend=0) != PAGE)
        addresses, lengths = addresses[starts], PAGE * numpy.diff(starts, append=count)
        if count:
            addresses[0] += skip
            lengths[0] -= skip
            lengths[-1] -= max(0, (offset // PAGE + count) * PAGE - end)
        return vectors(addresses, lengths)

    def passed(self, offset: int, count: int) -> None:
        """A pipe or socket refers to these bytes now."""
        entries = self.table.slice(offset // PAGE, pages_of(offset + count))
        self.pool.pages.passed(numbers(entries, Kind.HELD))
