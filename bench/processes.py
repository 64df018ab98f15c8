"""Processes of the benchmark, and what the operating system says of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

NANOSECOND = 1e-9
LOOK = 0.01
"""Seconds between two looks at the memory of a process: at full speed some 30 MiB come meanwhile."""

TORN = 4 << 20
"""Bytes that may move while two processes are looked at."""

BLOCK = 512
"""Bytes in a unit of st_blocks, stat(2)."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, int]:
    """Bytes by name, of the lines in kB: proc_pid_status(5)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if line[-1] == "kB"}


def peak_rss(pid: int) -> int:
    """Bytes: the most that was resident since L{forget_peak}."""
    return _status(pid)["VmHWM"]


def forget_peak(pid: int) -> None:
    """Let L{peak_rss} begin anew: proc_pid_clear_refs(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memfds(pid: int) -> int:
    """Bytes that the memfds of a process take now, whether they are mapped or not."""
    found: dict[int, int] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(entry).startswith("/memfd:"):
                status = entry.stat()
                found[status.st_ino] = status.st_blocks * BLOCK
    return sum(found.values())


def memory(pid: int) -> int:
    """Bytes that a process takes now: resident memory, and its memfds."""
    status = _status(pid)
    return status["RssAnon"] + status["RssFile"] + memfds(pid)


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and all that descend from it; pages that several share count for each."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        total = _status(pid).get("VmRSS", 0)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += tree_rss(int(child))
    return total


def together(pid: int, tree: int) -> int:
    """Bytes that the memfds of a process and another tree of processes take at the same time.

    What one gives the other would count twice, were they looked at one after the other.
    """
    before = memfds(pid)
    while True:
        rss, after = tree_rss(tree), memfds(pid)
        if abs(after - before) <= TORN:
            return max(before, after) + rss
        before = after


@dataclass
class Usage:
    """What some processes used within L{measured}: CPU seconds, and peak resident bytes."""

    cpu: dict[str, float]
    rss: dict[str, int]


@contextlib.contextmanager
def measured(pids: dict[str, int]) -> Iterator[Usage]:
    """Measure running processes; the result is filled in at the end."""
    usage = Usage({}, {})
    for pid in pids.values():
        forget_peak(pid)
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    yield usage
    usage.cpu.update({name: cpu_seconds(pid) - before[name] for name, pid in pids.items()})
    usage.rss.update({name: peak_rss(pid) for name, pid in pids.items()})


class Watched:
    """The peak of some bytes within a `with` block.

    @ivar peak: known at its end.
    """

    def __init__(self, look: Callable[[], int], pause: float = LOOK) -> None:
        """@param pause: seconds between two looks."""
        self.peak = 0
        self._look = look
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._look())
            if self._over.wait(self._pause):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()


@dataclass(frozen=True)
class Times:
    """Seconds (CLOCK_MONOTONIC) of the first and the last byte, and how many there were."""

    first: float
    last: float
    size: int


class Process:
    """A process whose CPU time and memory count.

    @ivar name: what rows call it.
    @ivar cpu: CPU seconds; known after L{end}.
    @ivar rss: peak resident bytes; known after L{end}.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        descriptors: Iterable[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        """@param descriptors: inherited by it; they are closed here, so that it alone has them."""
        self.name = name
        self.cpu = 0.0
        self.rss = 0
        given = list(descriptors)
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=stdin, stdout=stdout, pass_fds=given, text=True
        )
        for descriptor in given:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def end(self) -> None:
        """Wait for its end.

        @raise RuntimeError: its exit status is not 0.
        """
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.rss = usage.ru_maxrss << 10
        if self.process.returncode != 0:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}")


class Program(Process):
    """A process that says "ready", works when it is told to, and reports times: see reference/common.h.

    What it used before it was ready does not count, and in the end it waits until it is looked at.
    """

    def __init__(self, name: str, command: Sequence[str | Path], descriptors: Iterable[int] = ()) -> None:
        super().__init__(name, command, descriptors, subprocess.PIPE, subprocess.PIPE)
        self._before = 0.0

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early, with {self.process.wait()}")
        return line.strip()

    def ready(self) -> str:
        """Wait until it is; what it said behind "ready"."""
        word, _, more = self._line().partition(" ")
        assert word == "ready", word
        self._before = cpu_seconds(self.process.pid)
        return more

    def go(self) -> None:
        """Let it work."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def times(self) -> Times:
        """Wait for its report."""
        first, last, size = self._line().split()
        return Times(int(first) * NANOSECOND, int(last) * NANOSECOND, int(size))

    def end(self) -> None:
        """See L{Process.end}; what it uses to give its memory back does not count."""
        assert self.process.stdin is not None
        cpu = cpu_seconds(self.process.pid) - self._before
        self.process.stdin.close()
        super().end()
        self.cpu = cpu


def used(programs: Iterable[Process]) -> Usage:
    """What programs used that have ended."""
    ended = list(programs)
    return Usage({one.name: one.cpu for one in ended}, {one.name: one.rss for one in ended})
