"""The window: what is kept until the cache has it."""

from __future__ import annotations

from typing import Any

from criu_relay.link.chunk import Chunk, Part
from criu_relay.link.window import Window
from criu_relay.store.arena import LARGEST, Arena
from tests.link.support import Producer

MIB = 1 << 20


def chunk(window: Window, size: int, filled: int) -> Part:
    extent = window.allocate(size)
    assert extent is not None
    return Part(Chunk(extent, 0), True, 0, 0, ((filled, False),))


def window(limit: int = 4 * MIB) -> Window:
    return Window(Arena(limit, keep=limit))


def test_acknowledged_in_order() -> None:
    made = window()
    for filled in (100, 200, 300):
        made.scheduled(chunk(made, LARGEST, filled))
    assert made.sent == 600
    used = []
    for count in (0, 99, 100, 299, 300, 600, 600, 5):
        assert made.acknowledged(count) is True
        used.append(made.used // MIB)
    assert used == [3, 3, 2, 2, 1, 0, 0, 0]
    assert made.recycled == 3 * MIB


def test_an_extent_goes_with_its_last_part() -> None:
    made = window()
    whole = chunk(made, LARGEST, 300)
    for last, runs in ((False, ((100, False),)), (False, ((8192, True),)), (True, ((200, False),))):
        made.scheduled(Part(whole.chunk, last, 0, 0, runs))
    assert made.sent == 8492
    for count, used in ((100, MIB), (8292, MIB), (8491, MIB), (8492, 0)):
        assert made.acknowledged(count)
        assert made.used == used


def test_what_was_sent_in_part_goes_when_that_is_acknowledged() -> None:
    made = window()
    part = chunk(made, LARGEST, 100)
    made.scheduled(Part(part.chunk, False, 0, 0, part.runs))
    made.release(part.chunk.extent, sent=True)
    assert made.used == MIB
    assert made.acknowledged(100)
    assert made.used == 0


def test_more_than_was_sent() -> None:
    made = window()
    made.scheduled(chunk(made, LARGEST, 100))
    assert made.acknowledged(101) is False
    assert made.used == MIB


def test_producers_wait_for_room() -> None:
    made = window(MIB)
    producer, other = Producer(), Producer()
    made.scheduled(chunk(made, LARGEST, MIB))
    assert made.allocate(1) is None
    for _ in range(3):
        made.wait(producer)
    made.wait(other)
    made.forget(other)
    made.forget(other)
    made.acknowledged(MIB)
    assert producer.calls == ["resume"]
    assert other.calls == []
    made.acknowledged(MIB)
    assert producer.calls == ["resume"]


def test_one_that_waits_again_while_it_is_resumed() -> None:
    made = window(MIB)
    calls: list[int] = []

    class Greedy(Producer):
        def resumeProducing(self) -> None:
            calls.append(1)
            made.wait(self)

    made.scheduled(chunk(made, LARGEST, MIB))
    made.wait(Greedy())
    made.acknowledged(MIB)
    assert calls == [1]


def test_nobody_is_resumed_without_room() -> None:
    made = window(MIB)
    producer = Producer()
    forced = made.force(LARGEST)
    made.wait(producer)
    made.scheduled(Part(Chunk(made.force(LARGEST), 0), True, 0, 0, ((10, False),)))
    made.acknowledged(10)
    assert producer.calls == [], "the budget is still used up"
    made.release(forced)
    assert producer.calls == ["resume"]
    assert made.used == 0


def test_a_lost_link_frees_everything_and_never_reuses_the_pages() -> None:
    made = window(2 * MIB)
    freed: list[bool] = []
    arena: Any = made._arena
    free = arena.free
    arena.free = lambda extent, shared=False: (freed.append(shared), free(extent, shared))
    producer = Producer()
    made.scheduled(chunk(made, LARGEST, 10))
    made.scheduled(chunk(made, LARGEST, 10))
    made.wait(producer)
    made.link_lost()
    assert freed == [True, True]
    assert made.used == made.sent == 0
    assert producer.calls == ["resume"]
    assert made.acknowledged(1) is False


def test_limits() -> None:
    made = window(MIB)
    assert made.limit == MIB
    assert made.recycled == 0
