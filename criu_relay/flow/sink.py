"""Bytes that are in Python already, into a pipe or socket."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.flow.ways import CRIU, TAKEN

BYTES_PER_TURN = 1 << 20
"""What one turn of the reactor moves at most."""


@implementer(IWriteDescriptor)
class BytesWriter:
    """Writes one run of bytes at a time into a descriptor."""

    def __init__(self, reactor: IReactorFDSet, fd: int, hop: str = CRIU) -> None:
        """@param fd: a pipe's write end or a stream socket; duplicated."""
        self._reactor = reactor
        self._hop = hop
        self._fd = os.dup(fd)
        os.set_blocking(self._fd, False)
        self._rest = memoryview(b"")
        self._written: Deferred[bool] | None = None

    def write(self, data: bytes | memoryview) -> Deferred[bool]:
        """Write all of it.

        @return: fires with True when it is written, False when the reader has left; errs with L{RelayError}.
        """
        self._rest = memoryview(data)
        self._written = Deferred(lambda _: self.close())
        self._reactor.addWriter(self)
        return self._written

    def close(self) -> None:
        """Close our descriptor."""
        if self._fd >= 0:
            self._reactor.removeWriter(self)
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Our own descriptor, -1 when closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "bytes writer"

    def doWrite(self) -> None:
        """There is room."""
        try:
            count = os.write(self._fd, self._rest[:BYTES_PER_TURN])
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._fire(False)
            return
        except OSError as error:
            self._fire(RelayError(f"cannot write an image: {error}"))
            return
        TAKEN.add(self._hop, "write", count)
        self._rest = self._rest[count:]
        if not self._rest:
            self._fire(True)

    def connectionLost(self, reason: Failure) -> None:
        """The reader is gone."""
        self._fire(False)

    def _fire(self, result: bool | RelayError) -> None:
        if self._fd >= 0:
            self._reactor.removeWriter(self)
        if self._written is not None:
            fired, self._written = self._written, None
            if isinstance(result, RelayError):
                fired.errback(result)
            else:
                fired.callback(result)
