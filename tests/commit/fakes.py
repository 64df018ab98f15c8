"""A namespace of a proxy, with an outlet, a reactor and clients that the test moves by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from zope.interface import implementer

from criu_relay.commit.dumps import Dumps, NamespaceDump
from criu_relay.commit.records import Records
from criu_relay.commit.states import State
from criu_relay.commit.surroundings import Surroundings
from criu_relay.interfaces import CommitRequest, Counters, IDumpClient, IImageSink, Mode, Peer


class FakeReactor:
    """Records who reads; `end` is what epoll does when a pidfd is readable."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def end(self, pidfd: int) -> None:
        for reader in [reader for reader in self.readers if reader.fileno() == pidfd]:
            reader.doRead()


@implementer(IImageSink)
class FakeSink:
    def registerProducer(self, producer: Any, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def reserve(self, size: int) -> None: ...
    def written(self, count: int) -> None: ...
    def write(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def fail(self, reason: str) -> None: ...


class FakeOutgoing:
    def __init__(self, lost: Any = None) -> None:
        self.lost = lost
        self.sealed: Deferred[int] | None = None
        self.decisions: list[tuple[bool, str]] = []
        self.decided: Deferred[str] = Deferred()

    def snapshot(self, index: int, label: str) -> None: ...

    def open_image(self, snapshot: int, name: str, mode: Mode) -> FakeSink:
        return FakeSink()

    def seal(self, source: dict[str, Any]) -> Deferred[int]:
        self.sealed = Deferred()
        return self.sealed

    def decide(self, commit: bool, reason: str = "") -> Deferred[str]:
        self.decisions.append((commit, reason))
        return self.decided


class FakeOutlet:
    def __init__(self) -> None:
        self.made: list[FakeOutgoing] = []

    def begin(self, migration: bytes, namespace: str, copy: bool, lost: Any) -> FakeOutgoing:
        self.made.append(FakeOutgoing(lost))
        return self.made[-1]

    def recovered(self, migration: bytes) -> FakeOutgoing:
        self.made.append(FakeOutgoing())
        return self.made[-1]


@implementer(IDumpClient)
class FakeClient:
    whole_dump = True

    def __init__(self, pid: int = 0) -> None:
        self.peer = Peer(pid, 0, 0) if pid else None
        self.busy: str | None = None
        self.dropped: list[str] = []

    def unsettled(self) -> str | None:
        return self.busy

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)


class Bench:
    """A namespace with everything around it."""

    def __init__(self, state: Path) -> None:
        self.reactor = FakeReactor()
        self.clock = Clock()
        self.outlet = FakeOutlet()
        self.records = Records(state)
        surroundings: Any = Surroundings(
            self.reactor,
            self.clock,
            self.outlet,
            self.records,
            Counters(),
            execute,
            "tcp:nowhere",
            60.0,  # type: ignore[arg-type]
        )
        self.dumps = Dumps(surroundings)
        self.dump: NamespaceDump = self.dumps.namespace("web")
        self.client = FakeClient()

    @property
    def out(self) -> FakeOutgoing:
        return self.outlet.made[-1]

    @property
    def state(self) -> State:
        assert self.dump.newest is not None
        return self.dump.newest.state

    def written(self, *names: str) -> None:
        self.dump.client_connected(self.client)
        for name in names:
            self.dump.open_image(self.client, "", name, Mode.REPLACE).end()

    def permit(self, **request: Any) -> list[Any]:
        assert self.dump.newest is not None
        results: list[Any] = []
        Deferred.fromCoroutine(self.dump.newest.permit(CommitRequest(**request))).addBoth(results.append)
        self.clock.advance(0)
        return results

    def hold(self) -> None:
        assert self.out.sealed is not None
        self.out.sealed.callback(10)
