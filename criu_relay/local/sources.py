"""The images that one client writes, each out of its own descriptor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from criu_relay.errors import RelayError
from criu_relay.flow.source import DescriptorSource
from criu_relay.interfaces import IImageSink


class Sources:
    """Descriptors that are read into images at the same time."""

    def __init__(self, reactor: Any, ended: Callable[[], None]) -> None:
        """@param ended: called after one of them ended, well or not, and left the set."""
        self._reactor = reactor
        self._ended = ended
        self._running: dict[DescriptorSource, str] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[str]:
        """The names of the images."""
        return iter(self._running.values())

    def start(self, name: str, descriptor: int, sink: IImageSink, data: bytes = b"") -> None:
        """Begin to read.

        @param descriptor: ours from now on, whatever happens.
        @param data: what was received before, ahead of what the descriptor holds.
        @raise RelayError: the image does not take `data`; it has failed then.
        """
        source: DescriptorSource | None = None

        def finished() -> None:
            if source is not None and self._running.pop(source, None) is not None:
                self._ended()

        try:
            if data:
                sink.write(data)
            source = DescriptorSource(self._reactor, self._reactor, descriptor, sink, finished)
        except RelayError as error:
            os.close(descriptor)
            sink.fail(error.reason)
            raise
        self._running[source] = name
        source.start()

    def abort(self, reason: str) -> None:
        """Close every descriptor; the images fail."""
        for source in list(self._running):
            source.abort(reason)
