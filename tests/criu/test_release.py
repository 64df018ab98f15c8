"""`--release` with the real criu: images are given back while they are restored."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.migration import Migration
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu

TASK = 128
"""MiB of the victim."""


def test_a_restore_takes_the_images_with_it(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    migration = Migration(relay, criu, victim("memory", TASK, 51))
    migration.start(cache=["--release"])
    before = migration.victim.ask()
    migration.dump().succeed()
    migration.victim.reap()
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
    assert relay.get("/v1/status")["memory"]["used"] == 0
