"""How the bytes of a link move, chosen by what its transport is and whether it is under TLS."""

from __future__ import annotations

from typing import Any

from criu_relay.flow.channel import Channel, ChannelUser, SocketChannel, TransportChannel
from criu_relay.flow.sockets import socket_of, tune
from criu_relay.flow.tls import TlsChannel
from criu_relay.flow.twisted_tls import TwistedTlsChannel
from criu_relay.link.handshake import Handshake


class Ownership:
    """A connection that is ours: it is closed when the link ends."""

    def lose(self, transport: Any) -> None:
        """End it in good order."""
        transport.loseConnection()

    def abort(self, transport: Any) -> None:
        """End it at once."""
        transport.abortConnection()


class Inherited(Ownership):
    """A connection that somebody else made (--link-fd): it is left alone, neither shut down nor reset."""

    def lose(self, transport: Any) -> None:
        """Stop using it."""
        transport.stopReading()
        transport.stopWriting()

    abort = lose


def open_channel(
    reactor: Any, transport: Any, user: ChannelUser, handshake: Handshake | None, user_timeout: float
) -> Channel:
    """The best way that there is for a transport.

    @param handshake: of TLS; None: the link is plain.
    @param user_timeout: see L{tune}.
    """
    socket = socket_of(transport)
    if socket is None:
        if handshake is None:
            return TransportChannel(transport, user)
        return TwistedTlsChannel(transport, handshake.session, handshake.client, user)
    tune(socket, user_timeout)
    if handshake is None:
        return SocketChannel(reactor, transport, socket, user)
    return TlsChannel(reactor, transport, socket, handshake.session, user)
