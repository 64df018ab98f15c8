"""Both ends of a link in memory: no sockets, no reactor, a clock that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from criu_relay.errors import Cause, RelayError
from criu_relay.interfaces import Counters, IGrowing, IIntake, Mode, Owner, Room
from criu_relay.link.connection import LinkConnection
from criu_relay.link.outlet import LinkOutlet
from criu_relay.link.receiver import ACK_SECONDS, Receiver
from criu_relay.link.transports import Ownership
from criu_relay.store.arena import Arena
from criu_relay.store.store import Store
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from tests.support.faults import DOWN, UP, Fault, Stream

MIB = 1 << 20
PROXY_ID, CACHE_ID = b"p" * 16, b"c" * 16
OWNER = Owner("local", PROXY_ID)
PATIENCE = 3600.0


def hello(
    role: Any,
    instance: bytes = PROXY_ID,
    version: int = wire.VERSION,
    name: str = "",
    session: bytes | None = None,
    window: int | None = None,
) -> link_pb2.Hello:
    return link_pb2.Hello(version=version, role=role, instance=instance, name=name, session=session, window=window)


def migration(value: int) -> bytes:
    return value.to_bytes(16, "big")


class Wire:
    """A transport that keeps what is written until the test takes it. It asks a pull producer when it is pulled.

    @ivar ended: "lose" or "abort" when our end ended it.
    """

    def __init__(self) -> None:
        self.out = bytearray()
        self.producer: Any = None
        self.ended = ""
        self.paused = False
        self.stopped: list[str] = []

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming is False
        self.producer = producer

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        self.out += data

    def loseConnection(self) -> None:
        self.ended = self.ended or "lose"

    def abortConnection(self) -> None:
        self.ended = "abort"

    def stopReading(self) -> None:
        self.stopped.append("reading")

    def stopWriting(self) -> None:
        self.stopped.append("writing")

    def getPeer(self) -> str:
        return "a test"

    def pull(self, times: int = 1 << 30) -> bytes:
        """What the producer has to say, and what was written before."""
        while self.producer is not None and times > 0:
            self.producer.resumeProducing()
            times -= 1
        data = bytes(self.out)
        self.out.clear()
        return data


class Parsed:
    """Takes bytes of one direction apart into frames and their payloads."""

    def __init__(self) -> None:
        self.frames: list[tuple[Frame, bytes]] = []
        self._reader = wire.FrameReader(self)

    def frame_received(self, frame: Frame) -> Any:
        kept = Frame()
        kept.CopyFrom(frame)
        if not frame.payload:
            self.frames.append((kept, b""))
            return None
        return _Collected(self, kept)

    def feed(self, data: bytes) -> Parsed:
        self._reader.feed(data)
        return self

    @property
    def kinds(self) -> list[str]:
        return [frame.WhichOneof("body") or "" for frame, _ in self.frames]


class _Collected:
    def __init__(self, parsed: Parsed, frame: Frame) -> None:
        self.parsed, self.frame, self.data, self.count = parsed, frame, bytearray(frame.payload), 0

    def room(self, remaining: int) -> memoryview:
        return memoryview(self.data)[self.count : self.count + remaining]

    def filled(self, count: int) -> None:
        self.count += count

    def done(self) -> None:
        self.parsed.frames.append((self.frame, bytes(self.data)))


def frames(data: bytes) -> list[tuple[Frame, bytes]]:
    return Parsed().feed(data).frames


def kinds(data: bytes) -> list[str]:
    return Parsed().feed(data).kinds


class Wired:
    """A connection, its transport, and short ways to talk to it as its peer.

    @param peer: says hello at once as this; None: not yet.
    """

    def __init__(
        self,
        clock: Clock,
        end: Any,
        role: Any,
        peer: link_pb2.Hello | None,
        owned: Ownership | None = None,
        instance: bytes = b"",
    ) -> None:
        instance = instance or (PROXY_ID if role == link_pb2.PROXY else CACHE_ID)
        self.wire = Wire()
        greeting = hello(role, instance)
        if isinstance(end, LinkOutlet):
            greeting = hello(role, instance, session=end.session, window=end.window.limit)
        self.connection = LinkConnection(None, clock, greeting, end, owned)
        self.connection.makeConnection(self.wire)
        if peer is not None:
            self.say(Frame(hello=peer))

    def say(self, *said: Frame, payload: bytes = b"") -> None:
        """The peer sends frames; the payload belongs to the last."""
        data = b""
        for frame in said:
            if payload and frame is said[-1]:
                frame.payload = len(payload)
            data += wire.encode(frame)
        self.connection.dataReceived(data + payload)

    def heard(self) -> list[tuple[Frame, bytes]]:
        """What our end has sent since."""
        return frames(self.wire.pull())

    def heard_kinds(self) -> list[str]:
        return kinds(self.wire.pull())

    def lose(self) -> None:
        """The transport is gone."""
        self.connection.connectionLost(Failure(ConnectionDone()))


class Loop:
    """A proxy end and a cache end joined; whoever has something to say is heard when the test pumps.

    @ivar plan: faults of the connections that are made; those that would end one end it, those that need time are not.
    @ivar record: what was passed on, by direction.
    """

    def __init__(
        self,
        window: int = 4 * MIB,
        memory: int = 64 * MIB,
        arenas: tuple[Arena, Arena] | None = None,
        intake: Any = None,
        patience: float = 0.0,
        beside: Loop | None = None,
        instance: bytes = PROXY_ID,
    ) -> None:
        """
        @param beside: the proxy is another one of the same cache.
        @param instance: of the proxy.
        """
        self.clock = beside.clock if beside else Clock()
        self.counters = Counters()
        self.window_arena, self.store_arena = arenas or (Arena(window, keep=window), Arena(memory, keep=memory))
        self.outlet = LinkOutlet(None, self.clock, self.window_arena, self.counters, patience)  # type: ignore[arg-type]
        if beside:
            self.store, self.receiver = beside.store, beside.receiver
        else:
            self.store = Store(None, self.clock, self.store_arena, Counters(), PATIENCE)  # type: ignore[arg-type]
            self.receiver = Receiver(intake or self.store, Counters(), self.clock, patience)
            self.store.rejected = self.receiver.rejected
            self.store.credits.granted = self.receiver.credited
        self.plan: list[Fault] = []
        self.record: dict[str, bytearray] = {UP: bytearray(), DOWN: bytearray()}
        self.proxy: Any = None
        self.cache: Any = None
        self._instance = instance
        self._streams: dict[str, Stream] = {}

    @property
    def cut(self) -> bool:
        """The link is gone."""
        return self.proxy is None

    def connect(self, pump: bool = True) -> Loop:
        self._streams = {way: Stream(way, self.plan) for way in (UP, DOWN)}
        self.proxy = Wired(self.clock, self.outlet, link_pb2.PROXY, None, instance=self._instance)
        self.cache = Wired(self.clock, self.receiver, link_pb2.CACHE, None)
        if pump:
            self.pump()
        return self

    def pump(self) -> None:
        """Until nobody has anything to say."""
        while self._moved() or (self.clock.advance(ACK_SECONDS) or self._moved()):
            pass

    def _moved(self) -> bool:
        return any(not self.cut and self._move(way) for way in (UP, DOWN))

    def _move(self, way: str, times: int = 1 << 30) -> bool:
        source, target = (self.proxy, self.cache) if way == UP else (self.cache, self.proxy)
        data = source.wire.pull(times)
        if not data:
            if source.wire.ended and not source.connection.transport.out:
                self.disconnect()
            return False
        for item in self._streams[way].take(data):
            if isinstance(item, Fault):
                self.disconnect()
                break
            self.record[way] += item
            target.connection.dataReceived(item)
        return True

    def disconnect(self) -> None:
        """Both ends lose the connection."""
        proxy, cache, self.proxy, self.cache = self.proxy, self.cache, None, None
        for end in (proxy, cache):
            end.lose()

    def settle(self) -> None:
        """Let what is to be done at once be done."""
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)


@implementer(IPushProducer)
class Producer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


@implementer(IGrowing)
class Growing:
    number = 1

    def __init__(self) -> None:
        self.data = bytearray()
        self._room = memoryview(b"")

    @property
    def size(self) -> int:
        return len(self.data)

    def reserve(self, size: int) -> Room:
        self._room = memoryview(bytearray(size))
        return Room(-1, 0, self._room)

    def written(self, count: int) -> None:
        self.grow([count])

    def grow(self, runs: Sequence[int]) -> None:
        for index, count in enumerate(runs):
            if index % 2:
                self.data += bytes(count)
            else:
                self.data += self._room[:count]
                self._room = self._room[count:]


@implementer(IIntake)
class Intake:
    """Records what it is told, and refuses when told to.

    @ivar refuse: by method, what it raises.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: dict[str, Exception] = {}
        self.images: dict[tuple[bytes, int], Growing] = {}
        self.waiting: list[tuple[bytes, str, int]] = []
        self.outcome: bool | None = True
        self.stored = b"stored bytes"

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.refuse:
            raise self.refuse[call[0]]

    def begin(
        self, owner: Owner, migration: bytes, namespace: str, copy: bool, source: str, digests: bool = True
    ) -> None:
        self._called("begin", owner, migration, namespace, copy, source, digests)

    def snapshot(self, owner: Owner, migration: bytes, index: int, label: str) -> None:
        self._called("snapshot", owner, migration, index, label)

    def open_image(self, owner: Owner, migration: bytes, image: int, snapshot: int, name: str, mode: Mode) -> None:
        self._called("open_image", owner, migration, image, snapshot, name, mode)

    def credit(self, owner: Owner, migration: bytes) -> None:
        self._called("credit", owner, migration)

    def writing(self, owner: Owner, migration: bytes, image: int, offset: int, cost: int = 0) -> Growing:
        self._called("writing", owner, migration, image, offset, cost)
        return self.images.setdefault((migration, image), Growing())

    def end_image(self, owner: Owner, migration: bytes, image: int, size: int, digest: bytes | None) -> None:
        self._called("end_image", owner, migration, image, size, digest)

    def seal(self, owner: Owner, migration: bytes, images: Sequence[Any], source: str) -> int:
        self._called("seal", owner, migration, list(images), source)
        self.waiting.append((migration, "web", 3))
        return 3

    def decide(self, owner: Owner, migration: bytes, commit: bool, reason: str) -> bool | None:
        self._called("decide", owner, migration, commit, reason)
        return self.outcome

    def discard_range(self, owner: Owner, migration: bytes, image: int, offset: int, length: int) -> None:
        self._called("discard_range", owner, migration, image, offset, length)

    def read(self, owner: Owner, migration: bytes, image: int, offset: int, length: int) -> bytes:
        self._called("read", owner, migration, image, offset, length)
        return self.stored[offset : offset + length]

    def held(self, owner: Owner) -> list[tuple[bytes, str, int]]:
        return self.waiting

    def link_lost(self, owner: Owner, migrations: Sequence[bytes], reason: str, cause: Cause = Cause.LINK) -> None:
        self._called("link_lost", owner, list(migrations), reason)


def result(deferred: Any) -> list[Any]:
    """A list that the result, or the exception, is put into."""
    results: list[Any] = []
    deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return results


def is_error(results: list[Any]) -> bool:
    return len(results) == 1 and isinstance(results[0], RelayError)
