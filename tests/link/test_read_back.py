"""Images that are read back while their migration, or they themselves, come to an end."""

from __future__ import annotations

import pytest

from criu_relay.errors import Aborted, Conflict
from criu_relay.interfaces import Mode
from tests.link.session import SECOND, Session
from tests.link.support import Loop, is_error, result
from tests.support.faults import DOWN, UP

PATIENCE = 30.0


def begun() -> tuple[Loop, Session]:
    """A migration with one image that ended."""
    loop = Loop(patience=PATIENCE).connect()
    session = Session(loop)
    session.attempt(lambda: session.write("a.img", b"alpha"))
    return loop, session


def test_one_that_was_sent_when_the_cache_refused() -> None:
    """It is dropped there, and its migration is given up here."""
    loop, session = begun()
    loop.store.discard("web")
    answer = result(session.outgoing.read_image(1, "a.img").read(0, 5))
    loop._move(UP)
    loop.pump()
    assert session.lost
    assert answer == session.lost


def test_one_that_was_sent_over_a_link_that_is_lost() -> None:
    """The next link has a gap in its place."""
    loop, session = begun()
    answer = result(session.outgoing.read_image(1, "a.img").read(0, 5))
    loop.proxy.wire.pull()
    loop.disconnect()
    session.decide(False)
    loop.connect()
    assert is_error(answer)
    assert isinstance(answer[0], Aborted)


def test_an_answer_that_comes_after_all() -> None:
    """It is dropped, and the reader is told once; those of other migrations are answered."""
    loop, session = begun()
    other = Session(loop, SECOND, "bystander")
    other.attempt(lambda: other.write("a.img", b"omega"))
    answers = [result(one.outgoing.read_image(1, "a.img").read(0, 5)) for one in (session, other)]
    loop._move(UP)
    session.decide(False)
    loop.pump()
    assert is_error(answers[0])
    assert answers[1] == [b"omega"]
    assert b"alpha" in loop.record[DOWN]
    assert loop.proxy is not None


@pytest.mark.parametrize("mode", [Mode.APPEND, Mode.REPLACE])
def test_one_that_is_written_again(mode: Mode) -> None:
    """Reading it fails, and nothing else does: both migrations go on, over the same link."""
    loop, session = begun()
    other = Session(loop, SECOND, "bystander")
    other.attempt(lambda: other.write("a.img", b"omega"))
    opened = session.outgoing.read_image(1, "a.img")
    sink = session.outgoing.open_image(1, "a.img", mode)
    sink.write(b"more")
    loop.pump()
    answer = result(opened.read(0, 5))
    loop.pump()
    assert isinstance(answer[0], Conflict)
    sink.end()
    loop.pump()
    for one in (session, other):
        one.sealing = result(one.outgoing.seal({"host": "h"}))
        loop.pump()
        assert one.held
        assert one.lost == []
    assert "links_lost" not in loop.counters.values


def test_reading_behind_the_end() -> None:
    """There is nothing, which is no error."""
    loop, session = begun()
    answer = result(session.outgoing.read_image(1, "a.img").read(5, 5))
    loop.pump()
    assert answer == [b""]
