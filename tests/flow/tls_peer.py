"""A counterpart for a TLS channel: Python's own TLS at the other end of a real socket, turned by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from criu_relay.flow.frames import MemfdRange, OutFrame, PipeRange
from criu_relay.flow.tls import TlsChannel
from tests.flow.support import FakeReactor
from tests.support.certificates import Authority

TURNS = 200_000
"""More than any test takes."""


class Reactor(FakeReactor, Clock):
    """Turned by hand."""

    def __init__(self) -> None:
        FakeReactor.__init__(self)
        Clock.__init__(self)


class Paused:
    """All that a channel does with its transport."""

    def __init__(self) -> None:
        self.reading = True

    def pauseProducing(self) -> None:
        self.reading = False


class User:
    """Has a channel: frames to be sent, and the bytes that came.

    @ivar sizes: of the buffers that it gives.
    @ivar turns: bytes that came in each turn.
    """

    def __init__(self, frames: list[OutFrame], sizes: list[int]) -> None:
        self.frames = frames
        self.sizes = sizes
        self.given: list[OutFrame] = []
        self.data = bytearray()
        self.turns: list[int] = []
        self.drains = 0
        self.secured_times = 0
        self.ends: list[BaseException | None] = []
        self._given: list[memoryview] = []
        self.awaited = 0
        self._turn = 0

    def next_frame(self) -> OutFrame | None:
        if not self.frames:
            return None
        self.given.append(self.frames.pop(0))
        return self.given[-1]

    def drained(self) -> None:
        self.drains += 1

    def buffers(self) -> list[memoryview]:
        self._given = [memoryview(bytearray(size)) for size in self.sizes]
        return self._given

    def received(self, count: int) -> None:
        self.data += b"".join(self._given)[:count]
        self._turn += count

    def feed(self, data: bytes) -> None:
        self.data += data
        self._turn += len(data)

    def turn_ended(self) -> None:
        self.turns.append(self._turn)
        self._turn = 0

    def secured(self) -> None:
        self.secured_times += 1

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)


def as_bytes(frame: OutFrame) -> bytes:
    """What a frame is on the wire; not for one whose payload waits in a pipe."""
    payload = frame.payload
    assert not isinstance(payload, PipeRange)
    return frame.header + bytes(payload.view if isinstance(payload, MemfdRange) else payload or b"")


class Pair:
    """A channel on a socket, and its peer on the other end.

    @ivar peer_plain: what the peer got.
    @ivar slice: bytes that pass at once, in each direction.
    @ivar spoil: changes the ciphertext on its way to the channel.
    """

    def __init__(
        self,
        directory: Path,
        frames: list[OutFrame] | None = None,
        sizes: list[int] | None = None,
        server: bool = False,
    ) -> None:
        """@param server: the channel is the server's."""
        authority = Authority(directory)
        credentials = authority.issue("ours").credentials(not server)
        self.handshake = credentials.handshake()
        self.user = User(frames or [], sizes or [1 << 20, 100])
        self.reactor = Reactor()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.transport = Paused()
        self.channel = TlsChannel(self.reactor, self.transport, self.ours, self.handshake.session, self.user)
        self.peer = self._peer(authority, server)
        self.peer_plain = bytearray()
        self.peer_ended = False
        self.peer_reads = True
        self.slice = 1 << 20
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self._to_peer = bytearray()
        self._from_peer = bytearray()
        self._to_encrypt = memoryview(b"")
        self._shaken = False

    def _peer(self, authority: Authority, server: bool) -> ssl.SSLObject:
        shown = authority.issue("theirs")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if server else ssl.PROTOCOL_TLS_SERVER)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.path)
        context.load_cert_chain(shown.certificate, shown.key)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        return context.wrap_bio(self._in, self._out, server_side=not server)

    def send(self, data: bytes) -> None:
        """The peer sends."""
        self._to_encrypt = memoryview(bytes(self._to_encrypt) + data)

    def turn(self) -> None:
        """One turn of the reactor, and of the peer."""
        self.reactor.advance(0)
        for reader in list(self.reactor.readers):
            reader.doRead()
        for writer in list(self.reactor.writers):
            writer.doWrite()
        self.turn_peer()

    def turn_peer(self) -> None:
        """Pass what waits, and let the peer work."""
        if self.peer_reads:
            with contextlib.suppress(BlockingIOError, OSError):
                data = self.theirs.recv(self.slice)
                self._in.write(data)
                if not data:
                    self._in.write_eof()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._work()
        self._from_peer += self._out.read()
        if self._from_peer:
            with contextlib.suppress(OSError):
                sent = self.theirs.send(self.spoil(bytes(self._from_peer[: self.slice])))
                del self._from_peer[:sent]

    def _work(self) -> None:
        if not self._shaken:
            self.peer.do_handshake()
            self._shaken = True
        if self._to_encrypt:
            sent = self.peer.write(self._to_encrypt[: 1 << 20])
            self._to_encrypt = self._to_encrypt[sent:]
        if self.peer_reads:
            try:
                while data := self.peer.read(1 << 20):
                    self.peer_plain += data
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self.peer_ended = True
            else:
                self.peer_ended = True

    def run(self, until: Callable[[], Any]) -> Pair:
        """@raise AssertionError: it does not come true."""
        for _ in range(TURNS):
            if until():
                return self
            self.turn()
        raise AssertionError(f"it never came true; {self.user.ends}, {len(self.peer_plain)} {len(self.user.data)}")

    def shake(self) -> Pair:
        """The handshake."""
        self.channel.start()
        return self.run(lambda: self.user.secured_times and self._shaken)

    def close(self) -> None:
        self.channel.stop()
        self.ours.close()
        self.theirs.close()
