"""How soon those who wait for a namespace have its bytes; here the ratio is a limit / the time of the last of them."""

from __future__ import annotations

import contextlib
import os
import select
import statistics
import threading
import time
from collections.abc import Mapping

from bench.clients import PAGES, PATIENCE, StreamDump
from bench.measure import GB, Row
from bench.relay import Measured, relay
from bench.rows.fairness import allow_descriptors, latency
from bench.stage import Stage
from tests.support.polling import until
from tests.support.remote_client import Connection, RestoreSide

SOCKETS, OPENERS = 5, 200
"""A socket takes 256 clients at a time."""

DESCRIPTORS = 4 * SOCKETS * OPENERS
"""A client takes up to three of the cache's while it is served."""

IMAGE = os.urandom(8 << 10)
"""What everybody waits for."""

ANSWER = 6
"""Bytes that say that there is such an image; its own follow on the same socket."""

PIECE = 64 << 10


def _answered(openers: Mapping[int, Connection]) -> tuple[float, float, dict[int, bytes]]:
    """When the last opener had an answer, and when bytes of its image, CLOCK_MONOTONIC; and what each had then."""
    came = dict.fromkeys(openers, b"")
    left, answer, image = len(openers), 0.0, 0.0
    with select.epoll() as events:
        for descriptor in openers:
            events.register(descriptor, select.EPOLLIN)
        while left:
            found = events.poll(PATIENCE)
            if not found:
                raise TimeoutError(f"{left} openers got nothing")
            for descriptor, _ in found:
                now = time.monotonic()
                if not came[descriptor]:
                    answer = now
                came[descriptor] += os.read(descriptor, PIECE)
                if len(came[descriptor]) > ANSWER:
                    left, image = left - 1, now
                    events.unregister(descriptor)
    return answer, image, came


def _woken(ours: Measured) -> tuple[float, float]:
    """Seconds from when the commit is asked for, after all was sent, to the last answer, and to the last image."""
    directories = [ours.restoring("images") for _ in range(SOCKETS)]
    with contextlib.ExitStack() as stack:
        dump = StreamDump(ours.source)
        stack.callback(dump.close)
        writing = dump.begin(PAGES)
        os.write(writing, IMAGE)
        os.close(writing)
        sides = [RestoreSide(directory, "") for directory in directories]
        asked = [stack.enter_context(side.ask(PAGES)) for side in sides for _ in range(OPENERS)]
        openers = {one.socket.fileno(): one for one in asked}
        until(lambda: len(ours.relay.get("/v1/status")["waiting"]) == len(openers), PATIENCE, "all openers wait")
        dump.inventory()
        began: list[float] = []

        def commit() -> None:
            began.append(time.monotonic())
            ours.permit()

        committing = threading.Thread(target=commit)
        committing.start()
        answer, image, came = _answered(openers)
        committing.join()
        for descriptor, one in openers.items():
            assert (came[descriptor] + one.rest())[ANSWER:] == IMAGE
    ours.discard()
    return answer - began[0], image - began[0]


def openers(stage: Stage) -> list[Row]:
    """A thousand of them."""
    times = []
    with relay(stage) as ours:
        allow_descriptors(ours, DESCRIPTORS)
        for _ in range(stage.plan.rounds):
            times.append(_woken(ours))
            ours.attach()
    size, count = SOCKETS * OPENERS * len(IMAGE), SOCKETS * OPENERS
    return [
        latency(
            f"openers@{name}",
            f"the time until the last of {count} has {what}",
            statistics.median(part),
            [size / one / GB for one in part],
        )
        for name, what, part in zip(
            ("answer", "image"), ("an answer", "bytes of its image"), zip(*times, strict=True), strict=True
        )
    ]
