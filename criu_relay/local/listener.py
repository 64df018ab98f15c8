"""The listening sockets of the dialects, and who gets in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from criu_relay.errors import Forbidden
from criu_relay.flow.unix_listener import UnixListener, allowed, peer_of
from criu_relay.interfaces import IDumpListener, Peer

MAX_CLIENTS = 256
"""Clients of one socket at the same time; at the proxy a client counts until its pipes are read. The next ones wait in
the listen queue, where connect(2) holds them. CRIU has fewer than 100 images open, so waiting never stops what would
end it; each client takes up to two of the usual limit of 1024 descriptors per process."""


BACKLOG = 32
"""Connections that may wait to be accepted. Twisted accepts all of them in one turn, so there may be so many more than
L{MAX_CLIENTS}; connect(2) waits when the queue is full."""


class Door:
    """Lets clients in by user id, and says when there are L{MAX_CLIENTS} of them."""

    def __init__(
        self,
        extra_uids: Collection[int] = (),
        limit: int = MAX_CLIENTS,
        identify: Callable[[Any], Peer] = peer_of,
    ) -> None:
        """
        @param extra_uids: users who may connect besides root and our own.
        @param identify: who is at the other end of a transport.
        """
        self._extra_uids = extra_uids
        self._limit = limit
        self._identify = identify
        self._inside: set[object] = set()
        self.full: Callable[[], None] = lambda: None
        self.free: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, client: object, transport: Any) -> Peer:
        """A client connected.

        @return: who it is.
        @raise Forbidden: it belongs to somebody else.
        """
        peer = self._identify(transport)
        if not allowed(peer, self._extra_uids):
            raise Forbidden(
                f"uid {peer.uid} (pid {peer.pid}) may not use this socket", hint="--allow-uid lets other users in"
            )
        self._inside.add(client)
        if len(self._inside) == self._limit:
            self.full()
        return peer

    def leave(self, client: object) -> None:
        """A client needs nothing of us any more."""
        if client in self._inside:
            self._inside.remove(client)
            if len(self._inside) == self._limit - 1:
                self.free()


@implementer(IDumpListener)
class LocalListener(UnixListener):
    """A socket of CRIU, which stops accepting while its door is full."""

    def __init__(self, reactor: Any, path: str, build: Callable[[], Protocol], door: Door) -> None:
        super().__init__(reactor, path, _Clients(build), BACKLOG)
        door.full = self._pause
        door.free = self._resume

    def unsettled(self) -> str | None:
        """A connection that waits in the listen queue."""
        return "a connection of criu that was not accepted yet" if self.waiting() else None

    def _pause(self) -> None:
        if self._port is not None:
            self._port.stopReading()

    def _resume(self) -> None:
        if self._port is not None:
            self._port.startReading()


class _Clients(Factory):
    noisy = False

    def __init__(self, build: Callable[[], Protocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """One more client."""
        protocol = self._build()
        protocol.factory = self
        return protocol
