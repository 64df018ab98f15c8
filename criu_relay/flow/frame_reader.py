"""Frames out of a socket, straight into the memory that they are for."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.flow.sockets import TCP
from criu_relay.flow.ways import LINK, Way, recv_into, recvmsg_into

LOW_WATER = 512 << 10
"""Bytes of a payload that are waited for before they are taken: taking them as they come would be three turns of the
reactor a MiB instead of one or two. The kernel says of less than that when it has no room for more (SO_RCVLOWAT,
socket(7)); so does L{SocketFrameReader.look}."""


class FrameTarget(Protocol):
    """Where received bytes go: a L{criu_relay.wire.link.FrameReader}."""

    @property
    def awaited(self) -> int: ...
    def buffers(self) -> list[memoryview]: ...
    def received(self, count: int) -> None: ...
    def feed(self, data: bytes) -> None: ...


@implementer(IReadDescriptor)
class SocketFrameReader:
    """Receives on the socket of a (paused) Twisted transport straight into the target's buffers."""

    def __init__(
        self,
        reactor: IReactorFDSet,
        connection: socket.socket,
        target: FrameTarget,
        turn_ended: Callable[[], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        """
        @param connection: duplicated, because epoll knows a descriptor once.
        @param turn_ended: called after each turn that brought something.
        @param ended: called once, with None at the peer's end of stream.
        """
        self._reactor = reactor
        self._socket = connection.dup()
        self._target = target
        self._turn_ended = turn_ended
        self._ended = ended
        self._way = Way(LINK, recvmsg_into, recv_into)
        self._waits = connection.family in TCP
        self._low = 1

    @property
    def path(self) -> str:
        """What `status` calls this way."""
        return self._way.name

    def start(self) -> None:
        """Begin to read."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Read no more; `ended` is not called."""
        if self._socket.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()

    def fileno(self) -> int:
        """Our descriptor, -1 when closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "link reader"

    def doRead(self) -> None:
        """Something has come: as much of it as the target has buffers for, at most 4 MiB and their headers."""
        buffers = self._target.buffers()
        if not buffers:
            self._reactor.removeReader(self)
            return
        try:
            count = self._way(self._socket, buffers)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if count == 0:
            self._end(None)
            return
        self._target.received(count)
        self._turn_ended()
        self._wait_for(self._target.awaited)

    def look(self) -> None:
        """Take what has come, however little it is."""
        self._wait_for(1)

    def _wait_for(self, count: int) -> None:
        """The reactor calls us when so many bytes have come, or enough."""
        low = max(1, min(count, LOW_WATER))
        if self._waits and low != self._low and self._socket.fileno() >= 0:
            self._low = low
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up."""
        self._end(reason.value if isinstance(reason.value, Exception) else None)

    def _end(self, error: Exception | None) -> None:
        if self._socket.fileno() >= 0:
            self.stop()
            self._ended(error)
