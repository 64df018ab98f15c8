"""Complete images to pipes and sockets, without a copy into Python."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import Conflict, RelayError
from criu_relay.flow.pipes import DEFAULT_PIPE, enlarge
from criu_relay.flow.vectors import vmsplice, writev
from criu_relay.flow.ways import CRIU, Way, sendfile

PIPE_BYTES_PER_TURN = 1 << 20
"""What one turn of the reactor moves at most."""

SOCKET_BYTES_PER_SEND = 256 << 10
"""Measured best for send(2) of mapped memory to a unix socket."""


GATHERED_BELOW = 64 << 10
"""Bytes of a run that is smaller go with the runs that follow in one system call: each of many small runs in one of its
own takes several times as long."""

BY_REFERENCE = (sendfile, vmsplice)
"""Ways after which the pipe refers to the memory itself."""

PENDING_SKIPS = 1024
"""Ranges that a reader may ask to skip ahead of where it is: bounds what it can make us remember."""


class Piece(Protocol):
    """A run of bytes that lies in one file."""

    @property
    def fd(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    def view(self, most: int) -> memoryview: ...


def write(out: int, piece: Piece, start: int, count: int) -> int:
    """At most `count` bytes of a piece, from its byte `start` on, copied."""
    return os.write(out, piece.view(start + count)[start:])


class Readable(Protocol):
    """An image as the server sees it."""

    size: int

    def piece(self, offset: int) -> Piece:
        """The run of bytes from `offset` on."""

    def runs(self, offset: int, most: int) -> numpy.ndarray:
        """At most `most` bytes from `offset` on where they lie in memory, as far as they do: see L{vectors}."""

    def passed(self, offset: int, count: int) -> None:
        """These bytes were passed on by reference: a pipe may refer to their memory."""

    def moved(self, position: int) -> None:
        """Nothing before `position` is read any more."""


@implementer(IWriteDescriptor)
class ImageServer:
    """One image on its way into one descriptor.

    @ivar position: the offset in the image of the next byte that is written, unless it is skipped.
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
        self._gather = Way(CRIU, vmsplice if self._pipe else writev, writev)
        self._written = 0
        self._skips: deque[tuple[int, int]] = deque()
        self.position = 0
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

    def skip(self, offset: int, length: int) -> tuple[int, int]:
        """The reader does not want these bytes. Those before `position`, and before a range that was skipped, come.

        @return: which are not going to be written: from, to. Nothing is skipped where both are the same.
        @raise Conflict: too many ranges are to be skipped.
        """
        stop = min(offset + length, self._image.size)
        start = max(offset, self._skips[-1][1] if self._skips else self.position)
        if start >= stop:
            return stop, stop
        if self._skips and self._skips[-1][1] == start:
            self._skips[-1] = self._skips[-1][0], stop
        elif len(self._skips) >= PENDING_SKIPS:
            raise Conflict(f"{PENDING_SKIPS} ranges wait to be skipped", hint="read up to them first")
        else:
            self._skips.append((start, stop))
        self._advance(0)
        if self.position == self._image.size:
            self._finish()
        return start, stop

    def fail(self, error: RelayError) -> None:
        """It cannot go on: the reader gets no more."""
        if self._fd >= 0:
            self._stop()
            self.done.errback(error)

    def doWrite(self) -> None:
        """The pipe or socket has room: fill it, at most 1 MiB."""
        most, before = PIPE_BYTES_PER_TURN, self._written
        try:
            while most > 0 and self.position < self._image.size:
                stop = self._skips[0][0] if self._skips else self._image.size
                sent = self._send(self._image.piece(self.position), min(most, stop - self.position))
                self._written += sent
                self._advance(sent)
                most -= sent
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._finish()
            return
        except (OSError, RelayError) as error:
            self.fail(error if isinstance(error, RelayError) else RelayError(f"cannot write an image: {error}"))
            return
        finally:
            self._served(self._written - before)
        if self.position == self._image.size:
            self._finish()

    def connectionLost(self, reason: Failure) -> None:
        """The reader is gone; criu may close early."""
        self._finish()

    def _advance(self, count: int) -> None:
        self.position += count
        if self._skips and self._skips[0][0] == self.position:
            self.position = self._skips.popleft()[1]
        self._image.moved(self.position)

    def _send(self, piece: Piece, most: int) -> int:
        if not self._pipe:
            most = min(most, SOCKET_BYTES_PER_SEND)
        step: object
        if piece.length < min(most, GATHERED_BELOW) and len(runs := self._image.runs(self.position, most)):
            sent, step = self._gather(self._fd, runs), self._gather.step
        else:
            sent, step = self._way(self._fd, piece, 0, min(piece.length, most)), self._way.step
        if step in BY_REFERENCE:
            self._image.passed(self.position, sent)
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
