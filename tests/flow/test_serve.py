"""Images into pipes and sockets; bytes into pipes and sockets."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IWriteDescriptor
from twisted.python.failure import Failure

from criu_relay.errors import Conflict, RelayError
from criu_relay.flow import serve as module
from criu_relay.flow.pipes import DEFAULT_PIPE, LARGE_PIPE
from criu_relay.flow.serve import PIPE_BYTES_PER_TURN, SOCKET_BYTES_PER_SEND, ImageServer
from criu_relay.flow.sink import BytesWriter
from criu_relay.flow.vectors import vectors
from criu_relay.store.arena import Arena
from criu_relay.store.piece import Piece
from criu_relay.store.region import Extent
from tests.flow.support import MIB, FakeReactor, no_descriptor_left


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(16 * MIB, keep=0)
    yield made
    made.close()


class Source:
    """Bytes in extents, and what the server says of them."""

    def __init__(self, arena: Arena, data: bytes, step: int = MIB) -> None:
        self.size = len(data)
        self._step = step
        self.references: list[tuple[int, int]] = []
        self.positions: list[int] = []
        self.refuse: RelayError | None = None
        self._arena = arena
        self._extents: list[Extent] = []
        for start in range(0, len(data), step):
            part = data[start : start + step]
            extent = arena.allocate(len(part))
            assert extent is not None
            extent.view[: len(part)] = part
            self._extents.append(extent)

    def piece(self, offset: int) -> Piece:
        if self.refuse is not None:
            raise self.refuse
        extent, skip = self._extents[offset // self._step], offset % self._step
        length = min(self._step - skip, self.size - offset)
        return Piece(extent.fd, extent.offset + skip, length, extent.view[skip : skip + length])

    def runs(self, offset: int, most: int) -> numpy.ndarray:
        found = []
        while most > 0 and offset < self.size:
            view = self.piece(offset).view(most)
            found.append((numpy.frombuffer(view, numpy.uint8).ctypes.data, len(view)))
            offset += len(view)
            most -= len(view)
        return vectors(*numpy.array(found).T)

    def passed(self, offset: int, count: int) -> None:
        self.references.append((offset, count))

    def moved(self, position: int) -> None:
        self.positions.append(position)

    def drop(self) -> None:
        while self._extents:
            self._arena.free(self._extents.pop(), bool(self.references))


def image_of(arena: Arena, data: bytes, step: int = MIB) -> Source:
    return Source(arena, data, step)


class End:
    """What CRIU gave us, and the other end of it."""

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self.theirs, self.ours = os.pipe()
        else:
            theirs, ours = socket.socketpair()
            self.theirs, self.ours = theirs.detach(), ours.detach()
        os.set_blocking(self.theirs, False)

    def read(self, most: int = 1 << 24) -> bytes:
        """What is there now."""
        data = b""
        while len(data) < most:
            try:
                part = os.read(self.theirs, most - len(data))
            except BlockingIOError:
                break
            if not part:
                break
            data += part
        return data

    def leave(self) -> None:
        os.close(self.theirs)
        self.theirs = -1

    def close(self) -> None:
        for fd in (self.theirs, self.ours):
            if fd >= 0:
                os.close(fd)


@pytest.fixture(params=["pipe", "socket"])
def end(request: pytest.FixtureRequest) -> Iterator[End]:
    made = End(request.param)
    yield made
    made.close()


class Serving:
    def __init__(self, image: Any, end: End) -> None:
        self.reactor = FakeReactor()
        self.server = ImageServer(self.reactor, image, end.ours)
        self.results: list[Any] = []
        self.server.done.addCallbacks(self.results.append, lambda failure: self.results.append(failure.value))

    def start(self) -> Serving:
        self.server.start()
        return self


def test_interface() -> None:
    assert IWriteDescriptor.implementedBy(ImageServer)
    assert IWriteDescriptor.implementedBy(BytesWriter)


@pytest.mark.parametrize("step", [MIB, 20_000])
@pytest.mark.parametrize("size", [1, 4096, 5000, MIB, 3 * MIB + 17])
def test_all_of_it_to_a_slow_reader(arena: Arena, end: End, size: int, step: int) -> None:
    data = (bytes(range(253)) * (size // 253 + 1))[:size]
    image = image_of(arena, data, step)
    serving = Serving(image, end).start()
    got = b""
    turns = 0
    while not serving.results:
        assert serving.reactor.writers == [serving.server]
        serving.server.doWrite()
        got += end.read(30_000)
        turns += 1
    got += end.read()
    assert got == data
    assert serving.results == [size]
    assert serving.reactor.writers == []
    assert serving.server.fileno() == -1
    image.drop()


def test_nothing_to_write(arena: Arena, end: End) -> None:
    serving = Serving(image_of(arena, b""), end).start()
    assert serving.results == [0]
    assert serving.reactor.writers == []


def test_a_full_one_is_waited_for(arena: Arena, end: End) -> None:
    image = image_of(arena, bytes(4 * MIB))
    serving = Serving(image, end).start()
    serving.server.doWrite()
    serving.server.doWrite()
    serving.server.doWrite()
    assert serving.results == []
    assert serving.reactor.writers == [serving.server]
    serving.server.connectionLost(Failure(ConnectionLost()))
    assert len(serving.results) == 1
    assert 0 < serving.results[0] < 4 * MIB
    image.drop()


def test_a_reader_that_leaves_is_no_error(arena: Arena, end: End) -> None:
    image = image_of(arena, bytes(4 * MIB))
    serving = Serving(image, end).start()
    serving.server.doWrite()
    end.leave()
    serving.server.doWrite()
    assert len(serving.results) == 1
    assert 0 < serving.results[0] < 4 * MIB
    image.drop()


def test_a_reader_that_left_before(arena: Arena, end: End) -> None:
    image = image_of(arena, b"abc")
    end.leave()
    serving = Serving(image, end).start()
    serving.server.doWrite()
    assert serving.results == [0]
    image.drop()


def test_cancel(arena: Arena, end: End) -> None:
    image = image_of(arena, bytes(4 * MIB))
    serving = Serving(image, end).start()
    serving.server.doWrite()
    serving.server.done.cancel()
    assert isinstance(serving.results[0], CancelledError)
    assert serving.reactor.writers == []
    serving.server.connectionLost(Failure(ConnectionLost()))
    assert len(serving.results) == 1
    image.drop()


def test_a_range_that_was_discarded(arena: Arena, end: End) -> None:
    image = image_of(arena, bytes(2 * MIB))
    image.refuse = Conflict("its bytes were discarded")
    serving = Serving(image, end).start()
    serving.server.doWrite()
    assert isinstance(serving.results[0], Conflict)
    assert serving.reactor.writers == []
    image.drop()


def test_another_error(arena: Arena) -> None:
    reading, writing = os.pipe()
    image = image_of(arena, b"abc")
    reactor = FakeReactor()
    server = ImageServer(reactor, image, reading)
    results: list[Any] = []
    server.done.addErrback(lambda failure: results.append(failure.value))
    server.start()
    server.doWrite()
    assert isinstance(results[0], RelayError)
    assert "cannot write an image" in results[0].reason
    assert server.logPrefix()
    os.close(reading)
    os.close(writing)
    image.drop()


def test_the_descriptor_stays_the_callers(arena: Arena, end: End) -> None:
    image = image_of(arena, b"abc")
    Serving(image, end).start().server.doWrite()
    assert os.write(end.ours, b"def") == 3
    assert end.read() == b"abcdef"
    image.drop()


def test_a_turn_is_bounded(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(arena, bytes(4 * MIB))
    counts: list[int] = []

    def take(out: int, source: int, offset: int, count: int) -> int:
        counts.append(count)
        return count

    monkeypatch.setattr(module.os, "sendfile", take)
    pipe = End("pipe")
    serving = Serving(image, pipe).start()
    serving.server.doWrite()
    assert sum(counts) <= PIPE_BYTES_PER_TURN
    assert serving.results == []
    serving.server.connectionLost(Failure(ConnectionLost()))
    pipe.close()
    image.drop()


def test_a_send_to_a_socket_is_bounded(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(arena, bytes(4 * MIB))
    counts: list[int] = []

    def take(out: int, view: memoryview) -> int:
        counts.append(len(view))
        return len(view)

    ends = End("socket")
    serving = Serving(image, ends).start()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", take)
        serving.server.doWrite()
    assert max(counts) <= SOCKET_BYTES_PER_SEND
    assert sum(counts) == PIPE_BYTES_PER_TURN
    serving.server.connectionLost(Failure(ConnectionLost()))
    ends.close()
    image.drop()


@pytest.mark.parametrize("step", [MIB, 1])
@pytest.mark.parametrize(("kind", "shared"), [("pipe", True), ("socket", False)])
def test_only_a_pipe_is_given_references(arena: Arena, kind: str, shared: bool, step: int) -> None:
    ends = End(kind)
    image = image_of(arena, b"abc", step)
    Serving(image, ends).start().server.doWrite()
    assert bool(image.references) is shared
    ends.close()
    image.drop()


@pytest.mark.parametrize("step", [MIB, 4096])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_the_reader_has_not_read_yet_does_not_change(arena: Arena, kind: str, step: int) -> None:
    """The image is dropped and its memory reused while the pipe still holds its pages."""
    ends = End(kind)
    data = b"old!" * 4096
    image = image_of(arena, data, step)
    serving = Serving(image, ends).start()
    serving.server.doWrite()
    assert serving.results == [len(data)]
    image.drop()
    while (extent := arena.allocate(4096)) is not None:
        extent.view[:] = b"new!" * 1024
        if arena.used > 2 * MIB:
            break
    assert ends.read() == data
    ends.close()


# Skipping


@pytest.fixture
def skipped(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Source, Serving, End]]:
    """4 MiB on their way into a pipe of 64 KiB which is full."""
    monkeypatch.setattr(module, "enlarge", lambda fd: None)
    end = End("pipe")
    image = image_of(arena, b"".join(bytes([number]) * 4096 for number in range(256)) * 4)
    serving = Serving(image, end).start()
    serving.server.doWrite()
    yield image, serving, end
    end.close()
    image.drop()


PIPE = 64 << 10


def rest(serving: Serving, end: End) -> bytes:
    """Everything that still comes."""
    data = b""
    while not serving.results:
        data += end.read()
        serving.server.doWrite()
    return data + end.read()


@pytest.mark.parametrize(
    ("offset", "length", "answer"),
    [
        (0, PIPE, (PIPE, PIPE)),
        (0, PIPE + 10, (PIPE, PIPE + 10)),
        (MIB + 1, MIB, (MIB + 1, 2 * MIB + 1)),
        (PIPE, 1 << 40, (PIPE, 4 * MIB)),
        (5 * MIB, 10, (4 * MIB, 4 * MIB)),
        (100, 0, (100, 100)),
        (MIB, 0, (MIB, MIB)),
    ],
)
def test_what_is_skipped_does_not_come(
    skipped: tuple[Source, Serving, End], offset: int, length: int, answer: tuple[int, int]
) -> None:
    image, serving, end = skipped
    data = b"".join(bytes([number]) * 4096 for number in range(256)) * 4
    assert serving.server.skip(offset, length) == answer
    begin, stop = answer
    assert rest(serving, end) == data[:begin] + data[stop:]
    assert serving.results == [len(data) - (stop - begin)]
    assert image.positions[-1] == 4 * MIB


def test_several_ranges_one_behind_the_other(skipped: tuple[Source, Serving, End]) -> None:
    _, serving, end = skipped
    data = b"".join(bytes([number]) * 4096 for number in range(256)) * 4
    assert serving.server.skip(MIB, 10) == (MIB, MIB + 10)
    assert serving.server.skip(MIB + 10, 10) == (MIB + 10, MIB + 20), "neighbours"
    assert serving.server.skip(2 * MIB, 10) == (2 * MIB, 2 * MIB + 10)
    assert serving.server.skip(MIB + 100, 100) == (MIB + 200, MIB + 200), "it lies before one that was skipped"
    assert serving.server.skip(2 * MIB + 5, 10) == (2 * MIB + 10, 2 * MIB + 15), "the part behind it"
    assert rest(serving, end) == data[:MIB] + data[MIB + 20 : 2 * MIB] + data[2 * MIB + 15 :]


def test_ranges_are_bounded(skipped: tuple[Source, Serving, End], monkeypatch: pytest.MonkeyPatch) -> None:
    _, serving, _ = skipped
    monkeypatch.setattr(module, "PENDING_SKIPS", 2)
    serving.server.skip(MIB, 1)
    serving.server.skip(MIB + 10, 1)
    serving.server.skip(MIB + 11, 1)
    with pytest.raises(Conflict, match="wait to be skipped"):
        serving.server.skip(MIB + 20, 1)
    serving.server.connectionLost(Failure(ConnectionLost()))


def test_a_server_that_is_failed_tells_why_once(skipped: tuple[Source, Serving, End]) -> None:
    _, serving, _ = skipped
    serving.server.fail(Conflict("discarded"))
    serving.server.fail(Conflict("again"))
    assert [str(result) for result in serving.results] == ["discarded"]


# Bytes


def test_bytes_are_written_in_parts(end: End) -> None:
    reactor = FakeReactor()
    writer = BytesWriter(reactor, end.ours)
    data = bytes(range(256)) * 8192
    results: list[Any] = []
    writer.write(data).addCallback(results.append)
    got = b""
    while not results:
        assert reactor.writers == [writer]
        writer.doWrite()
        got += end.read(100_000)
    got += end.read()
    assert got == data
    assert results == [True]
    assert reactor.writers == []
    writer.write(b"more").addCallback(results.append)
    writer.doWrite()
    assert end.read() == b"more"
    writer.close()
    writer.close()
    assert writer.fileno() == -1
    assert writer.logPrefix()


def test_bytes_to_a_full_one(end: End) -> None:
    reactor = FakeReactor()
    writer = BytesWriter(reactor, end.ours)
    results: list[Any] = []
    writer.write(bytes(8 * MIB)).addCallback(results.append)
    for _ in range(20):
        writer.doWrite()
    assert results == []
    writer.connectionLost(Failure(ConnectionLost()))
    assert results == [False]
    writer.close()


def test_bytes_to_a_reader_that_left(end: End) -> None:
    end.leave()
    reactor = FakeReactor()
    writer = BytesWriter(reactor, end.ours)
    results: list[Any] = []
    writer.write(b"abc").addCallback(results.append)
    writer.doWrite()
    assert results == [False]
    assert reactor.writers == []
    writer.close()


def test_bytes_to_what_cannot_be_written() -> None:
    reading, writing = os.pipe()
    reactor = FakeReactor()
    writer = BytesWriter(reactor, reading)
    results: list[Any] = []
    writer.write(b"abc").addErrback(lambda failure: results.append(failure.value))
    writer.doWrite()
    assert isinstance(results[0], RelayError)
    writer.close()
    os.close(reading)
    os.close(writing)


def test_cancelled_bytes(end: End) -> None:
    reactor = FakeReactor()
    writer = BytesWriter(reactor, end.ours)
    results: list[Any] = []
    written = writer.write(b"abc")
    written.addErrback(lambda failure: results.append(failure.value))
    written.cancel()
    assert isinstance(results[0], CancelledError)
    assert reactor.writers == []
    assert writer.fileno() == -1


@pytest.mark.parametrize(("size", "enlarged"), [(DEFAULT_PIPE, False), (DEFAULT_PIPE + 1, True)])
def test_a_pipe_for_a_large_image_is_enlarged(arena: Arena, size: int, enlarged: bool) -> None:
    image = image_of(arena, bytes(size))
    ends = End("pipe")
    before = fcntl.fcntl(ends.ours, fcntl.F_GETPIPE_SZ)
    serving = Serving(image, ends).start()
    assert fcntl.fcntl(ends.ours, fcntl.F_GETPIPE_SZ) == (LARGE_PIPE if enlarged else before)
    serving.server.connectionLost(Failure(ConnectionLost()))
    ends.close()
    image.drop()
