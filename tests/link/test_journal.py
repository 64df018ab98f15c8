"""What the logs say: one line at each side for a namespace that is aborted, and nothing that a peer can steer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogEvent, eventAsText, globalLogPublisher

from criu_relay.errors import ABORTED
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from criu_relay.wire.names import plain
from tests.commit.fakes import Bench
from tests.link.session import Session
from tests.link.support import CACHE_ID, Loop, Wired, hello, migration

EVIL = "all is well\n2026-01-01 [-] root: \x1b[2J\x9b31m\u202e"
CLEAN = "all is well?2026-01-01 [-] root: ?[2J?31m?"


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """What is logged."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def aborted(events: list[LogEvent]) -> list[dict[str, Any]]:
    """The structured lines of aborted namespaces."""
    fields = ("name", "migration", "bytes", "why", "who", "todo")
    return [{field: event[field] for field in fields} for event in events if event.get("log_format") == ABORTED]


def test_one_line_at_the_proxy(tmp_path: Path, events: list[LogEvent]) -> None:
    bench = Bench(tmp_path)
    bench.written("pages-1.img")
    newest = bench.dumps.known("web")
    newest.abort("the link is lost", hint="mend it")
    [line] = aborted(events)
    assert line == {
        "name": "web",
        "migration": newest.id.hex(),
        "bytes": 0,
        "why": "the link is lost",
        "who": "a task that is not known",
        "todo": "mend it",
    }
    assert [event["log_level"].name for event in events] == ["error"]


@pytest.mark.parametrize("way", ["link lost", "given up", "discarded", "wrong frame"])
def test_one_line_at_the_cache(events: list[LogEvent], way: str) -> None:
    loop = Loop().connect()
    session = Session(loop)
    session.attempt(lambda: session.write("a.img", b"alpha"))
    if way == "link lost":
        loop.disconnect()
    elif way == "given up":
        session.decide(False)
    elif way == "discarded":
        loop.store.discard("web")
    else:
        loop.cache.say(Frame(image_end={"migration": session.number, "image": 1, "size": 5, "digest": b"x" * 16}))
    [line] = aborted(events)
    assert (line["name"], line["migration"], line["who"]) == ("web", session.number.hex(), "the proxy local")
    assert line["bytes"] == 5
    assert line["why"]
    assert line["todo"]


def test_texts_of_a_proxy(events: list[LogEvent]) -> None:
    """In the log and in what the API answers."""
    loop = Loop().connect()
    cache = Wired(loop.clock, loop.receiver, link_pb2.CACHE, hello(link_pb2.PROXY, b"e" * 16, name=EVIL))
    source = {"host": EVIL, "pid": 7, "command": EVIL}
    cache.say(Frame(namespace={"migration": migration(9), "name": "evil", "source": source}))
    cache.say(Frame(abort={"migration": migration(9), "reason": EVIL}))
    generation = loop.store.known("evil")
    assert generation.reason == CLEAN
    assert generation.source == f"{CLEAN} (pid 7) on {CLEAN}"
    assert cache.connection.status()["name"] == CLEAN
    cache.say(Frame(error={"reason": EVIL}))
    told(events)


def test_texts_of_a_cache(events: list[LogEvent]) -> None:
    loop = Loop()
    proxy = Wired(loop.clock, loop.outlet, link_pb2.PROXY, hello(link_pb2.CACHE, CACHE_ID, name=EVIL))
    proxy.say(Frame(resume={"known": False, "frames": 0, "partial": 0}))
    lost: list[Any] = []
    loop.outlet.begin(migration(9), "web", False, lost.append)
    proxy.wire.pull()
    proxy.say(Frame(error={"reason": EVIL, "migration": migration(9)}))
    assert lost[0].reason.endswith(CLEAN)
    proxy.say(Frame(bye={"reason": EVIL}))
    told(events)


def test_texts_before_the_hello(events: list[LogEvent]) -> None:
    loop = Loop()
    proxy = Wired(loop.clock, loop.outlet, link_pb2.PROXY, None)
    proxy.say(Frame(error={"reason": EVIL}))
    told(events)


def told(events: list[LogEvent]) -> None:
    """Something of it was logged, as it should be."""
    lines = [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]
    assert any(CLEAN in line for line in lines), lines
    assert all(line.isprintable() for line in lines), lines


def test_plain() -> None:
    assert plain(EVIL) == CLEAN
    assert plain("übung, 東京 - ok") == "übung, 東京 - ok"
