"""Complete images to pipes and sockets, without a copy into Python."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.flow.pipes import DEFAULT_PIPE, enlarge
from criu_relay.flow.ways import CRIU, Piece, Way, sendfile, write

PIPE_BYTES_PER_TURN = 1 << 20
"""What one turn of the reactor moves at most."""

SOCKET_BYTES_PER_SEND = 256 << 10
"""Measured best for send(2) of mapped memory to a unix socket."""


class Readable(Protocol):
    """An image as the server sees it.

    `shared` is set when pages of it were passed on by reference.
    """

    size: int
    shared: bool

    def piece(self, offset: int) -> Piece: ...


@implementer(IWriteDescriptor)
class ImageServer:
    """One image on its way into one descriptor.

    @ivar done: fires with the bytes written when all are written or the reader left; errs with
        L{RelayError} when the image cannot be read on.
    """

    def __init__(
        self, reactor: IReactorFDSet, image: Readable, fd: int, served: Callable[[int], None] = lambda count: None
    ) -> None:
        """
        @param fd: a pipe's write end or a stream socket; duplicated.
        @param served: called with the bytes of each turn.
        """
        self._reactor = reactor
        self._served = served
        self._image = image
        self._fd = os.dup(fd)
        os.set_blocking(self._fd, False)
        self._pipe = stat.S_ISFIFO(os.fstat(self._fd).st_mode)
        self._way = Way(CRIU, sendfile if self._pipe else write, write)
        self._written = 0
        self.done: Deferred[int] = Deferred(lambda _: self._stop())

    def start(self) -> None:
        """Begin; `done` may fire at once."""
        if self._image.size:
            if self._pipe and self._image.size > DEFAULT_PIPE:
                enlarge(self._fd)
            self._reactor.addWriter(self)
        else:
            self._finish()

    def fileno(self) -> int:
        """Our own descriptor, -1 when closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "image server"

    def doWrite(self) -> None:
        """The pipe or socket has room: fill it, at most 1 MiB."""
        most, before = PIPE_BYTES_PER_TURN, self._written
        try:
            while most > 0 and self._written < self._image.size:
                sent = self._send(self._image.piece(self._written), most)
                self._written += sent
                most -= sent
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._finish()
            return
        except (OSError, RelayError) as error:
            self._stop()
            reason = error if isinstance(error, RelayError) else RelayError(f"cannot write an image: {error}")
            self.done.errback(reason)
            return
        finally:
            self._served(self._written - before)
        if self._written == self._image.size:
            self._finish()

    def connectionLost(self, reason: Failure) -> None:
        """The reader is gone; criu may close early."""
        self._finish()

    def _send(self, piece: Piece, most: int) -> int:
        count = min(len(piece.view), most if self._pipe else SOCKET_BYTES_PER_SEND)
        sent = self._way(self._fd, piece, 0, count)
        if self._way.step is sendfile:
            self._image.shared = True
        return sent

    def _stop(self) -> None:
        if self._fd >= 0:
            self._reactor.removeWriter(self)
            os.close(self._fd)
            self._fd = -1

    def _finish(self) -> None:
        if self._fd >= 0:
            self._stop()
            self.done.callback(self._written)
