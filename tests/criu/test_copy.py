"""A dump that leaves the task running: what is restored is the moment of the dump."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.migration import Migration
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu


@pytest.mark.parametrize("window", ["256M", "0"])
def test_a_copy_has_the_memory_of_the_moment_of_the_dump(
    relay: Relay, criu: Criu, victim: Callable[..., Victim], window: str
) -> None:
    """criu passes pages by reference: what is drained after the task resumed would be what it wrote since."""
    migration = Migration(relay, criu, victim("mutating", 64))
    relay.start_cache()
    relay.start_proxy("--window", window)
    relay.linked()
    migration.attach("--copy")

    migration.dump("--leave-running").succeed()
    migration.committed()
    assert migration.victim.alive
    original = migration.victim.ask()
    assert original["wrong"] == 0
    migration.victim.counts_on()

    node = migration.restore_copy()
    node.run.succeed()
    copy = node.ask()
    assert copy["wrong"] == 0
    assert copy["pid"] == original["pid"]
    # It rests at the moment of the dump, and the original goes on.
    assert 0 < copy["round"] < original["round"]
    assert node.ask()["round"] == copy["round"]
    assert migration.victim.ask()["round"] > original["round"]
    migration.left_behind()


def test_a_move_that_leaves_the_task_running_is_never_served(migration: Migration) -> None:
    """Nobody said that it is a copy: the task lives on, so the images must not."""
    migration.start()
    before = migration.victim.ask()
    waiting = migration.restore()
    migration.waiting()
    migration.dump("--leave-running").succeed()
    migration.lives_on(before)
    migration.aborted()
    assert waiting.run.wait() != 0
    migration.not_served()
    migration.left_behind()


def test_copy_said_in_the_environment_of_the_script(migration: Migration) -> None:
    migration.start()
    before = migration.victim.ask()
    migration.dump("--leave-running", CRIU_RELAY_COPY="1").succeed()
    migration.committed()
    migration.lives_on(before)
    node = migration.restore_copy()
    node.run.succeed()
    assert node.ask()["digest"] == before["digest"]
    migration.left_behind()
