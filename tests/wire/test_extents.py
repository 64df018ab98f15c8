"""Headers of extents that are made and read as those of the extents before them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from criu_relay.errors import ProtocolError
from criu_relay.wire import link_pb2
from criu_relay.wire.extents import ExtentEncoder, ExtentMemory, number_of, varint
from criu_relay.wire.framing import LENGTH
from criu_relay.wire.link import FRAMES_TOGETHER, MAX_PAYLOAD, MAX_SIZE, FrameReader, encode
from tests.wire.support import Sink, plain

Frame = link_pb2.Frame
ID = bytes(range(16))

EDGES = [0, 1, 127, 128, (1 << 14) - 1, 1 << 14, 1 << 20, 1 << 21, (1 << 28) - 1, 1 << 28, 1 << 35, 1 << 62, MAX_SIZE]
OFFSETS = st.sampled_from(EDGES) | st.integers(0, MAX_SIZE)


def extent(offset: int, payload: int = MAX_PAYLOAD, **fields: bytes) -> Frame:
    return Frame(payload=payload, extent={"migration": ID, "image": 300, "offset": offset, **fields})


class Handler:
    """Notes what it is given; payloads are thrown away."""

    def __init__(self) -> None:
        self.said: list[dict] = []

    def frame_received(self, frame: Frame) -> Sink | None:
        self.said.append(plain(frame))
        return None


def read(*headers: bytes) -> tuple[list[dict], str]:
    """What a reader makes of these one after the other, each with its payload, and of what it complains at last."""
    handler = Handler()
    reader = FrameReader(handler)
    for header in headers:
        try:
            reader.feed(LENGTH.pack(len(header)) + header)
        except ProtocolError as error:
            return handler.said, error.reason
        while reader.awaited:
            reader.feed(bytes(min(reader.awaited, MAX_PAYLOAD)))
    return handler.said, ""


@given(st.lists(st.tuples(OFFSETS, st.sampled_from([1, 4096, MAX_PAYLOAD])), min_size=1, max_size=8))
def test_headers_are_what_protobuf_makes_of_them(extents: list[tuple[int, int]]) -> None:
    encoder = ExtentEncoder(ID, 300)
    for offset, payload in extents:
        assert encoder.encode(offset, payload) == encode(extent(offset, payload))


@given(OFFSETS)
@example(1 << 63)
def test_a_varint_is_the_number_that_it_is_made_of(number: int) -> None:
    assert number_of(varint(number)) == (number if number <= MAX_SIZE else None)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x00\x00", b"\x80\x00", b"\xff" * 9, b"\x80" * 9 + b"\x01", b"\x01\x01"]
)
def test_what_is_no_varint_or_one_that_protobuf_would_not_make_is_not_taken(data: bytes) -> None:
    assert number_of(data) is None


def test_the_next_extent_is_known_again() -> None:
    memory = ExtentMemory()
    header = extent(16 << 20).SerializeToString()
    assert memory.again(header) is None
    memory.keep(header, Frame.FromString(header))
    frame = memory.again(extent(80 << 20).SerializeToString())
    assert frame == extent(80 << 20)
    assert memory.again(extent(80 << 20, 4096).SerializeToString()) is None
    assert memory.again(extent(1 << 40).SerializeToString()) is None, "another length"


@pytest.mark.parametrize(
    "header",
    [
        extent(1 << 20, runs=b"").SerializeToString(),
        extent(1 << 20).SerializeToString() + b"\xa0\x3f\x01",
        extent(1 << 20).SerializeToString()[4:] + extent(1 << 20).SerializeToString()[:4],
    ],
    ids=["with runs", "with an unknown field", "in another order"],
)
def test_other_headers_are_not_kept(header: bytes) -> None:
    memory = ExtentMemory()
    memory.keep(header, Frame.FromString(header))
    assert memory.again(header) is None


@given(OFFSETS, OFFSETS, st.data())
def test_a_reader_says_of_a_header_what_one_says_that_saw_none_before(first: int, second: int, data: st.DataObject):
    """Whatever is done to its bytes."""
    known = extent(min(first, MAX_SIZE - MAX_PAYLOAD)).SerializeToString()
    header = bytearray(extent(second).SerializeToString())
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(header)) | st.integers(max(0, len(header) - 10), len(header)))
        header[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    said, wrong = read(known, bytes(header))
    alone, wrong_alone = read(bytes(header))
    assert (said[1:], wrong) == (alone, wrong_alone)


def test_an_offset_that_is_cut_is_none() -> None:
    """The length of the extent, in front, is that of the header before."""
    known = extent(128).SerializeToString()
    cut = known[:-2] + b"\x01"
    assert read(known, cut) == (read(known)[0], read(cut)[1])
    assert "it ends in the middle of a field" in read(cut)[1]


def test_an_offset_beyond_the_largest_image_is_refused_the_second_time_too() -> None:
    most = MAX_SIZE - MAX_PAYLOAD
    known, good, bad = (extent(offset).SerializeToString() for offset in (most - 1, most, most + 1))
    said, wrong = read(known, good, bad)
    assert [one["extent"]["offset"] for one in said] == [most - 1, most]
    assert wrong == f"link frame: field extent.offset is {most + 1}, beyond the largest image"


@given(st.integers(1, 6), OFFSETS.filter(lambda offset: offset + 6 * MAX_PAYLOAD <= MAX_SIZE))
@example(3, (1 << 21) - 2 * MAX_PAYLOAD)
def test_what_is_foreseen_is_what_the_image_goes_on_with(most: int, offset: int) -> None:
    memory = ExtentMemory()
    frame = extent(offset)
    memory.keep(frame.SerializeToString(), frame)
    later = [encode(extent(offset + number * MAX_PAYLOAD)) for number in range(1, most + 1)]
    assert memory.following(most) == [], "it is the first of its image that we know"
    for number, header in enumerate(later, 1):
        if memory.again(header[LENGTH.size :]) is None:
            assert memory.following(most) == [], "nothing is known of the one that came last"
            break
        after = [encode(extent(offset + (number + more) * MAX_PAYLOAD)) for more in range(1, most + 1)]
        assert memory.following(most) == [one for one in after if len(one) == len(header)]


def test_nothing_is_foreseen_behind_what_is_not_known() -> None:
    memory = ExtentMemory()
    assert memory.following(3) == []
    memory.keep(extent(1 << 22).SerializeToString(), extent(1 << 22))
    assert memory.again(extent((1 << 22) + MAX_PAYLOAD).SerializeToString()) is not None
    assert memory.following(0) == []
    assert len(memory.following(3)) == 3
    assert memory.again(b"some other header") is None
    assert memory.following(3) == []
    sparse = extent(1 << 22, runs=b"\0\0\x10\0\0\x10\0\0")
    memory.keep(sparse.SerializeToString(), sparse)
    assert memory.following(3) == []


def test_a_turn_takes_no_more_than_so_many() -> None:
    reader = FrameReader(Handler())
    reader.feed(encode(extent(1 << 22)) + bytes(MAX_PAYLOAD) + encode(extent((1 << 22) + MAX_PAYLOAD)))
    assert len(reader._following(99)) == FRAMES_TOGETHER - 1


def test_nothing_is_foreseen_where_images_take_turns() -> None:
    handler = Handler()
    reader = FrameReader(handler)
    for number in range(3):
        for image in (300, 301):
            frame = extent((1 << 22) + number * MAX_PAYLOAD)
            frame.extent.image = image
            reader.feed(encode(frame))
            assert reader._following(99) == []
            reader.feed(bytes(MAX_PAYLOAD))
