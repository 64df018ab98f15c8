"""Who decides, and when: a permission to kill is not a kill. See docs/commit.md."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.gate import Gate
from tests.support.migration import Migration
from tests.support.polling import until
from tests.support.victims import Victim, process_state

pytestmark = pytest.mark.needs_criu


def test_the_script_is_killed_before_it_asks(migration: Migration, gate: Gate) -> None:
    migration.start()
    before = migration.victim.ask()
    run = migration.dump(script=gate.script)
    gate.arrive("before")
    os.kill(gate.pid, signal.SIGKILL)
    assert run.wait() != 0
    migration.lives_on(before)
    stays_held_until_discarded(migration, before)


def test_the_action_is_killed_while_it_asks(migration: Migration, gate: Gate) -> None:
    """The cache stands still, so that the answer cannot have come."""
    migration.start()
    relay = migration.relay
    before = migration.victim.ask()
    run = migration.dump(script=gate.script)
    gate.arrive("before")
    relay.cache.signal(signal.SIGSTOP)
    gate.go("before")
    relay.reach("web", "sealing", "sealed", at="proxy")
    os.kill(gate.action, signal.SIGKILL)
    gate.go("after")
    assert run.wait() != 0
    migration.lives_on(before)
    relay.cache.signal(signal.SIGCONT)
    migration.aborted()
    migration.not_served()
    migration.left_behind()


def test_the_script_is_killed_after_the_permission(migration: Migration, gate: Gate) -> None:
    migration.start()
    before = migration.victim.ask()
    waiting = migration.restore()
    migration.waiting()
    run = migration.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    assert gate.status == 0
    assert migration.relay.state("web", "cache") == "held"
    assert waiting.run.status is None
    os.kill(gate.pid, signal.SIGKILL)
    assert run.wait() != 0
    migration.lives_on(before)
    migration.aborted()
    assert waiting.run.wait() != 0
    migration.not_served()
    migration.left_behind()


def test_criu_is_killed_before_the_script_asks(migration: Migration, gate: Gate) -> None:
    migration.start()
    before = migration.victim.ask()
    run = migration.dump(script=gate.script)
    gate.arrive("before")
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    migration.lives_on(before)
    stays_held_until_discarded(migration, before)


def test_criu_is_killed_after_the_permission(migration: Migration, gate: Gate) -> None:
    """The script still runs: it is criu that counts."""
    migration.start()
    before = migration.victim.ask()
    waiting = migration.restore()
    migration.waiting()
    run = migration.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    assert gate.status == 0
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    migration.lives_on(before)
    migration.aborted()
    assert waiting.run.wait() != 0
    migration.not_served()
    gate.close()
    migration.left_behind()


def test_a_script_ends_long_before_criu_kills(migration: Migration, gate: Gate) -> None:
    """A script around criu-relay-action is its parent, and not the criu whose end means that the task lives on."""
    migration.start()
    before = migration.victim.ask()
    run = migration.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    assert gate.status == 0
    run.process.send_signal(signal.SIGSTOP)
    gate.go("after")
    until(lambda: process_state(gate.pid) in ("Z", ""), 10, "the script has ended")
    assert migration.victim.alive
    assert migration.wait("cache", 0.5)[0] == 3
    assert migration.relay.state("web", "cache") == "held"
    run.process.send_signal(signal.SIGCONT)
    run.succeed()
    migration.victim.reap()
    migration.committed()
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
    migration.left_behind()


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_the_proxy_is_killed_after_its_permission_and_the_task_is_gone(
    migration: Migration, gate: Gate, reaped: bool
) -> None:
    migration.start()
    relay = migration.relay
    before = migration.victim.ask()
    node = migration.restore()
    migration.waiting()
    run = migration.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    assert gate.status == 0
    relay.proxy.kill()
    gate.go("after")
    run.succeed()
    if reaped:
        migration.victim.reap()
    else:
        until(lambda: not migration.victim.alive, 10, "the task is gone")
    assert relay.state("web", "cache") == "held"
    assert node.run.status is None

    relay.start_proxy("--stream", str(migration.source))
    assert migration.wait("cache") == (0, "")
    node.run.succeed()
    migration.moved(before, node)
    until(lambda: records(relay) == [], 10, "the record is removed")


def test_the_proxy_is_killed_after_its_permission_and_the_task_lives_on(migration: Migration, gate: Gate) -> None:
    migration.start()
    relay = migration.relay
    before = migration.victim.ask()
    waiting = migration.restore()
    migration.waiting()
    run = migration.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    relay.proxy.kill()
    os.kill(gate.pid, signal.SIGKILL)
    assert run.wait() != 0
    migration.lives_on(before)
    assert relay.state("web", "cache") == "held"
    assert waiting.run.status is None

    relay.start_proxy("--stream", str(migration.source))
    migration.aborted("cache")
    assert waiting.run.wait() != 0
    migration.not_served()
    migration.lives_on(before)
    until(lambda: records(relay) == [], 10, "the record is removed")


def test_the_proxy_is_killed_before_its_permission(migration: Migration, gate: Gate) -> None:
    """Sealed and perhaps held, but never permitted: no record means abort."""
    migration.start()
    relay = migration.relay
    before = migration.victim.ask()
    run = migration.dump(script=gate.script)
    gate.arrive("before")
    relay.cache.signal(signal.SIGSTOP)
    gate.go("before")
    relay.reach("web", "sealing", "sealed", at="proxy")
    relay.proxy.kill()
    relay.cache.signal(signal.SIGCONT)
    gate.go("after")
    assert run.wait() != 0
    migration.lives_on(before)

    relay.start_proxy("--stream", str(migration.source))
    migration.aborted("cache")
    migration.not_served()
    migration.lives_on(before)


def test_without_a_script_it_commits_when_the_task_is_gone(migration: Migration) -> None:
    migration.start()
    before = migration.victim.ask()
    node = migration.restore(script=False)
    migration.waiting()
    migration.dump_unguarded().succeed()
    migration.victim.reap()
    migration.committed()
    node.run.succeed()
    migration.moved(before, node)
    migration.left_behind()


def test_without_a_script_a_task_that_lives_on_is_not_served(migration: Migration) -> None:
    migration.start()
    before = migration.victim.ask()
    migration.dump_unguarded("--leave-running").succeed()
    migration.lives_on(before)
    stays_held_until_discarded(migration, before)


def test_a_dump_that_criu_fails(migration: Migration) -> None:
    """Its own script refuses: everything was written, and nobody asked."""
    migration.start()
    before = migration.victim.ask()
    assert migration.dump(script=migration.relay.failing).wait() != 0
    migration.lives_on(before)
    stays_held_until_discarded(migration, before)


def test_a_second_dump_replaces_one_that_nobody_decided(
    relay: Relay, criu: Criu, victim: Callable[..., Victim]
) -> None:
    """What is restored is the moment of the second; the first is not committed by the end of its task."""
    migration = Migration(relay, criu, victim("mutating", 16))
    migration.start()
    assert migration.dump(script=relay.failing).wait() != 0
    relay.reach("web", "held", at="cache")
    first = migration.victim.ask()["round"]
    migration.victim.counts_on()

    (migration.victim.directory / "pause").touch()
    last = migration.victim.ask()
    assert last["round"] > first
    migration.dump().succeed()
    migration.victim.reap()
    migration.committed()
    node = migration.restore()
    node.run.succeed()
    after = node.ask()
    assert {name: after[name] for name in ("round", "position", "wrong")} == {
        name: last[name] for name in ("round", "position", "wrong")
    }
    migration.left_behind()


def test_a_person_decides_for_a_source_that_is_lost(migration: Migration, gate: Gate) -> None:
    """The host with the proxy is gone for good, or so they think."""
    migration.start()
    relay = migration.relay
    before = migration.victim.ask()
    node = migration.restore()
    migration.waiting()
    run = migration.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    relay.proxy.kill()
    gate.go("after")
    run.succeed()
    migration.victim.reap()
    assert relay.state("web", "cache") == "held"
    assert relay.command("commit", "web", at="cache").returncode == 1
    assert node.run.status is None

    done = relay.command("commit", "web", "--force", at="cache")
    assert done.returncode == 0, done.stderr
    assert str(before["pid"]) in done.stdout + done.stderr
    node.run.succeed()
    migration.moved(before, node)

    # It was not: its proxy agrees with what was decided.
    relay.start_proxy("--stream", str(migration.source))
    until(lambda: records(relay) == [], 10, "the record is removed")
    assert migration.wait("cache") == (0, "")


def test_a_person_serves_a_dump_that_nobody_decided(migration: Migration) -> None:
    migration.start()
    before = migration.victim.ask()
    # Running it would write to pages that still are in its pipe: nobody makes criu wait.
    migration.dump_unguarded("--leave-stopped").succeed()
    migration.relay.reach("web", "held", at="cache")
    os.kill(migration.victim.pid, signal.SIGCONT)
    assert migration.relay.command("commit", "web", "--force", at="proxy").returncode == 0
    migration.committed()
    node = migration.restore_copy()
    node.run.succeed()
    assert node.ask()["digest"] == before["digest"]
    migration.lives_on(before)
    migration.left_behind()


def stays_held_until_discarded(migration: Migration, before: dict[str, Any]) -> None:
    """Everything arrived, nobody knows what for: it is not served, says how to go on, and a person gives it up."""
    relay = migration.relay
    relay.reach("web", "held", at="proxy")
    relay.reach("web", "held", at="cache")
    hint = until(lambda: relay.get("/v1/namespaces/web", at="proxy")["hint"], 10, "the proxy says how to go on")
    assert "criu-relay discard web" in hint
    waiting = migration.restore()
    migration.waiting()
    assert migration.wait("cache", 0.3)[0] == 3
    assert waiting.run.status is None
    migration.not_served()

    assert relay.command("discard", "web", at="proxy").returncode == 0
    migration.aborted()
    assert waiting.run.wait() != 0
    migration.not_served()
    migration.lives_on(before)
    migration.left_behind()


def records(relay: Relay) -> list[Path]:
    """Of permissions that the proxy keeps."""
    with contextlib.suppress(FileNotFoundError):
        return sorted((relay.base / "state").rglob("permitted/*"))
    return []
