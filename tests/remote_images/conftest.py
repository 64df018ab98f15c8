"""Two daemons with a namespace for remote images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.remote_images.pair import Pair
from tests.support.daemons import Relay
from tests.support.forwarder import Forwarder


@pytest.fixture
def pair(relay: Relay) -> Iterator[Pair]:
    """A cache and a proxy, linked, with the namespace "web"; in the end both must still live."""
    pair = Pair(relay)
    pair.start()
    yield pair
    pair.alive()


@pytest.fixture
def forwarder() -> Iterator[Callable[..., Forwarder]]:
    """Makes links that can be cut."""
    made: list[Forwarder] = []

    def make(target: int, most: int | None = None) -> Forwarder:
        made.append(Forwarder(target, most))
        return made[-1]

    yield make
    for one in made:
        one.close()
