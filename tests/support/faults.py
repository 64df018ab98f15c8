"""A link with faults: a TCP port that passes everything on to another, but for what a plan says.

A plan is data, a list of faults in JSON or of L{Fault}s:

    [{"what": "flip", "way": "up", "at": 100, "value": 1}, {"what": "reset", "way": "down", "at": 4096}]

In a test `Faults(port, Fault("reset", "up", 100))` runs it in a thread with a reactor of its own; as a process,

    python -m tests.support.faults PORT [PLAN]

prints the port that it listens at, and then does, on every open connection, each fault that it reads as a line of JSON
from its standard input, whose end is its own. L{Stream}, which knows nothing of sockets, takes the plan apart for both,
and for links in memory.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from zope.interface import implementer

UP, DOWN = "up", "down"
"""Towards the target, and back."""

KINDS = {
    "delay": "from here on every byte arrives `value` seconds later",
    "rate": "from here on at most `value` bytes a second",
    "slice": "from here on in pieces of at most `value` bytes",
    "flip": "the bits `value` of the byte here are changed",
    "reset": "both ends get a reset",
    "fin": "both ends get an end of stream",
    "half-close": "this direction ends, the other goes on",
    "hole": "what is sent, either way, is taken and never arrives; nothing ends",
    "stall": "this direction is not read any more; nothing ends",
}
"""What can happen at an offset, after the bytes before it were passed on."""

QUEUED = 1 << 20
"""Bytes that wait for their time: with more the source is not read."""

JOIN_SECONDS = 20.0
"""For the end of the thread."""


@dataclass(frozen=True)
class Fault:
    """One of L{KINDS}.

    @ivar way: the direction that is counted and meant.
    @ivar at: bytes of it that were passed on before.
    @ivar connection: its number, from 0; None: every one.
    """

    what: str
    way: str = UP
    at: int = 0
    value: float = 0
    connection: int | None = None

    def __post_init__(self) -> None:
        if self.what not in KINDS or self.way not in (UP, DOWN):
            raise ValueError(f"{self.what} {self.way}: give one of {', '.join(KINDS)}, and {UP} or {DOWN}")


def of_connection(plan: Iterable[Fault], number: int) -> list[Fault]:
    """The faults of one connection."""
    return [fault for fault in plan if fault.connection in (None, number)]


class Stream:
    """One direction of one connection, taken apart where faults are to happen.

    @ivar passed: bytes so far.
    """

    def __init__(self, way: str, plan: Iterable[Fault] = ()) -> None:
        self.passed = 0
        self._faults = deque(sorted((fault for fault in plan if fault.way == way), key=lambda fault: fault.at))

    def now(self, fault: Fault) -> None:
        """Let it happen before the next byte."""
        self._faults.appendleft(dataclasses.replace(fault, at=0))

    def take(self, data: bytes) -> Iterator[bytes | Fault]:
        """Bytes as they are to be passed on, and the faults between them; call it with none at the start."""
        left = memoryview(bytearray(data))
        while True:
            while self._faults and self._faults[0].what != "flip" and self._faults[0].at <= self.passed:
                yield self._faults.popleft()
            if not left:
                return
            while self._faults and self._faults[0].what == "flip" and self._faults[0].at <= self.passed:
                left[0] ^= int(self._faults.popleft().value)
            size = max(1, min(len(left), self._faults[0].at - self.passed)) if self._faults else len(left)
            self.passed += size
            yield bytes(left[:size])
            left = left[size:]


@implementer(IPushProducer)
class Flow:
    """One direction of one connection over sockets: what came waits here until it is due."""

    def __init__(self, pair: Pair, way: str, plan: Iterable[Fault]) -> None:
        self.stream = Stream(way, plan)
        self._pair = pair
        self._clock = pair.reactor
        self._source: Any = None
        self._sink: Any = None
        self._queue: deque[tuple[float, bytes | Fault | None]] = deque()
        self._waiting = 0
        self._delay = self._rate = 0.0
        self._slice = 0
        self._free = 0.0
        self._full = self._deaf = False
        self._call: Any = None

    def start(self, source: Any, sink: Any) -> None:
        """Both ends are connected."""
        self._source, self._sink = source, sink
        sink.registerProducer(self, True)
        self.received(b"")

    def received(self, data: bytes) -> None:
        """Bytes came."""
        for item in self.stream.take(data):
            if isinstance(item, Fault):
                self.happen(item)
                continue
            size = self._slice or len(item)
            for at in range(0, len(item), size):
                self._enqueue(item[at : at + size])
        self._pump()

    def ended(self) -> None:
        """The source sends nothing more."""
        self._deaf = True
        self._enqueue(None)
        self._pump()

    def happen(self, fault: Fault) -> None:
        """Do it, to what comes from now on."""
        if fault.what == "delay":
            self._delay = fault.value
        elif fault.what == "rate":
            self._rate = fault.value
        elif fault.what == "slice":
            self._slice = int(fault.value)
        else:
            self._enqueue(fault)

    def stop(self) -> None:
        """Nothing more passes."""
        self._deaf = True
        self._queue.clear()
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _enqueue(self, item: bytes | Fault | None) -> None:
        size = len(item) if isinstance(item, bytes) else 0
        self._free = max(self._free, self._clock.seconds()) + (size / self._rate if self._rate else 0)
        self._waiting += size
        self._queue.append((self._free + self._delay, item))

    def _pump(self) -> None:
        if self._call is not None and self._call.active():
            return
        while self._queue and not self._full:
            due, item = self._queue[0]
            if (wait := due - self._clock.seconds()) > 0:
                self._call = self._clock.callLater(wait, self._pump)
                break
            self._queue.popleft()
            if isinstance(item, bytes):
                self._waiting -= len(item)
                if not self._pair.hole:
                    self._sink.write(item)
                if self._slice:
                    # The next piece in a turn of its own, so that it is a segment of its own.
                    self._call = self._clock.callLater(0, self._pump)
                    break
            elif self._sink.connected:
                self._sink.doWrite()
                self._end(item)
        self._read()

    def _end(self, fault: Fault | None) -> None:
        what = fault.what if fault is not None else "half-close"
        if fault is not None:
            self._pair.hit(fault)
        if what == "hole":
            self._pair.hole = True
            return
        self.stop()
        if what == "reset" or (what != "stall" and not self._pair.hole):
            {"reset": self._pair.reset, "fin": self._pair.fin, "half-close": self._sink.loseWriteConnection}[what]()

    def _read(self) -> None:
        if self._deaf or self._waiting >= QUEUED:
            self._source.pauseProducing()
        else:
            self._source.resumeProducing()

    def pauseProducing(self) -> None:
        """The sink is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """The sink has room."""
        self._full = False
        self._pump()

    def stopProducing(self) -> None:
        """The sink is gone."""
        self.stop()


@implementer(IHalfCloseableProtocol)
class End(Protocol):
    """One end of one connection."""

    transport: Any

    def __init__(self, pair: Pair, flow: Flow) -> None:
        """@param flow: of what comes from here."""
        self.pair = pair
        self.flow = flow

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.pauseProducing()
        self.pair.connected()

    def dataReceived(self, data: bytes) -> None:
        self.flow.received(data)

    def readConnectionLost(self) -> None:
        self.flow.ended()

    def writeConnectionLost(self) -> None:
        """Its other half may go on."""

    def connectionLost(self, reason: Any = None) -> None:
        self.pair.lost(self, reason)


class Pair:
    """One connection: both ends and both directions."""

    def __init__(self, reactor: Any, number: int, plan: Iterable[Fault], hit: Callable[[Fault], None]) -> None:
        self.reactor = reactor
        self.hit = hit
        self.hole = False
        self._ending = False
        mine = of_connection(plan, number)
        self.flows = {way: Flow(self, way, mine) for way in (UP, DOWN)}
        self.ends = [End(self, self.flows[UP]), End(self, self.flows[DOWN])]

    @property
    def joined(self) -> bool:
        """Both ends are connected."""
        return all(end.transport is not None and end.transport.connected for end in self.ends)

    def connected(self) -> None:
        """One end more."""
        near, far = (end.transport for end in self.ends)
        if near is not None and far is not None:
            self.flows[UP].start(near, far)
            self.flows[DOWN].start(far, near)

    def lost(self, end: End, reason: Any) -> None:
        """An end is gone: so is the other, unless nothing passes."""
        end.flow.stop()
        if not self.hole and not self._ending:
            self.reset()

    def reset(self, failure: Any = None) -> None:
        """Reset what is still there."""
        for end in self.ends:
            end.flow.stop()
            if end.transport is not None:
                end.transport.abortConnection()

    def fin(self) -> None:
        """End both in good order."""
        self._ending = True
        for end in self.ends:
            end.flow.stop()
            end.transport.unregisterProducer()
            end.transport.loseConnection()


class FaultProxy(Factory):
    """The port that connections with faults come to; every method runs in the reactor.

    @ivar pairs: all connections so far.
    @ivar hits: faults that happened.
    """

    noisy = False

    def __init__(self, reactor: Any, target: int, plan: Iterable[Fault] = ()) -> None:
        """@param target: a port of 127.0.0.1."""
        self.reactor = reactor
        self.plan = list(plan)
        self.pairs: list[Pair] = []
        self.hits: list[Fault] = []
        self._target = target
        self._port = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port: int = self._port.getHost().port

    def buildProtocol(self, addr: Any) -> Protocol:
        pair = Pair(self.reactor, len(self.pairs), self.plan, self.hits.append)
        self.pairs.append(pair)
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self._target)
        endpoint.connect(Factory.forProtocol(lambda: pair.ends[1])).addErrback(pair.reset)
        return pair.ends[0]

    def now(self, fault: Fault) -> None:
        """Do it to every open connection."""
        for pair in self.pairs:
            if fault.what == "reset":
                pair.reset()
            elif pair.joined and fault.connection in (None, self.pairs.index(pair)):
                pair.flows[fault.way].stream.now(fault)
                pair.flows[fault.way].received(b"")

    def cut(self) -> None:
        """Accept nothing more, and reset what there is."""
        self._port.stopListening()
        for pair in self.pairs:
            pair.reset()


class Faults:
    """A L{FaultProxy} in a thread of its own, until L{close}.

    @ivar port: connect here, on 127.0.0.1.
    """

    def __init__(self, target: int, *plan: Fault) -> None:
        self._reactor = EPollReactor()
        self._proxy = FaultProxy(self._reactor, target, plan)
        self.port = self._proxy.port
        self._thread = threading.Thread(target=self._reactor.run, args=(False,), daemon=True)
        self._thread.start()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        done = threading.Event()

        def call() -> None:
            try:
                function(*arguments)
            finally:
                # Behind what Twisted itself does in the next turn, such as closing what was aborted.
                self._reactor.callLater(0, self._reactor.callLater, 0, done.set)

        self._reactor.callFromThread(call)
        assert done.wait(JOIN_SECONDS)

    def passed(self, way: str = UP) -> int:
        """Bytes of all connections in one direction."""
        return sum(pair.flows[way].stream.passed for pair in self._proxy.pairs)

    @property
    def connections(self) -> int:
        """How many there were."""
        return len(self._proxy.pairs)

    def hit(self, what: str) -> bool:
        """Such a fault of the plan has happened."""
        return any(fault.what == what for fault in list(self._proxy.hits))

    def plan(self, *plan: Fault) -> None:
        """For the connections that come."""
        self._call(self._proxy.plan.__setitem__, slice(None), plan)

    def now(self, what: str, way: str = UP, value: float = 0) -> None:
        """Do it to every open connection."""
        self._call(self._proxy.now, Fault(what, way, 0, value))

    def cut(self) -> None:
        """Accept nothing more, and reset every connection."""
        self._call(self._proxy.cut)

    def close(self) -> None:
        """Cut, and end the thread."""
        if self._thread.is_alive():
            self.cut()
            self._reactor.callFromThread(self._reactor.stop)
            self._thread.join(JOIN_SECONDS)


class Commands(LineOnlyReceiver):
    """Faults that come as lines."""

    delimiter = b"\n"

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    def lineReceived(self, line: bytes) -> None:
        self._proxy.now(Fault(**json.loads(line)))

    def connectionLost(self, reason: Any = None) -> None:
        self._proxy.reactor.stop()


def main(arguments: list[str]) -> None:
    """As a process."""
    from twisted.internet import reactor

    target, *plan = arguments
    proxy = FaultProxy(reactor, int(target), [Fault(**fault) for text in plan for fault in json.loads(text)])
    print(proxy.port, flush=True)
    StandardIO(Commands(proxy))
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1:])
