"""The pages that an image grows into, and the memory that is promised to it."""

from __future__ import annotations

from criu_relay.errors import OutOfMemory
from criu_relay.flow.zeros import PAGE
from criu_relay.store.arena import CLASSES, FACTOR, LARGEST, class_of
from criu_relay.store.memory import Memory
from criu_relay.store.table import ENTRY, pages_of

GENEROUS = 16
"""An image takes more than it needs now (which saves extents, and pieces of one are served at once) as long as that is
less than this part of what the budget has left."""


class Ahead:
    """Those of one image.

    @ivar next: the page of the arena that comes next; C{count}: how many there are.
    @ivar packed: the page that the next one which is kept is moved to; C{spare}: how many there are.
    """

    def __init__(self, memory: Memory) -> None:
        self.next = self.count = 0
        self.packed = self.spare = 0
        self._arena = memory.arena
        self._pages = memory.pages
        self._reclaimer = memory.reclaimer
        self._promised = 0  # reserved bytes of the arena that are for this image
        self._extent = 0  # bytes of the extent taken last

    # The budget

    def promise(self, count: int) -> None:
        """`count` bytes that were reserved are for what comes next."""
        self._promised += count

    def secure(self, count: int) -> None:
        """At least `count` bytes are promised to this image.

        @raise OutOfMemory: they cannot be.
        """
        if not self._obtained(count):
            raise OutOfMemory(
                f"the cache's memory is full: {self._arena.used} of {self._arena.limit} bytes are in use",
                hint="give criu-relay-cache a larger --memory, or discard namespaces that are not needed",
            )

    def note(self, pages: int) -> None:
        """So many pages more of the image are known."""
        self._arena.note(ENTRY * pages)
        self._promised -= ENTRY * pages

    def unneeded(self, count: int) -> None:
        """`count` bytes, or as many as are left of what is promised, are not needed after all."""
        surplus = min(count, self._promised)
        self._promised -= surplus
        self._arena.unreserve(surplus)

    # Pages

    def grow(self, size: int) -> None:
        """There are none: take an extent, a generous one while the budget allows, else no more than is needed.

        @raise OutOfMemory: the budget is used up.
        """
        exact = min(pages_of(size), LARGEST // PAGE)
        wanted = class_of(max(size, self._extent * FACTOR))
        if not self._afford(wanted):
            if self.spare:
                self.next, self.count, self.spare = self.packed, self.spare, 0
                return
            fitting = [cls for cls in reversed(CLASSES) if cls <= exact * PAGE]
            wanted = next((cls for cls in fitting if self._obtained(cls + cls // PAGE * ENTRY)), PAGE)
            self.secure(wanted + wanted // PAGE * ENTRY)
        self.next = self._take(wanted)

    def extend(self) -> None:
        """Take the extent behind them, if that is free and the budget allows it."""
        if self._arena.adjoins(self.next + self.count) and self._afford(LARGEST):
            self._take(LARGEST, self.next + self.count)

    def own(self, pages: int) -> None:
        """So many are the image's now."""
        self._pages.own(self.next, pages)
        self.next += pages
        self.count -= pages

    def give_back(self) -> None:
        """Nothing more comes."""
        self._arena.put(self.next, self.count, False)
        self._arena.put(self.packed, self.spare, False)
        self._arena.unreserve(self._promised)
        self.count = self.spare = self._promised = 0
        self._reclaimer.freed()

    def _obtained(self, count: int) -> bool:
        lack = count - self._promised
        if lack > 0:
            if not self._reclaimer.obtain(lack):
                return False
            self._promised += lack
        return True

    def _afford(self, size: int) -> bool:
        """An extent is promised to this image, unless the budget is too small for generosity."""
        lack = size + size // PAGE * ENTRY - self._promised
        if lack > 0:
            if lack > self._arena.available // GENEROUS or not self._arena.reserve(lack):
                return False
            self._promised += lack
        return True

    def _take(self, size: int, behind: int = -1) -> int:
        """An extent that was promised; the number of its first page.

        @raise OutOfMemory: there is no memory for it; nothing is taken.
        """
        first = self._arena.take(size, behind)
        self._extent = size
        self._promised -= size
        self.count += size // PAGE
        return first
