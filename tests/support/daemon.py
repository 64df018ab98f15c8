"""One real daemon as a process, and its control API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.polling import until

if TYPE_CHECKING:
    from tests.support.daemons import Relay

START_SECONDS = 30.0
"""A daemon imports Twisted and binds its sockets in less than a second; the rest is for a loaded machine."""

STOP_SECONDS = 40.0
"""From SIGTERM to the end of the process, which waits 10 s for what is under way."""

ANSWER_SECONDS = 30.0
"""For one call of the control API that does not wait for anything."""

COMMAND_SECONDS = 120.0
"""For one run of `criu-relay`."""


class Refused(AssertionError):
    """The control API answered with an error.

    @ivar status: of HTTP.
    @ivar answer: the JSON object.
    """

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"status {status}: {answer}")
        self.status = status
        self.answer = answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Daemon:
    """A running `twistd criu-relay-proxy` or `twistd criu-relay-cache`.

    @ivar role: "proxy" or "cache".
    @ivar control: path of its control socket.
    @ivar log: file with everything it said.
    @ivar ended: the test ended it itself.
    """

    ended = False

    def __init__(
        self,
        relay: Relay,
        role: str,
        control: Path,
        log: Path,
        options: Sequence[str],
        within: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.role = role
        self.control = control
        self.log = log
        self._relay = relay
        command = [*within, sys.executable, "-m", "twisted", "-n", "--pidfile=", f"criu-relay-{role}", *options]
        if os.access(twistd := Path(sys.executable).parent / "twistd", os.X_OK):
            command = [*within, str(twistd), *command[len(within) + 3 :]]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=relay.environment,
                cwd=relay.base,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """It has not ended; a stopped one counts as running."""
        return self.process.poll() is None

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 60) -> str:
        """The end of L{text}."""
        return "\n".join(self.text().splitlines()[-lines:])

    def ready(self) -> Daemon:
        """Wait until its control API answers.

        @raise AssertionError: it does not, or the process ended.
        """

        def answers() -> bool:
            if not self.running:
                raise AssertionError(f"the {self.role} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                return bool(self.get("/healthz"))
            except OSError:
                return False

        until(answers, START_SECONDS, f"the {self.role} answers at {self.control}", self.tail)
        return self

    def request(self, method: str, path: str, body: Any = None, timeout: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        """One call of its control API.

        @param body: bytes, or something for JSON.
        @return: status, and the body of the answer.
        @raise OSError: it does not answer.
        """
        connection = _UnixConnection(self.control, timeout)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def get(self, path: str) -> Any:
        """GET something that is JSON.

        @raise Refused: the status is not 200.
        """
        status, data = self.request("GET", path)
        if status != 200:
            raise Refused(status, json.loads(data))
        return json.loads(data)

    def command(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run `criu-relay --control ITS-SOCKET ARGUMENTS`."""
        return self._relay.run("--control", str(self.control), *arguments, timeout=timeout)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The same, in the background; ended by L{Relay.close} at the latest."""
        return self._relay.begin("--control", str(self.control), *arguments)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP or SIGCONT."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end. Its sockets stay behind, as after a crash."""
        self.ended = True
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and wait for its end.

        @return: the exit status.
        """
        self.ended = True
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the {self.role} does not stop:\n{self.tail()}") from None

    def descriptors(self) -> list[str]:
        """What it has open, as /proc shows it; not the memory for images, which is kept for the next."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(entry))
        return sorted(name for name in found if not name.startswith("/memfd:"))
