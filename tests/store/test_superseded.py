"""Pages that a later snapshot has anew are given back, as CRIU's auto-dedup does it."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Sequence
from hashlib import shake_128
from pathlib import Path
from random import Random

import pytest
from twisted.logger import globalLogPublisher

from criu_relay.interfaces import Mode
from criu_relay.store.opened import read_bytes
from criu_relay.store.policy import Dedup
from criu_relay.store.table import Kind
from criu_relay.wire.pagemap import LAZY, MAGIC, PARENT, PRESENT
from criu_relay.wire.pagemap_pb2 import Entry, Head
from tests.store.support import ALICE, Bench, Turns, digest

PAGE = 4096
TRAFFIC = Path(__file__).parents[1] / "data" / "traffic" / "predump-dump.jsonl"


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def pagemap(pages_id: int, *entries: tuple[int, int, int]) -> bytes:
    """Of (first page, count, flags)."""
    made = MAGIC + framed(Head(pages_id=pages_id).SerializeToString())
    for start, count, flags in entries:
        entry = Entry(vaddr=start * PAGE, compat_nr_pages=count, flags=flags)
        made += framed(entry.SerializeToString())
    return made


class Dumps:
    """A namespace with snapshots, each with what a task has at some addresses."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.migration = bench.begin()
        self.numbers = 0
        self.written: list[dict[str, bytes]] = []

    def snapshot(self) -> None:
        self.written.append({})
        self.bench.store.snapshot(ALICE, self.migration, len(self.written), f"/img/{len(self.written)}")

    def image(self, name: str, data: bytes) -> None:
        self.numbers += 1
        store, index = self.bench.store, len(self.written)
        store.open_image(ALICE, self.migration, self.numbers, index, name, Mode.REPLACE)
        self.bench.more(self.migration, data, self.numbers)
        store.end_image(ALICE, self.migration, self.numbers, len(data), digest(data))
        self.written[-1][name] = data

    def add(self, entries: Sequence[tuple[int, int, int]], random: Random, pid: int = 7, first: bool = True) -> None:
        """The images of one task; the pagemap comes first, or the pages do."""
        pages = random.randbytes(sum(count for _, count, flags in entries if flags & PRESENT) * PAGE)
        images = [(f"pagemap-{pid}.img", pagemap(pid, *entries)), (f"pages-{pid}.img", pages)]
        for name, data in images if first else images[::-1]:
            self.image(name, data)
        self.bench.settle()

    def read(self, snapshot: int, name: str) -> bytes:
        image = self.bench.generation(self.migration).snapshots[snapshot - 1].images[name]
        return b"".join(read_bytes(image, at, 1 << 20) for at in range(0, image.size, 1 << 20))


@pytest.fixture
def bench() -> Bench:
    return Bench(memory=64 << 20)


@pytest.fixture
def warnings() -> list[str]:
    """What is logged of namespaces for which it was turned off."""
    found: list[str] = []

    def observe(event: dict[str, object]) -> None:
        if "are kept" in str(event.get("log_format")):
            found.append(str(event["reason"]))

    globalLogPublisher.addObserver(observe)
    return found


@pytest.mark.parametrize("first", [True, False])
def test_what_a_later_snapshot_has_is_given_back(bench: Bench, first: bool) -> None:
    dumps, random = Dumps(bench), Random(1)
    dumps.snapshot()
    dumps.add([(16, 10, PRESENT), (100, 4, PRESENT | LAZY)], random, first=first)
    assert bench.arena.allocated == 15 * PAGE
    dumps.snapshot()
    dumps.add([(16, 3, PARENT), (19, 2, PRESENT), (21, 5, PARENT), (102, 3, PRESENT)], random, first=first)
    old, new = dumps.written[0]["pages-7.img"], dumps.written[1]["pages-7.img"]
    expected = bytearray(old)
    expected[3 * PAGE : 5 * PAGE] = bytes(2 * PAGE)
    expected[12 * PAGE :] = bytes(2 * PAGE)
    assert dumps.read(1, "pages-7.img") == bytes(expected)
    assert dumps.read(2, "pages-7.img") == new
    assert bench.arena.allocated == (14 - 4 + 5 + 2) * PAGE, "what is live, and two pagemaps"
    bench.seal(dumps.migration)
    bench.settle()
    bench.store.decide(ALICE, dumps.migration, False, "")
    bench.settle()
    assert bench.arena.used == 0


def test_the_parent_of_the_parent(bench: Bench) -> None:
    """Pages that the snapshot between left to its parent are given back there."""
    dumps, random = Dumps(bench), Random(2)
    for entries in ([(16, 4, PRESENT)], [(16, 4, PARENT)], [(17, 1, PRESENT)]):
        dumps.snapshot()
        dumps.add(entries, random)
    old = dumps.written[0]["pages-7.img"]
    assert dumps.read(1, "pages-7.img") == old[:PAGE] + bytes(PAGE) + old[2 * PAGE :]


def test_tasks_do_not_replace_one_another(bench: Bench) -> None:
    dumps, random = Dumps(bench), Random(3)
    dumps.snapshot()
    dumps.add([(16, 4, PRESENT)], random, pid=7)
    dumps.snapshot()
    dumps.add([(16, 4, PRESENT)], random, pid=8)
    assert dumps.read(1, "pages-7.img") == dumps.written[0]["pages-7.img"]


def test_off_keeps_everything() -> None:
    bench = Bench(memory=64 << 20, dedup=Dedup.OFF)
    dumps, random = Dumps(bench), Random(3)
    for _ in range(2):
        dumps.snapshot()
        dumps.add([(16, 4, PRESENT)], random)
    assert dumps.read(1, "pages-7.img") == dumps.written[0]["pages-7.img"]


def test_fifty_predumps_and_a_dump(bench: Bench) -> None:
    """The cache holds no more than the task has, and each page that counts is the newest."""
    dumps, random = Dumps(bench), Random(50)
    size = 1000
    task: dict[int, bytes] = {}
    for level in range(51):
        changed = sorted(random.sample(range(size), size if not level else random.randrange(1, 400)))
        runs: list[tuple[int, int, int]] = []
        for page in changed:
            if runs and runs[-1][0] + runs[-1][1] == 64 + page:
                runs[-1] = runs[-1][0], runs[-1][1] + 1, PRESENT
            else:
                runs.append((64 + page, 1, PRESENT))
        dumps.snapshot()
        dumps.add(runs, random)
        pages = dumps.written[-1]["pages-7.img"]
        task.update({page: pages[at * PAGE : (at + 1) * PAGE] for at, page in enumerate(changed)})
        metadata = sum(-(-len(images["pagemap-7.img"]) // PAGE) for images in dumps.written) * PAGE
        assert bench.arena.allocated <= size * PAGE + metadata
    assert bench.arena.used <= size * PAGE * 1.05 + (16 << 20)
    bench.seal(dumps.migration)
    bench.settle()
    survivors = {bytes(PAGE)}
    for level in range(1, 52):
        data = dumps.read(level, "pages-7.img")
        survivors |= {data[at : at + PAGE] for at in range(0, len(data), PAGE)}
    assert survivors == {bytes(PAGE), *task.values()}
    bench.store.decide(ALICE, dumps.migration, True, "")
    bench.store.discard("web")
    bench.settle()
    assert bench.arena.used == 0


WRONG = {
    "it begins with": lambda good: b"\0" * 8 + good[8:],
    "ends in the middle": lambda good: good[:-3],
    "tells of": lambda good: good + framed(Entry(vaddr=1 << 40, compat_nr_pages=1, flags=PRESENT).SerializeToString()),
    "cannot be read": lambda good: good + framed(b"\xff\xff\xff"),
    "is at": lambda good: good + framed(Entry(vaddr=PAGE, compat_nr_pages=1, flags=PARENT).SerializeToString()),
    "are possible": lambda good: good + b"\xff\xff\xff\xff",
    "no head": lambda good: good[:10],
}


@pytest.mark.parametrize("what", WRONG)
def test_a_malformed_pagemap_turns_it_off_and_loses_nothing(bench: Bench, warnings: list[str], what: str) -> None:
    dumps, random = Dumps(bench), Random(4)
    dumps.snapshot()
    dumps.add([(16, 10, PRESENT)], random)
    dumps.snapshot()
    dumps.image("pages-7.img", random.randbytes(5 * PAGE))
    dumps.image("pagemap-7.img", WRONG[what](pagemap(7, (20, 5, PRESENT))))
    bench.settle()
    dumps.snapshot()
    dumps.add([(16, 10, PRESENT)], random)
    assert len(warnings) == 1
    assert what in warnings[0]
    for level, images in enumerate(dumps.written, 1):
        for name, data in images.items():
            assert dumps.read(level, name) == data
    bench.seal(dumps.migration)
    bench.settle()
    bench.store.decide(ALICE, dumps.migration, False, "")
    bench.settle()
    assert bench.arena.used == 0


def test_work_is_spread_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criu_relay.store.superseded.STEPS_PER_TURN", 1)
    clock = Turns()
    bench = Bench(clock=clock)
    dumps, random = Dumps(bench), Random(6)
    for _ in range(2):
        dumps.snapshot()
        dumps.image("pagemap-7.img", pagemap(7, *((at, 1, PRESENT) for at in range(16, 116, 2))))
        dumps.image("pages-7.img", random.randbytes(50 * PAGE))
    parent = bench.generation(dumps.migration).snapshots[0].images["pages-7.img"]
    seen = []
    while parent.table.pages[Kind.SUPERSEDED] < 50:
        seen.append(parent.table.pages[Kind.SUPERSEDED])
        assert clock.turn()
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= 2
    assert len(seen) > 25


@pytest.mark.parametrize("name", ["pagemap-7.img", "pages-7.img"])
def test_replaced_before_it_was_taken_in(bench: Bench, warnings: list[str], name: str) -> None:
    """What has replaced it counts, and nothing else stops."""
    dumps, random = Dumps(bench), Random(7)
    dumps.snapshot()
    dumps.add([(16, 4, PRESENT)], random)
    dumps.snapshot()
    dumps.image("pagemap-7.img", pagemap(7, (16, 4, PRESENT)))
    dumps.image("pages-7.img", random.randbytes(4 * PAGE))
    bench.store.open_image(ALICE, dumps.migration, 99, 2, name, Mode.REPLACE)
    bench.settle()
    assert warnings == []
    assert dumps.read(1, "pages-7.img") == dumps.written[0]["pages-7.img"], "nothing has replaced it yet"
    dumps.image("pages-7.img", random.randbytes(PAGE))
    dumps.image("pagemap-7.img", pagemap(7, (16, 1, PRESENT)))
    bench.settle()
    assert dumps.read(1, "pages-7.img") == bytes(PAGE) + dumps.written[0]["pages-7.img"][PAGE:]
    assert dumps.read(2, "pages-7.img") == dumps.written[1]["pages-7.img"]


def test_replaced_in_the_middle(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """However far it was taken in: it ends there, and once pages were given back for it nothing more is."""
    monkeypatch.setattr("criu_relay.store.superseded.STEPS_PER_TURN", 1)
    monkeypatch.setattr("criu_relay.store.superseded.READ_AT_ONCE", 64)
    runs = [(at, 1, PRESENT) for at in range(16, 56, 2)]
    turns, ends = 0, []
    while not ends or ends[-1] != "taken in":
        bench = Bench(clock=(clock := Turns()))
        dumps, random = Dumps(bench), Random(8)
        for _ in range(2):
            while clock.turn():
                pass
            dumps.snapshot()
            dumps.image("pagemap-7.img", pagemap(7, *runs))
            dumps.image("pages-7.img", random.randbytes(20 * PAGE))
        for _ in range(turns):
            clock.turn()
        done = not bench.store._superseder._queue
        bench.store.open_image(ALICE, dumps.migration, 99, 2, "pagemap-7.img", Mode.REPLACE)
        while clock.turn():
            pass
        assert not bench.store._superseder._queue
        ends.append("taken in" if done else "turned off" if warnings else "no result")
        warnings.clear()
        turns += 1
    assert [end for end, _ in itertools.groupby(ends)][:2] == ["no result", "turned off"]


def test_a_defect_ends_the_work_of_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' goes on, without a pagemap that comes and wakes it."""
    broken, dumps, random = Dumps(bench), Dumps(bench), Random(9)
    for one in (broken, dumps):
        for _ in range(2):
            one.snapshot()
            one.image("pagemap-7.img", pagemap(7, (16, 1, PRESENT)))
            one.image("pages-7.img", random.randbytes(PAGE))
    monkeypatch.setattr(bench.generation(broken.migration).snapshots[0].images["pagemap-7.img"], "size", 1 << 20)
    with pytest.raises(IndexError):
        bench.settle()
    bench.settle()
    assert dumps.read(1, "pages-7.img") == bytes(PAGE)


def test_the_recording(bench: Bench) -> None:
    """A real pre-dump and dump: what is left is each page of the task once."""
    dumps = Dumps(bench)
    labels: list[str] = []
    live: dict[int, tuple[str, int]] = {}
    for line in TRAFFIC.read_text().splitlines():
        row = json.loads(line)
        if row["side"] != "proxy" or row["open_mode"] != 1 or not row["snapshot_id"]:
            continue
        if row["snapshot_id"] not in labels:
            labels.append(row["snapshot_id"])
            dumps.snapshot()
        data = row["pipe_from_client"]
        content = (
            bytes.fromhex(data) if isinstance(data, str) else shake_128(data["seed"].encode()).digest(data["bytes"])
        )
        dumps.image(row["name"], content)
        bench.settle()
    for level, images in enumerate(dumps.written, 1):
        first = 0
        at = 8
        for name, content in images.items():
            if not name.startswith("pagemap"):
                continue
            while at < len(content):
                (length,) = struct.unpack_from("<I", content, at)
                body, at = content[at + 4 : at + 4 + length], at + 4 + length
                if at - length - 4 == 8:
                    continue
                entry = Entry.FromString(body)
                for page in range(entry.compat_nr_pages if entry.flags & PRESENT else 0):
                    live[entry.vaddr // PAGE + page] = (f"{level}", first)
                    first += 1
    assert len(labels) == 2
    for level, images in enumerate(dumps.written, 1):
        kept = {first for where, first in live.values() if where == f"{level}"}
        old, now = images["pages-1.img"], dumps.read(level, "pages-1.img")
        assert len(old) == len(now)
        for page in range(len(old) // PAGE):
            expected = old[page * PAGE : (page + 1) * PAGE] if page in kept else bytes(PAGE)
            assert now[page * PAGE : (page + 1) * PAGE] == expected
    superseded = sum(image.table.pages[Kind.SUPERSEDED] for image in bench.generation(dumps.migration).images())
    assert superseded > 0
    assert superseded + len(live) == sum(len(images["pages-1.img"]) for images in dumps.written) // PAGE
