"""The plain way of each hop, forced by a kernel that refuses the fast one, carries the same bytes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from twisted.internet.task import Clock

from criu_relay.flow import serve, vectors
from criu_relay.flow.frame_reader import SocketFrameReader
from criu_relay.flow.frames import MemfdRange, OutFrame, PipeRange, SocketFrameWriter
from criu_relay.flow.serve import ImageServer
from criu_relay.flow.source import DescriptorSource
from criu_relay.flow.ways import CRIU, LINK, NOT_THIS_WAY, TAKEN, Way
from criu_relay.store.arena import Arena
from tests.flow.support import MIB, FakeReactor, Sink, no_descriptor_left
from tests.flow.test_frames import Frames, Target, Transport, pump
from tests.flow.test_serve import End, Source, image_of
from tests.flow.tls_peer import Pair


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TAKEN, "moved", {CRIU: {}, LINK: {}})
    monkeypatch.setattr(TAKEN, "refused", {})


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(16 * MIB, keep=0)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


class Refusing:
    """A system call that works so many times and is refused from then on."""

    def __init__(self, works: Callable[..., Any], times: int, code: int = errno.EINVAL) -> None:
        self.works = works
        self.times = times
        self.code = code
        self.refused = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.times > 0:
            self.times -= 1
            return self.works(*arguments, **named)
        self.refused += 1
        raise OSError(self.code, os.strerror(self.code))


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, times: int = 0, code: int = errno.EINVAL) -> Refusing:
    made = Refusing(getattr(os, call), times, code)
    monkeypatch.setattr(os, call, made)
    return made


# What all of them have in common


@pytest.mark.parametrize("code", sorted(NOT_THIS_WAY))
def test_a_refusal_changes_the_way_for_good(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [OSError(code, "no"), 3, 4]

    def fickle() -> int:
        result = calls.pop(0)
        if isinstance(result, OSError):
            raise result
        return result

    way = Way(CRIU, fickle, lambda: 7)
    assert way.name == "fickle"
    assert [way(), way()] == [7, 7]
    assert len(calls) == 2
    assert TAKEN.refused == {"fickle": 1}
    assert TAKEN.described() == {CRIU: {"<lambda>": 14}, LINK: {}, "refused": {"fickle": 1}}


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EPIPE, errno.EIO, errno.ENOMEM, errno.EBADF])
def test_other_errors_change_nothing(code: int) -> None:
    way = Way(LINK, Refusing(None, 0, code).__call__, lambda: 7)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(OSError) as raised:
            way()
        assert raised.value.errno == code
    assert TAKEN.refused == {}


def test_the_plain_way_may_fail_as_well() -> None:
    refusing = Refusing(None, 0)  # type: ignore[arg-type]
    way = Way(LINK, refusing.__call__, refusing.__call__)
    for _ in range(2):
        with pytest.raises(OSError):
            way()


# CRIU's pipe or socket into memory


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("times", [0, 1])
def test_read_instead_of_readv(kind: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = refuse(monkeypatch, "readv", times)
    ends, sink, reactor = End(kind), Sink(piece=3000), FakeReactor()
    source = DescriptorSource(reactor, Clock(), ends.theirs, sink, lambda: None)
    source.start()
    data = os.urandom(20_000)
    for at in range(0, len(data), 5000):
        os.write(ends.ours, data[at : at + 5000])
        source.doRead()
    ends.theirs = -1
    ends.close()
    source.doRead()
    assert sink.data == data
    assert sink.calls == ["unregister", "end"]
    assert refusing.refused == 1
    assert TAKEN.moved[CRIU] == {"read": 20_000} if not times else {"readv": 3000, "read": 17_000}
    assert TAKEN.refused == {"readv": 1}


# The cache's memory into CRIU's pipe


def served(image: Source, ends: End) -> bytes:
    """All that a server writes of an image, read as it comes."""
    results: list[int] = []
    server = ImageServer(FakeReactor(), image, ends.ours)
    server.done.addCallback(results.append)
    server.start()
    got = b""
    while not results:
        server.doWrite()
        got += ends.read()
    got += ends.read()
    assert results == [len(got)]
    return got


@pytest.mark.parametrize("times", [0, 1])
def test_write_instead_of_sendfile_to_a_pipe(arena: Arena, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = refuse(monkeypatch, "sendfile", times)
    data = os.urandom(3 * MIB + 17)
    image, ends = image_of(arena, data), End("pipe")
    assert served(image, ends) == data
    assert refusing.refused == 1
    assert bool(image.references) is bool(times), "what was written is not referred to"
    assert sum(TAKEN.moved[CRIU].values()) == len(data)
    assert set(TAKEN.moved[CRIU]) == ({"sendfile", "write"} if times else {"write"})
    image.drop()
    ends.close()


def test_writev_instead_of_vmsplice_of_small_runs(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing(vectors.vmsplice, 1)

    def vmsplice(out: int, runs: numpy.ndarray) -> int:
        return int(refusing(out, runs))

    monkeypatch.setattr(serve, "vmsplice", vmsplice)
    data = os.urandom(3 * MIB)
    image, ends = image_of(arena, data, step=4096), End("pipe")
    assert served(image, ends) == data
    assert refusing.refused == 1
    assert set(TAKEN.moved[CRIU]) - {"sendfile"} == {"vmsplice", "writev"}
    assert sum(TAKEN.moved[CRIU].values()) == len(data)
    image.drop()
    ends.close()


# The window's memory to the link


def large(arena: Arena, count: int) -> tuple[list[Any], list[OutFrame]]:
    extents = [arena.allocate(MIB) for _ in range(count)]
    for extent in extents:
        assert extent is not None
        extent.view[:] = os.urandom(MIB)
    frames = [OutFrame(b"header", MemfdRange(extent.fd, extent.offset, extent.view[:]))  # type: ignore[union-attr]
              for extent in extents]  # fmt: skip
    return extents, frames


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_write_instead_of_sendfile_to_the_link(
    arena: Arena, pair: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be refused between frames and within one."""
    refusing = refuse(monkeypatch, "sendfile", times)
    extents, made = large(arena, 3)
    transport, frames, errors = Transport(pair[0]), Frames(made), []
    writer = SocketFrameWriter(transport.clock, transport, frames, errors.append)
    assert writer.path == "sendfile"
    transport.wake(writer)
    assert pump(transport, pair[1], lambda: frames.drains > 0) == frames.expected
    assert errors == []
    assert writer.path == "write"
    assert refusing.refused == 1
    assert sum(TAKEN.moved[LINK].values()) == len(frames.expected)
    frames.given.clear()
    made.clear()
    for extent in extents:
        arena.free(extent)


# CRIU's pipe to the link


class Offered:
    """A pipe of which ranges are sent.

    @ivar expected: what must come at the other end.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self.writing, False)
        self.expected = b""
        self.taken = 0
        self.ranges: list[PipeRange] = []

    def next_frame(self) -> OutFrame | None:
        if self.taken < len(self.ranges) or self.taken == 3:
            return None
        data = os.urandom(60_000)
        os.write(self.writing, data)
        self.expected += b"header" + data
        self.ranges.append(PipeRange(self.reading, len(data), self._take))
        return OutFrame(b"header", self.ranges[-1])

    def _take(self) -> None:
        self.taken += 1

    def drained(self) -> None:
        """Nothing more."""

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def offered() -> Iterator[Offered]:
    made = Offered()
    yield made
    made.close()


@pytest.mark.parametrize("times", [0, 1, 2])
def test_read_and_send_instead_of_splice(
    offered: Offered, pair: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = refuse(monkeypatch, "splice", times)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    transport, errors = Transport(pair[0]), []
    writer = SocketFrameWriter(transport.clock, transport, offered, errors.append)
    transport.wake(writer)
    data = pump(transport, pair[1], lambda: offered.taken == 3 and not transport.wants)
    assert data == offered.expected
    assert errors == []
    assert refusing.refused == 1
    assert len(offered.ranges) == 3


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("left", [0, 1000])
def test_a_pipe_that_somebody_else_reads(
    offered: Offered, pair: Any, refused: bool, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither waited for nor turned on: the frame cannot be finished, so the link ends."""
    if refused:
        refuse(monkeypatch, "splice")
    frame = offered.next_frame()
    os.read(offered.reading, 60_000 - left)
    transport, errors = Transport(pair[0]), []
    frames = Frames([frame])  # type: ignore[list-item]
    transport.wake(SocketFrameWriter(transport.clock, transport, frames, errors.append))
    for _ in range(3):
        transport.turn()
    assert [error.errno for error in errors] == [errno.EIO]
    assert transport.producer is None
    assert offered.taken == 0


@pytest.mark.parametrize("left", [0, 1000])
def test_a_pipe_that_somebody_else_reads_under_tls(offered: Offered, tmp_path: Path, left: int) -> None:
    frame = offered.next_frame()
    os.read(offered.reading, 60_000 - left)
    pair = Pair(tmp_path).shake()
    pair.user.frames.append(frame)  # type: ignore[arg-type]
    pair.channel.wake()
    pair.run(lambda: pair.user.ends)
    assert [error.errno for error in pair.user.ends] == [errno.EIO]  # type: ignore[union-attr]
    pair.close()


# The link into memory


def test_recv_into_instead_of_recvmsg_into(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing(socket.socket.recvmsg_into, 1)

    def call(connection: socket.socket, buffers: list[memoryview]) -> Any:
        return refusing(connection, buffers)

    monkeypatch.setattr(socket.socket, "recvmsg_into", call)
    target = Target([700, 300])
    reader = SocketFrameReader(FakeReactor(), pair[0], target, target.turn_ended, target.ends.append)
    reader.start()
    assert reader.path == "recvmsg_into"
    data = os.urandom(10_000)
    pair[1].send(data)
    while len(target.data) < len(data):
        reader.doRead()
    assert target.data == data
    assert reader.path == "recv_into"
    assert refusing.refused == 1
    assert TAKEN.moved[LINK] == {"recvmsg_into": 1000, "recv_into": 9000}
    pair[1].close()
    reader.doRead()
    assert target.ends == [None]
    reader.stop()
