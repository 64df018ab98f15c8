"""The relay as one would write it first, with Twisted's own means: a pipe -> transport.write -> dataReceived -> memory.

python -m bench.plain_twisted receive SIZE [CERTIFICATE KEY AUTHORITY]: prints "ready PORT", then the times
python -m bench.plain_twisted send PIPE PORT [CERTIFICATE KEY AUTHORITY]: prints "ready" when it is connected
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import abstract
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    SSL4ClientEndpoint,
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
)
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate, TLSVersion
from twisted.python.failure import Failure
from zope.interface import implementer

reactor: Any = default_reactor

HOST = "127.0.0.1"

READ = 64 << 10
"""Bytes of one read: what Twisted reads from sockets, and the size of a pipe."""


def memory(size: int) -> memoryview:
    """A memfd with all its pages, mapped: what the other references receive into."""
    fd = os.memfd_create("reference")
    os.ftruncate(fd, size)
    view = memoryview(mmap.mmap(fd, size))
    page = b"\1" * READ
    for start in range(0, size, READ):
        view[start : start + READ] = page[: size - start]
    return view


def say(*words: object) -> None:
    """Say it to the benchmark."""
    print(*words, flush=True)


class Receiver(Protocol):
    """Puts what comes into memory."""

    first = 0

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._received = 0

    def dataReceived(self, data: bytes) -> None:
        """See L{Protocol}."""
        if not self._received:
            self.first = time.monotonic_ns()
        self._view[self._received : self._received + len(data)] = data
        self._received += len(data)

    def connectionLost(self, reason: Any = None) -> None:
        """See L{Protocol}."""
        say(self.first, time.monotonic_ns(), self._received)
        reactor.stop()


@implementer(IPushProducer)
class Pipe(abstract.FileDescriptor):
    """A pipe that is read while the consumer takes it."""

    def __init__(self, fd: int, consumer: Any) -> None:
        super().__init__(reactor)
        os.set_blocking(fd, False)
        self.connected = 1
        self._fd = fd
        self._consumer = consumer

    def fileno(self) -> int:
        """See L{abstract.FileDescriptor}."""
        return self._fd

    def doRead(self) -> None:
        """See L{abstract.FileDescriptor}."""
        data = os.read(self._fd, READ)
        if data:
            self._consumer.write(data)
        else:
            self.connectionLost(None)

    def connectionLost(self, reason: Any) -> None:
        """The pipe is at its end."""
        self.stopReading()
        self._consumer.unregisterProducer()
        self._consumer.loseConnection()


class Sender(Protocol):
    """Sends a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def connectionMade(self) -> None:
        """See L{Protocol}."""
        transport: Any = self.transport
        pipe = Pipe(self._fd, transport)
        transport.registerProducer(pipe, True)
        pipe.startReading()
        say("ready")

    def connectionLost(self, reason: Any = None) -> None:
        """See L{Protocol}."""
        reactor.stop()


class Made(Factory):
    """Makes protocols."""

    def __init__(self, made: Callable[[], Protocol]) -> None:
        self._made = made

    def buildProtocol(self, addr: Any) -> Any:
        """See L{Factory}."""
        return self._made()


def context(certificate: str, key: str, authority: str) -> CertificateOptions:
    """Mutual TLS 1.3, as the daemons have it; the arguments are files."""
    own = PrivateCertificate.loadPEM(Path(certificate).read_bytes() + Path(key).read_bytes())
    return CertificateOptions(
        privateKey=own.privateKey.original,
        certificate=own.original,
        trustRoot=Certificate.loadPEM(Path(authority).read_bytes()),
        raiseMinimumTo=TLSVersion.TLSv1_3,
    )


async def receive(size: str, *tls: str) -> None:
    """Listen for one connection."""
    view = memory(int(size))
    endpoint = (
        SSL4ServerEndpoint(reactor, 0, context(*tls), interface=HOST)
        if tls
        else TCP4ServerEndpoint(reactor, 0, interface=HOST)
    )
    port = await endpoint.listen(Made(lambda: Receiver(view)))
    say("ready", port.getHost().port)


async def send(pipe: str, port: str, *tls: str) -> None:
    """Connect."""
    endpoint = (
        SSL4ClientEndpoint(reactor, HOST, int(port), context(*tls))
        if tls
        else TCP4ClientEndpoint(reactor, HOST, int(port))
    )
    await endpoint.connect(Made(lambda: Sender(int(pipe))))


def give_up(failure: Failure) -> None:
    """It cannot begin; the benchmark sees that this process ends."""
    failure.printTraceback()
    reactor.callWhenRunning(reactor.stop)


def main() -> None:
    """Send or receive."""
    role, *arguments = sys.argv[1:]
    work = send(*arguments) if role == "send" else receive(*arguments)
    Deferred.fromCoroutine(work).addErrback(give_up)
    reactor.run()


if __name__ == "__main__":
    main()
