"""What CRIU writes into pipes and sockets, into memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Callable

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.interfaces import IImageSink, IPassingSink

BYTES_PER_TURN = 1 << 20
"""What one turn of the reactor moves at most."""

DEFAULT_PIPE = 64 << 10
"""A pipe that was filled to this (pipe(7)) carries a large image: it is worth enlarging."""

LARGE_PIPE = 1 << 20
"""Three times the throughput of the default; above it even root may be refused (pipe-max-size)."""


def readable_bytes(fd: int) -> int:
    """How many bytes wait in a pipe or socket (FIONREAD, ioctl_tty(2))."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


@implementer(IPushProducer, IReadDescriptor)
class DescriptorSource:
    """Reads one pipe or socket to its end into one image, pausing while the image has no room."""

    def __init__(self, reactor: IReactorFDSet, fd: int, sink: IImageSink, finished: Callable[[], None]) -> None:
        """
        @param fd: the read end of a pipe, or a stream socket; ours from now on.
        @param finished: called once, at the end or at a failure.
        """
        self._reactor = reactor
        self._fd = fd
        self._sink = sink
        self._finished = finished
        self._enlarged = False
        self._passing: IPassingSink | None = None
        if stat.S_ISFIFO(os.fstat(fd).st_mode) and IPassingSink.providedBy(sink):
            self._passing = sink

    def start(self) -> None:
        """Begin to read."""
        os.set_blocking(self._fd, False)
        self._sink.registerProducer(self, True)
        self.resumeProducing()

    @property
    def active(self) -> bool:
        """Not at the end yet."""
        return self._fd >= 0

    def abort(self, reason: str) -> None:
        """Close the descriptor, so that its writer gets EPIPE; the image fails."""
        if self.active:
            self._close()
            self._sink.unregisterProducer()
            self._sink.fail(reason)
            self._finished()

    def resumeProducing(self) -> None:
        """The image has room (again)."""
        if self.active:
            self._reactor.addReader(self)

    def pauseProducing(self) -> None:
        """The image is full: what comes waits in the pipe, and stops its writer there."""
        if self.active:
            self._reactor.removeReader(self)

    def stopProducing(self) -> None:
        """The image is not wanted any more."""
        self.abort("the image is not wanted any more")

    def fileno(self) -> int:
        """Our descriptor, -1 when closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "image source"

    def doRead(self) -> None:
        """Something can be read: at most 1 MiB of it."""
        try:
            waiting = readable_bytes(self._fd)
            if waiting >= DEFAULT_PIPE and not self._enlarged:
                self._enlarge()
            if self._passing is not None and waiting:
                self.pauseProducing()
                self._passing.offer(self._fd, min(waiting, BYTES_PER_TURN))
                return
            room = self._sink.reserve(min(max(waiting, 1), BYTES_PER_TURN))
            if room is None:
                self.pauseProducing()
                return
            count = os.readv(self._fd, [room.view[:BYTES_PER_TURN]])
        except BlockingIOError:
            return
        except (OSError, RelayError) as error:
            self.abort(f"cannot read the image: {error}")
            return
        if count:
            self._sink.written(count)
        else:
            self._close()
            self._sink.unregisterProducer()
            self._sink.end()
            self._finished()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up: a pipe's hang-up without a byte left comes as this, not as doRead."""
        if not self.active:
            return
        if reason.check(ConnectionDone) is None:
            self.abort(reason.getErrorMessage())
            return
        self.resumeProducing()
        self.doRead()

    def _enlarge(self) -> None:
        self._enlarged = True
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, LARGE_PIPE)

    def _close(self) -> None:
        self._reactor.removeReader(self)
        os.close(self._fd)
        self._fd = -1
