"""What the cache's memory is taken by, in figures that add up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy

from criu_relay.flow.zeros import PAGE
from criu_relay.store.generation import Generation, State
from criu_relay.store.image import Image
from criu_relay.store.memory import Memory
from criu_relay.store.table import Kind, numbers

Figures = dict[str, int]

SHARED = "shared"
"""Bytes of pages that another image, or an earlier page, is counted as holding."""


class Accounts:
    """All figures at one moment: each page of the arena is held by the first that has it, and shared by the others.

    @ivar of: by generation: bytes of its images by what became of them; together they are its C{total}.
    @ivar memory: bytes of the budget by what they are for; all but "recycled" and "limit" together are "used".
    """

    def __init__(self, memory: Memory, generations: Iterable[Generation]) -> None:
        """@param generations: oldest first."""
        self._memory = memory
        self._seen = memory.pages.seen()
        self.of: dict[Generation, Figures] = {one: self._of(one) for one in generations}
        arena = memory.arena
        images = int(numpy.count_nonzero(self._seen)) * PAGE
        self.memory: Figures = {
            "used": arena.used,
            "limit": arena.limit,
            "recycled": arena.recycled,
            "images": images,
            "room": arena.allocated - images,
            "index": arena.noted,
            "credit": arena.reserved,
        }

    def _of(self, generation: Generation) -> Figures:
        found = dict.fromkeys([*(kind.name.lower() for kind in Kind), SHARED], 0)
        for image in generation.images():
            self._add(image, found)
        rest = generation.total - sum(found.values())
        found["released" if generation.state is State.RESTORED else "discarded"] += rest
        return found

    def _add(self, image: Image, found: Figures) -> None:
        table = image.table
        for kind in Kind:
            found[kind.name.lower()] += table.pages[kind] * PAGE
        if table.pages[Kind.HELD]:
            shared = (table.pages[Kind.HELD] - self._first(image)) * PAGE
            found["held"] -= shared
            found[SHARED] += shared
        if image.size % PAGE:
            found[table.at(len(table) - 1)[0].name.lower()] -= PAGE - image.size % PAGE

    def _first(self, image: Image) -> int:
        """How many of its pages nobody has been counted as holding before."""
        held = numbers(image.table.slice(0, len(image.table)), Kind.HELD)
        if not self._memory.pages.duplicates:
            self._seen[held] = True
            return len(held)
        new = numpy.unique(held[~self._seen[held]])
        self._seen[new] = True
        return len(new)
