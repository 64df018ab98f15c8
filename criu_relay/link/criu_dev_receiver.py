"""Taking what CRIU's own `criu image-proxy` sends: the old link, at the cache (docs/protocol.md, "criu-dev link")."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from criu_relay.errors import RelayError
from criu_relay.interfaces import IGrowing, IIntake, Mode, Owner
from criu_relay.wire import criu_dev_link as wire
from criu_relay.wire.payload import PayloadSink
from criu_relay.wire.remote_images import SNAPSHOT_LIST, OpenMode, SnapshotListReader

INVENTORY = "inventory.img"
"""The image that a dump writes last: with it the end of the connection is the end of a dump."""

MODES = {OpenMode.WRITE: Mode.REPLACE, OpenMode.APPEND: Mode.APPEND}


class ListSink:
    """More of the list of snapshots; see L{PayloadSink}."""

    def __init__(self, done: Callable[[list[str]], None]) -> None:
        self._done = done
        self._reader = SnapshotListReader()
        self._room = memoryview(b"")

    def room(self, remaining: int) -> memoryview | None:
        """See L{PayloadSink}."""
        self._room = memoryview(bytearray(min(remaining, 4096)))
        return self._room

    def filled(self, count: int) -> None:
        """See L{PayloadSink}."""
        self._reader.feed(bytes(self._room[:count]))

    def done(self) -> None:
        """See L{PayloadSink}."""
        self._done(self._reader.finish())


class ImagePayload:
    """The payload of one image; see L{PayloadSink}."""

    def __init__(self, image: IGrowing, ended: Callable[[], None]) -> None:
        self._image = image
        self._ended = ended

    def room(self, remaining: int) -> memoryview | None:
        """See L{PayloadSink}."""
        return self._image.reserve(remaining).view[:remaining]

    def filled(self, count: int) -> None:
        """See L{PayloadSink}."""
        self._image.written(count)

    def done(self) -> None:
        """See L{PayloadSink}."""
        self._ended()


class OldReceiver(Protocol):
    """One connection: one migration, whose end is the connection's end at a header."""

    log = Logger()
    transport: Any

    def __init__(self, intake: IIntake, namespace_of: Callable[[str], str]) -> None:
        """@param namespace_of: the namespace for a snapshot label, which is all that the old link tells."""
        self._intake = intake
        self._namespace_of = namespace_of
        self._reader = wire.HeaderReader(self)
        self._owner = Owner("criu image-proxy", b"\0" * 16)
        self._migration = os.urandom(16)
        self._begun = False
        self._failed = False
        self._numbers = 0
        self._labels: list[str] = []
        self._images: dict[tuple[int, str], tuple[int, int]] = {}

    def dataReceived(self, data: bytes) -> None:
        """Headers and payload."""
        if self._failed:
            return
        try:
            self._reader.feed(data)
        except RelayError as error:
            self._fail(error.reason)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """At a header, and in good order: that was all. Anywhere else: cut."""
        if self._failed or not self._begun:
            return
        if reason.check(ConnectionDone) is None or not self._reader.at_boundary:
            self._fail("the link was cut in the middle of an image")
        elif (len(self._labels), INVENTORY) not in self._images:
            self._fail(f"the dump ended without {INVENTORY}")
        else:
            self._commit()

    def header_received(self, header: wire.Header) -> PayloadSink:
        """An image begins, or goes on, or the list of snapshots grows."""
        if header.name == SNAPSHOT_LIST and not header.snapshot_id:
            return ListSink(self._declare)
        if header.snapshot_id not in self._labels:
            self._declare([header.snapshot_id])
        snapshot = self._labels.index(header.snapshot_id) + 1
        known = self._images.get((snapshot, header.name))
        mode = MODES[header.mode] if known is not None else Mode.REPLACE
        number = known[0] if known is not None and mode is Mode.APPEND else self._number()
        before = known[1] if known is not None and mode is Mode.APPEND else 0
        self._images[snapshot, header.name] = number, header.size
        self._intake.open_image(self._owner, self._migration, number, snapshot, header.name, mode)
        image = self._intake.writing(self._owner, self._migration, number, before)

        def ended() -> None:
            self._intake.end_image(self._owner, self._migration, number, header.size, None)

        return ImagePayload(image, ended)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _declare(self, labels: list[str]) -> None:
        for label in labels:
            if label in self._labels:
                continue
            if not self._begun:
                source = f"criu image-proxy at {self.transport.getPeer().host}"
                self._intake.begin(self._owner, self._migration, self._namespace_of(label), False, source)
                self._begun = True
            self._labels.append(label)
            self._intake.snapshot(self._owner, self._migration, len(self._labels), label)

    def _commit(self) -> None:
        rows = [(snapshot, name, size, None) for (snapshot, name), (_, size) in self._images.items()]
        try:
            self._intake.seal(self._owner, self._migration, rows, "")
            self._intake.decide(self._owner, self._migration, True, "")
        except RelayError as error:
            self._fail(error.reason)

    def _fail(self, reason: str) -> None:
        self._failed = True
        self.log.error("link of criu image-proxy: {reason}", reason=reason)
        if self._begun:
            self._intake.link_lost(self._owner, [self._migration], reason)
        self.transport.abortConnection()
