"""Image memory: memfd regions, mapped once, handed out as extents and recycled.

Fresh memory costs four to seven times the copy into it (page faults and zeroing), so an extent that
comes back keeps its pages. One whose pages a pipe or a socket may still refer to (splice and sendfile
pass pages, not bytes) must never be written again in place: its pages are given up with PUNCH_HOLE,
which leaves them to whoever still reads them.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterator

import numpy
from zope.interface import implementer

from criu_relay.errors import OutOfMemory
from criu_relay.interfaces import IArena, IExtent
from criu_relay.store.region import Extent, Region, punch

SMALLEST = 4096
"""One page: the most common image is smaller."""

LARGEST = 4 << 20
"""Four of the largest payloads of a frame: what is done once for each extent costs a large image a quarter of what it
would with extents of one."""

LEAST_FORCED = 2 << 20
"""What is here already may be two of the largest payloads of a frame, in the smallest window that there is."""

FACTOR = 4
"""Each class is four of the one before: an image wastes at most three quarters of its last extent."""

CLASSES = tuple(SMALLEST * FACTOR**power for power in range(6))

REGION = 256 << 20
"""Bytes per memfd: few descriptors, and no memory before it is touched."""

NEIGHBOURS = 16
"""Free places that are looked at for the first of those that lie together: who takes it finds more behind it."""

SMALLEST_PUNCH = 24 << 10
"""What PUNCH_HOLE of a smaller range costs as much as: 6 us, against 0.5 ms for 2 MiB."""


class Heat(enum.IntEnum):
    """What free memory is.

    WARM: its pages are there and nobody refers to them. STALE: somebody may still refer to its pages.
    COLD: it has no pages.
    """

    WARM = 0
    STALE = 1
    COLD = 2


def class_of(size: int) -> int:
    """The smallest class of at least `size` bytes, or the largest."""
    return LARGEST if size > LARGEST else CLASSES[bisect.bisect_left(CLASSES, size)]


def _first_of(places: dict[int, None], wanted: int) -> int:
    """Take a place of the largest class: the one that is wanted, or the first of some that lie together."""
    number = wanted
    if wanted not in places:
        number = next(reversed(places))
        for _ in range(NEIGHBOURS):
            if number - LARGEST // SMALLEST not in places:
                break
            number -= LARGEST // SMALLEST
    del places[number]
    return number


@implementer(IArena)
class Arena:
    """All image memory of one daemon, by the number of its pages (of 4096 bytes).

    Whoever wants memory reserves it first, and then takes pages or notes bookkeeping out of that. What is reserved,
    allocated and noted is never more than the limit; what is allocated, noted or has free pages neither.

    @ivar limit: the budget in bytes.
    @ivar keep: how many warm bytes are kept ready when memory comes back, or made so.
    @ivar reserved: bytes that are promised and neither allocated nor noted yet.
    @ivar allocated: bytes of the pages that are out.
    @ivar noted: bytes of bookkeeping.
    @ivar recycled: bytes of free memory that still has its pages (at most: a merge of warm and cold counts as warm).
    """

    def __init__(self, limit: int, keep: int) -> None:
        self.limit = limit
        self.keep = keep
        self.reserved = self.allocated = self.noted = self.recycled = 0
        self._region_size = min(REGION, max(LARGEST, -(-limit // LARGEST) * LARGEST))
        self._regions: list[Region] = []
        self._fresh = 0
        self._warming: tuple[int, int] | None = None  # the first page of a place that is being warmed, and how many are
        self._free: dict[Heat, dict[int, dict[int, None]]] = {heat: {size: {} for size in CLASSES} for heat in Heat}

    @property
    def used(self) -> int:
        """Bytes of the budget that are spoken for."""
        return self.reserved + self.allocated + self.noted

    @property
    def available(self) -> int:
        """Bytes of the budget that can be reserved."""
        return self.limit - self.used

    @property
    def pages(self) -> int:
        """One more than the largest number of a page so far."""
        return len(self._regions) * (self._region_size // SMALLEST)

    # The budget

    def reserve(self, count: int) -> bool:
        """Promise `count` bytes to the caller; False: the budget does not allow it."""
        if self.used + count > self.limit:
            return False
        self.reserved += count
        return True

    def unreserve(self, count: int) -> None:
        """Bytes that were reserved are not needed."""
        self.reserved -= count

    def note(self, count: int) -> None:
        """Bytes that were reserved are bookkeeping now."""
        self._warmed()
        self.reserved -= count
        self.noted += count
        self._squeeze()

    def forget(self, count: int) -> None:
        """Bookkeeping is gone."""
        self.noted -= count

    # Pages

    def take(self, size: int, wanted: int = -1) -> int:
        """An extent of a class out of what was reserved; the number of its first page.

        @param wanted: where it begins, if that L{adjoins}; nothing happens in between.
        @raise OutOfMemory: the kernel gives no memory for it; nothing is taken.
        """
        self._warmed()
        number = self._take(size, wanted)
        if wanted not in (-1, number):
            raise RuntimeError(f"page {number} is free, not {wanted}")
        self.reserved -= size
        self.allocated += size
        self._squeeze()
        return number

    def adjoins(self, number: int) -> bool:
        """An extent of the largest class can begin at this page, in the memfd of the page before it, and no free memory
        is better."""
        self._warmed()
        if not number * SMALLEST % self._region_size:
            return False
        for free in self._free.values():
            if free[LARGEST]:
                return number in free[LARGEST]
        return self._fresh < self._region_size and number == self._regions[-1].first + self._fresh // SMALLEST

    def put(self, first: int, count: int, shared: bool) -> None:
        """Give `count` pages back.

        @param shared: a pipe or socket may still refer to them.
        """
        self.allocated -= count * SMALLEST
        while count:
            size = next(
                size for size in reversed(CLASSES) if size // SMALLEST <= count and not first % (size // SMALLEST)
            )
            self._put(size, first, Heat.STALE if shared else Heat.WARM)
            first += size // SMALLEST
            count -= size // SMALLEST
        self._squeeze()

    def locate(self, number: int) -> tuple[int, int]:
        """The memfd of a page, and the offset in it."""
        region = self._regions[number * SMALLEST // self._region_size]
        return region.fd, (number - region.first) * SMALLEST

    def view(self, number: int, count: int) -> memoryview:
        """`count` pages of one extent, or of neighbours in one memfd."""
        region = self._regions[number * SMALLEST // self._region_size]
        start = (number - region.first) * SMALLEST
        return region.view[start : start + count * SMALLEST]

    def addresses(self, numbers: numpy.ndarray) -> numpy.ndarray:
        """Where pages are mapped."""
        regions, places = numpy.divmod(numbers, self._region_size // SMALLEST)
        bases = numpy.array([region.address for region in self._regions], numpy.int64)
        return bases[regions] + places * SMALLEST

    def parts(self, number: int, count: int) -> Iterator[tuple[int, int]]:
        """`count` pages from `number` on as those that lie in one memfd: the first, and how many."""
        per_region = self._region_size // SMALLEST
        while count:
            part = min(count, per_region - number % per_region)
            yield number, part
            number += part
            count -= part

    def words(self, number: int, count: int) -> numpy.ndarray:
        """The same as rows of 512 words. Let go of it before the memory is given back."""
        return numpy.frombuffer(self.view(number, count), numpy.uint64).reshape(count, -1)

    def equal(self, numbers: numpy.ndarray, rows: numpy.ndarray) -> numpy.ndarray:
        """Which of these pages have the bytes of the row (of 512 words) at the same place."""
        per_region = self._region_size // SMALLEST
        regions = numbers // per_region
        found = numpy.empty(len(numbers), bool)
        for region in numpy.unique(regions).tolist():
            there = regions == region
            pages = self.words(region * per_region, per_region)
            found[there] = (pages[numbers[there] % per_region] == rows[there]).all(axis=1)
        return found

    # Extents

    def allocate(self, size: int) -> Extent | None:
        """See L{IArena.allocate}."""
        return self._extent(class_of(size)) if self.reserve(class_of(size)) else None

    def force(self, size: int) -> Extent:
        """An extent although the budget may be used up; for data that is here already.

        @raise OutOfMemory: twice the budget, or L{LEAST_FORCED}, is in use.
        """
        wanted = class_of(size)
        if self.used + wanted > max(2 * self.limit, LEAST_FORCED):
            raise OutOfMemory(f"{self.used} bytes of image memory are in use, the limit is {self.limit}")
        self.reserved += wanted
        return self._extent(wanted)

    def _extent(self, size: int) -> Extent:
        try:
            first = self.take(size)
        except OutOfMemory:
            self.reserved -= size
            raise
        return Extent(first, *self.locate(first), self.view(first, size // SMALLEST))

    def free(self, extent: IExtent, shared: bool = False) -> None:
        """See L{IArena.free}."""
        assert isinstance(extent, Extent)
        extent.view.release()
        self.put(extent.first, extent.size // SMALLEST, shared)

    # Free memory

    def trim(self, most: int) -> bool:
        """Give back to the kernel what cannot be recycled and what is beyond `keep`.

        @param most: about so many bytes now.
        @return: whether more is to be given back.
        """
        while most > 0:
            cost = self._chill(self._surplus())
            if not cost:
                return False
            most -= cost
        return bool(self._surplus())

    def warm(self, most: int) -> bool:
        """Give cold memory its pages, until `keep` bytes of free memory have theirs.

        @param most: bytes that are touched now.
        @return: whether more is to be done.
        """
        warm = self._free[Heat.WARM][LARGEST]
        while LARGEST * (len(warm) + 1) <= self.keep and self.used + self.recycled + LARGEST <= self.limit:
            if most <= 0:
                return True
            number, touched = self._warming or (self._coldest(), 0)
            count = min(-(-most // SMALLEST), LARGEST // SMALLEST - touched)
            numpy.frombuffer(self.view(number + touched, count), numpy.uint8)[::SMALLEST] = 0
            self._warming = number, touched + count
            most -= count * SMALLEST
            if touched + count == LARGEST // SMALLEST:
                self._warmed()
        return False

    def _warmed(self) -> None:
        """What was being warmed is free like the rest: at most all of it has pages."""
        if self._warming is not None:
            (number, _), self._warming = self._warming, None
            self._put(LARGEST, number, Heat.WARM)

    def _coldest(self) -> int:
        cold = self._free[Heat.COLD][LARGEST]
        if cold:
            return cold.popitem()[0]
        if not self._regions or self._fresh == self._region_size:
            self._regions.append(Region(self.pages, self._region_size))
            self._fresh = 0
        self._fresh += LARGEST
        return self._regions[-1].first + (self._fresh - LARGEST) // SMALLEST

    def close(self) -> None:
        """Give everything back; no extent may be in use."""
        while self._regions:
            self._regions.pop().close()

    def _surplus(self) -> list[dict[int, None]]:
        """Free places that should have no pages, by class."""
        stale = [places for places in reversed(self._free[Heat.STALE].values()) if places]
        warm = self._free[Heat.WARM][LARGEST]
        return stale + ([warm] if LARGEST * len(warm) > self.keep else [])

    def _squeeze(self) -> None:
        """Free memory makes room for what is in use."""
        while self.allocated + self.noted + self.recycled > self.limit:
            if not self._chill(
                [p for heat in (Heat.STALE, Heat.WARM) for p in reversed(self._free[heat].values()) if p]
            ):
                return

    def _chill(self, candidates: list[dict[int, None]]) -> int:
        """Give up the pages of one place; about how many bytes that was the work of."""
        if not candidates:
            return 0
        size = next(s for heat in Heat for s, places in self._free[heat].items() if places is candidates[0])
        number = candidates[0].popitem()[0]
        self.recycled -= size
        fd, offset = self.locate(number)
        punch(fd, offset, size)
        self._put(size, number, Heat.COLD)
        return max(size, SMALLEST_PUNCH)

    def _take(self, size: int, wanted: int) -> int:
        for heat, free in self._free.items():
            for found in CLASSES[CLASSES.index(size) :]:
                if places := free[found]:
                    number = _first_of(places, wanted) if found == LARGEST else places.popitem()[0]
                    return self._split(number, found, size, heat)
        return self._split(self._coldest(), LARGEST, size, Heat.COLD)

    def _split(self, number: int, found: int, size: int, heat: Heat) -> int:
        while found > size:
            found //= FACTOR
            for part in range(1, FACTOR):
                self._free[heat][found][number + part * found // SMALLEST] = None
        if heat is not Heat.COLD:
            self.recycled -= size
        if heat is Heat.STALE:
            punch(*self.locate(number), size)
        return number

    def _put(self, size: int, number: int, heat: Heat) -> None:
        if heat is not Heat.COLD:
            self.recycled += size
        while size < LARGEST and (others := self._siblings(size, number)):
            heats = [heat]
            for at, found in others:
                del self._free[found][size][at]
                heats.append(found)
            merged = heat if heats.count(heat) == FACTOR else Heat.STALE if Heat.STALE in heats else Heat.WARM
            if merged is not Heat.COLD:
                self.recycled += size * heats.count(Heat.COLD)
            size *= FACTOR
            number, heat = number - number % (size // SMALLEST), merged
        self._free[heat][size][number] = None

    def _siblings(self, size: int, number: int) -> list[tuple[int, Heat]]:
        """The places that make one of the next class together with this one; none unless all are free."""
        pages = size // SMALLEST
        first = number - number % (pages * FACTOR)
        found: list[tuple[int, Heat]] = []
        for at in range(first, first + pages * FACTOR, pages):
            if at != number:
                heat = self._heat(size, at)
                if heat is None:
                    return []
                found.append((at, heat))
        return found

    def _heat(self, size: int, number: int) -> Heat | None:
        for heat, free in self._free.items():
            if number in free[size]:
                return heat
        return None
