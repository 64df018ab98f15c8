"""What one process did one after the other over several connections, in that order again.

A client that closes a connection and then makes the next one has finished with the first; the reactor may see it the
other way round.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from criu_relay.local.connection import has_unread


class Arriving(Protocol):
    """A connection whose request is not complete."""

    @property
    def delayed(self) -> bool:
        """Something that it sent is read and not handled yet."""

    def socket(self) -> int:
        """Its descriptor."""


class Arrivals:
    """The connections of one socket whose requests are not complete, in the order of their making.

    A request is handled once nothing waits in the connections made before; a silent one holds nobody up.
    """

    def __init__(self) -> None:
        self._connections: dict[Arriving, None] = {}

    def add(self, connection: Arriving) -> None:
        """One was made."""
        self._connections[connection] = None

    def discard(self, connection: Arriving) -> None:
        """Its request is complete, or it is gone."""
        self._connections.pop(connection, None)

    def must_wait(self, connection: Arriving) -> bool:
        """Whether one that was made before has something to say."""
        earlier = []
        for other in self._connections:
            if other is connection:
                break
            if other.delayed:
                return True
            earlier.append(other.socket())
        return bool(earlier) and has_unread(earlier)


@dataclass(eq=False)
class Turn:
    """A use of one image that waits for those before it.

    @ivar begin: called once, when it is its turn.
    @ivar descriptor: a writer's, -1 when it only reads.
    @ivar begun: it is its turn, or was.
    """

    begin: Callable[[], None]
    descriptor: int = -1
    begun: bool = False


class Turns:
    """The uses of each image of one dump, one after the other: what is written twice is written in that order."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], deque[Turn]] = {}
        self._moving: set[tuple[str, str]] = set()

    def enter(self, image: tuple[str, str], turn: Turn) -> None:
        """Begin, now or when the ones before it have left.

        @param image: snapshot label and name.
        """
        self._queues.setdefault(image, deque()).append(turn)
        self._move_on(image)

    def leave(self, image: tuple[str, str], turn: Turn) -> None:
        """Done, or not wanted any more."""
        queue = self._queues.get(image, deque())
        if turn in queue:
            queue.remove(turn)
            self._move_on(image)

    def _move_on(self, image: tuple[str, str]) -> None:
        """Begin what is first now. One that leaves at once does not nest."""
        if image in self._moving:
            return
        self._moving.add(image)
        try:
            queue = self._queues[image]
            while queue and not queue[0].begun:
                queue[0].begun = True
                queue[0].begin()
            if not queue:
                del self._queues[image]
        finally:
            self._moving.remove(image)

    def being_written(self, image: tuple[str, str]) -> bool:
        """Whether somebody can still add bytes to it: then it is not complete, and may not be for long."""
        return any(turn.descriptor >= 0 and _writers_left(turn.descriptor) for turn in self._queues.get(image, ()))


def _writers_left(descriptor: int) -> bool:
    """Whether anybody holds the other end of a pipe or socket (POLLHUP: nobody does, poll(2))."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(events & select.POLLHUP for _, events in poll.poll(0))
