"""Pages of the arena that images stand on: who refers to them, and equal ones found by content."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy
import xxhash

from criu_relay.flow.zeros import PAGE
from criu_relay.store.arena import Arena

INDEX_ENTRY = 128
"""Bytes that the budget counts for a page that can be found by its content: a key (32), a number (32) and its place in
a dictionary (30 to 60), by sys.getsizeof."""

SHARDS = 256
"""Dictionaries of an index. Each grows by itself, so that no turn of the reactor moves much of it."""

PLACES = 16 * SHARDS
"""Parts of all keys. The largest dictionary has twice as many as the smallest, so that they grow one after the other:
if all did at once, the index would take most just then, a seventh more."""

_KEY = (1 << 60) - 1
"""Bits of the hash that are the key: what an int of 32 bytes has room for."""


def content_keys(view: memoryview, rows: numpy.ndarray) -> list[int]:
    """What equal pages have in common, and few others: for these pages of a view.

    The lower half of a page's xxh3-128 is its xxh3-64.
    """
    pages = [slice(start, start + PAGE) for start in (rows * PAGE).tolist()]
    return [whole & _KEY for whole in map(xxhash.xxh3_64_intdigest, map(view.__getitem__, pages))]


class Pages:
    """The references to pages.

    @ivar duplicates: references beyond the first of each page.
    @ivar known: pages that can be found by their content.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.duplicates = self.known = 0
        self._references = numpy.zeros(0, numpy.uint32)
        self._passed = numpy.zeros(0, bool)
        self._indexed = numpy.zeros(0, bool)

    def own(self, first: int, count: int) -> None:
        """An image has these, and nobody else."""
        if len(self._references) < self.arena.pages:
            more = self.arena.pages - len(self._references)
            self._references = numpy.concatenate([self._references, numpy.zeros(more, numpy.uint32)])
            self._passed = numpy.concatenate([self._passed, numpy.zeros(more, bool)])
            self._indexed = numpy.concatenate([self._indexed, numpy.zeros(more, bool)])
        self._references[first : first + count] = 1
        self._passed[first : first + count] = False

    def disown(self, first: int, count: int) -> None:
        """Nobody has these after all."""
        self._references[first : first + count] = 0

    def share(self, numbers: numpy.ndarray) -> None:
        """One more page of an image is each of these; a number may come several times."""
        numpy.add.at(self._references, numbers, 1)
        self.duplicates += len(numbers)

    def passed(self, numbers: numpy.ndarray) -> None:
        """A pipe or socket may refer to these now."""
        self._passed[numbers] = True

    def drop(self, numbers: numpy.ndarray, index: PageIndex) -> None:
        """Pages of an image are not wanted any more; those that nobody else has go back to the arena.

        @param index: where they can be found.
        """
        free = self._released(numbers)
        if self.known:
            known = free[self._indexed[free]]
            index.remove(known)
            self._indexed[known] = False
            self.known -= len(known)
        for first, count in runs(free):
            self.arena.put(first, count, bool(self._passed[first : first + count].any()))

    def _released(self, numbers: numpy.ndarray) -> numpy.ndarray:
        """Take a reference off each of these; those that have none any more, ascending."""
        if not self.duplicates:
            free = numpy.sort(numbers)
            self._references[free] = 0
            return free
        unique, counts = numpy.unique(numbers, return_counts=True)
        self._references[unique] -= counts.astype(numpy.uint32)
        free = unique[self._references[unique] == 0]
        self.duplicates -= len(numbers) - len(free)
        return free

    def indexed(self, numbers: numpy.ndarray) -> None:
        """They can be found by their content."""
        self._indexed[numbers] = True
        self.known += len(numbers)

    def unknown(self, first: int, count: int) -> numpy.ndarray:
        """Which of these cannot be found by their content, counted from C{first}."""
        return numpy.flatnonzero(~self._indexed[first : first + count])

    def seen(self) -> numpy.ndarray:
        """A mark for each page, none set, to count each once."""
        return numpy.zeros(len(self._references), bool)


class PageIndex:
    """Pages of one owner by their content: the hash finds a candidate, the bytes decide."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self._arena = pages.arena
        shards: list[dict[int, int]] = [{} for _ in range(SHARDS)]
        self._shards = [shards[int(SHARDS * math.log2(1 + place / PLACES))] for place in range(PLACES)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def arrived(self, first: int, rows: numpy.ndarray) -> Arrived:
        """Pages that are new, at C{first} + C{rows} in one extent."""
        return Arrived(self, first, rows)

    def add(self, keys: list[int], numbers: numpy.ndarray) -> None:
        """Pages can be found from now on by keys that no other has, as far as the budget has room for the entries."""
        count = min(len(keys), self._arena.available // INDEX_ENTRY)
        self._arena.reserve(count * INDEX_ENTRY)
        self._arena.note(count * INDEX_ENTRY)
        for key, number in zip(keys[:count], numbers[:count].tolist(), strict=True):
            self._shards[key % PLACES][key] = number
        self.pages.indexed(numbers[:count])
        self._count += count

    def remove(self, numbers: numpy.ndarray) -> None:
        """The bytes of these, which are still there, are not wanted any more."""
        for first, count in runs(numbers):
            for part, length in self._arena.parts(first, count):
                for key in content_keys(self._arena.view(part, length), numpy.arange(length)):
                    del self._shards[key % PLACES][key]
        self._arena.forget(len(numbers) * INDEX_ENTRY)
        self._count -= len(numbers)

    def candidates(self, keys: list[int], own: numpy.ndarray) -> numpy.ndarray:
        """For each page the first that has its key: one that can be found, one of these, or itself."""
        seen: dict[int, int] = {}
        return numpy.array(
            [
                number if (number := self._shards[key % PLACES].get(key)) is not None else seen.setdefault(key, new)
                for key, new in zip(keys, own.tolist(), strict=True)
            ]
        )


class Arrived:
    """Pages that have come, in one extent, and which of them are here already.

    @ivar kept: for each whether it is not.
    """

    def __init__(self, index: PageIndex, first: int, rows: numpy.ndarray) -> None:
        """@param rows: at least one; from `first` on."""
        self._index = index
        count = int(rows[-1]) + 1
        self._keys = content_keys(index.pages.arena.view(first, count), rows)
        self._own = rows + first
        self._equal_to = index.candidates(self._keys, self._own)
        alike = numpy.flatnonzero(self._equal_to != self._own)
        words = index.pages.arena.words(first, count)
        shared = alike[index.pages.arena.equal(self._equal_to[alike], words[rows[alike]])]
        self.kept = numpy.ones(len(rows), bool)
        self.kept[shared] = False

    def settle(self, places: numpy.ndarray) -> numpy.ndarray:
        """Share those that are here already; the others can be found at C{places} from now on.

        @return: for each page its number.
        """
        numbers = numpy.empty(len(self._own), numpy.int64)
        numbers[self.kept] = places
        equal_to = self._equal_to[~self.kept]
        first = numpy.minimum(numpy.searchsorted(self._own, equal_to), len(self._own) - 1)
        numbers[~self.kept] = numpy.where(self._own[first] == equal_to, numbers[first], equal_to)
        self._index.pages.share(numbers[~self.kept])
        new = self._equal_to == self._own
        self._index.add(list(itertools.compress(self._keys, new.tolist())), numbers[new])
        return numbers


def runs(numbers: numpy.ndarray) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, count) of those that follow one another."""
    if len(numbers):
        ends = numpy.flatnonzero(numpy.diff(numbers) != 1) + 1
        for part in numpy.split(numbers, ends):
            yield int(part[0]), len(part)
