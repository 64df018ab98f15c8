"""Two daemons with a namespace for remote images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.remote_images.pair import Pair
from tests.support.daemons import Relay
from tests.support.faults import Fault, Faults


@pytest.fixture
def pair(relay: Relay) -> Iterator[Pair]:
    """A cache and a proxy, linked, with the namespace "web"; in the end both must still live."""
    pair = Pair(relay)
    pair.start()
    yield pair
    pair.alive()


@pytest.fixture
def faulty() -> Iterator[Callable[..., Faults]]:
    """Makes links with faults."""
    made: list[Faults] = []

    def make(target: int, *plan: Fault) -> Faults:
        made.append(Faults(target, *plan))
        return made[-1]

    yield make
    for one in made:
        one.close()
