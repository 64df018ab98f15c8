"""A session with every frame of the link, cut at every byte, and with every byte changed.

Another proxy is in the middle of a migration to the same cache meanwhile: nothing of what happens here concerns it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import pytest

from criu_relay.store.arena import Arena
from criu_relay.store.generation import State
from criu_relay.wire import link_pb2
from tests.link.session import AGAIN, BYSTANDER, KEPT, SECOND, THIRD, Session, committed, contents, states
from tests.link.support import MIB, Loop, Parsed
from tests.support.faults import DOWN, UP, Fault

SLICES = 8
"""Tests that the offsets are dealt out to."""

LINK_GRACE = 3.5
"""Seconds after which a migration without a link is given up."""

Arenas = Callable[[], Iterable[Arena]]


@functools.cache
def arenas() -> tuple[Arena, Arena, Arena]:
    """One set for all tests: every one leaves them empty."""
    return Arena(4 * MIB, keep=4 * MIB), Arena(4 * MIB, keep=4 * MIB), Arena(MIB, keep=MIB)


class Reference:
    """The session: one migration that is committed, one that is given up, one that the cache refuses; then bye."""

    def __init__(self, *plan: Fault) -> None:
        window, store, other = arenas()
        self.loop = loop = Loop(arenas=(window, store))
        self.beside = Loop(arenas=(other, store), beside=loop, instance=b"q" * 16).connect()
        self.bystander = Session(self.beside, BYSTANDER, "bystander")
        self.bystander.attempt(lambda: self.bystander.write("a.img", b"alpha"))
        loop.plan = list(plan)
        loop.connect()
        self.sessions = [Session(loop).run(), self.given_up(), self.refused()]
        if not loop.cut:
            loop.proxy.connection.bye("done")
            loop.pump()
        if not loop.cut:
            loop.disconnect()
        loop.clock.advance(LINK_GRACE)

    def given_up(self) -> Session:
        """The dump fails."""
        session = Session(self.loop, SECOND, "given-up")
        session.attempt(lambda: session.write("a.img", b"alpha"))
        session.decide(False)
        return session

    def refused(self) -> Session:
        """Somebody discards it at the cache while it is on its way."""
        session, store = Session(self.loop, THIRD, "thrown"), self.loop.store

        def discarded() -> None:
            session.write("a.img", b"alpha")
            if "thrown" in store.namespaces:
                store.discard("thrown")
            self.loop.pump()
            session.write("b.img", b"second")

        session.attempt(discarded)
        if session.told:
            session.decide(False)
        return session

    def cleared(self) -> None:
        """The link is there again, without faults: everything is decided, and nothing else is wrong."""
        loop = self.loop
        assert len(loop.receiver.links) == 1, "the link of the bystander"
        loop.plan = []
        loop.connect()
        assert loop.outlet.describe()["state"] == "up"
        again = Session(loop, AGAIN, "again").run()
        self.bystander.finish()
        self.bystander.decide(bool(self.bystander.held))
        for session in (again, self.bystander):
            assert session.outcome == ["committed"]
            assert contents(loop, session.name) == KEPT, session.name
        for session in self.sessions:
            assert len(session.outcome) == 1, f"{session.name}: the decision was never confirmed"
            assert len(session.fetched) <= 1
        assert {State.OPEN, State.HELD}.isdisjoint(states(loop)), "nobody decides on it"
        wanted = {"again", "bystander"} | {session.name for session in self.sessions if session.committed}
        assert committed(loop) == wanted
        for name in wanted:
            assert contents(loop, name) == KEPT, name

    def emptied(self) -> None:
        """Nothing is left in any memory."""
        loop = self.loop
        for joined in (loop, self.beside):
            if not joined.cut:
                joined.disconnect()
            assert joined.window_arena.used == 0, "window memory is not freed"
        for name in list(loop.store.namespaces):
            if loop.store.namespaces[name].newest is not None:
                loop.store.discard(name)
        loop.settle()
        assert loop.store_arena.used == 0


@functools.cache
def recorded() -> dict[str, bytes]:
    """The bytes of the session, by direction."""
    reference = Reference()
    record = {way: bytes(data) for way, data in reference.loop.record.items()}
    reference.emptied()
    return record


def test_as_it_should_be() -> None:
    reference = Reference()
    web, _, thrown = reference.sessions
    assert [session.outcome for session in reference.sessions] == [["committed"], ["aborted"], ["aborted"]]
    assert web.fetched == [b"pha a"]
    assert "discarded at the cache" in thrown.lost[0].reason
    reference.cleared()
    reference.emptied()


def test_it_has_every_frame() -> None:
    kinds = {kind for data in recorded().values() for kind in Parsed().feed(data).kinds} | {
        "gap",
        "discard",
        "restored",
    }
    assert kinds == {field.name for field in link_pb2.Frame.DESCRIPTOR.oneofs_by_name["body"].fields}


@pytest.mark.parametrize("way", [UP, DOWN])
@pytest.mark.parametrize("part", range(SLICES))
def test_cut_at_every_byte(way: str, part: int) -> None:
    length = len(recorded()[way])
    for at in range(part, length + 1, SLICES):
        try:
            reference = Reference(Fault("reset", way, at))
            for session in reference.sessions:
                assert session.told or session.decided, f"{session.name} was not told how it stands"
                if not session.decided:
                    session.decide(False)
            reference.cleared()
            assert all(session.outcome == [word(session)] for session in reference.sessions)
            reference.emptied()
        except AssertionError as error:
            arenas.cache_clear()
            raise AssertionError(f"cut {way} at byte {at} of {length}: {error}") from error


@pytest.mark.parametrize("way", [UP, DOWN])
@pytest.mark.parametrize("part", range(SLICES))
def test_every_byte_changed(way: str, part: int) -> None:
    """What is served is what was written, under the name it was written to, whatever byte of the link was changed."""
    length = len(recorded()[way])
    for at in range(part, length, SLICES):
        changed = 1 << (at // SLICES % 8)
        try:
            reference = Reference(Fault("flip", way, at, changed))
            for session in reference.sessions:
                if not session.decided:
                    # It was never told how it stands: the action script gives it up when its time is over.
                    session.decide(False)
            reference.cleared()
            reference.emptied()
        except AssertionError as error:
            arenas.cache_clear()
            raise AssertionError(f"bits {changed:#x} of byte {at} of {length} {way} changed: {error}") from error


def word(session: Session) -> str:
    """What a decision ends as."""
    return "committed" if session.committed else "aborted"
