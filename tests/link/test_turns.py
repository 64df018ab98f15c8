"""Who sends next, and how fast."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.task import Clock

from criu_relay.interfaces import Mode
from criu_relay.link.pace import BURST_SECONDS, Pace
from criu_relay.link.turns import Turns
from tests.link.support import MIB, Loop, Parsed, migration


class Image:
    """Has frames of the sizes that it is given."""

    def __init__(self, owner: object, *sizes: int) -> None:
        self.migration: Any = owner
        self.sizes = list(sizes)

    @property
    def ready(self) -> bool:
        return bool(self.sizes)


def served(turns: Turns, rounds: int) -> dict[object, int]:
    """Bytes that each migration sends in so many turns."""
    total: dict[object, int] = {}
    for _ in range(rounds):
        image: Any = turns.next()
        if image is None:
            break
        size = image.sizes.pop(0) if image.sizes else 0
        turns.took(image, size)
        total[image.migration] = total.get(image.migration, 0) + size
    return total


def test_migrations_share_by_bytes_however_many_images_and_whatever_frames_they_have() -> None:
    rolled = random.Random(3)
    turns = Turns()
    owners = ["large frames", "small frames", "many images", "any"]
    turns.add(Image(owners[0], *[MIB] * 1000))  # type: ignore[arg-type]
    turns.add(Image(owners[1], *[4096] * 1_000_000))  # type: ignore[arg-type]
    for _ in range(50):
        turns.add(Image(owners[2], *[65536] * 1000))  # type: ignore[arg-type]
    turns.add(Image(owners[3], *[rolled.randrange(1, MIB) for _ in range(100_000)]))  # type: ignore[arg-type]
    shares = served(turns, 20_000)
    assert set(shares) == set(owners)
    mean = sum(shares.values()) / len(shares)
    assert all(abs(share / mean - 1) < 0.1 for share in shares.values()), shares


def test_one_that_begins_neither_waits_nor_catches_up() -> None:
    turns = Turns()
    first, second = Image("first", *[MIB] * 1000), Image("second", *[MIB] * 1000)
    turns.add(first)  # type: ignore[arg-type]
    served(turns, 100)
    turns.add(second)  # type: ignore[arg-type]
    shares = served(turns, 20)
    assert abs(shares["first"] - shares["second"]) <= MIB


def test_images_of_one_migration_take_turns() -> None:
    turns = Turns()
    large, small = Image("web", *[MIB] * 10), Image("web", 10)
    turns.add(large)  # type: ignore[arg-type]
    turns.add(small)  # type: ignore[arg-type]
    assert turns.next() is large
    turns.took(large, MIB)  # type: ignore[arg-type]
    assert turns.next() is small


def test_nothing_is_left() -> None:
    turns = Turns()
    turns.add(Image("web", 1, 2))  # type: ignore[arg-type]
    turns.add(Image("gone"))  # type: ignore[arg-type]
    assert served(turns, 100) == {"web": 3, "gone": 0}
    assert turns.next() is None
    turns.add(Image("web", 5))  # type: ignore[arg-type]
    assert served(turns, 100) == {"web": 5}


@pytest.mark.parametrize("rate", [64 << 10, 10 * MIB, 1 << 30])
def test_a_rate_is_kept(rate: int) -> None:
    clock, woken = Clock(), []
    pace = Pace(clock, lambda: woken.append(clock.seconds()), rate)
    rolled, total = random.Random(rate), 0
    while clock.seconds() < 60:
        if pace.open():
            size = rolled.randrange(100, MIB)
            pace.sent(size)
            total += size
        else:
            before = len(woken)
            [call] = clock.getDelayedCalls()
            clock.advance(call.getTime() - clock.seconds())
            assert len(woken) == before + 1
    assert abs(total / clock.seconds() / rate - 1) < 0.05


def test_time_that_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(clock, lambda: None, MIB)
    clock.advance(3600)
    sent = 0
    while pace.open():
        pace.sent(1024)
        sent += 1024
    assert sent <= MIB * BURST_SECONDS + 1024


def test_another_rate_counts_at_once() -> None:
    clock, woken = Clock(), []
    pace = Pace(clock, lambda: woken.append(1), 64 << 10)
    pace.sent(10 * MIB)
    assert not pace.open()
    pace.set(None)
    assert woken == [1]
    assert pace.open()
    assert clock.getDelayedCalls() == []
    pace.set(64 << 10)
    assert pace.open()


def test_a_link_with_a_rate_says_what_it_is_asked_at_once() -> None:
    """Decisions, pongs and errors do not wait for the pace of images."""
    loop = Loop().connect()
    loop.outlet.pace.set(64 << 10)
    outgoing = loop.outlet.begin(migration(1), "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    sink = outgoing.open_image(1, "pages-1.img", Mode.REPLACE)
    for _ in range(4):
        sink.write(bytes(MIB))
    loop.pump()
    before = len(loop.record["up"])
    assert before < 3 * MIB
    outgoing.decide(False, "given up")
    loop.pump()
    assert Parsed().feed(bytes(loop.record["up"])).kinds[-1] == "abort"
