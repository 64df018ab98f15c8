"""A whole session over a joined pair, and several at once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from criu_relay.errors import Conflict, RelayError
from criu_relay.flow.zeros import PAGE
from criu_relay.interfaces import Mode
from criu_relay.link.receiver import ACK_SECONDS
from criu_relay.store.credit import STALL_SECONDS
from criu_relay.store.generation import State
from criu_relay.store.opened import read_bytes
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from tests.link.session import FIRST, KEPT, SECOND, Session, contents, states
from tests.link.support import MIB, OWNER, Loop, Parsed, Producer, is_error, migration, result
from tests.support.faults import UP

QUARTER = 256 << 10


def test_a_label_that_was_changed_on_the_way() -> None:
    """Images under another label are other images: nothing is held."""
    loop = Loop().connect()
    lost: list[Any] = []
    outgoing = loop.outlet.begin(FIRST, "web", False, lost.append)
    outgoing.snapshot(1, "/var/lib/images/1")
    sink = outgoing.open_image(1, "inventory.img", Mode.REPLACE)
    sink.write(b"inv")
    sink.end()
    data = loop.proxy.wire.pull()
    assert data.count(b"/images/1") == 1
    loop.cache.connection.dataReceived(data.replace(b"/images/1", b"/images/0"))
    held = result(outgoing.seal({}))
    loop.pump()
    assert is_error(held)
    assert "labels" in held[0].reason
    assert states(loop) == [State.ABORTED]


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


@pytest.mark.parametrize(
    ("window", "together"), [(0, 32), (1, 1), (8 * QUARTER, 1), (8 * QUARTER + 1, 2), (24 * QUARTER, 3), (1 << 63, 32)]
)
def test_frames_are_acknowledged_together(window: int, together: int) -> None:
    """Those that come soon after one another: with credit for more, and before the proxy misses them."""
    loop = Loop(window=window).connect()
    said = loop.cache
    begin = [
        Frame(namespace=link_pb2.Namespace(migration=FIRST, name="web")),
        Frame(snapshot=link_pb2.Snapshot(migration=FIRST, index=1, label="")),
        Frame(image=link_pb2.Image(migration=FIRST, image=1, snapshot=1, name="a", mode=link_pb2.REPLACE)),
    ]
    said.say(*begin)
    loop.clock.advance(ACK_SECONDS)
    assert [frame.ack.frames for frame, _ in said.heard() if frame.HasField("ack")] == [3]
    acknowledged = []
    sent = 2 * together + 1
    for number in range(sent):
        extent = Frame(extent=link_pb2.Extent(migration=FIRST, image=1, offset=number * QUARTER), payload=QUARTER)
        said.connection.dataReceived(wire.encode(extent) + bytes(QUARTER))
        acknowledged += [frame.ack.frames for frame, _ in said.heard() if frame.HasField("ack")]
    loop.clock.advance(ACK_SECONDS)
    acknowledged += [frame.ack.frames for frame, _ in said.heard() if frame.HasField("ack")]
    assert acknowledged == sorted({*range(3 + together, 3 + sent, together), 3 + sent})
    loop.clock.advance(ACK_SECONDS)
    assert not said.heard()


def test_what_came_is_acknowledged_with_the_credit_for_more() -> None:
    loop = Loop(window=1 << 63).connect()
    said = loop.cache
    said.say(
        Frame(namespace=link_pb2.Namespace(migration=FIRST, name="web")),
        Frame(snapshot=link_pb2.Snapshot(migration=FIRST, index=1, label="")),
        Frame(image=link_pb2.Image(migration=FIRST, image=1, snapshot=1, name="a", mode=link_pb2.REPLACE)),
    )
    loop.clock.advance(ACK_SECONDS)
    said.heard()
    told: list[list[str]] = []
    for number in range(48):
        extent = Frame(extent=link_pb2.Extent(migration=FIRST, image=1, offset=number * QUARTER), payload=QUARTER)
        said.connection.dataReceived(wire.encode(extent) + bytes(QUARTER))
        told.append([frame.WhichOneof("body") for frame, _ in said.heard()])
    assert [kinds for kinds in told if kinds] == [["credit"], ["credit", "ack"]], "nothing had come before the first"


@pytest.mark.parametrize("window", [0, 4 << 20])
def test_why_is_known_when_who_writes_is_stopped(window: int) -> None:
    """Else somebody who puts an image in is told nothing but that it is over."""
    told: list[str] = []
    loop = Loop(window=window).connect()
    outgoing = loop.outlet.begin(FIRST, "web", False, lambda error: told.append(error.reason))
    outgoing.snapshot(1, "")
    producer = Producer()
    producer.stopProducing = lambda: told.append("stop")  # type: ignore[method-assign]
    outgoing.open_image(1, "a.img", Mode.REPLACE).registerProducer(producer, True)
    loop.pump()
    loop.receiver.refuse(next(iter(loop.receiver.links.values())), FIRST, Conflict("it is full"))
    loop.pump()
    assert told == ["the cache gives it up: it is full", "stop"]


def test_what_is_not_acknowledged_when_the_link_breaks_is_told_over_the_next() -> None:
    loop = Loop(patience=60.0).connect()
    outgoing = loop.outlet.begin(FIRST, "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    loop.pump()
    outgoing.open_image(1, "a.img", Mode.REPLACE).write(b"some")
    while loop._move(UP):
        pass
    (session,) = loop.receiver.links.values()
    assert session.owed == len(b"some")
    loop.disconnect()
    assert not [call for call in loop.clock.getDelayedCalls() if call.getTime() <= loop.clock.seconds() + ACK_SECONDS]
    loop.connect()
    said = Parsed().feed(bytes(loop.record["down"]))
    assert [frame.resume.frames for frame, _ in said.frames if frame.HasField("resume")][-1] == session.frames == 4
    assert session.owed == 0, "it was told"


@pytest.mark.parametrize("patience", [0.0, 30.0])
def test_a_link_that_is_made_again_before_the_old_one_is_found_dead(patience: float) -> None:
    """In a black hole only the proxy has noticed. Nothing is given up when its patience would have been over."""
    loop = Loop(patience=patience).connect()
    session = Session(loop)
    session.attempt(lambda: session.write("a.img", b"alpha"))
    old = loop.cache.connection
    loop.proxy.lose()
    loop.connect()
    assert loop.cache.connection is not old and not old.up
    loop.clock.advance(31)
    loop.pump()
    if patience:
        assert (states(loop), session.lost) == ([State.OPEN], [])
        assert loop.outlet.describe()["state"] == "up"
    else:
        assert states(loop) == [State.ABORTED]


def test_who_discards_the_end_of_an_image_and_goes_on_there_harms_nobody() -> None:
    loop = Loop().connect()
    victim = Session(loop)
    victim.attempt(lambda: victim.write("a.img", b"V" * 5000))
    loop.pump()
    other = Loop(beside=loop, instance=b"e" * 16).connect()
    named = {"migration": SECOND, "image": 1, "snapshot": 1, "name": "x"}
    other.cache.say(
        Frame(namespace={"migration": SECOND, "name": "evil", "digests": False}),
        Frame(snapshot={"migration": SECOND, "index": 1, "label": ""}),
        Frame(image={**named, "mode": link_pb2.REPLACE}),
    )
    other.cache.say(Frame(extent={"migration": SECOND, "image": 1, "offset": 0}), payload=b"x" * 10)
    other.cache.say(
        Frame(image_end={"migration": SECOND, "image": 1, "size": 10}),
        Frame(discard={"migration": SECOND, "image": 1, "offset": 0, "length": 10}),
        Frame(image={**named, "mode": link_pb2.APPEND}),
    )
    other.cache.say(Frame(extent={"migration": SECOND, "image": 1, "offset": 10}), payload=b"EVIL" * 10)
    (image,) = loop.store.known("web").images()
    assert read_bytes(image, 0, 5000) == b"V" * 5000
    assert loop.store.known("evil").state is State.ABORTED


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
    assert set(down.kinds) == {"hello", "resume", "ping", "pong", "credit", "ack", "fetched", "held", "decided"}


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
    loop = Loop(window=32 * MIB, memory=1024 * MIB).connect()
    large, small = (loop.outlet.begin(migration(n), f"n{n}", False, lambda error: None) for n in (1, 2))
    for outgoing in (large, small):
        outgoing.snapshot(1, "")
        outgoing.open_image(1, "first.img", Mode.REPLACE).write(b"x")
    loop.pump()
    large.open_image(1, "pages-1.img", Mode.REPLACE).write(b"x" * (15 * MIB))
    sink = small.open_image(1, "core-1.img", Mode.REPLACE)
    sink.write(b"small")
    sink.end()
    sent = Parsed().feed(loop.proxy.wire.pull())
    ends = [index for index, (frame, _) in enumerate(sent.frames) if frame.WhichOneof("body") == "image_end"]
    extents = [frame for frame, _ in sent.frames[: ends[0]] if frame.extent.migration == migration(1)]
    assert len(extents) <= 3
    assert sum(len(data) for _, data in sent.frames) == 15 * MIB + 5


def test_images_share_the_link() -> None:
    loop = Loop(window=32 * MIB, memory=1024 * MIB).connect()
    outgoing = loop.outlet.begin(migration(1), "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    outgoing.open_image(1, "first.img", Mode.REPLACE).write(b"x")
    loop.pump()
    for index in range(3):
        outgoing.open_image(1, f"pages-{index}.img", Mode.REPLACE).write(b"x" * (4 * MIB))
    sent = Parsed().feed(loop.proxy.wire.pull())
    order = [frame.extent.image for frame, data in sent.frames if data]
    assert [sorted(order[at : at + 3]) for at in range(0, 12, 3)] == [[2, 3, 4]] * 4


def test_one_refused_and_the_other_goes_on() -> None:
    loop = Loop(memory=MIB, window=8 * MIB).connect()
    lost: list[RelayError] = []
    large = loop.outlet.begin(migration(7), "large", False, lost.append)
    large.snapshot(1, "")
    large.open_image(1, "pages-1.img", Mode.REPLACE).write(b"x" * (4 * MIB))
    loop.pump()
    assert lost == []
    loop.clock.advance(STALL_SECONDS)
    loop.pump()
    loop.clock.advance(STALL_SECONDS)
    loop.pump()
    assert "memory is full" in lost[0].reason
    assert result(large.decide(False, lost[0].reason)) == []
    loop.pump()
    loop.settle()
    session = Session(loop).run()
    assert session.outcome == ["committed"]
    assert loop.window_arena.used == 0
    assert not loop.cut


class Writer(Producer):
    """CRIU writes as fast as it may."""

    def __init__(self, sink: Any, total: int) -> None:
        super().__init__()
        self.sink = sink
        self.left = total
        self.sink.registerProducer(self, True)

    def resumeProducing(self) -> None:
        super().resumeProducing()
        while self.left:
            try:
                room = self.sink.reserve(min(self.left, MIB))
            except RelayError:
                return
            if room is None:
                return
            count = min(self.left, len(room.view))
            room.view[:count] = (self.left.to_bytes(8, "big") * 512)[:4096] * (count // 4096)
            del room
            self.left -= count
            self.sink.written(count)
        self.sink.unregisterProducer()
        self.sink.end()


def test_one_that_waits_for_memory_holds_up_nobody() -> None:
    """The window and the link are shared, the memory that a namespace waits for is its own affair."""
    loop = Loop(memory=16 * MIB, window=8 * MIB).connect()
    lost: list[RelayError] = []
    waits = loop.outlet.begin(migration(1), "waits", False, lost.append)
    waits.snapshot(1, "")
    loop.pump()
    Writer(waits.open_image(1, "pages-1.img", Mode.REPLACE), 20 * MIB).resumeProducing()
    loop.pump()
    assert loop.store.credits.waiting == [migration(1)]
    assert loop.window_arena.used <= 5 * MIB, "half of the window is left to others"
    small = loop.outlet.begin(migration(2), "small", False, lost.append)
    small.snapshot(1, "")
    loop.pump()
    held = result(small.seal({}))
    loop.pump()
    assert held == [0], "frames that need no memory pass by"
    for _ in range(4):
        loop.clock.advance(STALL_SECONDS)
        loop.pump()
    assert len(lost) == 1
    assert "does not fit" in lost[0].reason
    waits.decide(False, "given up")
    loop.settle()
    loop.pump()
    big = loop.outlet.begin(migration(3), "big", False, lost.append)
    big.snapshot(1, "")
    loop.pump()
    Writer(big.open_image(1, "pages-1.img", Mode.REPLACE), 12 * MIB).resumeProducing()
    loop.pump()
    held = result(big.seal({}))
    loop.pump()
    assert held == [12 * MIB]


def test_two_that_do_not_fit_together() -> None:
    loop = Loop(memory=16 * MIB, window=8 * MIB).connect()
    lost: dict[int, list[RelayError]] = {1: [], 2: []}
    outgoing = {}
    for number in (1, 2):
        outgoing[number] = loop.outlet.begin(migration(number), f"web{number}", False, lost[number].append)
        outgoing[number].snapshot(1, "")
        loop.pump()
    for number in (1, 2):
        Writer(outgoing[number].open_image(1, "pages-1.img", Mode.REPLACE), 10 * MIB).resumeProducing()
    loop.pump()
    assert lost == {1: [], 2: []}
    for _ in range(2):
        loop.clock.advance(STALL_SECONDS)
        loop.pump()
        loop.settle()
        loop.pump()
    held = result(outgoing[1].seal({}))
    loop.pump()
    assert (held, lost[1], len(lost[2])) == ([10 * MIB], [], 1)


@pytest.mark.parametrize("leave_out", [True, False])
def test_zeros_are_not_sent(leave_out: bool) -> None:
    loop = Loop().connect()
    loop.outlet.window.leave_out_zeros = leave_out
    outgoing = loop.outlet.begin(FIRST, "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    data = b"begin" + bytes(5 * 4096) + b"x" * 4096 + bytes(MIB) + b"y" * 100 + bytes(9000)
    sink = outgoing.open_image(1, "inventory.img", Mode.REPLACE)
    loop.pump()
    before = len(loop.record[UP])
    for at in range(0, len(data), 7000):
        sink.write(data[at : at + 7000])
    sink.end()
    loop.pump()
    assert (len(loop.record[UP]) - before < 10 * 4096) is leave_out
    held = result(outgoing.seal({}))
    loop.pump()
    assert held == [len(data)]
    assert loop.window_arena.used == 0, "zeros are acknowledged too"
    outgoing.decide(True)
    loop.pump()
    [opened] = result(loop.store.namespace("web").begin(None).open(None, "inventory.img"))
    got = b"".join(result(opened.read(at, MIB))[0] for at in range(0, len(data), MIB))
    assert got == data


def test_discarded_at_the_cache_while_it_comes() -> None:
    loop = Loop(window=8 * MIB).connect()
    lost: list[RelayError] = []
    outgoing = loop.outlet.begin(migration(7), "web", False, lost.append)
    outgoing.snapshot(1, "")
    sink = outgoing.open_image(1, "pages-1.img", Mode.REPLACE)
    sink.write(b"x" * MIB)
    loop.pump()
    sink.write(b"x" * (2 * MIB))
    loop._move("up", times=2)
    loop.store.discard("web")
    loop.pump()
    assert "discarded" in lost[0].reason
    loop.pump()
    assert loop.window_arena.used == 0
    assert not loop.cut
    loop.settle()
    assert loop.store_arena.used == 0


@pytest.mark.parametrize("when", ["behind its bytes", "it is held"])
def test_a_range_is_discarded_at_the_proxy(when: str) -> None:
    """What is queued behind the image's bytes waits for them; its size and digest stay those of the whole."""
    loop = Loop().connect()
    outgoing = loop.outlet.begin(FIRST, "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    data = random.Random(1).randbytes(8 * PAGE)
    for name, content in (("pages-1.img", data), ("inventory.img", b"inv")):
        sink = outgoing.open_image(1, name, Mode.REPLACE)
        sink.write(content)
        sink.end()
    if when == "behind its bytes":
        outgoing.discard(1, "pages-1.img", PAGE + 1, 4 * PAGE)
    held = result(outgoing.seal({}))
    loop.pump()
    if when == "it is held":
        outgoing.discard(1, "pages-1.img", PAGE + 1, 4 * PAGE)
        loop.pump()
    assert held == [len(data) + 3]
    outgoing.decide(True)
    loop.pump()
    assert states(loop) == [State.COMMITTED]
    [figures] = loop.store.accounts().of.values()
    assert figures["discarded"] == 3 * PAGE, "the whole pages of it"
    [opened] = result(loop.store.namespace("web").begin(None).open(None, "pages-1.img"))
    assert result(opened.read(0, 2 * PAGE)) == [data[: 2 * PAGE]]
    assert result(opened.read(5 * PAGE, MIB)) == [data[5 * PAGE :]]
    assert is_error(result(opened.read(2 * PAGE, 1)))


def test_nothing_is_discarded_of_a_migration_that_was_given_up() -> None:
    loop = Loop().connect()
    session = Session(loop).run(commit=False)
    with pytest.raises(RelayError, match="given up"):
        session.outgoing.discard(1, "a.img", 0, 1)


def test_back_pressure() -> None:
    loop = Loop(window=2 * MIB).connect()
    outgoing = loop.outlet.begin(migration(1), "web", False, lambda error: None)
    outgoing.snapshot(1, "")
    loop.pump()
    sink: Any = outgoing.open_image(1, "pages-1.img", Mode.REPLACE)
    producer = Producer()
    sink.registerProducer(producer, True)
    count = 0
    while (room := sink.reserve(MIB)) is not None:
        room.view[:] = b"x" * len(room.view)
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
    assert loop.window_arena.used == MIB


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
    session.outgoing = loop.outlet.begin(FIRST, "web", False, session.lost.append)
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


def test_an_answer_that_nobody_asked_for_ends_the_link_and_the_decision_is_told_again() -> None:
    loop = Loop().connect()
    session = Session(loop)
    session.attempt(session.everything)
    decided = result(session.outgoing.decide(True))
    loop.proxy.say(Frame(decided={"migration": SECOND, "outcome": link_pb2.COMMITTED}))
    assert loop.proxy.heard()[-1][0].error.reason.endswith("which nobody asked for")
    assert decided == []
    loop.disconnect()
    loop.connect()
    assert decided == ["committed"]


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("how", ["restored", "discard"])
def test_the_proxy_is_told_what_was_restored_or_discarded(how: str, linked: bool) -> None:
    loop = Loop(patience=30.0).connect()
    finished: list[bytes] = []
    loop.outlet.let_go = finished.append
    loop.store.let_go = loop.receiver.let_go
    session = Session(loop).run()
    if not linked:
        loop.disconnect()
    getattr(loop.store, how)("web")
    if not linked:
        loop.connect()
    loop.pump()
    assert finished == [FIRST]
    assert session.outcome == ["committed"]
    loop.disconnect()
    loop.connect()
    assert finished == [FIRST], "told once"


def test_the_proxy_is_not_told_of_what_was_given_up() -> None:
    loop = Loop().connect()
    finished: list[bytes] = []
    loop.outlet.let_go = finished.append
    loop.store.let_go = loop.receiver.let_go
    Session(loop).run(commit=False)
    loop.pump()
    assert finished == []


def test_held_under_another_name_is_aborted() -> None:
    """Its bytes are right, but nobody would restore it under that name."""
    loop = Loop().connect()
    session = Session(loop)
    session.attempt(lambda: session.write("inventory.img", b"inv"))
    session.sealing = result(session.outgoing.seal({}))
    loop.proxy.say(Frame(held={"migration": FIRST, "name": "wab", "bytes": 3}))
    assert "holds web as wab" in session.sealing[0].reason
    session.decide(False)
    assert states(loop) == [State.ABORTED]


def test_a_decision_is_told_once_over_each_link() -> None:
    loop = Loop().connect()
    session = Session(loop)
    session.attempt(session.everything)
    decided = [result(session.outgoing.decide(True))]
    loop.disconnect()
    loop.outlet.linked = lambda: decided.append(result(session.outgoing.decide(True)))
    loop.connect()
    assert decided == [["committed"], ["committed"]]
    assert Parsed().feed(bytes(loop.record["down"])).kinds.count("decided") == 1
    loop.disconnect()
    loop.store.discard("web")
    loop.store.namespaces.clear()
    loop.store._generations.clear()
    loop.connect()
    assert decided[2:] == [["unknown"]]
    assert not loop.cut


def test_a_proxy_that_was_started_again_ends_what_its_old_link_carried() -> None:
    """That link lies in a black hole, and looks alive."""
    loop = Loop().connect()
    session = Session(loop)
    session.attempt(lambda: session.write("a.img", b"alpha"))
    assert states(loop) == [State.OPEN]
    again = Loop(beside=loop).connect()
    assert again.outlet.describe()["state"] == "up"
    assert states(loop) == [State.ABORTED]
    assert list(loop.receiver.links) == [again.cache.connection]
    assert loop.cache.heard()[-1][0].error.reason == "its proxy was started again, and has made another link"
