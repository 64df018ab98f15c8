"""`--release` with the real criu: images are given back while they are restored."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.measure import MIB
from bench.processes import LOOK, Watched, memfds, together
from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.migration import Migration
from tests.support.polling import until
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu

TASK = 128
"""MiB of the victim."""


ROOM = 96 * MIB
"""Bytes that criu, which counts once for each task of it, and the interpreter take besides."""


def test_a_restore_takes_the_images_with_it(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    """The cache and the restored process never take twice the memory, and the cache keeps none in the end."""
    migration = Migration(relay, criu, victim("memory", TASK, 51))
    migration.start(cache=["--release"])
    before = migration.victim.ask()
    migration.dump().succeed()
    migration.victim.reap()
    node = migration.restore()
    with Watched(lambda: together(relay.cache.pid, node.run.process.pid), LOOK) as watched:
        node.run.succeed()
    assert TASK * MIB < watched.peak < TASK * MIB + ROOM
    migration.moved(before, node)
    assert relay.get("/v1/status")["memory"]["used"] == 0
    until(lambda: memfds(relay.cache.pid) < MIB, 10.0, "the kernel has the memory back")
