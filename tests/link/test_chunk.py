"""Chunks: pages of zeros are left out, and what is sent goes as far as the credit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from criu_relay.flow.zeros import PAGE as FLOW_PAGE
from criu_relay.link.chunk import Chunk, Part
from criu_relay.store.arena import Arena
from criu_relay.wire import link as wire
from criu_relay.wire.link_pb2 import Extent, Frame

PAGE = wire.PAGE
MIB = 1 << 20


def test_a_page_is_a_page() -> None:
    assert FLOW_PAGE == wire.PAGE


def chunk_at(offset: int, arena: Arena | None = None) -> Chunk:
    extent = (arena or Arena(MIB, keep=0)).allocate(MIB)
    assert extent is not None
    return Chunk(extent, offset)


def add(chunk: Chunk, data: bytes, squeeze: bool = True) -> None:
    chunk.extent.view[chunk.filled : chunk.filled + len(data)] = data
    chunk.add(len(data))
    if squeeze:
        chunk.squeeze()


def content(part: Part) -> bytes:
    """The bytes of the image that a part stands for."""
    made, data = b"", bytes(part.range.view) if part.range else b""
    for index, count in enumerate(part.told or [part.payload]):
        made += bytes(count) if index % 2 else data[:count]
        data = data if index % 2 else data[count:]
    assert not data
    return made


def length(part: Part) -> int:
    """Bytes of the image."""
    return sum(part.told) or part.payload


def checked(part: Part) -> Part:
    """It makes a valid frame."""
    body = Extent(migration=b"m" * 16, image=1, offset=part.offset, runs=wire.pack_runs(part.told))
    data = wire.encode(Frame(extent=body, payload=part.payload or None))

    class Handler:
        def frame_received(self, frame: Frame) -> None:
            assert sum(wire.runs_of(frame.extent)) == sum(part.told)

    wire.FrameReader(Handler()).feed(data)
    return part


def pages(text: str) -> bytes:
    return b"".join(bytes(PAGE) if letter == "0" else letter.encode() * PAGE for letter in text)


@pytest.mark.parametrize("text", ["a", "0", "00", "0a0", "a0b", "aa00bb00", "0a0b0c0d", "abc", "00000000a"])
@pytest.mark.parametrize("offset", [0, PAGE, 5, PAGE - 1])
@pytest.mark.parametrize("step", [1 << 30, 700, PAGE, PAGE + 1])
def test_what_is_left_out_are_whole_pages_of_zeros(text: str, offset: int, step: int) -> None:
    chunk = chunk_at(offset)
    data = bytes(-offset % PAGE) + pages(text) + b"\0\0\0"
    for at in range(0, len(data), step):
        add(chunk, data[at : at + step])
    part = chunk.take(1 << 40)
    assert part is not None
    assert part.last
    assert content(checked(part)) == data
    assert length(part) - part.payload == text.count("0") * PAGE
    assert chunk.take(1 << 40) is None


def test_without_looking_nothing_is_left_out() -> None:
    chunk = chunk_at(0)
    add(chunk, pages("0a0"), squeeze=False)
    part = chunk.take(1 << 40)
    assert part is not None
    assert (part.payload, part.told) == (3 * PAGE, ())


def test_zeros_leave_their_room_to_what_follows() -> None:
    chunk = chunk_at(0)
    for _ in range(10):
        add(chunk, pages("0" * 200))
    assert chunk.room == MIB
    assert chunk.length == 2000 * PAGE


def test_runs_and_range_are_bounded() -> None:
    chunk = chunk_at(0)
    while chunk.room >= 2 * PAGE and chunk.length < 1 << 30:
        add(chunk, pages("0" * 16))
    assert chunk.length <= wire.MAX_RANGE
    other = chunk_at(0)
    while other.room >= 2 * PAGE:
        add(other, pages("a0"))
    part = other.take(1 << 40)
    assert part is not None
    assert len(checked(part).told) <= wire.MAX_RUNS


def test_the_rest_of_a_page_that_is_begun_goes_without_credit() -> None:
    chunk = chunk_at(PAGE - 5)
    add(chunk, b"12345" + pages("a"))
    part = chunk.take(0)
    assert part is not None
    assert (part.payload, part.cost, part.last, content(part)) == (5, 0, False, b"12345")
    assert chunk.take(0) is None


def test_what_is_sent_is_not_looked_at_again() -> None:
    chunk = chunk_at(0)
    add(chunk, pages("a0"), squeeze=False)
    part = chunk.take(PAGE + wire.ENTRY)
    assert part is not None and part.range is not None
    assert content(part) == pages("a")
    add(chunk, pages("0b"))
    assert bytes(part.range.view) == pages("a"), "the kernel may still read it"
    rest = chunk.take(1 << 40)
    assert rest is not None
    assert (content(rest), rest.payload) == (pages("00b"), PAGE)


@settings(max_examples=60, deadline=None)
@given(
    st.text("0ab", min_size=1, max_size=30), st.integers(0, 2 * PAGE), st.lists(st.integers(0, 5 * PAGE), max_size=40),
    st.integers(1, 3 * PAGE),
)  # fmt: skip
def test_parts_are_the_whole_and_cost_no_more_than_the_credit(
    text: str, offset: int, credits: list[int], step: int
) -> None:
    arena = Arena(MIB, keep=0)
    chunk = chunk_at(offset, arena)
    data = pages(text) + b"tail"
    written, got, at = 0, b"", offset
    for credit in [*credits, 1 << 40]:
        if written < len(data):
            more = data[written : written + step] if credit != 1 << 40 else data[written:]
            add(chunk, more)
            written += len(more)
        part = chunk.take(credit)
        if part is None:
            continue
        checked(part)
        assert part.cost <= credit
        assert part.offset == at
        at += length(part)
        got += content(part)
    assert got == data
    total = wire.extent_cost(offset, len(data))
    assert total == -(-(offset + len(data)) // PAGE) * (PAGE + 16) - -(-offset // PAGE) * (PAGE + 16)


CASES: list[tuple[Callable[[], int], int]] = [
    (lambda: wire.extent_cost(0, 1), PAGE + 16),
    (lambda: wire.extent_cost(1, PAGE - 1), 0),
    (lambda: wire.extent_cost(1, PAGE), PAGE + 16),
    (lambda: wire.extent_cost(0, 0, 4 * PAGE), 4 * 16),
    (lambda: wire.extent_cost(PAGE, PAGE, PAGE), PAGE + 32),
]


@pytest.mark.parametrize(("cost", "expected"), CASES)
def test_costs(cost: Callable[[], int], expected: int) -> None:
    assert cost() == expected
