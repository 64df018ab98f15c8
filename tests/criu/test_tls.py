"""A process moves over a link under TLS."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.criu import Criu
from tests.support.daemons import Relay
from tests.support.migration import Migration
from tests.support.victims import Victim

pytestmark = pytest.mark.needs_criu


@pytest.mark.parametrize("window", ["256M", "16M", "0"])
def test_a_process_moves(relay: Relay, criu: Criu, victim: Callable[..., Victim], window: str) -> None:
    certs = relay.base / "certs"
    done = relay.run("make-certs", str(certs), "127.0.0.1", "node-a")
    assert (done.returncode, done.stderr) == (0, "")

    def tls(name: str) -> list[str]:
        files = {"--tls-cert": f"{name}.crt", "--tls-key": f"{name}.key", "--tls-ca": "ca.crt"}
        return [part for option, file in files.items() for part in (option, str(certs / file))]

    migration = Migration(relay, criu, victim("memory", 64, 41))
    migration.start(cache=[*tls("127.0.0.1"), "--tls-peer", "node-a"], proxy=[*tls("node-a"), "--window", window])
    [peer] = relay.get("/v1/status", at="cache")["link"]["peers"]
    assert (peer["name"], peer["io"]) == ("node-a", "tls send, tls read")
    before = migration.victim.ask()
    migration.dump().succeed()
    migration.victim.reap()
    migration.committed()
    node = migration.restore()
    node.run.succeed()
    migration.moved(before, node)
    migration.left_behind()
