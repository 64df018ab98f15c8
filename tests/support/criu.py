"""The real criu: found, and run for a test.

A test that needs it is marked `needs_criu`. Where criu cannot run, such a test is skipped and says why, unless CI=true
is in the environment: then it fails.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.polling import until
from tests.support.victims import PROGRAMS, Home

REPOSITORY = Path(__file__).resolve().parents[2]

RUN_SECONDS = 60.0
"""For one dump or restore of what the tests have."""

TAIL_LINES = 40
"""Of a log, in the message of a test that failed."""


@functools.cache
def find_criu() -> str | None:
    """The criu to test with: $CRIU, that of `make`, which works, that of the PATH, one beside the system."""
    places = [os.environ.get("CRIU"), str(REPOSITORY / "build/criu/bin/criu"), shutil.which("criu")]
    places += map(str, sorted(Path("/opt").glob("criu*/bin/criu")))
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


@functools.cache
def missing() -> str:
    """Why criu cannot be used here; "" when it can."""
    if os.geteuid() != 0:
        return "criu needs root"
    criu = find_criu()
    if criu is None:
        return "there is no criu; set CRIU, or let `make build/criu` install one"
    check = subprocess.run([criu, "check"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check.returncode != 0:
        return f"`{criu} check` fails: {check.stderr.strip() or check.stdout.strip()}"
    return ""


class Run:
    """One run of criu, in the background.

    @ivar log: what it logged, with -v4.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, status: Path | None = None) -> None:
        """@param status: file with the exit status, when `process` is not criu itself."""
        self.process = process
        self.log = log
        self._status = status

    @property
    def status(self) -> int | None:
        """The exit status of criu; negative for a signal; None while it runs."""
        if self._status is not None and self._status.exists():
            return int(self._status.read_text())
        return self.process.poll()

    def wait(self, seconds: float = RUN_SECONDS) -> int:
        """Wait for the end of criu; its exit status."""
        until(lambda: self.status is not None, seconds, f"criu ends ({self.log})", self.tail)
        status = self.status
        assert status is not None
        return status

    def succeed(self, seconds: float = RUN_SECONDS) -> None:
        """Wait for its end.

        @raise AssertionError: its exit status is not 0.
        """
        status = self.wait(seconds)
        assert status == 0, f"criu ended with {status}:\n{self.tail()}"

    def logged(self, text: str) -> bool:
        """Whether it has logged that."""
        return self.log.exists() and text in self.log.read_text(errors="replace")

    def tail(self) -> str:
        """The end of its log, and of what it and its scripts printed."""
        parts = []
        for path in (self.log, self.log.with_suffix(".out")):
            if path.exists():
                parts.append("\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:]))
        return "\n".join(parts)


class Node(Home):
    """A second "node": a pid namespace where a victim was, or is being, restored.

    @ivar run: of the restore.
    """

    def __init__(self, directory: Path, run: Run) -> None:
        super().__init__(directory)
        self.run = run

    @property
    def init(self) -> int:
        """Its first process, as this host numbers it; 0 when it is gone."""
        children = Path(f"/proc/{self.run.process.pid}/task/{self.run.process.pid}/children")
        try:
            found = children.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(found[0]) if found else 0

    @property
    def pid(self) -> int:
        """The root of what was restored here, as this host numbers it."""
        tasks = self.tasks()
        assert len(tasks) == 1, tasks
        return tasks[0]

    def tasks(self) -> list[int]:
        """What the first process has as children, as this host numbers them: criu, or the root of what was restored."""
        init = self.init
        if not init:
            return []
        return [int(pid) for pid in Path(f"/proc/{init}/task/{init}/children").read_text().split()]

    def close(self) -> None:
        """End everything in it."""
        if self.run.process.poll() is None:
            self.run.process.kill()
        self.run.process.wait(20)


class Criu:
    """Runs criu for one test.

    @ivar logs: where its logs are kept.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        """@param environment: of criu and its action scripts."""
        found = find_criu()
        assert found is not None
        self._criu = found
        self.logs = logs
        self.environment = dict(environment)
        self._runs: list[Run] = []
        self._nodes: list[Node] = []

    def dump(self, pid: int, directory: Path, *options: str, within: Sequence[str] = (), **environment: str) -> Run:
        """Begin `criu dump -t PID -D DIRECTORY OPTIONS`.

        @param within: a command to run it in; it must exec.
        @param environment: more variables for it and its action scripts.
        """
        log, output = self._log("dump")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*within, self._criu, "dump", "-t", str(pid), "-D", str(directory), "-v4", "-o", str(log), *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment | environment,
            )
        run = Run(process, log)
        self._runs.append(run)
        return run

    def restore(
        self,
        directory: Path,
        home: Path,
        *options: str,
        original: Path | None = None,
        within: Sequence[str] = (),
        **environment: str,
    ) -> Node:
        """Begin `criu restore -d -D DIRECTORY OPTIONS` in a new pid namespace.

        @param home: directory of the victim.
        @param original: where the victim had its directory when `home` is another one: `home` takes its place there,
            in a mount namespace of its own.
        @param within: a command to run all of it in, such as ("ip", "netns", "exec", "b"); it must exec.
        """
        log, output = self._log("restore")
        status = log.with_suffix(".status")
        command = [self._criu, "restore", "-d", "-D", str(directory), "-v4", "-o", str(log), *options]
        command = [sys.executable, "-E", "-S", "-s", str(PROGRAMS / "node.py"), str(status), *command]
        if original is not None:
            script = 'mount --bind "$0" "$1" && shift && exec "$@"'
            command = ["sh", "-c", script, str(home), str(original), *command]
        command = [*within, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment | environment,
                start_new_session=True,
            )
        node = Node(home, Run(process, log, status))
        self._nodes.append(node)
        return node

    def _log(self, what: str) -> tuple[Path, Path]:
        number = len(self._runs) + len(self._nodes)
        return self.logs / f"{number}-{what}.log", self.logs / f"{number}-{what}.out"

    def report(self) -> str:
        """The end of every log, for a test that failed."""
        runs = [*self._runs, *(node.run for node in self._nodes)]
        return "\n".join(f"--- {run.log} (status {run.status}) ---\n{run.tail()}" for run in runs)

    def close(self) -> None:
        """End what still runs. A task that a killed dump had frozen runs on."""
        for run in self._runs:
            if run.process.poll() is None:
                run.process.send_signal(signal.SIGCONT)
                run.process.kill()
            run.process.wait(20)
        for node in self._nodes:
            node.close()
