"""The proxy's end of the link: what carries migrations away, over as many connections as it takes."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from criu_relay.errors import Aborted, Cause, LinkEnded, LinkLost, ProtocolError, RelayError
from criu_relay.flow.frames import OutFrame
from criu_relay.interfaces import Counters, IArena, IOutgoing, IOutlet
from criu_relay.link.connection import LinkConnection
from criu_relay.link.fetch import Fetches
from criu_relay.link.images import QueuedImage
from criu_relay.link.outgoing import OutgoingMigration
from criu_relay.link.pace import Pace
from criu_relay.link.sent import Sent, SentLog
from criu_relay.link.turns import Turns
from criu_relay.link.window import Window
from criu_relay.machine import Machine, Table
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2

LINK_GRACE = 3.0
"""Seconds that a migration which begins without a link waits for one: the daemons may just have been started."""

OUTCOMES = {link_pb2.COMMITTED: "committed", link_pb2.ABORTED: "aborted", link_pb2.UNKNOWN: "unknown"}


class State(enum.Enum):
    """Where the link of a proxy is."""

    DOWN = "down"
    GREETED = "greeted"
    UP = "up"


class Event(enum.Enum):
    """What happens to it."""

    HELLO = "hello"
    RESUME = "resume"
    LOST = "lost"


TABLE: Table[State, Event] = {
    (State.DOWN, Event.HELLO): State.GREETED,
    (State.GREETED, Event.RESUME): State.UP,
    (State.GREETED, Event.LOST): State.DOWN,
    (State.UP, Event.LOST): State.DOWN,
}


class Decision:
    """One that the cache has not confirmed yet.

    @ivar told: the link that it was told over.
    """

    def __init__(self, commit: bool, reason: str) -> None:
        self.commit = commit
        self.reason = reason
        self.waiting: list[Deferred[str]] = []
        self.told: LinkConnection | None = None

    def frame(self, migration: bytes) -> link_pb2.Frame:
        """As it is told to the cache."""
        if self.commit:
            return link_pb2.Frame(commit=link_pb2.Commit(migration=migration))
        return link_pb2.Frame(abort=link_pb2.Abort(migration=migration, reason=wire.clip(self.reason)))


@implementer(IOutlet)
class LinkOutlet:
    """See L{IOutlet}; also the L{criu_relay.link.connection.LinkEnd} of the proxy.

    @ivar connection: the link that is there; None: none is.
    @ivar let_go: called with a migration that was restored at the cache's host, or discarded there.
    @ivar linked: called when the cache does not go on where an earlier link ended: it may be another one.
    """

    log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        arena: IArena,
        counters: Counters,
        patience: float = 0.0,
        rate: int | None = None,
        leave_out_zeros: bool = True,
    ) -> None:
        """
        @param patience: seconds that open migrations wait for a lost link to be made again; 0: they abort.
        @param rate: see L{Pace}.
        @param leave_out_zeros: pages of zeros are not sent.
        """
        self.window = Window(arena, clock, leave_out_zeros)
        self.connection: LinkConnection | None = None
        self._sent = SentLog(self.window)
        self._machine: Machine[State, Event] = Machine("the link", TABLE, State.DOWN, lambda state: None)
        self._patience = patience
        self.linked: Callable[[], None] = lambda: None
        self.let_go: Callable[[bytes], None] = lambda migration: None
        self._clock = clock
        self._counters = counters
        self._fetches = Fetches(reactor)
        self._migrations: dict[bytes, OutgoingMigration] = {}
        self._decisions: dict[bytes, Decision] = {}
        self._turns = Turns()
        self.pace = Pace(clock, self._wake, rate)
        self._orders: deque[tuple[OutgoingMigration, link_pb2.Frame]] = deque()
        self._giving_up: Any = None
        self._error = ""

    @property
    def session(self) -> bytes | None:
        """What the next hello says: 16 bytes; None: nothing can go on over another link."""
        return self._sent.session if self._resumes else None

    @property
    def _resumes(self) -> bool:
        return bool(self._patience and self.window.limit)

    # IOutlet

    def begin(self, migration: bytes, namespace: str, copy: bool, lost: Callable[[RelayError], None]) -> IOutgoing:
        """See L{IOutlet.begin}."""
        outgoing = self._outgoing(migration, namespace, lost)
        body = link_pb2.Namespace(migration=migration, name=namespace, copy=copy, digests=self.window.limit > 0)
        self._order(outgoing, link_pb2.Frame(namespace=body))
        if self.connection is None:
            self._clock.callLater(LINK_GRACE, self._no_link, outgoing)
        return outgoing

    def recovered(self, migration: bytes) -> IOutgoing:
        """See L{IOutlet.recovered}."""
        outgoing = self._outgoing(migration, "", lambda error: None)
        outgoing.told = outgoing.held = outgoing.closed = True
        return outgoing

    def _outgoing(self, migration: bytes, namespace: str, lost: Callable[[RelayError], None]) -> OutgoingMigration:
        made = OutgoingMigration(
            migration, namespace, self.window, self._fetches, self._image_ready, self._order, self.deliver, lost
        )
        self._migrations[migration] = made
        return made

    def deliver(self, migration: bytes, commit: bool, reason: str) -> Deferred[str]:
        """See L{IOutgoing.decide}. An abort is final whether or not the cache can be told now."""
        outgoing = self._migrations.pop(migration, None)
        self._orders = deque(order for order in self._orders if order[0] is not outgoing)
        if not commit and outgoing is not None and not outgoing.told:
            return succeed("aborted")
        decision = self._decisions.setdefault(migration, Decision(commit, reason))
        self._tell(migration, decision)
        if self.connection is None and not commit:
            return succeed("aborted")
        fired: Deferred[str] = Deferred(lambda _: decision.waiting.remove(fired))
        decision.waiting.append(fired)
        return fired

    # LinkEnd

    def link_up(self, connection: LinkConnection) -> None:
        """A link: tell it what was decided meanwhile; what else is to be sent waits for its resume."""
        if self.connection is not None:
            raise ProtocolError("there is a link already")
        self._machine.feed(Event.HELLO)
        self.connection = connection
        self._counters.add("links_made")
        for migration, decision in self._decisions.items():
            self._tell(migration, decision)

    def frame_received(self, connection: LinkConnection, frame: link_pb2.Frame) -> wire.PayloadSink | None:
        """What a cache says."""
        kind = frame.WhichOneof("body")
        if kind == "ack":
            self._sent.acknowledged(frame.ack.frames)
        elif kind == "resume":
            self._resume(connection, frame.resume)
        elif kind == "credit":
            outgoing = self._migrations.get(frame.credit.migration)
            if outgoing is not None:
                outgoing.credit.granted(frame.credit.bytes)
                connection.wake()
        elif kind == "held":
            self._held(connection, frame.held)
        elif kind == "decided":
            self._decided(frame.decided)
        elif kind == "error":
            self._refused(frame.error)
        elif kind == "restored":
            self.let_go(frame.restored.migration)
        elif kind == "fetched":
            return self._fetches.answered(frame)
        else:
            raise ProtocolError(f"a cache does not send {kind} frames")
        return None

    def turn_ended(self, connection: LinkConnection) -> None:
        """Nothing to do."""

    def next_frame(self) -> OutFrame | None:
        """What is to be sent again, then what is to be said of migrations, then the images in turns, a frame each."""
        if self._machine.state is not State.UP or not self.pace.open():
            return None
        frame = self._sent.next_again()
        if frame is not None:
            self._counters.add("link_bytes_sent_again", frame.size)
        elif self._orders:
            outgoing, order = self._orders.popleft()
            outgoing.told = True
            frame = OutFrame(wire.encode(order))
            self._sent.add(Sent(outgoing, frame))
        else:
            frame = self._next_of_images()
        if frame is not None:
            self.pace.sent(frame.size)
        return frame

    def _next_of_images(self) -> OutFrame | None:
        while (image := self._turns.next()) is not None:
            frame, waits = None, False
            if image.ready:
                found = image.next_frame()
                if found is None:
                    waits = True
                    image.migration.credit.park(image)
                else:
                    frame, sent = found
                    self._sent.add(sent)
            self._turns.took(image, frame.size if frame is not None else 0, waits)
            if not image.ready:
                image.migration.image_sent(image)
            if frame is not None:
                if frame.payload is not None and self.connection is not None:
                    self.connection.payload_bytes += frame.payload_size
                    self._counters.add("extents_sent")
                    self._counters.add("link_bytes_out", frame.payload_size)
                return frame
        return None

    def _wake(self) -> None:
        if self.connection is not None:
            self.connection.wake()

    def link_down(self, connection: LinkConnection, reason: RelayError) -> None:
        """With a window and patience, what is not held waits for the next link; else it is lost with this one."""
        self.connection = None
        self._machine.feed(Event.LOST)
        self._counters.add("links_lost")
        self._counters.failed(f"link to {connection.describe()}", reason.cause, reason.reason)
        lost = reason if isinstance(reason, LinkLost) else LinkEnded(reason.reason)
        self._error = lost.reason
        if isinstance(lost, LinkEnded) or not self._resumes:
            self._give_up(lost)
        elif any(not outgoing.held for outgoing in self._migrations.values()):
            self.log.warn("waiting up to {seconds:.0f} s for the link to be made again", seconds=self._patience)
            if self._giving_up is None:  # else it was lost again before it could resume
                self._giving_up = self._clock.callLater(self._patience, self._too_late, lost.reason)

    # The link

    def unreachable(self, error: LinkLost) -> None:
        """Nothing answers where the link leads to; said once, as it is tried again and again."""
        if self._error != error.reason:
            self.log.warn("{line}", line=error.line)
            self._error = error.reason

    def refused(self, error: RelayError) -> None:
        """Who answers there is no cache of ours, or does not want us; the connection has said so."""
        self._error = error.reason

    def _resume(self, connection: LinkConnection, resume: link_pb2.Resume) -> None:
        self._machine.feed(Event.RESUME)
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        self._error = ""
        if resume.known and not self._sent.precedes(resume.frames):
            self._sent.resume(resume.frames, resume.partial)
            self._counters.add("links_resumed")
        else:
            self._lose(LinkLost("the cache has lost its images: it was started again"), lambda outgoing: outgoing.told)
            self._sent.forget()
            self.linked()
        connection.wake()

    def _too_late(self, error: str) -> None:
        self._giving_up = None
        self._give_up(LinkLost(f"{error}, and it was not made again in {self._patience:.0f} s"))

    def _give_up(self, reason: LinkLost) -> None:
        self._lose(reason, lambda outgoing: True)
        self._sent.begin()

    def _lose(self, reason: LinkLost, which: Callable[[OutgoingMigration], bool]) -> None:
        self._fetches.lost(reason)
        for outgoing in [outgoing for outgoing in self._migrations.values() if which(outgoing)]:
            outgoing.link_lost(reason)

    def _no_link(self, outgoing: OutgoingMigration) -> None:
        if self.connection is None and not outgoing.told:
            outgoing.link_lost(LinkLost("no link to the cache", hint="start criu-relay-cache where --link says"))

    # Migrations

    def _order(self, outgoing: OutgoingMigration, frame: link_pb2.Frame) -> None:
        self._orders.append((outgoing, frame))
        self._wake()

    def _tell(self, migration: bytes, decision: Decision) -> None:
        """Once over each link: each time is answered."""
        if self.connection is not None and decision.told is not self.connection:
            decision.told = self.connection
            self.connection.send(decision.frame(migration))

    def _image_ready(self, image: QueuedImage) -> None:
        self._turns.add(image)
        self._wake()

    def _held(self, connection: LinkConnection, held: link_pb2.Held) -> None:
        outgoing = self._migrations.get(held.migration)
        if outgoing is not None and outgoing.dead is None:
            if not outgoing.closed:
                raise ProtocolError(f"the cache holds {held.name} before its closing header was sent")
            outgoing.held_by_cache(held.name, held.bytes)
        elif held.migration not in self._decisions:
            self.log.warn("the cache holds {name}, which was given up here", name=held.name)
            self.deliver(held.migration, False, "its proxy has no record of a permission")

    def _decided(self, decided: link_pb2.Decided) -> None:
        decision = self._decisions.pop(decided.migration, None)
        if decision is None:
            # One that was asked would wait for its answer as long as the link lasts; over the next it is asked again.
            raise ProtocolError(f"migration {decided.migration.hex()} was decided, which nobody asked for")
        for fired in list(decision.waiting):
            fired.callback(OUTCOMES[decided.outcome])

    def _refused(self, error: link_pb2.Error) -> None:
        outgoing = self._migrations.get(error.migration)
        if outgoing is not None:
            outgoing.fail(Aborted(f"the cache gives it up: {error.reason}", cause=Cause.PEER))

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        if self.connection is None:
            return {"state": "connecting", "peers": [], "error": self._error, "rate": self.pace.rate}
        return {"state": "up", "peers": [self.connection.status()], "rate": self.pace.rate}
