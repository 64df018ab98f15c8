"""Frames that are foreseen: several are received at once, and what comes instead is taken all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_relay.wire import payload
from criu_relay.wire.foreseen import Foreseen, same_place
from criu_relay.wire.payload import PayloadReader
from tests.wire.support import prefix

SIZE = 8
LIMIT = 64
AHEAD = 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a large payload elsewhere has eight bytes here."""
    monkeypatch.setattr(payload, "LARGE", SIZE)


class Growing:
    """What an image is: payloads lie one behind the other.

    @ivar taken: frames that came together, each time.
    @ivar moves: its room is elsewhere each time that it is asked for, as when pages are packed.
    @ivar closed: it is asked for no more room so many times.
    """

    def __init__(self, moves: bool = False, refuses: int = -1, closed: int = 0, most: int = 1 << 20) -> None:
        self.memory = bytearray(1 << 12)
        self.data = bytearray()
        self.taken: list[int] = []
        self.moves, self.refuses, self.closed, self.most = moves, refuses, closed, most
        self._base = 0
        self._room = memoryview(b"")

    def room(self, count: int) -> memoryview | None:
        if self.closed:
            self.closed -= 1
            return None
        self._base = 1 - self._base if self.moves else 0
        self._room = memoryview(self.memory)[self._base * 2048 + len(self.data) :][: self.most]
        return self._room

    def use(self, count: int) -> None:
        assert count <= len(self._room)
        self.data += self._room[:count]
        self._room = self._room[count:]


class Continued:
    """The payload of a frame of an image."""

    def __init__(self, image: Growing, size: int) -> None:
        self.image, self.left = image, size

    def room(self, remaining: int) -> memoryview | None:
        assert remaining == self.left
        return self.image.room(remaining)

    def filled(self, count: int) -> None:
        self.left -= count
        self.image.use(count)

    def done(self) -> None:
        assert not self.left

    def follow(self, frames: int, size: int) -> bool:
        assert not self.left and size == SIZE
        self.image.refuses -= 1
        if self.image.refuses == -1:
            return False
        self.image.taken.append(frames)
        self.image.use(frames * size)
        return True


class Reader(PayloadReader):
    """Headers are a letter and the size of the payload: i is the image, others are thrown away."""

    def __init__(self, image: Growing) -> None:
        super().__init__("test header", LIMIT)
        self.image = image
        self.others: list[bytes] = []
        self._last = b""

    def _header(self, body: bytes) -> tuple[int, Any]:
        self._last = body
        if body[:1] == b"i":
            return int(body[1:]), Continued(self.image, int(body[1:]))
        self.others.append(body)
        return int(body[1:]), None

    def _following(self, most: int) -> Sequence[bytes]:
        return [prefix(self._last)] * min(most, AHEAD) if self._last == b"i%d" % SIZE else []


def frames(*letters: str, sizes: Sequence[int] = ()) -> tuple[bytes, bytes, list[bytes]]:
    """What is sent, what the image has then, and the headers of the others."""
    sent, image, others = b"", b"", []
    for number, (letter, size) in enumerate(zip(letters, sizes or [SIZE] * len(letters), strict=True)):
        header, data = f"{letter}{size}".encode(), bytes([number + 1]) * size
        sent += prefix(header) + data
        if letter == "i":
            image += data
        else:
            others.append(header)
    return sent, image, others


def receive(reader: Reader, data: bytes, at_once: Sequence[int] = ()) -> int:
    """As a socket gives them, at most so many bytes at a time; how many times that were."""
    left, times = memoryview(data), 0
    while left:
        buffers = reader.buffers()
        if not buffers:
            continue
        most, count = at_once[times % len(at_once)] if at_once else len(left), 0
        for buffer in buffers:
            part = left[count : min(most, len(left))][: len(buffer)]
            buffer[: len(part)] = part
            count += len(part)
        reader.received(count)
        left, times = left[count:], times + 1
    while reader.stalled:
        reader.buffers()
    return times


def test_several_are_received_at_once() -> None:
    sent, image, _ = frames(*"i" * 9)
    reader = Reader(Growing())
    receive(reader, sent[:6])
    # A payload with three frames behind it and a header; the same again; the last payload.
    assert receive(reader, sent[6:]) == 3
    assert reader.image.data == image
    assert reader.image.taken == [3, 3]
    assert reader.at_boundary


def test_there_are_no_more_than_there_is_room_for() -> None:
    sent, image, _ = frames(*"i" * 9)
    reader = Reader(Growing(most=2 * SIZE + 1))
    receive(reader, sent)
    assert reader.image.data == image
    assert set(reader.image.taken) == {1}


@pytest.mark.parametrize("moves", [False, True])
def test_cut_at_every_byte(moves: bool) -> None:
    sent, image, others = frames(*"iiiixiiii")
    for cut in range(len(sent) + 1):
        reader = Reader(Growing(moves))
        receive(reader, sent[:cut])
        receive(reader, sent[cut:])
        assert (reader.image.data, reader.others) == (image, others), cut
        assert reader.at_boundary, cut


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("odd", ["x8", "i7", "i9", "x7", "x9", "i30"])
def test_split_at_every_byte(moves: bool, odd: str) -> None:
    """Something else than what is foreseen comes behind one frame, two, three."""
    letters = "ii?iii?iiii?iii"
    sizes = [int(odd[1:]) if letter == "?" else SIZE for letter in letters]
    sent, image, others = frames(*letters.replace("?", odd[0]), sizes=sizes)
    for most in range(1, 60):
        reader = Reader(Growing(moves))
        receive(reader, sent, [most])
        assert (reader.image.data, reader.others) == (image, others), most


def test_what_comes_as_it_was_foreseen_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, image, _ = frames(*"i" * 20)
    for most in range(SIZE, 70):
        reader = Reader(Growing())
        receive(reader, sent[:6])
        monkeypatch.setattr(reader, "_take", None)
        receive(reader, sent[6:], [most])
        assert reader.image.data == image, most


def test_a_room_that_has_become_smaller_meanwhile() -> None:
    sent, image, _ = frames(*"i" * 3)
    reader = Reader(Growing())
    receive(reader, sent[:6])
    come = memoryview(sent)[6 : 6 + 2 * (SIZE + 6) + 6]
    count = 0
    for buffer in reader.buffers():
        part = come[count : count + len(buffer)]
        buffer[: len(part)] = part
        count += len(part)
    reader.image.most = 3
    reader.received(count)
    receive(reader, sent[6 + count :])
    assert reader.image.data == image


@pytest.mark.parametrize("refuses", range(4))
def test_what_is_not_followed_comes_the_usual_way(refuses: int) -> None:
    sent, image, _ = frames(*"i" * 16)
    reader = Reader(Growing(refuses=refuses))
    receive(reader, sent)
    assert reader.image.data == image


LETTERS = st.lists(st.tuples(st.sampled_from("iiiix"), st.sampled_from([SIZE] * 6 + [0, 1, SIZE - 1, SIZE + 1, 30])))


@given(LETTERS, st.lists(st.integers(1, 80), min_size=1, max_size=6), st.booleans(), st.integers(-1, 5), st.data())
def test_any_session(
    letters: list[tuple[str, int]], at_once: list[int], moves: bool, refuses: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(payload, "LARGE", SIZE)
        sent, image, others = frames(*(one for one, _ in letters), sizes=[size for _, size in letters])
        growing = Growing(moves, refuses, most=data.draw(st.integers(1, 60)))
        reader = Reader(growing)
        growing.closed = data.draw(st.integers(0, 3))
        receive(reader, sent, at_once)
        assert (growing.data, reader.others) == (image, others)
        assert reader.at_boundary


def test_more_than_the_buffers_hold_was_not_received() -> None:
    reader = Reader(Growing())
    reader.feed(prefix(b"i8"))
    held = sum(len(buffer) for buffer in reader.buffers())
    assert held == 4 * (SIZE + 6)
    with pytest.raises(ValueError, match="more than the buffers hold"):
        reader.received(held + 1)


def test_headers_that_fill_the_scratch_are_not_foreseen_beyond_it() -> None:
    scratch = memoryview(bytearray(20))
    run = Foreseen([b"123456"] * 2, 4, memoryview(bytearray(8)), scratch)
    assert [len(place) for place in run.places()] == [6, 4, 6, 4, 6]
    reader = Reader(Growing())
    reader._scratch = scratch[:13]  # room for two headers of six bytes
    reader.feed(prefix(b"i8"))
    assert [len(buffer) for buffer in reader.buffers()] == [SIZE, 6, SIZE, 6]


def test_what_was_fed_meanwhile_forgets_what_was_foreseen() -> None:
    sent, image, _ = frames(*"i" * 6)
    reader = Reader(Growing())
    reader.feed(sent[:6])
    reader.buffers()
    reader.feed(sent[6:])
    assert reader.image.data == image


def test_the_same_place() -> None:
    memory = bytearray(16)
    assert same_place(memoryview(memory)[4:], memoryview(memory)[4:6])
    assert not same_place(memoryview(memory)[4:], memoryview(memory)[5:])
    assert not same_place(memoryview(memory), memoryview(bytearray(16)))
