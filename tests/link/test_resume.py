"""Links that break and are made again: the same migration goes on, and what cannot go on says why."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import xxhash

from criu_relay.errors import LinkLost
from criu_relay.interfaces import Counters, Mode
from criu_relay.link.receiver import Receiver
from criu_relay.store.generation import State
from criu_relay.store.store import Store
from criu_relay.wire.link_pb2 import CACHE, PROXY, Frame
from tests.link.session import FIRST, KEPT, Session, contents, states
from tests.link.support import MIB, PATIENCE, Intake, Loop, Parsed, Producer, Wired, hello, migration, result
from tests.support.faults import DOWN, UP, Fault

SECONDS = 30.0
CUTS = 100


class Remade(Loop):
    """A link that is made again at once, whenever it is cut.

    @ivar cuts: where each connection is cut, as (direction, bytes of it).
    """

    def __init__(self, cuts: list[tuple[str, int]], **sizes: int) -> None:
        super().__init__(patience=SECONDS, **sizes)
        self.cuts = cuts
        self.links = 0

    def connect(self, pump: bool = True) -> Loop:
        self.links += 1
        self.plan = [Fault("reset", *self.cuts.pop(0))] if self.cuts else []
        return super().connect(pump)

    def disconnect(self) -> None:
        super().disconnect()
        self.connect(pump=False)


def lengths() -> dict[str, int]:
    loop = Loop(window=MIB, memory=MIB).connect()
    Session(loop).run()
    return {way: len(data) for way, data in loop.record.items()}


@pytest.mark.parametrize("way", [UP, DOWN])
def test_cut_at_every_byte_and_made_again(way: str) -> None:
    for at in range(1, lengths()[way]):
        loop = Remade([(way, at)], window=MIB, memory=MIB)
        loop.connect()
        session = Session(loop).run()
        assert session.lost == [], at
        assert session.outcome == ["committed"], at
        assert session.fetched == [b"pha a"], at
        assert contents(loop, "web") == KEPT, at
        assert loop.links == 2
        assert loop.window_arena.used == 0, at


@pytest.mark.parametrize("seed", range(20))
def test_cut_again_and_again(seed: int) -> None:
    """At random, in either direction, also while a link resumes."""
    rolled = random.Random(seed)
    span = {UP: (60, 160), DOWN: (40, 100)}
    cuts = [(way, rolled.randrange(*span[way])) for way in rolled.choices([UP, DOWN], k=CUTS)]
    loop = Remade(cuts, window=MIB, memory=MIB)
    loop.connect()
    session = Session(loop).run()
    assert session.lost == []
    assert session.outcome == ["committed"]
    assert session.fetched == [b"pha a"]
    assert contents(loop, "web") == KEPT
    assert loop.links > 5


def test_only_what_the_cache_does_not_have_is_sent_again() -> None:
    data = random.Random(1).randbytes(3 * MIB)
    total = len(data)
    rolled = random.Random(2)
    loop = Remade([(UP, rolled.randrange(1, MIB)) for _ in range(20)], window=MIB, memory=16 * MIB)
    loop.connect()
    lost: list[Any] = []
    outgoing = loop.outlet.begin(FIRST, "web", False, lost.append)
    outgoing.snapshot(1, "")
    sink = outgoing.open_image(1, "pages-1.img", Mode.REPLACE)
    sink.registerProducer(Producer(), True)
    for at in range(0, total, MIB // 2):
        sink.write(data[at : at + MIB // 2])
        loop.pump()
    sink.end()
    sink.unregisterProducer()
    assert lost == []
    assert len(result(outgoing.seal({"host": "h"}))) == 0
    loop.pump()
    assert states(loop) == [State.HELD]
    again = loop.counters.values["link_bytes_sent_again"]
    assert 0 < again <= (loop.links - 1) * (MIB + 4096)
    assert len(loop.record[UP]) <= total + again + 100 * loop.links + 4096


def begun(patience: float = SECONDS, window: int = 4 * MIB) -> tuple[Loop, Session]:
    """A migration with half an image sent."""
    loop = Loop(window=window, patience=patience).connect()
    session = Session(loop)
    session.outgoing = loop.outlet.begin(FIRST, "web", False, session.lost.append)
    session.outgoing.snapshot(1, "")
    session.sink = session.outgoing.open_image(1, "a.img", Mode.REPLACE)  # type: ignore[attr-defined]
    session.sink.write(b"alpha")  # type: ignore[attr-defined]
    loop.pump()
    return loop, session


def test_a_link_that_does_not_come_back_is_given_up_at_both_ends() -> None:
    loop, session = begun()
    loop.disconnect()
    loop.clock.advance(SECONDS - 1)
    assert session.lost == []
    assert states(loop) == [State.OPEN]
    loop.clock.advance(1)
    [lost] = session.lost
    assert "was not made again in 30 s" in lost.reason
    assert states(loop) == [State.ABORTED]
    assert "was not made again in 30 s" in loop.store.namespaces["web"].generations[0].reason
    assert loop.window_arena.used == 0


def test_without_patience_both_ends_give_up_at_once() -> None:
    loop, session = begun(patience=0.0)
    loop.disconnect()
    assert isinstance(session.lost[0], LinkLost)
    assert states(loop) == [State.ABORTED]


def test_without_a_window_nothing_can_be_sent_again() -> None:
    loop, session = begun(window=0)
    loop.disconnect()
    assert isinstance(session.lost[0], LinkLost)
    result(session.outgoing.decide(False, "given up"))
    loop.connect()
    assert states(loop) == [State.ABORTED], "the cache is told when there is a link again"


@pytest.mark.parametrize(("window", "digests"), [(0, False), (4 * MIB, True)])
def test_who_keeps_nothing_says_that_there_are_no_digests(window: int, digests: bool) -> None:
    intake = Intake()
    loop = Loop(window=window, intake=intake).connect()
    loop.outlet.begin(FIRST, "web", False, lambda error: None)
    loop.pump()
    assert [call[-1] for call in intake.calls if call[0] == "begin"] == [digests]


def test_a_proxy_without_a_session_is_not_waited_for() -> None:
    """With --link-fd or --window 0 it says none: what is open at the cache is over with its link."""
    loop, _ = begun(window=0)
    assert loop.outlet.session is None
    loop.disconnect()
    assert states(loop) == [State.ABORTED]


def test_a_cache_that_was_started_again_has_lost_it() -> None:
    loop, session = begun()
    loop.disconnect()
    loop.store = Store(None, loop.clock, loop.store_arena, Counters(), PATIENCE)  # type: ignore[arg-type]
    loop.receiver = Receiver(loop.store, Counters(), loop.clock, SECONDS)
    loop.store.credits.granted = loop.receiver.credited
    loop.connect()
    [lost] = session.lost
    assert "started again" in lost.reason
    other = Session(loop, migration(2), "other").run()
    assert other.outcome == ["committed"]
    assert contents(loop, "other") == KEPT


def test_a_proxy_that_was_started_again_ends_what_it_had() -> None:
    loop, _ = begun()
    loop.disconnect()
    again = Loop(patience=SECONDS)
    again.receiver, again.store, again.clock = loop.receiver, loop.store, loop.clock
    again.connect()
    assert states(loop) == [State.ABORTED]
    assert "started again" in loop.store.namespaces["web"].generations[0].reason


def test_given_up_while_the_link_is_away() -> None:
    """The cache is told, and what was sent of it leaves a gap that the others do not notice."""
    loop, session = begun()
    other = Session(loop, migration(2), "other")
    other.outgoing = loop.outlet.begin(other.number, "other", False, other.lost.append)
    other.outgoing.snapshot(1, "")
    loop.disconnect()
    loop.plan = [Fault("reset", UP, 400)]
    loop.connect()
    session.sink.write(bytes(1000))  # type: ignore[attr-defined]
    sink = other.outgoing.open_image(1, "inventory.img", Mode.REPLACE)
    sink.write(b"inv")
    loop.pump()
    assert loop.cut
    assert result(session.outgoing.decide(False, "the task has ended")) == ["aborted"]
    loop.plan = []
    before = len(loop.record[UP])
    loop.connect()
    sink.end()
    held = result(other.outgoing.seal({"host": "h"}))
    loop.pump()
    assert "gap" in Parsed().feed(bytes(loop.record[UP][before:])).kinds
    assert held == [3]
    assert states(loop) == [State.ABORTED, State.HELD]
    assert loop.store.namespaces["web"].generations[0].reason == "the task has ended"


def test_refused_while_the_link_is_away() -> None:
    loop, session = begun()
    loop.disconnect()
    loop.store.discard("web")
    loop.connect()
    [lost] = session.lost
    assert "discarded at the cache" in lost.reason


def test_a_second_link_of_the_same_session_replaces_the_first() -> None:
    """The cache has not noticed yet that the old one is dead."""
    loop, session = begun()
    stale = loop.cache
    loop.proxy.lose()
    loop.proxy = loop.cache = None
    loop.connect()
    assert stale.connection.machine.state.value in ("closing", "closed")
    stale.lose()
    session.sink.write(b" and more")  # type: ignore[attr-defined]
    session.sink.end()  # type: ignore[attr-defined]
    session.write("inventory.img", b"inv")
    held = result(session.outgoing.seal({"host": "h"}))
    loop.pump()
    assert held == [17]
    assert session.lost == []


def test_a_peer_that_ends_the_link_on_purpose_is_not_waited_for() -> None:
    loop, session = begun()
    loop.cache.connection.bye("the daemon stops")
    loop.pump()
    [lost] = session.lost
    assert "bye" in lost.reason


@pytest.mark.parametrize("frames", [1, 1 << 40])
def test_a_cache_that_claims_what_was_not_sent(frames: int) -> None:
    loop = Loop(patience=SECONDS)
    proxy = Wired(loop.clock, loop.outlet, PROXY, hello(CACHE, b"c" * 16))
    proxy.say(Frame(resume={"known": True, "frames": frames, "partial": 0}))
    assert "error" in proxy.heard_kinds()


PAGES = [os.urandom(4096) if kind == "x" else bytes(4096) for kind in "x00x0xx000x0"]


@pytest.mark.parametrize("part", range(4))
def test_cut_in_an_extent_with_zeros_left_out(part: int) -> None:
    """At every place where a run of payload ends, beside it, and in between."""
    data = b"".join(PAGES) + b"end"

    def run(loop: Loop) -> tuple[list[Any], list[Any]]:
        lost: list[Any] = []
        outgoing = loop.outlet.begin(FIRST, "web", False, lost.append)
        outgoing.snapshot(1, "")
        for name, written in (("pages-1.img", data), ("inventory.img", b"inv")):
            sink = outgoing.open_image(1, name, Mode.REPLACE)
            sink.write(written)
            sink.end()
        loop.pump()
        held = result(outgoing.seal({"host": "h"}))
        loop.pump()
        return lost, held

    whole = Remade([], window=MIB, memory=16 * MIB)
    whole.connect()
    assert run(whole) == ([], [len(data) + 3])
    length = len(whole.record[UP])
    assert length < 6 * 4096 + 1500, "zeros are left out"
    edges = {place + beside for place in range(length % 4096, length, 4096) for beside in range(-40, 40)}
    for at in sorted((edges | set(range(1, length, 61))) & set(range(1, length)))[part::4]:
        loop = Remade([(UP, at)], window=MIB, memory=16 * MIB)
        loop.connect()
        assert run(loop) == ([], [len(data) + 3]), at
        generation = loop.store.namespaces["web"].generations[0]
        assert generation.find(None, "pages-1.img").digest == xxhash.xxh3_128(data).digest()  # type: ignore[union-attr]
        assert loop.links == 2
