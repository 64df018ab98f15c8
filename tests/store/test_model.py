"""Random operations against a trivial model: every read is right, the budget holds, and nothing is left at the end.

`make model` runs 10^5 of them, a run of the tests some thousands: `MODEL_OPERATIONS` says how many at least.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from criu_relay.errors import Conflict, NotFound, OutOfMemory, RelayError
from criu_relay.flow.zeros import PAGE
from criu_relay.interfaces import Mode
from criu_relay.store.generation import State
from criu_relay.store.image import Image
from criu_relay.store.opened import OpenedImage
from criu_relay.store.policy import Dedup
from criu_relay.store.table import Kind
from criu_relay.wire import link as wire
from tests.store.support import ALICE, BOB, MIB, Bench, digest, outcome, settle

OPERATIONS = int(os.environ.get("MODEL_OPERATIONS", "4000"))
STEPS = 100

DONE: Counter[str] = Counter()
"""Operations that were done so far, by name."""

MEMORY = 2 * MIB
NAME = "pages-1.img"
MOST_OPEN = 6
"""Namespaces that are sent at the same time: with more, nobody has credit."""

MOST_READERS = 20

WEIGHTS = {
    "begin": 3, "write": 8, "write_zeros": 2, "end": 2, "rewrite": 1, "commit": 3, "abort": 1, "turns": 3,
    "discard_range": 3, "discard": 1, "restored": 1, "read": 6, "serve": 4, "skip": 4, "go_on": 8, "leave": 1,
    "compare": 4, "spill_now": 1,
}  # fmt: skip
"""Operations, and how often each is done."""

OFTEN = [name for name, weight in WEIGHTS.items() for _ in range(weight)]

PATTERNS = [bytes(PAGE), *(bytes([seed, 7 * seed]) * (PAGE // 2) for seed in range(1, 6))]
"""What pages are of: many are equal, or zeros."""

picks = st.integers(0, 1 << 16)
places = st.integers(0, 70 * PAGE)


def bytes_of(seed: int) -> bytes:
    """Up to 60 pages, some of which are cut short, so that what follows is not where pages begin."""
    chosen = random.Random(seed)
    return b"".join(
        chosen.choice(PATTERNS)[: 700 if chosen.random() < 0.03 else PAGE] for _ in range(chosen.randint(1, 60))
    )


@dataclass(eq=False)
class Model:
    """A namespace as it should be.

    @ivar gone: pages that nobody can read any more; `blank`: that read as zeros.
    @ivar number: of its image on the link; `spent`: credit.
    """

    name: str
    owner: Any
    migration: bytes
    data: bytearray = field(default_factory=bytearray)
    gone: set[int] = field(default_factory=set)
    blank: set[int] = field(default_factory=set)
    number: int = 1
    spent: int = 0
    complete: bool = False

    def expected(self, offset: int, length: int) -> bytes | None:
        """None: some of it is gone."""
        length = min(length, len(self.data) - offset)
        pages = range(offset // PAGE, -(-(offset + length) // PAGE)) if length else range(0)
        if any(page in self.gone for page in pages):
            return None
        found = bytearray(self.data[offset : offset + length])
        for page in pages:
            if page in self.blank:
                start, stop = max(page * PAGE, offset) - offset, min((page + 1) * PAGE, offset + length) - offset
                found[start:stop] = bytes(stop - start)
        return bytes(found)


@dataclass(eq=False)
class Reader:
    """A restore that reads into a socket at its own speed."""

    model: Model
    opened: OpenedImage
    theirs: socket.socket
    ours: socket.socket
    results: list[Any]
    restore: Any
    expected: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    skips: list[tuple[int, int]] = field(default_factory=list)
    reset: bool = False


class Cache(RuleBasedStateMachine):
    """The store, beside its model. Operations pick among what there is for them."""

    @initialize(dedup=st.sampled_from(Dedup), release=st.booleans(), spill=st.booleans())
    def begin_all(self, dedup: Dedup, release: bool, spill: bool) -> None:
        self.fds = len(os.listdir("/proc/self/fd"))
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) if spill else None
        self.bench = Bench(MEMORY, dedup=dedup, release=release, spill=path)
        self.release = release
        self.granted: dict[bytes, int] = {}
        self.bench.store.credits.granted = self.granted.__setitem__
        self.models: list[Model] = []
        self.live: list[Reader] = []
        self.count = 0

    def state(self, model: Model) -> State:
        generation = self.bench.store._generations.get(model.migration)
        return generation.state if generation is not None else State.DISCARDED

    def those(self, state: State) -> list[Model]:
        return [model for model in self.models if self.state(model) is state]

    def open(self) -> list[Model]:
        return self.those(State.OPEN)

    def committed(self) -> list[Model]:
        return self.those(State.COMMITTED)

    def image(self, model: Model) -> Image:
        return self.bench.store.known(model.name).at(None, NAME)[1]

    def credit(self, model: Model) -> int:
        return self.granted.get(model.migration, 0) - model.spent

    @rule(kind=st.integers(0, len(OFTEN) - 1), pick=picks, at=places, count=places, flag=st.booleans())
    def operate(self, kind: int, pick: int, at: int, count: int, flag: bool) -> None:
        """One operation; where there is nothing to do for it, the next that has."""
        for name in OFTEN[kind:] + OFTEN[:kind]:
            if getattr(self, name)(pick, at, count, flag):
                DONE[name] += 1
                return

    # What is sent

    def begin(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if len(self.open()) >= MOST_OPEN:
            return False
        self.count += 1
        name, owner = f"web{self.count}", ALICE if flag else BOB
        model = Model(name, owner, self.bench.begin(name, owner))
        self.bench.store.snapshot(owner, model.migration, 1, "")
        self.bench.store.open_image(owner, model.migration, 1, 1, NAME, Mode.REPLACE)
        self.bench.store.credit(owner, model.migration)
        self.models.append(model)
        return True

    def write(self, pick: int, at: int, count: int, flag: bool) -> bool:
        """More of an image; one that ended goes on."""
        if not self.open():
            return False
        model = of(self.open(), pick)
        data = bytes_of(at)
        cost = wire.extent_cost(len(model.data), len(data)) if flag else 0
        if cost > self.credit(model):
            return False
        if model.complete:
            self.bench.store.open_image(model.owner, model.migration, model.number, 1, NAME, Mode.APPEND)
            model.complete = False
        growing = self.bench.store.writing(model.owner, model.migration, model.number, len(model.data), cost)
        model.spent += cost
        left = memoryview(data)
        try:
            while left:
                room = growing.reserve(len(left))
                count = min(len(room.view), len(left))
                room.view[:count] = left[:count]
                del room
                growing.written(count)
                model.data += left[:count]
                left = left[count:]
        except OutOfMemory:
            assert not flag, "credit is room"
            self.give_up(model)
        return True

    def write_zeros(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.open():
            return False
        model = of(self.open(), pick)
        pages = 1 + count // PAGE
        cost = wire.extent_cost(len(model.data), 0, pages * PAGE)
        if model.complete or len(model.data) % PAGE or cost > self.credit(model):
            return False
        growing = self.bench.store.writing(model.owner, model.migration, model.number, len(model.data), cost)
        model.spent += cost
        growing.grow([0, pages * PAGE])
        model.data += bytes(pages * PAGE)
        return True

    def end(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.open():
            return False
        self.finish_writing(of(self.open(), pick))
        return True

    def finish_writing(self, model: Model) -> None:
        if not model.complete:
            data = bytes(model.data)
            self.bench.store.end_image(model.owner, model.migration, model.number, len(data), digest(data))
            model.complete = True

    def rewrite(self, pick: int, at: int, count: int, flag: bool) -> bool:
        """The same name again: what was written is replaced."""
        if not self.open():
            return False
        model = of(self.open(), pick)
        model.number += 1
        self.bench.store.open_image(model.owner, model.migration, model.number, 1, NAME, Mode.REPLACE)
        model.data.clear()
        model.complete = False
        return True

    def commit(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.open():
            return False
        model = of(self.open(), pick)
        self.finish_writing(model)
        assert self.bench.seal(model.migration, model.owner) == len(model.data)
        self.bench.store.decide(model.owner, model.migration, True, "")
        return True

    def abort(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.open():
            return False
        self.give_up(of(self.open(), pick))
        return True

    def give_up(self, model: Model) -> None:
        self.bench.store.link_lost(model.owner, [model.migration], "given up")

    # What is thrown away

    def discard_range(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.committed():
            return False
        model = of(self.committed(), pick)
        size = len(model.data)
        if at == 0 and count >= size:
            return False
        pages = range(-(-at // PAGE), -(-size // PAGE) if at + count >= size else (at + count) // PAGE)
        if flag:
            if any(reader.model is model for reader in self.live):
                return False  # CRIU reads nothing that is superseded
            self.image(model).discard(at, count, Kind.SUPERSEDED)
            model.blank |= set(pages)
            model.gone -= set(pages)
        else:
            self.bench.store.discard_image(model.name, None, NAME, at, count)
            model.gone |= set(pages)
            model.blank -= set(pages)
        return True

    def discard(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.committed():
            return False
        self.bench.store.discard(of(self.committed(), pick).name)
        return True

    def restored(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.committed():
            return False
        self.bench.store.restored(of(self.committed(), pick).name)
        return True

    # What is read

    def read(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.committed():
            return False
        model = of(self.committed(), pick)
        at %= max(1, len(model.data))
        opened = OpenedImage(self.bench.reactor, self.image(model))
        results = outcome(opened.read(at, count))
        opened.close()
        expected = model.expected(at, count)
        if self.image(model).table.pages[Kind.RELEASED]:
            assert isinstance(results[0], Conflict) or results == [expected]
        elif expected is None:
            assert isinstance(results[0], Conflict)
        else:
            assert results == [expected]
        return True

    def serve(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if len(self.live) >= MOST_READERS or not self.committed():
            return False
        model = of(self.committed(), pick)
        restore = self.bench.store.namespace(model.name).begin(None)
        found = outcome(restore.open(None, NAME))
        if isinstance(found[0], Conflict):
            assert self.release
            return False
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        results = outcome(found[0].serve(ours.fileno()))
        self.live.append(Reader(model, found[0], theirs, ours, results, restore))
        return True

    def skip(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if not self.live:
            return False
        reader = of(self.live, pick)
        if reader.results:
            return False
        start, stop = reader.opened.skip(at, count)
        assert stop <= max(len(reader.model.data), start)
        if stop > start:
            reader.skips.append((start, stop))
        return True

    def go_on(self, pick: int, at: int, count: int, flag: bool) -> bool:
        """The reader takes what there is."""
        if not self.live:
            return False
        reader = of(self.live, pick)
        for _ in range(1 + at % 4):
            for writer in list(self.bench.reactor.writers):
                if writer is reader.opened._server:
                    writer.doWrite()
            self.take(reader)
            if reader.results:
                self.finish(reader)
                break
        return True

    def take(self, reader: Reader) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := reader.theirs.recv(MIB):
                reader.got += piece

    def finish(self, reader: Reader) -> None:
        """It is over: what came is what should come, as far as it came."""
        model = reader.model
        kept, at = bytearray(), 0
        for start, stop in sorted(reader.skips):
            kept += model.data[at:start]
            at = stop
        kept += model.data[at:]
        if model.blank:
            assert len(reader.got) <= len(kept)
        else:
            assert kept.startswith(bytes(reader.got))
        if isinstance(reader.results[0], RelayError):
            assert len(reader.got) < len(kept) or not kept
        else:
            assert len(reader.got) == len(kept) == reader.results[0]
        self.close(reader)

    def leave(self, pick: int, at: int, count: int, flag: bool) -> bool:
        """The reader closes its end early."""
        if not self.live:
            return False
        self.close(of(self.live, pick))
        return True

    def close(self, reader: Reader) -> None:
        self.live.remove(reader)
        reader.theirs.close()
        if not reader.results:
            for writer in list(self.bench.reactor.writers):
                if writer is reader.opened._server:
                    writer.connectionLost(None)
        reader.ours.close()
        reader.opened.close()
        reader.restore.finished()

    # What the cache does by itself

    def turns(self, pick: int, at: int, count: int, flag: bool) -> bool:
        """What is to be done at once is done: giving back, spilling."""
        settle(self.bench.clock)
        return True

    def compare(self, pick: int, at: int, count: int, flag: bool) -> bool:
        """Some pages that came before are compared, in between."""
        if not self.bench.store.memory.backlog:
            return False
        self.bench.store.memory.backlog.work(1 + count)
        return True

    def spill_now(self, pick: int, at: int, count: int, flag: bool) -> bool:
        if self.bench.store.policy.spill is None:
            return False
        spiller = self.bench.store._spiller
        wanted, spiller._wanted = spiller._wanted, lambda: True
        spiller.start()
        settle(self.bench.clock)
        spiller._wanted = wanted
        return True

    @invariant()
    def the_budget_holds(self) -> None:
        if not hasattr(self, "bench"):
            return
        arena = self.bench.arena
        assert arena.used <= arena.limit
        assert arena.allocated + arena.noted + arena.recycled <= arena.limit
        assert min(arena.reserved, arena.allocated, arena.noted, arena.recycled) >= 0

    @invariant()
    def figures_add_up(self) -> None:
        if not hasattr(self, "bench"):
            return
        accounts = self.bench.store.accounts()
        for generation, figures in accounts.of.items():
            assert sum(figures.values()) == generation.total
            assert min(figures.values()) >= 0
        parts = accounts.memory
        assert parts["used"] == parts["images"] + parts["room"] + parts["index"] + parts["credit"]

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for reader in list(self.live):
            self.close(reader)
        for model in self.models:
            try:
                self.bench.store.discard(model.name)
            except NotFound:
                continue
        self.bench.settle()
        arena, memory = self.bench.arena, self.bench.store.memory
        assert (arena.used, arena.reserved, arena.allocated, arena.noted) == (0, 0, 0, 0)
        assert memory.pages.duplicates == 0
        assert not memory.pages._references.any()
        assert not memory.pages._indexed.any()
        assert sum(len(memory.index(owner.peer)) for owner in (ALICE, BOB)) == 0
        memory.close()
        self.directory.cleanup()
        assert len(os.listdir("/proc/self/fd")) <= self.fds


def of(what: list[Any], pick: int) -> Any:
    """One of them."""
    return what[pick % len(what)]


class TestCache(Cache.TestCase):  # type: ignore[misc, name-defined]
    """The run."""

    settings = settings(
        max_examples=OPERATIONS // STEPS * 6 // 5, stateful_step_count=STEPS, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def runTest(self) -> None:
        """All examples; at least so many operations were done, and of every kind."""
        super().runTest()
        assert sum(DONE.values()) >= OPERATIONS, DONE
        assert DONE.keys() == WEIGHTS.keys(), DONE
