"""Reading images back from the cache: a dump that looks at its parent."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet
from zope.interface import implementer

from criu_relay.errors import Conflict, LinkLost, RelayError
from criu_relay.flow.sink import BytesWriter
from criu_relay.interfaces import IOpenedImage
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2


class Answer:
    """The payload of one Fetched frame; see L{wire.PayloadSink}."""

    def __init__(self, complete: Callable[[bytes], None]) -> None:
        self._complete = complete
        self._data = bytearray(wire.MAX_PAYLOAD)
        self._filled = 0

    def room(self, remaining: int) -> memoryview | None:
        """See L{wire.PayloadSink}."""
        return memoryview(self._data)[self._filled : self._filled + remaining]

    def filled(self, count: int) -> None:
        """See L{wire.PayloadSink}."""
        self._filled += count

    def done(self) -> None:
        """See L{wire.PayloadSink}."""
        self._complete(bytes(self._data[: self._filled]))


class Fetches:
    """The requests that wait for their answer."""

    def __init__(self, reactor: IReactorFDSet) -> None:
        self.reactor = reactor
        self._numbers = 0
        self._waiting: dict[int, tuple[bytes, Deferred[bytes]]] = {}

    def ask(
        self, send: Callable[[link_pb2.Frame], None], migration: bytes, image: int, offset: int, length: int
    ) -> Deferred[bytes]:
        """Fires with at most C{length} bytes; errs with L{LinkLost}, or with why the migration was given up."""
        self._numbers = self._numbers % 0xFFFFFFFF + 1
        number = self._numbers
        fired: Deferred[bytes] = Deferred()
        self._waiting[number] = migration, fired
        fetch = link_pb2.Fetch(request=number, migration=migration, image=image, offset=offset, length=length)
        send(link_pb2.Frame(fetch=fetch))
        return fired

    def answered(self, frame: link_pb2.Frame) -> wire.PayloadSink | None:
        """A Fetched frame has come; None: nobody waits for it (any more)."""
        request = frame.fetched.request
        if request not in self._waiting:
            return None
        answer = Answer(lambda data: self._answer(request, data))
        if not frame.payload:
            answer.done()
            return None
        return answer

    def _answer(self, request: int, data: bytes) -> None:
        if request in self._waiting:
            self._waiting.pop(request)[1].callback(data)

    def give_up(self, request: int, reason: RelayError) -> None:
        """This one will not be sent."""
        if request in self._waiting:
            self._waiting.pop(request)[1].errback(reason)

    def give_up_all(self, migration: bytes, reason: RelayError) -> None:
        """Nobody waits for an answer of this migration any more; one that still comes is dropped."""
        for request in [request for request, (whose, _) in self._waiting.items() if whose == migration]:
            self.give_up(request, reason)

    def lost(self, reason: LinkLost) -> None:
        """No answer will come any more."""
        waiting, self._waiting = self._waiting, {}
        for _, fired in waiting.values():
            fired.errback(reason)


@implementer(IOpenedImage)
class FetchedImage:
    """An image that lies at the cache, read back 1 MiB at a time: one request under way, so nothing piles up."""

    def __init__(
        self,
        fetches: Fetches,
        send: Callable[[link_pb2.Frame], None],
        migration: bytes,
        image: int,
        name: str,
        size: int,
    ) -> None:
        """@param send: sends a frame behind everything of this image."""
        self.size = size
        self._name = name
        self._fetches = fetches
        self._send = send
        self._migration = migration
        self._image = image

    def serve(self, fd: int) -> Deferred[int]:
        """See L{IOpenedImage.serve}."""
        return Deferred.fromCoroutine(self._serve(BytesWriter(self._fetches.reactor, fd)))

    async def _serve(self, writer: BytesWriter) -> int:
        offset = 0
        try:
            while offset < self.size:
                data = await self.read(offset, wire.MAX_PAYLOAD)
                if not await writer.write(data):
                    break
                offset += len(data)
        finally:
            writer.close()
        return offset

    def whole(self, most: int) -> bytes | None:
        """See L{IOpenedImage.whole}: it lies at the cache."""
        return None

    def skip(self, offset: int, length: int) -> tuple[int, int]:
        """See L{IOpenedImage.skip}: a dump that reads its parent gets all of it."""
        return self.size, self.size

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See L{IOpenedImage.read}."""
        size = min(length, wire.MAX_PAYLOAD)
        asked = self._fetches.ask(self._send, self._migration, self._image, offset, size)
        return asked.addCallback(self._found, offset)

    def _found(self, data: bytes, offset: int) -> bytes:
        """@raise Conflict: there is nothing where there were bytes."""
        if not data and offset < self.size:
            raise Conflict(f"image {self._name} was written again while it was read back", hint="read it again")
        return data

    def close(self) -> None:
        """See L{IOpenedImage.close}."""
