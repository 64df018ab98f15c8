"""The namespaces of a proxy: which migration a client of CRIU belongs to, and who waits for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import implementer

from criu_relay.commit.migration import Migration
from criu_relay.commit.records import KEPT, Record
from criu_relay.commit.states import State
from criu_relay.commit.surroundings import Surroundings, Waiters
from criu_relay.commit.tasks import Task, boot_id, ended
from criu_relay.errors import Aborted, Cause, Conflict, NotFound
from criu_relay.interfaces import IDump, IDumpClient, IDumpListener, IImageSink, IImportSink, IOpenedImage, Mode
from criu_relay.wire.link import MAX_MIGRATIONS
from criu_relay.wire.names import NEW

HISTORY = 8
"""Migrations of a namespace that are remembered after they ended, for `status` and `wait`."""

MOVING = (State.OPEN, State.SEALING, State.SEALED, State.PERMITTED, State.COMMITTING)
"""States that a migration leaves by itself, and soon; *held* may wait for a person."""

NAMESPACES = 4096
"""Names that a proxy knows at once: each keeps its history, and `status` lists them. When there are more the first one
is forgotten of which nothing is attached, under way or waited for."""


@implementer(IDump)
class NamespaceDump:
    """See the module and L{IDump}.

    @ivar migrations: oldest first.
    @ivar begun: waits for the next one.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        surroundings: Surroundings,
        listeners: Callable[[], list[IDumpListener]],
        copies: Callable[[], bool],
        undecided: Callable[[], int],
        accepting: Callable[[], bool],
    ) -> None:
        """
        @param copies: whether its dumps are meant to leave their task running.
        @param undecided: how many migrations of the proxy are not decided.
        @param accepting: whether new ones may begin.
        """
        self.name = name
        self._copies = copies
        self._accepting = accepting
        self.migrations: list[Migration] = []
        self.begun = Waiters()
        self._at = surroundings
        self._listeners = listeners
        self._undecided = undecided
        self._count = 0
        self._connected: list[IDumpClient] = []
        self._bound: dict[object, Migration] = {}
        self._let_go: Migration | None = None

    @property
    def newest(self) -> Migration | None:
        """The migration that began last."""
        return self.migrations[-1] if self.migrations else None

    @property
    def forgettable(self) -> bool:
        """Nothing of it is attached, under way or waited for."""
        busy = any(not old.over for old in self.migrations)
        return not (busy or self._connected or self._listeners() or self.begun)

    # IDump

    def client_connected(self, client: IDumpClient) -> None:
        """See L{IDump.client_connected}."""
        self._connected.append(client)
        migration = self._bound.get(_key(client))
        if migration is not None and not migration.over:
            migration.connected(client)

    def client_gone(self, client: IDumpClient) -> None:
        """See L{IDump.client_gone}."""
        if client in self._connected:
            self._connected.remove(client)
        for migration in self.migrations:
            migration.gone(client)

    def finished(self, client: IDumpClient) -> None:
        """See L{IDump.finished}."""
        migration = self._bound.pop(_key(client), None)
        if migration is not None:
            migration.finished()

    def push_snapshots(self, client: IDumpClient, labels: Sequence[str]) -> None:
        """See L{IDump.push_snapshots}."""
        self._of(client).push_snapshots(labels)

    def snapshots(self) -> list[str]:
        """See L{IDump.snapshots}."""
        newest = self.newest
        return [] if newest is None or newest.over else list(newest.labels)

    def open_image(self, client: IDumpClient, snapshot: str, name: str, mode: Mode) -> IImageSink:
        """See L{IDump.open_image}."""
        return self._of(client).open_image(client, snapshot, name, mode)

    def read_image(self, client: IDumpClient, snapshot: str, name: str) -> Deferred[IOpenedImage | None]:
        """See L{IDump.read_image}."""
        newest = self.newest
        return succeed(newest.read_image(snapshot, name) if newest is not None else None)

    # Imports

    def named(self, migration_id: str) -> Migration:
        """The migration of this id, in hex.

        @raise NotFound: there is none.
        """
        for migration in self.migrations:
            if migration.id.hex() == migration_id:
                return migration
        raise NotFound(
            f"namespace {self.name} has no migration {migration_id[:32]}", hint="criu-relay status lists them"
        )

    def put_image(self, snapshot: int | None, name: str, migration_id: str = "") -> IImportSink:
        """One image of an import; the first begins a migration, as a copy.

        @param migration_id: add to this one only: an import that was given up must not go on as another one. L{NEW}: to
            a new one only: two imports at once must not become one.
        """
        if migration_id == NEW:
            migration: Migration | None = self.begin(copy=True)
        else:
            migration = self.named(migration_id) if migration_id else self.newest
        if migration_id and migration is not None and migration.over:
            raise migration.refusal()
        if migration is None or migration.state not in (State.OPEN, State.SEALING):
            migration = self.begin(copy=True)
        elif migration.clients:
            raise Conflict(f"criu dumps into {self.name} now", hint="wait for that, or use another namespace")
        index = snapshot or max(len(migration.labels), 1)
        if index > len(migration.labels) + 1:
            raise Conflict(
                f"snapshot {index} of {self.name} follows {len(migration.labels)}", hint="they count 1, 2, 3..."
            )
        if index > len(migration.labels):
            migration.push_snapshots([str(index) if snapshot else ""])
        return migration.write_image(index, name, Mode.REPLACE)

    # Migrations

    def begin(self, copy: bool = False) -> Migration:
        """A new migration.

        @raise Conflict: one is on its way.
        """
        if not self._accepting():
            raise Conflict("criu-relay-proxy is being stopped", hint="start it again, then dump again")
        newest = self.newest
        if newest is not None and newest.state in (State.OPEN, State.SEALING, State.SEALED):
            raise Conflict(f"another dump into namespace {self.name} is on its way", hint="use another namespace")
        if self._undecided() >= MAX_MIGRATIONS:
            hint = "decide some of those that criu-relay status shows"
            raise Conflict(f"{MAX_MIGRATIONS} migrations of the proxy are not decided", hint=hint)
        migration = self._add(os.urandom(16), copy or self._copies(), State.OPEN)
        for client in self._connected:
            migration.connected(client)
        return migration

    def remember(self, record: Record) -> None:
        """A migration of before a restart that was committed."""
        self._add(bytes.fromhex(record.migration), False, State.COMMITTED)

    @property
    def committed(self) -> Migration | None:
        """The newest that was, unless it is known to be restored at the destination, or discarded there."""
        newest = next((one for one in reversed(self.migrations) if one.state is State.COMMITTED), None)
        return None if newest is self._let_go else newest

    def let_go(self, migration_id: bytes) -> None:
        """This migration was restored at the destination, or discarded there."""
        committed = self.committed
        if committed is not None and committed.id == migration_id:
            self._let_go = committed
            committed.let_go()

    def recover(self, record: Record) -> None:
        """A migration of before a restart, permitted and not decided: the task and criu tell how it went on."""
        migration = self._add(bytes.fromhex(record.migration), False, State.PERMITTED)
        rebooted = record.boot != boot_id()
        root = Task.gone(record.root, record.root_started) if rebooted else Task.open(record.root, record.root_started)
        criu = Task.gone(record.criu, record.criu_started) if rebooted else Task.open(record.criu, record.criu_started)
        self.log.warn("namespace {name} was permitted before a restart: looking after its task", name=self.name)
        migration.watch(root, criu)

    async def undecided_or_next(self, following: bool = False) -> Migration:
        """The newest migration, or the next when there is none.

        @param following: one that is decided does not count.
        """
        while True:
            newest = self.newest
            if newest is not None and not (following and newest.over):
                return newest
            await self.begun.wait()
            following = False

    async def wait(self, following: bool) -> Migration:
        """Returns when it is committed.

        @raise Aborted: it was given up; the reason says why.
        """
        migration = await self.undecided_or_next(following)
        if not migration.over:
            await migration.decided.wait()
        if migration.state is not State.COMMITTED:
            raise Aborted(migration.reason, migration.hint)
        return migration

    def _add(self, migration_id: bytes, copy: bool, state: State) -> Migration:
        self._count += 1
        migration = Migration(self.name, self._count, migration_id, copy, self._at, self._listeners, state)
        self.migrations.append(migration)
        for old in [old for old in self.migrations if old.over][:-HISTORY]:
            self.migrations.remove(old)
        self.begun.fire()
        return migration

    def _of(self, client: IDumpClient) -> Migration:
        """The migration that a client writes to, begun if need be.

        @raise Aborted: the dump that it belongs to was given up; it stays so until CRIU says that it is over.
        @raise Conflict: another dump is on its way.
        """
        key = _key(client)
        migration = self._bound.get(key)
        if migration is None:
            self._forget_dead()
            migration = self._bound[key] = self._joined(client) or self.begin()
        if migration.over:
            raise Aborted(f"the dump was given up: {migration.reason}", migration.hint)
        migration.connected(client)
        return migration

    def _joined(self, client: IDumpClient) -> Migration | None:
        """The open migration that a new process may add to: a chain of pre-dumps and a dump is several processes, one
        after the other; while one of them is there another dump is begun, or refused."""
        newest = self.newest
        if newest is None or newest.state is not State.OPEN or client.whole_dump:
            return None
        return None if any(isinstance(key, int) and one is newest for key, one in self._bound.items()) else newest

    def _forget_dead(self) -> None:
        for key in [key for key in self._bound if isinstance(key, int) and ended(key)]:
            del self._bound[key]


def _key(client: IDumpClient) -> object:
    """What the connections of one dump have in common: stream has one, remote images has a process."""
    pid = client.peer.pid if client.peer is not None else 0
    return client if client.whole_dump or not pid else pid


class Dumps:
    """All namespaces of a proxy.

    @ivar namespaces: by name.
    @ivar accepting: new migrations may begin.
    """

    log = Logger()

    def __init__(self, surroundings: Surroundings) -> None:
        self.namespaces: dict[str, NamespaceDump] = {}
        self.listeners: Callable[[str], list[IDumpListener]] = lambda name: []
        self.copies: Callable[[str], bool] = lambda name: False
        self.accepting = True
        self._at = surroundings

    def namespace(self, name: str) -> NamespaceDump:
        """The namespace of that name, made when it is not there.

        @raise Conflict: there are too many.
        """
        if name not in self.namespaces:
            if len(self.namespaces) >= NAMESPACES:
                oldest = next((known for known, dump in self.namespaces.items() if dump.forgettable), None)
                if oldest is None:
                    raise Conflict(
                        f"the proxy knows {NAMESPACES} namespaces already, and needs them all", hint="detach some"
                    )
                del self.namespaces[oldest]
            self.namespaces[name] = NamespaceDump(
                name,
                self._at,
                lambda: self.listeners(name),
                lambda: self.copies(name),
                self._undecided,
                lambda: self.accepting,
            )
        return self.namespaces[name]

    def _undecided(self) -> int:
        return sum(not migration.over for dump in self.namespaces.values() for migration in dump.migrations)

    def known(self, name: str) -> Migration:
        """The newest migration of a namespace.

        @raise NotFound: nothing was ever dumped into it.
        """
        dump = self.namespaces.get(name)
        if dump is None or dump.newest is None:
            raise NotFound(f"no namespace {name}", hint="criu-relay status lists them")
        return dump.newest

    def recover(self) -> None:
        """Look after what was permitted before a restart, and remember what was committed, both at this cache."""
        self._at.records.tidy()
        for kept in self._at.records.kept():
            if kept.cache == self._at.cache:
                self.namespace(kept.namespace).remember(kept)
        records = {record.migration: record for record in self._at.records.load()}
        for migration in self._at.records.listed():
            record = records.get(migration)
            if record is not None and record.cache == self._at.cache:
                self.namespace(record.namespace).recover(record)
                continue
            if record is None:
                self.log.error("migration {migration} is not decided: its record cannot be read", migration=migration)
            else:
                self.log.error(
                    "namespace {name} is not decided: it was permitted over another link, {link}",
                    name=record.namespace,
                    link=record.cache,
                )
            # Known to the outlet, what the cache holds of it is not taken for one without a permission: no abort.
            self._at.outlet.recovered(bytes.fromhex(migration))

    def ask_again(self) -> None:
        """There is another link: ask the cache after what was committed last."""
        committed = [found for dump in self.namespaces.values() if (found := dump.committed) is not None]
        for migration in sorted(committed, key=lambda one: one.decided_at or 0.0)[-KEPT:]:
            migration.ask_again()

    def let_go(self, migration: bytes) -> None:
        """It was restored at the destination, or discarded there: the cache says so."""
        for dump in self.namespaces.values():
            dump.let_go(migration)

    def under_way(self) -> list[str]:
        """The namespaces whose migration needs this daemon."""
        return [name for name, dump in self.namespaces.items() if any(one.state in MOVING for one in dump.migrations)]

    def stop(self) -> None:
        """The daemon ends: what is not held yet is given up, so that CRIU resumes its tasks."""
        for dump in self.namespaces.values():
            for migration in dump.migrations:
                if migration.state in (State.OPEN, State.SEALING, State.SEALED):
                    migration.abort("criu-relay-proxy is being stopped", cause=Cause.STOPPED)
