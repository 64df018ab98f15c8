"""What the tests of the store share."""

from __future__ import annotations

from typing import Any

import xxhash
from twisted.internet.task import Clock

from criu_relay.interfaces import Counters, Mode, Owner
from criu_relay.store.arena import Arena
from criu_relay.store.generation import Generation
from criu_relay.store.policy import Policy
from criu_relay.store.store import Store

MIB = 1 << 20
ALICE = Owner("alice", b"a" * 16)
ALICE_TWO = Owner("alice", b"2" * 16)
BOB = Owner("bob", b"b" * 16)
PATIENCE = 60.0


def number(value: int) -> bytes:
    """A migration's id."""
    return value.to_bytes(16, "big")


def digest(data: bytes) -> bytes:
    return xxhash.xxh3_128(data).digest()


class Readers:
    """A reactor that only remembers who wants to read or write."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.addReader = self.readers.add
        self.removeReader = self.readers.discard
        self.addWriter = self.writers.add
        self.removeWriter = self.writers.discard


class Turns(Clock):
    """A reactor's time that goes on turn by turn: what is asked for in one turn comes in the next."""

    def turn(self) -> bool:
        """One turn; False: nothing was due."""
        due = list(self.getDelayedCalls())
        for call in due:
            self.calls.remove(call)
            call.func(*call.args, **call.kw)
        return bool(due)


class Bench:
    """A store, and short ways to fill it."""

    def __init__(
        self, memory: int = 16 * MIB, keep: int | None = None, clock: Clock | None = None, **policy: Any
    ) -> None:
        self.clock = clock or Clock()
        self.reactor = Readers()
        self.arena = Arena(memory, keep=memory if keep is None else keep)
        self.counters = Counters()
        self.store = Store(self.reactor, self.clock, self.arena, self.counters, PATIENCE, Policy(**policy))
        self._ids = 0

    def begin(self, name: str = "web", owner: Owner = ALICE, copy: bool = False) -> bytes:
        """A generation; returns its migration."""
        self._ids += 1
        self.store.begin(owner, number(self._ids), name, copy, "")
        return number(self._ids)

    def write(
        self, migration: bytes, data: bytes, image: int = 1, name: str = "pages-1.img", snapshot: int = 1,
        mode: Mode = Mode.REPLACE, owner: Owner = ALICE, end: bool = True, total: bytes | None = None,
    ) -> None:  # fmt: skip
        """One image, whole; C{total}: all its bytes when this appends."""
        store = self.store
        if not self.generation(migration).snapshots:
            store.snapshot(owner, migration, 1, "")
        store.open_image(owner, migration, image, snapshot, name, mode)
        self.more(migration, data, image, owner)
        if end:
            whole = data if total is None else total
            store.end_image(owner, migration, image, len(whole), digest(whole))

    def more(self, migration: bytes, data: bytes, image: int = 1, owner: Owner = ALICE) -> None:
        """Bytes at the end of an image."""
        offset = self.generation(migration).image(image).size
        while data:
            growing = self.store.writing(owner, migration, image, offset)
            room = growing.reserve(min(len(data), MIB))
            count = min(len(room.view), len(data))
            room.view[:count] = data[:count]
            growing.written(count)
            offset += count
            data = data[count:]

    def generation(self, migration: bytes) -> Generation:
        return self.store._generations[migration]

    def rows(self, migration: bytes) -> list[tuple[int, str, int, bytes | None]]:
        """The closing header that fits what is there."""
        return [(image.snapshot, image.name, image.size, image.digest) for image in self.generation(migration).images()]

    def seal(self, migration: bytes, owner: Owner = ALICE) -> int:
        return self.store.seal(owner, migration, self.rows(migration), "")

    def held(self, data: bytes = b"data", name: str = "web", owner: Owner = ALICE) -> bytes:
        """A generation with one image that waits for its decision."""
        migration = self.begin(name, owner)
        self.write(migration, data, owner=owner)
        self.seal(migration, owner)
        return migration

    def committed(self, data: bytes = b"data", name: str = "web", owner: Owner = ALICE) -> bytes:
        migration = self.held(data, name, owner)
        assert self.store.decide(owner, migration, True, "") is True
        return migration

    def settle(self) -> None:
        """Let what is to be done at once be done, and what can wait."""
        while self.store.memory.backlog.work(MIB):
            pass
        settle(self.clock)


def settle(clock: Clock) -> None:
    """Let what is to be done at once be done."""
    while clock.getDelayedCalls() and min(call.getTime() for call in clock.getDelayedCalls()) <= clock.seconds():
        clock.advance(0)


def outcome(deferred: Any) -> list[Any]:
    """A list that the result, or the exception, is put into."""
    results: list[Any] = []
    deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return results
