"""What CRIU writes, read to its end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, IReadDescriptor
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import Aborted, RelayError
from criu_relay.flow import source as module
from criu_relay.flow import ways
from criu_relay.flow.pipes import DEFAULT_PIPE, LARGE_PIPE, readable_bytes
from criu_relay.flow.source import BYTES_PER_TURN, FULL_TIMES, PIECE, DescriptorSource
from criu_relay.interfaces import IPassingSink, Room
from tests.flow.support import MIB, FakeReactor, Sink, no_descriptor_left


class Pipe:
    """A pipe with a source at its read end."""

    def __init__(self, sink: Sink, kind: str = "pipe") -> None:
        if kind == "pipe":
            self.reading, self.writing = os.pipe()
        else:
            ours, theirs = socket.socketpair()
            self.reading, self.writing = ours.detach(), theirs.detach()
        self.reactor = FakeReactor()
        self.clock = Clock()
        self.sink = sink
        self.finished = 0
        self.source = DescriptorSource(self.reactor, self.clock, self.reading, sink, self._finish)
        os.set_blocking(self.writing, False)

    def _finish(self) -> None:
        self.finished += 1

    def close_writer(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        self.close_writer()
        self.source.abort("the test is over")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


@pytest.fixture(params=["pipe", "socket"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    made = Pipe(Sink(), request.param)
    yield made
    made.close()


def test_interfaces() -> None:
    assert IPushProducer.implementedBy(DescriptorSource)
    assert IReadDescriptor.implementedBy(DescriptorSource)


def test_data_and_end_by_an_empty_read(pipe: Pipe) -> None:
    pipe.source.start()
    assert pipe.sink.producer is pipe.source
    assert pipe.source.fileno() == pipe.reading
    assert pipe.reactor.readers == [pipe.source]
    os.write(pipe.writing, b"abc")
    pipe.source.doRead()
    os.write(pipe.writing, b"def")
    pipe.source.doRead()
    assert pipe.sink.data == b"abcdef"
    assert pipe.sink.calls == []
    pipe.close_writer()
    pipe.source.doRead()
    assert pipe.sink.calls == ["unregister", "end"]
    assert pipe.finished == 1
    assert pipe.reactor.readers == []
    assert not pipe.source.active
    assert pipe.source.fileno() == -1


def test_nothing_at_all(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.close_writer()
    pipe.source.doRead()
    assert pipe.sink.calls == ["unregister", "end"]
    assert pipe.sink.data == b""


def test_end_by_hang_up(pipe: Pipe) -> None:
    """epoll reports a pipe whose writer is gone, and which is empty, by a hang-up alone."""
    pipe.source.start()
    os.write(pipe.writing, b"abc")
    pipe.source.doRead()
    pipe.close_writer()
    pipe.reactor.removeReader(pipe.source)
    pipe.source.connectionLost(Failure(ConnectionDone()))
    assert pipe.sink.calls == ["unregister", "end"]
    assert pipe.finished == 1
    pipe.source.connectionLost(Failure(ConnectionDone()))
    assert pipe.finished == 1


def test_a_hang_up_with_data_left_loses_nothing(pipe: Pipe) -> None:
    pipe.source.start()
    os.write(pipe.writing, b"abc")
    pipe.close_writer()
    pipe.reactor.removeReader(pipe.source)
    pipe.source.connectionLost(Failure(ConnectionDone()))
    assert pipe.sink.data == b"abc"
    assert pipe.sink.calls == ["unregister", "end"]


def test_the_end_that_comes_with_the_last_bytes_is_seen_with_them(pipe: Pipe) -> None:
    pipe.source.start()
    os.write(pipe.writing, b"abc")
    pipe.close_writer()
    pipe.source.doRead()
    assert (pipe.sink.data, pipe.sink.calls) == (b"abc", ["unregister", "end"])


def test_a_hang_up_while_there_is_no_room(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.sink.space = 0
    os.write(pipe.writing, b"x")
    pipe.close_writer()
    pipe.reactor.removeReader(pipe.source)
    pipe.source.connectionLost(Failure(ConnectionDone()))
    assert pipe.reactor.readers == []
    assert pipe.sink.calls == []
    pipe.sink.space = 1
    pipe.source.resumeProducing()
    assert pipe.reactor.readers == [pipe.source]
    pipe.source.doRead()
    assert (pipe.sink.data, pipe.sink.calls) == (b"x", ["unregister", "end"])


def test_what_came_while_the_end_was_looked_for(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not the end: nothing of it is lost, and what is more comes in the same turn."""
    pipe.source.start()
    answers = [0]

    def waiting(fd: int) -> int:
        if not answers:
            return readable_bytes(fd)
        os.write(pipe.writing, b"y" * (PIECE + 10))
        pipe.close_writer()
        return answers.pop()

    monkeypatch.setattr(module, "readable_bytes", waiting)
    pipe.source.doRead()
    assert (pipe.sink.data, pipe.sink.calls) == (b"y" * (PIECE + 10), ["unregister", "end"])


def test_another_loss_fails_the_image(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.source.connectionLost(Failure(ConnectionLost("broken")))
    assert pipe.sink.calls[0] == "unregister"
    assert pipe.sink.calls[1].startswith("fail: ")
    assert "broken" in pipe.sink.calls[1]
    assert pipe.finished == 1


def test_no_room_pauses_and_room_resumes(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.sink.space = 4
    os.write(pipe.writing, b"abcdefgh")
    pipe.source.doRead()
    assert pipe.sink.data == b"abcd"
    pipe.source.doRead()
    assert pipe.reactor.readers == []
    assert pipe.source.active
    pipe.sink.space = 100
    pipe.source.resumeProducing()
    assert pipe.reactor.readers == [pipe.source]
    pipe.source.doRead()
    assert pipe.sink.data == b"abcdefgh"


def test_paused_stops_the_writer(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.source.pauseProducing()
    assert pipe.reactor.readers == []
    with pytest.raises(BlockingIOError):
        while True:
            os.write(pipe.writing, bytes(65536))


def test_nothing_to_read_is_no_end(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.source.doRead()
    pipe.source.doRead()
    assert pipe.sink.calls == []
    assert pipe.source.active


def test_a_turn_is_bounded(pipe: Pipe) -> None:
    pipe.source.start()
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            while True:
                os.write(pipe.writing, bytes(65536))
        before = len(pipe.sink.data)
        pipe.source.doRead()
        assert 0 < len(pipe.sink.data) - before <= BYTES_PER_TURN
    assert max(pipe.sink.asked) <= BYTES_PER_TURN


def test_a_room_larger_than_a_turn_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink()
    pipe = Pipe(sink)
    room = memoryview(bytearray(3 * MIB))
    monkeypatch.setattr(sink, "reserve", lambda size: type("Room", (), {"view": room})())
    counts: list[int] = []
    monkeypatch.setattr(sink, "written", counts.append)
    monkeypatch.setattr(os, "readv", lambda fd, buffers: sum(map(len, buffers)))
    os.write(pipe.writing, b"x")
    pipe.source.start()
    assert counts == [BYTES_PER_TURN]
    pipe.close()


def test_a_refusing_image(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.sink.error = RelayError("the window is gone")
    os.write(pipe.writing, b"abc")
    pipe.source.doRead()
    assert pipe.sink.calls == ["unregister", "fail: cannot read the image: the window is gone"]
    assert pipe.finished == 1
    with pytest.raises(BrokenPipeError):
        os.write(pipe.writing, b"more")


def test_a_descriptor_that_cannot_be_read() -> None:
    sink, reactor, done = Sink(), FakeReactor(), []
    source = DescriptorSource(reactor, Clock(), os.open("/", os.O_RDONLY), sink, lambda: done.append(1))
    source.start()
    source.doRead()
    assert sink.calls[1].startswith("fail: cannot read the image")
    assert done == [1]


@pytest.mark.parametrize("started", [True, False])
def test_a_defect_of_who_takes_the_bytes_ends_the_image(started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe would be read by nobody: when it starts the reactor is not there to see the exception."""
    failures: list[object] = []
    monkeypatch.setattr(Logger, "failure", lambda self, text: failures.append(text))
    pipe = Pipe(Sink())
    monkeypatch.setattr(pipe.sink, "written", lambda count: {}["a defect"])
    if started:
        pipe.source.start()
    os.write(pipe.writing, b"some")
    if started:
        pipe.source.doRead()
    else:
        pipe.source.start()
    assert (pipe.sink.calls, pipe.finished) == (["unregister", "fail: cannot read the image: 'a defect'"], 1)
    assert len(failures) == 1
    pipe.close_writer()


def test_a_socket_that_is_reset_in_the_middle_ends_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.readv, []

    def reset(fd: int, buffers: list[memoryview]) -> int:
        calls.append(fd)
        if len(calls) == 2:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return real(fd, [buffers[0][:2]])

    monkeypatch.setattr(os, "readv", reset)
    pipe = Pipe(Sink(), "socket")
    os.write(pipe.writing, b"some")
    pipe.close_writer()
    pipe.source.start()
    assert pipe.sink.calls[1].startswith("fail: cannot read the image"), "the kernel says so once, and then: the end"
    assert pipe.finished == 1


def test_abort_breaks_the_writers_pipe(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.source.abort("the link is lost")
    assert pipe.sink.calls == ["unregister", "fail: the link is lost"]
    assert pipe.reactor.readers == []
    assert pipe.finished == 1
    with pytest.raises(BrokenPipeError):
        os.write(pipe.writing, b"more")
    pipe.source.abort("again")
    pipe.source.resumeProducing()
    pipe.source.pauseProducing()
    assert pipe.finished == 1
    assert len(pipe.sink.calls) == 2


def test_stop_producing_is_an_abort(pipe: Pipe) -> None:
    pipe.source.start()
    pipe.source.stopProducing()
    assert pipe.sink.calls[1] == "fail: the image is not wanted any more"
    assert pipe.source.logPrefix()


@pytest.mark.parametrize("size", [0, 1, 60_000])
def test_a_small_image_that_is_all_there_is_read_at_once(pipe: Pipe, size: int) -> None:
    os.write(pipe.writing, bytes(size))
    pipe.close_writer()
    pipe.source.start()
    assert pipe.sink.data == bytes(size)
    assert (pipe.sink.calls, pipe.finished, pipe.reactor.readers) == (["unregister", "end"], 1, [])


def test_what_is_not_all_there_is_read_when_it_comes(pipe: Pipe) -> None:
    os.write(pipe.writing, b"the beginning")
    pipe.source.start()
    assert pipe.sink.data == b"the beginning"
    assert (pipe.finished, pipe.reactor.readers) == (0, [pipe.source])


def test_who_has_no_room_when_it_starts_waits_for_it() -> None:
    pipe = Pipe(Sink(space=0))
    os.write(pipe.writing, b"later")
    pipe.source.start()
    assert pipe.reactor.readers == []
    pipe.sink.space = MIB
    pipe.source.resumeProducing()
    assert pipe.reactor.readers == [pipe.source]
    pipe.close()


def test_a_full_pipe_is_enlarged_once() -> None:
    pipe = Pipe(Sink())
    pipe.source.start()
    size = fcntl.fcntl(pipe.reading, fcntl.F_GETPIPE_SZ)
    os.write(pipe.writing, b"abc")
    pipe.source.doRead()
    for _ in range(FULL_TIMES):
        assert fcntl.fcntl(pipe.reading, fcntl.F_GETPIPE_SZ) == size, "a small image is not worth it"
        os.write(pipe.writing, bytes(size))
        assert readable_bytes(pipe.reading) == size
        pipe.source.doRead()
    assert fcntl.fcntl(pipe.reading, fcntl.F_GETPIPE_SZ) == LARGE_PIPE
    fcntl.fcntl(pipe.reading, fcntl.F_SETPIPE_SZ, size)
    os.write(pipe.writing, bytes(size))
    pipe.source.doRead()
    assert fcntl.fcntl(pipe.reading, fcntl.F_GETPIPE_SZ) == size
    pipe.close()


@implementer(IPassingSink)
class Passing(Sink):
    """Takes what is offered, and lets go on who offered it when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.offers: list[int] = []

    def offer(self, fd: int, count: int) -> None:
        if self.error is not None:
            raise self.error
        self.offers.append(count)

    def take(self, fd: int) -> None:
        """What was offered leaves."""
        os.read(fd, self.offers[-1])
        self.producer.resumeProducing()


@pytest.fixture
def passing() -> Iterator[Pipe]:
    """A source that has offered two full pipes, of which both have left."""
    pipe = Pipe(Passing())
    pipe.source.start()
    for _ in range(FULL_TIMES):
        assert pipe.reactor.readers == [pipe.source]
        os.write(pipe.writing, bytes(DEFAULT_PIPE))
        pipe.source.doRead()
        assert pipe.reactor.readers == []
        pipe.sink.take(pipe.reading)
    yield pipe
    assert pipe.clock.getDelayedCalls() == []
    pipe.close()
    assert pipe.clock.getDelayedCalls() == []


def test_an_image_through_the_window_is_read_when_the_reactor_says_so() -> None:
    pipe = Pipe(Sink())
    pipe.source.start()
    for _ in range(FULL_TIMES + 1):
        os.write(pipe.writing, bytes(DEFAULT_PIPE))
        pipe.source.doRead()
    pipe.source.pauseProducing()
    pipe.source.resumeProducing()
    assert (pipe.reactor.readers, pipe.clock.getDelayedCalls()) == ([pipe.source], [])
    pipe.close()


def test_what_waits_in_a_large_image_s_pipe_is_offered_without_the_reactor_saying_so(passing: Pipe) -> None:
    os.write(passing.writing, bytes(5000))
    assert passing.reactor.readers == []
    passing.clock.advance(0)
    assert passing.sink.offers == [DEFAULT_PIPE, DEFAULT_PIPE, 5000]
    assert passing.reactor.readers == []
    passing.sink.take(passing.reading)
    passing.clock.advance(0)
    assert passing.reactor.readers == [passing.source], "nothing waits: the reactor says when something comes"


def test_the_end_of_a_passed_image_is_seen_when_it_looks_again(passing: Pipe) -> None:
    passing.close_writer()
    passing.clock.advance(0)
    assert (passing.finished, passing.sink.calls) == (1, ["unregister", "end"])


def test_who_is_paused_or_over_does_not_look_again(passing: Pipe) -> None:
    os.write(passing.writing, b"more")
    passing.source.pauseProducing()
    passing.clock.advance(0)
    assert passing.sink.offers == [DEFAULT_PIPE] * 2
    passing.source.resumeProducing()
    passing.source.resumeProducing()
    assert len(passing.clock.getDelayedCalls()) == 1
    passing.source.abort("the link is lost")
    assert passing.clock.getDelayedCalls() == []


def test_an_offer_that_is_refused_ends_the_image(passing: Pipe) -> None:
    os.write(passing.writing, b"more")
    passing.sink.error = Aborted("the migration is over")
    passing.clock.advance(0)
    assert passing.sink.calls == ["unregister", "fail: cannot read the image: the migration is over"]
    assert passing.finished == 1


@pytest.mark.parametrize("size", [0, 1, 65536, 5 * MIB + 3])
def test_with_the_real_epoll(size: int) -> None:
    reactor = EPollReactor()
    own = set(reactor.getReaders())
    sink, done = Sink(), []
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    source = DescriptorSource(reactor, reactor, reading, sink, lambda: done.append(1))
    source.start()
    data = memoryview(bytes(range(256)) * (size // 256 + 1))[:size]
    sent = 0
    while not done:
        if writing >= 0 and sent < size:
            with contextlib.suppress(BlockingIOError):
                sent += os.write(writing, data[sent : sent + 100_000])
        elif writing >= 0:
            os.close(writing)
            writing = -1
        reactor.doPoll(0)
    assert sink.data == data
    assert sink.calls == ["unregister", "end"]
    reactor.removeAll()
    for reader in own:
        reader.connectionLost(None)
    reactor._poller.close()


class Fed(Sink):
    """Something more comes each time that it has taken something.

    @ivar pauses: it has enough after so many pieces.
    """

    def __init__(self, pieces: int, pauses: int = 1 << 30) -> None:
        super().__init__()
        self.left, self.pauses = pieces, pauses
        self.writing = -1

    def written(self, count: int) -> None:
        super().written(count)
        self.left -= 1
        self.pauses -= 1
        if self.left:
            os.write(self.writing, bytes(1000))
        if self.pauses == 0:
            self.producer.pauseProducing()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_comes_while_it_reads_is_read_in_the_same_turn(kind: str) -> None:
    sink = Fed(10)
    pipe = Pipe(sink, kind)
    sink.writing = pipe.writing
    pipe.source.start()
    os.write(pipe.writing, bytes(1000))
    pipe.source.doRead()
    assert len(sink.data) == 10_000
    pipe.close()


def test_a_turn_is_over_after_so_many_bytes() -> None:
    sink = Fed(1 << 30)
    pipe = Pipe(sink)
    sink.writing = pipe.writing
    pipe.source.start()
    os.write(pipe.writing, bytes(1000))
    pipe.source.doRead()
    assert BYTES_PER_TURN <= len(sink.data) < BYTES_PER_TURN + 1000
    pipe.close()


def test_a_pause_ends_the_turn() -> None:
    sink = Fed(10, pauses=3)
    pipe = Pipe(sink)
    sink.writing = pipe.writing
    pipe.source.start()
    os.write(pipe.writing, bytes(1000))
    pipe.source.doRead()
    assert len(sink.data) == 3000
    pipe.source.resumeProducing()
    pipe.source.doRead()
    assert len(sink.data) == 10_000
    pipe.close()


class Roomy(Sink):
    """It has more room than is asked for.

    @ivar pieces: bytes taken at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[int] = []

    def reserve(self, size: int) -> Room | None:
        return super().reserve(MIB)

    def written(self, count: int) -> None:
        super().written(count)
        self.pieces.append(count)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("stolen", [False, True])
def test_what_comes_while_it_reads_goes_into_the_same_room(
    monkeypatch: pytest.MonkeyPatch, kind: str, stolen: bool
) -> None:
    """One frame for what comes in ten pieces; also when the last of them is gone before it is read."""
    sizes = [1000] * 9

    def more_comes(fd: int, room: memoryview) -> int:
        count = ways.readv(fd, room)
        if sizes:
            os.write(pipe.writing, bytes(sizes.pop()))
        elif stolen and not sink.pieces:
            monkeypatch.setattr(module, "readable_bytes", lambda fd: 1)
        return count

    monkeypatch.setattr(module, "readv", more_comes)
    sink = Roomy()
    pipe = Pipe(sink, kind)
    pipe.source.start()
    os.write(pipe.writing, bytes(1000))
    pipe.source.doRead()
    assert sink.pieces == [10_000]
    assert sink.data == bytes(10_000)
    pipe.close()
