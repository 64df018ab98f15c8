"""CRIU's framing: lengths at their limits, every split."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire.framing import MAX_MESSAGE, MessageReader, frame
from criu_relay.wire.stream_pb2 import Request
from tests.wire.support import FORBIDDEN_LENGTHS, length, pieces, prefix


def read(data: bytes, *more: bytes) -> MessageReader:
    reader = MessageReader("message")
    for piece in (data, *more):
        reader.feed(piece)
    return reader


def test_nothing_yet():
    reader = read(b"")
    assert (reader.take_message(), reader.take_bytes(1), reader.take_rest(), reader.pending) == (None, None, b"", 0)


@pytest.mark.parametrize("size", [0, 1, 127, 128, MAX_MESSAGE - 1, MAX_MESSAGE])
def test_lengths(size):
    reader = read(prefix(b"x" * size))
    assert reader.take_message() == b"x" * size
    assert reader.pending == 0


@pytest.mark.parametrize("announced", FORBIDDEN_LENGTHS)
def test_too_long_is_refused_with_the_length_alone(announced):
    reader = read(length(announced)[:3])
    assert reader.take_message() is None
    reader.feed(length(announced)[3:])
    for _ in range(2):
        with pytest.raises(ProtocolError, match=f"message: {announced} bytes are announced"):
            reader.take_message()


def test_nothing_is_allocated_for_what_is_announced():
    reader = read(b"")
    tracemalloc.start()
    try:
        for announced in FORBIDDEN_LENGTHS:
            with pytest.raises(ProtocolError):
                read(length(announced)).take_message()
        reader.feed(length(MAX_MESSAGE))
        reader.take_message()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_MESSAGE


def test_every_split():
    data = prefix(b"first") + prefix(b"") + b"\0" + prefix(b"second") + b"rest"
    for cut in range(len(data) + 1):
        reader = read(data[:cut])
        first = reader.take_message()
        if first is None:
            assert cut < 9
            assert reader.pending == cut
        reader.feed(data[cut:])
        if first is None:
            first = reader.take_message()
        taken = (first, reader.take_message(), reader.take_bytes(1), reader.take_message(), reader.take_rest())
        assert taken == (b"first", b"", b"\0", b"second", b"rest")
        assert reader.pending == 0


def test_fewer_bytes_than_asked_for_stay():
    reader = read(b"abc")
    assert reader.take_bytes(4) is None
    assert reader.pending == 3
    assert reader.take_bytes(2) == b"ab"
    assert reader.take_rest() == b"c"


def test_frame():
    assert frame(Request(filename="files.img")) == bytes.fromhex("0b0000000a0966696c65732e696d67")
    largest = Request(filename="x" * (MAX_MESSAGE - 3))
    assert read(frame(largest)).take_message() == largest.SerializeToString()
    with pytest.raises(Invalid, match="16385 bytes"):
        frame(Request(filename="x" * (MAX_MESSAGE - 2)))


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 500), max_size=12))
def test_any_messages_in_any_pieces(bodies, cuts):
    reader = read(b"")
    got = []
    for piece in pieces(b"".join(map(prefix, bodies)), cuts):
        reader.feed(piece)
        while (body := reader.take_message()) is not None:
            got.append(body)
    assert got == bodies
    assert reader.pending == 0


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"\x16\x03\x01\x02", True),
        (b"\x15\x03\x03\x00", True),
        (b"\x17\x03\x03\x40", True),
        (b"\x18\x03\x03\x40", False),
        (b"\x16\x02\x01\x02", False),
        (b"GET ", False),
    ],
)
def test_tls_where_there_is_none(first, says):
    with pytest.raises(ProtocolError) as caught:
        read(first).take_message()
    assert ("it looks like TLS" in caught.value.reason) == says
