"""`--stream` at the proxy: criu dump writes its images here (docs/protocol.md, "stream")."""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.interfaces import IDump, IDumpClient, Mode
from criu_relay.local.connection import LocalConnection, check_descriptor, close_all, has_unread
from criu_relay.local.listener import Door
from criu_relay.local.sources import Sources
from criu_relay.wire.stream import CaptureReader

MAX_PIPES = 256
"""Pipes of one dump that are read at once; with more, requests wait in the socket. CRIU holds open its global images
and those of one task, fewer than 100, so that waiting never stops what would end the wait; the rest are closed pipes
which wait for room. A quarter of the usual limit of 1024 descriptors per process."""

NEWEST = ""
"""The label of the only snapshot that a stream has."""


@implementer(IDumpClient)
class StreamCapture(LocalConnection):
    """One criu dump: images are offered by name, each with the read end of a pipe."""

    dialect = "stream"
    whole_dump = True

    def __init__(self, reactor: Any, dump: IDump, door: Door) -> None:
        super().__init__(door)
        self._dump = dump
        self._reader = CaptureReader()
        self._sources = Sources(reactor, self._source_ended)
        self._paused = False

    def admitted(self) -> None:
        """CRIU connected."""
        self._dump.client_connected(self)

    def received(self, data: bytes, descriptors: list[int]) -> None:
        """Names and pipes."""
        offered = self._reader.feed(data, descriptors)
        while offered:
            image = offered.pop(0)
            try:
                check_descriptor(image.descriptor, image.name, writing=False)
                sink = self._dump.open_image(self, NEWEST, image.name, Mode.REPLACE)
            except RelayError:
                close_all([image.descriptor, *(later.descriptor for later in offered)])
                raise
            self._sources.start(image.name, image.descriptor, sink)
        if len(self._sources) >= MAX_PIPES and not self._paused and self.open:
            self._paused = True
            self._transport.pauseProducing()

    def ended(self, clean: bool) -> None:
        """CRIU closed the socket; its pipes may still hold data."""
        halfway = not self._reader.at_boundary
        close_all(self._reader.close())
        if clean and halfway:
            self._log.warn("stream client ({who}) left in the middle of a message", who=self.who)
            self._sources.abort("criu left in the middle of a message")
        self._dump.client_gone(self)
        self._dump.finished(self)
        self._leave()

    def drop(self, reason: str) -> None:
        """End the connection and close every pipe: CRIU gets EPIPE."""
        super().drop(reason)
        self._sources.abort(reason)

    def unsettled(self) -> str | None:
        """What is on its way still."""
        if self._connected:
            if not self._reader.at_boundary:
                return "half a message of criu"
            if has_unread([self.socket()]):
                return "a message of criu that was not read yet"
        for name in self._sources:
            return f"the pipe of {name}"
        return None

    @property
    def _transport(self) -> Any:
        return self.transport

    def _leave(self) -> None:
        if not self._connected and not self._sources:
            self._door.leave(self)

    def _source_ended(self) -> None:
        self._leave()
        if self._paused and len(self._sources) < MAX_PIPES:
            self._paused = False
            if self.open:
                self._transport.resumeProducing()
