"""One connection between proxy and cache: hello, frames both ways, and how it ends."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from criu_relay.errors import LinkEnded, LinkLost, ProtocolError, RelayError
from criu_relay.flow.addresses import shown
from criu_relay.flow.channel import Channel
from criu_relay.flow.frames import OutFrame
from criu_relay.flow.sockets import USER_TIMEOUT
from criu_relay.interfaces import Owner
from criu_relay.link.credentials import Credentials
from criu_relay.link.handshake import Handshake
from criu_relay.link.liveness import SILENT_SECONDS, Liveness
from criu_relay.link.states import TABLE, Event, State
from criu_relay.link.transports import Ownership, open_channel
from criu_relay.machine import Machine
from criu_relay.wire import link as wire
from criu_relay.wire.link_pb2 import Frame, Hello

OF_THE_LINK = frozenset({"hello", "ping", "pong", "bye", "error"})
"""Frames that say something of the link itself; an error may be of a migration."""

GREETING_SECONDS = 10.0
"""A peer goes through TLS and says hello at once; one that does not holds a connection for no longer than this."""

FLUSH_SECONDS = 5.0
"""An error or bye frame is worth this long to a peer that does not read."""

QUEUED_CONTROL_FRAMES = 1 << 16
"""Control frames that wait for a peer that does not read: more is a peer that never will."""

QUEUED_CONTROL_BYTES = 64 << 20
"""Bytes of those and of what was read back for the peer: a proxy asks for 1 MiB of an image at a time, and a dump reads
a few images of its parent at once."""

WITHOUT_TLS = "local"
"""The name of every peer without TLS."""


class LinkEnd(Protocol):
    """What a daemon does with its end of a link."""

    def link_up(self, connection: LinkConnection) -> None:
        """The hellos are exchanged."""

    def frame_received(self, connection: LinkConnection, frame: Frame) -> wire.PayloadSink | None:
        """Not hello, ping, pong or bye; the end's until it returns. RelayError: the peer is told, the link closed."""

    def turn_ended(self, connection: LinkConnection) -> None:
        """All frames that came in one turn were handled."""

    def next_frame(self) -> OutFrame | None:
        """A frame of image data to be sent when no control frame waits."""

    def link_down(self, connection: LinkConnection, reason: RelayError) -> None:
        """A connection that was up is over."""


class LinkConnection(TwistedProtocol):
    """See the module. A thin shell: frames are the codec's, their meaning is the end's.

    @ivar peer: who is there, once up.
    @ivar session: of the peer's hello; C{peer_window}: the same.
    @ivar payload_bytes: payload, of images, since the hello.
    @ivar reason: why it ended; None: it has not.
    """

    log = Logger()
    transport: Any

    def __init__(
        self,
        reactor: Any,
        clock: IReactorTime,
        hello: Hello,
        end: LinkEnd,
        owned: Ownership | None = None,
        user_timeout: float = USER_TIMEOUT,
        credentials: Credentials | None = None,
    ) -> None:
        """
        @param owned: how its transport is ended.
        @param user_timeout: seconds without an acknowledgement of the peer's kernel that end it.
        @param credentials: for TLS; None: the link is plain.
        """
        self._credentials = credentials
        self._handshake: Handshake | None = None
        self._user_timeout = user_timeout
        self._owned = owned or Ownership()
        self._reactor = reactor
        self._clock = clock
        self._hello = hello
        self._end = end
        self._reader = wire.FrameReader(self)
        self._control: deque[OutFrame] = deque()
        self._queued = 0
        self._accepted = False
        self.reason: RelayError | None = None
        self._timer: Any = None
        self.machine: Machine[State, Event] = Machine("link", TABLE, State.SECURING, lambda state: None)
        self.peer: Owner | None = None
        self.session = b""
        self.peer_window = 0
        self.peer_name = ""
        self.since = 0.0
        self.payload_bytes = 0
        self._liveness = Liveness(clock, self._ping, self._silent_for_long)
        self._channel: Channel

    @property
    def up(self) -> bool:
        """Frames may be sent."""
        return self.machine.state is State.UP

    @property
    def open(self) -> bool:
        """Not over yet."""
        return self.machine.state is not State.CLOSED

    @property
    def io(self) -> str:
        """How bytes move, for `status`."""
        return self._channel.path

    @property
    def waiting(self) -> bool:
        """It has not come so far that frames are exchanged."""
        return self.machine.state in (State.SECURING, State.GREETING)

    # Twisted's side

    def connectionMade(self) -> None:
        """Choose how bytes move, make sure of the peer, and say hello."""
        self.since = self._clock.seconds()
        self._timer = self._clock.callLater(GREETING_SECONDS, self._silent)
        self._handshake = self._credentials.handshake() if self._credentials else None
        self._channel = open_channel(self._reactor, self.transport, self, self._handshake, self._user_timeout)
        self._channel.start()

    def dataReceived(self, data: bytes) -> None:
        """The way for transports without a socket of their own."""
        self._channel.data_received(data)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """It is over, whoever ended it."""
        if reason.value is not None:
            self._channel.connection_lost(reason.value)
        self._lost(reason.getErrorMessage())

    # ChannelUser, which the codec and the end have the rest of

    def secured(self) -> None:
        """The peer is who it must be, or the link is plain."""
        self.machine.feed(Event.SECURED)
        self.send(Frame(hello=self._hello))

    def ended(self, error: BaseException | None) -> None:
        """The channel is over: the peer ended it, or it broke."""
        if self._handshake and (self.machine.state is State.SECURING or isinstance(error, SSL.Error)):
            self.refuse(self._handshake.explain(error))
            return
        why = getattr(error, "strerror", None) or (str(error) if error else "the peer closed it")
        self._lost(why)
        self._owned.abort(self.transport)

    # FrameTarget: received bytes on their way to the codec

    def buffers(self) -> list[memoryview]:
        """See L{wire.FrameReader.buffers}."""
        return self._reader.buffers()

    @property
    def awaited(self) -> int:
        """See L{wire.FrameReader.awaited}."""
        return self._reader.awaited

    def feed(self, data: bytes) -> None:
        """Bytes from a transport."""
        self._liveness.heard()
        if self.machine.state in (State.GREETING, State.UP):
            try:
                self._reader.feed(data)
            except RelayError as error:
                self.fail(error)

    def received(self, count: int) -> None:
        """Bytes that were received into our buffers."""
        self._liveness.heard()
        if self.machine.state in (State.GREETING, State.UP):
            try:
                self._reader.received(count)
            except RelayError as error:
                self.fail(error)

    def turn_ended(self) -> None:
        """All that came in this turn was handled."""
        if self.up:
            self._end.turn_ended(self)

    # The codec's side

    def frame_received(self, frame: Frame) -> wire.PayloadSink | None:
        """A header is complete."""
        kind = frame.WhichOneof("body")
        if self.up and kind not in OF_THE_LINK:
            return self._end.frame_received(self, frame)
        if self.machine.state is State.GREETING:
            if kind == "error":
                raise LinkLost(f"the peer refuses the link: {frame.error.reason}")
            if kind != "hello":
                raise ProtocolError(f"the peer's first frame is {kind}, not hello")
            self._greet(frame.hello)
        elif not self.up:
            pass
        elif kind == "ping":
            self.send(Frame(pong={"nonce": frame.ping.nonce}))
        elif kind == "pong":
            self._liveness.answered(frame.pong.nonce)
        elif kind == "bye":
            self._bye(f"the peer said bye: {frame.bye.reason}")
        elif kind == "hello":
            raise ProtocolError("the peer said hello twice")
        elif frame.error.HasField("migration"):
            return self._end.frame_received(self, frame)
        else:
            self._bye(f"the peer gives the link up: {frame.error.reason}")
        return None

    # What the end does

    def send(self, frame: Frame, payload: bytes | None = None) -> None:
        """Send a control frame, before any image data that waits."""
        if self.machine.state in (State.CLOSING, State.CLOSED):
            return
        if payload is not None:
            frame.payload = len(payload)
        if len(self._control) >= QUEUED_CONTROL_FRAMES or self._queued > QUEUED_CONTROL_BYTES:
            self._over(LinkLost("the peer does not read"))
            self._owned.abort(self.transport)
            return
        self._control.append(OutFrame(wire.encode(frame), payload))
        self._queued += self._control[-1].size
        self._channel.wake()

    def wake(self) -> None:
        """The end has image data to send."""
        if self.up:
            self._channel.wake()

    def next_frame(self) -> OutFrame | None:
        """What the writer sends next."""
        if self._control:
            frame = self._control.popleft()
            self._queued -= frame.size
            return frame
        return self._end.next_frame() if self.up else None

    def drained(self) -> None:
        """Everything was handed to the kernel (or the transport)."""
        if self.machine.state is State.CLOSING:
            self._clock.callLater(0, self._flushed)

    def fail(self, error: RelayError) -> None:
        """The peer is at fault, or we cannot go on: say why, then close."""
        if not self.machine.accepts(Event.FAIL):
            return
        self.log.error("link to {peer}: {reason}", peer=self.describe(), reason=error.reason)
        self.send(Frame(error={"reason": wire.clip(error.reason)}))
        self.reason = error
        self._close(Event.FAIL)

    def bye(self, reason: str) -> None:
        """End it in good order."""
        if self.machine.accepts(Event.BYE):
            self.send(Frame(bye={"reason": wire.clip(reason)}))
            self._bye(reason)
        elif self.machine.state is State.SECURING:
            self._over(LinkLost(reason))
            self._owned.lose(self.transport)

    def refuse(self, reason: RelayError) -> None:
        """This peer gets nothing from us."""
        if self.open:
            self.log.error("link to {peer} is refused: {reason}", peer=self.describe(), reason=reason.reason)
            self._over(reason)
            self._owned.lose(self.transport)

    def status(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "name": self.peer_name,
            "instance": self.peer.instance.hex() if self.peer else "",
            "address": shown(self.transport.getPeer()),
            "since_s": self._clock.seconds() - self.since,
            "bytes": self.payload_bytes,
            "io": self.io,
            "round_trip_ms": None if (trip := self._liveness.round_trip) is None else trip * 1000,
        }

    def describe(self) -> str:
        """The peer, for people."""
        return self.peer_name or (shown(self.transport.getPeer()) if self.transport else "nobody")

    # How it ends

    def _greet(self, hello: Hello) -> None:
        if hello.version != wire.VERSION:
            raise ProtocolError(f"the peer speaks version {hello.version} of the link, not {wire.VERSION}")
        if hello.role == self._hello.role:
            raise ProtocolError("both ends of the link are of the same kind: connect a proxy to a cache")
        self._cancel_timer()
        secured = self._handshake.peer if self._handshake else ""
        self.peer = Owner(secured or WITHOUT_TLS, hello.instance)
        self.session = hello.session
        self.peer_window = hello.window
        self.peer_name = secured or hello.name or hello.instance.hex()[:8]
        self.machine.feed(Event.HELLO)
        self.log.info("link to {peer} is up ({io})", peer=self.describe(), io=self.io)
        self._accepted = True
        try:
            self._end.link_up(self)
        except RelayError:
            self._accepted = False
            raise
        if self.up:
            self._liveness.start()

    def _silent(self) -> None:
        self._timer = None
        if self.machine.state is State.SECURING:
            self.refuse(ProtocolError(f"the peer did not finish the TLS handshake in {GREETING_SECONDS:.0f} s"))
        self.fail(ProtocolError(f"the peer did not say hello in {GREETING_SECONDS:.0f} s"))

    def _ping(self, frame: Frame) -> None:
        self._channel.look()
        self.send(frame)

    def _silent_for_long(self) -> None:
        self._lost(f"the peer was silent for {SILENT_SECONDS:.0f} s")
        self._owned.abort(self.transport)

    def _bye(self, reason: str) -> None:
        if self.machine.accepts(Event.BYE):
            self.reason = LinkEnded(reason)
            self._close(Event.BYE)

    def _close(self, event: Event) -> None:
        was_up = self.up and self._accepted
        self._cancel_timer()
        self.machine.feed(event)
        self._timer = self._clock.callLater(FLUSH_SECONDS, self._abort)
        self._channel.stop_reading()
        if was_up:
            assert self.reason is not None
            self._end.link_down(self, self.reason)
        self._channel.flush()

    def _flushed(self) -> None:
        if self.machine.state is State.CLOSING:
            self._channel.stop()
            self._owned.lose(self.transport)

    def _abort(self) -> None:
        self._timer = None
        self._channel.stop()
        self._owned.abort(self.transport)

    def _lost(self, why: str) -> None:
        if self.machine.state is State.GREETING:
            why += "; the peer has not said hello, its log says why"
        self._over(LinkLost(f"the link is lost: {why}"))

    def _over(self, reason: RelayError) -> None:
        before = self.machine.state
        if before is State.CLOSED:
            return
        self.machine.feed(Event.LOST)
        self.reason = self.reason or reason
        self._cancel_timer()
        self._channel.stop()
        if before in (State.GREETING, State.UP):
            self.log.warn("{reason} (peer {peer})", reason=reason.reason, peer=self.describe())
        if before is State.UP and self._accepted:
            self._end.link_down(self, reason)

    def _cancel_timer(self) -> None:
        self._liveness.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
