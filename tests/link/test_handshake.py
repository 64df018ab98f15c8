"""Who is let in and who is not, before any frame: both ends, on a socket of their own and through Twisted's TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as process_reactor
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from criu_relay.errors import RelayError
from criu_relay.interfaces import Counters, Owner
from criu_relay.link.connection import GREETING_SECONDS, LinkConnection
from criu_relay.link.credentials import Credentials
from criu_relay.link.receiver import Receiver
from criu_relay.link.states import State
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.link_pb2 import Frame
from tests.flow.support import FakeReactor, no_descriptor_left
from tests.link.support import PROXY_ID, Intake, Wire, hello
from tests.support.certificates import CLIENT, DAY, SERVER, Authority, Shown

reactor: Any = process_reactor

TURNS = 400
"""More than any handshake takes."""

HOST = "cache.example"


class Log:
    """What was logged."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @property
    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.events if "reason" in event]

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    globalLogPublisher.addObserver(made)
    yield made
    globalLogPublisher.removeObserver(made)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_descriptor_left():
        yield


class Reactor(FakeReactor, Clock):
    """Turned by hand."""

    def __init__(self) -> None:
        FakeReactor.__init__(self)
        Clock.__init__(self)


class SocketTransport:
    """A transport with a socket, which is all that is done with it under TLS.

    @ivar ended: "lose" or "abort" when our end ended it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.ended = ""
        self.reading = True

    def getHandle(self) -> socket.socket:
        return self.connection

    def pauseProducing(self) -> None:
        self.reading = False

    def startWriting(self) -> None: ...

    def getPeer(self) -> str:
        return "a test"

    def loseConnection(self) -> None:
        self.ended = self.ended or "lose"
        self.connection.close()

    def abortConnection(self) -> None:
        self.ended = self.ended or "abort"
        self.connection.close()


class Written:
    """A transport without a socket: it keeps what is written to it.

    @ivar ended: "lose" or "abort" when our end ended it.
    """

    def __init__(self) -> None:
        self.out = bytearray()
        self.ended = ""

    def write(self, data: bytes) -> None:
        self.out += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """It is never full, so that a push producer goes on by itself."""
        assert streaming

    def unregisterProducer(self) -> None: ...

    def pull(self) -> bytes:
        """What was written since."""
        data = bytes(self.out)
        self.out.clear()
        return data

    def loseConnection(self) -> None:
        self.ended = self.ended or "lose"

    def abortConnection(self) -> None:
        self.ended = self.ended or "abort"

    def getPeer(self) -> str:
        return "a test"


class End:
    """A link end that keeps what comes."""

    def __init__(self) -> None:
        self.ups = 0
        self.frames: list[Frame] = []
        self.downs: list[RelayError] = []

    def link_up(self, connection: LinkConnection) -> None:
        self.ups += 1

    def frame_received(self, connection: LinkConnection, frame: Frame) -> None:
        self.frames.append(frame)

    def turn_ended(self, connection: LinkConnection) -> None: ...

    def next_frame(self) -> None: ...

    def link_down(self, connection: LinkConnection, reason: RelayError) -> None:
        self.downs.append(reason)


class Own:
    """One of our ends with a socket whose other end is the peer's; "own" and "twisted" are its two ways."""

    def __init__(self, way: str, credentials: Credentials | None, role: Any) -> None:
        self.way = way = way if credentials else "plain"
        self.end = End()
        self.reactor = Reactor()
        self.connection = LinkConnection(
            self.reactor, self.reactor, hello(role, PROXY_ID), self.end, credentials=credentials
        )
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self._ours = ours
        made = {"own": lambda: SocketTransport(ours), "twisted": Written, "plain": Wire}
        self.transport: Any = made[way]()
        self._lost = False
        self.connection.makeConnection(self.transport)

    def turn(self) -> None:
        """One turn of the reactor."""
        self.reactor.advance(0)
        if self.way == "own":
            for reader in list(self.reactor.readers):
                reader.doRead()
            for writer in list(self.reactor.writers):
                writer.doWrite()
            if self.transport.ended and not self._lost:
                self._lose()
            return
        self._pass()

    def _pass(self) -> None:
        """What a reactor does for a transport without a socket."""
        # Twisted's own pull producers are driven by the reactor of the process.
        reactor.iterate(0)
        if (data := self.transport.pull()) and self._ours.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._ours.sendall(data)
        if self.transport.ended and not self._lost:
            self._lose()
        if self._lost:
            return
        try:
            data = self._ours.recv(1 << 16)
        except BlockingIOError:
            return
        if data:
            self.connection.dataReceived(data)
        else:
            self._lose()

    def _lose(self) -> None:
        self._lost = True
        self._ours.close()
        self.connection.connectionLost()

    def close(self) -> None:
        self.peer.close()
        for _ in range(3):
            self.turn()
        self._ours.close()
        assert self.connection.machine.state is State.CLOSED


class Joined:
    """Two of our ends, and what passes between them."""

    def __init__(self, way: str, proxy: Credentials | None, cache: Credentials | None) -> None:
        self.proxy = Own(way, proxy, link_pb2.PROXY)
        self.cache = Own(way, cache, link_pb2.CACHE)
        self.ends = [self.proxy, self.cache]

    def run(self, done: Callable[[], bool] = lambda: False) -> Joined:
        """Until it is done or nothing happens any more."""
        for _ in range(TURNS):
            for here, there in ((self.proxy, self.cache), (self.cache, self.proxy)):
                here.turn()
                self._carry(here.peer, there.peer)
            if done():
                break
        return self

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
        except (BlockingIOError, ConnectionResetError):
            return
        try:
            if data:
                sink.send(data)
            else:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    @property
    def up(self) -> bool:
        return self.proxy.connection.up and self.cache.connection.up

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.fixture(params=["own", "twisted"])
def way(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "other")


def joined(way: str, proxy: Shown, cache: Shown, allowed: tuple[str, ...] = (), host: str = HOST) -> Joined:
    return Joined(way, proxy.credentials(True, host), cache.credentials(False, *allowed))


def test_both_sides_know_each_other(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a"), ca.issue(HOST)).run()
    assert pair.up
    assert pair.proxy.connection.peer == Owner(HOST, PROXY_ID)
    assert pair.cache.connection.peer == Owner("node-a", PROXY_ID)
    assert pair.cache.connection.status()["name"] == "node-a"
    io = {"own": "tls send, tls read", "twisted": "twisted tls"}[way]
    assert pair.proxy.connection.status()["io"] == pair.cache.connection.status()["io"] == io
    assert pair.proxy.connection._channel is not None
    for end in pair.ends:
        session = end.connection._handshake.session  # type: ignore[union-attr]
        assert session.get_protocol_version_name() == "TLSv1.3"
        assert "GCM" in str(session.get_cipher_name())
    pair.close()


def test_addresses_and_patterns_are_names(way: str, ca: Authority) -> None:
    cache = ca.issue("c", names=["x.example", "192.0.2.7", "2001:db8::7"])
    proxy = ca.issue("p", names=["*.nodes.example", "node-b.example"])
    for host in ("192.0.2.7", "2001:db8::7", "x.example"):
        pair = joined(way, proxy, cache, ("a.nodes.example", "other.example"), host).run()
        assert pair.up
        assert pair.cache.connection.peer == Owner("a.nodes.example", PROXY_ID)
        assert pair.proxy.connection.peer == Owner(host, PROXY_ID)
        pair.close()


def test_a_chain_with_a_ca_between(way: str, ca: Authority, tmp_path: Path) -> None:
    between = Authority(tmp_path, "between", ca)
    pair = joined(way, between.issue("node-a", chain=[between], believes=ca), ca.issue(HOST)).run()
    assert pair.up
    pair.close()


def test_a_certificate_without_purposes(way: str, ca: Authority) -> None:
    """Extensions that say nothing forbid nothing."""
    pair = joined(way, ca.issue("node-a", purposes=None), ca.issue(HOST, purposes=None)).run()
    assert pair.up
    pair.close()


# Not let in: what it shows, and what is said of it. {name} is the right name of the side.

WRONG: dict[str, tuple[Callable[[Authority, Authority, str], Shown], str]] = {
    "wrong CA": (
        lambda ca, other, name: other.issue(name, file="wrong", believes=ca),
        "from a CA that --tls-ca does not have",
    ),
    "expired": (lambda ca, other, name: ca.issue(name, file="wrong", begins=-2 * DAY, ends=-DAY), "it has expired"),
    "not yet valid": (
        lambda ca, other, name: ca.issue(name, file="wrong", begins=DAY, ends=2 * DAY),
        "it is not valid yet",
    ),
    "wrong name": (lambda ca, other, name: ca.issue("else.example", file="wrong"), "it has else.example; "),
    "name without subjectAltName": (
        lambda ca, other, name: ca.issue(name, names=[], file="wrong"),
        "no DNS name and no address as subjectAltName",
    ),
    "no signatures": (
        lambda ca, other, name: ca.issue(name, file="wrong", may_sign=False),
        "its key usage does not allow signatures",
    ),
    "a name with line ends": (
        lambda ca, other, name: ca.issue("x", names=["a\nb"], file="wrong"),
        "no DNS name and no address as subjectAltName",
    ),
}


def refused(pair: Joined, log: Log, by: Own, reason: str) -> None:
    """One line here says why; not a frame was taken there."""
    pair.run(lambda: not any(end.connection.open for end in pair.ends))
    assert not by.connection.open
    [line] = [found for found in log.reasons if reason in found]
    assert "\n" not in line
    assert by.end.ups == 0
    assert by.end.frames == []
    assert by.connection.peer is None
    assert by.transport.ended == "lose"
    assert all(end.end.ups == 0 for end in pair.ends if end is pair.cache)
    for end in pair.ends:
        end.connection.bye("the test is over")
    pair.close()


@pytest.mark.parametrize("kind", WRONG)
def test_a_proxy_that_is_not_let_in(way: str, kind: str, ca: Authority, other: Authority, log: Log) -> None:
    make, reason = WRONG[kind]
    pair = joined(way, make(ca, other, "node-a"), ca.issue(HOST), ("node-a", "node-b"))
    refused(pair, log, pair.cache, reason)


@pytest.mark.parametrize("kind", WRONG)
def test_a_cache_that_is_not_believed(way: str, kind: str, ca: Authority, other: Authority, log: Log) -> None:
    make, reason = WRONG[kind]
    pair = joined(way, ca.issue("node-a"), make(ca, other, HOST))
    refused(pair, log, pair.proxy, reason)


def test_an_address_that_is_only_a_common_name(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a"), ca.issue("127.0.0.1", names=[]), host="127.0.0.1")
    refused(
        pair, log, pair.proxy, "no DNS name and no address as subjectAltName; --tls-peer and --link allow 127.0.0.1"
    )


def test_an_address_that_is_a_dns_name(way: str, ca: Authority, log: Log, tmp_path: Path) -> None:
    pair = joined(way, ca.issue("node-a"), ca.issue("x", names=["x.example", "192.0.2.2"]), host="127.0.0.1")
    refused(pair, log, pair.proxy, "it has x.example, 192.0.2.2; ")


def test_a_certificate_of_a_server_as_a_clients(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a", purposes=[SERVER]), ca.issue(HOST))
    refused(pair, log, pair.cache, "its extended key usage does not allow this side of a link")


def test_a_certificate_of_a_client_as_a_servers(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a"), ca.issue(HOST, purposes=[CLIENT]))
    refused(pair, log, pair.proxy, "its extended key usage does not allow this side of a link")


def test_not_on_the_list(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a"), ca.issue(HOST), ("node-b", "node-c"))
    refused(pair, log, pair.cache, "it has node-a; --tls-peer and --link allow node-b, node-c")


def test_without_a_list_it_needs_a_name_all_the_same(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a", names=[]), ca.issue(HOST))
    refused(pair, log, pair.cache, "no DNS name and no address as subjectAltName")


def test_the_refused_side_is_told(way: str, ca: Authority, log: Log) -> None:
    pair = joined(way, ca.issue("node-a", begins=-2 * DAY, ends=-DAY), ca.issue(HOST))
    pair.run(lambda: not pair.proxy.connection.open)
    assert any("the peer refuses our certificate" in line and "expired" in line for line in log.reasons)
    pair.close()


# Not our own ends


class Foreign:
    """A client or server of Python's own TLS at the other end of one of our ends."""

    def __init__(self, own: Own, context: ssl.SSLContext, server: bool) -> None:
        self.own = own
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=server)
        self.error: ssl.SSLError | None = None
        self.shaken = False
        self.plain = b""

    def turn(self) -> None:
        self.own.turn()
        data = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            data = self.own.peer.recv(1 << 16)
        self._in.write(data)
        if self.error:
            return
        try:
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
            self.plain += self.tls.read(1 << 16)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            self.error = error
        with contextlib.suppress(OSError):
            self.own.peer.sendall(self._out.read())

    def run(self) -> Foreign:
        for _ in range(TURNS):
            self.turn()
            if not self.own.connection.open:
                break
        return self


def foreign(ca: Authority, shown: Shown | None, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca.path)
    if server:
        context.verify_mode = ssl.CERT_REQUIRED
    if shown:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


def cache_end(way: str, ca: Authority) -> Own:
    return Own(way, ca.issue(HOST).credentials(False), link_pb2.CACHE)


def not_taken(own: Own, log: Log, reason: str) -> None:
    assert not own.connection.open
    assert [line for line in log.reasons if reason in line], log.reasons
    assert own.end.ups == 0
    assert own.end.frames == []
    own.close()


def test_no_client_certificate(way: str, ca: Authority, log: Log) -> None:
    own = cache_end(way, ca)
    Foreign(own, foreign(ca, None, server=False), server=False).run()
    not_taken(own, log, "the peer shows no certificate")


@pytest.mark.parametrize("server", [False, True])
def test_tls_1_2(way: str, ca: Authority, log: Log, server: bool) -> None:
    own = Own(way, ca.issue("node-a").credentials(True, HOST), link_pb2.PROXY) if server else cache_end(way, ca)
    context = foreign(ca, ca.issue(HOST if server else "node-a", file="foreign"), server)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    Foreign(own, context, server).run()
    not_taken(own, log, "the peer does not speak TLS 1.3")


def test_a_session_is_not_resumed(way: str, ca: Authority) -> None:
    """Whoever was let in once is verified again the next time."""
    context = foreign(ca, ca.issue("node-a"), server=False)
    credentials = ca.issue(HOST).credentials(False)
    first = Foreign(Own(way, credentials, link_pb2.CACHE), context, False)
    for _ in range(20):
        first.turn()
    assert first.shaken
    assert first.plain
    session = first.tls.session
    second = Foreign(Own(way, credentials, link_pb2.CACHE), context, False)
    if session is not None:
        second.tls.session = session
    for _ in range(20):
        second.turn()
    assert second.plain
    assert not second.tls.session_reused
    for one in (first, second):
        one.own.close()


def test_plain_to_tls(way: str, ca: Authority, log: Log) -> None:
    own = cache_end(way, ca)
    own.peer.sendall(wire.encode(Frame(hello=hello(link_pb2.PROXY))))
    for _ in range(TURNS):
        own.turn()
    not_taken(own, log, "the peer does not speak TLS")


def test_http_to_tls(way: str, ca: Authority, log: Log) -> None:
    own = cache_end(way, ca)
    own.peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(TURNS):
        own.turn()
    not_taken(own, log, "the peer does not speak TLS")


def test_a_plain_proxy_at_a_cache_with_tls(way: str, ca: Authority, log: Log) -> None:
    pair = Joined(way, None, ca.issue(HOST).credentials(False)).run()
    assert any("the peer does not speak TLS" in line for line in log.reasons)
    pair.proxy.peer.close()
    pair.proxy.turn()
    assert any("has not said hello, its log says why" in line for line in log.reasons)
    assert pair.proxy.end.ups == pair.cache.end.ups == 0
    pair.close()


def test_a_proxy_with_tls_at_a_plain_cache(way: str, ca: Authority, log: Log) -> None:
    pair = Joined(way, ca.issue("node-a").credentials(True, HOST), None).run()
    assert any("the peer does not speak TLS" in line for line in log.reasons)
    assert any("it looks like TLS" in line for line in log.reasons)
    assert pair.proxy.end.ups == pair.cache.end.ups == 0
    pair.close()


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_a_stalled_handshake(way: str, ca: Authority, log: Log, said: bytes) -> None:
    own = cache_end(way, ca)
    own.peer.sendall(said)
    own.turn()
    own.reactor.advance(GREETING_SECONDS - 0.1)
    own.turn()
    assert own.connection.open
    own.reactor.advance(0.2)
    own.turn()
    not_taken(own, log, "did not finish the TLS handshake in 10 s")
    assert own.reactor.getDelayedCalls() == []


def test_a_peer_that_is_silent_after_the_handshake(way: str, ca: Authority, log: Log) -> None:
    own = cache_end(way, ca)
    peer = Foreign(own, foreign(ca, ca.issue("node-a"), server=False), False)
    for _ in range(20):
        peer.turn()
    assert own.connection.machine.state is State.GREETING
    own.reactor.advance(GREETING_SECONDS + 0.1)
    for _ in range(20):
        peer.turn()
    assert any("did not say hello in 10 s" in line for line in log.reasons)
    assert b"did not say hello" in peer.plain
    own.close()


@pytest.mark.parametrize("after", [0, 1, 100, 1000])
def test_a_peer_that_goes_away(way: str, ca: Authority, log: Log, after: int) -> None:
    """At any place of the handshake: one line, nothing left."""
    pair = joined(way, ca.issue("node-a"), ca.issue(HOST))
    pair.proxy.turn()
    data = pair.proxy.peer.recv(1 << 16)
    pair.cache.peer.sendall(data[:after])
    pair.cache.turn()
    pair.cache.peer.close()
    for _ in range(5):
        pair.cache.turn()
    assert not pair.cache.connection.open
    assert any("the peer gave the TLS handshake up" in line for line in log.reasons)
    pair.proxy.close()
    pair.cache.close()


def test_bytes_of_chance(way: str, ca: Authority, log: Log) -> None:
    for _ in range(20):
        own = cache_end(way, ca)
        own.peer.sendall(b"\x16\x03\x01\x00\x40" + os.urandom(64) + os.urandom(200))
        for _ in range(5):
            own.turn()
        own.close()
        assert own.end.ups == 0
    assert len(log.reasons) == 20


def test_frames_belong_to_the_name_of_the_certificate(way: str, ca: Authority) -> None:
    """Two proxies with the same instance and different names are two owners."""
    intake = Intake()
    owners = []
    for name in ("node-a", "node-b"):
        pair = Joined(way, ca.issue(name).credentials(True, HOST), ca.issue(HOST).credentials(False))
        pair.cache.connection._end = Receiver(intake, Counters(), Clock())  # type: ignore[assignment]
        pair.run(lambda pair=pair: pair.up)
        body = link_pb2.Namespace(migration=b"m" * 16, name="web", copy=False)
        pair.proxy.connection.send(Frame(namespace=body))
        pair.run()
        begun = [call for call in intake.calls if call[0] == "begin"]
        owners.append(begun[-1][1])
        assert begun[-1][1] == Owner(name, PROXY_ID)
        pair.close()
    assert len(set(owners)) == 2


def test_bye_in_the_middle_of_a_handshake(way: str, ca: Authority) -> None:
    own = cache_end(way, ca)
    own.connection.bye("the daemon stops")
    assert not own.connection.open
    assert own.transport.ended == "lose"
    own.close()
