"""One link's misuse closes that link, with an error frame that says what was wrong, and harms no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from criu_relay.link import connection, sessions
from criu_relay.store import generation
from criu_relay.store.generation import State
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.framing import LENGTH
from criu_relay.wire.link_pb2 import Frame
from tests.link.session import BYSTANDER, KEPT, Session, committed, contents
from tests.link.support import MIB, Loop, Wired, hello, migration

HOSTILE = b"h" * 16

ONE = {"migration": migration(9)}


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A proxy in the middle of a migration, which must end well."""
    loop = Loop().connect()
    session = Session(loop, BYSTANDER, "bystander")
    session.attempt(lambda: session.write("a.img", b"alpha"))
    yield loop
    session.finish()
    session.decide(bool(session.held))
    assert session.outcome == ["committed"]
    assert committed(loop) == {"bystander"}
    assert contents(loop, "bystander") == KEPT


def hostile(loop: Loop, instance: bytes = HOSTILE) -> Wired:
    """Another proxy of the same cache, which is linked."""
    wired = Wired(loop.clock, loop.receiver, link_pb2.CACHE, hello(link_pb2.PROXY, instance))
    wired.wire.pull()
    return wired


def begun(number: int = 9, name: str = "evil") -> Frame:
    return Frame(namespace={"migration": migration(number), "name": name})


def image(number: int, name: str = "a.img") -> Frame:
    return Frame(image={**ONE, "image": number, "snapshot": 1, "name": name, "mode": link_pb2.REPLACE})


def told(wired: Wired) -> str:
    """What the error frame that ended the link says."""
    frame = wired.heard()[-1][0]
    assert frame.WhichOneof("body") == "error"
    assert not frame.error.HasField("migration")
    return frame.error.reason


MISUSES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a header that is too long": (lambda: LENGTH.pack(wire.MAX_HEADER + 1), str(wire.MAX_HEADER)),
    "a header of no bytes": (lambda: LENGTH.pack(0), "its length is 0"),
    "a header that is none": (lambda: LENGTH.pack(4) + b"\xff" * 4, "link frame"),
    "a payload that is too long": (
        lambda: wire.encode(Frame(extent={**ONE, "image": 1, "offset": 0}, payload=wire.MAX_PAYLOAD + 1)),
        f"more than {wire.MAX_PAYLOAD}",
    ),
    "a name that is too long": (lambda: wire.encode(begun(name="n" * 256)), "namespace.name"),
    "a name that is a path": (lambda: wire.encode(begun(name="../../etc")), "namespace.name"),
    "a label that is too long": (
        lambda: wire.encode(Frame(snapshot={**ONE, "index": 1, "label": "l" * 4097})),
        "snapshot.label",
    ),
    "a text that is too long": (
        lambda: wire.encode(Frame(abort={**ONE, "reason": "r" * (wire.MAX_TEXT + 1)})),
        f"more than {wire.MAX_TEXT}",
    ),
    "a frame of the other side": (lambda: wire.encode(Frame(ack={"frames": 1})), "does not send ack"),
    "a second hello": (lambda: wire.encode(Frame(hello=hello(link_pb2.PROXY, HOSTILE))), "twice"),
    "an image of nothing": (lambda: wire.encode(image(1)), "never begun"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse(loop: Loop, misuse: str) -> None:
    data, reason = MISUSES[misuse]
    wired = hostile(loop)
    wired.connection.dataReceived(data())
    assert reason in told(wired)
    assert not wired.connection.up


def test_migrations(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MIGRATIONS", 3)
    wired = hostile(loop)
    wired.say(*(begun(100 + number, f"n{number}") for number in range(3)))
    assert wired.connection.up
    wired.say(begun(103, "n3"))
    assert "3 migrations" in told(wired)
    states = {name: home.newest.state for name, home in loop.store.namespaces.items() if home.newest is not None}
    assert states == {"bystander": State.OPEN, **{f"n{number}": State.ABORTED for number in range(3)}}


def test_migrations_that_were_refused_count(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer cannot make us remember more by what it does wrong."""
    monkeypatch.setattr(wire, "MAX_MIGRATIONS", 3)
    monkeypatch.setattr("criu_relay.store.store.NAMESPACES", 1)
    wired = hostile(loop)
    wired.say(*(begun(100 + number, f"n{number}") for number in range(3)))
    assert wired.connection.up
    wired.say(begun(103, "n3"))
    assert "3 migrations" in told(wired)


def test_snapshots(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_SNAPSHOTS", 2)
    wired = hostile(loop)
    wired.say(begun(), *(Frame(snapshot={**ONE, "index": index, "label": ""}) for index in (1, 2, 3)))
    assert "snapshot 3" in told(wired)


def test_images(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_IMAGES", 2)
    wired = hostile(loop)
    wired.say(begun(), Frame(snapshot={**ONE, "index": 1, "label": ""}), image(1, "a"), image(2, "b"), image(3, "c"))
    assert "more than 2 images" in told(wired)


def test_rows_of_the_closing_header(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_IMAGES", 2)
    wired = hostile(loop)
    rows = [{"snapshot": 1, "name": "a", "size": 0}]
    wired.say(begun(), *(Frame(namespace_end={**ONE, "images": rows, "last": False}) for _ in range(3)))
    assert "more than 2 images" in told(wired)


def test_links(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS", 3)
    linked = [hostile(loop, bytes([number]) * 16) for number in (1, 2)]
    third = Wired(loop.clock, loop.receiver, link_pb2.CACHE, hello(link_pb2.PROXY, b"3" * 16))
    assert "serves 3 proxies" in told(third)
    linked[0].lose()
    hostile(loop, b"4" * 16)
    assert all(one.up for one in loop.receiver.links)


def test_what_is_read_back_and_not_taken(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not read what it asked for: its link ends before that fills our memory."""
    monkeypatch.setattr(connection, "QUEUED_CONTROL_BYTES", 2 * MIB)
    wired = hostile(loop)
    wired.say(begun(), Frame(snapshot={**ONE, "index": 1, "label": ""}), image(1))
    wired.say(Frame(extent={**ONE, "image": 1, "offset": 0}), payload=bytes(MIB // 2))
    wired.say(Frame(image_end={**ONE, "image": 1, "size": MIB // 2}))
    wired.heard()
    wired.wire.pull = lambda times=0: b""  # type: ignore[method-assign, assignment]
    count = 0
    while wired.connection.up and count < 100:
        count += 1
        wired.say(Frame(fetch={**ONE, "request": count, "image": 1, "offset": 0, "length": MIB}))
    assert 3 < count < 10
    assert wired.wire.ended == "abort"
