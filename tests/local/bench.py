"""Sockets of the dialects, real, with fakes behind them, and clients that behave or not."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Protocol
from twisted.logger import globalLogPublisher

from criu_relay.flow.unix_listener import peer_of
from criu_relay.interfaces import Peer
from criu_relay.local.images_cache import ImagesCache
from criu_relay.local.images_proxy import ImagesProxy
from criu_relay.local.listener import Door, LocalListener
from criu_relay.local.ordering import Arrivals, Turns
from criu_relay.local.pins import Pins
from criu_relay.local.stream_capture import StreamCapture
from criu_relay.local.stream_serve import StreamServe
from tests.local.fakes import FakeDump, FakeOpened, FakeRestores
from tests.local.loop import Loop

LABEL = "/var/lib/images"


class Client:
    """A client's end of a socket, non-blocking."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.connect(str(path))
        self.received = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        """All of it, at once."""
        assert self.socket.send(data) == len(data)

    def send_descriptor(self, descriptor: int, data: bytes = b"\0") -> None:
        """Bytes that carry a descriptor."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        assert self.socket.sendmsg([data], [rights]) == len(data)

    def pass_pipe(self, ours: str, data: bytes = b"\0") -> int:
        """Make a pipe and pass the end that is not ours.

        @param ours: "write" or "read".
        """
        reading, writing = os.pipe()
        keep, give = (writing, reading) if ours == "write" else (reading, writing)
        self.send_descriptor(give, data)
        os.close(give)
        os.set_blocking(keep, False)
        return keep

    def poll(self) -> bytes:
        """Everything that has come so far."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while True:
                data = self.socket.recv(1 << 16)
                if not data:
                    self.ended = True
                    break
                self.received += data
        return self.received

    def is_over(self) -> bool:
        """The other side has closed it."""
        self.poll()
        if not self.ended:
            try:
                self.ended = self.socket.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                self.ended = True
        return self.ended

    def close(self) -> None:
        """Leave."""
        self.socket.close()


class Bench:
    """All four sockets in one directory."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.loop = loop
        self.directory = directory
        self.dump = FakeDump()
        self.restores = FakeRestores()
        self.images: list[FakeOpened] = []
        self.peers: list[Peer] = []
        self.protocols: list[Any] = []
        self.clients: list[Client] = []
        self.listeners: dict[str, LocalListener] = {}
        self.doors: dict[str, Door] = {}
        self.events: list[dict[str, Any]] = []
        self.arrivals, self.turns = Arrivals(), Turns()
        self.pins = Pins(loop, self.restores)
        self._cache_arrivals = Arrivals()
        globalLogPublisher.addObserver(self.events.append)

    def close(self) -> None:
        """Close everything, and see that no descriptor is watched any more."""
        for client in self.clients:
            client.close()
        for listener in self.listeners.values():
            listener.stopListening()
        self.loop.turns()
        for protocol in self.protocols:
            protocol.drop("the test is over")
        self.loop.turns()
        for pid in list(self.pins._pins):
            self.pins.finish(Peer(pid, 0, 0))
        globalLogPublisher.removeObserver(self.events.append)
        assert not self.loop.watched
        assert not self.loop.getDelayedCalls()

    def identify(self, transport: Any) -> Peer:
        """The real peer, unless the test has said who comes next."""
        return self.peers.pop(0) if self.peers else peer_of(transport)

    def listen(self, dialect: str, limit: int = 256) -> str:
        """Bind one of the four.

        @return: its path.
        """
        path = str(self.directory / f"{dialect}.sock")
        door = self.doors[dialect] = Door(limit=limit, identify=self.identify)
        listener = LocalListener(self.loop, path, lambda: self._build(dialect, door), door)
        listener.startListening()
        self.listeners[dialect] = listener
        return path

    def connect(self, dialect: str) -> Client:
        """One more client; it is not accepted before the loop turns."""
        if dialect not in self.listeners:
            self.listen(dialect)
        client = Client(self.listeners[dialect].path)
        self.clients.append(client)
        return client

    def image(self, data: bytes) -> FakeOpened:
        """An image to answer with."""
        self.images.append(FakeOpened(self.loop, data))
        return self.images[-1]

    def log(self) -> list[str]:
        """The warnings and errors so far."""
        from twisted.logger import LogLevel, formatEvent

        return [formatEvent(event) for event in self.events if event["log_level"] >= LogLevel.warn]

    def _build(self, dialect: str, door: Door) -> Protocol:
        protocol: Any
        if dialect == "capture":
            protocol = StreamCapture(self.loop, self.dump, door)
        elif dialect == "serve":
            protocol = StreamServe(self.restores, door)
        elif dialect == "proxy":
            protocol = ImagesProxy(self.loop, self.dump, door, self.arrivals, self.turns)
        else:
            protocol = ImagesCache(self.loop, door, self._cache_arrivals, self.pins)
        self.protocols.append(protocol)
        return protocol


def framed(body: bytes) -> bytes:
    """CRIU's framing."""
    return struct.pack("<I", len(body)) + body


def text(number: int, value: str | bytes) -> bytes:
    """A protobuf string field of fewer than 128 bytes."""
    data = value.encode() if isinstance(value, str) else value
    length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
    return bytes([number << 3 | 2]) + length + data


def wanted(name: str | bytes) -> bytes:
    """A request of the stream dialect."""
    return framed(text(1, name))


def opened(name: str | bytes, label: str | bytes, mode: int) -> bytes:
    """A request of the remote images dialect."""
    value = bytes([mode]) if mode < 128 else bytes([mode & 0x7F | 0x80, mode >> 7])
    return framed(text(1, name) + text(2, label) + b"\x18" + value)


def drain(descriptor: int) -> tuple[bytes, bool]:
    """What can be read from a non-blocking descriptor now, and whether that was the end."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return data, True
            data += piece
    return data, False
