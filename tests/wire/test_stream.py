"""`--stream`: both sides, cut and split everywhere, and every order that is wrong."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import ProtocolError
from criu_relay.wire.framing import frame
from criu_relay.wire.stream import CaptureReader, DescriptorPassed, ImageOffered, ImageWanted, ServeReader
from criu_relay.wire.stream_pb2 import Request
from tests.wire.support import FORBIDDEN_LENGTHS, bytes_field, length, pieces, prefix

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-.0123456789", min_size=3, max_size=20)


def request(name: str) -> bytes:
    return frame(Request(filename=name))


def offer(reader: CaptureReader, name: str, descriptor: int, cuts: list[int]) -> list[ImageOffered]:
    """Feed an offer in pieces; its descriptor comes with the last one, as the kernel has it."""
    events = []
    *first, last = [piece for piece in pieces(request(name) + b"\0", cuts) if piece]
    for piece in first:
        events += reader.feed(piece, [])
    return events + reader.feed(last, [descriptor])


READERS = [pytest.param(CaptureReader, id="capture"), pytest.param(ServeReader, id="serve")]
WRONG_MESSAGES = {
    "empty": (b"", "field filename is missing"),
    "empty name": (bytes_field(1, b""), "field filename '' is not a valid name"),
    "slash": (bytes_field(1, b"../x"), "field filename '../x' is not a valid name"),
    "dots": (bytes_field(1, b".."), "field filename"),
    "NUL": (bytes_field(1, b"a\0"), "field filename"),
    "newline": (bytes_field(1, b"a\n"), "field filename"),
    "256": (bytes_field(1, b"x" * 256), "field filename"),
    "not UTF-8": (bytes_field(1, b"\xff"), "not valid UTF-8"),
    "doubled": (bytes_field(1, b"a") * 2, "there twice"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("body, reason", WRONG_MESSAGES.values(), ids=WRONG_MESSAGES)
def test_wrong_messages(reader, body, reason):
    reader = reader()
    with pytest.raises(ProtocolError, match=reason):
        reader.feed(prefix(body), [])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("announced", FORBIDDEN_LENGTHS)
def test_lengths(reader, announced):
    with pytest.raises(ProtocolError, match=f"{announced} bytes are announced"):
        reader().feed(length(announced), [])


@pytest.mark.parametrize("reader", READERS)
def test_an_error_stays_and_descriptors_are_given_back(reader):
    reader = reader()
    with pytest.raises(ProtocolError) as first:
        reader.feed(length(1 << 31), [7])
    with pytest.raises(ProtocolError) as second:
        reader.feed(request("files.img"), [8, 9])
    assert second.value.reason == first.value.reason
    assert reader.close() == [7, 8, 9]
    assert reader.close() == []


class TestCapture:
    def test_split_at_every_byte(self):
        data = request("files.img") + b"\0"
        for cut in range(len(data)):
            reader = CaptureReader()
            assert reader.at_boundary
            assert reader.feed(data[:cut], []) == []
            assert reader.at_boundary is (cut == 0)
            assert reader.feed(data[cut:], [7]) == [ImageOffered("files.img", 7)]
            assert reader.at_boundary
            assert reader.close() == []

    def test_the_end_of_one_read_and_more_in_the_next(self):
        reader = CaptureReader()
        assert reader.feed(request("a.img") + b"\0", [5]) == [ImageOffered("a.img", 5)]
        assert reader.feed(request("b.img"), []) == []
        assert not reader.at_boundary
        assert reader.feed(b"\0", [6]) == [ImageOffered("b.img", 6)]

    @pytest.mark.parametrize(
        "data, descriptors, reason",
        [
            (request("a") + b"\0", [], "without a descriptor"),
            (request("a") + b"\0" + request("b"), [5], "without a descriptor"),
            (request("a") + b"\0" + request("b") + b"\0", [5], "without a descriptor"),
            (request("a") + b"\1", [5], "byte 01 came where 00"),
            (request("a") + request("b"), [], "byte 03 came where 00"),
            (request("a"), [5], "without its data byte"),
            (request("a")[:3], [5], "without its data byte"),
            (b"", [5], "without its data byte"),
            (request("a") + b"\0", [5, 6], "2 descriptors"),
            (request("a"), [5, 6], "2 descriptors"),
        ],
    )
    def test_wrong_orders(self, data, descriptors, reason):
        reader = CaptureReader()
        with pytest.raises(ProtocolError, match=reason):
            reader.feed(data, descriptors)
        assert reader.close() == descriptors

    def test_a_descriptor_that_came_too_early_does_not_serve_later(self):
        reader = CaptureReader()
        with pytest.raises(ProtocolError):
            reader.feed(request("a"), [5])
        with pytest.raises(ProtocolError):
            reader.feed(b"\0", [6])
        assert reader.close() == [5, 6]

    @given(st.lists(st.tuples(NAMES, st.lists(st.integers(0, 60), max_size=4)), max_size=8))
    def test_any_session(self, session):
        reader = CaptureReader()
        for descriptor, (name, cuts) in enumerate(session):
            assert offer(reader, name, descriptor, cuts) == [ImageOffered(name, descriptor)]
            assert reader.at_boundary
        assert reader.close() == []


class TestServe:
    def test_split_at_every_byte(self):
        data = request("files.img")
        for cut in range(len(data)):
            reader = ServeReader()
            assert reader.feed(data[:cut], []) == []
            assert reader.at_boundary is (cut == 0)
            assert reader.feed(data[cut:], []) == [ImageWanted("files.img")]
            assert reader.at_boundary
            assert reader.answer(True) == bytes.fromhex("020000000801")
            assert not reader.at_boundary
            assert reader.feed(b"\0", [7]) == [DescriptorPassed("files.img", 7)]
            assert reader.at_boundary

    def test_what_is_not_there(self):
        reader = ServeReader()
        reader.feed(request("files.img"), [])
        assert reader.answer(False) == bytes.fromhex("020000000800")
        assert reader.feed(request("core.img"), []) == [ImageWanted("core.img")]

    @pytest.mark.parametrize(
        "steps, reason",
        [
            ([(request("a") + request("b"), [])], "before the request was answered"),
            ([(request("a"), []), (b"\0", [5])], "before the request was answered"),
            ([(request("a") + b"\0", [5])], "before the request was answered"),
            ([(request("a"), [5])], "without its data byte"),
            ([(request("a"), []), (b"", [5])], "without its data byte"),
            ([(request("a"), []), True, (b"\0", [])], "without a descriptor"),
            ([(request("a"), []), True, (b"\1", [5])], "byte 01"),
            ([(request("a"), []), True, (request("b"), [])], "byte 03"),
            ([(request("a"), []), True, (b"\0" + request("b"), [5])], "without a descriptor"),
            ([(request("a"), []), True, (b"\0", [5, 6])], "2 descriptors"),
            ([(request("a"), []), False, (b"\0", [5])], "without its data byte"),
            ([(b"\0", [5])], "without its data byte"),
        ],
    )
    def test_wrong_orders(self, steps, reason):
        reader = ServeReader()
        *before, (data, descriptors) = steps
        for step in before:
            if isinstance(step, bool):
                reader.answer(step)
            else:
                reader.feed(*step)
        with pytest.raises(ProtocolError, match=reason):
            reader.feed(data, descriptors)
        assert reader.close() == descriptors

    def test_only_a_request_is_answered_and_only_once(self):
        reader = ServeReader()
        with pytest.raises(RuntimeError):
            reader.answer(True)
        reader.feed(request("a"), [])
        reader.answer(True)
        with pytest.raises(RuntimeError):
            reader.answer(True)

    @given(st.lists(st.tuples(NAMES, st.booleans(), st.lists(st.integers(0, 60), max_size=4)), max_size=8))
    def test_any_session(self, session):
        reader = ServeReader()
        for descriptor, (name, exists, cuts) in enumerate(session):
            events = [event for piece in pieces(request(name), cuts) for event in reader.feed(piece, [])]
            assert events == [ImageWanted(name)]
            reader.answer(exists)
            if exists:
                assert reader.feed(b"\0", [descriptor]) == [DescriptorPassed(name, descriptor)]
        assert reader.at_boundary
        assert reader.close() == []


@given(
    st.sampled_from([CaptureReader, ServeReader]),
    st.lists(st.tuples(st.binary(max_size=30), st.lists(st.integers(3, 9), max_size=3)), max_size=6),
)
def test_any_bytes_lose_no_descriptor(make, reads):
    reader = make()
    handed_out = []
    for data, descriptors in reads:
        try:
            events = reader.feed(data, descriptors)
        except ProtocolError:
            continue
        handed_out += [event.descriptor for event in events if not isinstance(event, ImageWanted)]
    assert sorted(handed_out + reader.close()) == sorted(number for _, numbers in reads for number in numbers)


def test_a_real_socket():
    """The kernel ends a read after the byte that carried a descriptor, however much more waits."""
    here, there = socket.socketpair()
    pipes = [os.pipe() for _ in range(3)]
    events = []
    try:
        with here, there:
            for number, (readable, _) in enumerate(pipes):
                here.sendall(request(f"{number}.img"))
                socket.send_fds(here, [b"\0"], [readable])
            here.sendall(request("last.img")[:-1])
            here.shutdown(socket.SHUT_WR)
            reader = CaptureReader()
            while True:
                data, descriptors, _, _ = socket.recv_fds(there, 1 << 16, 16)
                if not data:
                    break
                events += reader.feed(data, descriptors)
        assert [event.name for event in events] == ["0.img", "1.img", "2.img"]
        for event, (readable, _) in zip(events, pipes, strict=True):
            assert os.fstat(event.descriptor).st_ino == os.fstat(readable).st_ino
        assert not reader.at_boundary
        assert reader.close() == []
    finally:
        for descriptor in [*(event.descriptor for event in events), *(end for pipe in pipes for end in pipe)]:
            os.close(descriptor)
