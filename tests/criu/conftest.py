"""Fixtures of the tests with the real criu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.gate import Gate
from tests.support.migration import Migration
from tests.support.victims import Victim


@pytest.fixture
def migration(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> Migration:
    """A small victim that is about to move; no daemon runs yet."""
    return Migration(relay, criu, victim("memory", 4, 7))


@pytest.fixture
def gate(tmp_path: Path, relay: Relay) -> Iterator[Gate]:
    """An action script for one dump."""
    made = Gate(tmp_path / "gate", relay.action)
    yield made
    made.close()
