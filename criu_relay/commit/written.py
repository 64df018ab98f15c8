"""One image that CRIU writes at the proxy: its sink, and what the migration must know of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zope.interface import alsoProvides, implementer

from criu_relay.errors import RelayError
from criu_relay.interfaces import IImageSink, IImportSink, IPassingSink, Room


@implementer(IImportSink)
class WrittenImage:
    """Passes everything to the sink of the outlet, and counts.

    @ivar size: bytes so far, all writes together.
    @ivar complete: the last write has ended.
    """

    def __init__(
        self,
        snapshot: int,
        name: str,
        ended: Callable[[], None],
        arrived: Callable[[int], None],
        refusal: Callable[[], RelayError],
    ) -> None:
        """
        @param arrived: called with each number of bytes that CRIU wrote.
        @param refusal: of the migration.
        """
        self.snapshot = snapshot
        self.name = name
        self.size = 0
        self.complete = False
        self._ended = ended
        self._arrived = arrived
        self._refusal = refusal
        self._sink: IImageSink
        self._passing: IPassingSink

    @property
    def refusal(self) -> RelayError:
        """See L{IImportSink}."""
        return self._refusal()

    def begin(self, sink: IImageSink, from_start: bool) -> None:
        """A write begins."""
        self._sink = sink
        self.complete = False
        if IPassingSink.providedBy(sink):
            alsoProvides(self, IPassingSink)
            self._passing = sink
        if from_start:
            self.size = 0

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See L{IImageSink}."""
        self._sink.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """See L{IImageSink}."""
        self._sink.unregisterProducer()

    def reserve(self, size: int) -> Room | None:
        """See L{IImageSink.reserve}."""
        room: Room | None = self._sink.reserve(size)
        return room

    def written(self, count: int) -> None:
        """See L{IImageSink.written}."""
        self._add(count)
        self._sink.written(count)

    def offer(self, fd: int, count: int) -> None:
        """See L{IPassingSink.offer}; only when the outlet's sink provides it."""
        self._add(count)
        self._passing.offer(fd, count)

    def write(self, data: Any) -> None:
        """See L{IImageSink}."""
        self._add(len(data))
        self._sink.write(data)

    def end(self) -> None:
        """See L{IImageSink.end}."""
        self.complete = True
        self._sink.end()
        self._ended()

    def fail(self, reason: str) -> None:
        """See L{IImageSink.fail}."""
        self._sink.fail(reason)
        self._ended()

    def _add(self, count: int) -> None:
        self.size += count
        self._arrived(count)
