"""CRIU's side of remote images, with plain blocking sockets: what `criu dump --remote` and `criu restore --remote` do.

Written from the description of the dialect (docs/protocol.md), without the codecs that it tests.

    dump = DumpSide(directory, "/var/lib/images/1")
    dump.push()
    dump.write("inventory.img", b"...")
    dump.finish()

    restore = RestoreSide(directory, "/var/lib/images/1")
    restore.read("inventory.img")
    restore.finish()
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

READ = 0
WRITE = 1
APPEND = 1024

ENOENT = 2

PATIENCE = 20.0
"""Seconds for an answer that must come."""

PIECE = 1 << 20
"""Bytes that are read from a pipe at once."""

LIST = "parent"
"""The name of the list of snapshots."""


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def string(number: int, value: str) -> bytes:
    """A protobuf string field."""
    data = value.encode()
    return varint(number << 3 | 2) + varint(len(data)) + data


def framed(body: bytes) -> bytes:
    """CRIU's framing."""
    return struct.pack("<I", len(body)) + body


def header(name: str, label: str, mode: int) -> bytes:
    """The request of a connection."""
    return framed(string(1, name) + string(2, label) + b"\x18" + varint(mode))


class Connection:
    """One connection to img-proxy.sock or img-cache.sock."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Blocking, as CRIU's is: it waits when the listen queue is full.
        self.socket.connect(str(path))
        self.socket.settimeout(PATIENCE)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Bytes on the socket itself."""
        self.socket.sendall(data)

    def pass_descriptor(self, descriptor: int, data: bytes = b"\0") -> None:
        """The byte that carries a descriptor."""
        rights = array.array("i", [descriptor])
        assert self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]) == len(data)

    def pass_pipe(self, keep: str, data: bytes = b"\0") -> int:
        """Make a pipe and pass one end.

        @param keep: "write" or "read": the end that stays here.
        """
        reading, writing = os.pipe()
        ours, theirs = (writing, reading) if keep == "write" else (reading, writing)
        self.pass_descriptor(theirs, data)
        os.close(theirs)
        return ours

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes, or fewer at the end of the connection."""
        data = b""
        while len(data) < count and (piece := self.socket.recv(count - len(data))):
            data += piece
        return data

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(PIECE):
                data += piece
        return data

    def message(self) -> bytes | None:
        """The body of the next message; None at the end of the connection."""
        length = self.receive(4)
        return self.receive(struct.unpack("<I", length)[0]) if len(length) == 4 else None

    def reply(self) -> int:
        """The error in the reply to a read.

        @raise AssertionError: the connection ended without one.
        """
        body = self.message()
        assert body is not None, "the connection ended without a reply"
        assert len(body) == 2 and body[0] == 8, body
        return body[1]

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long, not even the end of the connection."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) is None
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)


def read_all(pipe: int) -> bytes:
    """A pipe up to its end; closes it."""
    pieces = []
    while piece := os.read(pipe, PIECE):
        pieces.append(piece)
    os.close(pipe)
    return b"".join(pieces)


def write_all(pipe: int, data: bytes) -> None:
    """Into a pipe, and close it."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(pipe, view) :]
    finally:
        os.close(pipe)


class Side:
    """One criu.

    @ivar label: its own snapshot: what it was given as -D.
    """

    socket_name: str

    def __init__(self, directory: Path, label: str) -> None:
        self.path = directory / self.socket_name
        self.label = label

    def connect(self) -> Connection:
        """A connection without a byte."""
        return Connection(self.path)

    def opened(self, name: str, label: str, mode: int) -> Connection:
        """A connection with its header."""
        connection = self.connect()
        connection.send(header(name, label, mode))
        return connection

    def ask(self, name: str, label: str | None = None) -> Connection:
        """Open an image for reading; the answer may take its time."""
        return self.opened(name, self.label if label is None else label, READ)

    def take(self, connection: Connection) -> bytes | None:
        """The answer to L{ask}, then the image; None when there is none."""
        with connection:
            error = connection.reply()
            if error:
                assert error == ENOENT
                return None
            pipe = connection.pass_pipe("read")
        return read_all(pipe)

    def read(self, name: str, label: str | None = None) -> bytes | None:
        """An image; None when there is none."""
        return self.take(self.ask(name, label))

    def ask_labels(self) -> Connection:
        """Open the list of snapshots; the answer may take its time."""
        return self.opened(LIST, "", READ)

    def take_labels(self, connection: Connection) -> list[str] | None:
        """The answer to L{ask_labels}; None when there is no list."""
        with connection:
            error = connection.reply()
            if error:
                assert error == ENOENT
                return None
            labels = []
            while (body := connection.message()) is not None:
                assert body[0] == 10
                length, start = body[1], 2
                if length > 0x7F:
                    length, start = length & 0x7F | body[2] << 7, 3
                assert len(body) == start + length
                labels.append(body[start:].decode())
            return labels

    def labels(self) -> list[str] | None:
        """The list of snapshots, oldest first; None when there is none."""
        return self.take_labels(self.ask_labels())

    def _finish(self, mode: int) -> None:
        with self.opened("", "", mode) as connection:
            assert connection.rest() == b""


class DumpSide(Side):
    """A criu dump or pre-dump."""

    socket_name = "img-proxy.sock"

    def push(self, label: str | None = None) -> None:
        """Append to the list of snapshots: first of all, the dump's own label."""
        with self.opened(LIST, "", APPEND) as connection:
            connection.send(framed(string(1, self.label if label is None else label)))

    def begin(self, name: str, mode: int = WRITE, label: str | None = None) -> int:
        """Open an image for writing.

        @return: the write end of its pipe.
        """
        with self.opened(name, self.label if label is None else label, mode) as connection:
            return connection.pass_pipe("write")

    def write(self, name: str, data: bytes = b"", mode: int = WRITE, label: str | None = None) -> None:
        """A whole image."""
        write_all(self.begin(name, mode, label), data)

    def write_here(self, name: str, data: bytes, mode: int = WRITE) -> None:
        """A whole image without a snapshot, on the connection itself."""
        with self.opened(name, "", mode) as connection:
            connection.send(data)

    def finish(self) -> None:
        """Done, well or not; a pre-dump does not say so."""
        self._finish(WRITE)

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpSide]:
        """A dump: its label, the images that are written within, the inventory. FINISH and the commit are not in it."""
        self.push()
        labels = self.labels()
        assert labels is not None and labels[-1] == self.label
        yield self
        self.write("inventory.img", b"inventory of " + self.label.encode())


class RestoreSide(Side):
    """A criu restore."""

    socket_name = "img-cache.sock"

    def finish(self) -> None:
        """Done."""
        self._finish(READ)
