"""The tasks that a dump is about: the root task and criu, found and named."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from criu_relay.commit.tasks import Task, command, memory_of, root_of, traced_by
from criu_relay.errors import NotFound
from criu_relay.interfaces import CommitRequest, IDumpClient

NAME_BYTES = 64
"""Of a task's name and of a host name that are told to the cache (comm has 15, a host name 64)."""


class SourceTasks:
    """See the module.

    @ivar root: the root of the tree that criu traces, once it was found.
    @ivar expected: about how many bytes the dump will have; None: nobody knows.
    """

    log = Logger()

    def __init__(self, in_thread: Callable[..., Deferred[Any]]) -> None:
        self.root: Task | None = None
        self.expected: int | None = None
        self._in_thread = in_thread
        self._scanned = False
        self._closed = False
        self._opened: list[Task] = []

    def open(self, pid: int) -> Task:
        """A task, whose pidfd is closed with the rest.

        @raise NotFound: there is none.
        """
        task = Task.open(pid)
        self._opened.append(task)
        return task

    def tasks(self, request: CommitRequest, clients: Sequence[IDumpClient]) -> tuple[Task | None, Task | None]:
        """The root task and criu, as a script says it, or a person without pids leaves it to us.

        @raise NotFound: one of those that were said is not there.
        """
        if request.root:
            return self.open(request.root), self.open(request.criu) if request.criu else None
        pid = next((client.peer.pid for client in clients if client.peer is not None), 0)
        return self.root, self.open(pid) if pid and self.root is not None else None

    def scan(self, criu: int, again: bool) -> None:
        """Look, in a thread, which tasks criu traces.

        @param again: once more if none was found before.
        """
        if not self._scanned or (again and self.root is None):
            self._scanned = True
            self._in_thread(_traced, criu).addCallbacks(self._found, self._failed)

    def described(self) -> dict[str, Any]:
        """As the cache is told."""
        source: dict[str, Any] = {"host": socket.gethostname()[:NAME_BYTES]}
        if self.root is not None:
            source["pid"] = self.root.pid
            source["command"] = command(self.root.pid)[:NAME_BYTES]
        return source

    def told(self) -> str:
        """The root task for people; empty when it is not known."""
        return "" if self.root is None else f"{command(self.root.pid) or 'a process'} (pid {self.root.pid})"

    def close(self) -> None:
        """Close every pidfd."""
        self._closed = True
        for task in self._opened:
            task.close()
        self.root = None

    def _found(self, found: tuple[int, int]) -> None:
        pid, memory = found
        if pid and self.root is None and not self._closed:
            self.expected = memory
            try:
                self.root = self.open(pid)
            except NotFound:
                self.log.info("task {pid} ended while it was dumped", pid=pid)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the tasks of criu cannot be found", failure)


def _traced(criu: int) -> tuple[int, int]:
    """The root of the tree that criu traces (0: there is none), and about how many bytes a dump of it has."""
    pids = traced_by(criu)
    return root_of(pids), memory_of(pids)
