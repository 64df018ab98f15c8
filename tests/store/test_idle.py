"""Free memory that has its pages ahead of time, and pages that are compared when there is time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest

from criu_relay.interfaces import IGrowing, Mode
from criu_relay.store.arena import LARGEST, Arena
from criu_relay.store.idle import BYTES_PER_TURN, LOOK_SECONDS, PAUSE_SECONDS, Idle
from criu_relay.store.opened import read_bytes
from criu_relay.store.policy import Dedup
from criu_relay.wire.link import ENTRY, PAGE, extent_cost
from tests.store.support import ALICE, Bench, digest

MIB = 1 << 20
PAGES = LARGEST // PAGE


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(16 * LARGEST, keep=4 * LARGEST)
    yield made
    made.close()


def resident(arena: Arena) -> int:
    """Bytes of the memfds that have pages."""
    return sum(os.fstat(region.fd).st_blocks * 512 for region in arena._regions)


def test_memory_gets_its_pages_up_to_what_is_kept(arena: Arena) -> None:
    assert arena.warm(LARGEST) is True
    assert (arena.recycled, resident(arena)) == (LARGEST, LARGEST)
    assert arena.warm(100 * LARGEST) is False
    assert (arena.recycled, resident(arena)) == (4 * LARGEST, 4 * LARGEST)
    assert arena.warm(LARGEST) is False
    extents = [arena.allocate(LARGEST) for _ in range(4)]
    assert resident(arena) == 4 * LARGEST, "what is allocated is what was warm"
    assert arena.recycled == 0
    assert arena.warm(100 * LARGEST) is False
    assert arena.recycled == 4 * LARGEST
    for extent in extents:
        assert extent is not None
        arena.free(extent)


def test_a_large_place_is_warmed_over_some_turns(arena: Arena) -> None:
    """What is taken before all of it is warm goes on as if it were."""
    for part in (1, 2, 3):
        assert arena.warm(MIB) is True
        assert (arena.recycled, resident(arena)) == (0, part * MIB)
    assert arena.warm(MIB) is True
    assert (arena.recycled, resident(arena)) == (LARGEST, LARGEST)
    assert arena.warm(MIB) is True
    assert resident(arena) == LARGEST + MIB
    extents = [arena.allocate(LARGEST) for _ in range(16)]
    assert None not in extents
    assert (arena.used, arena.recycled) == (arena.limit, 0)
    assert len(arena._regions) == 1, "the place that was begun is one of them"
    for extent in extents:
        assert extent is not None
        arena.free(extent)


@pytest.mark.parametrize("then", ["note", "reserve"])
def test_what_is_being_warmed_counts_against_the_budget(then: str) -> None:
    arena = Arena(2 * LARGEST, keep=2 * LARGEST)
    assert arena.warm(LARGEST + MIB) is True
    assert arena.reserve(2 * LARGEST)
    if then == "note":
        arena.note(2 * LARGEST)
        assert resident(arena) == 0
    else:
        assert arena.warm(MIB) is False
        arena.unreserve(2 * LARGEST)
    arena.close()


def test_what_adjoins_is_taken_also_while_another_place_is_warmed(arena: Arena) -> None:
    assert arena.reserve(8 * LARGEST)
    numbers = [arena.take(LARGEST) for _ in range(8)]
    for number in numbers:
        arena.put(number, PAGES, True)
    while arena.trim(LARGEST):
        pass
    assert arena.warm(MIB) is True
    found = [number for number in numbers if arena.adjoins(number)]
    assert len(found) <= 1, "what is warm is better"
    for number in found:
        assert arena.reserve(LARGEST)
        assert arena.take(LARGEST, number) == number


def test_nobody_writes_into_pages_that_are_free(arena: Arena) -> None:
    """Whoever was told that a place is his and gets another one does not go on."""
    assert arena.reserve(2 * LARGEST)
    first = arena.take(LARGEST)
    with pytest.raises(RuntimeError, match="is free, not"):
        arena.take(LARGEST, first + 2 * PAGES)


@pytest.mark.parametrize("pause", [2, 3, 4, 5])
def test_an_image_that_goes_on_while_memory_is_warmed(pause: int) -> None:
    """Its pages are its own, whoever comes next."""
    bench = Bench(64 * LARGEST)
    idle = Idle(bench.clock, bench.store.memory)
    idle.startService()
    numbers = [bench.arena.allocate(LARGEST) for _ in range(17)]
    for extent in reversed(numbers):
        assert extent is not None
        bench.arena.free(extent, shared=True)
    while bench.arena.trim(LARGEST):
        pass
    data = Random(1).randbytes(18 * MIB)
    migration = bench.begin()
    bench.write(migration, data[: 7 * MIB], end=False)
    bench.more(migration, data[7 * MIB : 8 * MIB + 200 * PAGE])
    bench.clock.advance(LOOK_SECONDS)
    bench.clock.advance(LOOK_SECONDS)
    bench.clock.pump([PAUSE_SECONDS] * (pause - 2))
    bench.more(migration, data[8 * MIB + 200 * PAGE :])
    bench.store.end_image(ALICE, migration, 1, len(data), digest(data))
    other = bench.begin("other")
    bench.write(other, Random(2).randbytes(100 * MIB))
    image = bench.generation(migration).image(1)
    assert all(read_bytes(image, at, MIB) == data[at : at + MIB] for at in range(0, len(data), MIB))
    idle.stopService()


def test_the_budget_is_not_passed() -> None:
    arena = Arena(3 * LARGEST, keep=3 * LARGEST)
    extent = arena.allocate(LARGEST)
    assert extent is not None
    while arena.warm(LARGEST):
        pass
    assert arena.used + arena.recycled <= arena.limit
    arena.free(extent)
    arena.close()


def test_punched_memory_gets_them_again(arena: Arena) -> None:
    extent = arena.allocate(LARGEST)
    assert extent is not None
    extent.view[0] = 1
    arena.free(extent, shared=True)
    while arena.trim(LARGEST):
        pass
    assert resident(arena) == 0
    assert arena.warm(100 * LARGEST) is False
    assert resident(arena) == 4 * LARGEST


def test_it_works_a_little_at_a_time_and_not_while_images_come() -> None:
    bench = Bench(16 * LARGEST, keep=4 * LARGEST, dedup=Dedup.PAGES)
    idle = Idle(bench.clock, bench.store.memory)
    idle.startService()
    arena = bench.arena
    assert (arena.recycled, resident(arena)) == (0, BYTES_PER_TURN)
    bench.clock.pump([PAUSE_SECONDS] * (2 * LARGEST // BYTES_PER_TURN - 1))
    assert (arena.recycled, resident(arena)) == (2 * LARGEST, 2 * LARGEST)
    data = Random(1).randbytes(LARGEST)
    migration = bench.begin()
    for number in (1, 2):
        bench.write(migration, data, number, f"pages-{number}.img")
    bench.clock.advance(PAUSE_SECONDS)
    assert (arena.allocated, arena.recycled) == (2 * LARGEST, 0), "images come"
    bench.clock.advance(LOOK_SECONDS)
    assert (arena.allocated, len(bench.store.memory.backlog)) == (2 * LARGEST, 2), "the first is compared"
    bench.clock.pump([PAUSE_SECONDS] * 20)
    assert (arena.allocated, len(bench.store.memory.backlog)) == (LARGEST, 0)
    assert arena.recycled == 4 * LARGEST
    idle.stopService()
    assert bench.clock.getDelayedCalls() == []


def test_when_memory_is_short_pages_are_compared_although_images_come() -> None:
    """Those that came before, and those that come."""
    bench = Bench(16 * MIB, keep=0, dedup=Dedup.PAGES)
    memory = bench.store.memory
    idle = Idle(bench.clock, memory)
    idle.startService()
    data = Random(2).randbytes(8 * MIB)
    migration = bench.begin()
    bench.write(migration, data, end=False)
    assert memory.short
    for at in range(0, len(data), MIB):
        bench.more(migration, data[at : at + MIB])
        bench.clock.advance(LOOK_SECONDS)
    assert bench.arena.allocated < 12 * MIB
    whole = data + data
    bench.store.end_image(ALICE, migration, 1, len(whole), digest(whole))
    bench.settle()
    assert bench.arena.allocated == len(data), "equal pages are held once, whichever were compared when"
    image = bench.generation(migration).image(1)
    for at in range(0, len(whole), MIB):
        assert read_bytes(image, at, MIB) == whole[at : at + MIB]
    idle.stopService()


def test_who_waits_for_memory_is_not_given_up_while_pages_are_compared() -> None:
    """Two that only fit because they are equal: what the first brought is compared when the second waits."""
    bench = Bench(16 * MIB, keep=0, dedup=Dedup.PAGES)
    lost: list[bytes] = []
    bench.store.rejected = lambda migration, reason: lost.append(migration)
    idle = Idle(bench.clock, bench.store.memory)
    idle.startService()
    granted: dict[bytes, int] = {}
    bench.store.credits.granted = granted.__setitem__
    data = Random(3).randbytes(10 * MIB)
    for name in ("one", "two"):
        migration = bench.begin(name)
        bench.store.snapshot(ALICE, migration, 1, "")
        bench.store.open_image(ALICE, migration, 1, 1, "pages-1.img", Mode.REPLACE)
        bench.store.credit(ALICE, migration)
        sent = spent = 0
        while sent < len(data):
            count = min(len(data) - sent, (granted.get(migration, 0) - spent) // (PAGE + ENTRY) * PAGE, MIB)
            if count:
                cost = extent_cost(sent, count)
                growing = bench.store.writing(ALICE, migration, 1, sent, cost)
                fill(growing, data[sent : sent + count])
                sent, spent = sent + count, spent + cost
            bench.clock.advance(PAUSE_SECONDS)
            assert not lost
        bench.store.end_image(ALICE, migration, 1, len(data), digest(data))
        bench.seal(migration)
        bench.store.decide(ALICE, migration, True, "")
    bench.settle()
    assert bench.arena.allocated == len(data)
    idle.stopService()


def fill(growing: IGrowing, data: bytes) -> None:
    while data:
        room = growing.reserve(len(data))
        count = min(len(room.view), len(data))
        room.view[:count] = data[:count]
        growing.written(count)
        data = data[count:]
