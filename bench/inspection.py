"""One core looks at data as the cache does when it comes: python -m bench.inspection DEDUP DATA BYTES ROUNDS.

Says for each round, as JSON in a line: `seconds` and `cpu` that the image took, without the copy that stands for
receiving; bytes of its `size` and of the process's peak `rss`. With the word "index" alone: the most bytes per page
that the index took while it grew to a million distinct pages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy
from twisted.internet.task import Clock

from bench.processes import peak_rss
from criu_relay.flow.zeros import PAGE
from criu_relay.store.arena import LARGEST, Arena
from criu_relay.store.image import Image
from criu_relay.store.memory import Memory
from criu_relay.store.pages import PageIndex, Pages
from criu_relay.store.policy import Dedup
from criu_relay.store.table import RUN

ZEROS, DUPLICATES = 0.5, 0.3
"""Parts of "mixed" data; the rest is distinct. Which page is which is random, as in no process: no runs help."""

STAMP = 17
"""The word of a page that makes it distinct: none that is looked at to tell zeros."""

INDEXED = 1_000_000

ADDED_AT_ONCE = 512


def distinct() -> Iterator[numpy.ndarray]:
    """1 MiB at a time: random pages, none twice."""
    template = numpy.random.default_rng(1).integers(1, 1 << 63, (RUN, PAGE // 8), numpy.uint64)
    for first in range(0, sys.maxsize, RUN):
        template[:, STAMP] = numpy.arange(first, first + RUN)
        yield template


def mixed() -> Iterator[numpy.ndarray]:
    """1 MiB at a time: zeros, pages that were there before, and distinct ones."""
    random = numpy.random.default_rng(2)
    template = random.integers(1, 1 << 63, (RUN, PAGE // 8), numpy.uint64)
    made = 1
    while True:
        kinds = random.random(RUN)
        new = kinds >= ZEROS + DUPLICATES
        pages = random.integers(0, made, RUN)
        pages[new] = made + numpy.arange(numpy.count_nonzero(new))
        made += int(numpy.count_nonzero(new))
        batch = template[pages % RUN]
        batch[:, STAMP] = pages
        batch[kinds < ZEROS] = 0
        yield batch


DATA: dict[str, Callable[[], Iterator[numpy.ndarray]]] = {"mixed": mixed, "distinct": distinct}


class Short(Memory):
    """There is little of it, so pages are compared when they come."""

    @property
    def short(self) -> bool:
        """Always."""
        return True


class Stopwatch:
    """What the `with` blocks of it take, in all.

    @ivar seconds: of the clock; `cpu`: of the processor.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *exception: object) -> None:
        self.cpu += time.process_time() - self._began[1]
        self.seconds += time.perf_counter() - self._began[0]


def inspected(memory: Memory, data: Iterator[numpy.ndarray], size: int) -> dict[str, float]:
    """An image of `size` bytes grows; its memory is given back."""
    image = Image(memory, memory.index("bench"), 1, 1, "pages-1.img")
    watch = Stopwatch()
    while image.size < size:
        batch = next(data).data.cast("B")
        while batch:
            with watch:
                room = image.reserve(len(batch)).view
            count = min(len(room), len(batch))
            room[:count] = batch[:count]
            with watch:
                image.written(count)
            batch = batch[count:]
    with watch:
        image.finish(image.size, None)
    found = {"seconds": watch.seconds, "cpu": watch.cpu, "size": image.size, "rss": peak_rss(os.getpid())}
    image.drop()
    return found


def resident() -> int:
    """Bytes of memory that this process has: proc_pid_statm(5)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Unmarked(Pages):
    """Pages that are only numbers."""

    def indexed(self, numbers: numpy.ndarray) -> None:
        """Their marks are part of what the budget counts for each page of an image."""


def index_cost() -> dict[str, float]:
    """What the index takes that finds distinct pages, beyond the first tenth of them: with those come pages of code."""
    arena = Arena(INDEXED * PAGE, 0)
    index, random = PageIndex(Unmarked(arena)), Random(1)
    taken, began = [], time.perf_counter()
    for count in range(ADDED_AT_ONCE, INDEXED + 1, ADDED_AT_ONCE):
        index.add([random.getrandbits(60) for _ in range(ADDED_AT_ONCE)], numpy.arange(ADDED_AT_ONCE) + count)
        taken.append(resident())
    seconds, first = time.perf_counter() - began, len(taken) // 10
    costs = [
        (bytes_ - taken[first]) / ((place - first) * ADDED_AT_ONCE)
        for place, bytes_ in enumerate(taken)
        if place >= 2 * first
    ]
    return {
        "bytes_per_page": max(costs),
        "rss": peak_rss(os.getpid()),
        "seconds": seconds,
        "pages": INDEXED,
    }


def main(dedup: str, data: str, size: int, rounds: int) -> None:
    """On one core, into memory that has its pages."""
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    limit = size + size // 16 + 16 * LARGEST
    clock, arena = Clock(), Arena(limit, keep=limit)
    memory = Short(clock, arena, Dedup(dedup))
    arena.warm(limit)
    for _ in range(rounds):
        print(json.dumps(inspected(memory, DATA[data](), size)), flush=True)
        while memory.reclaimer.waiting:
            clock.advance(0)


if __name__ == "__main__":
    if sys.argv[1] == "index":
        print(json.dumps(index_cost()))
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
