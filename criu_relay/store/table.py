"""What an image's pages are: one number of 64 bits for each page of 4096 bytes, whatever becomes of it."""

from __future__ import annotations

import enum
from array import array

import numpy

from criu_relay.flow.zeros import PAGE
from criu_relay.wire.link import ENTRY

__all__ = ["ENTRY", "RUN", "Kind", "PageTable", "entry", "kinds", "numbers", "pages_of", "together"]

RUN = 256
"""Pages in a run at most: 1 MiB, what one turn of the reactor moves."""

_SHIFT = 56
"""The kind stands above the number of a page, which has room for 2^56 pages of the arena or of a spill file."""


class Kind(enum.IntEnum):
    """What a page is. The number of a HELD one is the arena's, of a SPILLED one that of its spill file."""

    HELD = 0
    ZERO = 1
    SPILLED = 2
    SUPERSEDED = 3
    RELEASED = 4
    DISCARDED = 5


_KINDS = tuple(Kind)  # looked up by number: an enum takes ten times as long to find one

NUMBERED = (Kind.HELD, Kind.SPILLED)


def entry(kind: Kind, number: int = 0) -> int:
    """The number that stands for a page in a table."""
    return kind << _SHIFT | number


class PageTable:
    """The pages of one image, in order.

    @ivar pages: how many there are of each kind.
    """

    __slots__ = ("_entries", "pages")

    def __init__(self) -> None:
        self._entries = array("Q")
        self.pages = [0] * len(_KINDS)

    def __len__(self) -> int:
        return len(self._entries)

    def hold(self, number: int, count: int) -> None:
        """The next `count` pages are these of the arena."""
        self._entries.frombytes(numpy.arange(number, number + count, dtype=numpy.uint64).tobytes())
        self.pages[Kind.HELD] += count

    def fill(self, kind: Kind, count: int) -> None:
        """The next `count` pages are of a kind without a number."""
        self._entries.extend(array("Q", [entry(kind)]) * count)
        self.pages[kind] += count

    def extend(self, number: int, counts: numpy.ndarray) -> None:
        """The next pages are held and zeros in turn, C{counts} of them; those that are held are the arena's from
        C{number} on."""
        zero = numpy.repeat(numpy.arange(len(counts)) % 2 == 1, counts)
        held = len(zero) - int(numpy.count_nonzero(zero))
        entries = numpy.full(len(zero), entry(Kind.ZERO), numpy.uint64)
        entries[~zero] = numpy.arange(number, number + held, dtype=numpy.uint64)
        self._entries.frombytes(entries.tobytes())
        self.pages[Kind.HELD] += held
        self.pages[Kind.ZERO] += len(zero) - held

    def slice(self, start: int, stop: int) -> numpy.ndarray:
        """A copy of some entries."""
        return numpy.frombuffer(self._entries, numpy.uint64)[start:stop].copy() if self._entries else _NONE

    def replace(self, start: int, entries: numpy.ndarray) -> None:
        """Change the entries from `start` on."""
        old = self.slice(start, start + len(entries))
        for kind, count in enumerate(numpy.bincount(kinds(old), minlength=len(_KINDS)).tolist()):
            self.pages[kind] -= count
        for kind, count in enumerate(numpy.bincount(kinds(entries), minlength=len(_KINDS)).tolist()):
            self.pages[kind] += count
        numpy.frombuffer(self._entries, numpy.uint64)[start : start + len(entries)] = entries

    def at(self, index: int) -> tuple[Kind, int]:
        """What one page is, and its number."""
        found = self._entries[index]
        return _KINDS[found >> _SHIFT], found & (1 << _SHIFT) - 1

    @property
    def last(self) -> int:
        """The L{Kind} of the last page, of which there is one."""
        return self._entries[-1] >> _SHIFT

    def run(self, index: int) -> tuple[Kind, int, int]:
        """How the pages from `index` on go on: kind, number of the first, and how many, which lie together."""
        kind, number = self.at(index)
        entries = self.slice(index, index + RUN)
        expected = entries[0] + numpy.arange(len(entries), dtype=numpy.uint64) if kind in NUMBERED else entries[0]
        different = numpy.flatnonzero(entries != expected)
        return kind, number, int(different[0]) if len(different) else len(entries)

    def clear(self) -> None:
        """There are no pages any more."""
        del self._entries[:]
        self.pages = [0] * len(_KINDS)


_NONE = numpy.zeros(0, numpy.uint64)


def kinds(entries: numpy.ndarray) -> numpy.ndarray:
    """The kinds of entries."""
    return (entries >> numpy.uint64(_SHIFT)).astype(numpy.intp)


def together(entries: numpy.ndarray) -> tuple[int, int]:
    """Of entries (at least one) whose HELD pages follow one another: the number of the first of those, and how many."""
    first, last = int(entries[0]), int(entries[-1])
    if first >> _SHIFT == Kind.HELD and last - first == len(entries) - 1:
        return first, len(entries)
    held = entries[kinds(entries) == Kind.HELD]
    return (int(held[0]) if len(held) else 0), len(held)


def numbers(entries: numpy.ndarray, kind: Kind) -> numpy.ndarray:
    """The numbers of those entries that are of a kind with numbers."""
    return (entries[kinds(entries) == kind] & numpy.uint64((1 << _SHIFT) - 1)).astype(numpy.int64)


def pages_of(count: int) -> int:
    """Pages that so many bytes take."""
    return -(-count // PAGE)
