"""Frames of one image that have come together are taken together, and each counts as if it had come by itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from criu_relay.errors import LinkLost
from criu_relay.link.payloads import LARGE_IMAGE, ExtentSink
from criu_relay.link.sessions import Session
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from tests.link.session import FIRST
from tests.link.support import MIB, OWNER, Loop

MEMORY = 1 << 30
"""So much that the image may take more ahead than it needs."""

COUNT = 24
DATA = random.Random(3).randbytes(wire.PAGE + COUNT * MIB)
AT_ONCE = {"all": [1 << 30], "one and a bit": [MIB + 100], "odd": [3 * MIB + 17, 40, 700_001]}


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bool]]]:
    """How many came together, each time, and whether they were taken."""
    seen: list[tuple[int, bool]] = []
    follow = ExtentSink.follow

    def watched(self: ExtentSink, frames: int, size: int) -> bool:
        seen.append((frames, follow(self, frames, size)))
        return seen[-1][1]

    monkeypatch.setattr(ExtentSink, "follow", watched)
    yield seen


def begin(loop: Loop) -> None:
    loop.cache.say(
        Frame(namespace=link_pb2.Namespace(migration=FIRST, name="web")),
        Frame(snapshot=link_pb2.Snapshot(migration=FIRST, index=1, label="")),
        Frame(image=link_pb2.Image(migration=FIRST, image=1, snapshot=1, name="a", mode=link_pb2.REPLACE)),
        # There is credit for no more, before that is spent.
        Frame(extent=link_pb2.Extent(migration=FIRST, image=1, offset=0)),
        payload=DATA[: wire.PAGE],
    )


def extents(first: int, stop: int) -> bytes:
    """Some MiB of the data behind the first page, a frame each."""
    said = b""
    for offset in range(wire.PAGE + first * MIB, wire.PAGE + stop * MIB, MIB):
        extent = link_pb2.Extent(migration=FIRST, image=1, offset=offset)
        said += wire.encode(Frame(extent=extent, payload=MIB)) + DATA[offset : offset + MIB]
    return said


def receive(loop: Loop, data: bytes, at_once: Sequence[int] = (1 << 30,)) -> None:
    """As a socket gives them."""
    connection, left, times = loop.cache.connection, memoryview(data), 0
    while left:
        most, count = min(at_once[times % len(at_once)], len(left)), 0
        for buffer in connection.buffers():
            part = left[count:most][: len(buffer)]
            buffer[: len(part)] = part
            count += len(part)
        connection.received(count)
        connection.turn_ended()
        left, times = left[count:], times + 1


def held(image: Any) -> bytes:
    data = bytearray()
    while len(data) < image.size:
        data += image.piece(len(data)).view(MIB)
    return bytes(data)


@pytest.mark.parametrize("how", AT_ONCE)
def test_all_of_it_is_there_and_counted(how: str, together: list[tuple[int, bool]]) -> None:
    loop = Loop(window=1 << 63, memory=MEMORY).connect()
    begin(loop)
    receive(loop, extents(0, COUNT), AT_ONCE[how])
    image = loop.store._generations[FIRST].image(1)
    (session,) = loop.receiver.links.values()
    assert held(image) == DATA
    assert how != "all" or max(frames for frames, _ in together) == wire.FRAMES_TOGETHER - 1
    assert session.frames == 4 + COUNT
    assert loop.cache.connection.payload_bytes == len(DATA)
    assert loop.receiver._counters.values["link_bytes_in"] == len(DATA)
    assert how == "one and a bit" or sum(frames for frames, taken in together if taken) >= COUNT // 3
    loop.clock.advance(1)
    acknowledged = [frame.ack.frames for frame, _ in loop.cache.heard() if frame.HasField("ack")]
    assert acknowledged[-1] == 4 + COUNT
    assert session.owed == 0


def test_no_more_than_there_is_credit_for(together: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond it ends the migration, and nothing else; it is thrown away, and counted."""
    loop = Loop(window=1 << 63, memory=MEMORY).connect()
    begin(loop)
    monkeypatch.setattr(loop.store.credits, "share", lambda: None)
    receive(loop, extents(0, COUNT))
    (session,) = loop.receiver.links.values()
    (error,) = [frame.error for frame, _ in loop.cache.heard() if frame.HasField("error")]
    assert (error.migration, error.reason.split(":")[0]) == (FIRST, "more was sent than the cache has room for")
    assert any(taken for _, taken in together) and not all(taken for _, taken in together)
    assert session.frames == 4 + COUNT
    assert loop.cache.connection.up
    loop.clock.advance(1)
    assert loop.store_arena.used == 0


@pytest.mark.parametrize("when", ["refused", "gone"])
def test_nothing_is_added_to_what_was_given_up(when: str, together: list[tuple[int, bool]]) -> None:
    loop = Loop(window=1 << 63, memory=MEMORY).connect()
    begin(loop)
    received = extents(0, 8)
    behind = extents(8, 12)
    header = len(behind) // 4 - MIB
    receive(loop, received + behind[:header])
    (session,) = loop.receiver.links.values()
    connection = loop.cache.connection
    buffers = connection.buffers()
    assert len(buffers) > 2, "more is foreseen"
    count = header
    for buffer in buffers:
        part = behind[count : count + len(buffer)]
        buffer[: len(part)] = part
        count += len(part)
    together.clear()
    if when == "refused":
        loop.receiver.rejected(FIRST, "somebody discarded it")
    else:
        session.migrations.clear()
    connection.received(count - header)
    assert together == [(3, False)]


def test_a_link_that_is_being_closed_takes_nothing_more() -> None:
    """The next one brings it again."""
    loop = Loop(window=1 << 63, memory=MEMORY, patience=60.0).connect()
    begin(loop)
    receive(loop, extents(0, 6))
    (session,) = loop.receiver.links.values()
    image, connection = loop.store._generations[FIRST].image(1), loop.cache.connection
    sink = ExtentSink(loop.receiver, session, connection, FIRST, image)
    image.reserve(MIB)
    connection.fail(LinkLost("the proxy has made another link"))
    assert not sink.follow(1, MIB)
    assert (image.size, session.frames) == (wire.PAGE + 6 * MIB, 10)


def test_frames_that_follow_are_owed_an_acknowledgement() -> None:
    session = Session(OWNER, b"s" * 16, frames=4, owed=7)
    session.followed(3, 30)
    assert (session.frames, session.owed) == (7, 37)


@pytest.mark.parametrize("size", [LARGE_IMAGE - 1, LARGE_IMAGE])
def test_only_a_large_image_has_room_for_more_than_a_frame(size: int) -> None:
    asked: list[int] = []

    class Image:
        def reserve(self, count: int) -> Any:
            asked.append(count)
            return type("Room", (), {"view": memoryview(b"")})

    image: Any = Image()
    image.size = size
    ExtentSink(None, None, None, FIRST, image).room(1000)  # type: ignore[arg-type]
    assert asked == [1000 + (MIB if size >= LARGE_IMAGE else 0)]
