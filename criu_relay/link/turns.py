"""Who sends next: migrations share the link byte by byte, and the images of one migration take turns."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from criu_relay.link.images import QueuedImage
    from criu_relay.link.outgoing import OutgoingMigration


class Turns:
    """The images that have something to send.

    Fair queueing by served bytes: the migration that was served least is next; one that begins to send counts as having
    been served as much as the one whose turn it is, so that it neither waits nor catches up on what it never wanted.
    """

    def __init__(self) -> None:
        self._images: dict[OutgoingMigration, deque[QueuedImage]] = {}
        self._order: list[tuple[int, int, OutgoingMigration]] = []
        self._numbers = itertools.count()
        self._served = 0

    def add(self, image: QueuedImage) -> None:
        """It has something to send."""
        queue = self._images.get(image.migration)
        if queue is None:
            self._images[image.migration] = deque([image])
            self._push(image.migration, self._served)
        else:
            queue.append(image)

    def next(self) -> QueuedImage | None:
        """Whose turn it is; say with L{took} how much it sent."""
        if not self._order:
            return None
        self._served, _, migration = heapq.heappop(self._order)
        return self._images[migration].popleft()

    def took(self, image: QueuedImage, size: int, waits: bool = False) -> None:
        """The turn that L{next} gave is over.

        @param size: bytes that were sent in it.
        @param waits: it has something to send and cannot; it is added again when it can.
        """
        queue = self._images[image.migration]
        if image.ready and not waits:
            queue.append(image)
        if queue:
            self._push(image.migration, self._served + size)
        else:
            del self._images[image.migration]

    def _push(self, migration: OutgoingMigration, served: int) -> None:
        heapq.heappush(self._order, (served, next(self._numbers), migration))
