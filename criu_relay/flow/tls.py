"""Frames under TLS, on a descriptor of our own.

OpenSSL works on memory here, not on the socket: ciphertext is received and sent 256 KiB at a time. On the socket
OpenSSL would make two system calls a record of 16 KiB; this way costs a copy more and less in all (0.6 instead of
0.9 CPU seconds a GB for the receiver), and a send is never half done. What was decrypted is put straight into the
memory that it is for.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.flow.channel import ChannelUser
from criu_relay.flow.frames import BYTES_PER_TURN, MemfdRange, PipeRange, gather
from criu_relay.flow.ways import LINK, TAKEN

CHUNK = 256 << 10
"""Bytes for one system call and one call of OpenSSL: still in the processor's cache when the next step comes."""

RECORD = 16 << 10
"""Bytes in the largest record (RFC 8446, 5.1): OpenSSL never returns more at a time."""

STEP = 4 << 10
"""Bytes that one step of reading counts as at the least: a peer that sends tiny records does not get a longer turn."""

CIPHERTEXT = CHUNK + 4096
"""Bytes that CHUNK bytes have as records, and a few for what OpenSSL says itself."""


@dataclass(frozen=True)
class Native:
    """OpenSSL's SSL_read itself: pyOpenSSL's recv_into allocates for each record and copies it once more, which takes
    as long as its decryption.

    @ivar read: SSL_read(3).
    @ivar session: its first argument.
    @ivar address: the pointer to a buffer.
    """

    read: Callable[[Any, Any, int], int]
    session: Any
    address: Callable[[memoryview], Any]

    @classmethod
    def of(cls, connection: SSL.Connection) -> Native | None:
        """For a connection; None: this pyOpenSSL has it elsewhere, since that is no promise of its."""
        try:
            return cls(Binding.lib.SSL_read, connection._ssl, Binding.ffi.from_buffer)
        except AttributeError:
            return None


class Cipher:
    """One TLS connection on memory: it does no I/O.

    @ivar connection: of pyOpenSSL, made without a socket, its side chosen.
    @ivar reading: what `status` calls the way that bytes are read, and `writing` that they are written.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        self.connection = connection
        self._native = Native.of(connection)
        self.reading = "tls read" if self._native else "tls recv_into"
        self.writing = "tls send"

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is over.

        @raise SSL.Error: it failed.
        """
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def read_into(self, room: memoryview) -> int:
        """Decrypt whole records as long as there are any and there is room; the bytes filled, 0: none is complete.

        @raise SSL.ZeroReturnError: the peer ended its stream.
        @raise SSL.Error: the stream is broken.
        """
        filled = self._read_records(self._native, room) if self._native else 0
        if not filled:
            try:
                filled = self.connection.recv_into(room, RECORD)
            except SSL.WantReadError:
                return 0
        TAKEN.add(LINK, self.reading, filled)
        return filled

    @staticmethod
    def _read_records(native: Native, room: memoryview) -> int:
        """The bytes filled; 0: recv_into will say why."""
        start, size, filled = native.address(room), len(room), 0
        read, session = native.read, native.session
        while filled < size:
            count = read(session, start + filled, size - filled)
            if count <= 0:
                break
            filled += count
            if count < RECORD:
                break
        return filled

    def write(self, data: memoryview | bytes) -> None:
        """Encrypt at most CHUNK bytes. C{data} may change afterwards.

        @raise SSL.Error: the stream is broken.
        """
        sent = self.connection.send(data)
        assert sent == len(data), "SSL_MODE_ENABLE_PARTIAL_WRITE is set"
        TAKEN.add(LINK, self.writing, sent)

    def received(self, data: memoryview) -> None:
        """Ciphertext of the peer."""
        self.connection.bio_write(data)

    def outgoing(self) -> bytes:
        """Ciphertext for the peer; empty: there is none."""
        try:
            return self.connection.bio_read(CIPHERTEXT)
        except SSL.WantReadError:
            return b""

    def close(self) -> None:
        """Say that nothing more comes (close_notify)."""
        with contextlib.suppress(SSL.Error):
            self.connection.shutdown()


@implementer(IReadWriteDescriptor)
class TlsChannel:
    """See L{criu_relay.flow.channel.Channel}."""

    _received = memoryview(bytearray(CHUNK))
    """For the ciphertext of one system call; every channel uses it, one after the other."""

    def __init__(
        self, reactor: Any, transport: Any, connection: socket.socket, session: SSL.Connection, user: ChannelUser
    ) -> None:
        """
        @param connection: duplicated, because epoll knows a descriptor once.
        @param session: see L{Cipher}.
        """
        self._reactor = reactor
        self._transport = transport
        self._socket = connection.dup()
        self._cipher = Cipher(session)
        self.path = f"{self._cipher.writing}, {self._cipher.reading}"
        self._user = user
        self._shaken = False
        self._reading = True
        self._again: Any = None
        self._head = memoryview(b"")
        self._payload: MemfdRange | PipeRange | None = None
        self._taken = 0
        self._ciphertext = memoryview(b"")

    # Channel

    def start(self) -> None:
        """See L{Channel.start}."""
        self._transport.pauseProducing()
        self._reactor.addReader(self)
        self._shake()

    def wake(self) -> None:
        """See L{Channel.wake}."""
        if self._open:
            self._reactor.addWriter(self)

    def flush(self) -> None:
        """See L{Channel.flush}."""
        self.wake()
        self.doWrite()

    def look(self) -> None:
        """See L{Channel.look}: nothing waits."""

    def stop_reading(self) -> None:
        """See L{Channel.stop_reading}."""
        self._reading = False
        self._cancel()
        if self._open:
            self._reactor.removeReader(self)

    def stop(self) -> None:
        """See L{Channel.stop}."""
        if not self._open:
            return
        self.stop_reading()
        self._reactor.removeWriter(self)
        self._say_the_last()
        self._socket.close()

    def data_received(self, data: bytes) -> None:
        """See L{Channel.data_received}."""
        raise AssertionError("a paused transport delivers nothing")

    def connection_lost(self, error: BaseException) -> None:
        """See L{Channel.connection_lost}."""

    # IReadWriteDescriptor

    def fileno(self) -> int:
        """Our descriptor, -1 when closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "link under TLS"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up."""
        self._end(reason.value)

    def doRead(self) -> None:
        """Something has come."""
        if self._again is None:
            self._guarded(self._read if self._shaken else self._read_handshake)

    def doWrite(self) -> None:
        """The socket has room: send at most L{BYTES_PER_TURN}."""
        self._guarded(self._write)

    # Both ways

    @property
    def _open(self) -> bool:
        return self._socket.fileno() >= 0

    def _guarded(self, step: Any) -> None:
        try:
            step()
        except BlockingIOError:
            pass
        except SSL.ZeroReturnError:
            self._end(None)
        except (OSError, SSL.Error) as error:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._open:
            self.stop()
            self._user.ended(error)

    def _say_the_last(self) -> None:
        """An alert that says why, or close_notify, as far as the socket takes it now: nobody waits for it."""
        if not self._ciphertext:
            self._cipher.close()
            with contextlib.suppress(OSError):
                self._socket.send(self._cipher.outgoing())

    def _shake(self) -> None:
        self._guarded(self._go_on_with_handshake)

    def _go_on_with_handshake(self) -> None:
        self._shaken = self._cipher.handshake()
        self._reactor.addWriter(self)
        if self._shaken:
            self._user.secured()
            self._later()

    # Reading

    def _receive(self) -> bool:
        """Take ciphertext from the socket; False: the peer ended its stream.

        @raise BlockingIOError: there is none now.
        """
        count = self._socket.recv_into(self._received)
        if count:
            self._cipher.received(self._received[:count])
        return count > 0

    def _read_handshake(self) -> None:
        if not self._receive():
            self._end(None)
            return
        self._go_on_with_handshake()

    def _read(self) -> None:
        """At most L{BYTES_PER_TURN}: OpenSSL's buffer first, because nothing in it wakes epoll."""
        left = BYTES_PER_TURN
        try:
            while left > 0 and self._reading:
                buffers = self._user.buffers()
                if not buffers:
                    self._reactor.removeReader(self)
                    return
                left -= self._fill(buffers[0], left)
            self._later()
        finally:
            if self._open:
                self._user.turn_ended()
                if not self._ciphertext and self._fetch_ciphertext():
                    self._reactor.addWriter(self)

    def _fill(self, room: memoryview, most: int) -> int:
        """Fill it with what comes, and tell the user once, whatever ended that: each time costs as much as a frame.

        @param most: of the turn.
        @return: what of the turn is used up.
        """
        filled = used = 0
        try:
            while filled < len(room) and used < most:
                count = self._cipher.read_into(room[filled:])
                if not count and not self._receive():
                    raise SSL.ZeroReturnError
                filled += count
                used += max(count, STEP)
        finally:
            if filled:
                self._user.received(filled)
        return used

    def _later(self) -> None:
        if self._open and self._reading and self._again is None:
            self._again = self._reactor.callLater(0, self._read_again)

    def _read_again(self) -> None:
        self._again = None
        self._guarded(self._read)

    def _cancel(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    # Writing

    def _write(self) -> None:
        most = BYTES_PER_TURN
        while most > 0 and self._open:
            if self._ciphertext or self._fetch_ciphertext():
                count = self._socket.send(self._ciphertext)
                self._ciphertext = self._ciphertext[count:]
                most -= count
            elif not (self._shaken and self._encrypt()):
                self._reactor.removeWriter(self)
                if self._shaken:
                    self._user.drained()
                return

    def _fetch_ciphertext(self) -> bool:
        self._ciphertext = memoryview(self._cipher.outgoing())
        return bool(self._ciphertext)

    def _encrypt(self) -> bool:
        """The next piece of what is to be sent; False: there is nothing."""
        if not self._head and self._payload is None:
            head, self._payload = gather(self._user)
            self._head = memoryview(head)
        if self._head:
            self._cipher.write(self._head[:CHUNK])
            self._head = self._head[CHUNK:]
            return True
        payload = self._payload
        if payload is None:
            return False
        piece = self._piece(payload)
        self._cipher.write(piece)
        self._taken += len(piece)
        if self._taken == _length(payload):
            self._payload, self._taken = None, 0
            if isinstance(payload, PipeRange) and not payload.abandoned:
                payload.taken()
        return True

    def _piece(self, payload: MemfdRange | PipeRange) -> memoryview | bytes:
        if isinstance(payload, MemfdRange):
            return payload.view[self._taken : self._taken + CHUNK]
        left = min(payload.count - self._taken, CHUNK)
        return bytes(left) if payload.abandoned else payload.read(left)


def _length(payload: MemfdRange | PipeRange) -> int:
    return len(payload.view) if isinstance(payload, MemfdRange) else payload.count
