"""One image in memory: its bytes in pages, appended in order, read at any offset."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy
import xxhash
from zope.interface import implementer

from criu_relay.errors import Aborted, Conflict, OutOfMemory, ProtocolError
from criu_relay.flow.zeros import PAGE, hash_zeros, zero_rows, zeros_unlikely
from criu_relay.interfaces import IGrowing, Room
from criu_relay.store.arena import CLASSES, FACTOR, LARGEST, class_of
from criu_relay.store.memory import Memory
from criu_relay.store.pages import PageIndex
from criu_relay.store.policy import Dedup
from criu_relay.store.readable import Readable, Spill
from criu_relay.store.table import ENTRY, RUN, Kind, entry, kinds, numbers, pages_of, together

GENEROUS = 16
"""An image takes more than it needs now (which saves extents, and pieces of one are served at once) as long as that is
less than this part of what the budget has left."""

INSPECTED_TOGETHER = 4 * RUN
"""Pages that one look takes in, as it costs much by itself: up to 0.25 ms for zeros, 1.5 ms for equal ones."""


class Reader(Protocol):
    """Somebody who has an image open."""

    def discarded(self, start: int, stop: int, reason: str) -> None:
        """These bytes are not there any more: if they were still to be read, the reading ends."""


@implementer(IGrowing)
class Image(Readable):
    """A named sequence of bytes.

    What is written lies in pages of the arena; once a page is complete it may turn out to be zeros, or equal to
    another one, and then its memory takes the next bytes.

    @ivar number: what the link calls it.
    @ivar snapshot: index of its snapshot, from 1.
    @ivar complete: its end was seen; an append opens it again.
    @ivar digest: xxh3-128 of all bytes, once complete and when the source gave one.
    @ivar readers: who has it open; its pages stay until they are done.
    @ivar dropped: nobody may open it any more.
    @ivar inspected: pages that were looked at for zeros; of those, `compared`: that were compared in the end.
    """

    def __init__(
        self, memory: Memory, index: PageIndex, number: int, snapshot: int, name: str, digests: bool = True
    ) -> None:
        """@param digests: its end may come with a digest."""
        super().__init__(memory, name)
        self.number = number
        self.snapshot = snapshot
        self.complete = False
        self.digest: bytes | None = None
        self.readers: set[Reader] = set()
        self.dropped = False
        self.inspected = self.compared = 0
        self.index = index
        self._hash: Any = xxhash.xxh3_128() if digests else None
        self._promised = 0  # reserved bytes of the arena that are for this image
        self._next = self._ahead = 0  # the page of the arena that comes next, and how many there are
        self._packed = self._spare = 0  # the page that the next one which is kept is moved to, and how many there are
        self._extent = 0  # bytes of the extent taken last
        self._room = memoryview(b"")

    # Growing

    def promise(self, count: int) -> None:
        """`count` bytes that were reserved are for what comes next."""
        self._promised += count

    def reserve(self, size: int) -> Room:
        """Room for the next bytes, in the last extent or a new one.

        @raise OutOfMemory: the budget is used up.
        @raise Aborted: the image was dropped.
        """
        if self.dropped:
            raise Aborted(f"image {self.name} was thrown away")
        if self.size // PAGE - self.inspected >= INSPECTED_TOGETHER or not (self.size % PAGE or self._ahead):
            self._inspect()
        used = self.size % PAGE
        if not used and not self._ahead:
            self._grow(size)
        elif size > self._ahead * PAGE and self._arena.adjoins(self._next + self._ahead) and self._afford(LARGEST):
            self._take(LARGEST, self._next + self._ahead)
        self._secure(ENTRY * self._ahead)
        first, count = self._next, self._ahead
        if used:
            _, first = self.table.at(len(self.table) - 1)
            count = count + 1 if first + 1 == self._next else 1
        fd, offset = self._arena.locate(first)
        self._room = self._arena.view(first, count)[used:]
        return Room(fd, offset + used, self._room)

    def written(self, count: int) -> None:
        """The first `count` bytes of what is left of the room reserved last are filled."""
        self.grow([count])

    def grow(self, runs: Sequence[int]) -> None:
        """The next bytes: of the room reserved last, zeros, of the room, ..., so many each. Zeros are whole pages, from
        the beginning of a page on.

        @raise OutOfMemory: the budget is used up.
        """
        self._update_hash(runs)
        if len(runs) > 1:
            self._grow_among_zeros(runs)
        else:
            self._hold(pages_of(self.size + runs[0]) - len(self.table))
        self.size += sum(runs)
        self.pool.moves += 1

    def _hold(self, pages: int) -> None:
        """So many of the pages ahead are this image's next ones."""
        if pages:
            self._note(pages)
            self.table.hold(self._next, pages)
            self._own(pages)

    def _own(self, pages: int) -> None:
        self.pool.pages.own(self._next, pages)
        self._next += pages
        self._ahead -= pages

    def _grow_among_zeros(self, runs: Sequence[int]) -> None:
        zeros = sum(runs[1::2]) // PAGE
        self._secure(ENTRY * (zeros + self._ahead))
        ends = [pages_of(end) for end in itertools.accumulate(runs, initial=self.size)]
        begun = ends[-1] - ends[0]
        self._note(begun)
        self.table.extend(self._next, numpy.diff(ends))
        self._own(begun - zeros)

    def _update_hash(self, runs: Sequence[int]) -> None:
        """The room that was filled is used up."""
        room, self._room = self._room, self._room[sum(runs[::2]) :]
        if self._hash is None:
            return
        at = 0
        for index, count in enumerate(runs):
            if index % 2:
                hash_zeros(self._hash, count)
            elif count:
                self._hash.update(room[at : at + count])
                at += count

    def finish(self, size: int, digest: bytes | None) -> None:
        """The end was seen.

        @raise ProtocolError: the sizes differ, or there is a digest although none was to come.
        @raise Aborted: the digests differ.
        """
        if size != self.size:
            raise ProtocolError(f"image {self.name} has {self.size} bytes, {size} were sent")
        if digest is not None and self._hash is None:
            raise ProtocolError(f"image {self.name} has a digest in a namespace without")
        if digest is not None and digest != self._hash.digest():
            raise Aborted(f"image {self.name}: its {size} bytes were changed on the way: their digest differs")
        self._inspect()
        self._return_room()
        self.digest = digest
        self.complete = True

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, or shares."""
        return self.table.pages[Kind.HELD] * PAGE

    def _secure(self, count: int) -> None:
        """At least `count` bytes are promised to this image.

        @raise OutOfMemory: they cannot be.
        """
        if not self._obtained(count):
            raise OutOfMemory(
                f"the cache's memory is full: {self._arena.used} of {self._arena.limit} bytes are in use",
                hint="give criu-relay-cache a larger --memory, or discard namespaces that are not needed",
            )

    def _obtained(self, count: int) -> bool:
        lack = count - self._promised
        if lack > 0:
            if not self.pool.reclaimer.obtain(lack):
                return False
            self._promised += lack
        return True

    def _note(self, pages: int) -> None:
        self._arena.note(ENTRY * pages)
        self._promised -= ENTRY * pages

    def _grow(self, size: int) -> None:
        """Take an extent: a generous one while the budget allows, else no more than is needed."""
        self._room = memoryview(b"")
        exact = min(pages_of(size), LARGEST // PAGE)
        wanted = class_of(max(size, self._extent * FACTOR))
        if not self._afford(wanted):
            if self._spare:
                self._next, self._ahead, self._spare = self._packed, self._spare, 0
                return
            fitting = [cls for cls in reversed(CLASSES) if cls <= exact * PAGE]
            wanted = next((cls for cls in fitting if self._obtained(cls + cls // PAGE * ENTRY)), PAGE)
            self._secure(wanted + wanted // PAGE * ENTRY)
        self._next = self._take(wanted)

    def _afford(self, size: int) -> bool:
        """An extent is promised to this image, unless the budget is too small for generosity."""
        lack = size + size // PAGE * ENTRY - self._promised
        if lack > 0:
            if lack > self._arena.available // GENEROUS or not self._arena.reserve(lack):
                return False
            self._promised += lack
        return True

    def _take(self, size: int, behind: int = -1) -> int:
        """An extent that was promised; the number of its first page."""
        self._extent = size
        self._promised -= size
        self._ahead += size // PAGE
        return self._arena.take(size, behind)

    def _return_room(self) -> None:
        self._room = memoryview(b"")
        self._arena.put(self._next, self._ahead, False)
        self._arena.put(self._packed, self._spare, False)
        self._arena.unreserve(self._promised)
        self._ahead = self._spare = self._promised = 0
        self.pool.reclaimer.freed()

    # Pages that need no memory of their own

    def _inspect(self) -> None:
        """Look at the pages that were completed since: what was written to them lies together, before the room."""
        start, stop = self.inspected, self.size // PAGE
        self.inspected = stop
        if self.pool.dedup is Dedup.OFF or start == stop:
            return
        self._room = memoryview(b"")
        if self.pool.dedup is Dedup.ZERO and self._plain(start, stop):
            return
        entries = self.table.slice(start, stop)
        first, count = together(entries)
        if not count:
            return
        if self.pool.dedup is Dedup.PAGES:
            self.pool.backlog.add(self)
        words = self._arena.words(first, count)
        empty = zero_rows(words)
        if self.pool.dedup is Dedup.ZERO and not empty.any():
            return
        held = numpy.flatnonzero(kinds(entries) == Kind.HELD)
        rows = numpy.flatnonzero(~empty)
        entries[held[empty]] = entry(Kind.ZERO)
        if self.pool.dedup is Dedup.PAGES and len(rows) and self.pool.short:
            arrived = self.index.arrived(first, rows)
            kept = rows[arrived.kept]
            entries[held[rows]] = arrived.settle(self._places(first, len(kept), len(held)))
        else:
            kept = rows
            entries[held[kept]] = self._places(first, len(kept), len(held))
        if len(kept) < len(held):
            self.table.replace(start, entries)
            self._pack(first, words, kept)

    def _plain(self, start: int, stop: int) -> bool:
        """These pages lie together and are no zeros, as can be seen at a glance."""
        (kind, first), (_, last) = self.table.at(start), self.table.at(stop - 1)
        adjoin = kind is Kind.HELD and last - first == stop - start - 1
        return adjoin and zeros_unlikely(self._arena.view(first, stop - start))

    def _places(self, first: int, kept: int, count: int) -> numpy.ndarray:
        """Make places the image's own for pages that are kept, of so many from `first` on: all stay, or are packed."""
        if kept == count:
            return numpy.arange(first, first + count)
        packed = min(kept, self._spare)
        self.pool.pages.own(self._packed, packed)
        return numpy.concatenate(
            [numpy.arange(self._packed, self._packed + packed), numpy.arange(first, first + kept - packed)]
        )

    def _pack(self, first: int, words: numpy.ndarray, kept: numpy.ndarray) -> None:
        """Move the pages that are kept, of those from `first` on, behind those that were packed before.

        What they leave takes the next bytes. When they leave only a part of it, the next that are kept are packed
        there, so that what comes is looked at in large parts.
        """
        packed = min(len(kept), self._spare)
        if packed:
            self._arena.words(self._packed, packed)[:] = words[kept[:packed]]
            self._packed += packed
            self._spare -= packed
        staying, freed = len(kept) - packed, len(words) - len(kept) + packed
        words[:staying] = words[kept[packed:]]
        self.pool.pages.disown(first + staying, self._next - first - staying)
        if self.size % PAGE:
            self._arena.view(first + staying, 1)[:] = self._arena.view(first + len(words), 1)
            last = self.size // PAGE
            self.table.replace(last, numpy.array([entry(Kind.HELD, first + staying)], numpy.uint64))
            self.pool.pages.own(first + staying, 1)
        self._next -= freed
        self._ahead += freed
        if staying and not self.size % PAGE:
            self._packed, self._spare, self._ahead = self._next, self._ahead, 0
        surplus = min((len(words) - len(kept)) * PAGE, self._promised)
        self._promised -= surplus
        self._arena.unreserve(surplus)
        self.pool.reclaimer.schedule()

    # Reading

    def opened(self, reader: Reader) -> None:
        """One more reader."""
        self.readers.add(reader)

    def closed(self, reader: Reader) -> None:
        """One reader less."""
        self.readers.discard(reader)
        self._give_back()

    # Throwing away

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

    def discard(self, offset: int, length: int, kind: Kind, reason: str = "") -> int:
        """Throw away the whole pages of a range, the last one of the image although it may not be full.

        @param kind: what they become.
        @param reason: for those who were about to read them.
        @return: the bytes of memory that go back.
        @raise Conflict: the image is not complete.
        """
        if not self.complete:
            raise Conflict(f"image {self.name} is being written", hint="try again later")
        start = pages_of(offset)
        stop = len(self.table) if offset + length >= self.size else (offset + length) // PAGE
        if stop <= start:
            return 0
        freed = self.give_up(start, stop, kind)
        if kind is Kind.DISCARDED:
            for reader in list(self.readers):
                reader.discarded(start * PAGE, stop * PAGE, reason)
        return freed

    def give_up(self, start: int, stop: int, kind: Kind) -> int:
        """The pages from `start` up to `stop` become another kind; the bytes of memory that go back."""
        entries = self.table.slice(start, stop)
        free = numbers(entries, Kind.HELD)
        if self.spill is not None:
            self.spill.punch(numbers(entries, Kind.SPILLED))
        self.table.replace(start, numpy.full(stop - start, entry(kind), numpy.uint64))
        self.pool.reclaimer.reclaim(free, self.index)
        return len(free) * PAGE

    def spilled(self, spill: Spill, start: int, entries: numpy.ndarray, freed: numpy.ndarray) -> None:
        """The pages from `start` on are in a file now.

        @param freed: those of the arena that they were.
        """
        self.spill = spill
        self.table.replace(start, entries)
        self.pool.reclaimer.reclaim(freed, self.index)

    def reset(self, reason: str) -> int:
        """The same as L{drop}, and whoever reads it is reset."""
        self.reset_readers(reason)
        return self.drop()

    def reset_readers(self, reason: str) -> None:
        """Whoever reads it is told that it ends here."""
        for reader in list(self.readers):
            reader.discarded(0, self.size, reason)

    def _give_back(self) -> None:
        if self.dropped and not self.readers:
            self.pool.reclaimer.reclaim(numbers(self.table.slice(0, len(self.table)), Kind.HELD), self.index)
            self._arena.forget(ENTRY * len(self.table))
            self._return_room()
            if self.spill is not None:
                self.spill.leave(self)
            self.table.clear()
