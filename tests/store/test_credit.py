"""Credit: nobody sends what there is no room for, the oldest goes first, and a stall ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_relay.errors import Conflict
from criu_relay.flow.zeros import PAGE
from criu_relay.interfaces import Mode
from criu_relay.store.credit import FIRST, LEAST, STALL_SECONDS, WINDOW
from criu_relay.store.generation import State
from criu_relay.store.table import ENTRY, Kind
from criu_relay.wire import link as wire
from tests.store.support import ALICE, MIB, Bench, digest, outcome


class Sender:
    """A proxy's side of one migration: it sends pages as far as its credit goes."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.name = name
        self.spent = 0
        self.data = b""
        self.rejected = ""
        self.migration = bench.begin(name)
        bench.store.snapshot(ALICE, self.migration, 1, "")
        bench.store.open_image(ALICE, self.migration, 1, 1, "pages-1.img", Mode.REPLACE)
        bench.store.credit(ALICE, self.migration)

    @property
    def credit(self) -> int:
        return GRANTED.get(self.migration, 0) - self.spent

    def send(self, count: int) -> int:
        """As many of `count` bytes as the credit allows; how many that were."""
        sent = 0
        while sent < count:
            part = min(count - sent, MIB, self.credit // (PAGE + ENTRY) * PAGE)
            if not part:
                break
            cost = wire.extent_cost(len(self.data), part)
            growing = self.bench.store.writing(ALICE, self.migration, 1, len(self.data), cost)
            self.spent += cost
            data = (self.migration[-1:] + len(self.data).to_bytes(8, "big") * 2)[:16] * (part // 16)
            left = memoryview(data)
            while left:
                room = growing.reserve(len(left))
                size = min(len(left), len(room.view))
                room.view[:size] = left[:size]
                growing.written(size)
                left = left[size:]
            self.data += data
            sent += part
        return sent

    def end(self) -> None:
        """All was sent."""
        self.bench.store.end_image(ALICE, self.migration, 1, len(self.data), digest(self.data))
        self.bench.seal(self.migration)

    def commit(self) -> None:
        self.bench.store.decide(ALICE, self.migration, True, "")

    @property
    def state(self) -> State:
        return self.bench.generation(self.migration).state


GRANTED: dict[bytes, int] = {}


def bench_of(memory: int, **policy: object) -> Bench:
    GRANTED.clear()
    bench = Bench(memory, **policy)
    bench.store.credits.granted = GRANTED.__setitem__
    return bench


def stall(bench: Bench) -> None:
    """Nothing moves for long enough."""
    for _ in range(2):
        bench.clock.advance(STALL_SECONDS)


def test_one_gets_a_window_and_more_as_it_sends() -> None:
    bench = bench_of(1024 * MIB)
    sender = Sender(bench, "web")
    assert sender.credit == FIRST == bench.arena.reserved
    assert sender.send(4096) == 4096
    assert sender.credit > WINDOW - MIB
    for _ in range(20):
        assert sender.send(4 * MIB) == 4 * MIB
        assert sender.credit >= WINDOW // 2
    sender.end()
    assert bench.arena.reserved == 0
    assert bench.arena.used == (80 * MIB // PAGE + 1) * (PAGE + ENTRY)


def test_more_than_was_granted_is_refused() -> None:
    bench = bench_of(64 * MIB)
    sender = Sender(bench, "web")
    with pytest.raises(Conflict, match="more was sent"):
        bench.store.writing(ALICE, sender.migration, 1, 0, sender.credit + 1)


def test_used_never_exceeds_the_budget() -> None:
    bench = bench_of(4 * MIB)
    sender = Sender(bench, "web")
    while sender.send(64 << 10):
        assert bench.arena.used <= bench.arena.limit
        assert bench.arena.allocated + bench.arena.noted + bench.arena.recycled <= bench.arena.limit
    assert len(sender.data) > 3.8 * MIB, "but for what an extent has left"
    assert sender.credit < LEAST


def test_one_that_cannot_fit_is_given_up() -> None:
    bench = bench_of(4 * MIB)
    rejected: list[tuple[bytes, str]] = []
    bench.store.rejected = lambda migration, reason: rejected.append((migration, reason))
    sender = Sender(bench, "web")
    sender.send(8 * MIB)
    assert sender.state is State.OPEN
    stall(bench)
    assert sender.state is State.ABORTED
    assert [migration for migration, _ in rejected] == [sender.migration]
    assert "web has" in rejected[0][1]
    assert f"--memory {4 * MIB}" in rejected[0][1]
    bench.settle()
    assert bench.arena.used == 0


def test_of_two_that_wait_the_youngest_is_given_up_and_the_other_goes_on() -> None:
    """Two of 0.6 x the budget at once."""
    bench = bench_of(16 * MIB)
    size = 16 * MIB * 6 // 10 // PAGE * PAGE
    old, young = Sender(bench, "old"), Sender(bench, "young")
    while old.send(min(MIB, size - len(old.data))) + young.send(min(MIB, size - len(young.data))):
        pass
    assert len(old.data) < size
    assert len(young.data) < size
    stall(bench)
    assert (old.state, young.state) == (State.OPEN, State.ABORTED)
    assert "others wait" in bench.store.known("young").reason
    bench.settle()
    while len(old.data) < size:
        assert old.send(size - len(old.data))
    old.end()
    old.commit()
    assert old.state is State.COMMITTED
    stall(bench)
    assert bench.clock.getDelayedCalls() == [], "nobody is watched any more"


def test_who_waits_goes_on_when_memory_comes_back() -> None:
    bench = bench_of(16 * MIB)
    first = Sender(bench, "first")
    first.send(12 * MIB)
    first.end()
    first.commit()
    second = Sender(bench, "second")
    while second.send(MIB):
        pass
    assert len(second.data) < 5 * MIB
    bench.clock.advance(STALL_SECONDS / 2)
    bench.store.restored("first")
    bench.settle()
    assert second.send(3 * MIB) == 3 * MIB
    stall(bench)
    assert second.state is State.OPEN


def test_nobody_is_given_up_while_something_moves() -> None:
    bench = bench_of(16 * MIB)
    first = Sender(bench, "first")
    first.send(12 * MIB)
    first.end()
    first.commit()
    [opened] = outcome(bench.store.namespace("first").begin(None).open(None, "pages-1.img"))
    second = Sender(bench, "second")
    while second.send(MIB):
        pass
    for _ in range(5):
        opened.moved(0)
        bench.clock.advance(STALL_SECONDS)
        assert second.state is State.OPEN, "a restore reads"
    opened.close()
    stall(bench)
    assert second.state is State.ABORTED


def test_a_lost_link_gives_the_credit_back() -> None:
    bench = bench_of(64 * MIB)
    sender = Sender(bench, "web")
    assert bench.arena.reserved > 0
    bench.store.link_lost(ALICE, [sender.migration], "cut")
    assert bench.arena.used == 0


def test_a_link_that_is_made_again_says_it_again() -> None:
    bench = bench_of(64 * MIB)
    sender = Sender(bench, "web")
    sender.send(MIB)
    before = dict(GRANTED)
    GRANTED.clear()
    bench.store.credit(ALICE, sender.migration)
    assert before == GRANTED, "it is told what it has"


def test_many_share(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(64 * MIB)
    senders = [Sender(bench, f"web{number}") for number in range(40)]
    assert all(sender.credit > MIB // 4 for sender in senders)
    assert all(sender.send(MIB) == MIB for sender in senders)


# Spilling


def test_cold_namespaces_go_to_disk_before_anybody_waits(tmp_path: Path) -> None:
    bench = bench_of(16 * MIB, spill=tmp_path)
    first = Sender(bench, "first")
    first.send(10 * MIB)
    first.end()
    first.commit()
    second = Sender(bench, "second")
    while len(second.data) < 10 * MIB:
        second.send(10 * MIB - len(second.data))
        bench.settle()
        assert bench.arena.used <= bench.arena.limit
    second.end()
    second.commit()
    figures = bench.store.accounts().of[bench.store.known("first")]
    assert figures["spilled"] > 4 * MIB
    assert figures["spilled"] + figures["held"] == 10 * MIB
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    for sender in (first, second):
        [opened] = outcome(bench.store.namespace(sender.name).begin(None).open(None, "pages-1.img"))
        data = b"".join(outcome(opened.read(at, MIB))[0] for at in range(0, 10 * MIB, MIB))
        assert data == sender.data
        opened.close()


def spilled(tmp_path: Path) -> tuple[Bench, Sender]:
    """A namespace that is on disk."""
    bench = bench_of(8 * MIB, spill=tmp_path)
    first = Sender(bench, "first")
    first.send(7 * MIB)
    first.end()
    first.commit()
    second = Sender(bench, "second")
    while second.send(7 * MIB - len(second.data)):
        bench.settle()
    assert len(second.data) == 7 * MIB
    return bench, first


def test_spilled_pages_can_be_discarded_and_the_file_goes(tmp_path: Path) -> None:
    bench, first = spilled(tmp_path)
    image = bench.generation(first.migration).image(1)
    assert image.spill is not None
    fd = image.spill.fd
    before = image.table.pages[Kind.SPILLED]
    bench.store.discard_image("first", None, "pages-1.img", 0, MIB)
    assert image.table.pages[Kind.SPILLED] < before
    with pytest.raises(Conflict):
        image.piece(0)
    assert image.piece(MIB).length > 0
    bench.store.discard("first")
    assert image.spill.fd == -1
    with pytest.raises(OSError):
        import os

        os.fstat(fd)


def test_what_is_read_is_not_spilled(tmp_path: Path) -> None:
    bench = bench_of(8 * MIB, spill=tmp_path)
    first = Sender(bench, "first")
    first.send(7 * MIB)
    first.end()
    first.commit()
    [opened] = outcome(bench.store.namespace("first").begin(None).open(None, "pages-1.img"))
    second = Sender(bench, "second")
    while second.send(MIB):
        bench.settle()
    assert bench.store.accounts().of[bench.store.known("first")]["spilled"] == 0
    opened.close()


def test_a_full_disk_ends_spilling_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("criu_relay.store.spill.SpillFile._write", full)
    bench = bench_of(8 * MIB, spill=tmp_path)
    first = Sender(bench, "first")
    first.send(7 * MIB)
    first.end()
    first.commit()
    second = Sender(bench, "second")
    second.send(7 * MIB)
    bench.settle()
    stall(bench)
    assert second.state is State.ABORTED
    assert bench.store.accounts().of[bench.store.known("first")]["held"] == 7 * MIB


def test_equal_pages_of_two_namespaces_survive_the_spilling_of_one(tmp_path: Path) -> None:
    from criu_relay.store.policy import Dedup

    bench = Bench(8 * MIB, spill=tmp_path, dedup=Dedup.PAGES)
    page = bytes(range(256)) * 16
    one, two = bench.committed(page * 3, "one"), bench.committed(page * 3, "two")
    bench.settle()
    assert bench.arena.allocated == PAGE
    image = bench.generation(one).image(1)
    bench.store._spiller._wanted = lambda: True
    bench.store._spiller.start()
    bench.settle()
    assert image.table.pages[Kind.SPILLED] == 3
    for migration in (one, two):
        image = bench.generation(migration).image(1)
        assert bytes(image.piece(PAGE).view(PAGE)) == page
