"""Proxy and cache on two "hosts": network namespaces joined by a veth pair."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.gate import Gate
from tests.support.migration import Migration
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu

PORT = 9876

SILENCE_SECONDS = 15.0
"""To notice with --link-timeout 2 that the other side is silent."""


class Hosts:
    """Two of them.

    @ivar address: of each, in a network of theirs.
    @ivar within: a command to run something there. Not `ip netns exec`: that makes a mount namespace as well.
    """

    def __init__(self) -> None:
        self.names = [f"relay-{os.getpid()}-{side}" for side in "ab"]
        self.address = ["10.213.77.1", "10.213.77.2"]
        self.within = [("nsenter", f"--net=/run/netns/{name}") for name in self.names]
        a, b = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "veth0", "netns", a, "type", "veth", "peer", "name", "veth0", "netns", b)
        for name, address in zip(self.names, self.address, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "veth0", "up")

    def unplug(self) -> None:
        """Take the link down, as if the cable were cut: nobody is told."""
        ip("-n", self.names[0], "link", "set", "veth0", "down")

    def plug(self) -> None:
        """Mend it."""
        ip("-n", self.names[0], "link", "set", "veth0", "up")

    def close(self) -> None:
        """Remove them."""
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], stdin=subprocess.DEVNULL, capture_output=True)


def ip(*arguments: str) -> None:
    """Run ip(8)."""
    done = subprocess.run(["ip", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    assert shutil.which("ip") and shutil.which("nsenter"), "install iproute2 and util-linux"
    made = Hosts()
    yield made
    made.close()


@pytest.fixture
def migration(hosts: Hosts, relay: Relay, criu: Criu, victim: Callable[..., Victim]) -> Migration:
    """A victim on the first of them, a proxy there, a cache on the second; linked."""
    a, b = hosts.within
    made = Migration(relay, criu, victim("memory", 64, 31, within=a))
    link = f"tcp:{PORT}:interface={hosts.address[1]}"
    relay.start_cache("--stream", str(made.target), "--link", link, "--insecure", "--link-timeout", "2", within=b)
    link = f"tcp:{hosts.address[1]}:{PORT}"
    options = ("--link", link, "--insecure", "--window", "16M", "--link-timeout", "2")
    relay.start_proxy("--stream", str(made.source), *options, within=a)
    relay.linked()
    return made


def test_a_process_moves_from_one_host_to_the_other(hosts: Hosts, migration: Migration) -> None:
    a, b = hosts.within
    before = migration.victim.ask()
    node = migration.restore(within=b)
    migration.waiting()
    migration.dump(within=a).succeed()
    migration.victim.reap()
    node.run.succeed()
    migration.moved(before, node)
    cache = migration.relay.cache.pid
    assert os.readlink(f"/proc/{node.pid}/ns/net") == os.readlink(f"/proc/{cache}/ns/net")
    migration.left_behind()


def test_the_cable_is_pulled(hosts: Hosts, migration: Migration, gate: Gate) -> None:
    """Nobody is told that the link is gone: silence is noticed, the task lives on, and nothing is served later."""
    a, b = hosts.within
    before = migration.victim.ask()
    waiting = migration.restore(within=b)
    migration.waiting()
    run = migration.dump(within=a, script=gate.script)
    gate.arrive("before")
    hosts.unplug()
    gate.go("before")
    gate.go("after")
    assert run.wait(SILENCE_SECONDS) != 0
    migration.lives_on(before)
    migration.aborted("proxy")
    hosts.plug()
    migration.aborted("cache")
    assert waiting.run.wait() != 0
    migration.not_served()
    migration.left_behind()


@pytest.mark.parametrize("side", ["proxy", "cache"])
def test_a_plain_link_between_hosts_must_be_asked_for(relay: Relay, side: str) -> None:
    start, link = {
        "proxy": (relay.start_proxy, "tcp:10.213.77.2:9876"),
        "cache": (relay.start_cache, "tcp:9876:interface=10.213.77.2"),
    }[side]
    daemon = start("--link", link, ready=False)
    assert daemon.process.wait(30) == 1
    assert "--insecure" in daemon.text()
