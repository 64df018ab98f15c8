"""Frames under Twisted's own TLS: for transports that have no socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.flow.channel import ChannelUser
from criu_relay.flow.frames import TransportFrameWriter
from criu_relay.flow.ways import LINK, TAKEN


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class _Made:
    """Gives Twisted a connection that is made already."""

    def __init__(self, session: SSL.Connection) -> None:
        self._session = session

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See L{IOpenSSLClientConnectionCreator}."""
        return self._session

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See L{IOpenSSLServerConnectionCreator}."""
        return self._session


@implementer(IHandshakeListener)
class _Inside(Protocol):
    """What Twisted's TLS gives its plaintext to."""

    def __init__(self, user: ChannelUser) -> None:
        self._user = user
        self.stopped = False

    def handshakeCompleted(self) -> None:
        """See L{IHandshakeListener}."""
        self._user.secured()

    def dataReceived(self, data: bytes) -> None:
        """See L{Protocol}."""
        TAKEN.add(LINK, "dataReceived", len(data))
        self._user.feed(data)
        self._user.turn_ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See L{Protocol}."""
        if not self.stopped:
            self._user.ended(None if reason.check(ConnectionDone) else reason.value)


class TwistedTlsChannel:
    """See L{criu_relay.flow.channel.Channel}."""

    path = "twisted tls"

    def __init__(self, transport: Any, session: SSL.Connection, client: bool, user: ChannelUser) -> None:
        self._transport = transport
        self._inside = _Inside(user)
        factory = TLSMemoryBIOFactory(_Made(session), client, Factory.forProtocol(lambda: self._inside))
        factory.noisy = False
        self._tls = TLSMemoryBIOProtocol(factory, self._inside)
        self._writer = TransportFrameWriter(self._tls, user)
        self.wake: Callable[[], None] = self._writer.wake
        self.flush: Callable[[], None] = self._writer.flush
        self.data_received: Callable[[bytes], None] = self._tls.dataReceived

    def start(self) -> None:
        """See L{Channel.start}."""
        self._tls.makeConnection(self._transport)

    def look(self) -> None:
        """See L{criu_relay.flow.channel.Channel.look}: nothing waits."""

    def stop_reading(self) -> None:
        """See L{Channel.stop_reading}: the user drops what comes."""

    def stop(self) -> None:
        """See L{Channel.stop}."""
        self._inside.stopped = True
        self._writer.stop()

    def connection_lost(self, error: BaseException) -> None:
        """See L{Channel.connection_lost}."""
        self._tls.connectionLost(Failure(error))
