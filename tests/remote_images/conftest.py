"""Two daemons with a namespace for remote images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remote_images.pair import Pair
from tests.support.daemons import Relay
from tests.support.faults import Fault, Faults
from tests.support.outcome import failed


class Shared:
    """A cache and a proxy, linked, that serve one test after the other, each with a namespace of its own."""

    def __init__(self, logs: Path) -> None:
        """@param logs: an existing directory."""
        self._logs = logs
        self._numbers = itertools.count(1)
        self.relay: Relay | None = None

    def pair(self) -> Pair:
        """A new namespace; the daemons are started when none run."""
        number = next(self._numbers)
        if self.relay is None:
            place = self._logs / f"daemons-{number}"
            place.mkdir()
            self.relay = Relay(place)
            self.relay.start_cache()
            self.relay.start_proxy()
            self.relay.linked()
        pair = Pair(self.relay, f"web-{number}")
        pair.attach()
        return pair

    def close(self) -> None:
        """The next test has new daemons."""
        if self.relay is not None:
            self.relay.close()
        self.relay = None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """The daemons of L{pair}."""
    made = Shared(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()


@pytest.fixture
def pair(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A namespace at a cache and a proxy that others use before and after; in the end both must still live."""
    try:
        pair = shared.pair()
        yield pair
        pair.alive()
        pair.give_up()
    except BaseException:
        shared.close()
        raise
    if failed(request):
        print(pair.relay.report())
        shared.close()


@pytest.fixture
def fresh(relay: Relay) -> Iterator[Pair]:
    """The same with daemons of its own and the namespace "web"."""
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
