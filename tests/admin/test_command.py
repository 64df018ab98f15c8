"""`criu-relay` as a process against a real socket: what it asks, what it prints, how it exits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from criu_relay.admin import command as module
from criu_relay.errors import Aborted, Conflict
from criu_relay.interfaces import CommitRequest

NO_DAEMON = "start one with: twistd criu-relay-proxy (where CRIU dumps), or twistd criu-relay-cache (where it restores)"

NOBODY = 65534


def one_line(ran: Any) -> str:
    assert ran.err.startswith("criu-relay: ") and ran.err.count("\n") == 1 and ran.err.endswith("\n"), ran.err
    return str(ran.err.removeprefix("criu-relay: ").rstrip("\n"))


class TestWhichDaemon:
    def test_none(self, world: Any) -> None:
        ran = world.command("status")
        assert (ran.code, one_line(ran)) == (4, f"no daemon listens in {world.run_directory}: {NO_DAEMON}")

    def test_leftover_socket_is_none(self, world: Any) -> None:
        world.run_directory.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as leftover:
            leftover.bind(str(world.run_directory / "proxy.sock"))
        assert world.command("status").code == 4

    @pytest.mark.parametrize("role", ["proxy", "cache"])
    def test_the_one_that_lives(self, world: Any, role: str) -> None:
        world.start(role)
        ran = world.command("status")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"criu-relay-{role} 0.1.0, pid 4711, up 5 min\n")

    def test_both(self, world: Any) -> None:
        world.start("proxy")
        world.start("cache")
        ran = world.command("status")
        assert ran.code == 2
        line = one_line(ran)
        for role in ("proxy", "cache"):
            path = str(world.run_directory / f"{role}.sock")
            assert f"--control {path}" in line
            assert world.command("--control", path, "status").out.startswith(f"criu-relay-{role} ")
            assert world.command("status", "--control", path).out.startswith(f"criu-relay-{role} ")

    def test_a_directory_that_cannot_be_looked_into(self, world: Any, tmp_path: Path) -> None:
        long = tmp_path / ("x" * 100)
        loop = tmp_path / "loop"
        loop.symlink_to("loop")
        for base, why in (
            ("/dev/null", "Not a directory"),
            (str(long), "AF_UNIX path too long"),
            (str(loop), "Too many levels of symbolic links"),
        ):
            world.environment["XDG_RUNTIME_DIR"] = base
            ran = world.command("status")
            todo = "be root or the daemon's user, or set XDG_RUNTIME_DIR to that of the daemon, or give --control PATH"
            assert (ran.code, one_line(ran)) == (4, f"cannot look for a daemon in {base}/criu-relay: {why}: {todo}")

    @pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
    def test_a_directory_of_another_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with tempfile.TemporaryDirectory() as base:
            os.mkdir(f"{base}/criu-relay")
            monkeypatch.setenv("XDG_RUNTIME_DIR", base)
            os.seteuid(NOBODY)
            try:
                with pytest.raises(module.Stop, match=f"in {base}/criu-relay: Permission denied: be root") as caught:
                    module.choose(None)
            finally:
                os.seteuid(0)
        assert caught.value.code == 4

    def test_daemons_that_are_too_busy_are_there(self, world: Any) -> None:
        """Their queues of connections are full."""
        world.run_directory.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            for role in ("proxy", "cache"):
                server, client = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
                server.bind(str(world.run_directory / f"{role}.sock"))
                server.listen(0)
                client.connect(str(world.run_directory / f"{role}.sock"))
            ran = world.command("status")
        assert (ran.code, "both a proxy and a cache listen" in one_line(ran)) == (2, True)

    def test_control_where_nothing_is(self, world: Any, tmp_path: Path) -> None:
        ran = world.command("--control", str(tmp_path / "x"), "status")
        assert (ran.code, one_line(ran)) == (4, f"{tmp_path}/x: No such file or directory: {NO_DAEMON}")

    def test_control_on_a_port(self, world: Any) -> None:
        ran = world.command("--control", "tcp:127.0.0.1:9876", "status")
        assert (ran.code, "is no path" in one_line(ran)) == (2, True)

    def test_control_that_is_no_daemon(self, world: Any, tmp_path: Path) -> None:
        ran = world.command("--control", "x" * 200, "status")
        assert (ran.code, one_line(ran)) == (4, f"{'x' * 200}: AF_UNIX path too long")

    def test_control_of_another_program(self, world: Any, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
            server.listen()
            with world.popen("command", "--control", "s", "status") as process:
                with server.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (4, "", "criu-relay: what answers at s is not criu_relay\n")

    def test_daemon_that_dies(self, world: Any) -> None:
        control = world.start("proxy")
        with world.popen("command", "wait", "web") as process:
            assert control.happened.wait(10)
            daemon = world.daemons["proxy"]
            daemon.stop()
            for descriptor in daemon.reactor.removeAll():
                descriptor.connectionLost(RuntimeError("the daemon dies"))
            out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (4, "")
        assert err == "criu-relay: the daemon hung up\n"


class TestUsage:
    @pytest.mark.parametrize("arguments", [
        [], ["brew"], ["status", "x"], ["wait"], ["wait", "a/b"], ["wait", ".."], ["wait", "x", "--timeout", "soon"],
        ["wait", "x", "--timeout", "-1"], ["wait", "x", "--timeout", "nan"], ["commit", "x", "--timeout", "inf"],
        ["attach"], ["attach", "d", "n", "--dialect", "morse"], ["attach", "d", "a b"], ["discard"],
        ["discard", "x", "--offset", "1"], ["discard", "x", "0/a"], ["discard", "x", "a/b/c"], ["discard", "x", "a b"],
        ["discard", "x", "a", "--length", "-1"], ["discard", "x", "a", "--offset", "1K"], ["import", "d"],
        ["export", "n"], ["import", "d", "é"], ["--control"],
    ])  # fmt: skip
    def test_wrong(self, world: Any, arguments: list[str]) -> None:
        ran = world.command(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert one_line(ran)

    def test_help(self, world: Any) -> None:
        ran = world.command("--help")
        assert ran.code == 0
        for command in ("status", "attach", "detach", "wait", "commit", "images", "discard", "export", "import"):
            assert f"    {command} " in ran.out
            assert world.command(command, "--help").code == 0

    def test_it_is_light(self) -> None:
        """Scripts call it again and again; Twisted alone takes three times as long to load as all of it."""
        code = "import sys; from criu_relay.admin import command; print(*sys.modules)"
        ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=Path(
            module.__file__).parents[2])  # fmt: skip
        loaded = set(ran.stdout.split())
        assert "criu_relay.admin.client" in loaded
        assert not loaded & {"twisted", "zope", "google", "OpenSSL", "cryptography", "numpy", "http.client", "ssl"}

    def test_version(self, world: Any) -> None:
        assert world.command("--version").out == "criu-relay 0.1.0\n"


class TestStatus:
    def test_json_is_what_the_daemon_says(self, world: Any) -> None:
        control = world.start("proxy")
        assert json.loads(world.command("status", "--json").out) == control.state

    def test_output_that_nobody_reads(self, world: Any) -> None:
        control = world.start("proxy")
        control.state["counters"] = {f"name{i}": i for i in range(50000)}
        with world.popen("command", "status", "--json") as process:
            process.stdout.read(1)
            process.stdout.close()
            assert process.wait(10) == 1
            assert process.stderr.read() == ""

    @pytest.mark.parametrize("arguments", [
        ["status"], ["status", "--json"], ["status", "--watch"], ["status", "--watch", "--json"], ["images"], ["rate"],
        ["--help"], ["--version"], ["import", "in", "web"], ["make-certs", "certs", "a"],
    ])  # fmt: skip
    def test_output_that_cannot_be_written(self, world: Any, make: Any, tmp_path: Path, arguments: list[str]) -> None:
        control = world.start("proxy")
        control.state["namespaces"] = [make["namespace"](state="open")]
        control.details["web"] = make["namespace"](state="open") | {"snapshots": []}
        control.outcomes["commit"] = make["namespace"]()
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "inventory.img").touch()
        ran = world.shell(">/dev/full", *arguments)
        assert (ran.code, one_line(ran)) == (1, "cannot write the output: No space left on device")

    @pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["status", "--watch"], ["images"]])
    def test_no_output(self, world: Any, arguments: list[str]) -> None:
        world.start("proxy")
        ran = world.shell(">&-", *arguments)
        assert (ran.code, one_line(ran)) == (1, "cannot write the output: Bad file descriptor")

    def test_no_output_where_it_is_not_what_counts(self, world: Any, make: Any) -> None:
        world.start("cache").outcomes["wait"] = make["namespace"]()
        assert world.shell(">&-", "wait", "web").code == 0

    def test_watch_until_interrupted(self, world: Any, make: Any) -> None:
        control = world.start("cache")
        control.state["namespaces"] = [make["namespace"](state="open", bytes=1 << 20, expected=4 << 20)]
        with world.popen("command", "status", "--watch") as process:
            assert process.stdout.readline() == "web open 1.0M of 4.0M 0/s\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (130, "", "")

    def test_watch_as_json(self, world: Any) -> None:
        control = world.start("cache")
        with world.popen("command", "status", "--watch", "--json") as process:
            assert json.loads(process.stdout.readline()) == control.state
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)


class TestRate:
    @pytest.mark.parametrize(
        ("given", "sent", "said"),
        [("100M/s", 100 << 20, "100M/s"), ("65536", 65536, "64.0K/s"), ("off", None, "as fast as it goes")],
    )
    def test_set(self, world: Any, given: str, sent: int | None, said: str) -> None:
        control = world.start("proxy")
        ran = world.command("rate", given)
        assert (ran.code, ran.out) == (0, f"{said}\n")
        assert control.calls == [("rate", sent)]

    def test_said(self, world: Any) -> None:
        control = world.start("proxy")
        control.state["link"]["rate"] = 1 << 20
        ran = world.command("rate")
        assert (ran.code, ran.out) == (0, "1.0M/s\n")

    def test_wrong(self, world: Any) -> None:
        control = world.start("proxy")
        ran = world.command("rate", "slow")
        assert ran.code == 2 and "slow" in one_line(ran)
        assert control.calls == []


class TestAttach:
    def test_absolute_path_is_sent(self, world: Any, tmp_path: Path) -> None:
        control = world.start("proxy")
        (tmp_path / "dump").mkdir()
        (tmp_path / "link").symlink_to("dump")
        ran = world.command("attach", "link")
        assert (ran.code, ran.out) == (0, f"dump: CRIU's socket is {tmp_path}/dump/streamer-capture.sock\n")
        assert control.calls == [("attach", str(tmp_path / "dump"), None, "stream", False)]

    def test_everything(self, world: Any, tmp_path: Path) -> None:
        control = world.start("proxy")
        assert world.command("attach", str(tmp_path), "web", "--dialect", "images", "--copy").code == 0
        assert control.calls == [("attach", str(tmp_path), "web", "images", True)]

    def test_no_directory(self, world: Any, tmp_path: Path) -> None:
        world.start("proxy")
        ran = world.command("attach", "none")
        assert (ran.code, one_line(ran)) == (1, f"no directory {tmp_path}/none: make it first")

    @pytest.mark.parametrize(
        "arguments", [["attach", "bad\udcff", "x"], ["attach", "link", "x"], ["detach", "bad\udcff"]]
    )
    def test_path_that_is_not_utf8(self, world: Any, tmp_path: Path, arguments: list[str]) -> None:
        control = world.start("proxy")
        (tmp_path / "bad\udcff").mkdir()
        (tmp_path / "link").symlink_to("bad\udcff")
        ran = world.command(*arguments)
        todo = "give a directory whose path is"
        assert (ran.code, one_line(ran)) == (2, f"the path {tmp_path}/bad? is not UTF-8: {todo}")
        assert control.calls == []

    def test_detach(self, world: Any, tmp_path: Path) -> None:
        control = world.start("proxy")
        assert world.command("detach", "gone by now").code == 0
        assert control.calls == [("detach", str(tmp_path / "gone by now"))]


class TestWait:
    def test_committed(self, world: Any, make: Any) -> None:
        control = world.start("cache")
        control.outcomes["wait"] = make["namespace"]()
        ran = world.command("wait", "web")
        assert (ran.code, ran.out, ran.err) == (0, "web: committed, 1.0M in 2 images\n", "")
        assert control.calls == [("wait", "web", None, False)]

    def test_options(self, world: Any, make: Any) -> None:
        control = world.start("cache")
        control.outcomes["wait"] = make["namespace"]()
        assert world.command("wait", "web", "--timeout", "2.5", "--next").code == 0
        assert control.calls == [("wait", "web", 2.5, True)]

    def test_aborted(self, world: Any) -> None:
        control = world.start("cache")
        control.outcomes["wait"] = Aborted("web was aborted: criu\x1b[2J failed", hint="see criu's log")
        ran = world.command("wait", "web")
        assert (ran.code, one_line(ran)) == (1, "web was aborted: criu?[2J failed: see criu's log")

    def test_timed_out(self, world: Any) -> None:
        world.start("cache")
        ran = world.command("wait", "web", "--timeout", "0.5")
        assert (ran.code, one_line(ran)) == (3, "web was not decided in 0.5 s")

    def test_interrupted(self, world: Any) -> None:
        control = world.start("cache")
        with world.popen("command", "wait", "web") as process:
            assert control.happened.wait(10)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 130
        world.daemons["cache"].until(lambda: control.cancelled == 1)


class TestCommit:
    def test_plain(self, world: Any, make: Any) -> None:
        control = world.start("proxy")
        control.outcomes["commit"] = make["namespace"](state="permitted")
        ran = world.command("commit", "web", "--timeout", "9")
        assert (ran.code, ran.out) == (0, "web: permitted, 1.0M in 2 images\n")
        assert control.calls == [("commit", "web", CommitRequest(), 9.0)]

    def test_force_says_what_is_known(self, world: Any, make: Any) -> None:
        control = world.start("cache")
        control.details["web"] = make["namespace"](state="held", source="alpha, pid 7")
        control.outcomes["commit"] = make["namespace"]()
        ran = world.command("commit", "web", "--force")
        assert ran.code == 0
        assert ran.out == "web: held, 1.0M from alpha, pid 7\nweb: committed, 1.0M in 2 images\n"
        assert control.calls[-1] == ("commit", "web", CommitRequest(force=True), None)

    def test_force_of_what_is_not_there(self, world: Any) -> None:
        control = world.start("cache")
        assert world.command("commit", "web", "--force").code == 1
        assert control.calls == [("namespace", "web")]

    def test_refused(self, world: Any) -> None:
        control = world.start("cache")
        control.outcomes["commit"] = Conflict("a cache does not decide", hint="--force")
        ran = world.command("commit", "web")
        assert (ran.code, one_line(ran)) == (1, "a cache does not decide: --force")


class TestImages:
    @pytest.fixture
    def control(self, world: Any, make: Any) -> Any:
        control = world.start("cache")
        for name, count in (("web", 1), ("db", 2)):
            snapshots = [
                {
                    "index": index,
                    "label": "",
                    "images": [{"name": "inventory.img", "size": 40, "complete": True, "digest": "0f" * 16}],
                }
                for index in range(1, count + 1)
            ]
            control.details[name] = make["namespace"](name) | {"snapshots": snapshots}
            control.state["namespaces"].append(make["namespace"](name))
        return control

    def test_of_one(self, world: Any, control: Any) -> None:
        ran = world.command("images", "web")
        assert ran.code == 0
        assert ran.out.splitlines() == [
            "web: committed, 1.0M",
            "IMAGE          BYTES    DIGEST",
            f"inventory.img     40    {'0f' * 16}",
        ]

    def test_of_all(self, world: Any, control: Any) -> None:
        out = world.command("images").out
        assert "web: " in out and "db: " in out and "2/inventory.img" in out

    def test_json(self, world: Any, control: Any) -> None:
        assert json.loads(world.command("images", "web", "--json").out) == control.details["web"]
        assert json.loads(world.command("images", "--json").out) == list(control.details.values())

    def test_unknown(self, world: Any, control: Any) -> None:
        ran = world.command("images", "none")
        assert (ran.code, one_line(ran)) == (1, "no namespace none: criu-relay status lists them")


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ([], (None, None, None, None)),
        (["a.img"], (None, "a.img", None, None)),
        (["3/a.img"], (3, "a.img", None, None)),
        (["a.img", "--offset", "0", "--length", "4096"], (None, "a.img", 0, 4096)),
    ],
)
def test_discard(world: Any, arguments: list[str], call: Any) -> None:
    control = world.start("cache")
    ran = world.command("discard", "web", *arguments)
    assert (ran.code, ran.out) == (0, "4096 bytes given back\n")
    assert control.calls == [("discard", "web", *call)]


def test_daemon_that_does_not_answer(world: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        code = (
            "import sys; from criu_relay.admin import client, command; client.PATIENCE = 0.01; "
            "client.Client.call.__defaults__ = (None, 0.01); sys.exit(command.main())"
        )
        import subprocess
        import sys

        ran = subprocess.run(
            [sys.executable, "-c", code, "--control", path, "status"],
            capture_output=True, text=True, env=os.environ | world.environment,
        )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (3, "criu-relay: the daemon does not answer\n")
