"""A whole session over a joined pair: as it should be, cut at every byte, and with every byte changed."""

from __future__ import annotations

from typing import Any

import pytest

from criu_relay.errors import RelayError
from criu_relay.interfaces import Mode
from criu_relay.store.arena import Arena
from criu_relay.store.generation import State
from tests.link.support import MIB, OWNER, Loop, Parsed, Producer, migration, result

KEPT = {"a.img": b"alpha and more", "empty.img": b"", "b.img": b"second", "inventory.img": b"inv"}
FIRST, SECOND = migration(1), migration(2)


class Session:
    """What a proxy's migration does: everything in order, giving up when it is told that it cannot go on.

    @ivar lost: what it was told when it could not go on.
    @ivar committed: it has decided to.
    """

    def __init__(self, loop: Loop, number: bytes = FIRST, name: str = "web") -> None:
        self.loop = loop
        self.number = number
        self.name = name
        self.lost: list[RelayError] = []
        self.held: list[Any] = []
        self.outcome: list[Any] = []
        self.fetched: list[Any] = []
        self.committed = False
        self.outgoing: Any = None

    def _lost(self, error: RelayError) -> None:
        self.lost.append(error)

    def write(self, name: str, data: bytes, mode: Mode = Mode.REPLACE, snapshot: int = 1) -> None:
        sink = self.outgoing.open_image(snapshot, name, mode)
        for at in range(0, len(data), 5):
            sink.write(data[at : at + 5])
            self.loop.pump()
        sink.end()
        self.loop.pump()

    def run(self, commit: bool = True) -> Session:
        loop = self.loop
        self.outgoing = loop.outlet.begin(self.number, self.name, False, self._lost)
        try:
            self.outgoing.snapshot(1, "")
            self.write("a.img", b"alpha")
            self.write("empty.img", b"")
            self.write("a.img", b" and more", Mode.APPEND)
            self.write("b.img", b"first")
            self.write("b.img", b"second")
            image = self.outgoing.read_image(1, "a.img")
            self.fetched = result(image.read(2, 5))
            loop.pump()
            self.write("inventory.img", b"inv")
            self.held = result(self.outgoing.seal({"host": "h"}))
            loop.pump()
        except RelayError as error:
            self.lost.append(error)
        if self.held and isinstance(self.held[0], RelayError):
            self.lost.append(self.held[0])
        self.committed = bool(self.held) and not self.lost and commit
        if self.held or self.lost:
            self.outcome = result(self.outgoing.decide(self.committed, "given up"))
        loop.pump()
        return self


def contents(loop: Loop, name: str) -> dict[str, bytes]:
    """What a restore gets."""
    restore = loop.store.namespace(name).begin(None)
    found = {}
    for image in KEPT:
        [opened] = result(restore.open(None, image))
        if opened is not None:
            found[image] = result(opened.read(0, MIB))[0]
            opened.close()
    return found


def states(loop: Loop) -> list[State]:
    return [generation.state for home in loop.store.namespaces.values() for generation in home.generations]


@pytest.fixture(scope="module")
def arenas() -> tuple[Arena, Arena]:
    return Arena(4 * MIB, keep=4 * MIB), Arena(4 * MIB, keep=4 * MIB)


def test_as_it_should_be() -> None:
    loop = Loop().connect()
    session = Session(loop).run()
    assert session.lost == []
    assert session.held == [sum(map(len, KEPT.values()))]
    assert session.outcome == ["committed"]
    assert session.fetched == [b"pha a"]
    assert contents(loop, "web") == KEPT
    assert loop.window_arena.used == 0
    assert loop.outlet.describe()["state"] == "up"


def test_an_abort() -> None:
    loop = Loop().connect()
    session = Session(loop).run(commit=False)
    assert session.outcome == ["aborted"]
    assert states(loop) == [State.ABORTED]
    loop.settle()
    assert loop.store_arena.used == loop.window_arena.used == 0


def test_the_frames_of_a_session() -> None:
    loop = Loop().connect()
    Session(loop).run()
    up, down = Parsed().feed(bytes(loop.record["up"])), Parsed().feed(bytes(loop.record["down"]))
    assert up.kinds[:3] == ["hello", "ping", "pong"] or up.kinds[:3] == ["hello", "pong", "ping"]
    assert [kind for kind in up.kinds if kind not in ("ping", "pong")] == [
        "hello", "namespace", "snapshot",
        "image", "extent", "image_end", "image", "image_end", "image", "extent", "extent", "image_end",
        "image", "extent", "image_end", "image", "extent", "extent", "image_end", "fetch",
        "image", "extent", "image_end", "namespace_end", "commit",
    ]  # fmt: skip
    assert down.kinds[:2] == ["hello", "resume"]
    assert [kind for kind in down.kinds if kind != "ack"][-2:] == ["held", "decided"]
    assert set(down.kinds) == {"hello", "resume", "ping", "pong", "ack", "fetched", "held", "decided"}


def lengths() -> dict[str, int]:
    loop = Loop().connect()
    Session(loop).run()
    return loop.moved


def after(loop: Loop, session: Session, other: Session | None = None) -> None:
    """After whatever happened, and once there is a good link again: nothing hangs, nothing is wrong."""
    if not loop.cut:
        loop.disconnect()
    if session.held and isinstance(session.held[0], RelayError) and session.held[0] not in session.lost:
        session.lost.append(session.held[0])
    told = session.lost or (session.held and not isinstance(session.held[0], RelayError))
    assert told, "the migration was told neither that it is held nor that it is lost"
    assert len(session.lost) <= 2
    assert session.fetched == [] or len(session.fetched) == 1
    for state in states(loop):
        assert state in (State.HELD, State.ABORTED) or (state is State.COMMITTED and session.committed)
    if not session.outcome and session.lost:
        session.outcome = result(session.outgoing.decide(False, "given up"))
    assert loop.window_arena.used == 0, "window memory is not freed"
    loop.limits = {}
    loop.spoil = lambda way, offset, data: data
    loop.connect()
    assert State.HELD not in states(loop), "nobody decides on it"
    assert State.OPEN not in states(loop)
    assert len(session.outcome) == 1, "the decision was never confirmed"
    if session.committed:
        assert session.outcome == ["committed"]
        assert contents(loop, "web") == KEPT
    else:
        assert State.COMMITTED not in states(loop)
    again = Session(loop, SECOND, "again").run()
    assert again.outcome == ["committed"]
    assert contents(loop, "again") == KEPT
    loop.disconnect()
    for name in list(loop.store.namespaces):
        if loop.store.namespaces[name].newest is not None:
            loop.store.discard(name)
    loop.store._reclaimer.drain()
    assert loop.store_arena.used == 0


LENGTHS = lengths()
SLICES = 8


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("part", range(SLICES))
def test_cut_at_every_byte(arenas: Any, way: str, part: int) -> None:
    for at in range(1 + part, LENGTHS[way] + 1, SLICES):
        loop = Loop(arenas=arenas)
        loop.limits = {way: at}
        loop.connect()
        session = Session(loop).run()
        if loop.cut:
            loop.clock.advance(3.5)
        try:
            after(loop, session)
        except AssertionError as error:
            raise AssertionError(f"cut {way} at byte {at} of {LENGTHS[way]}: {error}") from error


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("part", range(SLICES))
def test_every_byte_changed(arenas: Any, way: str, part: int) -> None:
    """What is served is what was written, whatever byte of the link was changed."""
    for at in range(part, LENGTHS[way], SLICES):
        loop = Loop(arenas=arenas)

        def spoil(going: str, offset: int, data: bytes, at: int = at) -> bytes:
            if going != way or not offset <= at < offset + len(data):
                return data
            return data[: at - offset] + bytes([data[at - offset] ^ 1]) + data[at - offset + 1 :]

        loop.spoil = spoil
        loop.connect()
        session = Session(loop).run()
        if not loop.cut:
            loop.disconnect()
        loop.clock.advance(3.5)
        if session.held and not isinstance(session.held[0], RelayError) and not session.outcome:
            session.outcome = result(session.outgoing.decide(session.committed, ""))
        elif not session.outcome and session.held:
            session.outcome = result(session.outgoing.decide(False, "given up"))
        loop.spoil = lambda way, offset, data: data
        loop.connect()
        for name, home in loop.store.namespaces.items():
            for generation in home.generations:
                assert generation.state in (State.ABORTED, State.COMMITTED), f"changed {way} {at}"
                if generation.state is State.COMMITTED:
                    found = [contents(loop, name)[image] for image in contents(loop, name)]
                    assert set(found) <= set(KEPT.values()), f"changed {way} {at}: {found}"
        assert loop.window_arena.used == 0, f"changed {way} {at}"
        loop.disconnect()
        for name in list(loop.store.namespaces):
            loop.store.discard(name)
        loop.store._reclaimer.drain()
        assert loop.store_arena.used == 0, f"changed {way} {at}"


def test_every_byte_by_itself() -> None:
    """However the bytes are split, the session is the same."""
    loop = Loop()

    class OneByOne:
        def __init__(self, target: Any) -> None:
            self.target = target

        def dataReceived(self, data: bytes) -> None:
            for at in range(len(data)):
                self.target.dataReceived(data[at : at + 1])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.target, name)

    loop.connect(pump=False)
    loop.proxy.connection = OneByOne(loop.proxy.connection)
    loop.cache.connection = OneByOne(loop.cache.connection)
    loop.pump()
    session = Session(loop).run()
    assert session.outcome == ["committed"]
    assert contents(loop, "web") == KEPT


# Several at once


def test_a_small_image_does_not_wait_behind_a_large_one() -> None:
    loop = Loop(window=32 * MIB).connect()
    large, small = (loop.outlet.begin(migration(n), f"n{n}", False, lambda error: None) for n in (1, 2))
    for outgoing in (large, small):
        outgoing.snapshot(1, "")
    large.open_image(1, "pages-1.img", Mode.REPLACE).write(bytes(16 * MIB))
    sink = small.open_image(1, "core-1.img", Mode.REPLACE)
    sink.write(b"small")
    sink.end()
    sent = Parsed().feed(loop.proxy.wire.pull())
    ends = [index for index, (frame, _) in enumerate(sent.frames) if frame.WhichOneof("body") == "image_end"]
    extents = [frame for frame, _ in sent.frames[: ends[0]] if frame.extent.migration == migration(1)]
    assert len(extents) <= 3
    assert sum(len(data) for _, data in sent.frames) == 16 * MIB + 5


def test_images_share_the_link() -> None:
    loop = Loop(window=32 * MIB).connect()
    outgoing = loop.outlet.begin(migration(1), "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    for index in range(3):
        outgoing.open_image(1, f"pages-{index}.img", Mode.REPLACE).write(bytes(4 * MIB))
    sent = Parsed().feed(loop.proxy.wire.pull())
    order = [frame.extent.image for frame, data in sent.frames if data]
    assert [sorted(order[at : at + 3]) for at in range(0, 12, 3)] == [[1, 2, 3]] * 4


def test_one_refused_and_the_other_goes_on() -> None:
    loop = Loop(memory=MIB, window=8 * MIB).connect()
    lost: list[RelayError] = []
    large = loop.outlet.begin(migration(7), "large", False, lost.append)
    large.snapshot(1, "")
    large.open_image(1, "pages-1.img", Mode.REPLACE).write(bytes(4 * MIB))
    loop.pump()
    assert "memory is full" in lost[0].reason
    assert result(large.decide(False, lost[0].reason)) == []
    loop.pump()
    loop.settle()
    session = Session(loop).run()
    assert session.outcome == ["committed"]
    assert loop.window_arena.used == 0
    assert not loop.cut


def test_discarded_at_the_cache_while_it_comes() -> None:
    loop = Loop(window=8 * MIB).connect()
    lost: list[RelayError] = []
    outgoing = loop.outlet.begin(migration(7), "web", False, lost.append)
    outgoing.snapshot(1, "")
    sink = outgoing.open_image(1, "pages-1.img", Mode.REPLACE)
    sink.write(bytes(MIB))
    loop.pump()
    sink.write(bytes(2 * MIB))
    loop._move("up", times=2)
    loop.store.discard("web")
    loop.pump()
    assert "discarded" in lost[0].reason
    loop.pump()
    assert loop.window_arena.used == 0
    assert not loop.cut
    loop.store._reclaimer.drain()
    assert loop.store_arena.used == 0


def test_back_pressure() -> None:
    loop = Loop(window=2 * MIB).connect()
    outgoing = loop.outlet.begin(migration(1), "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    sink: Any = outgoing.open_image(1, "pages-1.img", Mode.REPLACE)
    producer = Producer()
    sink.registerProducer(producer, True)
    count = 0
    while (room := sink.reserve(MIB)) is not None:
        sink.written(len(room.view))
        count += len(room.view)
        del room
    assert count == 2 * MIB
    assert producer.calls == []
    loop._move("up")
    assert producer.calls == [], "sent is not taken"
    assert sink.reserve(1) is None
    loop.pump()
    assert producer.calls == ["resume"]
    assert sink.reserve(1) is not None
    assert loop.window_arena.used == 4096


def test_held_is_told_again_and_aborted_when_nobody_knows_it() -> None:
    loop = Loop().connect()
    loop.store.begin(OWNER, migration(9), "stray", False, "")
    loop.store.seal(OWNER, migration(9), [], "")
    loop.disconnect()
    assert states(loop) == [State.HELD]
    loop.connect()
    assert states(loop) == [State.ABORTED]


def test_a_recovered_one_stays_held_until_it_is_decided() -> None:
    loop = Loop().connect()
    loop.store.begin(OWNER, migration(9), "web", False, "")
    loop.store.seal(OWNER, migration(9), [], "")
    loop.disconnect()
    outgoing = loop.outlet.recovered(migration(9))
    loop.connect()
    assert states(loop) == [State.HELD]
    loop.disconnect()
    decided = result(outgoing.decide(True))
    assert decided == []
    loop.connect()
    assert decided == ["committed"]
    assert states(loop) == [State.COMMITTED]


def test_a_decision_survives_many_links() -> None:
    loop = Loop().connect()
    session = Session(loop)
    session.outgoing = loop.outlet.begin(FIRST, "web", False, session._lost)
    held = result(session.outgoing.seal({}))
    loop.pump()
    assert held == [0]
    decided = result(session.outgoing.decide(True))
    for _ in range(3):
        loop.disconnect()
        assert decided == []
        loop.connect(pump=False)
    loop.pump()
    assert decided == ["committed"]
    loop.disconnect()
    loop.connect()
    assert states(loop) == [State.COMMITTED]
