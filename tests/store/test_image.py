"""One image: growing, ending, reading, throwing away."""

from __future__ import annotations

import ctypes
import os
import tracemalloc
from random import Random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from criu_relay.errors import Aborted, Conflict, OutOfMemory, ProtocolError
from criu_relay.flow.zeros import zero_rows
from criu_relay.interfaces import IGrowing
from criu_relay.store import arena as arena_module
from criu_relay.store import image as image_module
from criu_relay.store import pages as pages_module
from criu_relay.store.arena import FACTOR, LARGEST, SMALLEST, Arena
from criu_relay.store.image import INSPECTED_TOGETHER, Image
from criu_relay.store.memory import Memory
from criu_relay.store.opened import read_bytes
from criu_relay.store.pages import INDEX_ENTRY
from criu_relay.store.policy import Dedup
from criu_relay.store.table import ENTRY, RUN, Kind
from tests.store.support import digest, settle

MIB = 1 << 20
PAGES = LARGEST // SMALLEST


class Short(Memory):
    """There is little of it, so pages are compared when they come."""

    short = True


class Owner:
    """Makes images that share one memory."""

    def __init__(self, limit: int = 16 * LARGEST, dedup: Dedup = Dedup.ZERO, memory: type[Memory] = Memory) -> None:
        self.clock = Clock()
        self.arena = Arena(limit, keep=limit)
        self.memory = memory(self.clock, self.arena, dedup)

    def image(self, owner: str = "alice") -> Image:
        return Image(self.memory, self.memory.index(owner), 1, 1, "pages-1.img")

    def settle(self) -> int:
        """Let what can wait be done, and what was given back arrive; the bytes that are still used."""
        while self.memory.backlog.work(MIB):
            pass
        settle(self.clock)
        return self.arena.used


class Watcher:
    """Somebody who has an image open."""

    def __init__(self, image: Image) -> None:
        self.told: list[tuple[int, int, str]] = []
        image.opened(self)

    def discarded(self, start: int, stop: int, reason: str) -> None:
        self.told.append((start, stop, reason))


def append(image: Image, data: bytes, expected: int | None = None) -> None:
    while data:
        room = image.reserve(min(expected or len(data), LARGEST))
        count = min(len(room.view), len(data))
        room.view[:count] = data[:count]
        image.written(count)
        data = data[count:]


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


def whole(image: Image) -> bytes:
    data = bytearray()
    while len(data) < image.size:
        data += image.piece(len(data)).view(LARGEST)
    return bytes(data)


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_interface() -> None:
    assert IGrowing.implementedBy(Image)


@pytest.mark.parametrize("size", [1, SMALLEST - 1, SMALLEST, SMALLEST + 1, LARGEST, LARGEST + 1, 3 * LARGEST + 5])
def test_bytes_come_back(owner: Owner, size: int) -> None:
    image = owner.image()
    append(image, pattern(size))
    image.finish(size, digest(pattern(size)))
    assert image.complete
    assert image.digest == digest(pattern(size))
    assert whole(image) == pattern(size)


def test_zero_length_is_complete(owner: Owner) -> None:
    image = owner.image()
    image.finish(0, digest(b""))
    assert image.complete
    assert image.size == 0
    assert owner.arena.used == 0


def test_reserve_again_is_the_same_room(owner: Owner) -> None:
    image = owner.image()
    first, second = image.reserve(10), image.reserve(LARGEST)
    assert (first.fd, first.offset, len(first.view)) == (second.fd, second.offset, len(second.view))
    append(image, b"abc")
    third = image.reserve(1)
    assert (third.offset, len(third.view)) == (first.offset + 3, len(first.view) - 3)


def test_extents_grow_so_that_small_writes_make_few() -> None:
    owner = Owner(limit=64 * LARGEST)
    image = owner.image()
    sizes = []
    for _ in range(4 * LARGEST // SMALLEST):
        before = owner.arena.allocated
        append(image, b"x" * SMALLEST)
        if owner.arena.allocated != before:
            sizes.append(owner.arena.allocated - before)
    assert sizes[:6] == [SMALLEST * FACTOR**power for power in range(6)]
    assert set(sizes[6:]) == {LARGEST}


def test_a_known_size_is_taken_at_once() -> None:
    owner = Owner(limit=64 * LARGEST)
    image = owner.image()
    append(image, b"x", expected=LARGEST // 3)
    assert owner.arena.allocated == LARGEST


def test_a_wrong_size_is_refused(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    for size in (0, 2, 4):
        with pytest.raises(ProtocolError, match="has 3 bytes"):
            image.finish(size, digest(b"abc"))
    assert not image.complete


def test_a_wrong_digest_is_refused(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    with pytest.raises(Aborted, match="digest"):
        image.finish(3, digest(b"abd"))
    assert not image.complete
    assert image.digest is None


def test_without_a_digest_the_size_counts(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    image.finish(3, None)
    assert image.complete
    assert image.digest is None


def test_where_no_digest_was_to_come_none_is_made(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module.xxhash, "xxh3_128", lambda: pytest.fail("a digest is made"))
    image = Image(owner.memory, owner.memory.index("alice"), 1, 1, "pages-1.img", digests=False)
    append(image, pattern(LARGEST + 5))
    with pytest.raises(ProtocolError, match="has a digest in a namespace without"):
        image.finish(image.size, bytes(16))
    image.finish(image.size, None)
    assert whole(image) == pattern(LARGEST + 5)


@pytest.mark.parametrize("first", [1, SMALLEST, 5 * SMALLEST + 7, LARGEST - 1])
def test_a_frame_has_one_room_wherever_the_one_before_ended(first: int) -> None:
    """While memory is plenty the next extent is the one behind, so that a frame is received at once."""
    owner = Owner(limit=256 * MIB)
    image = owner.image()
    append(image, pattern(first + LARGEST)[:first])
    append(image, pattern(first + LARGEST)[first:])
    for _ in range(20):
        room = image.reserve(LARGEST)
        assert len(room.view) >= LARGEST
        room.view[:LARGEST] = pattern(image.size + LARGEST)[image.size :]
        image.written(LARGEST)
    image.finish(image.size, digest(pattern(image.size)))
    assert whole(image) == pattern(image.size)
    image.drop()
    assert owner.settle() == 0


@pytest.mark.parametrize("dedup", Dedup)
def test_what_was_begun_is_in_the_table_whenever_it_is_looked_at(dedup: Dedup) -> None:
    """Pages are entered some at a time, and nobody can tell."""
    looked, unseen = (Owner(dedup=dedup).image() for _ in range(2))
    for step in (1, SMALLEST - 1, SMALLEST, MIB, 3 * MIB + 5, MIB):
        for image in (looked, unseen):
            append(image, b"x" * step, expected=MIB)
        assert len(looked.table) == -(-looked.size // SMALLEST)
    assert looked.table.pages == unseen.table.pages
    for image in (looked, unseen):
        for offset in range(0, image.size, MIB):
            assert read_bytes(image, offset, MIB) == b"x" * min(MIB, image.size - offset)


def test_pages_that_were_begun_go_back_with_the_others(owner: Owner) -> None:
    image = owner.image()
    append(image, pattern(2 * MIB + 5), expected=MIB)
    assert image.drop() == 2 * MIB + SMALLEST
    assert owner.settle() == 0


@pytest.mark.parametrize("read", [True, False])
def test_nothing_is_added_to_what_was_dropped(owner: Owner, read: bool) -> None:
    image = owner.image()
    append(image, pattern(2 * MIB), expected=MIB)
    image.reserve(MIB)
    if read:
        Watcher(image)
    image.drop()
    with pytest.raises(Aborted):
        image.reserve(MIB)
    with pytest.raises(Aborted):
        image.written(SMALLEST)
    with pytest.raises(Aborted):
        image.grow([0, SMALLEST, SMALLEST])
    assert image.size == 2 * MIB


def test_nothing_is_added_behind_a_page_that_was_discarded(owner: Owner) -> None:
    """What is said of such a page is no page of this image: another one's bytes may be there."""
    other, image = owner.image("bob"), owner.image()
    for one, byte in ((other, b"o"), (image, b"i")):
        append(one, byte * (SMALLEST + 10))
        one.finish(one.size, None)
    image.discard(SMALLEST, 10, Kind.DISCARDED)
    with pytest.raises(Conflict, match="thrown away"):
        image.reserve(100)
    assert read_bytes(other, 0, other.size) == b"o" * (SMALLEST + 10)


def test_append_goes_on_where_it_ended(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    image.finish(3, digest(b"abc"))
    image.complete = False
    append(image, b"def" * SMALLEST)
    data = b"abc" + b"def" * SMALLEST
    image.finish(len(data), digest(data))
    assert whole(image) == data


def test_a_full_budget_is_said_with_a_hint(owner: Owner) -> None:
    owner = Owner(limit=LARGEST)
    image = owner.image()
    with pytest.raises(OutOfMemory, match="memory is full") as caught:
        append(image, b"x" * LARGEST)
    assert "--memory" in caught.value.hint
    assert image.size == LARGEST // (SMALLEST + ENTRY) * SMALLEST, "every page that fits with what is known of it"
    assert owner.arena.used <= LARGEST


def test_what_is_left_of_the_last_extent_goes_back_at_the_end(owner: Owner) -> None:
    image = owner.image()
    append(image, b"x" * (SMALLEST + 1), expected=LARGEST)
    assert owner.arena.allocated == LARGEST
    image.finish(SMALLEST + 1, None)
    assert owner.arena.allocated == 2 * SMALLEST
    assert owner.arena.used == 2 * (SMALLEST + ENTRY)


def test_what_was_promised_is_used_first(owner: Owner) -> None:
    image = owner.image()
    assert owner.arena.reserve(owner.arena.limit)
    image.promise(3 * (SMALLEST + ENTRY))
    append(image, b"x" * (2 * SMALLEST + 1))
    with pytest.raises(OutOfMemory):
        append(image, b"x" * SMALLEST)
    assert image.size == 3 * SMALLEST
    owner.arena.unreserve(owner.arena.limit - 3 * (SMALLEST + ENTRY))
    image.finish(image.size, None)
    assert owner.arena.used == 3 * (SMALLEST + ENTRY)


def test_dropping_gives_everything_back_once(owner: Owner) -> None:
    image = owner.image()
    append(image, b"x" * (LARGEST + 1))
    assert image.drop() == LARGEST + SMALLEST
    assert owner.settle() == 0
    assert image.drop() == 0
    assert owner.settle() == 0
    assert image.size == LARGEST + 1, "it is told of what is gone as well"
    with pytest.raises(Aborted, match="thrown away"):
        image.reserve(1)


def test_readers_keep_the_memory(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    first, second = Watcher(image), Watcher(image)
    assert image.drop() == SMALLEST
    assert whole(image) == b"abc"
    image.closed(first)
    assert owner.settle() > 0
    assert whole(image) == b"abc"
    image.closed(second)
    assert owner.settle() == 0


def test_a_reader_that_leaves_a_living_image_gives_nothing_back(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    image.closed(Watcher(image))
    assert owner.settle() > 0
    assert whole(image) == b"abc"


def three_extents(owner: Owner) -> Image:
    image = owner.image()
    append(image, pattern(3 * LARGEST))
    image.finish(image.size, None)
    return image


@pytest.mark.parametrize(
    ("offset", "length", "first", "last"),
    [
        (0, SMALLEST - 1, 0, 0),
        (0, SMALLEST, 0, 1),
        (1, SMALLEST, 0, 0),
        (1, 2 * SMALLEST, 1, 2),
        (0, 3 * LARGEST, 0, 3 * PAGES),
        (2 * LARGEST - SMALLEST, 2 * SMALLEST, 2 * PAGES - 1, 2 * PAGES + 1),
        (2 * LARGEST, 1 << 62, 2 * PAGES, 3 * PAGES),
        (5 * LARGEST, LARGEST, 0, 0),
        (0, 0, 0, 0),
    ],
)
def test_discard_takes_whole_pages_inside_the_range(
    owner: Owner, offset: int, length: int, first: int, last: int
) -> None:
    image = three_extents(owner)
    data = pattern(3 * LARGEST)
    assert image.discard(offset, length, Kind.DISCARDED) == (last - first) * SMALLEST
    owner.settle()
    assert owner.arena.allocated == 3 * LARGEST - (last - first) * SMALLEST
    for page in {0, first - 1, first, (first + last) // 2, last - 1, last, 3 * PAGES - 1} - {-1, 3 * PAGES}:
        at = page * SMALLEST
        if first <= page < last:
            with pytest.raises(Conflict, match="discarded"):
                image.piece(at)
        else:
            assert bytes(image.piece(at + 7).view(100)) == data[at + 7 : at + 107]
    assert image.size == 3 * LARGEST
    assert image.discard(offset, length, Kind.DISCARDED) == 0
    image.drop()
    assert owner.settle() == 0


def test_the_last_page_goes_when_its_used_part_is_inside(owner: Owner) -> None:
    image = owner.image()
    append(image, b"x" * SMALLEST)
    append(image, b"x")
    image.finish(SMALLEST + 1, None)
    assert image.discard(SMALLEST, 1, Kind.DISCARDED) == SMALLEST
    assert bytes(image.piece(0).view(LARGEST)) == b"x" * SMALLEST


def test_superseded_pages_are_zeros(owner: Owner) -> None:
    image = three_extents(owner)
    reader = Watcher(image)
    image.discard(LARGEST + SMALLEST, 2 * SMALLEST, Kind.SUPERSEDED)
    data = bytearray(pattern(3 * LARGEST))
    data[LARGEST + SMALLEST : LARGEST + 3 * SMALLEST] = bytes(2 * SMALLEST)
    assert whole(image) == bytes(data)
    assert reader.told == [], "nobody needs them"


def test_discard_resets_readers_and_waits_for_writers(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    with pytest.raises(Conflict, match="written"):
        image.discard(0, 3, Kind.DISCARDED)
    image.finish(3, None)
    reader = Watcher(image)
    assert image.discard(0, 3, Kind.DISCARDED, "not wanted") == SMALLEST
    assert reader.told == [(0, SMALLEST, "not wanted")]


# Zeros and pages that are there already


def pages(*contents: int) -> bytes:
    return b"".join(bytes([content]) * SMALLEST for content in contents)


def made(owner: Owner, data: bytes, who: str = "alice", step: int = 1 << 30) -> Image:
    image = owner.image(who)
    for start in range(0, len(data), step):
        append(image, data[start : start + step])
    image.finish(len(data), digest(data))
    owner.settle()
    return image


@pytest.mark.parametrize("step", [1 << 30, 700, SMALLEST, 3 * SMALLEST + 5])
@pytest.mark.parametrize("tail", [b"", b"end", bytes(5)])
def test_zeros_take_no_memory(owner: Owner, step: int, tail: bytes) -> None:
    data = pages(0, 1, 0, 0, 2, 3, 0) * 100 + tail
    image = made(owner, data, step=step)
    assert whole(image) == data
    assert owner.arena.allocated == (300 + bool(tail)) * SMALLEST
    assert image.table.pages[Kind.ZERO] == 400
    image.drop()
    assert owner.settle() == 0


def test_nearly_zeros_are_kept(owner: Owner) -> None:
    data = b"".join(bytes(at) + b"x" + bytes(SMALLEST - at - 1) for at in range(0, SMALLEST, 111))
    image = made(owner, data)
    assert whole(image) == data
    assert image.table.pages[Kind.ZERO] == 0


def test_zeros_that_were_not_sent(owner: Owner) -> None:
    image = owner.image()
    image.grow([0, 2 * SMALLEST])
    append(image, b"x" * SMALLEST)
    image.grow([0, LARGEST])
    append(image, b"end")
    data = bytes(2 * SMALLEST) + b"x" * SMALLEST + bytes(LARGEST) + b"end"
    image.finish(len(data), digest(data))
    assert whole(image) == data
    assert owner.arena.allocated == 2 * SMALLEST


def test_zeros_in_the_room_that_was_reserved_before(owner: Owner) -> None:
    """As the link does it: the payload comes in one piece, with zeros between its parts."""
    image = owner.image()
    room = image.reserve(3 * SMALLEST)
    room.view[: 3 * SMALLEST] = pages(1, 2, 3)
    image.grow([SMALLEST, 4 * SMALLEST, SMALLEST + 5])
    image.grow([SMALLEST - 5])
    data = pages(1, 0, 0, 0, 0, 2, 3)
    image.finish(len(data), digest(data))
    assert whole(image) == data


def test_off_keeps_everything() -> None:
    owner = Owner(dedup=Dedup.OFF)
    image = made(owner, pages(0, 1, 1, 0))
    assert whole(image) == pages(0, 1, 1, 0)
    assert owner.arena.allocated == 4 * SMALLEST


@pytest.mark.parametrize("step", [1 << 30, 700, SMALLEST])
@pytest.mark.parametrize("memory", [Short, Memory])
def test_equal_pages_are_held_once(step: int, memory: type[Memory]) -> None:
    owner = Owner(dedup=Dedup.PAGES, memory=memory)
    data = pages(1, 2, 0, 1, 1, 3, 2, 0) * 70 + b"x"
    image = made(owner, data, step=step)
    assert whole(image) == data
    assert owner.arena.allocated == 4 * SMALLEST, "1, 2, 3 and the end"
    assert owner.arena.used == 4 * SMALLEST + len(image.table) * ENTRY + 3 * INDEX_ENTRY
    other = made(owner, data, step=step)
    assert owner.arena.allocated == 5 * SMALLEST, "an end that is no whole page is not looked for"
    image.drop()
    owner.settle()
    assert whole(other) == data
    other.drop()
    assert owner.settle() == 0


@pytest.mark.parametrize("dedup", [Dedup.ZERO, Dedup.PAGES])
def test_what_comes_is_looked_at_in_large_parts(monkeypatch: pytest.MonkeyPatch, dedup: Dedup) -> None:
    """However little of it is kept: looking at a few pages costs as much as looking at many."""
    parts: list[int] = []

    def looked(words: numpy.ndarray) -> numpy.ndarray:
        parts.append(len(words))
        return zero_rows(words)

    monkeypatch.setattr(image_module, "zero_rows", looked)
    owner = Owner(limit=256 * MIB, dedup=dedup)
    kept = [Random(at).randbytes(SMALLEST) for at in range(1024)]
    made(owner, bytes(3 * SMALLEST).join(kept))
    count = len(kept) + 3 * (len(kept) - 1)
    assert sum(parts) == count
    assert parts.count(INSPECTED_TOGETHER) >= count // INSPECTED_TOGETHER
    assert owner.arena.allocated == len(kept) * SMALLEST


def test_what_was_promised_for_pages_that_are_not_kept_goes_back() -> None:
    owner = Owner(limit=64 * MIB)
    image = owner.image()
    for _ in range(16):
        cost = RUN * (SMALLEST + ENTRY)
        assert owner.arena.reserve(cost)
        image.promise(cost)
        append(image, bytes(MIB - SMALLEST) + pages(1))
    assert owner.settle() <= 16 * (SMALLEST + RUN * ENTRY) + 3 * LARGEST
    image.finish(16 * MIB, None)
    assert owner.settle() == 16 * (SMALLEST + RUN * ENTRY)


def half_zeros(pages: int) -> bytes:
    return (bytes(SMALLEST) + b"\1" * SMALLEST) * (pages // 2)


def test_entries_are_promised_for_what_packing_made_free(owner: Owner) -> None:
    """What is left of the budget may be gone by the time that the pages are written."""
    image = owner.image()
    append(image, half_zeros(INSPECTED_TOGETHER))
    image.reserve(SMALLEST)
    assert image.inspected == INSPECTED_TOGETHER
    owner.arena.reserve(owner.arena.available)
    others = owner.arena.reserved - image._ahead._promised
    append(image, pattern(image._ahead.count * SMALLEST))
    assert image.table.pages[Kind.ZERO] == INSPECTED_TOGETHER // 2
    assert owner.arena.reserved >= others, "what others were promised"


def test_room_that_was_taken_by_packing_is_not_given_when_there_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Owner(limit=64 * LARGEST).image()
    append(image, b"\1" * SMALLEST, expected=LARGEST)
    image.reserve(2 * LARGEST)
    append(image, half_zeros(INSPECTED_TOGETHER))
    with monkeypatch.context() as full:
        full.setattr(image._ahead, "secure", refuse)
        with pytest.raises(OutOfMemory):
            image.reserve(SMALLEST)
    append(image, b"\2" * SMALLEST)
    data = b"\1" * SMALLEST + half_zeros(INSPECTED_TOGETHER) + b"\2" * SMALLEST
    image.finish(len(data), digest(data))
    assert whole(image) == data


def refuse(count: int) -> None:
    raise OutOfMemory("the budget is used up")


def test_zeros_are_looked_for_in_the_middle_of_a_large_room() -> None:
    """They take memory only for as long as that."""
    image = Owner(limit=64 * LARGEST).image()
    append(image, b"\1" * SMALLEST, expected=LARGEST)
    image.reserve(2 * LARGEST)
    rest = INSPECTED_TOGETHER - 1
    append(image, bytes(rest * SMALLEST))
    assert len(image._room) >= LARGEST - SMALLEST, "there is room for more without another look"
    image.reserve(SMALLEST)
    assert image.inspected == INSPECTED_TOGETHER
    assert image.memory == SMALLEST


def test_without_memory_the_places_that_packing_left_are_used(owner: Owner) -> None:
    image = owner.image()
    append(image, half_zeros(INSPECTED_TOGETHER))
    left = INSPECTED_TOGETHER // 2
    owner.arena.reserve(owner.arena.available - ENTRY * left)
    data = b"\3" * (left * SMALLEST)
    append(image, data)
    with pytest.raises(OutOfMemory):
        image.reserve(1)
    assert whole(image) == half_zeros(INSPECTED_TOGETHER) + data


def test_nobody_shares_with_another_owner() -> None:
    owner = Owner(dedup=Dedup.PAGES)
    made(owner, pages(1, 2), "alice")
    made(owner, pages(1, 2), "bob")
    assert owner.arena.allocated == 4 * SMALLEST
    made(owner, pages(2, 1), "bob")
    assert owner.arena.allocated == 4 * SMALLEST


@pytest.mark.parametrize("memory", [Short, Memory])
def test_half_zeros_and_duplicates(memory: type[Memory]) -> None:
    """50 % zeros, 30 % duplicates: what is held is what is unique, exactly."""
    owner = Owner(dedup=Dedup.PAGES, limit=64 * MIB, memory=memory)
    random = Random(5)
    unique = [random.randbytes(SMALLEST) for _ in range(400)]
    contents = unique + [random.choice(unique) for _ in range(600)] + [bytes(SMALLEST)] * 1000
    random.shuffle(contents)
    image = made(owner, b"".join(contents))
    assert whole(image) == b"".join(contents)
    assert owner.arena.allocated == 400 * SMALLEST


@pytest.mark.parametrize("memory", [Short, Memory])
def test_a_hash_collision_mixes_nothing(monkeypatch: pytest.MonkeyPatch, memory: type[Memory]) -> None:
    monkeypatch.setattr(pages_module, "content_keys", lambda view, rows: [7] * len(rows))
    owner = Owner(dedup=Dedup.PAGES, memory=memory)
    image = made(owner, pages(1, 2, 1, 3, 2))
    assert whole(image) == pages(1, 2, 1, 3, 2)
    assert owner.arena.allocated == 4 * SMALLEST, "1 was found, 2 and 3 were not"
    image.drop()
    assert owner.settle() == 0


def test_the_index_costs_no_more_than_the_budget_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a million pages, and most of all just after its dictionaries have grown."""
    owner = Owner(dedup=Dedup.PAGES, limit=256 * MIB)
    monkeypatch.setattr(owner.memory.pages, "indexed", lambda numbers: None)
    index = owner.memory.index("alice")
    random, batch, most = Random(3), 512, 1 << 18
    costs = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for first in range(0, most, batch):
            index.add([random.getrandbits(60) for _ in range(batch)], numpy.arange(most + first, most + first + batch))
            costs.append((tracemalloc.get_traced_memory()[0] - before) / (first + batch))
    finally:
        tracemalloc.stop()
    assert len(index) == most == owner.arena.noted // INDEX_ENTRY
    assert max(costs[8:]) <= INDEX_ENTRY < 1.2 * max(costs[8:])


@pytest.mark.parametrize("memory", [Short, Memory])
def test_a_page_that_is_shared_outlives_what_it_came_with(memory: type[Memory]) -> None:
    owner = Owner(dedup=Dedup.PAGES, memory=memory)
    first, second = made(owner, pages(1, 2, 3)), made(owner, pages(3, 2, 4))
    first.discard(0, 3 * SMALLEST, Kind.DISCARDED)
    owner.settle()
    assert owner.arena.allocated == 3 * SMALLEST
    assert whole(second) == pages(3, 2, 4)
    third = made(owner, pages(2, 1))
    assert owner.arena.allocated == 4 * SMALLEST
    for image in (first, second, third):
        image.drop()
    assert owner.settle() == 0
    assert len(owner.memory.index("alice")) == 0


def test_reading_at_any_offset(owner: Owner) -> None:
    image = three_extents(owner)
    data = pattern(3 * LARGEST)
    for offset, length in ((0, 10), (LARGEST - 5, 10), (2 * LARGEST, 5 * LARGEST), (3 * LARGEST - 1, 10)):
        assert read_bytes(image, offset, length) == data[offset : offset + min(length, MIB)]
    assert read_bytes(image, 3 * LARGEST, 1) == b""
    assert read_bytes(image, 1 << 62, 1) == b""
    assert read_bytes(image, 0, 0) == b""


def test_beyond_four_gigabytes(owner: Owner) -> None:
    owner = Owner(limit=64 * MIB)
    image = owner.image()
    size = (5 << 30) + 12345
    for _ in range(5):
        image.grow([0, 1 << 30])
    append(image, b"end" * 4115)
    image.finish(size, None)
    for offset in (0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, (5 << 30) - 1):
        assert bytes(image.piece(offset).view(1)) == bytes(1)
        assert image.piece(offset).length == min(MIB - offset % SMALLEST, (5 << 30) - offset)
    assert bytes(image.piece(5 << 30).view(3)) == b"end"
    assert bytes(image.piece(size - 1).view(3)) == b"d"


def gathered(image: Image, offset: int, most: int) -> bytes:
    """What the runs from an offset on have in memory."""
    return b"".join(ctypes.string_at(int(at), int(count)) for at, count in image.runs(offset, most))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, SMALLEST), st.data())
def test_runs_are_what_lies_in_memory(numbers: list[int], tail: int, draw: st.DataObject) -> None:
    """However zeros, shared and superseded pages alternate; up to the first page that is not there."""
    owner = Owner(dedup=Dedup.PAGES)
    data = pages(*numbers) + b"t" * tail
    image = made(owner, data)
    superseded, gone = (draw.draw(st.integers(0, len(numbers) - 1)) for _ in range(2))
    image.discard(superseded * SMALLEST, SMALLEST, Kind.SUPERSEDED)
    image.discard(gone * SMALLEST, SMALLEST, Kind.DISCARDED)
    expected = bytearray(data)
    expected[superseded * SMALLEST : (superseded + 1) * SMALLEST] = bytes(SMALLEST)
    offset = draw.draw(st.integers(0, len(data) - 1))
    most = draw.draw(st.integers(1, len(data)))
    end = min(offset + most, len(data))
    if offset < (gone + 1) * SMALLEST:
        end = max(offset, min(end, gone * SMALLEST)) if offset < gone * SMALLEST else offset
    assert gathered(image, offset, most) == bytes(expected[offset:end])
    image.drop()
    assert owner.settle() == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3 * SMALLEST), min_size=1, max_size=20), st.data())
def test_any_pieces(sizes: list[int], data: st.DataObject) -> None:
    owner = Owner()
    image = owner.image()
    written = b""
    for index, size in enumerate(sizes):
        part = bytes([index + 1]) * size
        append(image, part, expected=data.draw(st.integers(1, LARGEST)))
        written += part
    image.finish(len(written), digest(written))
    offset = data.draw(st.integers(0, len(written)))
    length = data.draw(st.integers(0, len(written)))
    assert read_bytes(image, offset, length) == written[offset : offset + length]
    image.drop()
    assert owner.settle() == 0


def test_an_image_that_gets_no_memory_takes_nobody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when it is asked again."""
    monkeypatch.setattr(arena_module, "REGION", LARGEST)
    owner = Owner(limit=16 * LARGEST)
    one, two = owner.image(), owner.image()
    append(one, pattern(LARGEST))
    with monkeypatch.context() as full:
        full.setattr(os, "memfd_create", no_descriptor)
        with pytest.raises(OutOfMemory):
            two.reserve(MIB)
    append(two, b"y" * MIB)
    assert whole(one) == pattern(LARGEST)
    assert whole(two) == b"y" * MIB
    one.drop()
    two.drop()
    assert owner.settle() == 0


def no_descriptor(*arguments: object) -> int:
    raise OSError(24, "Too many open files")
