"""Who waits for room goes on a few at a time, and nobody waits for one that has nothing to write."""

from __future__ import annotations

from criu_relay.flow.pipes import DEFAULT_PIPE
from criu_relay.link.waiting import Waiting
from tests.link.support import Producer
from tests.store.support import Turns


class Room:
    """Room that the test gives and producers take."""

    def __init__(self, producers: int) -> None:
        self.clock = Turns()
        self.room = 0
        self.waiting = Waiting(self.clock, lambda: self.room)
        self.producers = [Producer() for _ in range(producers)]
        for producer in self.producers:
            self.waiting.add(producer)

    def gives(self, room: int) -> list[int]:
        """How often each was resumed up to now."""
        self.room = room
        self.waiting.resume()
        return self.resumed

    @property
    def resumed(self) -> list[int]:
        return [producer.calls.count("resume") for producer in self.producers]

    def turn(self) -> list[int]:
        self.clock.turn()
        return self.resumed


def test_as_many_as_there_is_room_for_in_the_order_they_came() -> None:
    made = Room(5)
    assert made.gives(0) == [0, 0, 0, 0, 0]
    assert made.gives(-1) == [0, 0, 0, 0, 0]
    assert made.gives(1) == [1, 0, 0, 0, 0]
    made.room = 0
    assert made.turn() == [1, 0, 0, 0, 0], "the first has taken it"
    assert made.gives(2 * DEFAULT_PIPE) == [1, 1, 1, 0, 0]
    assert made.gives(2 * DEFAULT_PIPE) == [1, 1, 1, 0, 0], "once in a turn"


def test_nobody_waits_for_one_that_does_not_write() -> None:
    made = Room(4)
    assert made.gives(DEFAULT_PIPE) == [1, 0, 0, 0]
    assert made.turn() == [1, 1, 0, 0]
    assert made.turn() == [1, 1, 1, 0]
    assert made.turn() == [1, 1, 1, 1]
    assert made.clock.getDelayedCalls() == []


def test_one_that_waits_twice_is_resumed_once_and_one_that_is_forgotten_never() -> None:
    made = Room(3)
    made.waiting.add(made.producers[0])
    made.waiting.forget(made.producers[1])
    made.waiting.forget(made.producers[1])
    assert made.gives(1 << 20) == [1, 0, 1]
    assert made.clock.getDelayedCalls() == []


def test_who_takes_room_while_he_is_resumed() -> None:
    """What that frees again resumes the next, and nobody twice."""
    made = Room(4)

    def takes() -> None:
        made.producers[0].calls.append("resume")
        made.waiting.resume()

    made.producers[0].resumeProducing = takes  # type: ignore[method-assign]
    assert made.gives(DEFAULT_PIPE) == [1, 1, 0, 0]
    while made.clock.getDelayedCalls():
        made.turn()
    assert made.resumed == [1, 1, 1, 1]


def test_nobody_is_tried_again_and_again_while_there_is_too_little_room() -> None:
    """A producer may want more at a time than there is."""
    made = Room(4)
    assert made.gives(DEFAULT_PIPE) == [1, 0, 0, 0]
    made.waiting.add(made.producers[0])
    for _ in range(3):
        assert made.turn() == [1, 0, 0, 0]
    assert made.gives(DEFAULT_PIPE) == [1, 1, 0, 0]
    made.waiting.add(made.producers[1])
    assert made.gives(DEFAULT_PIPE) == [1, 1, 0, 0], "the next turn has come to nobody yet"
    assert made.turn() == [1, 1, 1, 0], "what came since is for the next of them"
    while made.clock.getDelayedCalls():
        made.turn()
    assert made.resumed == [2, 2, 1, 1]
