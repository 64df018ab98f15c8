"""An image of the store, opened for reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.interfaces import IReactorFDSet
from zope.interface import implementer

from criu_relay.errors import Conflict, RelayError
from criu_relay.flow.serve import ImageServer
from criu_relay.flow.zeros import PAGE
from criu_relay.interfaces import IOpenedImage
from criu_relay.store.image import Image
from criu_relay.store.piece import Piece
from criu_relay.store.table import RUN, Kind, pages_of


def read_bytes(image: Image, offset: int, length: int) -> bytes:
    """A copy of at most C{length} bytes (1 MiB) of an image from C{offset} on."""
    parts: list[bytes] = []
    end = min(image.size, offset + min(length, RUN * PAGE))
    while offset < end:
        part = bytes(image.piece(offset).view(end - offset))
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def copied(image: Image) -> bytes:
    """All bytes of a small image."""
    return read_bytes(image, 0, image.size)


@implementer(IOpenedImage)
class OpenedImage:
    """See L{IOpenedImage}: keeps the image's memory until closed and no server of it is left."""

    def __init__(
        self,
        reactor: IReactorFDSet,
        image: Image,
        served: Callable[[int], None] = lambda count: None,
        release: bool = False,
        copy: Callable[[Image], bytes] = copied,
    ) -> None:
        """
        @param served: see L{ImageServer}.
        @param release: what was served is given back at once.
        @param copy: see L{copied}; what L{whole} gives.
        """
        self._reactor = reactor
        self._served = served
        self._image = image
        self._release = release
        self._copy = copy
        self._released = 0  # pages
        self._server: ImageServer | None = None
        self._open, self._left = True, False
        self._gone = ""
        self.size = image.size
        image.opened(self)

    # IOpenedImage

    def serve(self, fd: int) -> Deferred[int]:
        """See L{IOpenedImage.serve}."""
        if self._gone:
            return fail(Conflict(self._gone))
        try:
            server = ImageServer(self._reactor, self, fd, self._served)
        except OSError as error:
            return fail(RelayError(f"cannot serve an image: {error}"))
        self._server = server
        server.start()

        def over(result: object) -> object:
            self._server = None
            self._closed()
            return result

        return server.done.addBoth(over)

    def whole(self, most: int) -> bytes | None:
        """See L{IOpenedImage.whole}."""
        if self.size > most or self._gone:
            return None
        try:
            data = self._copy(self._image)
        except (OSError, RelayError):
            return None
        self._served(self.size)
        self.moved(self.size)
        return data

    def skip(self, offset: int, length: int) -> tuple[int, int]:
        """See L{IOpenedImage.skip}."""
        if self._server is None:
            return self.size, self.size
        return self._server.skip(offset, length)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See L{IOpenedImage.read}."""
        if self._gone:
            return fail(Conflict(self._gone))
        return execute(read_bytes, self._image, offset, length)

    def close(self) -> None:
        """See L{IOpenedImage.close}."""
        self._open = False
        self._closed()

    # The image's side

    def discarded(self, start: int, stop: int, reason: str) -> None:
        """See L{criu_relay.store.image.Reader}."""
        if start == 0 and stop >= self.size:
            self._gone = reason
            self.close()
        if self._server is not None and self._server.position < stop:
            self._server.fail(Conflict(reason))

    # The server's side, see L{criu_relay.flow.serve.Readable}

    def piece(self, offset: int) -> Piece:
        """The run of bytes from C{offset} on."""
        return self._image.piece(offset)

    def runs(self, offset: int, most: int) -> numpy.ndarray:
        """The same, and those that follow, as far as they lie in memory."""
        return self._image.runs(offset, most)

    def passed(self, offset: int, count: int) -> None:
        """A pipe refers to them."""
        self._image.passed(offset, count)

    def moved(self, position: int) -> None:
        """Nothing before it is read any more."""
        self._image.pool.stirred = True
        self._image.pool.moves += 1
        if self._release:
            stop = pages_of(position) if position == self.size else position // PAGE
            if stop > self._released:
                self._image.give_up(self._released, stop, Kind.RELEASED)
                self._released = stop

    def _closed(self) -> None:
        if not (self._open or self._left) and self._server is None:
            self._left = True
            self._image.closed(self)
