"""`--stream` at the cache: criu restore reads its images here (docs/protocol.md, "stream")."""

from __future__ import annotations

import os

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from criu_relay.errors import ProtocolError, RelayError
from criu_relay.interfaces import IOpenedImage, IRestore, IRestores
from criu_relay.local.connection import LocalConnection, check_descriptor, close_all
from criu_relay.local.listener import Door
from criu_relay.local.serving import Servings
from criu_relay.wire.stream import DescriptorPassed, ImageWanted, ServeReader

MAX_SERVED = 4096
"""Images that one restore reads at once. Each holds a descriptor; a restore of a thousand tasks holds open the pages
of each, and requests must not wait for one of them to end, or both sides would."""


class StreamServe(LocalConnection):
    """One criu restore: images are asked for one after the other and read all at once."""

    dialect = "stream"

    def __init__(self, restores: IRestores, door: Door) -> None:
        super().__init__(door)
        self._restores = restores
        self._restore: IRestore | None = None
        self._reader = ServeReader()
        self._pending: Deferred[IOpenedImage | None] | None = None
        self._opened: IOpenedImage | None = None
        self._servings = Servings(self._finish)

    def admitted(self) -> None:
        """CRIU connected."""
        self._restore = self._restores.begin(self.peer)

    def received(self, data: bytes, descriptors: list[int]) -> None:
        """Names, and pipes for those that exist."""
        for event in self._reader.feed(data, descriptors):
            if isinstance(event, ImageWanted):
                self._ask(event.name)
            elif isinstance(event, DescriptorPassed):
                self._serve(event)

    def ended(self, clean: bool) -> None:
        """CRIU closed the socket; it may still read from its pipes."""
        self._door.leave(self)
        close_all(self._reader.close())
        if self._pending is not None:
            self._pending.cancel()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self._finish()

    def drop(self, reason: str) -> None:
        """End the connection and every pipe."""
        super().drop(reason)
        self._servings.cancel()

    def _ask(self, name: str) -> None:
        assert self._restore is not None
        self._pending = self._restore.open(None, name)
        self._pending.addCallbacks(self._answer, self._cannot, callbackArgs=(name,))

    def _answer(self, opened: IOpenedImage | None, name: str) -> None:
        self._pending = None
        if not self.open:
            if opened is not None:
                opened.close()
            return
        self._opened = opened
        self.send(self._reader.answer(opened is not None))

    def _cannot(self, failure: Failure) -> None:
        """No answer at all: "does not exist" would make CRIU go on without the image."""
        self._pending = None
        if failure.check(CancelledError):
            return
        reason = failure.value.reason if isinstance(failure.value, RelayError) else failure.getErrorMessage()
        self.refuse(RelayError(f"an image cannot be read: {reason}"))

    def _serve(self, event: DescriptorPassed) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        try:
            check_descriptor(event.descriptor, event.name, writing=True)
            if len(self._servings) >= MAX_SERVED:
                raise ProtocolError(f"more than {MAX_SERVED} images are being read at once")
        except RelayError:
            os.close(event.descriptor)
            opened.close()
            raise
        self._servings.start(event.name, self.who, opened, event.descriptor)

    def _finish(self) -> None:
        """Tell the cache, once nothing is asked or read any more."""
        if not self._connected and not self._servings and self._restore is not None:
            self._restore.finished()
            self._restore = None
