"""Processes to be dumped. Each counts into a file and answers, when a file asks, with a digest of its memory.

They are started in a session of their own with files as stdin, stdout and stderr and without inet sockets, so that
criu can dump them anywhere. The files are in a directory of theirs; a process restored elsewhere answers in the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.polling import until

PROGRAMS = Path(__file__).with_name("programs")

START_SECONDS = 60.0
"""To fill its memory."""

ANSWER_SECONDS = 60.0
"""To digest its memory, on a loaded machine."""


def process_state(pid: int) -> str:
    """The letter of /proc/PID/stat, such as "S", "T" or "Z"; "" when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return text[text.rindex(")") + 2]


def tracer(pid: int) -> int:
    """Which process traces it; 0: none, or it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("TracerPid:")), 0)


class Home:
    """The directory through which a victim is watched: the original's, or that of a copy of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def count(self) -> int:
        """What it has counted to; 0 before its first tick."""
        try:
            return int((self.directory / "count").read_bytes() or b"0")
        except FileNotFoundError:
            return 0

    def counts_on(self, seconds: float = 20.0) -> int:
        """Wait until the count has gone on from where it is now; the new count."""
        before = self.count
        return until(
            lambda: now if (now := self.count) > before else 0, seconds, f"the count in {self.directory} goes on"
        )

    def ask(self) -> dict[str, Any]:
        """What it answers now."""
        answer = self.directory / "answer"
        answer.unlink(missing_ok=True)
        (self.directory / "ask").touch()
        until(answer.exists, ANSWER_SECONDS, f"the process in {self.directory} answers", self.errors)
        said: dict[str, Any] = json.loads(answer.read_text())
        return said

    def errors(self) -> str:
        """What it wrote to stderr."""
        path = self.directory / "stderr"
        return path.read_text(errors="replace") if path.exists() else ""


class Victim(Home):
    """A process that was started here.

    @ivar pid: it, and the id of its session and process group.
    """

    def __init__(self, directory: Path, program: str, *arguments: int, within: Sequence[str] = ()) -> None:
        """@param program: one of `programs`, without its suffix.
        @param within: a command to run it in, such as ("nsenter", "--net=/run/netns/a"); it must exec.
        """
        super().__init__(directory)
        directory.mkdir(parents=True)
        with (
            (directory / "stdout").open("wb") as stdout,
            (directory / "stderr").open("wb") as stderr,
        ):
            self._process = subprocess.Popen(
                [*within, sys.executable, "-E", "-S", "-s", str(PROGRAMS / f"{program}.py"), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
        self.pid = self._process.pid
        until(lambda: self.count or not self.alive, START_SECONDS, f"{program} counts", self.errors)
        if not self.alive:
            raise AssertionError(f"{program} ended: {self.errors()}")

    @property
    def alive(self) -> bool:
        """It runs, or could (a stopped one counts)."""
        return process_state(self.pid) not in ("", "Z", "X") and self._process.returncode is None

    def settled(self) -> str:
        """Wait until nothing traces it and it is not stopped; its state letter."""
        return until(
            lambda: state if (state := process_state(self.pid)) in ("R", "S", "D") and not tracer(self.pid) else "",
            10.0,
            f"{self.pid} runs on, untraced",
            lambda: f"(state {process_state(self.pid)!r}, traced by {tracer(self.pid)})",
        )

    def reap(self, seconds: float = 20.0) -> int:
        """Wait for its end and free its pid.

        @return: as L{subprocess.Popen.returncode}.
        """
        return self._process.wait(seconds)

    def close(self) -> None:
        """Kill it and what it started, and reap it."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(20)
