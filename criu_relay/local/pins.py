"""Which restore a connection to img-cache.sock belongs to: the dialect has one for each open, and no name for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.interfaces import IRestore, IRestores, Peer

MAX_ANCESTORS = 64
"""How far up a restoring task is searched for its criu: criu forks the root task, and that its descendants, so this is
how deep a process tree can be for its tasks to be known as part of the restore."""


@implementer(IReadDescriptor)
class ProcessWatch:
    """Calls back when a process has ended (pidfd_open(2): a pidfd is readable then)."""

    def __init__(self, reactor: Any, pid: int, gone: Any) -> None:
        """@raise OSError: there is no such process."""
        self._reactor = reactor
        self._gone = gone
        self._fd = os.pidfd_open(pid)
        reactor.addReader(self)

    def fileno(self) -> int:
        """The pidfd, -1 when closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "process watch"

    def doRead(self) -> None:
        """The process has ended."""
        self.stop()
        self._gone()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        self.stop()

    def stop(self) -> None:
        """Watch no longer."""
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1


class Pin:
    """One restore: criu and the tasks that it forked.

    @ivar restore: what it reads from.
    """

    _log = Logger()

    def __init__(self, restore: IRestore, who: str) -> None:
        self.restore = restore
        self._who = who
        self._users = 0
        self._over = False
        self._finished = False
        self._listed: list[str] = []
        self._served = False
        self._warned = False

    def enter(self) -> None:
        """A connection uses it, until it says L{leave}."""
        self._users += 1

    def leave(self) -> None:
        """The connection and its pipe are done with."""
        self._users -= 1
        self._settle()

    def end(self) -> None:
        """The restore says that it is done, or its process is gone."""
        self._over = True
        self._settle()

    def listed(self, labels: list[str]) -> list[str]:
        """The list of snapshots was read; returned as it is."""
        self._listed = labels
        return labels

    def served(self) -> None:
        """An image of one of them was there."""
        self._served = True

    def missing(self, labels: list[str], label: str) -> None:
        """An image was asked for that is not there, perhaps of a snapshot that is not in the list."""
        if labels and label not in labels and not self._warned:
            self._warned = True
            self._log.warn(
                "restore ({who}) asks for images of snapshot {label!r}, which is not in the list;"
                " its -D must be literally one of: {labels}",
                who=self._who,
                label=label,
                labels=", ".join(labels),
            )

    def _settle(self) -> None:
        if not self._over or self._users or self._finished:
            return
        self._finished = True
        if self._listed and not self._served and not self._warned:
            self._log.warn(
                "restore ({who}) read the list of snapshots and opened no image of any;"
                " its -D must be literally one of: {labels}",
                who=self._who,
                labels=", ".join(self._listed),
            )
        self.restore.finished()


class Pins:
    """The restores of one attachment, by the pid of criu."""

    def __init__(self, reactor: Any, restores: IRestores) -> None:
        self._reactor = reactor
        self._restores = restores
        self._pins: dict[int, tuple[Pin, ProcessWatch]] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def enter(self, peer: Peer) -> Pin:
        """The restore that a connection belongs to; one of its own when its process is not known.

        @return: entered already: the connection calls L{Pin.leave}.
        @raise RelayError: no restore can begin.
        """
        pin = self._known(peer.pid)
        if pin is not None:
            pin.enter()
            return pin
        pin = Pin(self._restores.begin(peer), f"pid {peer.pid}, uid {peer.uid}")
        pin.enter()
        if not self._watch(peer.pid, pin):
            pin.end()
        return pin

    def _known(self, pid: int) -> Pin | None:
        """The restore of a process: its own, or that of the criu which forked it."""
        ancestor = pid
        for _ in range(MAX_ANCESTORS):
            if ancestor in self._pins and (ancestor == pid or same_program(ancestor, pid)):
                return self._pins[ancestor][0]
            if ancestor <= 1:
                break
            ancestor = parent_of(ancestor)
        return None

    def finish(self, peer: Peer) -> None:
        """That process says that its restore is done."""
        self._end(peer.pid)

    def _watch(self, pid: int, pin: Pin) -> bool:
        """Keep it for later connections of the process; False: the process cannot be watched."""
        if pid <= 0:
            return False
        try:
            watch = ProcessWatch(self._reactor, pid, lambda: self._end(pid))
        except OSError:
            return False
        self._pins[pid] = pin, watch
        return True

    def _end(self, pid: int) -> None:
        if pid in self._pins:
            pin, watch = self._pins.pop(pid)
            watch.stop()
            pin.end()


def parent_of(pid: int) -> int:
    """The pid of a process's parent; 0 when there is none or it cannot be told (proc_pid_stat(5))."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
        return int(data[data.rindex(b")") + 1 :].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def same_program(one: int, other: int) -> bool:
    """Whether two processes run the same program: a child that executes another one is not part of a restore."""
    try:
        return os.path.samestat(os.stat(f"/proc/{one}/exe"), os.stat(f"/proc/{other}/exe"))
    except OSError:
        return False
