"""What the tests of the flows share: a reactor that is turned by hand, sinks and sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zope.interface import implementer

from criu_relay.errors import RelayError
from criu_relay.interfaces import IImageSink, Room

MIB = 1 << 20


class FakeReactor:
    """Remembers who wants to read or write; the test calls them."""

    def __init__(self) -> None:
        self.readers: list[Any] = []
        self.writers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        assert reader.fileno() >= 0, "epoll would refuse it"
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        assert writer.fileno() >= 0, "epoll would refuse it"
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)


@implementer(IImageSink)
class Sink:
    """Collects an image.

    @ivar space: bytes that it has room for.
    @ivar piece: the most that one room has.
    """

    def __init__(self, space: int = 1 << 40, piece: int = 1 << 40) -> None:
        self.data = bytearray()
        self.space = space
        self.piece = piece
        self.asked: list[int] = []
        self.calls: list[str] = []
        self.producer: Any = None
        self.error: RelayError | None = None
        self._room = bytearray()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.calls.append("unregister")
        self.producer = None

    def reserve(self, size: int) -> Room | None:
        self.asked.append(size)
        if self.error is not None:
            raise self.error
        count = min(size, self.space, self.piece)
        if not count:
            return None
        self._room = bytearray(count)
        return Room(-1, 0, memoryview(self._room))

    def written(self, count: int) -> None:
        self.data += self._room[:count]
        self.space -= count

    def write(self, data: bytes) -> None:
        self.data += data

    def end(self) -> None:
        self.calls.append("end")

    def fail(self, reason: str) -> None:
        self.calls.append(f"fail: {reason}")


def descriptors() -> dict[str, str]:
    """Our open descriptors and what they are; image memory is kept as long as its daemon runs."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            what = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if not what.startswith("/memfd:"):
            found[number] = what
    return found


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """What is opened inside is closed inside."""
    before = descriptors()
    yield
    left = {number: what for number, what in descriptors().items() if before.get(number) != what}
    assert not left, f"descriptors left open: {left}"
