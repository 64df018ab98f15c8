"""What the host sees of a daemon: notifications, SIGTERM, SIGHUP and inherited sockets, with real ones."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from criu_relay.lifecycle import Lifecycle
from criu_relay.notify import Notifier
from tests.support.daemon import Refused
from tests.support.daemons import Relay, free_port
from tests.support.polling import until
from tests.support.tools import needs

SECONDS = 60.0

TWISTD = "from twisted.scripts.twistd import run; run()"


class Manager:
    """Stands in for systemd: a socket that notifications are sent to."""

    def __init__(self, address: str) -> None:
        """@param address: a path, or "@" and a name."""
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.messages: list[dict[str, str]] = []

    def read(self) -> list[dict[str, str]]:
        """All messages so far."""
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in data.decode().splitlines()))

    def wait(self, name: str, value: str, after: int = 0) -> int:
        """Wait for a message; the number of messages then."""
        until(
            lambda: any(value in message.get(name, "") for message in self.read()[after:]),
            SECONDS,
            f"{name}={value}",
            lambda: str(self.messages),
        )
        return len(self.messages)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(relay: Relay) -> Iterator[Manager]:
    made = Manager(str(relay.base / "notify"))
    relay.environment["NOTIFY_SOCKET"] = made.address
    yield made
    made.close()


class TestNotifier:
    @pytest.fixture(params=["path", "abstract"])
    def named(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Manager]:
        made = Manager(str(tmp_path / "n") if request.param == "path" else f"@criu-relay-test-{os.getpid()}")
        yield made
        made.close()

    def test_messages(self, named: Manager) -> None:
        notifier = Notifier({"NOTIFY_SOCKET": named.address})
        notifier.ready("here")
        notifier.status("busy")
        notifier.alive()
        notifier.reloading()
        notifier.stopping("waiting")
        *others, reloading, stopping = named.read()
        assert others == [{"READY": "1", "STATUS": "here"}, {"STATUS": "busy"}, {"WATCHDOG": "1"}]
        assert reloading["RELOADING"] == "1"
        assert 0 < int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert stopping == {"STOPPING": "1", "STATUS": "waiting"}

    @pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
    def test_nobody_asked(self, environment: dict[str, str]) -> None:
        notifier = Notifier(environment)
        assert not notifier.wanted
        notifier.ready("here")

    def test_nobody_is_there(self, tmp_path: Path) -> None:
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("here")

    def test_nobody_reads(self, named: Manager) -> None:
        notifier = Notifier({"NOTIFY_SOCKET": named.address})
        for _ in range(5000):
            notifier.alive()

    @pytest.mark.parametrize(
        ("environment", "seconds"),
        [
            ({}, None),
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
            ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
        ],
    )
    def test_watchdog(self, environment: dict[str, str], seconds: float | None) -> None:
        assert Notifier(environment).watchdog == seconds


def test_a_life(relay: Relay, manager: Manager) -> None:
    """READY only when it works, STATUS when something changes, WATCHDOG again and again, STOPPING at the end."""
    relay.shorten("criu_relay.lifecycle.STATUS_SECONDS", 0.5)
    relay.environment["WATCHDOG_USEC"] = "200000"
    cache = relay.start_cache("--stream", str(relay.directory("b/web")), ready=False)
    seen = manager.wait("READY", "1")
    assert cache.get("/healthz") == {"role": "cache"}, "who is ready answers"
    assert "0 links, 0 namespaces" in next(m for m in manager.messages if "READY" in m)["STATUS"]
    for _ in range(3):
        seen = manager.wait("WATCHDOG", "1", seen)
    relay.environment.pop("NOTIFY_SOCKET")
    relay.start_proxy()
    manager.wait("STATUS", "1 links", seen)
    assert cache.stop() == 0
    manager.wait("STOPPING", "1", seen)


def test_sigterm_ends_with_status_0(relay: Relay) -> None:
    relay.start_cache()
    relay.start_proxy()
    relay.linked()
    relay.stop()


def begin(relay: Relay) -> None:
    """An import that is not complete yet."""
    relay.proxy.request("PUT", "/v1/namespaces/web/images/pages-1.img", b"p" * 100_000)
    relay.reach("web", "open")


@pytest.mark.parametrize("at", ["proxy", "cache"])
def test_sigterm_lets_what_is_under_way_finish(relay: Relay, at: str) -> None:
    relay.start_cache()
    relay.start_proxy()
    relay.linked()
    begin(relay)
    relay.at(at).signal(signal.SIGTERM)
    until(lambda: "waiting up to 10 s for namespace web" in relay.at(at).text(), SECONDS, "it waits")
    with pytest.raises(Refused, match="is being stopped"):
        answer = relay.proxy.request("PUT", "/v1/namespaces/new/images/pages-1.img", b"p")
        if answer[0] == 200:
            relay.reach("new", "aborted", at="proxy")
            answer = relay.proxy.request("POST", "/v1/namespaces/new/wait?timeout=5")
        raise Refused(answer[0], answer[1])
    relay.proxy.request("PUT", "/v1/namespaces/web/images/inventory.img", b"i" * 40)
    status, answer = relay.proxy.request("POST", "/v1/namespaces/web/commit?timeout=30", {"copy": True})
    assert status == 200, answer
    relay.at(at).ended = True
    assert relay.at(at).process.wait(SECONDS) == 0
    assert "stopping at once" not in relay.at(at).text()


def test_sigterm_gives_up_what_does_not_finish(relay: Relay) -> None:
    relay.shorten("criu_relay.lifecycle.FINISH_SECONDS", 2.0)
    relay.start_cache()
    relay.start_proxy()
    relay.linked()
    begin(relay)
    relay.proxy.signal(signal.SIGTERM)
    relay.reach("web", "aborted", seconds=SECONDS)
    assert relay.proxy.process.wait(SECONDS) == 0
    assert "waiting up to 2 s" in relay.proxy.text()
    assert "criu-relay-proxy is being stopped" in relay.proxy.text()
    assert "criu-relay-proxy is being stopped" in relay.get("/v1/namespaces/web")["reason"], "the cache was told"


BYE = "the peer said bye: the daemon stops"


@pytest.mark.parametrize("stops", ["proxy", "cache"])
def test_the_peer_is_told_that_it_ends(relay: Relay, stops: str) -> None:
    relay.start_cache()
    relay.start_proxy()
    relay.linked()
    relay.at(stops).stop()
    other = relay.at("cache" if stops == "proxy" else "proxy")
    until(lambda: BYE in [one["reason"] for one in other.get("/v1/status")["failures"]], SECONDS, "it said bye")


def test_a_second_sigterm_does_not_wait(relay: Relay) -> None:
    relay.start_cache()
    relay.start_proxy()
    relay.linked()
    begin(relay)
    relay.proxy.signal(signal.SIGTERM)
    until(lambda: "waiting up to 10 s" in relay.proxy.text(), SECONDS, "it waits")
    relay.proxy.signal(signal.SIGTERM)
    assert relay.proxy.process.wait(SECONDS) == 0
    assert "stopping at once" in relay.proxy.text()


class TestReload:
    @staticmethod
    def configured(relay: Relay, text: str) -> Path:
        path = relay.base / "cache.toml"
        path.write_text(text)
        return path

    @staticmethod
    def attached(relay: Relay) -> set[tuple[str, str, str]]:
        status = relay.get("/v1/status")
        return {(Path(a["directory"]).name, a["namespace"], a["dialect"]) for a in status["attachments"]}

    def test_directories(self, relay: Relay, manager: Manager) -> None:
        for name in ("a", "b", "c", "d"):
            relay.directory(name)
        path = self.configured(relay, 'stream = ["a", "b=x"]\n')
        relay.start_cache("--config", str(path))
        assert relay.command("attach", str(relay.base / "d")).returncode == 0
        seen = manager.wait("READY", "1")
        self.configured(relay, 'stream = ["a", "b=y", "c"]\nimages = "a"\n')
        relay.cache.signal(signal.SIGHUP)
        manager.wait("RELOADING", "1", seen)
        manager.wait("READY", "1", seen)
        wanted = {("a", "a", "stream"), ("a", "a", "images"), ("b", "y", "stream"), ("c", "c", "stream")}
        assert self.attached(relay) == wanted | {("d", "d", "stream")}, "what a person attached stays"
        self.configured(relay, 'stream = "c"\n')
        relay.cache.signal(signal.SIGHUP)
        until(lambda: self.attached(relay) == {("c", "c", "stream"), ("d", "d", "stream")}, SECONDS, "the rest is gone")

    def test_what_cannot_change_is_said(self, relay: Relay) -> None:
        path = self.configured(relay, "idle = 5\n")
        relay.start_cache("--config", str(path))
        self.configured(relay, "idle = 6\nretain = true\n")
        relay.cache.signal(signal.SIGHUP)
        until(lambda: "taken at the next start: idle, retain" in relay.cache.text(), SECONDS, "it is said")

    def test_a_wrong_file_changes_nothing(self, relay: Relay) -> None:
        relay.directory("a")
        path = self.configured(relay, 'stream = "a"\n')
        relay.start_cache("--config", str(path))
        self.configured(relay, 'stream = "gone"\n')
        relay.cache.signal(signal.SIGHUP)
        until(lambda: "the configuration is not taken" in relay.cache.text(), SECONDS, "it is said")
        assert "create it first" in relay.cache.text()
        assert self.attached(relay) == {("a", "a", "stream")}
        relay.stop()

    def test_without_a_file(self, relay: Relay) -> None:
        relay.start_proxy()
        relay.proxy.signal(signal.SIGHUP)
        assert relay.proxy.get("/healthz") == {"role": "proxy"}
        relay.stop()


class Activated:
    """A daemon with sockets that somebody else made, as systemd makes them."""

    def __init__(self, relay: Relay, link: int, options: tuple[str, ...]) -> None:
        activate = needs("systemd-socket-activate", "systemd")
        self.control = relay.directory("run/criu-relay") / "cache.sock"
        twistd = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "criu-relay-cache", *options]
        environment = [f"--setenv={name}" for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "PYTHONPATH")]
        listen = [f"--listen={self.control}", f"--listen=127.0.0.1:{link}", "--fdname=control:link"]
        self.log = relay.logs / "activated.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [activate, *environment, *listen, *twistd],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=relay.environment,
                cwd=relay.base,
            )

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)


@pytest.fixture
def activated(relay: Relay) -> Iterator[Any]:
    made: list[Activated] = []

    def start(*options: str) -> Activated:
        made.append(Activated(relay, relay.port, options))
        return made[-1]

    yield start
    for one in made:
        one.close()


class TestActivation:
    def test_the_link_wakes_it(self, relay: Relay, activated: Any) -> None:
        cache = activated()
        until(lambda: "Listening on" in cache.log.read_text(), SECONDS, "the sockets are there")
        relay.start_proxy()
        relay.linked()
        status = relay.run("--control", str(cache.control), "status", "--json")
        assert status.returncode == 0, status.stderr
        assert '"systemd:domain=INET:name=link"' in status.stdout
        cache.process.terminate()
        assert cache.process.wait(SECONDS) == 0
        assert stat.S_ISSOCK(cache.control.stat().st_mode), "the socket is its maker's"

    def test_what_is_given_wins(self, relay: Relay, activated: Any) -> None:
        port = free_port()
        cache = activated("--link", f"tcp:{port}:interface=127.0.0.1")
        until(lambda: "Listening on" in cache.log.read_text(), SECONDS, "the sockets are there")
        status = relay.run("--control", str(cache.control), "status")
        assert f"link listening tcp:{port}:interface=127.0.0.1" in status.stdout, status.stderr + cache.log.read_text()

    def test_modes_are_left_alone(self, relay: Relay, activated: Any) -> None:
        """Twisted's own way of adopting a unix socket makes it everybody's."""
        cache = activated()
        until(lambda: "Listening on" in cache.log.read_text(), SECONDS, "the sockets are there")
        cache.control.chmod(0o600)
        assert relay.run("--control", str(cache.control), "status").returncode == 0
        assert stat.S_IMODE(cache.control.stat().st_mode) == 0o600


def test_what_is_there_at_the_start_is_not_looked_at_by_collections() -> None:
    daemon: Any = SimpleNamespace(reactor=SimpleNamespace(callWhenRunning=lambda function: None))
    before = gc.get_freeze_count()
    try:
        Lifecycle(daemon, Notifier({})).startService()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
