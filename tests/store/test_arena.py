"""Image memory: classes, recycling, pages that somebody still refers to, and the budget."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from criu_relay.errors import OutOfMemory
from criu_relay.interfaces import IArena, IExtent
from criu_relay.store import arena as module
from criu_relay.store import region
from criu_relay.store.arena import CLASSES, FACTOR, LARGEST, LEAST_FORCED, SMALLEST, Arena
from criu_relay.store.region import Extent, punch

PAGES = LARGEST // SMALLEST


def resident(fd: int) -> int:
    """Bytes of a memfd that have pages."""
    return os.fstat(fd).st_blocks * 512


def test_interfaces() -> None:
    assert IArena.implementedBy(Arena)
    assert IExtent.implementedBy(Extent)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, SMALLEST), (1, SMALLEST), (SMALLEST, SMALLEST), *((size + 1, size * FACTOR) for size in CLASSES[:-1]),
     (LARGEST, LARGEST), (LARGEST + 1, LARGEST), (1 << 40, LARGEST)],
)  # fmt: skip
def test_the_smallest_class_that_fits(size: int, expected: int) -> None:
    arena = Arena(2 * LARGEST, keep=0)
    extent = arena.allocate(size)
    assert extent is not None
    assert extent.size == len(extent.view) == expected == arena.used
    assert extent.offset % extent.size == 0
    extent.view[:] = b"x" * expected
    assert os.pread(extent.fd, expected, extent.offset) == b"x" * expected


def test_a_split_leaves_the_rest_to_smaller_ones() -> None:
    arena = Arena(LARGEST, keep=LARGEST)
    taken = [arena.allocate(SMALLEST) for _ in range(PAGES)]
    assert None not in taken
    assert sorted(extent.offset for extent in taken if extent) == list(range(0, LARGEST, SMALLEST))
    assert len({extent.fd for extent in taken if extent}) == 1
    assert arena.allocate(1) is None


def test_all_parts_merge_back() -> None:
    arena = Arena(LARGEST, keep=LARGEST)
    taken = [extent for extent in (arena.allocate(SMALLEST) for _ in range(PAGES)) if extent]
    for extent in taken[::2] + taken[1::2]:
        arena.free(extent)
    assert arena.used == 0
    assert arena.recycled == LARGEST
    whole = arena.allocate(LARGEST)
    assert whole is not None
    assert whole.offset == 0


def test_no_merge_while_a_sibling_is_used() -> None:
    arena = Arena(2 * LARGEST, keep=2 * LARGEST)
    first, second = arena.allocate(SMALLEST), arena.allocate(SMALLEST)
    assert first and second
    arena.free(first)
    assert arena.recycled == SMALLEST, "what nobody had yet has no pages"
    large = arena.allocate(LARGEST)
    assert large is not None
    assert large.offset != 0


def test_warm_memory_goes_before_fresh() -> None:
    arena = Arena(4 * LARGEST, keep=4 * LARGEST)
    extent = arena.allocate(LARGEST)
    assert extent is not None
    place = extent.fd, extent.offset
    extent.view[:] = b"w" * LARGEST
    arena.free(extent)
    for _ in range(10):
        again = arena.allocate(LARGEST)
        assert again is not None
        assert (again.fd, again.offset) == place
        assert resident(again.fd) == LARGEST
        arena.free(again)


def test_warm_small_ones_go_before_a_split() -> None:
    arena = Arena(4 * LARGEST, keep=4 * LARGEST)
    small, large = [arena.allocate(SMALLEST) for _ in range(PAGES)], arena.allocate(LARGEST)
    assert large
    arena.free(large)
    for extent in small[::2]:
        assert extent
        arena.free(extent)
    for _ in small[::2]:
        extent = arena.allocate(SMALLEST)
        assert extent is not None
        assert extent.offset < LARGEST
    assert arena.recycled == LARGEST


def test_free_memory_counts_against_the_budget_too() -> None:
    """Small parts that are free make room for a large extent that needs fresh memory."""
    arena = Arena(2 * LARGEST, keep=2 * LARGEST)
    small = [extent for extent in (arena.allocate(SMALLEST) for _ in range(2 * PAGES)) if extent]
    assert len(small) == 2 * PAGES
    fds = {extent.fd for extent in small}
    for extent in small:
        extent.view[:1] = b"x"
    for index, extent in enumerate(small):
        if index % PAGES:
            arena.free(extent)
    assert arena.recycled == (2 * PAGES - 2) * SMALLEST
    large = arena.allocate(LARGEST)
    assert large is not None
    large.view[:] = b"y" * LARGEST
    assert sum(resident(fd) for fd in fds | {large.fd}) <= arena.limit
    assert arena.allocated + arena.recycled <= arena.limit


def test_free_memory_that_is_merged_makes_room_too() -> None:
    """With cold memory beside it, more of it counts as warm than came back."""
    arena = Arena(LARGEST, keep=LARGEST)
    assert arena.reserve(SMALLEST + 16)
    arena.note(16)
    arena.put(arena.take(SMALLEST), 1, False)
    assert arena.allocated + arena.noted + arena.recycled <= arena.limit
    arena.close()


def test_bookkeeping_counts() -> None:
    arena = Arena(LARGEST, keep=0)
    assert arena.reserve(SMALLEST)
    arena.note(SMALLEST)
    assert arena.used == SMALLEST
    assert arena.allocate(LARGEST) is None
    arena.forget(SMALLEST)
    assert arena.allocate(LARGEST) is not None


def test_what_is_reserved_nobody_else_gets() -> None:
    arena = Arena(LARGEST, keep=0)
    assert arena.reserve(LARGEST)
    assert not arena.reserve(1)
    assert arena.allocate(1) is None
    number = arena.take(LARGEST)
    assert arena.used == LARGEST
    arena.put(number, LARGEST // SMALLEST, False)
    assert arena.used == 0


@pytest.mark.parametrize(("first", "count"), [(0, PAGES), (1, PAGES - 1), (3, 2), (5, 200), (PAGES - 1, 1)])
def test_any_run_of_pages_can_go_back(first: int, count: int) -> None:
    arena = Arena(LARGEST, keep=LARGEST)
    assert arena.reserve(LARGEST)
    number = arena.take(LARGEST)
    arena.put(number + first, count, False)
    assert arena.recycled == count * SMALLEST
    assert arena.allocated == LARGEST - count * SMALLEST
    for start, length in ((0, first), (first + count, PAGES - first - count)):
        if length:
            arena.put(number + start, length, False)
    assert arena.recycled == LARGEST
    assert arena.allocate(LARGEST) is not None, "all of it merged"


def pipe_with(extent: Extent) -> int:
    """The read end of a pipe that holds one page of an extent, by reference."""
    reading, writing = os.pipe()
    assert os.sendfile(writing, extent.fd, extent.offset, SMALLEST) == SMALLEST
    os.close(writing)
    return reading


@pytest.mark.parametrize("size", [SMALLEST, SMALLEST * FACTOR, LARGEST])
def test_what_a_pipe_holds_does_not_change_when_it_is_reused(size: int) -> None:
    arena = Arena(LARGEST, keep=LARGEST)
    extent = arena.allocate(size)
    assert extent is not None
    extent.view[:] = b"a" * size
    reading = pipe_with(extent)
    place = extent.fd, extent.offset
    arena.free(extent, shared=True)
    again = list(iter(lambda: arena.allocate(size), None))
    assert place in [(taken.fd, taken.offset) for taken in again], "it is the same memory"
    for taken in again:
        taken.view[:] = b"b" * size
    assert os.read(reading, SMALLEST) == b"a" * SMALLEST
    os.close(reading)


def test_without_shared_the_pipe_would_see_it() -> None:
    """The trap itself: the test above would not notice anything if sendfile copied."""
    arena = Arena(LARGEST, keep=LARGEST)
    extent = arena.allocate(SMALLEST)
    assert extent is not None
    extent.view[:] = b"a" * SMALLEST
    reading = pipe_with(extent)
    place = extent.offset
    arena.free(extent)
    again = next(taken for taken in iter(lambda: arena.allocate(SMALLEST), None) if taken.offset == place)
    again.view[:] = b"b" * SMALLEST
    assert os.read(reading, SMALLEST) == b"b" * SMALLEST
    os.close(reading)


def test_stale_memory_is_used_before_fresh() -> None:
    arena = Arena(4 * LARGEST, keep=4 * LARGEST)
    extent = arena.allocate(LARGEST)
    assert extent is not None
    place = extent.fd, extent.offset
    arena.free(extent, shared=True)
    assert arena.recycled == LARGEST
    again = arena.allocate(LARGEST)
    assert again is not None
    assert (again.fd, again.offset) == place
    assert bytes(again.view[:10]) == bytes(10)


def test_warm_goes_before_stale() -> None:
    arena = Arena(4 * LARGEST, keep=4 * LARGEST)
    stale, warm = arena.allocate(LARGEST), arena.allocate(LARGEST)
    assert stale and warm
    place = warm.offset
    arena.free(stale, shared=True)
    arena.free(warm)
    again = arena.allocate(LARGEST)
    assert again is not None
    assert again.offset == place


def test_cold_memory_goes_before_fresh() -> None:
    arena = Arena(4 * LARGEST, keep=0)
    extent = arena.allocate(LARGEST)
    assert extent is not None
    place = extent.fd, extent.offset
    extent.view[:] = b"x" * LARGEST
    arena.free(extent)
    assert arena.trim(LARGEST) is False
    assert resident(place[0]) == 0
    assert arena.recycled == 0
    again = arena.allocate(LARGEST)
    assert again is not None
    assert (again.fd, again.offset) == place


def test_the_budget_is_never_exceeded() -> None:
    arena = Arena(LARGEST + SMALLEST, keep=0)
    assert arena.allocate(LARGEST) is not None
    assert arena.allocate(SMALLEST + 1) is None
    assert arena.allocate(SMALLEST) is not None
    assert arena.allocate(1) is None
    assert arena.used == arena.limit


def test_a_refusal_takes_nothing() -> None:
    arena = Arena(SMALLEST, keep=0)
    assert arena.allocate(LARGEST) is None
    assert arena.used == 0
    assert arena.allocate(SMALLEST) is not None


def test_force_goes_to_twice_the_budget() -> None:
    arena = Arena(LARGEST, keep=0)
    forced = [arena.force(LARGEST), arena.force(LARGEST)]
    assert arena.used == 2 * LARGEST
    with pytest.raises(OutOfMemory, match=str(LARGEST)):
        arena.force(1)
    assert arena.used == 2 * LARGEST
    for extent in forced:
        arena.free(extent)
    assert arena.used == 0


def test_force_has_room_for_one_frame_in_the_smallest_budget() -> None:
    arena = Arena(0, keep=0)
    assert arena.allocate(1) is None
    arena.free(arena.force(LEAST_FORCED // 2))


def test_trim_is_bounded_per_call() -> None:
    arena = Arena(8 * LARGEST, keep=2 * LARGEST)
    taken = [extent for extent in (arena.allocate(LARGEST) for _ in range(8)) if extent]
    fd = taken[0].fd
    for extent in taken:
        extent.view[::SMALLEST] = b"x" * (LARGEST // SMALLEST)
    for index, extent in enumerate(taken):
        arena.free(extent, shared=bool(index % 2))
    left = []
    while True:
        more = arena.trim(2 * LARGEST)
        left.append(resident(fd) // LARGEST)
        if not more:
            break
    assert left == [6, 4, 2]
    assert arena.recycled == 2 * LARGEST
    assert arena.trim(LARGEST) is False
    assert resident(fd) == 2 * LARGEST


def test_trim_gives_up_what_may_be_referred_to_first() -> None:
    arena = Arena(2 * LARGEST, keep=LARGEST)
    stale, warm = arena.allocate(LARGEST), arena.allocate(LARGEST)
    assert stale and warm
    place = warm.offset
    warm.view[:1] = b"w"
    arena.free(warm)
    arena.free(stale, shared=True)
    arena.trim(LARGEST)
    again = arena.allocate(LARGEST)
    assert again is not None
    assert again.offset == place
    assert again.view[0] == ord("w")


def test_regions_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REGION", 2 * LARGEST)
    arena = Arena(5 * LARGEST, keep=0)
    taken = [extent for extent in (arena.allocate(LARGEST) for _ in range(5)) if extent]
    places = {(extent.fd, extent.offset) for extent in taken}
    assert len(places) == 5
    assert len({fd for fd, _ in places}) == 3
    for extent in taken:
        arena.free(extent)
    arena.close()


def test_close_gives_descriptors_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    arena = Arena(LARGEST, keep=0)
    extent = arena.allocate(1)
    assert extent is not None
    assert len(os.listdir("/proc/self/fd")) > before
    arena.free(extent)
    arena.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_region_that_cannot_be_mapped_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def refuse(*args: object) -> None:
        raise OSError(12, "no memory")

    monkeypatch.setattr(region.mmap, "mmap", refuse)
    with pytest.raises(OutOfMemory, match="no memory"):
        region.Region(0, LARGEST)
    assert len(os.listdir("/proc/self/fd")) == before


def test_punch_says_what_is_wrong() -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError) as caught:
        punch(reading, 0, SMALLEST)
    assert caught.value.errno
    os.close(reading)
    os.close(writing)


Step = tuple[str, int, bool]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("allocate"), st.integers(0, LARGEST + 1), st.booleans()),
            st.tuples(st.just("force"), st.integers(1, LARGEST), st.booleans()),
            st.tuples(st.just("free"), st.integers(0, 1000), st.booleans()),
            st.tuples(st.just("trim"), st.integers(0, 3 * LARGEST), st.booleans()),
        ),
        max_size=120,
    )
)
def test_any_order_of_taking_and_giving_back(steps: list[Step]) -> None:
    """No overlap, what is used is the sum, everything merges back, and contents are nobody else's."""
    arena = Arena(3 * LARGEST, keep=LARGEST)
    live: dict[int, Extent] = {}
    places: dict[tuple[int, int], int] = {}
    for index, (what, value, shared) in enumerate(steps):
        if what in ("allocate", "force"):
            try:
                extent = arena.allocate(value) if what == "allocate" else arena.force(value)
            except OutOfMemory:
                extent = None
            if extent is None:
                assert arena.used + next((c for c in CLASSES if c >= value), LARGEST) > arena.limit
                continue
            for page in range(extent.offset, extent.offset + extent.size, SMALLEST):
                assert (extent.fd, page) not in places, "two extents overlap"
                places[extent.fd, page] = index
            extent.view[:8] = index.to_bytes(8, "big")
            live[index] = extent
        elif what == "free" and live:
            key = list(live)[value % len(live)]
            extent = live.pop(key)
            assert bytes(extent.view[:8]) == key.to_bytes(8, "big"), "somebody else wrote into it"
            for page in range(extent.offset, extent.offset + extent.size, SMALLEST):
                del places[extent.fd, page]
            arena.free(extent, shared)
        elif what == "trim":
            arena.trim(value)
        assert arena.used == sum(extent.size for extent in live.values()) <= 2 * arena.limit
    for extent in live.values():
        arena.free(extent)
    assert arena.used == 0
    assert [size for size in CLASSES[:-1] for heat in module.Heat if arena._free[heat][size]] == [], (
        "a part did not merge"
    )
    while arena.trim(LARGEST):
        pass
    assert arena.recycled <= arena.keep
    arena.close()


def test_what_adjoins_is_free_and_in_the_same_memfd() -> None:
    arena = Arena(4 * LARGEST, keep=4 * LARGEST)
    assert arena.reserve(4 * LARGEST)
    first = arena.take(LARGEST)
    assert arena.adjoins(first + PAGES), "memory that was never used"
    assert arena.take(LARGEST, first + PAGES) == first + PAGES
    assert not arena.adjoins(first + PAGES), "it is taken"
    assert [arena.take(LARGEST), arena.take(LARGEST)] == [first + 2 * PAGES, first + 3 * PAGES]
    assert not arena.adjoins(first + 4 * PAGES), "the memfd ends there"
    arena.put(first + PAGES, PAGES, False)
    assert arena.adjoins(first + PAGES)
    arena.put(first + 3 * PAGES, PAGES, True)
    assert not arena.adjoins(first + 3 * PAGES), "what is warm is better"


def test_who_begins_finds_room_behind() -> None:
    """Of free places that lie together the first is taken, however they came back."""
    count = 8
    arena = Arena(count * LARGEST, keep=count * LARGEST)
    assert arena.reserve(count * LARGEST)
    numbers = [arena.take(LARGEST) for _ in range(count)]
    for number in (*numbers[4:], *numbers[:3]):
        arena.put(number, PAGES, False)
    assert arena.reserve((count - 1) * LARGEST)
    assert arena.take(LARGEST) == numbers[0]
    assert arena.take(LARGEST, numbers[1]) == numbers[1]
    assert arena.take(LARGEST) == numbers[2]
    assert arena.take(LARGEST) == numbers[4]


def test_memory_that_the_kernel_does_not_give_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(8 * LARGEST, keep=0)
    with monkeypatch.context() as full:
        full.setattr(os, "memfd_create", no_descriptor)
        for take in (arena.allocate, arena.force):
            with pytest.raises(OutOfMemory, match="no memory for images: Too many open files"):
                take(LARGEST)
    assert arena.used == 0
    assert arena.allocate(LARGEST) is not None


def no_descriptor(*arguments: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
