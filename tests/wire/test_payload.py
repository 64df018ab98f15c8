"""Where received bytes go: rooms, scratch, and sinks that have none."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import ProtocolError
from criu_relay.wire.payload import LARGE, PayloadReader
from tests.wire.support import Sink, pieces, prefix

LIMIT = 64


class Reader(PayloadReader):
    """Headers are the number of payload bytes in decimal; "d" in front: they are dropped; "x": they are wrong."""

    def __init__(self, schedule: list[int] | None = None) -> None:
        super().__init__("test header", LIMIT)
        self.schedule = schedule
        self.sinks: list[Sink] = []
        self.dropped = 0

    def _header(self, body: bytes) -> tuple[int, Sink | None]:
        if body == b"x":
            raise ProtocolError("test header: x")
        if body == b"bug":
            raise KeyError("a defect of the handler's")
        if body[:1] == b"d":
            self.dropped += 1
            return int(body[1:]), None
        self.sinks.append(Sink(int(body), self.schedule))
        return int(body), self.sinks[-1]

    @property
    def payloads(self) -> list[bytes]:
        assert all(sink.finished == 1 for sink in self.sinks)
        return [bytes(sink.data) for sink in self.sinks]


def put(reader: Reader, data: bytes, most: int = 1 << 30) -> bytes:
    """Do as recvmsg_into does, once: what does not fit is returned."""
    left = memoryview(data)[:most]
    count = 0
    for buffer in reader.buffers():
        part = left[count : count + len(buffer)]
        buffer[: len(part)] = part
        count += len(part)
    reader.received(count)
    return data[count:]


def message(size: int, fill: bytes = b"p") -> bytes:
    return prefix(str(size).encode()) + fill * size


def test_header_first_then_payload_and_the_next_header():
    reader = Reader()
    (scratch,) = reader.buffers()
    assert len(scratch) == 4 + LIMIT
    assert put(reader, prefix(b"100")) == b""
    room, scratch = reader.buffers()
    assert (len(room), len(scratch)) == (100, 4 + LIMIT)
    assert put(reader, b"a" * 60) == b""
    room, scratch = reader.buffers()
    assert (len(room), len(scratch)) == (40, 4 + LIMIT)
    assert put(reader, b"a" * 40 + message(3, b"b") + prefix(b"d2") + b"xx" + message(0)) == b""
    assert reader.payloads == [b"a" * 100, b"bbb", b""]
    assert reader.at_boundary


def test_behind_a_large_payload_comes_a_header_like_its_own_and_no_payload_that_would_be_copied():
    reader = Reader()
    header = prefix(str(LARGE).encode())
    put(reader, header)
    room, scratch = reader.buffers()
    assert (len(room), len(scratch)) == (LARGE, len(header))
    assert put(reader, b"a" * LARGE + header + b"b" * LARGE) == b"b" * LARGE
    assert len(reader.sinks) == 2, "its header came with what was before it"
    put(reader, b"b" * LARGE + prefix(str(LARGE - 1).encode()))
    room, scratch = reader.buffers()
    assert (len(room), len(scratch)) == (LARGE - 1, 4 + LIMIT)


def test_payload_goes_to_the_sink_s_own_memory():
    reader = Reader()
    put(reader, prefix(b"8"))
    room, _ = reader.buffers()
    room[:8] = b"directly"
    assert reader.sinks[0].data == b"directly"
    reader.received(8)
    assert reader.at_boundary


def test_a_room_that_is_too_small_is_not_followed_by_scratch():
    reader = Reader([3])
    put(reader, prefix(b"8"))
    assert [len(buffer) for buffer in reader.buffers()] == [3]


def test_a_room_that_is_too_large_is_cut():
    """Whether the payload comes alone or with the next header behind it."""
    memory = bytearray(100)

    class Generous(Sink):
        def room(self, remaining: int) -> memoryview | None:
            return memoryview(memory)[self.count :]

    for data in (b"12345678", b"12345678" + message(1, b"n")):
        reader = Reader()
        put(reader, prefix(b"8"))
        reader._sink = sink = Generous(8)
        assert [len(buffer) for buffer in reader.buffers()] == [8, 4 + LIMIT]
        reader.feed(data)
        assert (sink.count, sink.finished, memory.rstrip(b"\0")) == (8, 1, b"12345678")
        assert reader.at_boundary
    assert reader.sinks[-1].data == b"n"


def test_buffers_may_be_asked_for_again():
    reader = Reader()
    put(reader, prefix(b"8"))
    for _ in range(3):
        reader.buffers()
        reader.received(0)
    assert put(reader, b"12345678") == b""
    assert reader.payloads == [b"12345678"]


def test_no_room():
    reader = Reader([0, 0, 4])
    put(reader, prefix(b"8") + b"1234")
    assert reader.stalled
    assert not reader.at_boundary
    assert reader.buffers() == []
    assert [len(buffer) for buffer in reader.buffers()] == [4, 4 + LIMIT]
    assert not reader.stalled
    assert put(reader, b"5678") == b""
    assert reader.payloads == [b"12345678"]


def test_no_room_and_nothing_in_scratch():
    reader = Reader([0])
    put(reader, prefix(b"8"))
    assert reader.buffers() == []
    assert not reader.stalled
    assert len(reader.buffers()) == 2


def test_feed_keeps_what_has_no_room():
    reader = Reader([4, 0, 0, 0, 2, 0])
    reader.feed(message(8) + message(2, b"q"))
    assert reader.stalled
    reader.feed(message(1, b"r"))
    assert reader.stalled
    for _ in range(10):
        reader.feed(b"")
    assert reader.payloads == [b"p" * 8, b"qq", b"r"]
    assert reader.at_boundary


def test_buffers_after_feed_without_room():
    """Bytes that were fed come before those that are received."""
    reader = Reader([0] * 4)
    data = message(8) + message(200, b"q")
    reader.feed(data)
    assert reader.buffers() == []
    while not (buffers := reader.buffers()):
        continue
    assert len(buffers[0]) == 4 + LIMIT
    assert reader.payloads == [b"p" * 8, b"q" * 200]


def test_more_than_the_buffers_hold_was_not_received():
    reader = Reader()
    with pytest.raises(ValueError, match="more than the buffers hold"):
        reader.received(4 + LIMIT + 1)


@pytest.mark.parametrize("header, error", [(b"x", ProtocolError), (b"bug", KeyError)])
def test_an_error_stays(header, error):
    reader = Reader()
    for _ in range(2):
        with pytest.raises(error):
            reader.feed(prefix(header))
    with pytest.raises(error):
        reader.buffers()
    with pytest.raises(error):
        reader.received(0)


@pytest.mark.parametrize("announced", [0, LIMIT + 1, 1 << 31, (1 << 32) - 1])
def test_lengths(announced):
    reader = Reader()
    put(reader, announced.to_bytes(4, "little")[:3])
    with pytest.raises(ProtocolError, match="test header: "):
        put(reader, announced.to_bytes(4, "little")[3:])


def test_a_sink_may_say_within_filled_that_it_has_room():
    """feed(b"") from inside does nothing, and nothing is lost: the outer call goes on by itself."""
    reader = Reader()

    class Eager(Sink):
        def filled(self, count: int) -> None:
            super().filled(count)
            reader.feed(b"")

    reader.feed(prefix(b"6"))
    reader._sink = sink = Eager(6, [2, 2, 2])
    reader.feed(b"123456")
    assert (bytes(sink.data), sink.finished) == (b"123456", 1)


def test_it_cannot_be_entered_twice():
    reader = Reader()

    class Wrong(Sink):
        def filled(self, count: int) -> None:
            reader.feed(b"more")

    reader.feed(prefix(b"6"))
    reader._sink = Wrong(6)
    with pytest.raises(RuntimeError, match="already reading"):
        reader.feed(b"123456")


@given(
    st.lists(st.integers(0, 300), max_size=6),
    st.lists(st.integers(0, 2000), max_size=12),
    st.lists(st.integers(0, 90), max_size=20),
    st.booleans(),
)
def test_any_session(sizes, cuts, schedule, feeding):
    """However the bytes come and whatever room there is, the sinks get what was sent."""
    payloads = [bytes([place + 1]) * size for place, size in enumerate(sizes)]
    data = b"".join(prefix(str(len(payload)).encode()) + payload for payload in payloads)
    reader = Reader(schedule)
    for piece in pieces(data, cuts):
        if feeding:
            reader.feed(piece)
            continue
        left = piece
        while left:
            left = put(reader, left)
    while reader.stalled or (not feeding and not reader.at_boundary):
        reader.buffers()
    assert reader.payloads == payloads


def test_a_real_socket():
    """recvmsg_into takes the buffers as they are."""
    here, there = socket.socketpair()
    with here, there:
        here.sendall(message(5000, b"a") + message(10, b"b") + prefix(b"d9") + b"x" * 9)
        here.shutdown(socket.SHUT_WR)
        reader = Reader()
        while (count := there.recvmsg_into(reader.buffers())[0]) > 0:
            reader.received(count)
    assert reader.payloads == [b"a" * 5000, b"b" * 10]
    assert reader.dropped == 1
    assert reader.at_boundary
