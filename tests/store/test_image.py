"""One image: growing, ending, reading, throwing away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from criu_relay.errors import Aborted, Conflict, OutOfMemory, ProtocolError
from criu_relay.interfaces import IGrowing
from criu_relay.store.arena import FACTOR, LARGEST, SMALLEST, Arena, Extent
from criu_relay.store.image import Image
from criu_relay.store.opened import read_bytes
from tests.store.support import digest

MIB = 1 << 20


class Owner:
    """Makes images, and keeps what they give back."""

    def __init__(self, limit: int = 16 * MIB) -> None:
        self.arena = Arena(limit, keep=limit)
        self.returned: list[tuple[list[Extent], bool]] = []

    def image(self) -> Image:
        return Image(
            self.arena,
            lambda extents, shared: self.returned.append((extents, shared)),
            lambda: None,
            1,
            1,
            "pages-1.img",
        )

    @property
    def returned_bytes(self) -> int:
        return sum(extent.size for extents, _ in self.returned for extent in extents)


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
        data += image.piece(len(data)).view
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
    assert image.digest == image.own_digest() == digest(pattern(size))
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


def test_extents_grow_so_that_small_writes_make_few(owner: Owner) -> None:
    image = owner.image()
    sizes = []
    for _ in range(4 * LARGEST // SMALLEST):
        before = owner.arena.used
        append(image, b"x" * SMALLEST)
        if owner.arena.used != before:
            sizes.append(owner.arena.used - before)
    assert sizes[:5] == [SMALLEST * FACTOR**power for power in range(5)]
    assert set(sizes[5:]) == {LARGEST}


def test_a_known_size_is_taken_at_once(owner: Owner) -> None:
    image = owner.image()
    append(image, b"x", expected=300 << 10)
    assert owner.arena.used == LARGEST


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
    append(image, b"x" * LARGEST)
    with pytest.raises(OutOfMemory, match="memory is full") as caught:
        image.reserve(1)
    assert "--memory" in caught.value.hint
    assert image.size == LARGEST


def test_dropping_gives_everything_back_once(owner: Owner) -> None:
    image = owner.image()
    append(image, b"x" * (LARGEST + 1))
    used = owner.arena.used
    assert image.drop() == used
    assert owner.returned_bytes == used
    assert image.drop() == 0
    assert len(owner.returned) == 1
    assert image.size == 0
    with pytest.raises(Aborted, match="thrown away"):
        image.reserve(1)


def test_readers_keep_the_memory(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    image.opened()
    image.opened()
    assert image.drop() == SMALLEST
    assert owner.returned == []
    assert whole(image) == b"abc"
    image.closed()
    assert owner.returned == []
    image.closed()
    assert owner.returned_bytes == SMALLEST


def test_a_reader_that_leaves_a_living_image_gives_nothing_back(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    image.opened()
    image.closed()
    assert owner.returned == []
    assert whole(image) == b"abc"


def test_shared_pages_are_told_to_the_arena(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    image.shared = True
    image.drop()
    assert [shared for _, shared in owner.returned] == [True]


def three_extents(owner: Owner) -> Image:
    image = owner.image()
    append(image, pattern(3 * LARGEST))
    image.finish(image.size, None)
    return image


@pytest.mark.parametrize(
    ("offset", "length", "holes"),
    [
        (0, LARGEST - 1, []),
        (0, LARGEST, [0]),
        (1, LARGEST, []),
        (1, 2 * LARGEST - 1, [1]),
        (0, 3 * LARGEST, [0, 1, 2]),
        (2 * LARGEST, LARGEST, [2]),
        (2 * LARGEST, 1 << 62, [2]),
        (5 * LARGEST, LARGEST, []),
        (0, 0, []),
    ],
)
def test_discard_takes_whole_extents_inside_the_range(owner: Owner, offset: int, length: int, holes: list[int]) -> None:
    image = three_extents(owner)
    assert image.discard(offset, length) == len(holes) * LARGEST == owner.returned_bytes
    for index in range(3):
        at = index * LARGEST
        if index in holes:
            with pytest.raises(Conflict, match="discarded"):
                image.piece(at)
        else:
            assert bytes(image.piece(at + 7).view[:100]) == pattern(3 * LARGEST)[at + 7 : at + 107]
    assert image.size == 3 * LARGEST
    assert image.discard(offset, length) == 0
    assert image.drop() == (3 - len(holes)) * LARGEST


def test_the_last_extent_goes_when_its_used_part_is_inside(owner: Owner) -> None:
    image = owner.image()
    append(image, b"x" * SMALLEST)
    append(image, b"x")
    image.finish(SMALLEST + 1, None)
    assert image.discard(SMALLEST, 1) == owner.returned_bytes > 0


def test_discard_waits_for_readers_and_writers(owner: Owner) -> None:
    image = owner.image()
    append(image, b"abc")
    with pytest.raises(Conflict, match="written"):
        image.discard(0, 3)
    image.finish(3, None)
    image.opened()
    with pytest.raises(Conflict, match="read"):
        image.discard(0, 3)
    image.closed()
    assert image.discard(0, 3) == SMALLEST


def test_reading_at_any_offset(owner: Owner) -> None:
    image = three_extents(owner)
    data = pattern(3 * LARGEST)
    for offset, length in ((0, 10), (LARGEST - 5, 10), (2 * LARGEST, 5 * LARGEST), (3 * LARGEST - 1, 10)):
        assert read_bytes(image, offset, length) == data[offset : offset + min(length, LARGEST)]
    assert read_bytes(image, 3 * LARGEST, 1) == b""
    assert read_bytes(image, 1 << 62, 1) == b""
    assert read_bytes(image, 0, 0) == b""


class Vast:
    """An arena whose extents have no memory: only their arithmetic is looked at."""

    used = 0
    limit = 1 << 60

    def __init__(self) -> None:
        self.view = memoryview(bytearray(LARGEST))
        self.count = 0

    def allocate(self, size: int) -> Any:
        extent = Extent.__new__(Extent)
        extent.region = type("Region", (), {"fd": 99})()
        extent.offset, extent.size, extent.view = self.count * LARGEST, LARGEST, self.view
        self.count += 1
        return extent


class NoHash:
    def update(self, data: object) -> None:
        pass

    def digest(self) -> bytes:
        return b"d" * 16


def test_beyond_four_gigabytes() -> None:
    arena: Any = Vast()
    image = Image(arena, lambda extents, shared: None, lambda: None, 1, 1, "pages-1.img", _hash=NoHash())
    size = (5 << 30) + 12345
    while image.size < size:
        room = image.reserve(LARGEST)
        image.written(min(len(room.view), size - image.size))
    image.finish(size, b"d" * 16)
    for offset in (0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, size - 1):
        piece = image.piece(offset)
        assert piece.offset == offset
        assert len(piece.view) == min(LARGEST - offset % LARGEST, size - offset)


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
    assert owner.returned_bytes == owner.arena.used
