"""How soon a thousand restores that wait for the same commit go on."""

from __future__ import annotations

import contextlib
import os
import select
import statistics
import threading
import time

from bench.clients import PAGES, PATIENCE, StreamDump, StreamRestore
from bench.measure import Row
from bench.relay import Measured, relay
from bench.rows.fairness import IDLE_CLIENTS, IDLE_SOCKETS, allow_descriptors, latency
from bench.stage import Stage
from tests.support.polling import until


class Waking:
    """Sees when each of many descriptors can be read."""

    def __init__(self, descriptors: list[int]) -> None:
        self._left = set(descriptors)
        self._last = 0.0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        with select.epoll() as epoll:
            for descriptor in self._left:
                epoll.register(descriptor, select.EPOLLIN)
            while self._left and (found := epoll.poll(PATIENCE)):
                self._last = time.monotonic()
                for descriptor, _ in found:
                    epoll.unregister(descriptor)
                    self._left.remove(descriptor)

    def last(self) -> float:
        """When the last of them could be."""
        self._thread.join()
        if self._left:
            raise RuntimeError(f"{len(self._left)} restores were not answered")
        return self._last


def _woken(ours: Measured) -> float:
    """Seconds from asking for the commit until the last restore has its answer."""
    ours.attach()
    targets = [ours.target, *(ours.attach_target(number) for number in range(1, IDLE_SOCKETS))]
    with contextlib.ExitStack() as stack:
        restores = [
            stack.enter_context(contextlib.closing(StreamRestore(target)))
            for target in targets
            for _ in range(IDLE_CLIENTS)
        ]
        for restore in restores:
            restore.ask(PAGES)
        waiting = len(restores)
        until(lambda: len(ours.relay.get("/v1/status")["waiting"]) == waiting, PATIENCE, "all wait")
        dump = StreamDump(ours.source)
        pipe = dump.begin(PAGES)
        os.write(pipe, b"page")
        os.close(pipe)
        dump.inventory()
        waking = Waking([restore.fileno() for restore in restores])
        began = time.monotonic()
        ours.permit()
        last = waking.last()
        dump.close()
    ours.discard()
    return last - began


def openers(stage: Stage) -> list[Row]:
    """Restores that wait in their first open, answered at the commit."""
    allow_descriptors()
    with relay(stage) as ours:
        times = [_woken(ours) for _ in range(1 + stage.plan.rounds)][1:]
    what = f"until the last of {IDLE_SOCKETS * IDLE_CLIENTS} has its answer, median"
    return [latency("openers", what, statistics.median(times), [0.0])]
