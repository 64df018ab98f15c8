"""A daemon or the link dies in mid-dump and does not come back: criu fails, the task lives on, nothing is served."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.faults import UP, Fault, Faults
from tests.support.gate import Gate
from tests.support.migration import REFUSE_SECONDS, Migration
from tests.support.polling import until
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu

MIB = 1 << 20

TASK = 100
"""MiB of the victim: more than the window and the kernel's buffers of the link together, so that while nobody reads at
the far end criu stands in the middle of its pages."""

WINDOW = 16 * MIB

PASSED = 8 * MIB
"""What the link lets through before it stands still."""

GIVE_UP = ("--link-timeout", "2")

STILL_SECONDS = 15.0
"""To notice with L{GIVE_UP} that the other side is silent."""


CUTS = (("reset", 2000), ("fin", 30 * MIB), ("reset", 10 * MIB + 17))
"""What ends the links of a dump, one after the other, and after how many bytes."""


@pytest.fixture
def faults(relay: Relay) -> Iterator[Faults]:
    made = Faults(relay.port, Fault("stall", UP, PASSED))
    yield made
    made.close()


@pytest.fixture(params=[WINDOW, 0], ids=["window", "zero-copy"])
def moving(
    relay: Relay, criu: Criu, victim: Callable[..., Victim], faults: Faults, request: pytest.FixtureRequest
) -> Migration:
    """A victim that is about to be dumped over a link that will stand still."""
    migration = Migration(relay, criu, victim("memory", TASK, 21))
    link = f"tcp:127.0.0.1:{faults.port}"
    migration.start(cache=GIVE_UP, proxy=["--window", str(request.param), "--link", link, *GIVE_UP])
    return migration


def stand_still(migration: Migration, faults: Faults) -> None:
    """Wait until the dump is in its middle and nothing moves any more."""
    migration.written(PASSED // 2)
    until(lambda: faults.hit("stall"), 30, "the link stands still")


def test_the_cache_is_killed(moving: Migration, faults: Faults) -> None:
    before = moving.victim.ask()
    waiting = moving.restore()
    moving.waiting()
    run = moving.dump()
    stand_still(moving, faults)
    assert run.status is None
    moving.relay.cache.kill()
    faults.cut()
    assert run.wait(REFUSE_SECONDS) != 0
    moving.lives_on(before)
    moving.aborted("proxy")
    assert waiting.run.wait() != 0


def test_the_cache_is_killed_without_anything_between(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    migration = Migration(relay, criu, victim("memory", TASK, 22))
    migration.start(proxy=["--window", str(WINDOW), *GIVE_UP])
    before = migration.victim.ask()
    relay.cache.signal(signal.SIGSTOP)
    run = migration.dump()
    migration.written(WINDOW // 2)
    relay.cache.kill()
    assert run.wait(REFUSE_SECONDS) != 0
    migration.lives_on(before)
    reason = migration.aborted("proxy")
    assert "link" in reason

    # Both go on: a new cache, the same proxy.
    relay.start_cache("--stream", str(migration.target))
    relay.linked()
    migration.dump().succeed()
    migration.victim.reap()
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)


def test_the_proxy_is_killed(moving: Migration, faults: Faults) -> None:
    before = moving.victim.ask()
    waiting = moving.restore()
    moving.waiting()
    run = moving.dump()
    stand_still(moving, faults)
    assert run.status is None
    moving.relay.proxy.kill()
    faults.cut()
    assert run.wait(REFUSE_SECONDS) != 0
    moving.lives_on(before)
    moving.aborted("cache")
    assert waiting.run.wait() != 0
    moving.not_served()


def test_the_link_is_cut(moving: Migration, faults: Faults) -> None:
    before = moving.victim.ask()
    waiting = moving.restore()
    moving.waiting()
    run = moving.dump()
    stand_still(moving, faults)
    assert run.status is None
    faults.cut()
    assert run.wait(REFUSE_SECONDS) != 0
    moving.lives_on(before)
    moving.aborted()
    assert waiting.run.wait() != 0
    moving.not_served()
    moving.left_behind()


def test_the_link_is_cut_and_made_again(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    """Three times, at the beginning and in the middle of the pages: criu notices nothing."""
    cuts = [Fault(what, UP, at, connection=number) for number, (what, at) in enumerate(CUTS)]
    faults = Faults(relay.port, *cuts)
    migration = Migration(relay, criu, victim("memory", TASK, 26))
    migration.start(proxy=["--window", str(WINDOW), "--link", f"tcp:127.0.0.1:{faults.port}"])
    before = migration.victim.ask()
    migration.dump().succeed()
    migration.victim.reap()
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
    faults.close()
    counters = relay.get("/v1/status", at="proxy")["counters"]
    assert counters["links_resumed"] == len(CUTS)
    assert 0 < counters["link_bytes_sent_again"] <= len(CUTS) * (WINDOW + MIB)


def test_the_cache_is_killed_while_the_script_waits(migration: Migration, gate: Gate) -> None:
    """Everything is written, nothing is held."""
    migration.start(proxy=GIVE_UP)
    before = migration.victim.ask()
    run = migration.dump(script=gate.script)
    gate.arrive("before")
    migration.relay.cache.kill()
    gate.go("before")
    gate.go("after")
    assert run.wait(REFUSE_SECONDS) != 0
    assert gate.status == 1
    migration.lives_on(before)
    migration.aborted("proxy")


def test_there_is_no_cache(migration: Migration) -> None:
    relay = migration.relay
    relay.start_proxy("--stream", str(migration.source))
    before = migration.victim.ask()
    assert migration.dump(CRIU_RELAY_TIMEOUT="2").wait(20) != 0
    migration.lives_on(before)
    migration.aborted("proxy")


def test_there_is_no_proxy(migration: Migration) -> None:
    before = migration.victim.ask()
    assert migration.dump().wait() != 0
    migration.lives_on(before)


def test_the_cache_stands_still(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    """No end of the connection, no answer: the link is given up after its time, and stays so when the cache wakes.

    What it had not read by then is gone with the connection, so that it may never have heard of the namespace.
    """
    migration = Migration(relay, criu, victim("memory", TASK, 23))
    migration.start(cache=GIVE_UP, proxy=["--window", str(WINDOW), *GIVE_UP])
    before = migration.victim.ask()
    relay.cache.signal(signal.SIGSTOP)
    run = migration.dump()
    migration.written(WINDOW // 2)
    assert run.wait(STILL_SECONDS) != 0
    migration.lives_on(before)
    migration.aborted("proxy")
    relay.cache.signal(signal.SIGCONT)
    relay.linked()
    migration.not_served()


def test_the_cache_has_too_little_memory(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    migration = Migration(relay, criu, victim("memory", 64, 24))
    migration.start(cache=["--memory", "32M"])
    before = migration.victim.ask()
    waiting = migration.restore()
    migration.waiting()
    assert migration.dump().wait() != 0
    migration.lives_on(before)
    assert "memory" in migration.aborted()
    assert waiting.run.wait() != 0
    migration.not_served()
    assert relay.get("/v1/status")["memory"]["used"] == 0

    small = Migration(relay, criu, victim("memory", 4, 25))
    small.dump().succeed()
    small.victim.reap()
    small.committed()
    migration.left_behind()
