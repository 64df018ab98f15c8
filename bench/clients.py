"""What stands for criu at the daemons' sockets: the dialects as docs/protocol.md has them, as cheap as can be."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path

from tests.support.remote_client import WRITE, DumpSide

PATIENCE = 120.0
"""Seconds for an answer: a restore may wait for a whole migration."""

INVENTORY = "inventory.img"
PAGES = "pages-1.img"


class _Stream:
    """One connection of `criu --stream`."""

    socket_name: str

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Blocking, as criu's is: it waits when the listen queue is full.
        self._socket.connect(str(directory / self.socket_name))
        self._socket.settimeout(PATIENCE)

    def _ask(self, name: str) -> None:
        body = b"\x0a" + bytes([len(name)]) + name.encode()
        self._socket.sendall(struct.pack("<I", len(body)) + body)

    def _pass(self, descriptor: int) -> None:
        self._socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
        os.close(descriptor)

    def close(self) -> None:
        """Leave."""
        self._socket.close()


class StreamDump(_Stream):
    """`criu dump --stream`."""

    socket_name = "streamer-capture.sock"

    def begin(self, name: str) -> int:
        """Open an image; the descriptor to write it into."""
        reading, writing = os.pipe()
        self._ask(name)
        self._pass(reading)
        return writing

    def inventory(self) -> None:
        """The last image."""
        descriptor = self.begin(INVENTORY)
        os.write(descriptor, b"inventory")
        os.close(descriptor)


class StreamRestore(_Stream):
    """`criu restore --stream`."""

    socket_name = "streamer-serve.sock"

    def ask(self, name: str) -> None:
        """Ask for an image."""
        self._ask(name)

    def fileno(self) -> int:
        """Where the answer comes."""
        return self._socket.fileno()

    def pour(self, writing: int) -> None:
        """Wait for the answer, and give the pipe that the image goes into.

        @raise RuntimeError: there is no such image.
        """
        if (answer := self._socket.recv(6)) != b"\2\0\0\0\x08\1":
            raise RuntimeError(f"no image comes: {answer!r}")
        self._pass(writing)


class SocketDump:
    """`criu dump --remote`, without a snapshot: images come on the sockets themselves."""

    def __init__(self, directory: Path) -> None:
        self._dump = DumpSide(directory, "")

    def begin(self, name: str) -> int:
        """Open an image; the descriptor to write it into."""
        opened = self._dump.opened(name, "", WRITE).socket
        opened.setblocking(True)
        return opened.detach()

    def inventory(self) -> None:
        """The last image."""
        self._dump.write_here(INVENTORY, b"inventory")

    def close(self) -> None:
        """FINISH."""
        self._dump.finish()
