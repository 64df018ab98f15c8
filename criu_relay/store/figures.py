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

_NAMES = (*(kind.name.lower() for kind in Kind), SHARED)
_NONE = [0] * len(Kind)


class Accounts:
    """All figures at one moment: each page of the arena is held by the first that has it, and shared by the others.

    @ivar of: by generation: bytes of its images by what became of them; together they are its C{total}.
    @ivar memory: bytes of the budget by what they are for; all but "recycled" and "limit" together are "used".
    """

    def __init__(self, memory: Memory, generations: Iterable[Generation]) -> None:
        """@param generations: oldest first."""
        self._pages = memory.pages
        self._seen = memory.pages.seen()
        self._held = 0
        self.of: dict[Generation, Figures] = {one: self._of(one) for one in generations}
        arena = memory.arena
        images = self._held * PAGE
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
        images = [image for image in generation.images() if len(image.table)]
        pages = [sum(counts) for counts in zip(*(image.table.pages for image in images), strict=True)] or _NONE
        first = self._first(images) if self._pages.duplicates else pages[Kind.HELD]
        self._held += first
        sizes = [count * PAGE for count in (*pages, pages[Kind.HELD] - first)]
        sizes[Kind.HELD] = first * PAGE
        for image in images:
            if image.size % PAGE:
                sizes[image.table.last] -= PAGE - image.size % PAGE
        found = dict(zip(_NAMES, sizes, strict=True))
        rest = generation.total - sum(sizes)
        found["released" if generation.state is State.RESTORED else "discarded"] += rest
        return found

    def _first(self, images: Iterable[Image]) -> int:
        """How many of their pages nobody has been counted as holding before."""
        tables = [image.table.slice(0, len(image.table)) for image in images]
        held = numbers(numpy.concatenate(tables), Kind.HELD) if tables else numpy.zeros(0, numpy.int64)
        new = numpy.unique(held[~self._seen[held]])
        self._seen[new] = True
        return len(new)
