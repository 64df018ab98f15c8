"""Frames out of and into a transport, by system calls and without."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPullProducer, IReadDescriptor
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from criu_relay.flow import frames as module
from criu_relay.flow.frame_reader import LOW_WATER, SocketFrameReader
from criu_relay.flow.frames import (
    BYTES_PER_TURN,
    COPIED_PAYLOAD,
    MemfdRange,
    OutFrame,
    SocketFrameWriter,
    TransportFrameWriter,
)
from criu_relay.flow.sockets import socket_of, tune
from criu_relay.store.arena import Arena
from tests.flow.support import MIB, FakeReactor, no_descriptor_left
from tests.store.support import Turns
from tests.support.polling import readable

LARGE = COPIED_PAYLOAD + 4096
"""A payload that is not copied."""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


class Frames:
    """A source of frames; what it gave, and how often everything was sent."""

    def __init__(self, frames: list[OutFrame]) -> None:
        self.frames = frames
        self.given: list[OutFrame] = []
        self.drains = 0
        self.first: list[OutFrame] = []

    def next_frame(self) -> OutFrame | None:
        queue = self.first or self.frames
        if not queue:
            return None
        self.given.append(queue.pop(0))
        return self.given[-1]

    def drained(self) -> None:
        self.drains += 1

    @property
    def expected(self) -> bytes:
        """The bytes of the frames that were given."""
        return b"".join(as_bytes(frame) for frame in self.given)


def as_bytes(frame: OutFrame) -> bytes:
    payload = frame.payload
    return frame.header + bytes(payload.view if isinstance(payload, MemfdRange) else payload or b"")


class Transport:
    """What a Twisted transport is to a pull producer: the socket is real, the reactor is the test."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.producer: Any = None
        self.wants = False
        self.clock = Turns()

    def wake(self, writer: SocketFrameWriter) -> None:
        """The writer has something to send, and the reactor's turn is over."""
        writer.wake()
        self.clock.turn()

    def getHandle(self) -> Any:
        return self.handle

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming is False
        self.producer = producer
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None
        self.wants = False

    def startWriting(self) -> None:
        self.wants = True

    def turn(self) -> bool:
        """The reactor's next turn, in which the socket is writable; False: nobody waits for one."""
        turned = self.clock.turn()
        if not self.wants:
            return turned
        self.wants = False
        if self.producer is not None:
            self.producer.resumeProducing()
        return True


class Choppy:
    """A socket that takes a few bytes at a time, or none.

    @ivar schedule: how many bytes each call takes; None: EAGAIN; an OSError: raised.
    """

    def __init__(self, connection: socket.socket, schedule: Iterator[Any]) -> None:
        self.connection = connection
        self.schedule = schedule

    def fileno(self) -> int:
        return self.connection.fileno()

    def most(self) -> int:
        step = next(self.schedule, 1 << 30)
        if step is None:
            raise BlockingIOError(errno.EAGAIN, "not now")
        if isinstance(step, OSError):
            raise step
        return int(step)

    def send(self, data: memoryview, flags: int = 0) -> int:
        return self.connection.send(data[: self.most()], flags)


@pytest.fixture
def memory() -> Iterator[Callable[[bytes], MemfdRange]]:
    arena = Arena(64 * MIB, keep=0)
    made = []

    def payload(data: bytes) -> MemfdRange:
        extent = arena.force(len(data))
        made.append(extent)
        extent.view[: len(data)] = data
        return MemfdRange(extent.fd, extent.offset, extent.view[: len(data)])

    yield payload
    for extent in made:
        arena.free(extent)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def received(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            part = connection.recv(1 << 20)
        except BlockingIOError:
            return data
        if not part:
            return data
        data += part


def some_frames(memory: Callable[[bytes], MemfdRange]) -> list[OutFrame]:
    return [
        OutFrame(b"control-1"),
        OutFrame(b"fetched", b"bytes of python"),
        OutFrame(b"small", memory(b"s" * 100)),
        OutFrame(b"edge", memory(b"e" * COPIED_PAYLOAD)),
        OutFrame(b"large", memory(b"l" * (COPIED_PAYLOAD + 1))),
        OutFrame(b"control-2"),
        OutFrame(b"largest", memory(os.urandom(MIB))),
        OutFrame(b"last", memory(b"z" * LARGE)),
    ]


def test_interfaces() -> None:
    assert IPullProducer.implementedBy(SocketFrameWriter)
    assert IPullProducer.implementedBy(TransportFrameWriter)
    assert IReadDescriptor.implementedBy(SocketFrameReader)


def fail_if_called(error: OSError) -> None:
    raise AssertionError(error)


def pump(transport: Transport, theirs: socket.socket, until: Callable[[], bool]) -> bytes:
    data = b""
    for _ in range(100_000):
        data += received(theirs)
        if until():
            break
        transport.turn()
    else:
        raise AssertionError("it never ended")
    return data + received(theirs)


def test_all_frames_in_order(pair: Any, memory: Any) -> None:
    transport, frames = Transport(pair[0]), Frames(some_frames(memory))
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    transport.wake(writer)
    data = pump(transport, pair[1], lambda: frames.drains > 0)
    assert data == frames.expected
    assert len(frames.given) == 8
    assert transport.producer is None
    assert frames.drains == 1
    frames.frames.append(OutFrame(b"more"))
    transport.wake(writer)
    assert received(pair[1]) == b"more"
    assert frames.drains == 2


def test_wake_twice_registers_once(pair: Any, memory: Any) -> None:
    transport = Transport(pair[0])
    frames = Frames([OutFrame(b"h", memory(bytes(MIB))) for _ in range(4)])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    transport.wake(writer)
    assert transport.producer is writer
    transport.wake(writer)
    pump(transport, pair[1], lambda: frames.drains > 0)
    assert frames.drains == 1


@pytest.mark.parametrize(("sent", "asked"), [(MIB, True), (LARGE, False)])
def test_who_has_sent_much_is_asked_again_in_the_next_turn(pair: Any, memory: Any, sent: int, asked: bool) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    transport, frames = Transport(pair[0]), Frames([OutFrame(b"h", memory(bytes(sent)))])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    transport.wake(writer)
    data = pump(transport, pair[1], lambda: frames.drains > 0)
    frames.frames.append(OutFrame(b"unannounced"))
    assert transport.clock.turn() is asked
    assert (data + received(pair[1])).endswith(b"unannounced") is asked
    assert transport.clock.turn() is False, "that was little"
    writer.stop()


@pytest.mark.parametrize("then", ["woken", "stopped"])
def test_who_is_asked_again_is_asked_once(pair: Any, memory: Any, then: str) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    transport, frames = Transport(pair[0]), Frames([OutFrame(b"h", memory(bytes(MIB)))])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    frames.drained = {"woken": writer.wake, "stopped": writer.stop}[then]  # type: ignore[method-assign]
    transport.wake(writer)
    pump(transport, pair[1], lambda: not frames.frames and not transport.wants)
    assert len(transport.clock.getDelayedCalls()) == (1 if then == "woken" else 0)
    writer.stop()
    assert transport.clock.getDelayedCalls() == []


def test_what_comes_in_one_turn_of_the_reactor_leaves_together(pair: Any, memory: Any) -> None:
    """A small image, its end and the next one are one send."""
    sends: list[int] = []

    class Counting(Choppy):
        def send(self, data: memoryview, flags: int = 0) -> int:
            sends.append(len(data))
            return super().send(data, flags)

    transport, frames = Transport(Counting(pair[0], iter(()))), Frames([])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    for part in (b"image", b"extent", b"end"):
        frames.frames.append(OutFrame(part))
        writer.wake()
    assert sends == []
    transport.clock.turn()
    assert (sends, frames.drains) == ([len(b"imageextentend")], 1)
    writer.wake()
    writer.stop()
    assert transport.clock.getDelayedCalls() == []


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7, 100, 4096])
def test_short_sends(pair: Any, memory: Any, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers cut at every place, an EAGAIN before each part, and payloads in parts."""
    frames = Frames(
        [OutFrame(b"header", memory(bytes(range(256)) * (LARGE // 256))), OutFrame(b"tail", memory(b"t" * LARGE))] * 2
    )

    def schedule() -> Iterator[Any]:
        while True:
            yield None
            yield cut

    choppy = Choppy(pair[0], schedule())
    transport = Transport(choppy)
    sendfile = os.sendfile
    monkeypatch.setattr(
        module.os, "sendfile", lambda out, fd, offset, count: sendfile(out, fd, offset, min(count, choppy.most() * 999))
    )
    transport.wake(SocketFrameWriter(transport.clock, transport, frames, fail_if_called))
    assert pump(transport, pair[1], lambda: frames.drains > 0) == frames.expected


def test_eagain_at_every_call(pair: Any, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sendfile = os.sendfile
    for at in range(12):
        frames = Frames(
            [OutFrame(b"one", memory(b"1" * LARGE)), OutFrame(b"two"), OutFrame(b"x", memory(b"3" * 2 * LARGE))]
        )
        steps: list[Any] = [1 << 30] * 12
        steps[at] = None
        choppy = Choppy(pair[0], iter(steps))
        transport = Transport(choppy)
        monkeypatch.setattr(
            module.os, "sendfile", lambda out, fd, at, count, c=choppy: sendfile(out, fd, at, min(count, c.most()))
        )
        transport.wake(SocketFrameWriter(transport.clock, transport, frames, fail_if_called))
        assert pump(transport, pair[1], lambda done=frames: done.drains > 0) == frames.expected


@pytest.mark.parametrize("at", range(4))
def test_an_error_is_told_once(pair: Any, memory: Any, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    frames = Frames([OutFrame(b"one", memory(b"1" * LARGE)), OutFrame(b"two", memory(b"2" * LARGE))])
    steps: list[Any] = [1 << 30] * 4
    steps[at] = OSError(errno.EPIPE, "gone")
    choppy = Choppy(pair[0], iter(steps))
    sendfile = os.sendfile
    monkeypatch.setattr(
        module.os, "sendfile", lambda out, fd, at, count: sendfile(out, fd, at, min(count, choppy.most()))
    )
    transport = Transport(choppy)
    writer = SocketFrameWriter(transport.clock, transport, frames, errors.append)
    transport.wake(writer)
    while transport.turn():
        pass
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.EPIPE]
    assert transport.producer is None
    assert frames.drains == 0
    transport.wake(writer)
    assert transport.producer is None


def test_a_source_that_fails_ends_the_link(pair: Any) -> None:
    """The peer would wait for ever for the frame that was lost with it."""

    class Broken(Frames):
        def next_frame(self) -> OutFrame | None:
            if len(self.given) == 1:
                raise ValueError("a defect")
            return super().next_frame()

    errors: list[Exception] = []
    frames = Broken([OutFrame(b"one"), OutFrame(b"two"), OutFrame(b"three")])
    transport = Transport(pair[0])
    logged: list[LogEvent] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        transport.wake(SocketFrameWriter(transport.clock, transport, frames, errors.append))
        while transport.turn():
            pass
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert [str(error) for error in errors] == ["a defect"]
    assert [event["log_failure"].type for event in logged] == [ValueError]
    assert transport.clock.getDelayedCalls() == [] and frames.drains == 0


def test_a_source_that_wakes_the_writer_while_it_is_asked(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn stays a turn, and what is stopped is stopped."""
    monkeypatch.setattr(module, "BYTES_PER_TURN", 1000)
    monkeypatch.setattr(module, "GATHERED", 100)

    class Waking(Frames):
        def next_frame(self) -> OutFrame | None:
            writer.wake()
            return super().next_frame()

    transport, frames = Transport(pair[0]), Waking([OutFrame(b"f" * 100) for _ in range(1000)])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    writer.wake()
    for turn in range(1, 20):
        transport.clock.turn()
        assert len(frames.given) == 10 * turn + 1, "the one that is next"
        assert len(transport.clock.getDelayedCalls()) == 1
    writer.stop()
    assert transport.clock.getDelayedCalls() == []


def test_a_turn_is_bounded(pair: Any, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def take(out: int, fd: int, offset: int, count: int) -> int:
        counts.append(count)
        return count

    monkeypatch.setattr(module.os, "sendfile", take)
    frames = Frames([OutFrame(b"h", memory(bytes(MIB))) for _ in range(4)])
    transport = Transport(pair[0])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    transport.wake(writer)
    for turn in (1, 2):
        assert (turn - 1) * BYTES_PER_TURN < sum(counts) <= turn * BYTES_PER_TURN
        assert (transport.producer, frames.drains) == (None, 0), "it goes on although the socket has room"
        assert transport.turn()
    writer.stop()
    assert transport.clock.getDelayedCalls() == []


def test_small_frames_are_gathered(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHERED", 64 << 10)
    sends: list[int] = []

    class Counting(Choppy):
        def send(self, data: memoryview, flags: int = 0) -> int:
            sends.append(len(data))
            return super().send(data, flags)

    frames = Frames([OutFrame(b"x" * 100) for _ in range(2000)])
    transport = Transport(Counting(pair[0], iter(())))
    transport.wake(SocketFrameWriter(transport.clock, transport, frames, fail_if_called))
    pump(transport, pair[1], lambda: frames.drains > 0)
    assert max(sends) <= (64 << 10) + 100
    assert len(sends) == 4


def test_a_control_frame_goes_between_payloads(pair: Any, memory: Any) -> None:
    frames = Frames([OutFrame(b"h", memory(bytes(MIB))) for _ in range(4)])
    transport = Transport(pair[0])
    transport.wake(SocketFrameWriter(transport.clock, transport, frames, fail_if_called))
    given = len(frames.given)
    frames.first.append(OutFrame(b"control"))
    pump(transport, pair[1], lambda: frames.drains > 0)
    assert frames.given[given].header == b"control"


def test_stop_sends_nothing_more(pair: Any, memory: Any) -> None:
    frames = Frames([OutFrame(b"h", memory(bytes(MIB))) for _ in range(4)])
    transport = Transport(pair[0])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    transport.wake(writer)
    writer.stop()
    before = received(pair[1])
    assert before
    transport.turn()
    transport.wake(writer)
    writer.resumeProducing()
    assert received(pair[1]) == b""
    assert transport.producer is None
    writer.stop()


def test_a_lost_transport(pair: Any, memory: Any) -> None:
    frames = Frames([OutFrame(b"h", memory(bytes(MIB))) for _ in range(4)])
    transport = Transport(pair[0])
    writer = SocketFrameWriter(transport.clock, transport, frames, fail_if_called)
    transport.wake(writer)
    writer.stopProducing()
    received(pair[1])
    transport.turn()
    assert received(pair[1]) == b""


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_both_ways_are_the_same_bytes(memory: Any, kind: str) -> None:
    if kind == "unix":
        ours, theirs = socket.socketpair()
    else:
        server = socket.create_server(("127.0.0.1", 0))
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        server.close()
        tune(ours)
    theirs.setblocking(False)
    ours.setblocking(False)
    made = some_frames(memory)
    by_socket, by_transport = Frames(list(made)), Frames(list(made))
    transport = Transport(ours)
    transport.wake(SocketFrameWriter(transport.clock, transport, by_socket, fail_if_called))
    sent = pump(transport, theirs, lambda: by_socket.drains > 0)
    while len(sent) < len(by_socket.expected):
        sent += received(theirs)
    string = StringTransport()
    writer = TransportFrameWriter(string, by_transport)
    writer.wake()
    while string.producer is not None:
        string.producer.resumeProducing()
    assert sent == string.value() == by_transport.expected
    ours.close()
    theirs.close()


# Without a socket


def test_one_frame_at_a_time() -> None:
    string, frames = StringTransport(), Frames([OutFrame(b"one"), OutFrame(b"two", b"2"), OutFrame(b"")])
    writer = TransportFrameWriter(string, frames)
    writer.wake()
    writer.wake()
    assert string.streaming is False
    writer.resumeProducing()
    assert string.value() == b"one"
    writer.resumeProducing()
    assert string.value() == b"onetwo2"
    writer.resumeProducing()
    assert frames.drains == 0
    writer.resumeProducing()
    assert frames.drains == 1
    assert string.producer is None


@pytest.mark.parametrize("how", ["stop", "stopProducing"])
def test_a_stopped_one(how: str) -> None:
    string, frames = StringTransport(), Frames([OutFrame(b"one")])
    writer = TransportFrameWriter(string, frames)
    writer.wake()
    getattr(writer, how)()
    writer.resumeProducing()
    writer.wake()
    assert string.value() == b""
    assert frames.drains == 0


# Reading


class Target:
    """Takes bytes into buffers of the sizes that it was given."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.data = b""
        self.turns = 0
        self.ends: list[Exception | None] = []
        self._given: list[memoryview] = []
        self.awaited = 0

    def buffers(self) -> list[memoryview]:
        self._given = [memoryview(bytearray(size)) for size in self.sizes]
        return self._given

    def received(self, count: int) -> None:
        self.data += b"".join(self._given)[:count]

    def feed(self, data: bytes) -> None:
        raise AssertionError

    def turn_ended(self) -> None:
        self.turns += 1


@pytest.fixture
def reading(pair: Any) -> Iterator[tuple[SocketFrameReader, Target, FakeReactor, socket.socket]]:
    reactor, target = FakeReactor(), Target([5, 3])
    reader = SocketFrameReader(reactor, pair[0], target, target.turn_ended, target.ends.append)
    reader.start()
    yield reader, target, reactor, pair[1]
    reader.stop()


def test_split_reads(reading: Any) -> None:
    reader, target, reactor, peer = reading
    assert reactor.readers == [reader]
    peer.send(b"0123456789")
    reader.doRead()
    assert target.data == b"01234567"
    reader.doRead()
    assert target.data == b"0123456789"
    reader.doRead()
    assert target.turns == 2
    assert target.ends == []


@pytest.fixture
def waiting() -> Iterator[tuple[SocketFrameReader, Target, socket.socket]]:
    """A reader on a TCP connection whose target awaits a payload."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setblocking(False)
    target = Target([LOW_WATER])
    reader = SocketFrameReader(FakeReactor(), ours, target, target.turn_ended, target.ends.append)
    reader.start()
    target.awaited = 2 * LOW_WATER
    theirs.sendall(b"header")
    assert ready(reader, patience=10.0)
    reader.doRead()
    yield reader, target, theirs
    reader.stop()
    ours.close()
    theirs.close()


def ready(reader: SocketFrameReader, patience: float = 0.0) -> bool:
    """Whether the reactor would call it."""
    return readable(reader, patience)


def feed(reader: SocketFrameReader, peer: socket.socket, data: bytes) -> None:
    """Send something that makes it readable, and have it read."""
    peer.sendall(data)
    assert ready(reader, patience=10.0)
    reader.doRead()


def test_a_large_payload_is_not_taken_crumb_by_crumb(waiting: Any) -> None:
    reader, target, peer = waiting
    peer.sendall(bytes(LOW_WATER - 1))
    assert not ready(reader)
    feed(reader, peer, b"x")
    assert len(target.data) == len(b"header") + LOW_WATER


def test_what_is_less_than_awaited_is_waited_for(waiting: Any) -> None:
    reader, target, peer = waiting
    target.awaited = 10
    feed(reader, peer, bytes(LOW_WATER))
    peer.sendall(bytes(9))
    assert not ready(reader)
    peer.sendall(b"x")
    assert ready(reader, patience=10.0)


def test_a_header_is_taken_byte_by_byte(waiting: Any) -> None:
    reader, target, peer = waiting
    target.awaited = 0
    feed(reader, peer, bytes(LOW_WATER))
    peer.sendall(b"h")
    assert ready(reader, patience=10.0)


def test_a_slow_peer_is_heard_when_it_is_looked(waiting: Any) -> None:
    reader, target, peer = waiting
    peer.sendall(b"slow")
    assert not ready(reader)
    reader.look()
    assert ready(reader, patience=10.0)
    reader.doRead()
    assert target.data == b"headerslow"
    peer.sendall(b"ly")
    assert not ready(reader)


@pytest.mark.parametrize("reset", [False, True])
def test_the_end_is_not_waited_for(waiting: Any, reset: bool) -> None:
    reader, target, peer = waiting
    if reset:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sendall(b"cut")
    peer.close()
    assert ready(reader, patience=10.0)
    while not target.ends:
        reader.doRead()
    assert isinstance(target.ends[0], ConnectionResetError) is reset


def test_the_end(reading: Any) -> None:
    reader, target, reactor, peer = reading
    peer.send(b"abc")
    peer.close()
    reader.doRead()
    reader.doRead()
    assert target.data == b"abc"
    assert target.ends == [None]
    assert reactor.readers == []
    assert reader.fileno() == -1
    reader.connectionLost(Failure(ConnectionLost()))
    assert target.ends == [None]


def test_an_error(reading: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, target, reactor, _ = reading

    class Broken:
        def fileno(self) -> int:
            return 0 if not closed else -1

        def recvmsg_into(self, buffers: object) -> None:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        def close(self) -> None:
            closed.append(1)

    closed: list[int] = []
    reader._socket.close()
    reader._socket = Broken()
    reader.doRead()
    assert isinstance(target.ends[0], ConnectionResetError)
    assert reactor.readers == []


def test_given_up_by_the_reactor(reading: Any) -> None:
    reader, target, reactor, _ = reading
    lost = ConnectionLost()
    reader.connectionLost(Failure(lost))
    assert target.ends == [lost]
    assert reactor.readers == []


def test_stop_says_nothing(reading: Any) -> None:
    reader, target, reactor, _ = reading
    reader.stop()
    reader.stop()
    assert target.ends == []
    assert reactor.readers == []
    assert reader.logPrefix()


def test_without_a_buffer_it_stops_reading(reading: Any) -> None:
    reader, target, reactor, peer = reading
    target.sizes = []
    peer.send(b"abc")
    reader.doRead()
    assert reactor.readers == []
    target.sizes = [10]
    reader.start()
    reader.doRead()
    assert target.data == b"abc"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2000), max_size=30), st.lists(st.integers(1, 500), min_size=1, max_size=4))
def test_any_splits(parts: list[int], sizes: list[int]) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    target = Target(sizes)
    reader = SocketFrameReader(FakeReactor(), ours, target, target.turn_ended, target.ends.append)
    sent = b""
    for index, size in enumerate(parts):
        theirs.send(bytes([index]) * size)
        sent += bytes([index]) * size
        reader.doRead()
    theirs.close()
    while not target.ends:
        reader.doRead()
    assert target.data == sent
    ours.close()


# Which way


def test_socket_of(pair: Any) -> None:
    assert socket_of(Transport(pair[0])) is pair[0]
    assert socket_of(Transport(object())) is None
    assert socket_of(StringTransport()) is None

    class NoWriting:
        def getHandle(self) -> socket.socket:
            return pair[0]

    assert socket_of(NoWriting()) is None


def test_tune(pair: Any) -> None:
    tune(pair[0])
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as connection:
            tune(connection)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            between = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            count = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            assert 0 < idle + between * count <= 10
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        assert host
