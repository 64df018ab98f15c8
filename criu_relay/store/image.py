"""One image in memory: its bytes in extents, appended in order, read at any offset."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import xxhash
from zope.interface import implementer

from criu_relay.errors import Aborted, Conflict, OutOfMemory, ProtocolError
from criu_relay.interfaces import IGrowing, Room
from criu_relay.store.arena import FACTOR, LARGEST, Arena, Extent


@dataclass(frozen=True)
class Piece:
    """A run of an image's bytes that lies in one extent.

    @ivar fd: the memfd; `offset`: where in it; `view`: the same bytes, mapped.
    """

    fd: int
    offset: int
    view: memoryview


@dataclass
class Hole:
    """A range that was thrown away; it lies where an extent was."""

    size: int


@implementer(IGrowing)
@dataclass(eq=False)
class Image:
    """A named sequence of bytes.

    @ivar drain: gives back at once what is on its way back to the arena.
    @ivar number: what the link calls it.
    @ivar snapshot: index of its snapshot, from 1.
    @ivar size: bytes so far.
    @ivar complete: its end was seen; an append opens it again.
    @ivar digest: xxh3-128 of all bytes, once complete and when the source gave one.
    @ivar readers: how many have it open; its extents stay until they are done.
    """

    arena: Arena
    reclaim: Callable[[list[Extent], bool], None]
    drain: Callable[[], None]
    number: int
    snapshot: int
    name: str
    size: int = 0
    complete: bool = False
    digest: bytes | None = None
    readers: int = 0
    dropped: bool = False
    shared: bool = False
    _starts: list[int] = field(default_factory=list)
    _extents: list[Extent | Hole] = field(default_factory=list)
    _capacity: int = 0
    _hash: Any = field(default_factory=xxhash.xxh3_128)

    def reserve(self, size: int) -> Room:
        """Room for the next bytes, in the last extent or a new one.

        @raise OutOfMemory: the budget is used up.
        @raise Aborted: the image was dropped.
        """
        if self.dropped:
            raise Aborted(f"image {self.name} was thrown away")
        if self.size == self._capacity:
            self._grow(size)
        extent = self._extents[-1]
        assert isinstance(extent, Extent)
        used = self.size - self._starts[-1]
        return Room(extent.fd, extent.offset + used, extent.view[used:])

    def _grow(self, size: int) -> None:
        last = self._extents[-1].size if self._extents else 0
        wanted = min(LARGEST, max(size, last * FACTOR))
        extent = self.arena.allocate(wanted)
        if extent is None:
            self.drain()
            extent = self.arena.allocate(wanted)
        if extent is None:
            raise OutOfMemory(
                f"the cache's memory is full: {self.arena.used} of {self.arena.limit} bytes are in use",
                hint="give criu-relay-cache a larger --memory, or discard namespaces that are not needed",
            )
        self._starts.append(self.size)
        self._extents.append(extent)
        self._capacity += extent.size

    def written(self, count: int) -> None:
        """The first `count` bytes of the room reserved last are filled."""
        extent = self._extents[-1]
        assert isinstance(extent, Extent)
        used = self.size - self._starts[-1]
        self._hash.update(extent.view[used : used + count])
        self.size += count

    def finish(self, size: int, digest: bytes | None) -> None:
        """The end was seen.

        @raise ProtocolError: the sizes differ.
        @raise Aborted: the digests differ.
        """
        if size != self.size:
            raise ProtocolError(f"image {self.name} has {self.size} bytes, {size} were sent")
        if digest is not None and digest != self._hash.digest():
            raise Aborted(f"image {self.name}: its {size} bytes were changed on the way: their digest differs")
        self.digest = digest
        self.complete = True

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes."""
        return sum(extent.size for extent in self._extents if isinstance(extent, Extent))

    def own_digest(self) -> bytes:
        """xxh3-128 of the bytes so far."""
        return bytes(self._hash.digest())

    def piece(self, offset: int) -> Piece:
        """The run of bytes from `offset` (below `size`) on.

        @raise Conflict: that range was thrown away.
        """
        index = bisect.bisect_right(self._starts, offset) - 1
        extent = self._extents[index]
        if isinstance(extent, Hole):
            raise Conflict(f"image {self.name}: the bytes at {offset} were discarded")
        skip = offset - self._starts[index]
        end = min(extent.size, self.size - self._starts[index])
        return Piece(extent.fd, extent.offset + skip, extent.view[skip:end])

    def opened(self) -> None:
        """One more reader."""
        self.readers += 1

    def closed(self) -> None:
        """One reader less."""
        self.readers -= 1
        self._give_back()

    def drop(self) -> int:
        """Nobody may open it any more; its memory goes back when the last reader is done.

        @return: the bytes of memory that go back.
        """
        if self.dropped:
            return 0
        self.dropped = True
        freed = self.memory
        self._give_back()
        return freed

    def discard(self, offset: int, length: int) -> int:
        """Throw away a range: whole extents inside it go back, the rest stays.

        @return: the bytes of memory that go back.
        @raise Conflict: somebody reads the image, or it is not complete.
        """
        if self.readers or not self.complete:
            doing = "read" if self.readers else "written"
            raise Conflict(f"image {self.name} is being {doing}", hint="try again later")
        freed: list[Extent] = []
        for index, extent in enumerate(self._extents):
            start = self._starts[index]
            end = min(start + extent.size, self.size)
            if isinstance(extent, Extent) and offset <= start and end <= offset + length:
                self._extents[index] = Hole(extent.size)
                freed.append(extent)
        total = sum(extent.size for extent in freed)
        self.reclaim(freed, self.shared)
        return total

    def _give_back(self) -> None:
        if self.dropped and not self.readers:
            extents = [extent for extent in self._extents if isinstance(extent, Extent)]
            self._extents.clear()
            self._starts.clear()
            self._capacity = self.size = 0
            self.reclaim(extents, self.shared)
