"""Images on their way out: what CRIU writes becomes frames, in order, through the window or by reference."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xxhash
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from criu_relay.errors import Aborted, Conflict
from criu_relay.flow.frames import OutFrame, PipeRange
from criu_relay.interfaces import IImageSink, IPassingSink, Mode, Room
from criu_relay.link.chunk import Chunk
from criu_relay.link.sent import Sent
from criu_relay.wire import link as wire
from criu_relay.wire import link_pb2
from criu_relay.wire.extents import ExtentEncoder

if TYPE_CHECKING:
    from criu_relay.link.outgoing import OutgoingMigration

MODES = {Mode.REPLACE: link_pb2.REPLACE, Mode.APPEND: link_pb2.APPEND}

GROWTH = 4
"""Each extent of an image may be so many times the one before: what comes in small pieces leaves in large frames while
the link is busy, and a small image takes little of the window."""

FRAGMENT = 64 << 10
"""Bytes of room in the last extent for which it is written on: reading fewer costs as much as a new one."""

NO_MEMFD = -1
"""The descriptor of room that lies in no memfd."""


@implementer(IImageSink)
class QueuedImage:
    """What images on their way out have in common: their frames leave in order.

    @ivar size: bytes written so far.
    @ivar complete: CRIU ended it.
    """

    def __init__(self, migration: OutgoingMigration, number: int, snapshot: int, name: str) -> None:
        self.migration = migration
        self.number = number
        self.snapshot = snapshot
        self.name = name
        self.size = 0
        self.complete = False
        self.digest: bytes | None = None
        self._frames: deque[link_pb2.Frame | Chunk | PipeRange | bytes] = deque()
        self._headers = ExtentEncoder(migration.id, number)
        self._producer: IPushProducer | None = None

    @property
    def ready(self) -> bool:
        """Something waits to be sent."""
        return bool(self._frames)

    def next_frame(self) -> tuple[OutFrame, Sent] | None:
        """The next of its frames, and what is kept of it; None: it needs more credit. Call only when `ready`."""
        item = self._frames[0]
        if isinstance(item, link_pb2.Frame):
            self._frames.popleft()
            frame = OutFrame(wire.encode(item))
            return frame, Sent(self.migration, frame, asks=item.HasField("fetch"))
        return self.extent(item)

    def begin(self, mode: Mode) -> None:
        """A write begins: its frame waits for what comes first, to leave with that."""
        self.complete = False
        body = link_pb2.Image(
            migration=self.migration.id, image=self.number, snapshot=self.snapshot, name=self.name, mode=MODES[mode]
        )
        self._frames.append(link_pb2.Frame(image=body))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See L{IImageSink}; push producers only."""
        if self._producer is not None or not streaming:
            raise Conflict(f"image {self.name} takes one push producer at a time")
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See L{IImageSink}."""
        if self._producer is not None:
            self.migration.window.waiting.forget(self._producer)
            self.migration.credit.waiting.forget(self._producer)
            self._producer = None

    def stop(self) -> None:
        """Nothing more is wanted: its producer closes CRIU's pipe, paused or not, so that CRIU gets EPIPE."""
        producer = self._producer
        self.unregisterProducer()
        if producer is not None:
            producer.stopProducing()

    def end(self) -> None:
        """See L{IImageSink.end}."""
        self.release_room()
        self.complete = True
        self.digest = self.digest_now()
        body = link_pb2.ImageEnd(migration=self.migration.id, image=self.number, size=self.size, digest=self.digest)
        self.queue(link_pb2.Frame(image_end=body))

    def fail(self, reason: str) -> None:
        """See L{IImageSink.fail}."""
        self.release_room()
        self.migration.fail(Aborted(f"image {self.name}: {reason}"))

    def drop(self) -> None:
        """Nothing more of it is sent."""
        self.release_room()
        while self._frames:
            item = self._frames.popleft()
            if isinstance(item, Chunk):
                self._give_up(item)
            elif isinstance(item, link_pb2.Frame) and item.HasField("fetch"):
                self.migration.fetches.give_up(item.fetch.request, Aborted(f"image {self.name} was replaced"))

    def summary(self) -> link_pb2.ImageSummary:
        """Its row in the closing header."""
        return link_pb2.ImageSummary(snapshot=self.snapshot, name=self.name, size=self.size, digest=self.digest)

    def queue(self, item: link_pb2.Frame | Chunk | PipeRange | bytes) -> None:
        """Send this after everything of this image that was queued before, unless nothing of it is sent any more."""
        if self.migration.dead is None:
            self._frames.append(item)
            self.migration.image_ready(self)
        elif isinstance(item, link_pb2.Frame) and item.HasField("fetch"):
            self.migration.fetches.give_up(item.fetch.request, self.migration.dead)

    def header(self, offset: int, payload: int, runs: Sequence[int] = ()) -> bytes:
        """Of the frame with C{payload} bytes from C{offset} on, and zeros between them as C{runs} say."""
        if not runs:
            return self._headers.encode(offset, payload)
        body = link_pb2.Extent(migration=self.migration.id, image=self.number, offset=offset, runs=wire.pack_runs(runs))
        return wire.encode(link_pb2.Frame(extent=body, payload=payload or None))

    def _give_up(self, chunk: Chunk) -> None:
        """The rest of it is not sent."""
        self.migration.credit.sent(chunk.filled - chunk.start)
        if chunk.sent is not None and chunk.sent.frame is not None:
            chunk.sent.chunk = chunk
        else:
            self.migration.window.release(chunk)

    def reserve(self, size: int) -> Room | None:
        """See L{IImageSink.reserve}."""
        raise NotImplementedError

    def written(self, count: int) -> None:
        """See L{IImageSink.written}."""
        raise NotImplementedError

    def write(self, data: Any) -> None:
        """See L{IConsumer.write}."""
        raise NotImplementedError

    def extent(self, item: Chunk | PipeRange | bytes) -> tuple[OutFrame, Sent] | None:
        """The frame of a payload, which waits first, and what is kept of it; None: there is no credit for any of it."""
        raise NotImplementedError

    def digest_now(self) -> bytes | None:
        """Of all bytes so far; None: they are not seen."""
        raise NotImplementedError

    def release_room(self) -> None:
        """Nothing more is written into the room reserved last."""


class OutgoingImage(QueuedImage):
    """One image through the window: its bytes are kept there until the cache has them."""

    def __init__(self, migration: OutgoingMigration, number: int, snapshot: int, name: str) -> None:
        super().__init__(migration, number, snapshot, name)
        self._hash = xxhash.xxh3_128()
        self._room: Chunk | None = None
        self._step = 0

    def reserve(self, size: int) -> Room | None:
        """See L{IImageSink.reserve}."""
        self.migration.check()
        if self._room is None:
            tail = self._frames[-1] if self._frames else None
            if self.migration.credit.room <= 0:
                if self._producer is not None:
                    self.migration.credit.waiting.add(self._producer)
                return None
            if isinstance(tail, Chunk) and tail.room >= min(size, FRAGMENT):
                self._room = tail
            else:
                self._step = min(wire.MAX_PAYLOAD, max(size, self._step * GROWTH))
                extent = self.migration.window.allocate(self._step)
                if extent is None:
                    if self._producer is not None:
                        self.migration.window.waiting.add(self._producer)
                    return None
                self._room = Chunk(extent, self.size)
        chunk = self._room
        return Room(chunk.extent.fd, chunk.extent.offset + chunk.filled, chunk.extent.view[chunk.filled :])

    def written(self, count: int) -> None:
        """See L{IImageSink.written}."""
        chunk = self._room
        assert chunk is not None
        self._room = None
        self._hash.update(chunk.extent.view[chunk.filled : chunk.filled + count])
        chunk.add(count)
        left_out = chunk.squeeze() if self.migration.window.leave_out_zeros else 0
        self.size += count
        self.migration.credit.queue(count - left_out)
        if not self._frames or self._frames[-1] is not chunk:
            self.queue(chunk)

    def write(self, data: Any) -> None:
        """See L{IConsumer.write}: takes everything, and pauses the producer when the window is full."""
        rest = memoryview(data)
        while rest:
            room = self.reserve(len(rest))
            if room is None:
                self._room = Chunk(self.migration.window.force(len(rest)), self.size)
                if self._producer is not None:
                    self._producer.pauseProducing()
                continue
            count = min(len(rest), len(room.view))
            room.view[:count] = rest[:count]
            self.written(count)
            rest = rest[count:]

    def extent(self, item: Chunk | PipeRange | bytes) -> tuple[OutFrame, Sent] | None:
        """See L{QueuedImage.extent}."""
        assert isinstance(item, Chunk)
        credit = self.migration.credit
        part = item.take(credit.left)
        if part is None:
            return None
        if item is self._room:
            self._room = None
        if part.last:
            self._frames.popleft()
        credit.spend(part.cost)
        credit.sent(part.payload)
        frame = OutFrame(self.header(part.offset, part.payload, part.told), part.range)
        item.sent = Sent(self.migration, frame, part.payload, item if part.last else None)
        return frame, item.sent

    def digest_now(self) -> bytes | None:
        """See L{QueuedImage.digest_now}."""
        return bytes(self._hash.digest())

    def release_room(self) -> None:
        """See L{QueuedImage.release_room}."""
        if self._room is not None and not (self._room.filled or self._room.length):
            self.migration.window.release(self._room)
        self._room = None


@implementer(IPassingSink)
class PassedImage(QueuedImage):
    """One image with no window: its bytes go from CRIU's pipe to the link, and nobody here sees them.

    A producer waits until what it offered or wrote has left.
    """

    def __init__(self, migration: OutgoingMigration, number: int, snapshot: int, name: str) -> None:
        super().__init__(migration, number, snapshot, name)
        self._sent = 0
        self._copied = memoryview(b"")
        self._offered: PipeRange | None = None
        self._passing: PipeRange | None = None

    def offer(self, fd: int, count: int) -> None:
        """See L{IPassingSink.offer}."""
        self.migration.check()
        self.size += count
        self._offered = PipeRange(fd, count, self._taken)
        self.queue(self._offered)

    def reserve(self, size: int) -> Room | None:
        """Room to be copied out of: for sockets."""
        self.migration.check()
        view = memoryview(bytearray(min(size, wire.MAX_PAYLOAD)))
        self._copied = view
        return Room(NO_MEMFD, 0, view)

    def written(self, count: int) -> None:
        """See L{IImageSink.written}."""
        self.write(self._copied[:count])

    def write(self, data: Any) -> None:
        """See L{IConsumer.write}."""
        self.migration.check()
        if self._producer is not None and data:
            self._producer.pauseProducing()
        self.size += len(data)
        for start in range(0, len(data), wire.MAX_PAYLOAD):
            self.queue(bytes(data[start : start + wire.MAX_PAYLOAD]))

    def extent(self, item: Chunk | PipeRange | bytes) -> tuple[OutFrame, Sent] | None:
        """See L{QueuedImage.extent}."""
        assert not isinstance(item, Chunk)
        whole = item.count if isinstance(item, PipeRange) else len(item)
        credit = self.migration.credit
        pages = credit.left // (wire.PAGE + wire.ENTRY)
        count = min(whole, -self._sent % wire.PAGE + pages * wire.PAGE)
        if not count:
            return None
        header = self.header(self._sent, count)
        credit.spend(wire.extent_cost(self._sent, count))
        self._sent += count
        if isinstance(item, PipeRange):
            if count == whole:
                self._frames.popleft()
                self._passing = item
            else:
                item.count -= count
                self._passing = PipeRange(item.fd, count, lambda: None)
            return OutFrame(header, self._passing), Sent(self.migration, None, count)
        self._frames.popleft()
        if count < whole:
            self._frames.appendleft(item[count:])
        elif not self._frames:
            self._taken()
        return OutFrame(header, item[:count]), Sent(self.migration, None, count)

    def digest_now(self) -> bytes | None:
        """See L{QueuedImage.digest_now}."""
        return None

    def drop(self) -> None:
        """See L{QueuedImage.drop}; a pipe that is being passed on is about to be closed."""
        super().drop()
        for pipe in (self._offered, self._passing):
            if pipe is not None:
                pipe.abandon()

    def _taken(self) -> None:
        self._offered = self._passing = None
        if self._producer is not None:
            self._producer.resumeProducing()
