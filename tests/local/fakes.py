"""What stands behind the dialects, as plain as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.flow.sink import BytesWriter
from criu_relay.interfaces import IDump, IDumpClient, IImageSink, IOpenedImage, IRestore, IRestores, Mode, Peer, Room


@implementer(IImageSink)
class FakeSink:
    """Collects an image; `limit` is how many bytes it has room for."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.data = bytearray()
        self.limit = limit
        self.ended = False
        self.failed: str | None = None
        self.producer: Any = None
        self._room = bytearray()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None and streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.data += data

    def reserve(self, size: int) -> Room | None:
        space = min(size, self.limit - len(self.data))
        if space <= 0:
            return None
        self._room = bytearray(space)
        return Room(-1, 0, memoryview(self._room))

    def written(self, count: int) -> None:
        self.data += self._room[:count]

    def end(self) -> None:
        assert not self.over
        self.ended = True

    def fail(self, reason: str) -> None:
        assert not self.over
        self.failed = reason

    @property
    def over(self) -> bool:
        return self.ended or self.failed is not None

    def widen(self, limit: int) -> None:
        """There is more room."""
        self.limit = limit
        self.producer.resumeProducing()


assert IConsumer.implementedBy(FakeSink)


@implementer(IOpenedImage)
class FakeOpened:
    """An image that is served from memory."""

    def __init__(self, reactor: Any, data: bytes) -> None:
        self.size = len(data)
        self.closed = 0
        self.skipped: list[tuple[int, int]] = []
        self.serving: Deferred[int] | None = None
        self._reactor = reactor
        self._data = data

    def skip(self, offset: int, length: int) -> tuple[int, int]:
        self.skipped.append((offset, length))
        return offset + 1, offset + length

    def serve(self, fd: int) -> Deferred[int]:
        writer = BytesWriter(self._reactor, fd)
        self.serving = Deferred(lambda _: writer.close())
        if not self._data:
            writer.close()
            self.serving.callback(0)
            return self.serving
        serving = self.serving
        written = writer.write(self._data)

        def over(whole: Any) -> None:
            writer.close()
            if not serving.called:
                serving.callback(self.size if whole is True else 0)

        written.addBoth(over)
        return serving

    def whole(self, most: int) -> bytes | None:
        return self._data if self.size <= most else None

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return succeed(self._data[offset : offset + length])

    def close(self) -> None:
        self.closed += 1


@implementer(IDump)
@dataclass
class FakeDump:
    """Remembers what the dialects say.

    @ivar limit: room for each image.
    @ivar refuse: the next calls raise this.
    """

    limit: int = 1 << 40
    refuse: RelayError | None = None
    clients: list[IDumpClient] = field(default_factory=list)
    gone: list[IDumpClient] = field(default_factory=list)
    ends: list[IDumpClient] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    opened: list[tuple[str, str, Mode, FakeSink]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    images: dict[tuple[str, str], FakeOpened] = field(default_factory=dict)

    def _check(self) -> None:
        if self.refuse is not None:
            raise self.refuse

    def client_connected(self, client: IDumpClient) -> None:
        self._check()
        self.clients.append(client)

    def client_gone(self, client: IDumpClient) -> None:
        self.gone.append(client)

    def finished(self, client: IDumpClient) -> None:
        self.ends.append(client)

    def push_snapshots(self, client: IDumpClient, labels: Sequence[str]) -> None:
        self._check()
        self.labels += labels

    def snapshots(self) -> list[str]:
        return list(self.labels)

    def open_image(self, client: IDumpClient, snapshot: str, name: str, mode: Mode) -> FakeSink:
        self._check()
        sink = FakeSink(self.limit)
        self.opened.append((snapshot, name, mode, sink))
        return sink

    def read_image(self, client: IDumpClient, snapshot: str, name: str) -> Deferred[FakeOpened | None]:
        self._check()
        self.asked.append((snapshot, name))
        return succeed(self.images.get((snapshot, name)))

    def sink(self, name: str) -> FakeSink:
        """The newest of that name."""
        return next(sink for _, opened, _, sink in reversed(self.opened) if opened == name)

    def unsettled(self) -> list[str]:
        """What keeps it from being sealed."""
        return [words for client in self.clients if (words := client.unsettled()) is not None]


@implementer(IRestore)
class FakeRestore:
    """Questions wait until the test answers them."""

    def __init__(self, peer: Peer | None) -> None:
        self.peer = peer
        self.asked: list[tuple[str | None, str, Deferred[Any]]] = []
        self.lists: list[Deferred[list[str]]] = []
        self.labels: list[str] | None = None
        self.cancelled: list[str] = []
        self.over = 0

    def open(self, snapshot: str | None, name: str) -> Deferred[Any]:
        fired: Deferred[Any] = Deferred(lambda _: self.cancelled.append(name))
        self.asked.append((snapshot, name, fired))
        return fired

    def snapshots(self) -> Deferred[list[str]]:
        if self.labels is not None:
            return succeed(self.labels)
        fired: Deferred[list[str]] = Deferred(lambda _: self.cancelled.append("the list"))
        self.lists.append(fired)
        return fired

    def finished(self) -> None:
        self.over += 1


@implementer(IRestores)
class FakeRestores:
    """Begins L{FakeRestore}s."""

    def __init__(self) -> None:
        self.begun: list[FakeRestore] = []
        self.refuse: RelayError | None = None

    def begin(self, peer: Peer | None) -> FakeRestore:
        if self.refuse is not None:
            raise self.refuse
        self.begun.append(FakeRestore(peer))
        return self.begun[-1]
