"""Payloads of extents on their way in: where they go, and what is counted of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from criu_relay.errors import RelayError
from criu_relay.interfaces import IGrowing
from criu_relay.wire import link as wire

if TYPE_CHECKING:
    from criu_relay.link.connection import LinkConnection
    from criu_relay.link.receiver import Receiver
    from criu_relay.link.sessions import Session


LARGE_IMAGE = 4 * wire.MAX_PAYLOAD
"""An image that has grown to this has room for another frame behind each, so that both can be received together."""


class Taking:
    """The payload of one extent, on its way in; see L{wire.PayloadSink}."""

    def __init__(self, receiver: Receiver, session: Session, connection: LinkConnection) -> None:
        self._receiver = receiver
        self._session = session
        self._connection = connection

    def filled(self, count: int) -> None:
        """So many bytes have come."""
        self._session.partial += count
        self._receiver.took(self._connection, count)

    def done(self) -> None:
        """All of it has come."""
        self._session.handled()


class ExtentSink(Taking):
    """The payload of one Extent frame without zeros, into its image."""

    def __init__(
        self, receiver: Receiver, session: Session, connection: LinkConnection, migration: bytes, image: IGrowing
    ) -> None:
        super().__init__(receiver, session, connection)
        self._migration = migration
        self._image = image
        self._dropping: memoryview | None = None

    def room(self, remaining: int) -> memoryview | None:
        """See L{wire.PayloadSink}."""
        if self._dropping is None:
            try:
                more = wire.MAX_PAYLOAD if self._image.size >= LARGE_IMAGE else 0
                return self._image.reserve(remaining + more).view
            except RelayError as error:
                self._drop(error)
        return self._dropping

    def follow(self, frames: int, size: int) -> bool:
        """See L{criu_relay.wire.foreseen.RunSink}."""
        if not self._connection.up:
            return False
        taken = self._receiver.follow(self._session, self._migration, self._image, frames * size)
        if taken:
            self._image.written(frames * size)
            self._receiver.took(self._connection, frames * size)
            self._session.followed(frames, frames * size)
        return taken

    def filled(self, count: int) -> None:
        """See L{wire.PayloadSink}."""
        super().filled(count)
        if self._dropping is None:
            try:
                self._grow(count)
            except RelayError as error:
                self._drop(error)

    def _grow(self, count: int) -> None:
        """So many bytes more have come."""
        self._image.written(count)

    def _drop(self, error: RelayError) -> None:
        self._receiver.refuse(self._session, self._migration, error)
        self._dropping = memoryview(bytearray(wire.MAX_PAYLOAD))


class SparseSink(ExtentSink):
    """The payload of one with zeros. They are taken with what is behind them: should the link break before that comes,
    the next link goes on in front of them."""

    def __init__(
        self,
        receiver: Receiver,
        session: Session,
        connection: LinkConnection,
        migration: bytes,
        image: IGrowing,
        runs: Sequence[int],
    ) -> None:
        """@param runs: bytes of payload and of zeros in turn."""
        super().__init__(receiver, session, connection, migration, image)
        self._runs = deque(runs)
        self._left = self._runs.popleft()

    def done(self) -> None:
        """All of it has come."""
        if self._runs and self._dropping is None:
            try:
                self._grow(0, last=True)
            except RelayError as error:
                self._drop(error)
        super().done()

    def _grow(self, count: int, last: bool = False) -> None:
        """See L{ExtentSink}."""
        grown = [min(count, self._left)]
        self._left -= grown[0]
        count -= grown[0]
        while self._runs and not self._left and (count or last):
            zeros, self._left = self._runs.popleft(), self._runs.popleft() if self._runs else 0
            part = min(count, self._left)
            grown += [zeros, part]
            self._left -= part
            count -= part
        self._image.grow(grown)


class DroppedPayload(Taking):
    """The payload of an extent that nobody wants, which is acknowledged all the same."""

    def __init__(self, receiver: Receiver, session: Session, connection: LinkConnection, size: int) -> None:
        super().__init__(receiver, session, connection)
        self._data = memoryview(bytearray(size))

    def room(self, remaining: int) -> memoryview | None:
        """See L{wire.PayloadSink}."""
        return self._data[:remaining]
