"""Frames, and their way into a stream transport: by system calls on its socket where it has one, else through it.

A frame is a header (bytes) and perhaps a payload that lies in a memfd or a pipe. On a socket the header goes out with
MSG_MORE and the payload with sendfile or splice. Elsewhere (a fake transport, TLS) both pass through `write`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from twisted.internet.interfaces import IDelayedCall, IPullProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from criu_relay.flow.pipes import readable_bytes
from criu_relay.flow.ways import LINK, TAKEN, Way, sendfile, splice, write

COPIED_PAYLOAD = 64 << 10
"""A payload up to this is copied behind its header: a system call of its own would cost more."""

GATHERED = 128 << 10
"""Small frames are gathered up to about this before they are sent."""

BYTES_PER_TURN = (1 << 20) + GATHERED
"""What one turn of the reactor moves at most in each direction: the largest payload, with what is gathered in front of
it. The last bytes of a payload would cost a turn of their own, which is as much as all the others."""

LINGER = BYTES_PER_TURN // 2
"""Who has sent more than this in a turn is asked in the next one whether there is more: it would take a turn longer to
be told of what comes at its beginning."""

STOLEN = "somebody else reads the pipe of an image"
"""What was offered out of a pipe is not there: the link breaks, because the frame's length is told already."""


class MemfdRange(NamedTuple):
    """A payload: bytes of a memfd, and the same bytes mapped."""

    fd: int
    offset: int
    view: memoryview


@dataclass(eq=False)
class PipeRange:
    """A payload: bytes that wait in a pipe, which nobody else reads.

    @ivar taken: called once, when all of them have left the pipe.
    @ivar abandoned: the pipe is not there any more.
    """

    fd: int
    count: int
    taken: Callable[[], None]
    abandoned: bool = False

    def splice(self, out: int, most: int) -> int:
        """Move some of them.

        @raise OSError: they are not there: see L{STOLEN}.
        """
        try:
            count = splice(out, self.fd, most)
        except BlockingIOError:
            if readable_bytes(self.fd):
                raise
            count = 0
        if not count:
            raise OSError(errno.EIO, STOLEN)
        return count

    def read(self, most: int) -> bytes:
        """Take some of them; see L{splice}."""
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self.fd, most):
                return data
        raise OSError(errno.EIO, STOLEN)

    def abandon(self) -> None:
        """The pipe is closed: zeros are sent in place of what had not left, for a peer that throws them away."""
        self.abandoned = True


class OutFrame:
    """One frame to be sent.

    @ivar header: bytes; C{payload}: what comes behind them, C{payload_size} bytes when the frame was made.
    @ivar size: bytes of both.
    """

    __slots__ = ("header", "payload", "payload_size", "size")

    def __init__(self, header: bytes, payload: MemfdRange | PipeRange | bytes | None = None) -> None:
        self.header = header
        self.payload = payload
        if isinstance(payload, MemfdRange):
            self.payload_size = len(payload.view)
        elif isinstance(payload, PipeRange):
            self.payload_size = payload.count
        else:
            self.payload_size = len(payload or b"")
        self.size = len(header) + self.payload_size


class FrameSource(Protocol):
    """Where frames to be sent come from."""

    def next_frame(self) -> OutFrame | None:
        """The next one; None: nothing to send now (`wake` is called when there is)."""

    def drained(self) -> None:
        """Everything that `next_frame` gave was sent, and there was nothing more."""


def gather(source: FrameSource) -> tuple[bytearray, MemfdRange | PipeRange | None]:
    """The next frames of a source, at least one unless there is none, for as few system calls as possible.

    @return: headers with the small payloads, and the large payload that comes after them, if any.
    """
    head = bytearray()
    while len(head) < GATHERED:
        frame = source.next_frame()
        if frame is None:
            break
        head += frame.header
        payload = frame.payload
        if isinstance(payload, PipeRange) or (isinstance(payload, MemfdRange) and len(payload.view) > COPIED_PAYLOAD):
            return head, payload
        head += payload.view if isinstance(payload, MemfdRange) else payload or b""
    return head, None


class _Writer:
    """What both writers have in common: they are pull producers of a transport, as long as there is something."""

    def __init__(self, transport: Any, source: FrameSource) -> None:
        self._transport = transport
        self._source = source
        self._registered = False
        self._stopped = False

    def wake(self) -> None:
        """The source has something."""
        if not self._registered and not self._stopped:
            self._registered = True
            self._transport.registerProducer(self, False)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        self._unregister()

    def stopProducing(self) -> None:
        """The transport is lost."""
        self._stopped = True

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self._transport.unregisterProducer()


@implementer(IPullProducer)
class SocketFrameWriter(_Writer):
    """Sends frames on the socket of a Twisted transport: at once, and as its pull producer while that is full."""

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, transport: Any, source: FrameSource, failed: Callable[[Exception], None]
    ) -> None:
        """@param failed: called once, with why nothing more can be sent."""
        super().__init__(transport, source)
        self._clock = clock
        self._soon: IDelayedCall | None = None
        self._socket: socket.socket = transport.getHandle()
        self._failed = failed
        self._head = memoryview(b"")
        self._payload: MemfdRange | PipeRange | None = None
        self._sent = 0
        self._from_memory = Way(LINK, sendfile, write)
        self._from_pipe = Way(LINK, PipeRange.splice, self.read)

    @property
    def path(self) -> str:
        """What `status` calls this way."""
        return self._from_memory.name

    def wake(self) -> None:
        """The source has something: it is sent at the end of this turn of the reactor, with what comes until then."""
        if self._soon is None and not self._registered and not self._stopped:
            self._soon = self._clock.callLater(0, self._begin)

    def flush(self) -> None:
        """Send now what there is to be sent, as far as the socket takes it: who ends does not wait for another turn."""
        if not self._stopped:
            self.resumeProducing()

    def _begin(self) -> None:
        self._soon = None
        self.resumeProducing()

    def stop(self) -> None:
        """Send nothing more."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        super().stop()

    def resumeProducing(self) -> None:
        """The socket has room, or may have: send at most L{BYTES_PER_TURN}."""
        most = BYTES_PER_TURN
        try:
            while not self._stopped:
                if not self._head and self._payload is None and not self._gather():
                    self._unregister()
                    self._source.drained()
                    if most <= LINGER and self._soon is None and not self._stopped:
                        self._soon = self._clock.callLater(0, self._begin)
                    return
                if most <= 0:
                    break
                most -= self._send(most)
        except BlockingIOError:
            if not self._registered:
                super().wake()
                return
        except OSError as error:
            self._fail(error)
            return
        except Exception as error:  # a defect: a frame that was taken is lost, so this link cannot go on
            self._log.failure("no frame can be made")
            self._fail(error)
            return
        if self._stopped:
            return
        if self._registered:
            self._transport.startWriting()
        elif self._soon is None:
            self._soon = self._clock.callLater(0, self._begin)

    def _fail(self, error: Exception) -> None:
        self.stop()
        self._failed(error)

    def _send(self, most: int) -> int:
        if self._head:
            count = self._socket.send(self._head, socket.MSG_MORE if self._payload else 0)
            self._head = self._head[count:]
            TAKEN.add(LINK, "send", count)
            return count
        payload = self._payload
        if isinstance(payload, PipeRange):
            left = payload.count - self._sent
            if payload.abandoned:
                self._head, self._payload, self._sent = memoryview(bytes(left)), None, 0
                return 0
            count = self._from_pipe(payload, self._socket.fileno(), min(left, most))
        else:
            assert payload is not None
            left = len(payload.view) - self._sent
            count = self._from_memory(self._socket.fileno(), payload, self._sent, min(left, most))
        self._sent += count
        if count == left:
            self._payload = None
            self._sent = 0
            if isinstance(payload, PipeRange):
                payload.taken()
        return count

    def read(self, payload: PipeRange, out: int, most: int) -> int:
        """What takes the place of splice: the bytes are sent like those of a header."""
        data = payload.read(most)
        self._head = memoryview(data)
        return len(data)

    def _gather(self) -> bool:
        head, self._payload = gather(self._source)
        self._head = memoryview(head)
        return bool(head)


@implementer(IPullProducer)
class TransportFrameWriter(_Writer):
    """Sends frames through any transport that takes a pull producer."""

    path = "write"

    def flush(self) -> None:
        """Give the transport now what there is to be sent."""
        self.wake()
        while self._registered and not self._stopped:
            self.resumeProducing()

    def resumeProducing(self) -> None:
        """The transport wants data: one frame, or nothing more for now."""
        if self._stopped:
            return
        frame = self._source.next_frame()
        if frame is None:
            self._unregister()
            self._source.drained()
            return
        data = frame.header + _copied(frame.payload)
        self._transport.write(data)
        TAKEN.add(LINK, self.path, len(data))


def _copied(payload: MemfdRange | PipeRange | bytes | None) -> bytes:
    if isinstance(payload, MemfdRange):
        return bytes(payload.view)
    if isinstance(payload, PipeRange):
        if payload.abandoned:
            return bytes(payload.count)
        data = b""
        while len(data) < payload.count:
            data += payload.read(payload.count - len(data))
        payload.taken()
        return data
    return payload or b""
