"""Memory comes back a bounded number of extents per turn."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from criu_relay.store.arena import LARGEST, SMALLEST, Arena, Extent
from criu_relay.store.reclaim import EXTENTS_PER_TURN, TRIM_PER_TURN, Reclaimer

MIB = 1 << 20


class Turns(Clock):
    """A reactor's time that goes on turn by turn: what is asked for in one turn comes in the next."""

    def turn(self) -> bool:
        """One turn; False: nothing was due."""
        due = list(self.getDelayedCalls())
        for call in due:
            self.calls.remove(call)
            call.func(*call.args, **call.kw)
        return bool(due)


def taken(arena: Arena, count: int, size: int = SMALLEST) -> list[Extent]:
    extents = [arena.allocate(size) for _ in range(count)]
    assert None not in extents
    return [extent for extent in extents if extent]


def test_a_bounded_number_per_turn() -> None:
    clock, arena = Turns(), Arena(4 * MIB, keep=4 * MIB)
    reclaimer = Reclaimer(clock, arena)
    reclaimer.reclaim(taken(arena, 2 * EXTENTS_PER_TURN + 1), False)
    assert reclaimer.waiting == (2 * EXTENTS_PER_TURN + 1) * SMALLEST == arena.used
    left = []
    while clock.turn():
        left.append(arena.used // SMALLEST)
    assert left == [EXTENTS_PER_TURN + 1, 1, 0]
    assert reclaimer.waiting == 0


def test_one_turn_for_many_calls() -> None:
    clock, arena = Clock(), Arena(4 * MIB, keep=4 * MIB)
    reclaimer = Reclaimer(clock, arena)
    for extent in taken(arena, 10):
        reclaimer.reclaim([extent], True)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert arena.used == 0
    assert clock.getDelayedCalls() == []


def test_surplus_is_trimmed_over_turns() -> None:
    clock, arena = Turns(), Arena(8 * MIB, keep=0)
    reclaimer = Reclaimer(clock, arena)
    reclaimer.reclaim(taken(arena, 8, LARGEST), False)
    turns = []
    while clock.turn():
        turns.append(arena.recycled)
    assert turns == list(range(8 * MIB - TRIM_PER_TURN, -1, -TRIM_PER_TURN))


def test_drain_gives_back_at_once() -> None:
    clock, arena = Clock(), Arena(4 * MIB, keep=4 * MIB)
    reclaimer = Reclaimer(clock, arena)
    reclaimer.reclaim(taken(arena, 1000), False)
    reclaimer.drain()
    assert arena.used == 0
    clock.advance(0)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("shared", [False, True])
def test_it_passes_on_whether_pages_are_shared(shared: bool) -> None:
    clock, arena = Clock(), Arena(4 * MIB, keep=4 * MIB)
    extents = taken(arena, 1, LARGEST)
    extents[0].view[:4] = b"warm"
    Reclaimer(clock, arena).reclaim(extents, shared)
    clock.advance(0)
    again = taken(arena, 1, LARGEST)[0]
    assert bytes(again.view[:4]) == (bytes(4) if shared else b"warm")
