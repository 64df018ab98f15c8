"""Frames both ways over one connection: the ways there are, and what they have in common.

A channel is made for a Twisted transport that is connected. It takes frames from its user and gives received bytes to
it, and says when the connection is over.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from criu_relay.flow.frame_reader import FrameTarget, SocketFrameReader
from criu_relay.flow.frames import (
    FrameSource,
    SocketFrameWriter,
    TransportFrameWriter,
)
from criu_relay.flow.ways import LINK, TAKEN


class ChannelUser(FrameSource, FrameTarget, Protocol):
    """Who has a channel."""

    def secured(self) -> None:
        """Frames may be sent and will come: the peer is who it must be. Called once, not before C{start}."""

    def turn_ended(self) -> None:
        """After each turn of the reactor that may have brought something."""

    def ended(self, error: BaseException | None) -> None:
        """The connection is over: with None at the peer's end of stream. Called at most once, not after C{stop}."""


class Channel(Protocol):
    """One way for frames to move over a connection."""

    @property
    def path(self) -> str:
        """What `status` calls it."""

    def start(self) -> None:
        """Begin."""

    def wake(self) -> None:
        """The user has a frame to be sent."""

    def flush(self) -> None:
        """The same, and the transport may be closed behind it at once."""

    def look(self) -> None:
        """Take what has come, however little it is."""

    def stop_reading(self) -> None:
        """What the peer still sends is not wanted any more."""

    def stop(self) -> None:
        """Neither read nor write any more. The transport is the caller's."""

    def data_received(self, data: bytes) -> None:
        """Bytes that the transport delivered."""

    def connection_lost(self, error: BaseException) -> None:
        """The transport is gone; the user may be told more about it with C{ended}."""


class SocketChannel:
    """By system calls on the transport's own socket."""

    def __init__(self, reactor: Any, transport: Any, connection: socket.socket, user: ChannelUser) -> None:
        self._transport = transport
        self._user = user
        self._writer = SocketFrameWriter(reactor, transport, user, user.ended)
        self._reader = SocketFrameReader(reactor, connection, user, user.turn_ended, user.ended)
        self.wake: Callable[[], None] = self._writer.wake
        self.flush: Callable[[], None] = self._writer.flush
        self.look: Callable[[], None] = self._reader.look
        self.stop_reading: Callable[[], None] = self._reader.stop

    @property
    def path(self) -> str:
        """See L{Channel.path}."""
        return f"{self._writer.path}, {self._reader.path}"

    def start(self) -> None:
        """See L{Channel.start}."""
        self._transport.pauseProducing()
        self._reader.start()
        self._user.secured()

    def stop(self) -> None:
        """See L{Channel.stop}."""
        self._writer.stop()
        self._reader.stop()

    def data_received(self, data: bytes) -> None:
        """See L{Channel.data_received}."""
        raise AssertionError("a paused transport delivers nothing")

    def connection_lost(self, error: BaseException) -> None:
        """See L{Channel.connection_lost}."""


class TransportChannel:
    """Through the transport: for those that have no socket."""

    path = f"{TransportFrameWriter.path}, dataReceived"

    def __init__(self, transport: Any, user: ChannelUser) -> None:
        self._user = user
        self._writer = TransportFrameWriter(transport, user)
        self.wake: Callable[[], None] = self._writer.wake
        self.flush: Callable[[], None] = self._writer.flush
        self.stop: Callable[[], None] = self._writer.stop

    def start(self) -> None:
        """See L{Channel.start}."""
        self._user.secured()

    def look(self) -> None:
        """See L{Channel.look}: nothing waits."""

    def stop_reading(self) -> None:
        """See L{Channel.stop_reading}: the user drops what comes."""

    def data_received(self, data: bytes) -> None:
        """See L{Channel.data_received}."""
        TAKEN.add(LINK, "dataReceived", len(data))
        self._user.feed(data)
        self._user.turn_ended()

    def connection_lost(self, error: BaseException) -> None:
        """See L{Channel.connection_lost}."""
