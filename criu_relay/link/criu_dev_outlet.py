"""Feeding CRIU's own `criu image-cache`: the old link, one connection a migration (docs/protocol.md, "criu-dev link").

The old peer needs each image's size ahead of its bytes, so images are kept whole until their migration ends; it
answers nothing, so that "held" means no more than that its kernel has acknowledged every byte.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import Aborted, Conflict, LinkLost, RelayError
from criu_relay.flow.sink import BytesWriter
from criu_relay.flow.sockets import socket_of, tune
from criu_relay.flow.ways import LINK
from criu_relay.interfaces import (
    Counters,
    IArena,
    IImageSink,
    IOpenedImage,
    IOutgoing,
    IOutlet,
    Mode,
)
from criu_relay.link.criu_dev_images import KeptImage, WholeImage
from criu_relay.wire import criu_dev_link as wire
from criu_relay.wire.remote_images import SNAPSHOT_LIST, OpenMode, encode_snapshots

CONNECT_SECONDS = 3.0
"""A dump waits so long for the old cache; CRIU's tasks are frozen meanwhile."""

LOOK_AGAIN_SECONDS = 0.001
"""TCP gives no event when the peer's kernel has acknowledged everything: it is asked again after this."""

SEAL_SECONDS = 30.0
"""The peer's kernel has acknowledged everything within this, or the migration aborts."""

OPEN_MODES = {Mode.REPLACE: OpenMode.WRITE, Mode.APPEND: OpenMode.APPEND}


class OldConnection(Protocol):
    """The connection: nothing ever comes on it but its end."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost

    def connectionLost(self, reason: Failure = Failure(LinkLost(""))) -> None:  # noqa: B008
        """The old cache is gone."""
        self._lost(reason.getErrorMessage())


@implementer(IOutgoing)
class OldMigration:
    """One migration over the old link; see L{IOutgoing}."""

    log = Logger()

    def __init__(self, reactor: Any, endpoint: str, arena: IArena, lost: Callable[[RelayError], None]) -> None:
        self._reactor = reactor
        self._arena = arena
        self._lost = lost
        self._over = False
        self._images: dict[tuple[int, str], WholeImage] = {}
        self._labels: list[str] = []
        self._list = WholeImage(arena, SNAPSHOT_LIST, "", self._ended)
        self._queue: list[tuple[WholeImage, Mode, int]] = []
        self._transport: Any = None
        self._wake: Deferred[None] | None = None
        self._sealing: Deferred[int] | None = None
        self._running = Deferred.fromCoroutine(self._run(endpoint))
        self._running.addErrback(self._broken)

    # IOutgoing

    def snapshot(self, index: int, label: str) -> None:
        """See L{IOutgoing.snapshot}: one more entry of the list."""
        self._labels.append(label)
        if label:
            self._list.begin(Mode.APPEND, self._failed)
            self._list.write(encode_snapshots([label]))
            self._list.end()

    def open_image(self, snapshot: int, name: str, mode: Mode) -> IImageSink:
        """See L{IOutgoing.open_image}."""
        image = self._images.get((snapshot, name))
        if image is None or mode is Mode.REPLACE:
            mode = Mode.REPLACE
            image = self._images[snapshot, name] = WholeImage(
                self._arena, name, self._labels[snapshot - 1], self._ended
            )
        image.begin(mode, self._failed)
        return image

    def read_image(self, snapshot: int, name: str) -> IOpenedImage | None:
        """See L{IOutgoing.read_image}."""
        image = self._images.get((snapshot, name))
        return KeptImage(self._reactor, image) if image is not None and image.complete else None

    def discard(self, snapshot: int, name: str, offset: int, length: int) -> None:
        """See L{IOutgoing.discard}."""
        raise Conflict("CRIU's own image-cache gives nothing back", hint="use --link for a cache that does")

    def seal(self, source: dict[str, Any]) -> Deferred[int]:
        """See L{IOutgoing.seal}: everything sent, the end said, and acknowledged by the peer's kernel."""
        self._sealing = Deferred()
        self._go_on()
        return self._sealing

    def decide(self, commit: bool, reason: str = "") -> Deferred[str]:
        """See L{IOutgoing.decide}. The old cache cannot be told; before its end it takes a reset for a failed dump."""
        self._over = True
        if not commit and self._transport is not None:
            self._transport.abortConnection()
        self._running.cancel()
        for image in (*self._images.values(), self._list):
            image.free()
        return succeed("committed" if commit else "aborted")

    # The connection

    def _ended(self, image: WholeImage) -> None:
        try:
            wire.encode_header(image.name, image.label, OPEN_MODES[image.mode], image.size)
        except RelayError as error:
            self._fail(error)
            return
        self._queue.append((image, image.mode, image.size))
        self._go_on()

    def _failed(self, reason: str) -> None:
        self._fail(Aborted(reason))

    def _go_on(self) -> None:
        if self._wake is not None:
            wake, self._wake = self._wake, None
            wake.callback(None)

    async def _run(self, endpoint: str) -> None:
        connecting = clientFromString(self._reactor, endpoint).connect(
            Factory.forProtocol(lambda: OldConnection(self._closed))
        )
        protocol = await connecting.addTimeout(CONNECT_SECONDS, self._reactor)
        self._transport = protocol.transport
        connection = socket_of(self._transport)
        assert connection is not None
        tune(connection)
        writer = BytesWriter(self._reactor, connection.fileno(), LINK)
        try:
            while self._queue or self._sealing is None:
                if not self._queue:
                    self._wake = Deferred()
                    await self._wake
                    continue
                await self._send(writer, *self._queue.pop(0))
            await self._acknowledged(writer)
            self._transport.loseWriteConnection()
        finally:
            writer.close()
        self._sealing.callback(sum(image.size for image in self._images.values()))

    async def _send(self, writer: BytesWriter, image: WholeImage, mode: Mode, size: int) -> None:
        await self._acknowledged(writer)
        offset = image.sent if mode is Mode.APPEND else 0
        await self._write(writer, wire.encode_header(image.name, image.label, OPEN_MODES[mode], size))
        while offset < size:
            view = image.piece(offset).view(size - offset)
            await self._write(writer, view)
            offset += len(view)
        image.sent = size

    async def _write(self, writer: BytesWriter, data: bytes | memoryview) -> None:
        if not await writer.write(data):
            raise LinkLost("the old cache closed the link")

    async def _acknowledged(self, writer: BytesWriter) -> None:
        """Nothing is on its way: a header that is sent now goes in one segment, as the old peer needs it."""
        deadline = self._reactor.seconds() + SEAL_SECONDS
        while unacknowledged(writer.fileno()):
            if self._reactor.seconds() > deadline:
                raise LinkLost(f"the old cache did not read for {SEAL_SECONDS:.0f} s")
            await deferLater(self._reactor, LOOK_AGAIN_SECONDS)

    def _broken(self, failure: Failure) -> None:
        if not self._over:
            error = failure.value
            self._fail(error if isinstance(error, RelayError) else LinkLost(f"no link to the old cache: {error}"))

    def _closed(self, reason: str) -> None:
        if self._sealing is None or not self._sealing.called:
            self._fail(LinkLost(f"the link to the old cache is lost: {reason}"))

    def _fail(self, error: RelayError) -> None:
        if self._over:
            return
        self._over = True
        if self._sealing is not None and not self._sealing.called:
            self._sealing.errback(error)
        else:
            self._lost(error)


class RecoveredOldMigration(OldMigration):
    """What is left of a migration of before a restart: there is nobody to tell."""

    def __init__(self) -> None:
        """Nothing is connected."""

    def decide(self, commit: bool, reason: str = "") -> Deferred[str]:
        """See L{IOutgoing.decide}."""
        return succeed("committed" if commit else "aborted")


@implementer(IOutlet)
class OldOutlet:
    """See L{IOutlet}."""

    def __init__(self, reactor: Any, endpoint: str, arena: IArena, counters: Counters) -> None:
        self.window = arena
        self._reactor = reactor
        self._endpoint = endpoint
        self._counters = counters

    def begin(self, migration: bytes, namespace: str, copy: bool, lost: Callable[[RelayError], None]) -> IOutgoing:
        """See L{IOutlet.begin}."""
        self._counters.add("links_made")
        return OldMigration(self._reactor, self._endpoint, self.window, lost)

    def recovered(self, migration: bytes) -> IOutgoing:
        """See L{IOutlet.recovered}: the old cache had everything before the permission; it is told nothing."""
        return RecoveredOldMigration()

    def describe(self) -> dict[str, Any]:
        """See L{IOutlet.describe}."""
        return {"state": "up", "peers": []}


def unacknowledged(fd: int) -> int:
    """Bytes that the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7))."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])
