"""A peer that is gone is found within 10 s, also in a black hole; one that is slow is not gone."""

from __future__ import annotations

from twisted.internet.task import Clock

from criu_relay.errors import LinkLost
from criu_relay.flow.frames import OutFrame
from criu_relay.link.connection import LinkConnection
from criu_relay.link.liveness import BEAT_SECONDS, SILENT_BEATS
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from tests.link.support import CACHE_ID, Loop, Wired, hello
from tests.support.daemons import Relay
from tests.support.faults import Faults
from tests.support.polling import until

FOUND_SECONDS = 10.0
STEP = 0.1


class End:
    """Remembers how it ended."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def link_up(self, connection: LinkConnection) -> None: ...
    def turn_ended(self, connection: LinkConnection) -> None: ...

    def frame_received(self, connection: LinkConnection, frame: Frame) -> None: ...

    def next_frame(self) -> OutFrame | None:
        return None

    def link_down(self, connection: LinkConnection, reason: Exception) -> None:
        assert isinstance(reason, LinkLost)
        self.lost.append(reason.reason)


def linked() -> tuple[Clock, Wired, End]:
    """A proxy's end of a link that is up."""
    clock, end = Clock(), End()
    wired = Wired(clock, end, link_pb2.PROXY, hello(link_pb2.CACHE, CACHE_ID))
    wired.wire.pull()
    return clock, wired, end


def test_a_black_hole_is_found_within_10_s() -> None:
    clock, wired, end = linked()
    while not end.lost and clock.seconds() < 2 * FOUND_SECONDS:
        clock.advance(STEP)
    assert clock.seconds() <= FOUND_SECONDS
    assert end.lost == ["the link is lost: the peer was silent for 7 s"]
    assert wired.wire.ended == "abort"
    assert clock.getDelayedCalls() == []


def test_it_is_found_by_both_ends() -> None:
    loop = Loop().connect()
    both = loop.proxy, loop.cache
    for _ in range(int(FOUND_SECONDS / STEP)):
        loop.clock.advance(STEP)
        for end in both:
            end.wire.pull()
    assert [end.wire.ended for end in both] == ["abort", "abort"]
    assert loop.receiver.links == {}
    assert loop.outlet.connection is None


def test_an_idle_link_lasts() -> None:
    loop = Loop().connect()
    for _ in range(600):
        loop.clock.advance(STEP)
        loop.pump()
    assert not loop.cut
    assert loop.outlet.describe()["state"] == "up"
    assert loop.outlet.describe()["peers"][0]["round_trip_ms"] is not None


def test_slow_is_not_gone() -> None:
    """One byte in 5 s, in the middle of one frame; no pong comes, which waits behind it."""
    clock, wired, end = linked()
    frame = wire.encode(Frame(error={"reason": "x" * 60, "migration": b"m" * 16}))
    for at in range(len(frame)):
        wired.connection.dataReceived(frame[at : at + 1])
        for _ in range(50):
            clock.advance(STEP)
    assert end.lost == []
    assert clock.seconds() > 30 * FOUND_SECONDS


def test_it_says_something_in_each_beat_whatever_the_peer_does() -> None:
    """A peer that takes our bytes slowly reads no pong for long: it hears from us all the same."""
    clock, wired, end = linked()
    wired.wire.pull()
    for number in range(20):
        clock.advance(BEAT_SECONDS)
        assert wired.heard_kinds() == ["ping"]
        wired.say(Frame(ping={"nonce": number}))
        assert wired.heard_kinds() == ["pong"]
    assert end.lost == []


def test_who_stood_still_itself_reads_first() -> None:
    """However long the process was stopped, or the machine slept, that is one beat."""
    clock, wired, end = linked()
    for _ in range(SILENT_BEATS * 3):
        clock.rightNow += 3600
        clock.advance(0)
        wired.say(Frame(pong={"nonce": 1}))
    assert end.lost == []


def test_only_the_last_pong_tells_the_round_trip() -> None:
    clock, wired, _ = linked()
    clock.advance(0.5)
    wired.say(Frame(pong={"nonce": 99}))
    assert wired.connection.status()["round_trip_ms"] is None
    wired.say(Frame(pong={"nonce": 1}))
    assert wired.connection.status()["round_trip_ms"] == 500


def test_a_black_hole_between_daemons(relay: Relay) -> None:
    """The kernels at both ends see nothing wrong."""
    relay.start_cache()
    faults = Faults(relay.port)
    try:
        relay.start_proxy("--link", f"tcp:127.0.0.1:{faults.port}")
        relay.linked()
        faults.now("hole")
        for daemon in (relay.proxy, relay.cache):
            until(lambda daemon=daemon: "was silent for" in daemon.text(), 60, "it is found", daemon.tail)  # type: ignore[misc]
        relay.linked()
        assert faults.connections == 2
        assert len(relay.get("/v1/status")["link"]["peers"]) == 1
    finally:
        faults.close()
