"""An image of the store, opened for reading."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.interfaces import IReactorFDSet
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.flow.serve import ImageServer
from criu_relay.interfaces import IOpenedImage
from criu_relay.store.arena import LARGEST
from criu_relay.store.image import Image


@implementer(IOpenedImage)
class OpenedImage:
    """See L{IOpenedImage}: keeps the image's memory until closed and no server of it is left."""

    def __init__(
        self, reactor: IReactorFDSet, image: Image, served: Callable[[int], None] = lambda count: None
    ) -> None:
        """@param served: see L{ImageServer}."""
        self._reactor = reactor
        self._served = served
        self._image = image
        self._open = True
        self.size = image.size
        image.opened()

    def serve(self, fd: int) -> Deferred[int]:
        """See L{IOpenedImage.serve}."""
        try:
            server = ImageServer(self._reactor, self._image, fd, self._served)
        except OSError as error:
            return fail(RelayError(f"cannot serve an image: {error}"))
        self._image.opened()
        server.start()

        def over(result: object) -> object:
            self._image.closed()
            return result

        return server.done.addBoth(over)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See L{IOpenedImage.read}."""
        return execute(read_bytes, self._image, offset, length)

    def close(self) -> None:
        """See L{IOpenedImage.close}."""
        if self._open:
            self._open = False
            self._image.closed()


def read_bytes(image: Image, offset: int, length: int) -> bytes:
    """A copy of at most C{length} bytes (1 MiB) of an image from C{offset} on."""
    parts: list[bytes] = []
    end = min(image.size, offset + min(length, LARGEST))
    while offset < end:
        part = bytes(image.piece(offset).view[: end - offset])
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
