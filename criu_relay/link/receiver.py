"""The cache's end of links: what arrives goes to the store, what was taken is acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.logger import Logger

from criu_relay.errors import Conflict, ProtocolError, RelayError
from criu_relay.flow.frames import OutFrame
from criu_relay.interfaces import Counters, IGrowing, IIntake, Mode, Owner
from criu_relay.link.connection import LinkConnection
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2

LINKS = 1024
"""Proxies that may link to one cache at a time."""

MIGRATIONS_PER_LINK = 4096
"""Open migrations of one proxy: bounds what one peer can make us remember."""

IMAGES_PER_MIGRATION = 1 << 16
"""Rows of a closing header that are kept until its last frame; the store takes no more images either."""

MODES = {link_pb2.REPLACE: Mode.REPLACE, link_pb2.APPEND: Mode.APPEND}
OUTCOMES = {True: link_pb2.COMMITTED, False: link_pb2.ABORTED, None: link_pb2.UNKNOWN}


@dataclass
class Migration:
    """What is known of a migration on one link.

    @ivar refused: an error was sent: what still comes of it is dropped.
    """

    refused: bool = False
    rows: list[tuple[int, str, int, bytes | None]] = field(default_factory=list)


class ExtentSink:
    """The payload of one Extent frame; see L{wire.PayloadSink}."""

    def __init__(
        self, receiver: Receiver, connection: LinkConnection, migration: bytes, image: IGrowing, runs: Sequence[int]
    ) -> None:
        """@param runs: bytes of payload and of zeros in turn; empty: no zeros."""
        self._receiver = receiver
        self._connection = connection
        self._migration = migration
        self._image = image
        self._runs = deque(runs)
        self._dropping = memoryview(b"")
        if runs:
            self._zeros()

    def room(self, remaining: int) -> memoryview | None:
        """See L{wire.PayloadSink}."""
        if self._dropping:
            return self._dropping[:remaining]
        try:
            return self._image.reserve(remaining).view[:remaining]
        except RelayError as error:
            self._drop(error, remaining)
            return self._dropping

    def filled(self, count: int) -> None:
        """See L{wire.PayloadSink}."""
        self._connection.image_bytes += count
        while not self._dropping and self._runs and count >= self._runs[0]:
            part = self._runs[0]
            self._runs[0] = 0
            count -= part
            self._image.written(part)
            try:
                self._zeros()
            except RelayError as error:
                self._drop(error, wire.MAX_PAYLOAD)
        if count and not self._dropping:
            if self._runs:
                self._runs[0] -= count
            self._image.written(count)

    def done(self) -> None:
        """See L{wire.PayloadSink}."""

    def _zeros(self) -> None:
        """After the end of a run of payload: the zeros that follow it."""
        if not self._runs[0]:
            self._runs.popleft()
            if self._runs:
                count = self._runs.popleft()
                self._connection.image_bytes += count
                self._image.zeros(count)

    def _drop(self, error: RelayError, remaining: int) -> None:
        self._receiver.refuse(self._connection, self._migration, error)
        self._connection.image_bytes += sum(list(self._runs)[1::2])
        self._dropping = memoryview(bytearray(remaining))


class DroppedPayload:
    """The payload of an extent that nobody wants, which is acknowledged all the same."""

    def __init__(self, connection: LinkConnection, size: int) -> None:
        self._connection = connection
        self._data = memoryview(bytearray(size))

    def room(self, remaining: int) -> memoryview | None:
        """See L{wire.PayloadSink}."""
        return self._data[:remaining]

    def filled(self, count: int) -> None:
        """See L{wire.PayloadSink}."""
        self._connection.image_bytes += count

    def done(self) -> None:
        """See L{wire.PayloadSink}."""


class Receiver:
    """The L{criu_relay.link.connection.LinkEnd} of the cache, for all its links."""

    log = Logger()

    def __init__(self, intake: IIntake, counters: Counters) -> None:
        self.links: dict[LinkConnection, dict[bytes, Migration]] = {}
        self._intake = intake
        self._counters = counters
        self._acknowledged: dict[LinkConnection, int] = {}

    def link_up(self, connection: LinkConnection) -> None:
        """A proxy is there: tell it what waits for its decision."""
        if len(self.links) >= LINKS:
            raise Conflict(f"the cache has {LINKS} links already")
        self.links[connection] = {}
        self._acknowledged[connection] = 0
        self._counters.add("links_made")
        for migration, name, size in self._intake.held(owner_of(connection)):
            self.links[connection][migration] = Migration()
            connection.send(link_pb2.Frame(held=link_pb2.Held(migration=migration, name=name, bytes=size)))
        connection.ping()

    def frame_received(self, connection: LinkConnection, frame: link_pb2.Frame) -> wire.PayloadSink | None:
        """What a proxy says."""
        kind = frame.WhichOneof("body")
        handler = self._handlers.get(kind or "")
        if handler is None and kind != "extent":
            raise ProtocolError(f"a proxy does not send {kind} frames")
        body = getattr(frame, kind or "")
        migration = self.links[connection].get(body.migration)
        if migration is not None and migration.refused and kind not in ("commit", "abort"):
            return dropped(connection, frame)
        try:
            return handler(self, connection, body) if handler else self._extent(connection, frame)
        except ProtocolError:
            raise
        except RelayError as error:
            self.refuse(connection, body.migration, error)
            return dropped(connection, frame)

    def turn_ended(self, connection: LinkConnection) -> None:
        """Acknowledge what came."""
        if connection.image_bytes != self._acknowledged[connection]:
            self._counters.add("link_image_bytes_received", connection.image_bytes - self._acknowledged[connection])
            self._acknowledged[connection] = connection.image_bytes
            connection.send(link_pb2.Frame(ack=link_pb2.Ack(bytes=connection.image_bytes)))

    def next_frame(self) -> OutFrame | None:
        """A cache sends nothing but control frames."""
        return None

    def link_down(self, connection: LinkConnection, reason: RelayError) -> None:
        """What it had not brought whole is given up."""
        migrations = self.links.pop(connection)
        del self._acknowledged[connection]
        self._intake.link_lost(owner_of(connection), list(migrations), reason.reason)

    def rejected(self, migration: bytes, reason: str) -> None:
        """A person threw an undecided migration away: tell its proxy, when it is linked."""
        for connection, migrations in self.links.items():
            if migration in migrations:
                migrations[migration].refused = True
                connection.send(link_pb2.Frame(error=link_pb2.Error(reason=wire.clip(reason), migration=migration)))

    def credited(self, migration: bytes, total: int) -> None:
        """There is memory for more of a migration: so much in all."""
        for connection, migrations in self.links.items():
            if migration in migrations:
                connection.send(link_pb2.Frame(credit=link_pb2.Credit(migration=migration, bytes=total)))

    def refuse(self, connection: LinkConnection, migration: bytes, error: RelayError) -> None:
        """This migration cannot go on; the link and the others can."""
        known = self.links[connection].setdefault(migration, Migration())
        if known.refused:
            return
        known.refused = True
        self.log.error("a migration is refused: {reason}", reason=error.reason, migration=migration.hex())
        self._intake.link_lost(owner_of(connection), [migration], error.reason)
        body = link_pb2.Error(reason=wire.clip(error.reason), migration=migration)
        connection.send(link_pb2.Frame(error=body))

    def _namespace(self, connection: LinkConnection, body: Any) -> None:
        migrations = self.links[connection]
        if len(migrations) >= MIGRATIONS_PER_LINK:
            raise Conflict(f"the link carries {MIGRATIONS_PER_LINK} migrations already")
        self._intake.begin(owner_of(connection), body.migration, body.name, body.copy, describe(body.source))
        migrations[body.migration] = Migration()
        self._intake.credit(owner_of(connection), body.migration)

    def _snapshot(self, connection: LinkConnection, body: Any) -> None:
        self._intake.snapshot(owner_of(connection), body.migration, body.index, body.label)

    def _image(self, connection: LinkConnection, body: Any) -> None:
        mode = MODES[body.mode]
        self._intake.open_image(owner_of(connection), body.migration, body.image, body.snapshot, body.name, mode)

    def _extent(self, connection: LinkConnection, frame: link_pb2.Frame) -> wire.PayloadSink:
        body = frame.extent
        runs = wire.runs_of(body)
        cost = wire.extent_cost(body.offset, frame.payload, sum(runs[1::2]))
        image = self._intake.writing(owner_of(connection), body.migration, body.image, body.offset, cost)
        return ExtentSink(self, connection, body.migration, image, runs)

    def _image_end(self, connection: LinkConnection, body: Any) -> None:
        digest = body.digest if body.HasField("digest") else None
        self._intake.end_image(owner_of(connection), body.migration, body.image, body.size, digest)

    def _namespace_end(self, connection: LinkConnection, body: Any) -> None:
        migration = self._known(connection, body.migration)
        migration.rows += [
            (row.snapshot, row.name, row.size, row.digest if row.HasField("digest") else None) for row in body.images
        ]
        if len(migration.rows) > IMAGES_PER_MIGRATION:
            raise ProtocolError(f"the closing header lists more than {IMAGES_PER_MIGRATION} images")
        if body.last:
            rows, migration.rows = migration.rows, []
            size = self._intake.seal(owner_of(connection), body.migration, rows, describe(body.source))
            held = link_pb2.Held(migration=body.migration, name=self._name(connection, body.migration), bytes=size)
            connection.send(link_pb2.Frame(held=held))

    def _commit(self, connection: LinkConnection, body: Any) -> None:
        self._decide(connection, body.migration, True, "")

    def _abort(self, connection: LinkConnection, body: Any) -> None:
        self._decide(connection, body.migration, False, body.reason)

    def _decide(self, connection: LinkConnection, migration: bytes, commit: bool, reason: str) -> None:
        outcome = OUTCOMES[self._intake.decide(owner_of(connection), migration, commit, reason)]
        self.links[connection].pop(migration, None)
        connection.send(link_pb2.Frame(decided=link_pb2.Decided(migration=migration, outcome=outcome)))

    def _fetch(self, connection: LinkConnection, body: Any) -> None:
        data = self._intake.read(owner_of(connection), body.migration, body.image, body.offset, body.length)
        connection.send(link_pb2.Frame(fetched=link_pb2.Fetched(request=body.request)), data)

    def _discard(self, connection: LinkConnection, body: Any) -> None:
        self._intake.discard_range(owner_of(connection), body.migration, body.image, body.offset, body.length)

    def _known(self, connection: LinkConnection, migration: bytes) -> Migration:
        try:
            return self.links[connection][migration]
        except KeyError:
            raise ProtocolError(f"migration {migration.hex()} was not begun on this link") from None

    def _name(self, connection: LinkConnection, migration: bytes) -> str:
        return next((name for held, name, _ in self._intake.held(owner_of(connection)) if held == migration), "")

    _handlers = {
        "namespace": _namespace,
        "snapshot": _snapshot,
        "image": _image,
        "image_end": _image_end,
        "namespace_end": _namespace_end,
        "commit": _commit,
        "abort": _abort,
        "fetch": _fetch,
        "discard": _discard,
    }


def dropped(connection: LinkConnection, frame: link_pb2.Frame) -> DroppedPayload | None:
    """Where the payload of a frame goes that nobody wants; the zeros in it are acknowledged now."""
    if frame.HasField("extent"):
        connection.image_bytes += sum(wire.runs_of(frame.extent)[1::2])
    return DroppedPayload(connection, frame.payload) if frame.payload else None


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
