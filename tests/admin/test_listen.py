"""Where the control API listens, and who can reach it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory

from criu_relay.admin.listen import listen_control
from criu_relay.errors import Conflict, Forbidden, Invalid, RelayError


@pytest.fixture
def reactor() -> EPollReactor:
    return EPollReactor()


def listen(reactor: Any, endpoint: str) -> Any:
    results: list[Any] = []
    listen_control(reactor, endpoint, Factory()).addBoth(results.append)
    assert results, "it listens at once"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


def stop(reactor: Any, port: Any) -> None:
    port.stopListening()
    reactor.runUntilCurrent()


def test_unix_makes_its_directory(reactor: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "criu-relay" / "cache.sock"
    old = os.umask(0)
    try:
        port = listen(reactor, f"unix:{path}")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    stop(reactor, port)
    assert not path.exists()


def test_unix_leaves_the_mode_of_a_directory_that_exists(reactor: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    stop(reactor, listen(reactor, f"unix:{tmp_path}/a.sock"))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_unix_relative(reactor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    port = listen(reactor, "unix:a.sock")
    assert (tmp_path / "a.sock").exists()
    stop(reactor, port)


def test_unix_in_use(reactor: Any, tmp_path: Path) -> None:
    port = listen(reactor, f"unix:{tmp_path}/a.sock")
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        listen(reactor, f"unix:{tmp_path}/a.sock")
    stop(reactor, port)


def test_unix_where_no_directory_can_be(reactor: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RelayError, match="cannot make"):
        listen(reactor, f"unix:{tmp_path}/file/run/a.sock")


@pytest.mark.parametrize(
    "endpoint", ["tcp:0:interface=127.0.0.1", "tcp:0:interface=localhost", "tcp6:0:interface=\\:\\:1"]
)
def test_tcp_on_loopback(reactor: Any, endpoint: str) -> None:
    if endpoint.startswith("tcp6") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    port = listen(reactor, endpoint)
    address = port.getHost()
    assert address.host in ("127.0.0.1", "::1", "localhost")
    with socket.create_connection((address.host, address.port)):
        pass
    stop(reactor, port)


@pytest.mark.parametrize("endpoint", ["tcp:0", "tcp:0:interface=0.0.0.0", "tcp:0:interface=192.0.2.1", "tcp6:0"])
def test_tcp_elsewhere_is_refused(reactor: Any, endpoint: str) -> None:
    with pytest.raises(Forbidden, match="open to other machines"):
        listen(reactor, endpoint)


def test_tcp_in_use(reactor: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Conflict, match="in use"):
        listen(reactor, f"tcp:{other.getsockname()[1]}:interface=127.0.0.1")


@pytest.mark.parametrize(
    "endpoint", ["", "unix", "cache.sock", "ssl:443", "tcp:x", "tcp:99999:interface=127.0.0.1", "unix:"]
)
def test_not_an_endpoint(reactor: Any, endpoint: str) -> None:
    with pytest.raises(Invalid):
        listen(reactor, endpoint)
