"""The proxy's end of the link: what carries migrations away, over as many connections as it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from criu_relay.errors import Aborted, LinkLost, ProtocolError, RelayError
from criu_relay.flow.frames import OutFrame
from criu_relay.interfaces import Counters, IArena, IOutgoing, IOutlet
from criu_relay.link.connection import LinkConnection
from criu_relay.link.fetch import Fetches
from criu_relay.link.images import QueuedImage
from criu_relay.link.outgoing import OutgoingMigration
from criu_relay.link.window import Window
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2

LINK_GRACE = 3.0
"""Seconds that a migration which begins without a link waits for one: the daemons may just have been started."""

OUTCOMES = {link_pb2.COMMITTED: "committed", link_pb2.ABORTED: "aborted", link_pb2.UNKNOWN: "unknown"}


class Decision:
    """One that the cache has not confirmed yet."""

    def __init__(self, commit: bool, reason: str) -> None:
        self.commit = commit
        self.reason = reason
        self.waiting: list[Deferred[str]] = []

    def frame(self, migration: bytes) -> link_pb2.Frame:
        """As it is told to the cache."""
        if self.commit:
            return link_pb2.Frame(commit=link_pb2.Commit(migration=migration))
        return link_pb2.Frame(abort=link_pb2.Abort(migration=migration, reason=wire.clip(self.reason)))


@implementer(IOutlet)
class LinkOutlet:
    """See L{IOutlet}; also the L{criu_relay.link.connection.LinkEnd} of the proxy.

    @ivar connection: the link that is up; None: none is.
    """

    log = Logger()

    def __init__(self, reactor: IReactorFDSet, clock: IReactorTime, arena: IArena, counters: Counters) -> None:
        self.window = Window(arena)
        self.connection: LinkConnection | None = None
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._counters = counters
        self._fetches = Fetches(reactor)
        self._migrations: dict[bytes, OutgoingMigration] = {}
        self._decisions: dict[bytes, Decision] = {}
        self._round: deque[QueuedImage] = deque()
        self._not_sent: deque[link_pb2.Frame] = deque()

    # IOutlet

    def begin(self, migration: bytes, namespace: str, copy: bool, lost: Callable[[RelayError], None]) -> IOutgoing:
        """See L{IOutlet.begin}."""
        outgoing = OutgoingMigration(
            migration, namespace, self.window, self._fetches, self._image_ready, self._control, self.deliver, lost
        )
        self._migrations[migration] = outgoing
        body = link_pb2.Namespace(migration=migration, name=namespace, copy=copy)
        self._control(link_pb2.Frame(namespace=body))
        if self.connection is None:
            self._clock.callLater(LINK_GRACE, self._no_link, outgoing)
        return outgoing

    def recovered(self, migration: bytes) -> IOutgoing:
        """See L{IOutlet.recovered}."""
        outgoing = OutgoingMigration(
            migration,
            "",
            self.window,
            self._fetches,
            self._image_ready,
            self._control,
            self.deliver,
            lambda error: None,
        )
        outgoing.held = outgoing.closed = True
        self._migrations[migration] = outgoing
        return outgoing

    def deliver(self, migration: bytes, commit: bool, reason: str) -> Deferred[str]:
        """See L{IOutgoing.decide}.

        An abort is not kept for a link that is down: the cache has dropped what it did not hold, and asks about the
        rest with `held` when the link is there again.
        """
        self._migrations.pop(migration, None)
        if not commit and self.connection is None:
            self._not_sent = deque(frame for frame in self._not_sent if migration_of(frame) != migration)
            return succeed("aborted")
        decision = self._decisions.setdefault(migration, Decision(commit, reason))
        fired: Deferred[str] = Deferred(lambda _: decision.waiting.remove(fired))
        decision.waiting.append(fired)
        if self.connection is not None:
            self.connection.send(decision.frame(migration))
        return fired

    # LinkEnd

    def link_up(self, connection: LinkConnection) -> None:
        """A link: tell it what was decided meanwhile, then go on."""
        if self.connection is not None:
            raise ProtocolError("there is a link already")
        self.connection = connection
        self._counters.add("links_made")
        for migration, decision in self._decisions.items():
            connection.send(decision.frame(migration))
        while self._not_sent:
            connection.send(self._not_sent.popleft())
        connection.wake()
        connection.ping()
        self.changed()

    def frame_received(self, connection: LinkConnection, frame: link_pb2.Frame) -> wire.PayloadSink | None:
        """What a cache says."""
        kind = frame.WhichOneof("body")
        if kind == "ack":
            if not self.window.acknowledged(frame.ack.bytes):
                raise ProtocolError(f"ack.bytes is {frame.ack.bytes}, only {self.window.sent} were sent")
        elif kind == "held":
            self._held(connection, frame.held)
        elif kind == "decided":
            self._decided(frame.decided)
        elif kind == "error":
            self._refused(frame.error)
        elif kind == "fetched":
            return self._fetches.answered(frame)
        else:
            raise ProtocolError(f"a cache does not send {kind} frames")
        return None

    def turn_ended(self, connection: LinkConnection) -> None:
        """Nothing to do."""

    def next_frame(self) -> OutFrame | None:
        """The images take turns, a frame each."""
        while self._round:
            image = self._round.popleft()
            if not image.ready:
                image.migration.image_sent(image)
                continue
            frame = image.next_frame()
            if image.ready:
                self._round.append(image)
            else:
                image.migration.image_sent(image)
            if frame.payload is not None:
                self._counters.add("extents_sent")
            return frame
        return None

    def link_down(self, connection: LinkConnection, reason: RelayError) -> None:
        """What is not held at the cache is lost with the link."""
        self.connection = None
        self._counters.add("links_lost")
        lost = LinkLost(reason.reason)
        self._round.clear()
        self._not_sent.clear()
        for outgoing in list(self._migrations.values()):
            outgoing.link_lost(lost)
        self._fetches.lost(lost)
        self.window.link_lost()
        self.changed()

    # Migrations

    def _control(self, frame: link_pb2.Frame) -> None:
        if self.connection is not None:
            self.connection.send(frame)
        else:
            self._not_sent.append(frame)

    def _image_ready(self, image: QueuedImage) -> None:
        self._round.append(image)
        if self.connection is not None:
            self.connection.wake()

    def _no_link(self, outgoing: OutgoingMigration) -> None:
        if self.connection is None:
            outgoing.fail(LinkLost("no link to the cache", hint="start criu-relay-cache where --link says"))

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
            outgoing.fail(Aborted(f"the cache gives it up: {error.reason}"))

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        if self.connection is None:
            return {"state": "connecting", "peers": []}
        return {"state": "up", "peers": [self.connection.status()]}


def migration_of(frame: link_pb2.Frame) -> bytes:
    """The migration that a namespace frame belongs to."""
    return bytes(getattr(frame, frame.WhichOneof("body") or "").migration)
