"""The link's frames: what a frame may say, cut and split everywhere."""

from __future__ import annotations

import tracemalloc

import pytest
from google.protobuf.message import EncodeError
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.errors import Invalid, ProtocolError
from criu_relay.wire import link_pb2
from criu_relay.wire.link import MAX_HEADER, MAX_PAYLOAD, MAX_SIZE, MAX_TEXT, FrameReader, clip, encode
from tests.wire.support import (
    FORBIDDEN_LENGTHS,
    Sink,
    build,
    bytes_field,
    length,
    number_field,
    pieces,
    plain,
    prefix,
    title,
    vectors,
)

Frame = link_pb2.Frame
ID = bytes(range(16))


class Handler:
    """Gives every payload a sink."""

    def __init__(self, schedule: list[int] | None = None) -> None:
        self.frames: list[link_pb2.Frame] = []
        self.sinks: list[Sink] = []
        self.schedule = schedule

    def frame_received(self, frame: link_pb2.Frame) -> Sink | None:
        self.frames.append(link_pb2.Frame())
        self.frames[-1].CopyFrom(frame)
        if not frame.payload:
            return None
        self.sinks.append(Sink(frame.payload, self.schedule))
        return self.sinks[-1]

    @property
    def received(self) -> list[tuple[dict, bytes]]:
        sinks = iter(self.sinks)
        return [(plain(frame), bytes(next(sinks).data) if frame.payload else b"") for frame in self.frames]


def wire_bytes(vector: dict) -> bytes:
    return bytes.fromhex(vector["hex"] + vector.get("payload", ""))


def expected(vector: dict) -> tuple[dict, bytes]:
    return vector["decoded"], bytes.fromhex(vector.get("payload", ""))


VECTORS = vectors("link")
ALL = b"".join(map(wire_bytes, VECTORS))
EXTENT = {"migration": ID, "image": 1, "offset": 0}


@pytest.mark.parametrize("vector", VECTORS, ids=title)
def test_vectors_split_and_cut_at_every_byte(vector):
    data = wire_bytes(vector)
    for cut in range(len(data)):
        handler = Handler()
        reader = FrameReader(handler)
        reader.feed(data[:cut])
        assert reader.at_boundary is (cut == 0)
        assert not any(sink.finished for sink in handler.sinks)
        reader.feed(data[cut:])
        assert reader.at_boundary
        assert handler.received == [expected(vector)]
        assert all(sink.finished == 1 for sink in handler.sinks)


@pytest.mark.parametrize("vector", VECTORS, ids=title)
def test_vectors_encode(vector):
    assert encode(build(Frame(), vector["decoded"])).hex() == vector["hex"]


def test_every_kind_of_frame_has_a_vector():
    kinds = {build(Frame(), vector["decoded"]).WhichOneof("body") for vector in VECTORS}
    assert kinds == {field.name for field in Frame.DESCRIPTOR.oneofs_by_name["body"].fields}


def test_several_frames_at_once():
    handler = Handler()
    FrameReader(handler).feed(ALL)
    assert handler.received == [expected(vector) for vector in VECTORS]


@given(
    st.lists(st.sampled_from(VECTORS), max_size=6),
    st.lists(st.integers(0, 1000), max_size=12),
    st.lists(st.integers(0, 3), max_size=12),
)
def test_any_session_in_any_pieces_with_any_room(session, cuts, schedule):
    handler = Handler(schedule)
    reader = FrameReader(handler)
    for piece in pieces(b"".join(map(wire_bytes, session)), cuts):
        reader.feed(piece)
    while reader.stalled:
        reader.feed(b"")
    assert reader.at_boundary
    assert handler.received == [expected(vector) for vector in session]


def refused(frame: link_pb2.Frame) -> str:
    handler = Handler()
    reader = FrameReader(handler)
    with pytest.raises(ProtocolError) as first:
        reader.feed(encode(frame))
    assert not handler.frames
    for call in (lambda: reader.feed(ALL), lambda: reader.feed(b""), reader.buffers, lambda: reader.received(0)):
        with pytest.raises(ProtocolError) as again:
            call()
        assert again.value.reason == first.value.reason
    assert not handler.frames
    return first.value.reason


def taken(frame: link_pb2.Frame) -> None:
    handler = Handler()
    FrameReader(handler).feed(encode(frame))
    assert handler.frames == [frame]


HELLO = {"version": 1, "role": link_pb2.PROXY, "instance": ID}
VALID = {
    "hello": HELLO,
    "namespace": {"migration": ID, "name": "web"},
    "snapshot": {"migration": ID, "index": 1, "label": ""},
    "image": {"migration": ID, "image": 0, "snapshot": 1, "name": "a.img", "mode": link_pb2.APPEND},
    "extent": EXTENT,
    "image_end": {"migration": ID, "image": 0, "size": 0},
    "namespace_end": {"migration": ID, "last": True},
    "held": {"migration": ID, "name": "web", "bytes": 0},
    "commit": {"migration": ID},
    "abort": {"migration": ID, "reason": ""},
    "decided": {"migration": ID, "outcome": link_pb2.UNKNOWN},
    "restored": {"migration": ID},
    "ack": {"frames": 0},
    "resume": {"known": False, "frames": 0, "partial": 0},
    "gap": {},
    "ping": {"nonce": 0},
    "pong": {"nonce": (1 << 64) - 1},
    "fetch": {"request": 0, "migration": ID, "image": 0, "offset": 0, "length": 1},
    "fetched": {"request": 0},
    "error": {"reason": ""},
    "bye": {},
}


def frame_of(kind: str, payload: int | None = None, **changed: object) -> link_pb2.Frame:
    frame = Frame(**{kind: VALID[kind] | changed})
    if payload is not None or kind == "extent":
        frame.payload = 1 if payload is None else payload
    return frame


@pytest.mark.parametrize("kind", VALID)
def test_smallest_frames(kind):
    taken(frame_of(kind))


@pytest.mark.parametrize("kind", sorted(VALID))
def test_ids_have_16_bytes(kind):
    field = "instance" if kind == "hello" else "migration"
    if kind in ("error", *(kind for kind, body in VALID.items() if field in body)):
        for size in (0, 1, 15, 17, 1000):
            assert f"field {kind}.{field} has {size} bytes, not 16" in refused(frame_of(kind, **{field: b"x" * size}))


SUMMARY = {"snapshot": 1, "name": "a.img", "size": 0}


def summary(**changed: object) -> dict:
    return {"images": [SUMMARY, SUMMARY | changed]}


BAD_NAMES = ["", ".", "..", "a/b", "a\0", "a\n", "x" * 256, "é"]
LONG = "x" * (MAX_TEXT + 1)
WRONG = [
    *(("namespace", {"name": name}, "namespace.name") for name in BAD_NAMES),
    *(("held", {"name": name}, "held.name") for name in BAD_NAMES),
    *(("image", {"name": name}, "image.name") for name in BAD_NAMES),
    *(("namespace_end", summary(name=name), "namespace_end.images.name") for name in BAD_NAMES),
    *(("snapshot", {"label": label}, "snapshot.label") for label in ("a\0", "a\n", LONG)),
    ("hello", {"session": b"x" * 15}, "hello.session has 15 bytes"),
    ("hello", {"session": b""}, "hello.session has 0 bytes"),
    ("namespace_end", {"labels": b"x" * 15}, "namespace_end.labels has 15 bytes"),
    ("resume", {"partial": MAX_PAYLOAD + 1}, "resume.partial"),
    ("snapshot", {"index": 0}, "snapshot.index is 0"),
    ("image", {"snapshot": 0}, "image.snapshot is 0"),
    ("image", {"size": MAX_SIZE + 1}, "image.size"),
    ("extent", {"offset": MAX_SIZE}, "extent.offset"),
    ("extent", {"offset": (1 << 64) - 1}, "extent.offset"),
    ("image_end", {"size": MAX_SIZE + 1}, "image_end.size"),
    ("image_end", {"digest": b""}, "image_end.digest has 0 bytes"),
    ("image_end", {"digest": b"x" * 15}, "image_end.digest has 15 bytes"),
    ("image_end", {"digest": b"x" * 17}, "image_end.digest has 17 bytes"),
    ("namespace_end", summary(snapshot=0), "namespace_end.images.snapshot is 0"),
    ("namespace_end", summary(size=MAX_SIZE + 1), "namespace_end.images.size"),
    ("namespace_end", summary(digest=b"x"), "namespace_end.images.digest has 1 bytes"),
    ("fetch", {"length": 0}, "fetch.length is 0"),
    ("fetch", {"length": MAX_PAYLOAD + 1}, "fetch.length is 1048577"),
    ("fetch", {"offset": MAX_SIZE}, "fetch.offset"),
    *(("hello", {field: LONG}, f"hello.{field} has 4097 bytes") for field in ("name", "software")),
    *((kind, {"reason": "é" * 2049}, f"{kind}.reason has 4098 bytes") for kind in ("abort", "error", "bye")),
    *(
        (kind, {"source": {field: LONG}}, f"{kind}.source.{field} has 4097 bytes")
        for kind in ("namespace", "namespace_end")
        for field in ("host", "command", "boot_id")
    ),
]


@pytest.mark.parametrize("kind, changed, reason", WRONG)
def test_wrong_values(kind, changed, reason):
    assert f"link frame: field {reason}" in refused(frame_of(kind, **changed))


@pytest.mark.parametrize(
    "kind, changed",
    [
        ("namespace", {"name": "x" * 255, "source": {"host": "x" * MAX_TEXT, "pid": (1 << 32) - 1}}),
        ("snapshot", {"index": (1 << 32) - 1, "label": "é" * 2048}),
        ("image", {"image": (1 << 32) - 1, "snapshot": (1 << 32) - 1, "size": MAX_SIZE, "name": "x" * 255}),
        ("extent", {"offset": MAX_SIZE - 1}),
        ("image_end", {"size": MAX_SIZE, "digest": ID}),
        ("namespace_end", summary(size=MAX_SIZE, digest=ID)),
        ("fetch", {"length": MAX_PAYLOAD, "offset": MAX_SIZE - MAX_PAYLOAD}),
        ("error", {"reason": "x" * MAX_TEXT, "migration": ID}),
        ("hello", {"version": (1 << 32) - 1, "features": (1 << 64) - 1}),
    ],
)
def test_largest_values(kind, changed):
    taken(frame_of(kind, **changed))


@pytest.mark.parametrize("kind", VALID)
def test_which_frames_have_a_payload(kind):
    if kind == "extent":
        assert "field payload is missing in an extent" in refused(frame_of(kind, payload=0))
        taken(frame_of(kind, payload=MAX_PAYLOAD))
        assert "field payload is 1048577, more than 1048576" in refused(frame_of(kind, payload=MAX_PAYLOAD + 1))
    elif kind == "fetched":
        taken(frame_of(kind, payload=0))
        taken(frame_of(kind, payload=MAX_PAYLOAD))
        assert "field payload is 1048577" in refused(frame_of(kind, payload=MAX_PAYLOAD + 1))
    else:
        taken(frame_of(kind, payload=0))
        assert f"field payload is 1, but {kind} has none" in refused(frame_of(kind, payload=1))


@pytest.mark.parametrize("announced", [0, *FORBIDDEN_LENGTHS])
def test_lengths(announced):
    handler = Handler()
    reader = FrameReader(handler)
    reader.feed(length(announced)[:3])
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            reader.feed(length(announced)[3:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_HEADER
    assert not handler.frames


def test_largest_header():
    frame = frame_of("bye")
    frame.MergeFromString(bytes_field(1000, b"x" * (MAX_HEADER - len(frame.SerializeToString()) - 4)))
    data = encode(frame)
    assert len(data) == 4 + MAX_HEADER
    for cut in (0, 1, 4, 5, MAX_HEADER, MAX_HEADER + 3):
        handler = Handler()
        reader = FrameReader(handler)
        reader.feed(data[:cut])
        reader.feed(data[cut:] + data)
        assert handler.frames == [frame] * 2
    frame.MergeFromString(number_field(1000, 1))
    with pytest.raises(Invalid, match="16387 bytes"):
        encode(frame)


class TestUnknownFrames:
    """A newer peer may send frames that we do not know."""

    @pytest.mark.parametrize("payload", [0, 1, 100, 20_000, MAX_PAYLOAD])
    def test_skipped_with_their_payload(self, payload):
        body = number_field(1, payload) + bytes_field(500, b"future")
        data = prefix(body) + bytes(payload) + wire_bytes(VECTORS[0])
        for step in (len(data), 4096):
            handler = Handler()
            reader = FrameReader(handler)
            for start in range(0, len(data), step):
                reader.feed(data[start : start + step])
            assert handler.received == [expected(VECTORS[0])]
            assert reader.at_boundary

    def test_their_payload_is_bounded_too(self):
        with pytest.raises(ProtocolError, match="field payload is 1048577"):
            FrameReader(Handler()).feed(prefix(number_field(1, MAX_PAYLOAD + 1) + bytes_field(500, b"")))

    @pytest.mark.parametrize("body", [number_field(1, 0), number_field(1, 5)])
    def test_nothing_at_all_is_not_a_frame(self, body):
        with pytest.raises(ProtocolError, match="it has no body"):
            FrameReader(Handler()).feed(prefix(body))

    def test_unknown_fields_of_known_frames_are_ignored(self):
        handler = Handler()
        body = encode(frame_of("commit"))[4:] + bytes_field(500, b"future")
        FrameReader(handler).feed(prefix(body))
        assert handler.frames[0].commit.migration == ID


def test_an_incomplete_frame_is_not_sent():
    with pytest.raises(EncodeError):
        encode(Frame(commit={}))


@pytest.mark.parametrize("text", ["", "reason", "x" * 5000, "é" * 3000, "\U0001f600" * 2000, "a\udc80"])
def test_clip(text):
    taken(frame_of("abort", reason=clip(text)))
    assert clip(text) == text or len(clip(text).encode()) > MAX_TEXT - 4 or "\udc80" in text


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes(data, cuts):
    """Nothing but a ProtocolError, however they are cut."""
    reader = FrameReader(Handler())
    try:
        for piece in pieces(data, cuts):
            reader.feed(piece)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            reader.buffers()


@given(st.integers(0, len(ALL) - 1), st.integers(0, 255), st.lists(st.integers(0, len(ALL)), max_size=4))
def test_one_byte_changed(place, value, cuts):
    """What comes before the changed byte comes through; how the bytes are cut makes no difference."""
    data = ALL[:place] + bytes([value]) + ALL[place + 1 :]
    results = []
    for parts in ([data], list(pieces(data, cuts))):
        handler = Handler()
        reader = FrameReader(handler)
        try:
            for part in parts:
                reader.feed(part)
            error = None
        except ProtocolError as caught:
            error = caught.reason
        results.append((handler.received, error))
    assert results[0] == results[1]
    whole, start = 0, 0
    while start + len(wire_bytes(VECTORS[whole])) <= place:
        start += len(wire_bytes(VECTORS[whole]))
        whole += 1
    assert results[0][0][:whole] == [expected(vector) for vector in VECTORS[:whole]]
