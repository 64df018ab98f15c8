"""Pages of the arena that images stand on: who refers to them, and equal ones found by content."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import xxhash

from criu_relay.store.arena import Arena

INDEX_ENTRY = 128
"""Bytes that the budget counts for a page that can be found by its content: a key (32), a number (32) and its place in
a dictionary (30 to 60), by sys.getsizeof."""

SHARDS = 256
"""Dictionaries of an index: each grows by itself, so that no turn of the reactor moves more than a 256th of it."""

_KEY = (1 << 60) - 1
"""Bits of the hash that are the key: what an int of 32 bytes has room for."""


def content_key(page: memoryview) -> int:
    """What equal pages have in common, and few others."""
    return xxhash.xxh3_128_intdigest(page) & _KEY


class Pages:
    """The references to pages.

    @ivar duplicates: references beyond the first of each page.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.duplicates = 0
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

    def share(self, number: int) -> None:
        """One more page of an image is this one."""
        self._references[number] += 1
        self.duplicates += 1

    def passed(self, numbers: numpy.ndarray) -> None:
        """A pipe or socket may refer to these now."""
        self._passed[numbers] = True

    def drop(self, numbers: numpy.ndarray, index: PageIndex) -> None:
        """Pages of an image are not wanted any more; those that nobody else has go back to the arena.

        @param index: where they can be found.
        """
        unique, counts = numpy.unique(numbers, return_counts=True)
        self._references[unique] -= counts.astype(numpy.uint32)
        free = unique[self._references[unique] == 0]
        self.duplicates -= len(numbers) - len(free)
        for number in free[self._indexed[free]].tolist():
            index.remove(number)
            self._indexed[number] = False
        for first, count in runs(free):
            self.arena.put(first, count, bool(self._passed[first : first + count].any()))

    def indexed(self, number: int) -> None:
        """It can be found by its content."""
        self._indexed[number] = True

    def seen(self) -> numpy.ndarray:
        """A mark for each page, none set, to count each once."""
        return numpy.zeros(len(self._references), bool)


class PageIndex:
    """Pages of one owner by their content: the hash finds a candidate, the bytes decide."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._arena = pages.arena
        self._shards: list[dict[int, int]] = [{} for _ in range(SHARDS)]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    def find(self, key: int, page: memoryview) -> int | None:
        """The number of a page with exactly these bytes; None: there is none."""
        number = self._shards[key % SHARDS].get(key)
        if number is None or bytes(self._arena.view(number, 1)) != bytes(page):
            return None
        return number

    def add(self, key: int, number: int) -> None:
        """It can be found from now on, unless another page has its key, or the budget has no room for the entry."""
        shard = self._shards[key % SHARDS]
        if key not in shard and self._arena.reserve(INDEX_ENTRY):
            self._arena.note(INDEX_ENTRY)
            shard[key] = number
            self._pages.indexed(number)

    def remove(self, number: int) -> None:
        """Its bytes, which are still there, are not wanted any more."""
        key = content_key(self._arena.view(number, 1))
        del self._shards[key % SHARDS][key]
        self._arena.forget(INDEX_ENTRY)


def runs(numbers: numpy.ndarray) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, count) of those that follow one another."""
    if len(numbers):
        ends = numpy.flatnonzero(numpy.diff(numbers) != 1) + 1
        for part in numpy.split(numbers, ends):
            yield int(part[0]), len(part)
