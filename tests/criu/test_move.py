"""A process leaves through the proxy and goes on at the cache: its memory, its count, its kin."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.gate import Gate
from tests.support.migration import Migration
from tests.support.polling import until
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu

MIB = 1 << 20

TASK = 100
"""MiB of the victim: one window takes all of it at once, one has to be emptied again and again."""

PAGEMAP_ENTRIES = 24_000
"""A pipe holds some 4,100 entries of a pagemap: a server that writes one image to its end before it reads the next
request never gets to the pages."""


@pytest.mark.parametrize("window", ["256M", "16M", "0"])
def test_memory_and_count_go_on(relay: Relay, criu: Criu, victim: Callable[..., Victim], window: str) -> None:
    migration = Migration(relay, criu, victim("memory", TASK, 11))
    migration.start(proxy=["--window", window])
    before = migration.victim.ask()
    idle = [daemon.descriptors() for daemon in relay.daemons]

    migration.dump().succeed()
    assert migration.victim.reap() == -9
    migration.committed()
    assert relay.get("/v1/namespaces/web", at="cache")["bytes"] > TASK * MIB
    sent = relay.get("/v1/namespaces/web", at="proxy")
    assert 0.8 < sent["expected"] / sent["bytes"] < 1.25

    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
    relay.reach("web", "restored", at="cache")
    until(lambda: [daemon.descriptors() for daemon in relay.daemons] == idle, 10, "no descriptor is left open")
    assert relay.get("/v1/status", at="cache")["memory"]["used"] == 0
    assert relay.get("/v1/status", at="proxy")["memory"]["used"] == 0
    migration.left_behind()


def test_a_restore_that_began_first_waits_for_the_dump(migration: Migration) -> None:
    migration.start()
    before = migration.victim.ask()
    node = migration.restore()
    migration.waiting()
    migration.victim.counts_on()
    assert node.run.status is None

    migration.dump().succeed()
    migration.victim.reap()
    node.run.succeed()
    migration.moved(before, node)
    migration.left_behind()


def test_a_tree_of_twenty_checks_itself(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    migration = Migration(relay, criu, victim("tree", 20, 3))
    migration.start()
    before = migration.victim.ask()["members"]
    assert len(before) == 20

    migration.dump().succeed()
    migration.victim.reap()
    node = migration.restore()
    node.run.succeed()

    last = node.ask()["members"]
    after = node.ask()["members"]
    for old, middle, new in zip(before, last, after, strict=True):
        for same in ("index", "pid", "parent", "threads", "private", "shared"):
            assert new[same] == old[same], (old["index"], same)
        assert new["wrong"] == 0
        # What each process sees of the others' threads goes on, through shared memory and over the sockets.
        assert all(now > then for now, then in zip(middle["counted"], old["counted"], strict=True))
        assert all(now > then for now, then in zip(new["checked"][1:], old["checked"][1:], strict=True))
    migration.left_behind()


def test_a_pagemap_that_no_pipe_holds(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    migration = Migration(relay, criu, victim("sparse", PAGEMAP_ENTRIES, 5))
    migration.start()
    before = migration.victim.ask()

    migration.dump().succeed()
    migration.victim.reap()
    images = relay.get("/v1/namespaces/web")["snapshots"][0]["images"]
    # Each entry has 8 bytes at the very least.
    assert any(image["name"].startswith("pagemap-") and image["size"] > 8 * PAGEMAP_ENTRIES for image in images)
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
    migration.left_behind()


def test_eight_at_once(relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> None:
    moves = [Migration(relay, criu, victim("memory", 16, seed), f"web-{seed}") for seed in range(8)]
    relay.start_cache(*(part for move in moves for part in ("--stream", str(move.target))))
    relay.start_proxy(*(part for move in moves for part in ("--stream", str(move.source))))
    relay.linked()
    before = [move.victim.ask() for move in moves]
    assert len({found["digest"] for found in before}) == 8

    nodes = [move.restore() for move in moves]
    for run in [move.dump() for move in moves]:
        run.succeed()
    for move, node, found in zip(moves, nodes, before, strict=True):
        move.victim.reap()
        node.run.succeed()
        move.moved(found, node)
        move.committed()
    for move in moves:
        relay.reach(move.namespace, "restored", at="cache")
    moves[0].left_behind()


def test_the_same_namespace_again(migration: Migration, criu: Criu, victim: Callable[..., Victim], gate: Gate) -> None:
    """A second dump is a new generation; a third one that fails leaves the second in place."""
    migration.start(cache=["--retain"])
    relay = migration.relay
    migration.dump().succeed()
    migration.victim.reap()
    first = migration.restore()
    first.run.succeed()
    first.counts_on()
    first.close()

    again = Migration(relay, criu, victim("memory", 8, 8))
    before = again.victim.ask()
    again.dump().succeed()
    again.victim.reap()
    again.committed()
    assert relay.get("/v1/namespaces/web")["generation"] == 2

    third = Migration(relay, criu, victim("memory", 4, 9))
    unharmed = third.victim.ask()
    run = third.dump(script=gate.script)
    gate.go("before")
    gate.arrive("after")
    assert relay.get("/v1/namespaces/web")["generation"] == 3
    os.kill(gate.pid, signal.SIGKILL)
    assert run.wait() != 0
    third.lives_on(unharmed)
    third.aborted()

    node = again.restore()
    node.run.succeed()
    again.moved(before, node)


def test_images_are_released_by_the_restore(migration: Migration) -> None:
    migration.start()
    migration.dump().succeed()
    migration.victim.reap()
    node = migration.restore()
    node.run.succeed()
    node.counts_on()
    assert migration.relay.reach("web", "restored") == "restored"
    node.close()
    migration.not_served()

    second = migration.restore()
    assert second.run.wait() != 0
    assert migration.relay.get("/v1/status")["memory"]["used"] == 0


def test_retained_images_restore_again(migration: Migration) -> None:
    migration.start(cache=["--retain"])
    before = migration.victim.ask()
    migration.dump().succeed()
    migration.victim.reap()
    for _ in range(2):
        node = migration.restore()
        node.run.succeed()
        migration.moved(before, node)
        node.close()
