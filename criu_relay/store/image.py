"""One image in memory: its bytes in pages, appended in order, read at any offset."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy
import xxhash
from zope.interface import implementer

from criu_relay.errors import Aborted, Conflict, ProtocolError
from criu_relay.flow.zeros import PAGE, hash_zeros, zero_rows, zeros_unlikely
from criu_relay.interfaces import IGrowing, Room
from criu_relay.store.ahead import Ahead
from criu_relay.store.memory import Memory
from criu_relay.store.pages import PageIndex
from criu_relay.store.policy import Dedup
from criu_relay.store.readable import Readable, Spill
from criu_relay.store.table import ENTRY, RUN, Kind, PageTable, entry, kinds, numbers, pages_of, together

INSPECTED_TOGETHER = 4 * RUN
"""Pages that one look takes in, as it costs much by itself: up to 0.25 ms for zeros, 1.5 ms for equal ones."""

NO_ROOM = memoryview(b"")


class Reader(Protocol):
    """Somebody who has an image open."""

    def discarded(self, start: int, stop: int, reason: str) -> None:
        """These bytes are not there any more: if they were still to be read, the reading ends."""


@implementer(IGrowing)
class Image(Readable):
    """A named sequence of bytes.

    What is written lies in pages of the arena; once a page is complete it may turn out to be zeros, or equal to
    another one, and then its memory takes the next bytes.
    Pages are entered in the table some at a time, or when somebody looks: C{table} has them all.

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
        self._ahead = Ahead(memory)
        self._begun = 0  # pages of those ahead that were written to and are not in the table yet
        self._inspected_at = 0  # bytes that are waited for before the next look at pages
        self._fd, self._offset = -1, 0  # of the room
        self._room = NO_ROOM

    # Growing

    def promise(self, count: int) -> None:
        """`count` bytes that were reserved are for what comes next."""
        self._ahead.promise(count)

    def reserve(self, size: int) -> Room:
        """Room for the next bytes, behind those that came last or in a new extent.

        @raise OutOfMemory: the budget is used up.
        @raise Aborted: the image was dropped.
        @raise Conflict: the page where it ends was discarded.
        """
        if len(self._room) < size or self.size >= self._inspected_at:
            self._make_room(size)
        return Room(self._fd, self._offset, self._room)

    def _make_room(self, size: int) -> None:
        if self.dropped:
            raise Aborted(f"image {self.name} was thrown away")
        self._room = NO_ROOM
        self._hold()
        ahead = self._ahead
        if self.size // PAGE - self.inspected >= INSPECTED_TOGETHER or not (self.size % PAGE or ahead.count):
            self._inspect()
        self._inspected_at = (self.inspected + INSPECTED_TOGETHER) * PAGE
        used = self.size % PAGE
        if not used and not ahead.count:
            ahead.grow(size)
        elif size > ahead.count * PAGE:
            ahead.extend()
        ahead.secure(ENTRY * ahead.count)
        first, count = ahead.next, ahead.count
        if used:
            kind, first = self.table.at(len(self.table) - 1)
            if kind is not Kind.HELD:
                raise Conflict(f"image {self.name} cannot go on at {self.size}: the page there was thrown away")
            count = count + 1 if first + 1 == ahead.next else 1
        self._fd, offset = self._arena.locate(first)
        self._offset = offset + used
        self._room = self._arena.view(first, count)[used:]

    def written(self, count: int) -> None:
        """The first `count` bytes of what is left of the room reserved last are filled.

        @raise Aborted: the image was dropped.
        """
        self._use_up(count)
        self.size += count
        self._begun = pages_of(self.size) - len(self._table)
        self.pool.moves += 1

    def grow(self, runs: Sequence[int]) -> None:
        """The next bytes: of the room reserved last, zeros, of the room, ..., so many each. Zeros are whole pages, from
        the beginning of a page on.

        @raise OutOfMemory: the budget is used up.
        """
        if len(runs) == 1:
            self.written(runs[0])
            return
        self._hold()
        for index, count in enumerate(runs):
            if not index % 2:
                self._use_up(count)
            elif self._hash is not None:
                hash_zeros(self._hash, count)
        zeros = sum(runs[1::2]) // PAGE
        self._ahead.secure(ENTRY * (zeros + self._ahead.count))
        ends = [pages_of(end) for end in itertools.accumulate(runs, initial=self.size)]
        begun = ends[-1] - ends[0]
        self._ahead.note(begun)
        self._table.extend(self._ahead.next, numpy.diff(ends))
        self._ahead.own(begun - zeros)
        self.size += sum(runs)
        self.pool.moves += 1

    def _use_up(self, count: int) -> None:
        """So much of the room is filled."""
        if self.dropped:
            raise Aborted(f"image {self.name} was thrown away")
        if self._hash is not None and count:
            self._hash.update(self._room[:count])
        self._room = self._room[count:]
        self._offset += count

    @property
    def table(self) -> PageTable:
        """Its pages."""
        if self._begun:
            self._hold()
        return self._table

    def _hold(self) -> None:
        """The pages that were begun are this image's. They become so together, as one costs as much as many."""
        pages, self._begun = self._begun, 0
        if pages:
            self._ahead.note(pages)
            self._table.hold(self._ahead.next, pages)
            self._ahead.own(pages)

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
        self._end_growing()
        self.digest = digest
        self.complete = True

    def _end_growing(self) -> None:
        self._hold()
        self._room = NO_ROOM
        self._ahead.give_back()

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, or shares."""
        return self.table.pages[Kind.HELD] * PAGE

    # Pages that need no memory of their own

    def _inspect(self) -> None:
        """Look at the pages that were completed since: what was written to them lies together, before the room."""
        start, stop = self.inspected, self.size // PAGE
        self.inspected = stop
        if self.pool.dedup is Dedup.OFF or start == stop:
            return
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
        packed = min(kept, self._ahead.spare)
        begin = self._ahead.packed
        self.pool.pages.own(begin, packed)
        return numpy.concatenate([numpy.arange(begin, begin + packed), numpy.arange(first, first + kept - packed)])

    def _pack(self, first: int, words: numpy.ndarray, kept: numpy.ndarray) -> None:
        """Move the pages that are kept, of those from `first` on, behind those that were packed before.

        What they leave takes the next bytes. When they leave only a part of it, the next that are kept are packed
        there, so that what comes is looked at in large parts.
        """
        ahead = self._ahead
        packed = min(len(kept), ahead.spare)
        if packed:
            self._arena.words(ahead.packed, packed)[:] = words[kept[:packed]]
            ahead.packed += packed
            ahead.spare -= packed
        staying, freed = len(kept) - packed, len(words) - len(kept) + packed
        words[:staying] = words[kept[packed:]]
        self.pool.pages.disown(first + staying, ahead.next - first - staying)
        if self.size % PAGE:
            self._arena.view(first + staying, 1)[:] = self._arena.view(first + len(words), 1)
            last = self.size // PAGE
            self.table.replace(last, numpy.array([entry(Kind.HELD, first + staying)], numpy.uint64))
            self.pool.pages.own(first + staying, 1)
        ahead.next -= freed
        ahead.count += freed
        if staying and not self.size % PAGE:
            ahead.packed, ahead.spare, ahead.count = ahead.next, ahead.count, 0
        ahead.unneeded((len(words) - len(kept)) * PAGE)
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
        self._room = NO_ROOM
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
            self._end_growing()
            if self.spill is not None:
                self.spill.leave(self)
            self.table.clear()
