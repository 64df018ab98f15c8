"""Which tasks a dump holds, and whether they are gone: the fact that a move is committed on.

A pidfd becomes readable when its process has ended, zombie or reaped (pidfd_open(2)). What is known of a
process that still exists comes from /proc (proc_pid_stat(5), proc_pid_status(5)).
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import NotFound
from criu_relay.machine import Machine, Table
from criu_relay.wire.names import plain

PROC = Path("/proc")

SETTLE_SECONDS = 0.02
"""Between taking SIGKILL off the pending set and setting PF_EXITING the kernel shows neither for some
microseconds: a task that looks alive when criu is gone is looked at once more after this."""

EXITING = 0x4
"""PF_EXITING of include/linux/sched.h, in field 9 of /proc/PID/stat."""

STAT_FLAGS, STAT_START, STAT_EXIT_CODE = 6, 19, 49
"""Positions of the fields 9, 22 and 52 of /proc/PID/stat behind the command, which may hold blanks."""


def boot_id() -> str:
    """The id of this boot of the kernel (random(4))."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str]:
    text = (PROC / str(pid) / "stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def start_time(pid: int) -> int:
    """Clock ticks after boot at which a process started: with its pid and the boot id, it names one process.

    @raise NotFound: there is no such process.
    """
    try:
        return int(_stat(pid)[STAT_START])
    except OSError:
        raise NotFound(f"there is no process {pid}") from None


def ended(pid: int) -> bool:
    """There is no such process, or nothing of it but its exit status."""
    try:
        return _stat(pid)[0] in "ZX"
    except OSError:
        return True


def command(pid: int) -> str:
    """The name of a process for people, which it may have given itself (prctl(2)); empty when it is gone."""
    try:
        return plain((PROC / str(pid) / "comm").read_text(errors="replace").strip())
    except OSError:
        return ""


def traced_by(tracer: int) -> list[int]:
    """The processes that C{tracer} traces now: a criu that dumps has seized every task of the tree."""
    return sorted(pid for pid in _processes() if _status(pid, "TracerPid") == str(tracer))


def root_of(pids: list[int]) -> int:
    """The one of some tasks whose parent is none of them; 0: there are no tasks."""
    members = set(pids)
    for pid in pids:
        if _status(pid, "PPid") not in {str(member) for member in members}:
            return pid
    return 0


MEMORY = ("RssAnon", "RssShmem", "VmSwap")
"""Lines of /proc/PID/status whose sum is about what criu writes of a process: file pages stay where they are."""


def memory_of(pids: list[int]) -> int:
    """About how many bytes a dump of these processes has; memory that they share counts once for each."""
    return sum(int(_status(pid, line).removesuffix(" kB") or 0) << 10 for pid in pids for line in MEMORY)


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(PROC) if entry.isdigit())


def _status(pid: int, field: str) -> str:
    with contextlib.suppress(OSError), open(f"{PROC}/{pid}/status", "rb", buffering=0) as status:
        _, found, rest = status.read().partition(f"\n{field}:".encode())
        return rest.partition(b"\n")[0].strip().decode(errors="replace") if found else ""
    return ""


def _status_hidden(pid: int) -> bool:
    """An exit status is shown as 0 to whom ptrace would not let (proc_pid_stat(5)): the link `exe` asks the same."""
    try:
        os.readlink(PROC / str(pid) / "exe")
    except PermissionError:
        return True
    except OSError:
        pass  # a zombie has none
    return False


GONE, CLOSED = -1, -2
"""What stands for a pidfd: the process had ended already; we need it no more."""


@dataclass(eq=False)
class Task:
    """One process, named so that its pid's reuse cannot be mistaken for it.

    @ivar pidfd: L{GONE} when it had ended before it was opened.
    """

    pid: int
    started: int
    pidfd: int

    @classmethod
    def open(cls, pid: int, started: int | None = None) -> Task:
        """The process that has this pid now, or had when it started at C{started}.

        @raise NotFound: there is none; not raised when C{started} is given.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            if started is None:
                raise NotFound(f"there is no process {pid}") from None
            return cls(pid, started, GONE)
        try:
            now = start_time(pid)
        except NotFound:
            now = -1
        if now < 0 or (started is not None and now != started):
            os.close(pidfd)
            if started is None:
                raise NotFound(f"there is no process {pid}")
            return cls(pid, started, GONE)
        return cls(pid, now, pidfd)

    @classmethod
    def gone(cls, pid: int, started: int) -> Task:
        """A process that has ended, for instance with the boot that it ran under."""
        return cls(pid, started, GONE)

    def dying(self) -> bool:
        """It was killed and is on its way out, or gone: it will never run its program again."""
        if self.pidfd == GONE:
            return True
        try:
            stat = _stat(self.pid)
        except OSError:
            return True
        if int(stat[STAT_START]) != self.started or stat[0] in "ZX" or int(stat[STAT_FLAGS]) & EXITING:
            return True
        kill = 1 << (signal.SIGKILL - 1)
        pending = [_status(self.pid, field) for field in ("SigPnd", "ShdPnd")]
        return any(int(mask or "0", 16) & kill for mask in pending)

    def ended_otherwise(self) -> bool:
        """It is a zombie whose exit status says that it was not killed with SIGKILL: it ran on and ended by itself."""
        # Asked first: who is reaped between the two must not look like one whose status may be read.
        unknown = (0, signal.SIGKILL) if _status_hidden(self.pid) else (signal.SIGKILL,)
        try:
            stat = _stat(self.pid)
        except OSError:
            return False
        return int(stat[STAT_START]) == self.started and stat[0] == "Z" and int(stat[STAT_EXIT_CODE]) not in unknown

    def close(self) -> None:
        """Give the pidfd back."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = CLOSED


@implementer(IReadDescriptor)
class Ending:
    """Calls back when a process has ended."""

    def __init__(self, reactor: IReactorFDSet, clock: IReactorTime, task: Task, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self._ended: Callable[[], None] | None = ended
        self._call: Any = None
        self._pidfd = GONE
        if task.pidfd == GONE:
            self._call = clock.callLater(0, self.doRead)
        else:
            # Its own, so that it can be taken from the reactor also after the task was closed.
            self._pidfd = os.dup(task.pidfd)
            reactor.addReader(self)

    def fileno(self) -> int:
        """The pidfd."""
        return self._pidfd

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "pidfd"

    def doRead(self) -> None:
        """It is readable: the process has ended."""
        ended = self._ended
        self.stop()
        if ended is not None:
            ended()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave it up: a hang-up is an end as well."""
        self.doRead()

    def stop(self) -> None:
        """Do not call back."""
        self._ended = None
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._pidfd >= 0:
            self._reactor.removeReader(self)
            os.close(self._pidfd)
            self._pidfd = CLOSED


class State(enum.Enum):
    """What is known of a permitted dump."""

    BOTH = "both alive"
    SETTLING = "criu gone, task looked alive"
    KILLED = "criu gone, task dying"
    GONE = "task gone"
    LIVES = "task lives on"


class Event(enum.Enum):
    """What happens to the two."""

    TASK_ENDED = "task ended"
    TASK_ENDED_ITSELF = "task ended by itself"
    CRIU_ENDED_DYING = "criu ended, task is dying"
    CRIU_ENDED_ALIVE = "criu ended, task is alive"
    STILL_ALIVE = "still alive"


TABLE: Table[State, Event] = {
    (State.BOTH, Event.TASK_ENDED): State.GONE,
    (State.BOTH, Event.TASK_ENDED_ITSELF): State.LIVES,
    (State.BOTH, Event.CRIU_ENDED_DYING): State.KILLED,
    (State.BOTH, Event.CRIU_ENDED_ALIVE): State.SETTLING,
    (State.KILLED, Event.TASK_ENDED): State.GONE,
    (State.KILLED, Event.TASK_ENDED_ITSELF): State.LIVES,
    (State.SETTLING, Event.TASK_ENDED): State.GONE,
    (State.SETTLING, Event.TASK_ENDED_ITSELF): State.LIVES,
    (State.SETTLING, Event.CRIU_ENDED_DYING): State.KILLED,
    (State.SETTLING, Event.STILL_ALIVE): State.LIVES,
}


class Verdict:
    """Waits until it is a fact that the root task is gone, or that it lives on without its criu.

    Exactly one of C{gone} and C{lives} is called, once, unless stopped.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        task: Task,
        criu: Task | None,
        gone: Callable[[], None],
        lives: Callable[[], None],
    ) -> None:
        """@param criu: None: it has ended already."""
        self._clock = clock
        self._task = task
        self._criu = criu
        self._answers = {State.GONE: gone, State.LIVES: lives}
        self._machine: Machine[State, Event] = Machine("the dump", TABLE, State.BOTH, self._entered)
        self._settling: Any = None
        self._endings = [Ending(reactor, clock, task, self._task_ended)]
        self._endings.append(Ending(reactor, clock, criu or Task(0, 0, GONE), self._criu_ended))

    def stop(self) -> None:
        """Give up waiting, and both pidfds."""
        for ending in self._endings:
            ending.stop()
        if self._settling is not None and self._settling.active():
            self._settling.cancel()
        self._task.close()
        if self._criu is not None:
            self._criu.close()

    def _task_ended(self) -> None:
        itself = self._task.ended_otherwise()
        self._machine.feed(Event.TASK_ENDED_ITSELF if itself else Event.TASK_ENDED)

    def _criu_ended(self) -> None:
        self._machine.feed(Event.CRIU_ENDED_DYING if self._task.dying() else Event.CRIU_ENDED_ALIVE)

    def _settled(self) -> None:
        self._machine.feed(Event.CRIU_ENDED_DYING if self._task.dying() else Event.STILL_ALIVE)

    def _entered(self, state: State) -> None:
        if state is State.SETTLING:
            self._settling = self._clock.callLater(SETTLE_SECONDS, self._settled)
        elif state in self._answers:
            self.stop()
            self._answers[state]()
