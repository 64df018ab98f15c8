"""The ways that bytes take: the fast one of a hop until the kernel refuses it, then the plain one, which always works.

What a descriptor can do is found out by trying: kernels, filters of system calls (seccomp) and kinds of files differ.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Generic, ParamSpec, Protocol

CRIU = "criu"
"""The hop between CRIU and its daemon."""

LINK = "link"
"""The hop between the daemons."""

NOT_THIS_WAY = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""What a kernel says to a call that it does not have, or not for such a descriptor, and what a filter says to one that
it forbids. When something else is wrong as well, the plain way fails of it."""

SPLICE_FLAGS = 0x01 | 0x02  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK, splice(2)


class Taken:
    """What went which way; a daemon is a process, so there is one of these (L{TAKEN}).

    @ivar moved: hop -> way -> bytes.
    @ivar refused: way -> descriptors on which the kernel refused it.
    """

    def __init__(self) -> None:
        self.moved: dict[str, dict[str, int]] = {CRIU: {}, LINK: {}}
        self.refused: dict[str, int] = {}

    def add(self, hop: str, way: str, count: int) -> None:
        """So many bytes."""
        ways = self.moved[hop]
        ways[way] = ways.get(way, 0) + count

    def described(self) -> dict[str, dict[str, int]]:
        """For `status`."""
        return {hop: dict(ways) for hop, ways in self.moved.items()} | {"refused": dict(self.refused)}


TAKEN = Taken()

P = ParamSpec("P")


class Way(Generic[P]):
    """How the bytes of one descriptor move on one hop.

    Called with the arguments of its steps, it gives the bytes that were moved.

    @ivar step: the one that is taken.
    """

    def __init__(self, hop: str, fast: Callable[P, int], plain: Callable[P, int]) -> None:
        """@param plain: takes the place of `fast` once that is refused: with an error of L{NOT_THIS_WAY}."""
        self.step = fast
        self._hop = hop
        self._plain = plain

    @property
    def name(self) -> str:
        """What `status` calls the step that is taken."""
        return self.step.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Move some.

        @raise OSError: what the step that is taken raises.
        """
        try:
            count = self.step(*args, **kwargs)
        except OSError as error:
            if self.step is self._plain or error.errno not in NOT_THIS_WAY:
                raise
            TAKEN.refused[self.name] = TAKEN.refused.get(self.name, 0) + 1
            self.step = self._plain
            count = self.step(*args, **kwargs)
        TAKEN.add(self._hop, self.name, count)
        return count


class Placed(Protocol):
    """A run of bytes that lies in one file."""

    @property
    def fd(self) -> int: ...
    @property
    def offset(self) -> int: ...


class Mapped(Placed, Protocol):
    """The same, mapped."""

    @property
    def view(self) -> memoryview: ...


def sendfile(out: int, piece: Placed, start: int, count: int) -> int:
    """At most `count` bytes of a piece, from its byte `start` on, by reference: they must not change before they are
    read at the other end."""
    return os.sendfile(out, piece.fd, piece.offset + start, count)


def write(out: int, piece: Mapped, start: int, count: int) -> int:
    """The same, copied."""
    return os.write(out, piece.view[start : start + count])


def splice(out: int, pipe: int, count: int) -> int:
    """At most `count` bytes out of a pipe."""
    return os.splice(pipe, out, count, flags=SPLICE_FLAGS)


def readv(fd: int, room: memoryview) -> int:
    """Fill memory, or its beginning."""
    return os.readv(fd, [room])


def read(fd: int, room: memoryview) -> int:
    """The same, with a copy more."""
    data = os.read(fd, len(room))
    room[: len(data)] = data
    return len(data)


def recvmsg_into(connection: socket.socket, buffers: list[memoryview]) -> int:
    """Fill buffers in turn, or the beginning of them."""
    return connection.recvmsg_into(buffers)[0]


def recv_into(connection: socket.socket, buffers: list[memoryview]) -> int:
    """The same, with the first of them."""
    return connection.recv_into(buffers[0])
