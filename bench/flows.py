"""Large images that are on their way while something else is looked at."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self

from bench.clients import PAGES, StreamDump
from bench.processes import Times
from bench.references import writer
from bench.relay import Measured


class Flow:
    """One large image on its way into a namespace of its own.

    @ivar namespace: which.
    """

    def __init__(self, ours: Measured, size: int) -> None:
        ours.attach()
        self.namespace = ours.namespace
        self._ours = ours
        self._dump = StreamDump(ours.source)
        self._writer = writer(ours.stage, self._dump.begin(PAGES), size)
        self._writer.ready()

    def go(self) -> None:
        """Begin to write."""
        self._writer.go()

    @property
    def running(self) -> bool:
        """Its writer has not written everything."""
        report = self._writer.process.stdout
        assert report is not None
        return not select.select([report], [], [], 0)[0]

    def begin(self, name: str) -> int:
        """Open another image of the same dump; the descriptor to write it into."""
        return self._dump.begin(name)

    def commit(self) -> Times:
        """Let it end, and throw it away."""
        written = self._writer.times()
        self._dump.inventory()
        self._ours.namespace = self.namespace
        self._ours.permit()
        self._writer.end()
        self._dump.close()
        self._ours.committed()
        self._ours.drop()
        return written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._dump.close()
        self._writer.__exit__(None, None, None)


@contextmanager
def flowing(ours: Measured, sizes: Sequence[int]) -> Iterator[list[Flow]]:
    """Flows of so many bytes each that have begun; they are through, and their memory is given back, at the end."""
    with ExitStack() as stack:
        flows = [stack.enter_context(Flow(ours, size)) for size in sizes]
        for flow in flows:
            flow.go()
        yield flows
        for flow in flows:
            flow.commit()
    ours.settle()
