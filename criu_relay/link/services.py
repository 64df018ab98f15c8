"""Links as Twisted services: a client that comes back, a server, and an inherited connection."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from typing import Any

from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import Conflict, Invalid, LinkLost, RelayError
from criu_relay.link.connection import LinkConnection
from criu_relay.link.transports import Inherited, Ownership

FIRST_RETRY = 0.05
"""Seconds: a link that was reset can be made again at once, and a cache that is being started is there soon."""

LAST_RETRY = 5.0
"""Seconds: a proxy finds a cache that comes back within this."""

RETRY_FACTOR = 1.5

JITTER = 0.05
"""Seconds: many proxies do not come back in the same moment."""

GREETINGS = 64
"""Connections that have not said hello yet, at a time: a peer in good order is among them for some milliseconds, and a
half-open one costs a descriptor and OpenSSL's buffers. When there are more the oldest is closed, so that whoever holds
many of them open keeps nobody out."""

Made = Callable[[Ownership], LinkConnection]


class LinkFactory(Factory):
    """Makes the connection's protocol.

    @ivar connections: those that are open, the oldest first.
    """

    noisy = False

    def __init__(self, made: Made, owned: Ownership) -> None:
        self._made = made
        self._owned = owned
        self.connections: list[LinkConnection] = []

    def buildProtocol(self, addr: IAddress | None) -> LinkConnection:
        """A protocol for one connection."""
        self.connections = [connection for connection in self.connections if connection.open]
        waiting = [connection for connection in self.connections if connection.waiting]
        if len(waiting) >= GREETINGS:
            waiting[0].refuse(Conflict(f"{GREETINGS} connections after it have not said hello either"))
        connection = self._made(self._owned)
        self.connections.append(connection)
        return connection

    def bye(self) -> None:
        """Say bye on all of them."""
        for connection in self.connections:
            connection.bye("the daemon stops")


@implementer(IStreamClientEndpoint)
class TellingEndpoint:
    """An endpoint that tells why nothing answers there; whoever connects gets the failure all the same."""

    def __init__(self, reactor: Any, description: str, failed: Callable[[LinkLost], None]) -> None:
        self._description = description
        self._endpoint = clientFromString(reactor, description)
        self._failed = failed

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See L{IStreamClientEndpoint}."""
        return self._endpoint.connect(protocolFactory).addErrback(self._tell)

    def _tell(self, failure: Failure) -> Failure:
        if failure.check(CancelledError) is None:
            why = failure.getErrorMessage().rstrip(".")
            hint = "start criu-relay-cache there, or correct --link"
            self._failed(LinkLost(f"cannot connect to {self._description}: {why}", hint=hint))
        return failure


class LinkClient(Service):
    """The proxy's side of --link: connects, and again with back-off whenever the link is lost."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        made: Made,
        failed: Callable[[LinkLost], None],
        refused: Callable[[RelayError], None],
    ) -> None:
        """
        @param failed: called with the reason whenever it could not connect.
        @param refused: called with the reason whenever a connection ended before both sides had said hello.
        """
        self._factory = LinkFactory(made, Ownership())
        self._refused = refused
        self._attempts = 0
        self._after = backoffPolicy(FIRST_RETRY, LAST_RETRY, RETRY_FACTOR, lambda: random.uniform(0, JITTER))
        self._client = ClientService(
            TellingEndpoint(reactor, endpoint, failed), self._factory, retryPolicy=self._delay, clock=reactor
        )

    def _delay(self, unanswered: int) -> float:
        """Seconds until the next attempt, more after each since the last link.

        @param unanswered: attempts since somebody answered; who answers may refuse us, or be refused.
        """
        connections = self._factory.connections
        if unanswered == 1 and connections:
            if connections[-1].peer is not None:
                self._attempts = 0
            elif (reason := connections[-1].reason) is not None:
                self._refused(reason)
        self._attempts += 1
        return self._after(self._attempts)

    def startService(self) -> None:
        """Connect."""
        super().startService()
        self._client.startService()

    def stopService(self) -> Deferred[Any]:
        """Say bye and disconnect."""
        super().stopService()
        self._factory.bye()
        return self._client.stopService()


class LinkServer(Service):
    """The cache's side of --link; `listening` fires with the port, or errs when it cannot be bound."""

    def __init__(self, reactor: Any, endpoint: str, made: Made) -> None:
        self._factory = LinkFactory(made, Ownership())
        self._endpoint = serverFromString(reactor, endpoint)
        self._port: IListeningPort | None = None

    async def listen(self) -> IListeningPort:
        """Bind; errs when that cannot be."""
        self._port = await self._endpoint.listen(self._factory)
        return self._port

    async def _stop(self) -> None:
        self._factory.bye()
        if self._port is not None:
            stopping = self._port.stopListening()
            if stopping is not None:
                await stopping

    def stopService(self) -> Deferred[None]:
        """Accept nothing more and say bye."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


class InheritedLink(Service):
    """--link-fd at either side: one connection, made by somebody else."""

    def __init__(self, reactor: Any, fd: int, made: Made) -> None:
        """@raise Invalid: C{fd} is not a connected stream socket."""
        self._reactor = reactor
        self._factory = LinkFactory(made, Inherited())
        hint = "pass a connected stream socket, such as one end of a socketpair"
        try:
            with socket.socket(fileno=os.dup(fd)) as probe:
                self._family = probe.family
                if probe.type != socket.SOCK_STREAM:
                    raise Invalid(f"descriptor {fd} is not a stream socket", hint=hint)
                probe.getpeername()
                probe.setblocking(False)
        except OSError as error:
            raise Invalid(f"descriptor {fd} is not a connected socket: {error.strerror}", hint=hint) from error
        self._fd = fd

    def startService(self) -> None:
        """Take it over."""
        super().startService()
        self._reactor.adoptStreamConnection(self._fd, self._family, self._factory)

    def stopService(self) -> None:
        """Say bye; the connection stays open for whoever made it."""
        super().stopService()
        self._factory.bye()
