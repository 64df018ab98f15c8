"""Real daemons for tests: a cache and a proxy as processes, with directories of their own.

    relay = Relay(tmp_path)
    relay.start_cache("--stream", str(relay.directory("b/web")))
    relay.start_proxy("--stream", str(relay.directory("a/web")))
    relay.linked()
    relay.command("wait", "web", "--timeout", "5", at="cache").returncode
    relay.get("/v1/namespaces/web", at="cache")["state"]
    relay.close()

The fixture `relay` of tests/conftest.py makes one, closes it, and shows the logs of a test that failed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import criu_relay
from tests.support.daemon import COMMAND_SECONDS, START_SECONDS, STOP_SECONDS, Daemon, Refused
from tests.support.polling import until

__all__ = ["Daemon", "Refused", "Relay", "free_port"]

ROOT = Path(criu_relay.__file__).resolve().parents[1]
"""What must be on sys.path of the daemons: where the package that is tested was imported from."""

SHORTENED = """
import sys

if {{"criu-relay-proxy", "criu-relay-cache"}} & {{*sys.argv}}:
    import {module}

    {module}.{name} = {seconds}
"""

ENTRY_POINTS = {"criu-relay": "criu_relay.admin.command", "criu-relay-action": "criu_relay.admin.action"}


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Relay:
    """A cache and a proxy, at most one of each at a time, and the directories they share.

    @ivar base: a directory with a short name (a unix socket's path has at most 107 bytes), removed by L{close}.
    @ivar logs: where the logs stay.
    @ivar environment: of the daemons and commands: XDG_RUNTIME_DIR and XDG_STATE_HOME are below `base`.
    @ivar port: of the link.
    @ivar action: path of `criu-relay-action`.
    @ivar failing: path of an action script that does nothing but fail at post-dump.
    """

    def __init__(self, logs: Path) -> None:
        """@param logs: an existing directory, such as tmp_path."""
        self.logs = logs
        self.base = Path(tempfile.mkdtemp(prefix="relay-"))
        self.port = free_port()
        self.daemons: list[Daemon] = []
        self._background: list[subprocess.Popen[str]] = []
        self.environment = self._environment()
        self.action = self._script("criu-relay-action")
        self._command = self._script("criu-relay")
        self.failing = self._failing()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CRIU_", "CRTOOLS_"))}
        for name in ("run", "state"):
            (self.base / name).mkdir(mode=0o700)
        path = os.environ.get("PYTHONPATH")
        return kept | {
            "XDG_RUNTIME_DIR": str(self.base / "run"),
            "XDG_STATE_HOME": str(self.base / "state"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{path}" if path else str(ROOT),
        }

    def _script(self, name: str) -> Path:
        """A console script of the package that is tested; made here when it is not installed."""
        installed = Path(sys.executable).parent / name
        if os.access(installed, os.X_OK):
            return installed
        made = self.base / "bin" / name
        made.parent.mkdir(exist_ok=True)
        made.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from {ENTRY_POINTS[name]} import main\nsys.exit(main())\n"
        )
        made.chmod(0o755)
        return made

    def _failing(self) -> Path:
        made = self.base / "failing-action"
        made.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
        made.chmod(0o755)
        return made

    def prepare(self, code: str) -> None:
        """Have what is started from now on run this first, as its sitecustomize."""
        place = self.base / "prepared"
        if not place.exists():
            place.mkdir()
            self.environment["PYTHONPATH"] = f"{place}{os.pathsep}{self.environment['PYTHONPATH']}"
        with (place / "sitecustomize.py").open("a") as file:
            file.write(code)

    def shorten(self, constant: str, seconds: float) -> None:
        """Give the daemons that are started from now on less patience, where no option does.

        @param constant: such as "criu_relay.lifecycle.FINISH_SECONDS", read from its module whenever it is used.
        """
        module, _, name = constant.rpartition(".")
        self.prepare(SHORTENED.format(module=module, name=name, seconds=seconds))

    def directory(self, name: str) -> Path:
        """Make a directory below `base`, such as "a/web"; its last part is the default name of a namespace."""
        made = self.base / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    @property
    def cache(self) -> Daemon:
        """The cache that was started last."""
        return self._newest("cache")

    @property
    def proxy(self) -> Daemon:
        """The proxy that was started last."""
        return self._newest("proxy")

    def _newest(self, role: str) -> Daemon:
        for daemon in reversed(self.daemons):
            if daemon.role == role:
                return daemon
        raise AssertionError(f"no {role} was started")

    def start_cache(
        self, *options: str, within: Sequence[str] = (), pass_fds: Sequence[int] = (), ready: bool = True
    ) -> Daemon:
        """Start a cache that listens at `port`, unless the options say otherwise.

        @param within: a command to run it in, such as ("ip", "netns", "exec", "b"); it must exec.
        @param ready: wait until it answers.
        """
        return self._start("cache", f"tcp:{self.port}:interface=127.0.0.1", options, within, pass_fds, ready)

    def start_proxy(
        self, *options: str, within: Sequence[str] = (), pass_fds: Sequence[int] = (), ready: bool = True
    ) -> Daemon:
        """Start a proxy that connects to `port`, unless the options say otherwise; see L{start_cache}."""
        return self._start("proxy", f"tcp:127.0.0.1:{self.port}", options, within, pass_fds, ready)

    def _start(
        self,
        role: str,
        link: str,
        options: Sequence[str],
        within: Sequence[str],
        pass_fds: Sequence[int],
        ready: bool,
    ) -> Daemon:
        given = {option.partition("=")[0] for option in options}
        if not given & {"--link", "--link-fd", "--criu-dev-link"} or (
            role == "cache" and not given & {"--link", "--link-fd"}
        ):
            options = ["--link", link, *options]
        control = self.base / "run" / "criu-relay" / f"{role}.sock"
        count = sum(daemon.role == role for daemon in self.daemons)
        log = self.logs / (f"{role}.log" if count == 0 else f"{role}-{count + 1}.log")
        daemon = Daemon(self, role, control, log, options, within, pass_fds)
        self.daemons.append(daemon)
        return daemon.ready() if ready else daemon

    def linked(self, seconds: float = START_SECONDS) -> None:
        """Wait until the proxy has its link."""
        until(lambda: self.proxy.request("GET", "/readyz")[0] == 200, seconds, "the proxy is linked", self.proxy.tail)

    def at(self, role: str) -> Daemon:
        """@param role: "proxy" or "cache"."""
        return {"proxy": lambda: self.proxy, "cache": lambda: self.cache}[role]()

    def get(self, path: str, at: str = "cache") -> Any:
        """See L{Daemon.get}."""
        return self.at(at).get(path)

    def command(
        self, *arguments: str, at: str = "cache", timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """See L{Daemon.command}."""
        return self.at(at).command(*arguments, timeout=timeout)

    def run(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run `criu-relay ARGUMENTS` to its end."""
        return subprocess.run(
            [str(self._command), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.base,
            timeout=timeout,
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Run `criu-relay ARGUMENTS` in the background."""
        process = subprocess.Popen(
            [str(self._command), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.base,
        )
        self._background.append(process)
        return process

    def state(self, namespace: str, at: str = "cache") -> str:
        """The state of the newest generation of a namespace; "" when there is none."""
        for found in self.get("/v1/namespaces", at):
            if found["name"] == namespace:
                state: str = found["state"]
                return state
        return ""

    def reach(self, namespace: str, *states: str, at: str = "cache", seconds: float = 20.0) -> str:
        """Wait until a namespace is in one of `states`; which one."""
        return until(
            lambda: found if (found := self.state(namespace, at)) in states else "",
            seconds,
            f"{namespace} is {' or '.join(states)} at the {at}",
            lambda: f"(it is {self.state(namespace, at)!r})\n{self.at(at).tail()}",
        )

    def sockets(self) -> list[Path]:
        """Unix sockets below `base`."""
        return [path for path in self.base.rglob("*") if path.is_socket()]

    def stop(self) -> None:
        """Stop what runs as a user would.

        @raise AssertionError: one did not shut down in order, or left a socket.
        """
        running = [daemon for daemon in self.daemons if daemon.running]
        statuses = {daemon.role: daemon.stop() for daemon in reversed(running)}
        assert all(status == 0 for status in statuses.values()), statuses
        if all(daemon in running for daemon in self.daemons):
            assert self.sockets() == []

    def report(self) -> str:
        """The end of every log, for a test that failed."""
        return "\n".join(f"--- {daemon.log} ---\n{daemon.tail()}" for daemon in self.daemons)

    def close(self) -> None:
        """Kill what still runs and remove `base`."""
        processes: list[subprocess.Popen[Any]] = [*self._background, *(daemon.process for daemon in self.daemons)]
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait(STOP_SECONDS)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self.base, ignore_errors=True)
