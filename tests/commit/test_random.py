"""Random sessions of one migration: whatever comes in whatever order, it ends once, and never both ways."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred

from criu_relay.commit.migration import Migration
from criu_relay.commit.states import State
from criu_relay.errors import LinkLost, RelayError
from criu_relay.interfaces import CommitRequest
from tests.commit.fakes import Bench

SESSIONS, STEPS = 120, 25


class MigrationSession(RuleBasedStateMachine):
    """A dump with an action script; its task and its criu are real processes."""

    def __init__(self) -> None:
        super().__init__()
        self.state_directory = tempfile.mkdtemp()
        self.bench = Bench(Path(self.state_directory))
        self.task, self.criu = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
        self.bench.written("pages-1.img")
        assert self.bench.dump.newest is not None
        self.migration: Migration = self.bench.dump.newest
        self.asked: Deferred[None] | None = None
        self.answer: list[Any] = []
        self.recorded_at_answer = False
        self.verified = False

    def teardown(self) -> None:
        """No process and no descriptor stays."""
        self.bench.reactor.readers.clear()
        self.migration.source.close()
        for process in (self.task, self.criu):
            process.kill()
            process.wait()
        shutil.rmtree(self.state_directory)

    @initialize(steps=st.sampled_from([3, 3, 3, 2, 1, 0]))
    def begins(self, steps: int) -> None:
        """In order as far as that: what happens after the permission is what matters most."""
        for step in (self.writes_the_inventory, self.script_asks, self.cache_holds)[:steps]:
            step()

    # What CRIU does

    @rule()
    def writes_the_inventory(self) -> None:
        """The last image, unless the dump was given up."""
        try:
            self.bench.written("inventory.img")
        except RelayError:
            assert self.migration.state is not State.OPEN

    @precondition(lambda self: self.asked is None)
    @rule()
    def script_asks(self) -> None:
        """post-dump."""
        self.asked = Deferred.fromCoroutine(
            self.migration.permit(CommitRequest(root=self.task.pid, criu=self.criu.pid))
        )
        self.asked.addBoth(self._answered)

    def _answered(self, result: Any) -> None:
        self.answer.append(result)
        self.recorded_at_answer = bool(self.bench.records.load())

    @precondition(lambda self: self.asked is not None)
    @rule()
    def script_leaves(self) -> None:
        """It was killed, or its time was up."""
        assert self.asked is not None
        self.asked.cancel()

    @rule()
    def criu_dies(self) -> None:
        """Or ends."""
        self._end(self.criu)

    @precondition(lambda self: self.answer == [None] and self.criu.returncode is None)
    @rule()
    def criu_kills_the_task(self) -> None:
        """Only with the permission, and alive."""
        self._end(self.task)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode is None:
            pidfd = os.pidfd_open(process.pid)
            watched = [reader for reader in self.bench.reactor.readers if _same(reader.fileno(), pidfd)]
            os.close(pidfd)
            process.kill()
            process.wait()
            for reader in watched:
                if reader in self.bench.reactor.readers:
                    reader.doRead()

    @rule()
    def client_leaves(self) -> None:
        """Its end of connection."""
        self.bench.dump.client_gone(self.bench.client)
        self.bench.dump.finished(self.bench.client)

    # What the cache and the link do

    @precondition(lambda self: self._sealing and not self.verified)
    @rule()
    def cache_holds(self) -> None:
        """It verified everything."""
        self.verified = True
        self.bench.out.sealed.callback(10)

    @precondition(lambda self: self._sealing and not self.verified)
    @rule()
    def cache_refuses(self) -> None:
        """A digest differs."""
        self.verified = True
        self.bench.out.sealed.errback(LinkLost("the cache refuses it"))

    @precondition(lambda self: not self.verified and not self._sealing)
    @rule()
    def link_breaks(self) -> None:
        """Before it is held."""
        self.bench.out.lost(LinkLost("the link is lost"))

    @precondition(lambda self: self.bench.out.decisions and not self.bench.out.decided.called)
    @rule()
    def cache_confirms(self) -> None:
        """The decision has arrived."""
        self.bench.out.decided.callback("committed" if self.bench.out.decisions[0][0] else "aborted")

    @property
    def _sealing(self) -> bool:
        sealed = self.bench.out.sealed
        return sealed is not None and not sealed.called

    # What a person does

    @rule()
    def discards(self) -> None:
        """At the proxy."""
        if self.migration.state in (State.OPEN, State.SEALING, State.SEALED, State.HELD):
            self.migration.abort("discarded at the proxy")

    @rule()
    def time_passes(self) -> None:
        """A second: every look again, no idle limit."""
        self.bench.clock.advance(1)

    # What must always be so

    @invariant()
    def one_decision(self) -> None:
        """The cache is told once, and the same as the state says."""
        decisions = self.bench.out.decisions
        assert len(decisions) <= 1
        if decisions:
            committed = self.migration.state in (State.COMMITTING, State.COMMITTED)
            assert decisions[0][0] == committed

    @invariant()
    def committed_means_gone(self) -> None:
        """A move is committed on the fact only."""
        if self.migration.state in (State.COMMITTING, State.COMMITTED):
            assert self.task.returncode is not None
            assert self.answer == [None]

    @invariant()
    def never_lost(self) -> None:
        """Aborted means that the task was never allowed to go, or lives on."""
        if self.migration.state is State.ABORTED:
            assert self.task.returncode is None

    @invariant()
    def permission_is_recorded(self) -> None:
        """What a restart must know is on disk before the answer, and gone after the end."""
        if self.answer == [None]:
            assert self.recorded_at_answer
        if self.migration.over:
            assert self.bench.records.load() == []
            assert self.bench.reactor.readers == []

    @invariant()
    def an_end_is_told(self) -> None:
        """Who asked has an answer when it is over."""
        if self.migration.over and self.asked is not None:
            assert self.answer


def _same(first: int, second: int) -> bool:
    """Two pidfds of one process."""
    return first >= 0 and _pid_of(first) == _pid_of(second)


def _pid_of(pidfd: int) -> str:
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return next(line for line in text.splitlines() if line.startswith("Pid:"))


TestRandomSessions = MigrationSession.TestCase
TestRandomSessions.settings = settings(
    max_examples=SESSIONS, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
)
