"""Image memory: memfd regions, mapped once, handed out as extents and recycled.

Fresh memory costs four to seven times the copy into it (page faults and zeroing), so an extent that
comes back keeps its pages. One whose pages a pipe or a socket may still refer to (splice and sendfile
pass pages, not bytes) must never be written again in place: its pages are given up with PUNCH_HOLE,
which leaves them to whoever still reads them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

from zope.interface import implementer

from criu_relay.errors import OutOfMemory
from criu_relay.interfaces import IArena, IExtent

SMALLEST = 4096
"""One page: the most common image is smaller."""

LARGEST = 1 << 20
"""What one turn of the reactor moves at most, and the largest payload of a frame."""

FACTOR = 4
"""Each class is four of the one before: an image wastes at most three quarters of its last extent."""

CLASSES = (SMALLEST, SMALLEST * FACTOR, SMALLEST * FACTOR**2, SMALLEST * FACTOR**3, LARGEST)

REGION = 256 << 20
"""Bytes per memfd: few descriptors, and no memory before it is touched."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # fallocate(2), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, offset: int, length: int) -> None:
    """Give the pages of a range of a memfd back to the kernel; it reads as zeros afterwards (fallocate(2))."""
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Region:
    """A memfd, mapped once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("criu-relay", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self.map)

    def close(self) -> None:
        """Unmap and close; every view handed out must be gone."""
        self.view.release()
        self.map.close()
        os.close(self.fd)


@implementer(IExtent)
class Extent:
    """See L{criu_relay.interfaces.IExtent}."""

    __slots__ = ("offset", "region", "size", "view")

    def __init__(self, region: Region, offset: int, size: int) -> None:
        self.region = region
        self.offset = offset
        self.size = size
        self.view = region.view[offset : offset + size]

    @property
    def fd(self) -> int:
        """The memfd it lies in."""
        return self.region.fd


Place = tuple[Region, int]


@implementer(IArena)
class Arena:
    """All extents of one daemon.

    Free memory is *warm* (its pages are there and nobody refers to them), *stale* (somebody may still
    refer to its pages) or *cold* (it has no pages).

    @ivar used: bytes of the extents that are allocated.
    @ivar limit: the budget in bytes.
    @ivar keep: how many warm bytes are kept for recycling when memory comes back.
    """

    def __init__(self, limit: int, keep: int) -> None:
        self.limit = limit
        self.keep = keep
        self.used = 0
        self._region_size = min(REGION, max(LARGEST, -(-limit // LARGEST) * LARGEST))
        self._regions: list[Region] = []
        self._fresh = 0
        self._free: dict[int, dict[Place, None]] = {size: {} for size in CLASSES}
        self._stale: list[Place] = []
        self._cold: list[Place] = []

    @property
    def recycled(self) -> int:
        """Bytes of free memory that still has its pages."""
        return sum(size * len(places) for size, places in self._free.items()) + LARGEST * len(self._stale)

    def allocate(self, size: int) -> Extent | None:
        """See L{IArena.allocate}."""
        wanted = next((cls for cls in CLASSES if cls >= size), LARGEST)
        if self.used + wanted > self.limit:
            return None
        self.used += wanted
        region, offset = self._take(wanted)
        return Extent(region, offset, wanted)

    def force(self, size: int) -> Extent:
        """An extent although the budget may be used up; for data that is here already.

        @raise OutOfMemory: twice the budget is in use.
        """
        wanted = next((cls for cls in CLASSES if cls >= size), LARGEST)
        if self.used + wanted > 2 * max(self.limit, LARGEST):
            raise OutOfMemory(f"{self.used} bytes of image memory are in use, the limit is {self.limit}")
        self.used += wanted
        region, offset = self._take(wanted)
        return Extent(region, offset, wanted)

    def free(self, extent: IExtent, shared: bool = False) -> None:
        """See L{IArena.free}."""
        assert isinstance(extent, Extent)
        self.used -= extent.size
        extent.view.release()
        place = (extent.region, extent.offset)
        if not shared:
            self._put(extent.size, place)
        elif extent.size == LARGEST:
            self._stale.append(place)
        else:
            punch(extent.fd, extent.offset, extent.size)
            self._put(extent.size, place)

    def trim(self, most: int) -> bool:
        """Give free memory beyond `keep` back to the kernel, at most `most` bytes now (rounded up to an extent).

        @return: whether more is to be given back.
        """
        warm = self._free[LARGEST]
        while most > 0 and self._surplus():
            place = self._stale.pop() if self._stale else warm.popitem()[0]
            punch(place[0].fd, place[1], LARGEST)
            self._cold.append(place)
            most -= LARGEST
        return self._surplus()

    def close(self) -> None:
        """Give everything back; no extent may be in use."""
        while self._regions:
            self._regions.pop().close()

    def _surplus(self) -> bool:
        whole = LARGEST * (len(self._free[LARGEST]) + len(self._stale))
        return whole > self.keep

    def _take(self, size: int) -> Place:
        places = self._free[size]
        if places:
            return places.popitem()[0]
        if size == LARGEST:
            return self._take_largest()
        region, offset = self._take(size * FACTOR)
        for part in range(1, FACTOR):
            places[region, offset + part * size] = None
        return region, offset

    def _take_largest(self) -> Place:
        if self._stale:
            region, offset = self._stale.pop()
            punch(region.fd, offset, LARGEST)
            return region, offset
        if self._cold:
            return self._cold.pop()
        if not self._regions or self._fresh == self._region_size:
            self._regions.append(Region(self._region_size))
            self._fresh = 0
        self._fresh += LARGEST
        return self._regions[-1], self._fresh - LARGEST

    def _put(self, size: int, place: Place) -> None:
        if size == LARGEST:
            self._free[size][place] = None
            return
        places = self._free[size]
        siblings = list(self._siblings(size, place))
        if all(sibling in places for sibling in siblings):
            for sibling in siblings:
                del places[sibling]
            self._put(size * FACTOR, (place[0], place[1] - place[1] % (size * FACTOR)))
        else:
            places[place] = None

    @staticmethod
    def _siblings(size: int, place: Place) -> Iterator[Place]:
        region, offset = place
        first = offset - offset % (size * FACTOR)
        for at in range(first, first + size * FACTOR, size):
            if at != offset:
                yield region, at
