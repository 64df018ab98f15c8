"""A control API over a control that does nothing, in memory or on a real socket; and the commands as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

import criu_relay
from criu_relay.admin.api import ControlSite, Handlers
from criu_relay.admin.inspected import IInspected
from criu_relay.admin.listen import listen_control
from criu_relay.admin.page import Page
from criu_relay.errors import Aborted, Conflict, NotFound, RelayError, TimedOut
from criu_relay.interfaces import CommitRequest, Counters, IImportSink, IOpenedImage

SOURCES = Path(criu_relay.__file__).parent.parent


@implementer(IOpenedImage)
class FakeImage:
    """Bytes; `breaks_at`: reading fails from there on."""

    def __init__(self, data: bytes, breaks_at: int | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.breaks_at = breaks_at
        self.reads: list[tuple[int, int]] = []
        self.closed = 0
        self.pending: Deferred[bytes] | None = None
        self.hold = False
        self.cancelled = 0

    def serve(self, fd: int) -> Deferred[int]:
        raise NotImplementedError

    def whole(self, most: int) -> bytes | None:
        raise NotImplementedError

    def skip(self, offset: int, length: int) -> tuple[int, int]:
        raise NotImplementedError

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        assert 0 < length <= 1 << 20
        self.reads.append((offset, length))
        if self.breaks_at is not None and offset + length > self.breaks_at:
            return fail(RelayError("the memory is gone"))
        if self.hold:
            self.pending = Deferred(lambda _: self._cancel())
            return self.pending
        return succeed(self.data[offset : offset + length])

    def _cancel(self) -> None:
        self.cancelled += 1

    def close(self) -> None:
        self.closed += 1


@implementer(IImportSink)
class FakeSink:
    """Keeps what is written; pauses its producer when `limit` bytes wait, until `drain`."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.data = b""
        self.waiting = 0
        self.most_waiting = 0
        self.producer: Any = None
        self.calls: list[str] = []
        self.error: RelayError | None = None
        self.end_error: RelayError | None = None
        self.refusal = Aborted("no room", hint="more memory")

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming and self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        assert not self.calls
        if self.error is not None:
            raise self.error
        self.data += data
        self.waiting += len(data)
        self.most_waiting = max(self.most_waiting, self.waiting)
        if self.limit is not None and self.waiting >= self.limit:
            self.producer.pauseProducing()

    def drain(self) -> None:
        self.waiting = 0
        if self.producer is not None:
            self.producer.resumeProducing()

    def end(self) -> None:
        assert not self.calls and self.producer is None
        self.calls.append("end")
        if self.end_error is not None:
            raise self.end_error

    def fail(self, reason: str) -> None:
        assert not self.calls and self.producer is None
        self.calls.append(f"fail: {reason}")

    def reserve(self, size: int) -> Any:
        raise NotImplementedError

    def written(self, count: int) -> None:
        raise NotImplementedError


def namespace(name: str = "web", state: str = "committed", **changes: Any) -> dict[str, Any]:
    """A namespace as IControl gives it."""
    made: dict[str, Any] = {
        "name": name,
        "state": state,
        "generation": 1,
        "migration": "00" * 16,
        "copy": False,
        "bytes": 1 << 20,
        "held": None,
        "expected": None,
        "images": 2,
        "age_s": 4.0,
        "decided_s": 2.0,
        "reason": "",
        "hint": "",
        "source": "alpha",
    }
    assert set(changes) <= set(made)
    return made | changes


def status(role: str = "proxy", **changes: Any) -> dict[str, Any]:
    """What IControl.status gives."""
    made: dict[str, Any] = {
        "role": role,
        "version": "0.1.0",
        "pid": 4711,
        "uptime_s": 301.5,
        "instance": "ab" * 16,
        "link": {"state": "up", "endpoint": "tcp:192.0.2.1:9876", "peers": [], "error": ""},
        "memory": {"used": 3 << 20, "limit": 256 << 20, "recycled": 1 << 20},
        "attachments": [],
        "namespaces": [],
        "waiting": [],
        "hops": {"criu": {}, "link": {}, "refused": {}},
        "counters": {},
        "times": {},
        "failures": [],
    }
    assert set(changes) <= set(made)
    return made | changes


@implementer(IInspected)
@dataclass
class FakeControl:
    """Answers what a test puts in, and remembers what it was asked."""

    role: str = "proxy"
    state: dict[str, Any] = field(default_factory=status)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[tuple[str, int, str], Any] = field(default_factory=dict)
    outcomes: dict[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    sinks: list[FakeSink] = field(default_factory=list)
    pending: list[Deferred[Any]] = field(default_factory=list)
    cancelled: int = 0
    make_sink: Callable[[], FakeSink] = FakeSink
    error: BaseException | None = None
    happened: threading.Event = field(default_factory=threading.Event)

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def status(self) -> dict[str, Any]:
        self._called("status")
        return self.state

    def namespaces(self) -> list[dict[str, Any]]:
        self._called("namespaces")
        return list(self.state["namespaces"])

    def namespace(self, name: str) -> dict[str, Any]:
        self._called("namespace", name)
        if name not in self.details:
            raise NotFound(f"no namespace {name}", hint="criu-relay status lists them")
        return self.details[name]

    def attach(self, directory: str, name: str | None, dialect: str, copy: bool) -> dict[str, Any]:
        self._called("attach", directory, name, dialect, copy)
        if not os.path.isdir(directory):
            raise NotFound(f"no directory {directory}", hint="make it first")
        found = os.stat(directory)
        made = {
            "directory": directory,
            "namespace": name or os.path.basename(directory),
            "dialect": dialect,
            "copy": copy,
            "device": found.st_dev,
            "inode": found.st_ino,
            "socket": directory + "/streamer-capture.sock",
        }
        self.state["attachments"].append(made)
        return made

    def detach(self, directory: str) -> None:
        self._called("detach", directory)

    def _outcome(self, what: str) -> Deferred[dict[str, Any]]:
        outcome = self.outcomes.get(what)
        if isinstance(outcome, RelayError):
            return fail(outcome)
        if outcome is not None:
            return succeed(outcome)
        self.pending.append(Deferred(lambda _: self._cancel()))
        self.happened.set()
        return self.pending[-1]

    def _cancel(self) -> None:
        self.cancelled += 1
        self.happened.set()

    def wait(self, name: str, timeout: float | None, following: bool) -> Deferred[dict[str, Any]]:
        self._called("wait", name, timeout, following)
        if timeout is not None and "wait" not in self.outcomes:
            return fail(TimedOut(f"{name} was not decided in {timeout:g} s"))
        return self._outcome("wait")

    def commit(self, name: str, request: CommitRequest, timeout: float | None) -> Deferred[dict[str, Any]]:
        self._called("commit", name, request, timeout)
        return self._outcome("commit")

    def rate(self, rate: int | None) -> dict[str, Any]:
        self._called("rate", rate)
        return {"rate": rate}

    def restored(self, name: str) -> dict[str, Any]:
        self._called("restored", name)
        return namespace(name, "restored")

    def discard(
        self, name: str, snapshot: int | None, image: str | None, offset: int | None, length: int | None
    ) -> dict[str, Any]:
        self._called("discard", name, snapshot, image, offset, length)
        return {"bytes": 4096}

    def open_image(self, name: str, snapshot: int | None, image: str) -> Deferred[IOpenedImage]:
        self._called("open_image", name, snapshot, image)
        if "open_image" in self.outcomes:
            return self._outcome("open_image")
        found = self.images.get((name, snapshot or 1, image))
        if found is None:
            return fail(NotFound(f"no image {image}"))
        return succeed(FakeImage(found) if isinstance(found, bytes) else found)

    def each_namespace(self) -> Iterator[dict[str, Any]]:
        return iter(self.state["namespaces"])

    def described(self, name: str) -> dict[str, Any]:
        return self.namespace(name)

    def each_image(self, name: str) -> Iterator[dict[str, Any]]:
        for snapshot in self.namespace(name)["snapshots"]:
            for image in snapshot["images"]:
                yield {"snapshot": snapshot["index"], "readers": 0, "memory": 4096, "digest": None} | image

    def image(self, name: str, snapshot: int | None, image: str) -> dict[str, Any]:
        for one in self.each_image(name):
            if one["name"] == image and snapshot in (None, one["snapshot"]):
                return one
        raise NotFound(f"namespace {name} has no image {image}")

    def peek(self, name: str, snapshot: int | None, image: str, offset: int, length: int) -> Deferred[bytes]:
        self._called("peek", name, snapshot, image, offset, length)
        if "peek" in self.outcomes:
            return self._outcome("peek")
        return succeed(self.images[name, snapshot or 1, image][offset : offset + length])

    def waiting(self) -> list[dict[str, Any]]:
        return list(self.state["waiting"])

    def link(self) -> dict[str, Any]:
        return dict(self.state["link"])

    def put_image(self, name: str, snapshot: int | None, image: str, migration: str) -> IImportSink:
        self._called("put_image", name, snapshot, image, migration)
        self.details.setdefault(name, namespace(name, "open", migration="ab" * 16))
        if self.role != "proxy":
            raise Conflict("a cache takes no images", hint="import them at the proxy")
        self.sinks.append(self.make_sink())
        return self.sinks[-1]


def page(control: FakeControl, clock: Any = None) -> Page:
    """The page over a control."""
    return Page(control, control.counters, clock or Clock())


class Exchange:
    """One connection to a ControlSite in memory; the page behind it samples nothing unless it is started."""

    def __init__(
        self, control: FakeControl, tcp: bool = False, looking: bool = False, for_everyone: bool = False
    ) -> None:
        self.clock = Clock()
        self.transport = (
            StringTransport() if tcp else StringTransport(hostAddress=UNIXAddress(b"/s"), peerAddress=UNIXAddress(b""))
        )
        self.page = page(control, self.clock)
        handlers = Handlers(control, self.page)
        routes = handlers.looking() if looking else handlers.routes()
        self.channel = ControlSite(routes, self.clock, for_everyone).buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> Exchange:
        self.channel.dataReceived(data)
        return self

    def request(self, method: str, target: str, body: bytes | None = None, headers: str = "") -> Exchange:
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        return self.send(f"{method} {target} HTTP/1.1\r\nHost: h\r\n{length}{headers}\r\n".encode() + (body or b""))

    def hang_up(self) -> None:
        from twisted.internet.error import ConnectionDone
        from twisted.python.failure import Failure

        self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def head(self) -> str:
        return self.transport.value().partition(b"\r\n\r\n")[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.head.split("\r\n")[1:])

    @property
    def code(self) -> int:
        return int(self.head.split(" ")[1])

    @property
    def body(self) -> bytes:
        return self.transport.value().partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        assert int(self.headers["Content-Length"]) == len(self.body)
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


class Daemon:
    """A FakeControl behind a real control socket, on a reactor of its own in a thread."""

    def __init__(self, control: FakeControl, path: str) -> None:
        self.control = control
        self.path = path
        self.reactor = EPollReactor()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.reactor.callWhenRunning(self._listen)
        self.reactor.run(installSignalHandlers=False)

    def _listen(self) -> None:
        self._port: Any = None
        site = ControlSite(Handlers(self.control, page(self.control, self.reactor)).routes(), self.reactor)
        listening = listen_control(self.reactor, f"unix:{self.path}", site)
        listening.addCallback(lambda port: setattr(self, "_port", port))
        listening.addBoth(lambda _: self._ready.set())

    def start(self) -> Daemon:
        self._thread.start()
        assert self._ready.wait(10) and self._port is not None
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self.do(self._port.stopListening)
            self.reactor.callFromThread(self.reactor.stop)
            self._thread.join(10)
        assert not self._thread.is_alive()

    def do(self, call: Callable[[], Any]) -> None:
        """Make a call in the daemon's thread, and wait until it has been made."""
        done = threading.Event()
        self.reactor.callFromThread(lambda: (call(), done.set()))
        assert done.wait(10)

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the daemon's reactor until `condition` holds in its thread."""
        done = threading.Event()

        def check() -> None:
            if condition():
                done.set()
            else:
                self.reactor.callLater(0.001, check)

        self.reactor.callFromThread(check)
        assert done.wait(10), "the daemon did not get there"


@dataclass
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str


class World:
    """A run directory with daemons, and the commands in that environment."""

    def __init__(self, tmp_path: Path) -> None:
        self.base = tmp_path
        self.run_directory = tmp_path / "run" / "criu-relay"
        self.daemons: dict[str, Daemon] = {}
        inherited = {key: os.environ[key] for key in ("PATH", "PYTHONPYCACHEPREFIX") if key in os.environ}
        self.environment = inherited | {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(SOURCES)}

    def start(self, role: str) -> FakeControl:
        control = FakeControl(role=role, state=status(role))
        self.daemons[role] = Daemon(control, str(self.run_directory / f"{role}.sock")).start()
        return control

    def popen(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", f"criu_relay.admin.{module}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.base,
            env=self.environment | environment,
        )

    def run(self, module: str, *arguments: str, **environment: str) -> Ran:
        with self.popen(module, *arguments, **environment) as process:
            out, err = process.communicate(timeout=30)
        return Ran(process.returncode, out, err)

    def command(self, *arguments: str) -> Ran:
        ran = self.run("command", *arguments)
        assert "Traceback" not in ran.err
        return ran

    def shell(self, redirection: str, *arguments: str) -> Ran:
        """The command with a redirection of a shell, such as ">&-"."""
        line = f'exec "$0" -m criu_relay.admin.command "$@" {redirection}'
        ran = subprocess.run(
            ["sh", "-c", line, sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=self.base,
            env=self.environment,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def ask(control: FakeControl) -> Callable[..., Exchange]:
    """One request on a connection of its own."""
    return lambda *arguments, **keywords: Exchange(control).request(*arguments, **keywords)


@pytest.fixture
def connect(control: FakeControl) -> Callable[..., Exchange]:
    """A connection."""
    return lambda **keywords: Exchange(control, **keywords)


@pytest.fixture
def make() -> dict[str, Any]:
    """The builders of this file, by name."""
    return {
        "namespace": namespace,
        "status": status,
        "image": FakeImage,
        "sink": FakeSink,
        "control": FakeControl,
        "page": page,
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for daemon in made.daemons.values():
        daemon.stop()
