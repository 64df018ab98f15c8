"""Images that are kept whole, for CRIU's old link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from criu_relay.errors import OutOfMemory
from criu_relay.flow.serve import ImageServer
from criu_relay.flow.vectors import NO_RUNS
from criu_relay.interfaces import IArena, IExtent, IImageSink, IOpenedImage, Mode, Room


class Piece:
    """A run of an image's bytes in one extent; see L{criu_relay.flow.serve.Piece}."""

    def __init__(self, extent: IExtent, start: int) -> None:
        self.extent = extent
        self.start = start
        self.filled = 0

    def rest(self, skip: int) -> Piece:
        """The same from C{skip} on."""
        rest = Piece(self.extent, self.start + skip)
        rest.filled = self.filled - skip
        return rest

    @property
    def fd(self) -> int:
        """The memfd."""
        return int(self.extent.fd)

    @property
    def offset(self) -> int:
        """Where it lies in the memfd."""
        return int(self.extent.offset) + self.start

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return self.filled

    def view(self, most: int) -> memoryview:
        """The bytes, at most so many."""
        view: memoryview = self.extent.view[self.start : self.start + min(most, self.filled)]
        return view


@implementer(IImageSink)
class WholeImage:
    """One image, kept whole.

    @ivar shared: pages of it may still be in a pipe.
    """

    def __init__(self, arena: IArena, name: str, label: str, ended: Callable[[WholeImage], None]) -> None:
        self.name = name
        self.label = label
        self.size = 0
        self.sent = 0
        self.complete = False
        self.shared = False
        self.mode = Mode.REPLACE
        self._arena = arena
        self._ended = ended
        self._failed: Callable[[str], None] = lambda reason: None
        self._pieces: list[Piece] = []
        self._producer: Any = None

    def begin(self, mode: Mode, failed: Callable[[str], None]) -> None:
        """A write begins."""
        self.mode = mode
        self.complete = False
        self._failed = failed

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Its producer is never paused: there is room, or the migration fails."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See L{IImageSink}."""
        self._producer = None

    def reserve(self, size: int) -> Room:
        """See L{IImageSink.reserve}.

        @raise OutOfMemory: the image does not fit.
        """
        last = self._pieces[-1] if self._pieces else None
        if last is None or last.filled == last.extent.size:
            extent = self._arena.allocate(size)
            if extent is None:
                raise OutOfMemory(
                    f"{self.name} does not fit: CRIU's old link needs whole images, and"
                    f" {self._arena.used} of {self._arena.limit} bytes are in use",
                    hint="link to a criu-relay-cache, which takes images of any size",
                )
            last = Piece(extent, 0)
            self._pieces.append(last)
        return Room(last.fd, last.offset + last.filled, last.extent.view[last.filled :])

    def written(self, count: int) -> None:
        """See L{IImageSink.written}."""
        self._pieces[-1].filled += count
        self.size += count

    def write(self, data: Any) -> None:
        """See L{IImageSink}."""
        rest = memoryview(data)
        while rest:
            room = self.reserve(len(rest))
            count = min(len(rest), len(room.view))
            room.view[:count] = rest[:count]
            self.written(count)
            rest = rest[count:]

    def end(self) -> None:
        """See L{IImageSink.end}."""
        self.complete = True
        self._ended(self)

    def fail(self, reason: str) -> None:
        """See L{IImageSink.fail}."""
        self._failed(reason)

    def piece(self, offset: int) -> Piece:
        """The run of bytes from C{offset} on."""
        for piece in self._pieces:
            if offset < piece.filled:
                return piece.rest(offset)
            offset -= piece.filled
        raise IndexError(offset)

    def runs(self, offset: int, most: int) -> numpy.ndarray:
        """See L{criu_relay.flow.serve.Readable}: each piece is served by itself."""
        return NO_RUNS

    def passed(self, offset: int, count: int) -> None:
        """A pipe refers to bytes of it."""
        self.shared = True

    def moved(self, position: int) -> None:
        """All of it stays until the end."""

    def free(self) -> None:
        """Give its memory back; nothing more is wanted."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        while self._pieces:
            self._arena.free(self._pieces.pop().extent, self.shared)


@implementer(IOpenedImage)
class KeptImage:
    """An image that is read back; see L{IOpenedImage}."""

    def __init__(self, reactor: Any, image: WholeImage) -> None:
        self._reactor = reactor
        self._image = image
        self.size = image.size

    def serve(self, fd: int) -> Deferred[int]:
        """See L{IOpenedImage.serve}."""
        server = ImageServer(self._reactor, self._image, fd)
        server.start()
        return server.done

    def whole(self, most: int) -> bytes | None:
        """See L{IOpenedImage.whole}: one reader at a time, so nobody waits for others."""
        return None

    def skip(self, offset: int, length: int) -> tuple[int, int]:
        """See L{IOpenedImage.skip}: a dump that reads its parent gets all of it."""
        return self.size, self.size

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See L{IOpenedImage.read}."""
        return succeed(bytes(self._image.piece(offset).view(length)) if offset < self.size else b"")

    def close(self) -> None:
        """See L{IOpenedImage.close}."""
