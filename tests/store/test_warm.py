"""Free memory that has its pages ahead of time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from criu_relay.store.arena import LARGEST, Arena
from criu_relay.store.warm import LOOK_SECONDS, PAUSE_SECONDS, Warmer

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(16 * MIB, keep=4 * MIB)
    yield made
    made.close()


def resident(arena: Arena) -> int:
    """Bytes of the memfds that have pages."""
    return sum(os.fstat(region.fd).st_blocks * 512 for region in arena._regions)


def test_memory_gets_its_pages_up_to_what_is_kept(arena: Arena) -> None:
    assert arena.warm(MIB) is True
    assert (arena.recycled, resident(arena)) == (MIB, MIB)
    assert arena.warm(100 * MIB) is False
    assert (arena.recycled, resident(arena)) == (4 * MIB, 4 * MIB)
    assert arena.warm(MIB) is False
    extents = [arena.allocate(LARGEST) for _ in range(4)]
    assert resident(arena) == 4 * MIB, "what is allocated is what was warm"
    assert arena.recycled == 0
    assert arena.warm(100 * MIB) is False
    assert arena.recycled == 4 * MIB
    for extent in extents:
        assert extent is not None
        arena.free(extent)


def test_the_budget_is_not_passed() -> None:
    arena = Arena(3 * MIB, keep=3 * MIB)
    extent = arena.allocate(LARGEST)
    assert extent is not None
    while arena.warm(MIB):
        pass
    assert arena.used + arena.recycled <= arena.limit
    arena.free(extent)
    arena.close()


def test_punched_memory_gets_them_again(arena: Arena) -> None:
    extent = arena.allocate(LARGEST)
    assert extent is not None
    extent.view[0] = 1
    arena.free(extent, shared=True)
    while arena.trim(MIB):
        pass
    assert resident(arena) == 0
    assert arena.warm(100 * MIB) is False
    assert resident(arena) == 4 * MIB


def test_it_works_a_little_at_a_time_and_not_while_images_come(arena: Arena) -> None:
    clock = Clock()
    warmer = Warmer(clock, arena)
    warmer.startService()
    assert arena.recycled == MIB
    clock.advance(PAUSE_SECONDS)
    assert arena.recycled == 2 * MIB
    extent = arena.allocate(LARGEST)
    clock.advance(PAUSE_SECONDS)
    assert arena.recycled == MIB, "an image comes"
    clock.pump([LOOK_SECONDS] * 10)
    assert arena.recycled == 4 * MIB
    warmer.stopService()
    assert clock.getDelayedCalls() == []
    assert extent is not None
    arena.free(extent)
