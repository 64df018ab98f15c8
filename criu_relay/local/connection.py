"""What the connections of every dialect share: descriptors that are passed, errors, and what is still unread."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import ProtocolError, RelayError
from criu_relay.interfaces import Peer
from criu_relay.local.listener import Door


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


def check_descriptor(descriptor: int, name: str, writing: bool) -> None:
    """See that a passed descriptor can carry an image.

    @param writing: we are to write to it; else to read.
    @raise ProtocolError: it is not a pipe or stream socket, or open for the other direction only.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or (stat.S_ISSOCK(mode) and _is_stream(descriptor))):
        raise ProtocolError(f"the descriptor passed for {name} is neither a pipe nor a stream socket")
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if access not in (os.O_RDWR, os.O_WRONLY if writing else os.O_RDONLY):
        raise ProtocolError(f"the descriptor passed for {name} cannot be {'written' if writing else 'read'}")


def _is_stream(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return duplicate.type == socket.SOCK_STREAM


def has_unread(descriptors: Iterable[int]) -> bool:
    """Whether bytes, or an end of connection, wait in any of these descriptors."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@implementer(IFileDescriptorReceiver)
class LocalConnection(Protocol):
    """One connection of CRIU. Subclasses implement L{admitted}, L{received} and L{ended}.

    @cvar dialect: its name in the log.
    @ivar peer: who it is; None before it is connected.
    """

    dialect = "local"
    _log = Logger()

    def __init__(self, door: Door) -> None:
        self.peer: Peer | None = None
        self._door = door
        self._admitted = False
        self._passed: list[int] = []
        self._connected = False
        self._dropped = False
        self._behind = False  # the socket was full once: from then on the transport sends what is sent

    def admitted(self) -> None:
        """The client is connected and may be.

        @raise RelayError: the client is dropped.
        """
        raise NotImplementedError

    def received(self, data: bytes, descriptors: list[int]) -> None:
        """Bytes came, and descriptors (ours from now on), the last of which belongs to the end of the bytes.

        @raise RelayError: the client is dropped.
        """
        raise NotImplementedError

    def ended(self, clean: bool) -> None:
        """The connection of an admitted client is over; called once.

        @param clean: the client ended it and nothing was wrong.
        """
        raise NotImplementedError

    @property
    def who(self) -> str:
        """The client, for people."""
        return f"pid {self.peer.pid}, uid {self.peer.uid}" if self.peer is not None else "unknown client"

    @property
    def open(self) -> bool:
        """The connection is neither over nor about to be."""
        return self._connected and not self._dropped

    def socket(self) -> int:
        """Our end's descriptor, while it is connected."""
        transport: Any = self.transport
        return int(transport.getHandle().fileno())

    def send(self, data: bytes) -> None:
        """Send a few bytes now, as far as the socket takes them: a thousand may wait for the answer to one commit."""
        transport: Any = self.transport
        sent = 0
        if not self._behind:
            try:
                sent = transport.getHandle().send(data)
            except OSError:
                self._behind = True
            else:
                self._behind = sent < len(data)
        if self._behind:
            transport.write(data[sent:])

    def connectionMade(self) -> None:
        """Somebody is there."""
        self._connected = True
        try:
            self.peer = self._door.enter(self, self.transport)
            self._admitted = True
            self.admitted()
        except RelayError as error:
            self.refuse(error)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """A descriptor came; the data that it belongs to is delivered next."""
        os.set_inheritable(descriptor, False)
        self._passed.append(descriptor)

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        descriptors, self._passed = self._passed, []
        if not self.open:
            close_all(descriptors)
            return
        try:
            self.received(data, descriptors)
        except RelayError as error:
            self.refuse(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone, or was dropped."""
        self._connected = False
        close_all(self._passed)
        self._passed = []
        if self._admitted:
            self.ended(not self._dropped)

    def refuse(self, error: RelayError) -> None:
        """Log what was wrong, once, and drop the client."""
        if self._dropped:
            return
        self._log.warn(
            "{dialect} client ({who}) dropped: {reason}", dialect=self.dialect, who=self.who, reason=error.line
        )
        self.drop(error.reason)

    def drop(self, reason: str) -> None:
        """End the connection so that CRIU notices."""
        if self._dropped:
            return
        self._dropped = True
        if self._connected:
            transport: Any = self.transport
            transport.abortConnection()
