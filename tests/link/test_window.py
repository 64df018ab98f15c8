"""The window: what is kept until the cache has it."""

from __future__ import annotations

from twisted.internet.task import Clock

from criu_relay.link.chunk import Chunk
from criu_relay.link.window import Window
from criu_relay.store.arena import Arena
from tests.link.support import Producer

MIB = 1 << 20


def chunk(window: Window, size: int) -> Chunk:
    extent = window.allocate(size)
    assert extent is not None
    return Chunk(extent, 0)


def window(limit: int = 4 * MIB) -> Window:
    return Window(Arena(limit, keep=limit), Clock())


def test_producers_wait_for_room() -> None:
    made = window(MIB)
    producer, other = Producer(), Producer()
    only = chunk(made, MIB)
    assert made.allocate(1) is None
    for _ in range(3):
        made.waiting.add(producer)
    made.waiting.add(other)
    made.waiting.forget(other)
    made.waiting.forget(other)
    made.release(only)
    assert producer.calls == ["resume"]
    assert other.calls == []
    made.release(chunk(made, MIB))
    assert producer.calls == ["resume"]


def test_one_that_waits_again_while_it_is_resumed() -> None:
    made = window(MIB)
    calls: list[int] = []

    class Greedy(Producer):
        def resumeProducing(self) -> None:
            calls.append(1)
            made.waiting.add(self)

    only = chunk(made, MIB)
    made.waiting.add(Greedy())
    made.release(only)
    assert calls == [1]


def test_nobody_is_resumed_without_room() -> None:
    made = window(MIB)
    producer = Producer()
    forced = made.force(MIB)
    made.waiting.add(producer)
    made.release(Chunk(made.force(MIB), 0))
    assert producer.calls == [], "the budget is still used up"
    made.release(Chunk(forced, 0))
    assert producer.calls == ["resume"]
    assert made.used == 0


def test_limits() -> None:
    made = window(MIB)
    assert made.limit == MIB
    assert made.recycled == 0
