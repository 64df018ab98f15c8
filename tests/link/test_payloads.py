"""Payloads on their way in, where an image takes only a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from criu_relay.errors import OutOfMemory, RelayError
from criu_relay.interfaces import Room
from criu_relay.link.payloads import DroppedPayload, ExtentSink, SparseSink
from criu_relay.link.sessions import Session
from criu_relay.wire import link as wire
from tests.link.support import OWNER


class Image:
    """Has so many rooms of ten bytes; what is written into them is counted."""

    size = 0

    def __init__(self, rooms: int, grows: int = 1 << 30) -> None:
        self.rooms, self.grows = rooms, grows
        self.said: list[Any] = []

    def reserve(self, size: int) -> Room:
        self.rooms -= 1
        if self.rooms < 0:
            raise OutOfMemory("it is full")
        return Room(-1, 0, memoryview(bytearray(10)))

    def written(self, count: int) -> None:
        self.grow([count])

    def grow(self, runs: Sequence[int]) -> None:
        self.grows -= 1
        if self.grows < 0:
            raise OutOfMemory("it is full")
        self.said.append(list(runs))


class Refusing:
    """Stands for the receiver."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.bytes = 0

    def refuse(self, session: Session, migration: bytes, error: RelayError) -> None:
        self.refused.append(error.reason)

    def took(self, connection: Any, count: int) -> None:
        self.bytes += count


def fill(sink: Any, *counts: int) -> None:
    """As a reader does it."""
    left = sum(counts)
    for count in counts:
        room = sink.room(left)
        assert room is not None and len(room) >= count
        sink.filled(count)
        left -= count
    sink.done()


@pytest.mark.parametrize(("rooms", "grows"), [(1, 9), (9, 1)], ids=["no room", "no growth"])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_an_image_does_not_take_is_dropped_and_counted(rooms: int, grows: int, sparse: bool) -> None:
    receiver: Any = Refusing()
    session, image = Session(OWNER, b"s" * 16), Image(rooms, grows)
    common: Any = (receiver, session, None, b"m" * 16, image)
    sink = SparseSink(*common, [30, wire.PAGE]) if sparse else ExtentSink(*common)
    session.charged = True
    fill(sink, 10, 10, 10)
    assert image.said == [[10]], "nothing of it is written once something is missing"
    assert receiver.refused == ["it is full"]
    assert (receiver.bytes, session.frames, session.partial, session.owed) == (30, 1, 0, 30)
    assert not session.charged


def test_what_is_dropped_has_room_for_the_largest_payload_at_once() -> None:
    receiver: Any = Refusing()
    sink = ExtentSink(receiver, Session(OWNER, b"s" * 16), None, b"m" * 16, Image(0))  # type: ignore[arg-type]
    fill(sink, wire.MAX_PAYLOAD)
    assert receiver.bytes == wire.MAX_PAYLOAD


def test_zeros_are_taken_with_what_is_behind_them_and_the_last_ones_at_the_end() -> None:
    receiver: Any = Refusing()
    image = Image(9)
    runs = [10, wire.PAGE, 10, 2 * wire.PAGE]
    fill(SparseSink(receiver, Session(OWNER, b"s" * 16), None, b"m" * 16, image, runs), 10, 4, 6)  # type: ignore[arg-type]
    assert image.said == [[10], [0, wire.PAGE, 4], [6], [0, 2 * wire.PAGE, 0]]


def test_a_payload_that_nobody_wants_is_acknowledged() -> None:
    receiver: Any = Refusing()
    session = Session(OWNER, b"s" * 16)
    fill(DroppedPayload(receiver, session, None, 20), 15, 5)  # type: ignore[arg-type]
    assert (receiver.bytes, session.frames, session.owed) == (20, 1, 20)
