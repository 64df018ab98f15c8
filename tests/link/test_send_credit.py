"""What a migration may send, and those who wait to write more of it."""

from __future__ import annotations

from typing import Any

import pytest

from criu_relay.errors import ProtocolError
from criu_relay.interfaces import Mode
from criu_relay.link.credit import AHEAD, UNSENT, SendCredit
from criu_relay.link.images import OutgoingImage
from criu_relay.link.outgoing import OutgoingMigration
from criu_relay.link.window import Window
from criu_relay.store.arena import Arena
from tests.link.support import Producer
from tests.store.support import Turns

MIB = 1 << 20
LIMIT = 4 * UNSENT


@pytest.fixture
def window() -> Window:
    return Window(Arena(LIMIT, keep=0), Turns())


def waiting_for(credit: SendCredit) -> Producer:
    """One that found no room."""
    assert credit.room == 0
    producer = Producer()
    credit.waiting.add(producer)
    return producer


def test_what_is_sent_makes_room_for_more(window: Window) -> None:
    credit = SendCredit(window, lambda image: None)
    credit.queue(UNSENT)
    producer = waiting_for(credit)
    credit.sent(MIB)
    assert (credit.room, producer.calls) == (MIB, ["resume"])


def test_while_much_of_the_window_waits_nobody_goes_far_ahead_of_his_credit(window: Window) -> None:
    credit, other = SendCredit(window, lambda image: None), SendCredit(window, lambda image: None)
    other.queue(LIMIT // 2)
    credit.queue(AHEAD)
    producer = waiting_for(credit)
    credit.granted(MIB)
    assert (credit.room, producer.calls) == (MIB, ["resume"])
    credit.spend(MIB)
    assert credit.room == 0
    with pytest.raises(ProtocolError, match="it was"):
        credit.granted(MIB - 1)


def test_an_image_that_waits_for_credit_and_is_over_is_not_resumed(window: Window) -> None:
    nothing: Any = lambda *given: None  # noqa: E731
    migration = OutgoingMigration(b"m" * 16, "web", window, nothing, nothing, nothing, nothing, nothing)
    image = migration.open_image(1, "pages-1.img", Mode.REPLACE)
    assert isinstance(image, OutgoingImage)
    producer = Producer()
    image.registerProducer(producer, True)
    migration.credit.queue(UNSENT)
    assert image.reserve(1) is None
    image.unregisterProducer()
    migration.credit.sent(MIB)
    assert producer.calls == []
