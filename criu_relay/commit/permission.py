"""The permission of one migration, as it is on disk."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from criu_relay.commit.records import Record
from criu_relay.commit.surroundings import Surroundings
from criu_relay.commit.tasks import Task, boot_id


class Permission:
    """Written before it is given, and forgotten or kept when it is decided; what blocks runs in a thread."""

    def __init__(self, surroundings: Surroundings, migration: bytes, namespace: str) -> None:
        self._at = surroundings
        self._migration = migration.hex()
        self._namespace = namespace

    async def write(self, root: Task, criu: Task) -> None:
        """On disk when it returns; cancelled, it is not there in the end.

        @raise OSError: it could not be written.
        """
        pids = (root.pid, root.started, criu.pid, criu.started)
        record = Record(self._migration, self._namespace, *pids, boot_id(), self._at.cache)
        writing = self._at.in_thread(self._at.records.write, record)
        written: Deferred[Any] = Deferred()
        writing.addBoth(lambda result: None if written.called else written.callback(result))
        try:
            await written
        except CancelledError:
            # The thread writes on: what it writes must not stay.
            writing.addBoth(lambda _: self.forget())
            raise

    def forget(self) -> Deferred[None]:
        """Abort, or lost: no record means abort."""
        return self._at.in_thread(self._at.records.remove, self._migration)

    def keep(self) -> Deferred[None]:
        """The cache has confirmed the commit; see L{Records.keep}."""
        return self._at.in_thread(self._at.records.keep, self._migration)
