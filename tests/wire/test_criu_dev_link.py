"""CRIU's old link: recorded headers, sizes, cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire import criu_dev_link
from criu_relay.wire.criu_dev_link import MAX_SIZE, OLD_MAX_SIZE, Header, HeaderReader, encode_header
from criu_relay.wire.criu_dev_link_pb2 import RemoteImage
from criu_relay.wire.framing import frame
from criu_relay.wire.remote_images import MAX_SNAPSHOTS, OpenMode
from tests.wire.support import FORBIDDEN_LENGTHS, Sink, length, pieces, title, vectors


class Handler:
    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.sinks: list[Sink] = []

    def header_received(self, header: Header) -> Sink:
        self.headers.append(header)
        self.sinks.append(Sink(header.payload if header.payload <= 1 << 20 else 0))
        return self.sinks[-1]


def header(name: str, size: int, mode: int = 1, snapshot_id: str = "/img") -> bytes:
    return frame(RemoteImage(name=name, snapshot_id=snapshot_id, open_mode=mode, size=size))


def read(data: bytes) -> Handler:
    handler = Handler()
    HeaderReader(handler).feed(data)
    return handler


@pytest.mark.parametrize("vector", vectors("criu-dev link"), ids=title)
def test_recorded_split_and_cut_at_every_byte(vector):
    data = bytes.fromhex(vector["hex"] + vector["payload"])
    fields = vector["decoded"]
    expected = Header(
        fields["name"], fields["snapshot_id"], OpenMode(fields["open_mode"]), fields["size"], fields["size"]
    )
    for cut in range(len(data)):
        handler = Handler()
        reader = HeaderReader(handler)
        reader.feed(data[:cut])
        assert reader.at_boundary is (cut == 0)
        reader.feed(data[cut:])
        assert reader.at_boundary
        assert handler.headers == [expected]
        assert [(sink.data.hex(), sink.finished) for sink in handler.sinks] == [(vector["payload"], 1)]
    encoded = encode_header(expected.name, expected.snapshot_id, expected.mode, expected.size)
    assert encoded.hex() == vector["hex"]


def test_the_size_of_an_append_is_the_total():
    handler = read(
        header("parent", 36, 1024, "")
        + b"a" * 36
        + header("x.img", 5)
        + b"xxxxx"
        + header("parent", 72, 1024, "")
        + b"b" * 36
        + header("parent", 72, 1024, "")
        + header("x.img", 7, 1024)
        + b"yy"
    )
    assert [(h.name, h.size, h.payload) for h in handler.headers] == [
        ("parent", 36, 36),
        ("x.img", 5, 5),
        ("parent", 72, 36),
        ("parent", 72, 0),
        ("x.img", 7, 2),
    ]
    assert all(sink.finished == 1 for sink in handler.sinks)


def test_a_rewrite_begins_again():
    handler = read(header("x.img", 5) + b"xxxxx" + header("x.img", 2) + b"yy" + header("x.img", 3, 1024) + b"z")
    assert [h.payload for h in handler.headers] == [5, 2, 1]


def test_same_name_in_another_snapshot_is_another_image():
    handler = read(header("x.img", 5) + b"xxxxx" + header("x.img", 6, 1024, "/img/2") + b"yyyyyy")
    assert [h.payload for h in handler.headers] == [5, 6]


def test_an_image_without_bytes_swallows_nothing():
    handler = read(header("empty.img", 0) + header("x.img", 1) + b"x")
    assert [(bytes(sink.data), sink.finished) for sink in handler.sinks] == [(b"", 1), (b"x", 1)]


@pytest.mark.parametrize("size", [1 << 31, 1 << 32, MAX_SIZE])
def test_large_images_are_taken(size):
    handler = Handler()
    reader = HeaderReader(handler)
    with pytest.raises(AssertionError, match="remaining"):
        reader.feed(header("pages-1.img", size) + b"x")
    assert handler.headers[0].payload == size


@pytest.mark.parametrize(
    "data, reason",
    [
        (header("x.img", MAX_SIZE + 1), "field size"),
        (header("x.img", (1 << 64) - 1), "field size"),
        (header("x.img", 5) + b"xxxxx" + header("x.img", 4, 1024), "5 bytes were there before"),
        (header("x.img", 5, 0), "field open_mode is 0"),
        (header("x.img", 5, 2), "field open_mode is 2"),
        (header("", 5), "field name"),
        (header("", 5, 1, ""), "field name"),
        (header("../x", 5), "field name"),
        (header("x.img", 5, 1, "a\n"), "field snapshot_id"),
        (length(0), "length is 0"),
        *((length(announced), f"{announced} bytes") for announced in FORBIDDEN_LENGTHS),
    ],
)
def test_wrong(data, reason):
    with pytest.raises(ProtocolError, match=f"remote image header: .*{reason}"):
        read(data)


def test_limits_on_what_is_remembered(monkeypatch):
    labels = b"".join(header("x.img", 0, 1, f"/img/{number}") for number in range(MAX_SNAPSHOTS + 1))
    read(labels)
    with pytest.raises(ProtocolError, match="more than 1024 snapshots"):
        read(labels + header("x.img", 0, 1, "one more"))
    monkeypatch.setattr(criu_dev_link, "MAX_IMAGES", 3)
    images = b"".join(header(f"{number}.img", 0) for number in range(3))
    read(images + header("1.img", 0))
    with pytest.raises(ProtocolError, match="more than 3 images"):
        read(images + header("3.img", 0))


@pytest.mark.parametrize("size", [0, OLD_MAX_SIZE + 1, 1 << 32])
def test_what_old_peers_cannot_take_is_not_sent(size):
    with pytest.raises(Invalid, match=f"image x.img has {size} bytes"):
        encode_header("x.img", "/img", OpenMode.WRITE, size)


def test_other_headers_that_are_not_sent():
    with pytest.raises(Invalid):
        encode_header("x.img", "/img", OpenMode.READ, 1)
    with pytest.raises(Invalid):
        encode_header("a/b", "/img", OpenMode.WRITE, 1)
    with pytest.raises(Invalid):
        encode_header("x.img", "/img\n", OpenMode.WRITE, 1)


def test_limits_that_are_sent():
    for size in (1, OLD_MAX_SIZE):
        sent = encode_header("x.img", "", OpenMode.APPEND, size)
        assert sent == header("x.img", size, 1024, "")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.binary(max_size=20))), st.lists(st.integers(0, 900))
)
def test_any_session(session, cuts):
    data = b""
    sizes: dict[str, int] = {}
    for name, append, payload in session:
        sizes[name] = (sizes.get(name, 0) if append else 0) + len(payload)
        data += header(name, sizes[name], 1024 if append else 1) + payload
    handler = Handler()
    reader = HeaderReader(handler)
    for piece in pieces(data, cuts):
        reader.feed(piece)
    assert reader.at_boundary
    assert [bytes(sink.data) for sink in handler.sinks] == [payload for _, _, payload in session]
