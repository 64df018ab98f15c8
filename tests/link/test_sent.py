"""What was sent and is not acknowledged: freed in order, sent again from where the cache is."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from criu_relay.errors import LinkLost, ProtocolError
from criu_relay.flow.frames import MemfdRange, OutFrame
from criu_relay.link.sent import GAP, Sent, SentLog
from criu_relay.link.window import Chunk, Window
from criu_relay.store.arena import Arena
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from tests.link.support import MIB, Producer, frames, migration


class Outgoing:
    """A migration that is alive until the test says otherwise."""

    dead: Any = None


class Log:
    """A log, its window, and what it frees."""

    def __init__(self, limit: int = 4 * MIB) -> None:
        self.arena: Any = Arena(limit, keep=limit)
        self.window = Window(self.arena, Clock())
        self.log = SentLog(self.window)
        self.freed: list[bool] = []
        free = self.arena.free
        self.arena.free = lambda extent, shared=False: (self.freed.append(shared), free(extent, shared))
        self.outgoing: Any = Outgoing()

    def extent(self, data: bytes, offset: int = 0, outgoing: Any = None) -> OutFrame:
        """One more frame with a payload."""
        extent = self.window.allocate(MIB)
        assert extent is not None
        extent.view[: len(data)] = data
        body = link_pb2.Extent(migration=migration(1), image=1, offset=offset)
        header = wire.encode(link_pb2.Frame(extent=body, payload=len(data)))
        frame = OutFrame(header, MemfdRange(extent.fd, extent.offset, extent.view[: len(data)]))
        self.log.add(Sent(outgoing or self.outgoing, frame, len(data), Chunk(extent, offset, len(data))))
        return frame

    def control(self, asks: bool = False) -> OutFrame:
        """One more frame without."""
        frame = OutFrame(wire.encode(link_pb2.Frame(ping={"nonce": 1})))
        self.log.add(Sent(self.outgoing, frame, asks=asks))
        return frame

    def again(self) -> list[OutFrame]:
        """Everything that is sent again."""
        return list(iter(self.log.next_again, None))


def test_memory_is_freed_in_order() -> None:
    made = Log()
    made.extent(b"a")
    made.control()
    made.extent(b"b")
    used = []
    for count in (0, 1, 2, 2, 3, 1):
        made.log.acknowledged(count)
        used.append(made.window.used // MIB)
    assert used == [2, 1, 1, 1, 0, 0]
    assert made.freed == [False, False]


def test_more_than_was_sent() -> None:
    made = Log()
    made.extent(b"a")
    with pytest.raises(ProtocolError, match=r"ack\.frames is 2, only 1 were sent"):
        made.log.acknowledged(2)


def test_what_is_to_be_sent_again_is_not_acknowledged_before_it_is() -> None:
    made = Log()
    for _ in range(3):
        made.control()
    made.log.resume(1, 0)
    with pytest.raises(ProtocolError, match="only 1 were sent"):
        made.log.acknowledged(2)
    made.log.next_again()
    made.log.acknowledged(2)


def test_goes_on_where_the_cache_is() -> None:
    made = Log()
    made.extent(b"gone")
    first, second, third = made.control(), made.extent(b"0123456789", 40), made.control()
    made.log.resume(1, 0)
    assert made.again() == [first, second, third]
    made.log.resume(2, 4)
    rest, last = made.again()
    assert last is third
    assert rest.payload_size == 6
    assert isinstance(rest.payload, MemfdRange)
    [(header, payload)] = frames(rest.header + bytes(rest.payload.view))
    assert (header.extent.offset, payload) == (44, b"456789")


@pytest.mark.parametrize(("handled", "partial"), [(1, 10), (1, 11), (0, 1), (3, 1)])
def test_a_part_that_cannot_be(handled: int, partial: int) -> None:
    made = Log()
    made.control()
    made.extent(b"0123456789")
    made.control()
    with pytest.raises(ProtocolError, match=r"resume\.partial"):
        made.log.resume(handled, partial)


def test_a_gap_where_a_migration_was_given_up() -> None:
    made = Log()
    other: Any = Outgoing()
    made.extent(b"given up")
    kept = made.extent(b"kept", outgoing=other)
    made.outgoing.dead = LinkLost("given up")
    made.log.resume(0, 3)
    assert made.again() == [GAP, kept]
    assert made.freed == [True], "the kernel may still refer to the pages of a frame that was not acknowledged"
    made.log.resume(0, 3)
    assert made.again() == [GAP, kept]
    made.log.acknowledged(2)
    assert made.freed == [True, False]


def test_what_was_passed_on_is_a_gap() -> None:
    made = Log()
    made.log.add(Sent(made.outgoing, None, 100))
    made.log.resume(0, 99)
    assert made.again() == [GAP]


def test_a_question_whose_answer_was_lost_is_asked_again() -> None:
    made = Log()
    asked, other = made.control(asks=True), made.control()
    made.log.resume(1, 0)
    assert made.again() == [other, asked]
    made.log.resume(1, 0)
    assert made.again() == [other, asked]
    made.log.acknowledged(3)
    made.log.resume(3, 0)
    assert made.again() == []


def test_another_session_frees_everything_and_never_reuses_the_pages() -> None:
    made = Log(2 * MIB)
    producer = Producer()
    before = made.log.session
    made.extent(b"a")
    made.extent(b"b")
    made.window.waiting.add(producer)
    made.log.begin()
    assert made.freed == [True, True]
    assert made.window.used == 0
    assert producer.calls == ["resume"]
    assert len(made.log.session) == 16
    assert made.log.session != before
    with pytest.raises(ProtocolError):
        made.log.acknowledged(1)
