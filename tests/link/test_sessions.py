"""A cache that has lost its session and begins another, and links that are lost before they could go on."""

from __future__ import annotations

from typing import Any

from criu_relay.interfaces import Counters, Mode
from criu_relay.link.receiver import Receiver
from criu_relay.store.arena import Arena
from criu_relay.store.store import Store
from criu_relay.wire import link_pb2
from tests.link.session import FIRST, Session
from tests.link.support import MIB, Loop, Wired, hello


def start_the_cache_again(loop: Loop) -> None:
    loop.store = Store(None, loop.clock, Arena(64 * MIB, keep=0), Counters(), 60.0)  # type: ignore[arg-type]
    loop.receiver = Receiver(loop.store, Counters(), loop.clock, 30)
    loop.store.credits.granted = loop.receiver.credited


def connect_and_lose_its_resume(loop: Loop) -> None:
    loop.connect(pump=False)
    loop._move("up")
    loop.disconnect()


def test_another_session_is_noticed_although_its_first_resume_was_lost() -> None:
    """Else what was committed would not be asked after, and acknowledgements would be of other frames."""
    loop = Loop(window=MIB, patience=30).connect()
    linked: list[bool] = []
    Session(loop).run()
    loop.outlet.linked = lambda: linked.append(True)
    loop.disconnect()
    loop.clock.advance(31)
    connect_and_lose_its_resume(loop)
    loop.connect()
    assert linked == [True]
    for count in range(20):
        Session(loop, bytes([1]) * 15 + bytes([count]), "other").run()
    loop.pump()
    assert loop.outlet.window.used == 0


def test_the_window_is_not_full_for_ever_after_that() -> None:
    loop = Loop(window=MIB, patience=30).connect()
    for count in range(40):
        Session(loop, bytes([2]) * 15 + bytes([count])).run()
    loop.disconnect()
    start_the_cache_again(loop)
    connect_and_lose_its_resume(loop)
    loop.connect()
    outgoing = loop.outlet.begin(FIRST, "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    sink: Any = outgoing.open_image(1, "a.img", Mode.REPLACE)
    loop.pump()
    for _ in range(60):
        room = sink.reserve(64 << 10)
        assert room is not None
        count = min(len(room.view), 64 << 10)
        room.view[:count] = b"x" * count
        sink.written(count)
        loop.pump()


def test_a_link_that_is_lost_before_it_resumes_ends_nothing_later() -> None:
    loop = Loop(patience=30).connect()
    session = Session(loop)
    session.attempt(lambda: session.write("a.img", b"alpha"))
    loop.disconnect()
    loop.clock.advance(10)
    Wired(loop.clock, loop.outlet, link_pb2.PROXY, hello(link_pb2.CACHE, b"c" * 16)).lose()
    loop.clock.advance(5)
    loop.connect()
    for _ in range(40):
        loop.clock.advance(1)
        loop.pump()
    assert loop.proxy is not None
    assert session.lost == []
