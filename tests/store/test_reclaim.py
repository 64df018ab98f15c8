"""Memory comes back a bounded number of pages per turn."""

from __future__ import annotations

import numpy
import pytest

from criu_relay.store.arena import SMALLEST, Arena
from criu_relay.store.pages import PageIndex, Pages
from criu_relay.store.reclaim import PAGES_PER_TURN, TRIM_PER_TURN, Reclaimer
from tests.store.support import Turns

EXTENT = 256 * SMALLEST


class Bench:
    def __init__(self, memory: int, keep: int) -> None:
        self.clock = Turns()
        self.arena = Arena(memory, keep)
        self.pages = Pages(self.arena)
        self.index = PageIndex(self.pages)
        self.reclaimer = Reclaimer(self.clock, self.pages)

    def taken(self, extents: int, size: int = EXTENT) -> numpy.ndarray:
        """The numbers of the pages of so many extents."""
        found = []
        for _ in range(extents):
            assert self.arena.reserve(size)
            first = self.arena.take(size)
            self.pages.own(first, size // SMALLEST)
            found.append(numpy.arange(first, first + size // SMALLEST))
        return numpy.concatenate(found)


def test_a_bounded_number_per_turn() -> None:
    bench = Bench(16 * EXTENT, 16 * EXTENT)
    numbers = bench.taken(9)
    bench.reclaimer.reclaim(numbers, bench.index)
    assert bench.reclaimer.waiting == 9 * EXTENT == bench.arena.used
    left = []
    while bench.clock.turn():
        left.append(bench.arena.used // SMALLEST)
    assert left == [len(numbers) - PAGES_PER_TURN, len(numbers) - 2 * PAGES_PER_TURN, 0]
    assert bench.reclaimer.waiting == 0


def test_one_turn_for_many_calls() -> None:
    bench = Bench(4 * EXTENT, 4 * EXTENT)
    for _ in range(3):
        bench.reclaimer.reclaim(bench.taken(1), bench.index)
    assert len(bench.clock.getDelayedCalls()) == 1


def test_surplus_is_trimmed_over_turns() -> None:
    bench = Bench(3 * TRIM_PER_TURN, 3 * TRIM_PER_TURN)
    bench.reclaimer.reclaim(bench.taken(3, TRIM_PER_TURN), bench.index)
    while bench.clock.turn():
        pass
    bench.arena.keep = 0
    bench.reclaimer.schedule()
    bench.clock.turn()
    assert bench.arena.recycled == 2 * TRIM_PER_TURN
    while bench.clock.turn():
        pass
    assert bench.arena.recycled == 0


def test_what_is_on_its_way_is_obtained_at_once_and_no_more_than_needed() -> None:
    bench = Bench(8 * EXTENT, 8 * EXTENT)
    bench.reclaimer.reclaim(bench.taken(8), bench.index)
    assert bench.reclaimer.obtain(EXTENT)
    assert bench.arena.reserved == EXTENT
    assert bench.reclaimer.waiting == 8 * EXTENT - PAGES_PER_TURN * SMALLEST
    assert not bench.reclaimer.obtain(8 * EXTENT)
    assert bench.arena.reserved == EXTENT


def test_who_waits_is_told_after_each_turn() -> None:
    bench = Bench(8 * EXTENT, 8 * EXTENT)
    used: list[int] = []
    bench.reclaimer.freed = lambda: used.append(bench.arena.used)
    bench.reclaimer.reclaim(bench.taken(8), bench.index)
    while bench.clock.turn():
        pass
    assert used == [4 * EXTENT, 0]


@pytest.mark.parametrize("passed", [False, True])
def test_pages_that_a_pipe_may_refer_to_are_not_written_again(passed: bool) -> None:
    bench = Bench(4 * EXTENT, 4 * EXTENT)
    numbers = bench.taken(1)
    bench.arena.view(int(numbers[0]), 1)[:4] = b"warm"
    if passed:
        bench.pages.passed(numbers[5:6])
    bench.reclaimer.reclaim(numbers, bench.index)
    bench.clock.turn()
    again = bench.taken(1)
    assert bytes(bench.arena.view(int(again[0]), 1)[:4]) == (bytes(4) if passed else b"warm")
