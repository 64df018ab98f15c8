"""Random operations against a trivial model: every read is right, the budget holds, and nothing is left at the end.

`make model` runs 10^5 of them, a run of the tests some thousands: `MODEL_OPERATIONS` says how many at least.
"""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from criu_relay.errors import Conflict, NotFound, OutOfMemory, RelayError
from criu_relay.flow.zeros import PAGE
from criu_relay.interfaces import Mode
from criu_relay.store.generation import State
from criu_relay.store.opened import OpenedImage
from criu_relay.store.policy import Dedup
from criu_relay.store.table import Kind
from criu_relay.wire import link as wire
from tests.store.support import ALICE, BOB, MIB, Bench, digest

OPERATIONS = int(os.environ.get("MODEL_OPERATIONS", "4000"))
STEPS = 100

DONE: Counter[str] = Counter()
"""Operations that were done so far, by name: those that had nothing to do are not counted."""

MEMORY = 2 * MIB
NAME = "pages-1.img"
LOST = -1
"""A byte of the model that nobody can read any more."""

Content = list[tuple[int, int]]
"""Pages as (seed, bytes); seed 0 are zeros."""

contents = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([PAGE, PAGE, PAGE, 700])), min_size=1, max_size=60)


def bytes_of(content: Content) -> bytes:
    """Whole pages, many of which are equal or zeros, and sometimes less than one."""
    return b"".join(bytes(count) if not seed else bytes([seed, 7 * seed]) * (count // 2) for seed, count in content)


@dataclass(eq=False)
class Model:
    """A namespace as it should be.

    @ivar pages: by page: the bytes, or None when they are gone.
    """

    name: str
    owner: Any
    migration: bytes
    data: bytearray = field(default_factory=bytearray)
    gone: set[int] = field(default_factory=set)
    blank: set[int] = field(default_factory=set)
    spent: int = 0
    complete: bool = False

    def expected(self, offset: int, length: int) -> bytes | None:
        """None: some of it is gone."""
        length = min(length, len(self.data) - offset)
        pages = range(offset // PAGE, -(-(offset + length) // PAGE))
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
    """The store, beside its model."""

    open = Bundle("open")
    committed = Bundle("committed")
    readers = Bundle("readers")

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

    @rule(target=open, owner=st.sampled_from([ALICE, BOB]))
    def begin(self, owner: Any) -> Model:
        self.count += 1
        name = f"web{self.count}"
        model = Model(name, owner, self.bench.begin(name, owner))
        self.bench.store.snapshot(owner, model.migration, 1, "")
        self.bench.store.open_image(owner, model.migration, 1, 1, NAME, Mode.REPLACE)
        self.bench.store.credit(owner, model.migration)
        self.models.append(model)
        return model

    def state(self, model: Model) -> State:
        generation = self.bench.store._generations.get(model.migration)
        return generation.state if generation is not None else State.DISCARDED

    def credit(self, model: Model) -> int:
        return self.granted.get(model.migration, 0) - model.spent

    @rule(model=open, content=contents, credited=st.booleans())
    def write(self, model: Model, content: Content, credited: bool) -> None:
        if self.state(model) is not State.OPEN:
            return
        if model.complete:
            self.bench.store.open_image(model.owner, model.migration, 1, 1, NAME, Mode.APPEND)
            model.complete = False
        data = bytes_of(content)
        cost = wire.extent_cost(len(model.data), len(data)) if credited else 0
        if cost > self.credit(model):
            return
        growing = self.bench.store.writing(model.owner, model.migration, 1, len(model.data), cost)
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
            assert not credited, "credit is room"
            self.abort_one(model)

    @rule(model=open, pages=st.integers(1, 40))
    def write_zeros(self, model: Model, pages: int) -> None:
        if self.state(model) is not State.OPEN or model.complete or len(model.data) % PAGE:
            return
        cost = wire.extent_cost(len(model.data), 0, pages * PAGE)
        if cost > self.credit(model):
            return
        growing = self.bench.store.writing(model.owner, model.migration, 1, len(model.data), cost)
        model.spent += cost
        growing.zeros(pages * PAGE)
        model.data += bytes(pages * PAGE)

    @rule(model=open)
    def end(self, model: Model) -> None:
        if self.state(model) is State.OPEN and not model.complete:
            data = bytes(model.data)
            self.bench.store.end_image(model.owner, model.migration, 1, len(data), digest(data))
            model.complete = True

    @rule(model=open)
    def rewrite(self, model: Model) -> None:
        """The same name again: a new image with the same number is not possible, so a new migration."""
        if self.state(model) is State.OPEN:
            self.abort_one(model)

    @rule(target=committed, model=consumes(open))
    def commit(self, model: Model) -> Model:
        self.end(model)
        if self.state(model) is State.OPEN:
            assert self.bench.seal(model.migration, model.owner) == len(model.data)
            self.bench.store.decide(model.owner, model.migration, True, "")
        return model

    @rule(model=consumes(open))
    def abort(self, model: Model) -> None:
        if self.state(model) is State.OPEN:
            self.abort_one(model)

    def abort_one(self, model: Model) -> None:
        self.bench.store.link_lost(model.owner, [model.migration], "given up")

    @rule(model=committed, offset=st.integers(0, 60 * PAGE), length=st.integers(0, 80 * PAGE), blank=st.booleans())
    def discard_range(self, model: Model, offset: int, length: int, blank: bool) -> None:
        if self.state(model) is not State.COMMITTED or (offset == 0 and length >= len(model.data)):
            return
        image = self.bench.store.known(model.name).at(None, NAME)[1]
        size = len(model.data)
        pages = range(-(-offset // PAGE), -(-size // PAGE) if offset + length >= size else (offset + length) // PAGE)
        if blank:
            if any(reader.model is model for reader in self.live):
                return  # CRIU reads nothing that is superseded
            image.discard(offset, length, Kind.SUPERSEDED)
            model.blank |= set(pages)
            model.gone -= set(pages)
        else:
            self.bench.store.discard_image(model.name, None, NAME, offset, length)
            model.gone |= set(pages)
            model.blank -= set(pages)

    @rule(model=committed)
    def discard(self, model: Model) -> None:
        if self.state(model) is State.COMMITTED:
            self.bench.store.discard(model.name)

    @rule(model=committed, offset=st.integers(0, 70 * PAGE), length=st.integers(1, 70 * PAGE))
    def read(self, model: Model, offset: int, length: int) -> None:
        if self.state(model) is not State.COMMITTED or offset >= len(model.data):
            return
        opened = OpenedImage(self.bench.reactor, self.bench.store.known(model.name).at(None, NAME)[1])
        results: list[Any] = []
        opened.read(offset, min(length, MIB)).addCallbacks(
            results.append, lambda failure: results.append(failure.value)
        )
        opened.close()
        image = self.bench.store.known(model.name).at(None, NAME)[1]
        expected = model.expected(offset, min(length, MIB))
        if image.table.pages[Kind.RELEASED]:
            assert isinstance(results[0], Conflict) or results == [expected]
        elif expected is None:
            assert isinstance(results[0], Conflict)
        else:
            assert results == [expected]

    @rule(target=readers, model=committed)
    def serve(self, model: Model) -> Reader | None:
        if self.state(model) is not State.COMMITTED or len(self.live) > 20:
            return None
        restore = self.bench.store.namespace(model.name).begin(None)
        found: list[Any] = []
        restore.open(None, NAME).addCallbacks(found.append, lambda failure: found.append(failure.value))
        if isinstance(found[0], Conflict):
            assert self.release
            return None
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        results: list[Any] = []
        reader = Reader(model, found[0], theirs, ours, results, restore)
        found[0].serve(ours.fileno()).addCallbacks(results.append, lambda failure: results.append(failure.value))
        self.live.append(reader)
        return reader

    @rule(reader=readers, offset=st.integers(0, 70 * PAGE), length=st.integers(0, 70 * PAGE))
    def skip(self, reader: Reader | None, offset: int, length: int) -> None:
        if reader in self.live and reader is not None and not reader.results:
            start, stop = reader.opened.skip(offset, length)
            assert stop <= max(len(reader.model.data), start)
            if stop > start:
                reader.skips.append((start, stop))

    @rule(reader=readers, turns=st.integers(1, 4))
    def go_on(self, reader: Reader | None, turns: int) -> None:
        """The reader takes what there is."""
        if reader not in self.live or reader is None:
            return
        for _ in range(turns):
            if reader not in self.live:
                break
            for writer in list(self.bench.reactor.writers):
                if writer is reader.opened._server:
                    writer.doWrite()
            self.take(reader)

    def take(self, reader: Reader) -> None:
        while True:
            try:
                piece = reader.theirs.recv(MIB)
            except BlockingIOError:
                break
            if not piece:
                break
            reader.got += piece
        if reader.results:
            self.finish(reader)

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

    @rule(reader=readers)
    def leave(self, reader: Reader | None) -> None:
        """The reader closes its end early."""
        if reader in self.live and reader is not None:
            self.close(reader)

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

    @rule(model=committed)
    def restored(self, model: Model) -> None:
        if self.state(model) is State.COMMITTED:
            self.bench.store.restored(model.name)

    @rule()
    def turns(self) -> None:
        """What is to be done at once is done: giving back, spilling."""
        self.bench.settle()

    @rule()
    def spill_now(self) -> None:
        spiller = self.bench.store._spiller
        wanted, spiller._wanted = spiller._wanted, lambda: True
        spiller.start()
        self.bench.settle()
        spiller._wanted = wanted

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


TestCache = Cache.TestCase
TestCache.settings = settings(
    max_examples=max(1, OPERATIONS // STEPS), stateful_step_count=STEPS, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
