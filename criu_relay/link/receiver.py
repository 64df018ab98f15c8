"""The cache's end of links: what arrives goes to the store, what was taken is acknowledged."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from criu_relay.errors import Aborted, LinkEnded, LinkLost, ProtocolError, RelayError
from criu_relay.flow.frames import OutFrame
from criu_relay.interfaces import Counters, IGrowing, IIntake, Mode, Owner
from criu_relay.link.connection import LinkConnection
from criu_relay.link.payloads import DroppedPayload, ExtentSink, SparseSink
from criu_relay.link.sessions import Migration, Session, Sessions
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2

MODES = {link_pb2.REPLACE: Mode.REPLACE, link_pb2.APPEND: Mode.APPEND}
OUTCOMES = {True: link_pb2.COMMITTED, False: link_pb2.ABORTED, None: link_pb2.UNKNOWN}


COUNTED = ("namespace", "snapshot", "image", "extent", "image_end", "namespace_end", "fetch", "discard", "gap")
"""Kinds of frames that a session counts: the others are said anew on each link."""


ACK_BYTES = 12 << 20
"""So much payload is acknowledged at once: an acknowledgement costs each side as much as a frame. Where there is
memory, credit for more comes each 8 MiB, and it comes with that."""

ACK_PART = 8
"""Or one in so many bytes of the proxy's window, if that is less: what is not acknowledged is missing there."""

ACK_SECONDS = 0.02
"""Less is acknowledged after this."""


class Receiver:
    """The L{criu_relay.link.connection.LinkEnd} of the cache, for all its links."""

    log = Logger()

    def __init__(self, intake: IIntake, counters: Counters, clock: IReactorTime, patience: float = 0.0) -> None:
        """@param patience: seconds that what a proxy has under way waits for a lost link; 0: it is given up."""
        self.links: dict[LinkConnection, Session] = {}
        self._intake = intake
        self._counters = counters
        self._clock = clock
        self._sessions = Sessions(clock, patience, self._ended)

    def link_up(self, connection: LinkConnection) -> None:
        """A proxy is there: tell it where to go on, and what waits for its decision."""
        owner = owner_of(connection)
        for other in self._sessions:
            # In a black hole a link looks alive for some time after its proxy was killed.
            if other.owner == owner and other.id != connection.session and other.connection is not None:
                other.connection.fail(LinkEnded("its proxy was started again, and has made another link"))
        session, known = self._sessions.linked(owner, connection.session or os.urandom(wire.ID_SIZE), connection)
        before, session.connection = session.connection, connection
        if before is not None and before is not connection:
            # It is not the session's any more: what is under way does not wait for another link.
            before.fail(LinkLost("the proxy has made another link"))
        self.links[connection] = session
        self._counters.add("links_made")
        resume = link_pb2.Resume(known=known, frames=session.frames, partial=session.partial)
        session.acknowledged = session.frames
        session.owed = 0
        session.ack_bytes = min(ACK_BYTES, -(-connection.peer_window // ACK_PART) or ACK_BYTES)
        connection.send(link_pb2.Frame(resume=resume))
        for migration, name, size in self._intake.held(owner):
            session.migrations.setdefault(migration, Migration())
            connection.send(link_pb2.Frame(held=link_pb2.Held(migration=migration, name=name, bytes=size)))
        self._tell_let_go(session)
        for migration, known_of in list(session.migrations.items()):
            if known_of.refused:
                self._tell_refused(session, migration, known_of.refused)
            else:
                self._intake.credit(owner, migration)

    def frame_received(self, connection: LinkConnection, frame: link_pb2.Frame) -> wire.PayloadSink | None:
        """What a proxy says."""
        kind = frame.WhichOneof("body") or ""
        session = self.links[connection]
        sink = self._handle(session, connection, kind, frame)
        if sink is None and kind in COUNTED:
            session.handled()
        return sink

    def _handle(
        self, session: Session, connection: LinkConnection, kind: str, frame: link_pb2.Frame
    ) -> wire.PayloadSink | None:
        if kind == "gap":
            return None
        handler = self._handlers.get(kind)
        if handler is None:
            raise ProtocolError(f"a proxy does not send {kind} frames")
        body = getattr(frame, kind)
        migration = session.migrations.get(body.migration)
        if migration is not None and migration.refused and kind not in ("commit", "abort"):
            return DroppedPayload(self, session, connection, frame.payload) if frame.payload else None
        try:
            if kind == "extent":
                return self._extent(session, connection, frame)
            return handler(self, session, connection, body)
        except ProtocolError:
            raise
        except RelayError as error:
            self.refuse(session, body.migration, error)
            return DroppedPayload(self, session, connection, frame.payload) if frame.payload else None

    def turn_ended(self, connection: LinkConnection) -> None:
        """Acknowledge what came, together with what follows at once."""
        session = self.links[connection]
        if session.owed >= session.ack_bytes:
            self._acknowledge(session)
        elif session.acknowledging is None and session.frames > session.acknowledged:
            session.acknowledging = self._clock.callLater(ACK_SECONDS, self._acknowledge_rest, session)

    def _acknowledge_rest(self, session: Session) -> None:
        session.acknowledging = None
        if session.frames > session.acknowledged:
            self._acknowledge(session)

    def _acknowledge(self, session: Session) -> None:
        if session.connection is not None:
            session.acknowledged = session.frames
            session.owed = 0
            session.connection.send(link_pb2.Frame(ack=link_pb2.Ack(frames=session.frames)))

    def took(self, connection: LinkConnection, count: int) -> None:
        """So many payload bytes have come."""
        connection.payload_bytes += count
        self._counters.add("link_bytes_in", count)

    def next_frame(self) -> OutFrame | None:
        """A cache sends nothing but control frames."""
        return None

    def link_down(self, connection: LinkConnection, reason: RelayError) -> None:
        """What it had not brought whole waits for the next link, or is given up."""
        session = self.links.pop(connection)
        if session.acknowledging is not None:
            session.acknowledging.cancel()
            session.acknowledging = None
        self._counters.add("links_lost")
        self._counters.failed(f"link to {connection.describe()}", reason.cause, reason.reason)
        if session.connection is connection:
            for_good = not connection.session or isinstance(reason, LinkEnded) or not isinstance(reason, LinkLost)
            self._sessions.unlinked(session, reason.reason, for_good)

    def _ended(self, session: Session, reason: str) -> None:
        self._intake.link_lost(session.owner, list(session.migrations), reason)

    def rejected(self, migration: bytes, reason: str) -> None:
        """A person threw an undecided migration away: tell its proxy, now or when it is linked again."""
        for session in self._sessions:
            if migration in session.migrations:
                session.migrations[migration].refused = reason
                self._tell_refused(session, migration, reason)

    def let_go(self, owner: Owner, migration: bytes) -> None:
        """Its process runs, or somebody discarded it: tell its proxy, now or when it is linked again, that it need not
        ask after it any more."""
        for session in self._sessions:
            if session.owner == owner:
                session.let_go.append(migration)
                self._tell_let_go(session)

    def _tell_let_go(self, session: Session) -> None:
        while session.connection is not None and session.let_go:
            session.connection.send(link_pb2.Frame(restored=link_pb2.Restored(migration=session.let_go.pop())))

    def credited(self, migration: bytes, total: int) -> None:
        """There is memory for more of a migration: so much in all. What came is acknowledged with it: two frames that
        come together cost a proxy little more than one."""
        for session in self._sessions:
            if migration in session.migrations and session.connection is not None:
                body = link_pb2.Credit(migration=migration, bytes=total)
                session.connection.send(link_pb2.Frame(credit=body))
                if session.frames > session.acknowledged:
                    self._acknowledge(session)

    def refuse(self, session: Session, migration: bytes, error: RelayError) -> None:
        """This migration cannot go on; the link and the others can."""
        known = session.migrations.setdefault(migration, Migration())
        if known.refused:
            return
        known.refused = error.reason
        if not self._intake.link_lost(session.owner, [migration], error.reason, error.cause):
            peer = session.owner.peer
            self.log.error(
                "a migration of {peer} is refused: {why}", peer=peer, why=error.reason, migration=migration.hex()
            )
        self._tell_refused(session, migration, error.reason)

    def _tell_refused(self, session: Session, migration: bytes, reason: str) -> None:
        if session.connection is not None:
            body = link_pb2.Error(reason=wire.clip(reason), migration=migration)
            session.connection.send(link_pb2.Frame(error=body))

    def _namespace(self, session: Session, connection: LinkConnection, body: Any) -> None:
        migrations = session.migrations
        if len(migrations) >= wire.MAX_MIGRATIONS:
            raise ProtocolError(f"the link carries {wire.MAX_MIGRATIONS} migrations that are not decided already")
        self._intake.begin(session.owner, body.migration, body.name, body.copy, describe(body.source), body.digests)
        migrations[body.migration] = Migration()
        self._intake.credit(session.owner, body.migration)

    def _snapshot(self, session: Session, connection: LinkConnection, body: Any) -> None:
        self._intake.snapshot(session.owner, body.migration, body.index, body.label)
        self._known(session, body.migration).labels.update(body.label.encode() + b"\0")

    def _image(self, session: Session, connection: LinkConnection, body: Any) -> None:
        mode = MODES[body.mode]
        self._intake.open_image(session.owner, body.migration, body.image, body.snapshot, body.name, mode)

    def _extent(self, session: Session, connection: LinkConnection, frame: link_pb2.Frame) -> wire.PayloadSink:
        body = frame.extent
        migration, offset = body.migration, body.offset
        runs = wire.runs_of(body)
        cost = 0 if session.charged else wire.extent_cost(offset, frame.payload, sum(runs[1::2]))
        image = self._intake.writing(session.owner, migration, body.image, offset, cost)
        session.charged = True
        if runs:
            return SparseSink(self, session, connection, migration, image, runs)
        return ExtentSink(self, session, connection, migration, image)

    def follow(self, session: Session, migration: bytes, image: IGrowing, size: int) -> bool:
        """Extents follow one that was done, of the same image and without zeros; False: they cannot be taken."""
        known = session.migrations.get(migration)
        if known is None or known.refused:
            return False
        cost = wire.extent_cost(image.size, size)
        try:
            return self._intake.writing(session.owner, migration, image.number, image.size, cost) is image
        except RelayError:
            return False

    def _image_end(self, session: Session, connection: LinkConnection, body: Any) -> None:
        digest = body.digest if body.HasField("digest") else None
        self._intake.end_image(session.owner, body.migration, body.image, body.size, digest)

    def _namespace_end(self, session: Session, connection: LinkConnection, body: Any) -> None:
        migration = self._known(session, body.migration)
        migration.rows += [
            (row.snapshot, row.name, row.size, row.digest if row.HasField("digest") else None) for row in body.images
        ]
        if len(migration.rows) > wire.MAX_IMAGES:
            raise ProtocolError(f"the closing header lists more than {wire.MAX_IMAGES} images")
        if body.HasField("labels") and body.labels != migration.labels.digest():
            raise Aborted("the labels of its snapshots were changed on the way: their digest differs")
        if body.last:
            rows, migration.rows = migration.rows, []
            size = self._intake.seal(session.owner, body.migration, rows, describe(body.source))
            held = link_pb2.Held(migration=body.migration, name=self._name(session, body.migration), bytes=size)
            connection.send(link_pb2.Frame(held=held))

    def _commit(self, session: Session, connection: LinkConnection, body: Any) -> None:
        self._decide(session, connection, body.migration, True, "")

    def _abort(self, session: Session, connection: LinkConnection, body: Any) -> None:
        self._decide(session, connection, body.migration, False, body.reason)

    def _decide(
        self, session: Session, connection: LinkConnection, migration: bytes, commit: bool, reason: str
    ) -> None:
        outcome = OUTCOMES[self._intake.decide(session.owner, migration, commit, reason)]
        session.migrations.pop(migration, None)
        connection.send(link_pb2.Frame(decided=link_pb2.Decided(migration=migration, outcome=outcome)))

    def _fetch(self, session: Session, connection: LinkConnection, body: Any) -> None:
        data = self._intake.read(session.owner, body.migration, body.image, body.offset, body.length)
        connection.send(link_pb2.Frame(fetched=link_pb2.Fetched(request=body.request)), data)

    def _discard(self, session: Session, connection: LinkConnection, body: Any) -> None:
        self._intake.discard_range(session.owner, body.migration, body.image, body.offset, body.length)

    def _known(self, session: Session, migration: bytes) -> Migration:
        try:
            return session.migrations[migration]
        except KeyError:
            raise ProtocolError(f"migration {migration.hex()} was not begun by this proxy") from None

    def _name(self, session: Session, migration: bytes) -> str:
        return next((name for held, name, _ in self._intake.held(session.owner) if held == migration), "")

    _handlers = {
        "namespace": _namespace,
        "snapshot": _snapshot,
        "image": _image,
        "extent": _extent,
        "image_end": _image_end,
        "namespace_end": _namespace_end,
        "commit": _commit,
        "abort": _abort,
        "fetch": _fetch,
        "discard": _discard,
    }


def owner_of(connection: LinkConnection) -> Owner:
    """Who is at the other end of a connection that is up."""
    assert connection.peer is not None
    return connection.peer


def describe(source: link_pb2.Source) -> str:
    """A source for people: "python3 (pid 17) on web1"; empty when nothing is known."""
    if not source.host:
        return ""
    task = f"{source.command or 'process'} (pid {source.pid}) on " if source.pid else ""
    return f"{task}{source.host}"
