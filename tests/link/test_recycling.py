"""An extent is never used again while anything can still read its pages.

Both arenas are tiny, so that the same few pages are used again and again, and each is overwritten as soon as it is
free: whoever recycles too early sends, keeps or serves poison. Both ends are in this process, on reactors of their
own that are turned at random; links, pipes and sockets are real, and what a restore reads it reads long after its image
was thrown away.

100 GiB make 102,400 uses of extents of 1 MiB. Here are as many, of extents of a page. RECYCLED_GIB=1000 makes ten times
as many.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory

from criu_relay.flow import frames
from criu_relay.flow.source import DescriptorSource
from criu_relay.interfaces import Counters, Mode
from criu_relay.link.connection import LinkConnection
from criu_relay.link.outlet import LinkOutlet
from criu_relay.link.receiver import Receiver
from criu_relay.link.sent import Sent, SentLog
from criu_relay.store.arena import LARGEST, SMALLEST, Arena
from criu_relay.store.policy import Policy
from criu_relay.store.region import Extent
from criu_relay.store.store import Store
from criu_relay.wire import link_pb2
from tests.link.support import CACHE_ID, PATIENCE, PROXY_ID, hello, result
from tests.support.certificates import Authority

SEED = 7

WAYS = [
    (link, source, kept) for link in ("tcp", "unix", "tls") for source in ("pipe", "socket") for kept in (True, False)
]
"""How a link is made, what CRIU writes into, and whether the proxy has a window."""

USES = int(os.environ.get("RECYCLED_GIB", "100")) * (1 << 30) // LARGEST // len(WAYS)
"""How often extents are recycled on each of the ways."""

WINDOW = 8 * SMALLEST

MEMORY = 128 * SMALLEST

IMAGE = 15 * SMALLEST
"""The largest image: a pipe that nobody reads holds all of it."""

UNREAD = 4
"""So many generations later an image is read."""

LIMIT = 60.0
"""Seconds for one migration."""

POISON = bytes([0xDB]) * SMALLEST


class Poisoned(Arena):
    """One whose pages are overwritten when nobody needs them any more, and when they are given out again.

    @ivar uses: how often a page was given out that had been used before.
    @ivar sharing: it believes that pages may be referred to.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit, keep=limit)
        self.uses = 0
        self.sharing = True
        self._seen: set[int] = set()

    def allocate(self, size: int) -> Extent | None:
        return super().allocate(min(size, SMALLEST))

    def force(self, size: int) -> Extent:
        return super().force(min(size, SMALLEST))

    def take(self, size: int, wanted: int = -1) -> int:
        number = super().take(size, wanted)
        pages = range(number, number + size // SMALLEST)
        self.uses += len(self._seen.intersection(pages))
        self._seen.update(pages)
        self._poison(number, len(pages))
        return number

    def put(self, first: int, count: int, shared: bool) -> None:
        super().put(first, count, shared and self.sharing)
        if count and not (shared and self.sharing):
            self._poison(first, count)

    def _poison(self, first: int, count: int) -> None:
        self.view(first, count)[:] = POISON * count


class Spoiled(Exception):
    """What came is not what was sent."""


class Joined:
    """A proxy's end and a cache's, on a real connection."""

    def __init__(self, kind: str, kept: bool, directory: Path, release: bool) -> None:
        self.chance = random.Random(SEED)
        self.reactors = [EPollReactor(), EPollReactor()]
        self._own = [set(reactor.getReaders()) for reactor in self.reactors]
        near, far = self.reactors
        self.window, self.memory = Poisoned(WINDOW if kept else 0), Poisoned(MEMORY)
        self.outlet = LinkOutlet(near, near, self.window, Counters())
        self.store = Store(far, far, self.memory, Counters(), PATIENCE, Policy(release=release))
        self.receiver = Receiver(self.store, Counters(), far)
        self.store.credits.granted = self.receiver.credited
        self.unread: deque[tuple[int, str, bytes]] = deque()
        self.migrations = 0
        self._readers = ("pipe",) if release else ("pipe", "socket")
        self._connect(kind, directory)

    def _connect(self, kind: str, directory: Path) -> None:
        near, far = self.reactors
        ours, theirs = connected(kind)
        authority = Authority(directory)
        shown = [authority.issue(name).credentials(client) for name, client in (("proxy", True), ("cache", False))]
        ends = [
            LinkConnection(
                reactor, reactor, hello(role, instance, session=session), end,
                credentials=credentials if kind == "tls" else None,
            )
            for reactor, role, instance, session, end, credentials in (
                (near, link_pb2.PROXY, PROXY_ID, self.outlet.session, self.outlet, shown[0]),
                (far, link_pb2.CACHE, CACHE_ID, None, self.receiver, shown[1]),
            )
        ]  # fmt: skip
        for reactor, end, connection in zip(self.reactors, ends, (ours, theirs), strict=True):
            connection.setblocking(False)
            factory = Factory.forProtocol(lambda end=end: end)
            factory.noisy = False
            reactor.adoptStreamConnection(connection.fileno(), connection.family, factory)
            connection.close()
        self.ends = ends
        self.turn_until(lambda: all(end.up for end in ends))

    def turn_until(self, reached: Callable[[], object]) -> None:
        """Turn the reactors, in no order, until something is so."""

        end = time.monotonic() + LIMIT
        while not reached():
            assert time.monotonic() < end, "neither end gets on"
            for _ in range(self.chance.randrange(1, 8)):
                self.chance.choice(self.reactors).iterate(0)

    def migrate(self, source: str) -> None:
        """One image and an inventory, committed, and written to a pipe and a socket that are read much later.

        @raise Spoiled: a digest differs.
        """
        data = self.chance.randbytes(self.chance.randrange(IMAGE // 2, IMAGE))
        self.migrations += 1
        lost: list[Any] = []
        outgoing = self.outlet.begin(self.migrations.to_bytes(16, "big"), "web", False, lost.append)
        outgoing.snapshot(1, "")
        for name, content in (("pages-1.img", data), ("inventory.img", b"inventory")):
            over: list[int] = []
            DescriptorSource(
                self.reactors[0], self.reactors[0], filled(source, content), outgoing.open_image(1, name, Mode.REPLACE),
                lambda over=over: over.append(1),
            ).start()  # fmt: skip
            self.turn_until(lambda over=over: over or lost)
            if lost:
                raise Spoiled(lost[0].reason)
        sealing = result(outgoing.seal({"host": "h"}))
        self.turn_until(lambda: sealing or lost)
        if lost or isinstance(sealing[0], Exception):
            raise Spoiled((lost or sealing)[0].reason)
        decided = result(outgoing.decide(True))
        self.turn_until(lambda: decided)
        assert decided == ["committed"]
        for kind in self._readers:
            self._serve(kind, data)
        while len(self.unread) > UNREAD * len(self._readers):
            self._read()

    def _serve(self, kind: str, data: bytes) -> None:
        [opened] = result(self.store.namespace("web").begin(None).open(None, "pages-1.img"))
        reading, writing = ends_of(kind)
        served = result(opened.serve(writing))
        self.turn_until(lambda: served)
        os.close(writing)
        opened.close()
        self.unread.append((reading, kind, sha256(data).digest()))
        assert served == [len(data)], served

    def _read(self) -> None:
        reading, kind, digest = self.unread.popleft()
        got = sha256()
        while part := os.read(reading, IMAGE):
            got.update(part)
        os.close(reading)
        if got.digest() != digest:
            raise Spoiled(f"what was served into a {kind} has changed")

    def close(self) -> None:
        for reading, _, _ in self.unread:
            os.close(reading)
        for end in self.ends:
            with contextlib.suppress(Exception):
                end.transport.abortConnection()
        for reactor, own in zip(self.reactors, self._own, strict=True):
            reactor.iterate(0)
            reactor.iterate(0)
            reactor.removeAll()
            for reader in own:
                reader.connectionLost(None)
            reactor._poller.close()


def connected(kind: str) -> tuple[socket.socket, socket.socket]:
    """A connection."""
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


def ends_of(kind: str) -> tuple[int, int]:
    """To read from, to write into."""
    if kind == "pipe":
        return os.pipe()
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


def filled(kind: str, data: bytes) -> int:
    """What CRIU has written an image into."""
    reading, writing = ends_of(kind)
    assert os.write(writing, data) == len(data)
    os.close(writing)
    return reading


@pytest.fixture(autouse=True)
def everything_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads of a page are not copied behind their headers, but go by sendfile like large ones."""
    monkeypatch.setattr(frames, "COPIED_PAYLOAD", 0)


@contextlib.contextmanager
def joined(kind: str, kept: bool, directory: Path, release: bool = False) -> Iterator[Joined]:
    """@param release: the cache gives memory back as it is read, so that an image is read once."""
    made = Joined(kind, kept, directory, release)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("kind", "source", "kept"), WAYS)
def test_nobody_reads_poison(kind: str, source: str, kept: bool, tmp_path: Path) -> None:
    with joined(kind, kept, tmp_path) as both:
        while both.window.uses + both.memory.uses < USES:
            both.migrate(source)
        assert both.memory.uses
        assert bool(both.window.uses) is kept


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_nobody_reads_poison_where_memory_is_given_back_as_it_is_read(kind: str, tmp_path: Path) -> None:
    with joined(kind, True, tmp_path, release=True) as both:
        while both.window.uses + both.memory.uses < USES:
            both.migrate("pipe")


# The test can fail


def broken_when_sent(log: SentLog, sent: Sent) -> None:
    """What was sent before is free, acknowledged or not."""
    for one in log._kept:
        log._free(one, shared=False)
    log._kept.append(sent)


def broken_when_handed_over(log: SentLog, sent: Sent) -> None:
    """What is about to be sent is free."""
    log._kept.append(sent)
    log._free(sent, shared=False)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_it_sees_an_extent_that_is_free_before_its_acknowledgement(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentLog, "add", broken_when_sent)
    with joined(kind, True, tmp_path) as both, pytest.raises(Spoiled, match="their digest differs"):
        for _ in range(100):
            both.migrate("pipe")


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_it_sees_an_extent_that_is_free_before_it_is_sent(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentLog, "add", broken_when_handed_over)
    with joined(kind, True, tmp_path) as both, pytest.raises(Spoiled, match="their digest differs"):
        for _ in range(100):
            both.migrate("pipe")


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_it_sees_an_extent_that_a_pipe_refers_to(kind: str, tmp_path: Path) -> None:
    with joined(kind, True, tmp_path) as both, pytest.raises(Spoiled, match="into a pipe has changed"):
        both.memory.sharing = False
        for _ in range(100):
            both.migrate("pipe")
