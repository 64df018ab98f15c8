"""Pages that came while there was memory: equal ones are found when there is time, not while a process stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

from criu_relay.flow.zeros import PAGE
from criu_relay.store.pages import INDEX_ENTRY
from criu_relay.store.table import Kind

if TYPE_CHECKING:
    from criu_relay.store.image import Image


class Backlog:
    """Images that have such pages, in the order in which they came."""

    def __init__(self) -> None:
        self._images: dict[Image, None] = {}

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: Image) -> None:
        """Some of its pages may have to be compared."""
        self._images[image] = None

    def work(self, most: int) -> bool:
        """Compare about so many bytes; False: nothing can be done now."""
        while self._images and most > 0:
            image = next(iter(self._images))
            if image.dropped or image.compared >= image.inspected:
                del self._images[image]
                continue
            done = compare(image, image.compared)
            if not done:
                return False
            image.compared += done
            image.pool.stirred = True
            most -= done * PAGE
        return bool(self._images)


def compare(image: Image, start: int) -> int:
    """Hold those of the next pages (at most 1 MiB) once that are here already.

    @return: how many it looked at; 0: there is no room to remember them.
    """
    kind, first, count = image.table.run(start)
    count = min(count, image.inspected - start)
    if kind is not Kind.HELD:
        return count
    _, count = next(image.pool.arena.parts(first, count))
    rows = image.pool.pages.unknown(first, count)
    room = image.pool.arena.available // INDEX_ENTRY
    if room < len(rows):
        count = int(rows[room])
        rows = rows[:room]
    if len(rows):
        arrived = image.index.arrived(first, rows)
        own = first + rows
        entries = image.table.slice(start, start + count)
        entries[rows] = arrived.settle(own[arrived.kept])
        image.table.replace(start, entries)
        image.pool.reclaimer.reclaim(own[~arrived.kept], image.index)
    return count
